"""Plain gradient descent on the logits of one row, by the gradients of ``crossent.reference``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossent.reference import index_target
from crossent.tools.explain.catalogue import LossDescription
from crossent.tools.explain.loss_terms import compute
from crossent.tools.explain.row_target import RowTarget


def steps_to_lead(description: LossDescription, x: Sequence[float], label: int, limit: int = 100_000) -> int | None:
    """Count the steps of rate 1 until the class leads; None if so many do not do.

    >>> from crossent.tools.explain.catalogue import LOSSES
    >>> [steps_to_lead(LOSSES[name], [-6.0, 6.0, 0.0], 0) for name in ("ce", "bce", "sigmoid-difference")]
    [7, 7, 418]
    """
    at = np.asarray(x, np.float64)
    target = RowTarget(index_target(label, len(at)), (label,))
    others = np.arange(len(at)) != label
    for count in range(limit + 1):
        if at[label] > at[others].max():
            return count
        at = at - compute(description, at, target).gradient
    return None
