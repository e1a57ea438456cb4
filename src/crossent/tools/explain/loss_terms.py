"""The numbers of one loss on one row, all by ``crossent.reference``: a term and a derivative for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crossent import reference
from crossent.reference import Array
from crossent.tools.explain.catalogue import LossDescription
from crossent.tools.explain.row_target import RowTarget

SMOOTHING = 0.1
"""The ε of ce-smooth."""
PENALTIES = {
    "focal": reference.focal(2.0),
    "gce": reference.gce(0.7),
    "mae": reference.mae(),
    "sce": reference.sce(0.1, 1.0),
    "poly1": reference.poly1(1.0),
    "taylor": reference.taylor(2),
}
"""The members that differ from cross entropy by their penalty alone."""


class LossTerms(NamedTuple):
    """What a loss makes of a row: the target it used, what each class adds to it, and its gradient."""

    t: Array
    terms: Array
    gradient: Array


def compute(description: LossDescription, x: Array, target: RowTarget) -> LossTerms:
    """Compute a loss that takes this target: see ``objection``."""
    if description.link == "sigmoid":
        return LossTerms(target.weights, *_sigmoid(description.name, x, target.weights))
    t = reference.smooth(target.shares, SMOOTHING) if description.name == "ce-smooth" else target.shares
    return LossTerms(t, *(_hinge(x, target) if description.name == "hinge" else _softmax(description.name, x, t)))


def objection(description: LossDescription, x: Array, target: RowTarget) -> str | None:
    """Say why a loss cannot take this row, or None."""
    if description.takes != "weights" and target.labels is None:
        return f"{description.name} needs labels, not weights"
    if description.takes == "label" and len(target.labels or ()) != 1:
        return f"{description.name} needs one label, got {len(target.labels or ())}"
    if description.takes == "label" and not np.isfinite(x).all():
        return f"{description.name} needs finite logits"
    return None


def probabilities(description: LossDescription, x: Array) -> Array:
    """Compute what the loss takes as probabilities. The hinge has none: for it, what a user of its model would take."""
    return reference.sigmoid(x) if description.link == "sigmoid" else reference.softmax(x)


def add(values: Sequence[float]) -> float:
    """Add without rounding in between, so that what cancels is 0, unless that overflows.

    >>> add([0.1, 0.2, -0.3]), sum([1e16, 1.0, -1e16]), add([1e16, 1.0, -1e16])
    (2.7755575615628914e-17, 0.0, 1.0)
    """
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # of numbers near the largest, of inf and -inf
        return float(sum(values))


def _softmax(name: str, x: Array, t: Array) -> tuple[Array, Array]:
    if name == "ce-after-softmax":
        loss = reference.cross_entropy_after_softmax(x, t, reduction="sum")
    else:
        loss = reference.softmax_cross_entropy(x, t, penalty=PENALTIES.get(name))
    assert loss.target_grad is not None  # what a class costs, before it is weighed by t
    return reference.times(t, loss.target_grad), loss.grad


def _sigmoid(name: str, x: Array, t: Array) -> tuple[Array, Array]:
    if name == "sigmoid-difference":
        loss = reference.sigmoid_difference(x, t, reduction="none")
    elif name == "sigmoid-focal":
        loss = reference.sigmoid_focal_loss(x, t)
    else:
        penalty = reference.asymmetric() if name == "asymmetric" else None
        loss = reference.sigmoid_cross_entropy(x, t, penalty=penalty)
    return loss.loss, loss.grad


def _hinge(x: Array, target: RowTarget) -> tuple[Array, Array]:
    assert target.labels is not None
    (label,) = target.labels
    return reference.hinge_terms(x, label), reference.multiclass_hinge(x, label, reduction="sum").grad
