"""What a user gives as target, understood: one label, several, none, or weights.

Refused: to guess whether whole numbers above 1 are labels or weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from crossent.reference import Array, index_target, multilabel_target
from crossent.tools.arrays import to_lists
from crossent.tools.shared_options import IGNORE_INDEX


class RowTarget(NamedTuple):
    """The target of one row: ``labels`` in ascending order, or None for weights that are not all 0 or 1."""

    weights: Array
    labels: tuple[int, ...] | None

    @property
    def shares(self) -> Array:
        """What a softmax is asked for: ``t = 1/M`` on each of M labels, and weights as they are."""
        return self.weights if self.labels is None else multilabel_target(self.weights)


def read_target(target: Any, num_classes: int, names: Sequence[str], ignore_index: int = IGNORE_INDEX) -> RowTarget:
    """Understand a class, several classes, or one weight a class.

    Args:
        target: a class index or name; a set of them, or a list of them whose length is not C; or C weights, such as a soft label
            or zeros and ones.
        num_classes: ``C``.
        names: of the classes.
        ignore_index: the label of a row that counts for nothing, which is refused.

    Raises:
        ValueError: anything else.

    >>> read_target({0, 2}, 3, "abc").labels, read_target([0.0, 0.5, 0.5], 3, "abc").labels
    ((0, 2), None)
    """
    if isinstance(target, (set, frozenset)):
        return _of_labels(sorted(target, key=str), num_classes, names, ignore_index)
    values = to_lists(target)
    if not isinstance(values, (list, tuple)):
        return _of_labels([values], num_classes, names, ignore_index)
    if any(isinstance(value, (list, tuple)) for value in values):
        raise ValueError(f"target must belong to one row, got a nested list of length {len(values)}: pass target[i]")
    if len(values) != num_classes or any(isinstance(value, str) for value in values):
        return _of_labels(values, num_classes, names, ignore_index)
    return _of_weights(values, num_classes)


def _of_weights(values: Sequence[Any], num_classes: int) -> RowTarget:
    if not all(isinstance(value, (bool, int, float)) and 0 <= value < math.inf for value in values):
        raise ValueError(f"target weights must be finite and not negative, got {_shortly(values)}")
    if max(values) > 1 and all(isinstance(value, int) for value in values):
        raise ValueError(
            f"target {_shortly(values)} has one entry a class and may be labels or weights: pass a set for labels, "
            "floats for weights"
        )
    weights = np.array(values, np.float64)
    hard = bool(np.isin(weights, (0.0, 1.0)).all())
    return RowTarget(weights, tuple(np.flatnonzero(weights).tolist()) if hard else None)


def _of_labels(values: Sequence[Any], num_classes: int, names: Sequence[str], ignore_index: int) -> RowTarget:
    whole = [_index(value, names) for value in values]
    if None in whole:
        raise ValueError(
            f"target must be a class index, a set of them, or one weight for each of the {num_classes} classes, "
            f"got {_shortly(values)}"
        )
    labels = sorted({k for k in whole if k is not None})
    if ignore_index in labels:
        raise ValueError(f"target must be a class, got {ignore_index}: an ignored row has no loss")
    for k in labels:
        if not 0 <= k < num_classes:
            from_1 = ": labels start at 0; if these start at 1, subtract 1" if k == num_classes else ""
            raise ValueError(f"target must lie in [0, {num_classes}), got {k}{from_1}")
    weights = index_target(np.array(labels, np.int64), num_classes).max(0, initial=0.0)
    return RowTarget(weights, tuple(labels))


def _index(value: Any, names: Sequence[str]) -> int | None:
    """Read a class index or name; None if it is neither."""
    if isinstance(value, str):
        named = [k for k, name in enumerate(names) if name == value]
        if len(named) != 1:
            what = f"none of the classes {_shortly(names)}" if not named else f"what {len(named)} classes are called"
            raise ValueError(f"target must name one class, and {value!r:.60} is {what}")
        return named[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


def _shortly(values: Sequence[Any]) -> str:
    text = ", ".join(map(str, values[:8]))
    return f"({text}, ...)" if len(values) > 8 else f"({text})"
