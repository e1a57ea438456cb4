"""Plain gradient descent on the logits of one row, by the gradients of ``crossent.reference``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from crossent.reference import Array, index_target
from crossent.tools.explain.catalogue import LossDescription
from crossent.tools.explain.loss_terms import compute
from crossent.tools.explain.row_target import RowTarget


def steps_to_lead(description: LossDescription, x: Sequence[float], label: int, limit: int = 100_000) -> int | None:
    """Count the steps of rate 1 until the class leads; None if it does not lead after ``limit`` of them.

    >>> from crossent.tools.explain.catalogue import LOSSES
    >>> [steps_to_lead(LOSSES[name], [-6.0, 6.0, 0.0], 0) for name in ("ce", "bce", "sigmoid-difference")]
    [7, 7, 418]
    """
    others = np.arange(len(x)) != label
    for count, at in enumerate(islice(descent(description, x, label), limit + 1)):
        if at[label] > at[others].max():
            return count
    return None


def descent(description: LossDescription, x: Sequence[float], label: int) -> Iterator[Array]:
    """Walk down, without an end: the start and the logits after each step of rate 1."""
    at = np.asarray(x, np.float64)
    target = RowTarget(index_target(label, len(at)), (label,))
    while True:
        yield at
        at = at - compute(description, at, target).gradient


def strengths(description: LossDescription, x: Array, label: int) -> Array:
    """Compute the mean size of the push on the logits of each row of ``(N, C)``."""
    target = RowTarget(index_target(label, x.shape[-1]), (label,))
    return np.asarray(np.abs(compute(description, x, target).gradient).mean(-1))
