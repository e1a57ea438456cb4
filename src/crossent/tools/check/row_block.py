"""Rows on their way to the facts: some logits, one row after the other, with their target and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent import reference
from crossent.reference import Array, Bools
from crossent.tools.check.layout import RowLayout

Ints = NDArray[np.int64]


def numbers(row: Sequence[float] | NDArray[Any], most: int = 4) -> str:
    """Write the first numbers of a row.

    >>> numbers([0.25, -1.0, 3.0, 1e5, 7.0])
    '0.25, -1, 3, 1e+05, …'
    """
    text = ", ".join(f"{value:.3g}" for value in row[:most])
    return text + (", …" if len(row) > most else "")


def anywhere(mask: Bools) -> Bools:
    """Mark the rows in which the mask is true anywhere."""
    return np.asarray(mask.any(1))


def everywhere(mask: Bools) -> Bools:
    """Mark the rows in which the mask is true everywhere."""
    return np.asarray(mask.all(1))


@dataclass
class RowBlock:
    """Some rows, one after the other, with their target as class indices or as weights.

    Attributes:
        layout: of the whole.
        first: the number of the first row.
        x: the logits ``(R, C)``.
        raw: the target as it is stored, ``(R,)`` or ``(R, C)``; None if there is none.
        ignored: what of it counts for nothing.
        binary: whether every logit has a sigmoid.
        others: the labels that rows would have in other orders, by name.
        ends: of labels ``(B, T)``: whether a label is one of several equal ones at the end of its row.
        near: of language models: the labels so many positions further on, -1 where there is none.
    """

    layout: RowLayout
    first: int
    x: Array
    raw: Array | None
    ignored: Bools
    binary: bool = False
    near: dict[int, Ints] = field(default_factory=dict)
    others: dict[str, Ints] = field(default_factory=dict)
    ends: Bools | None = None

    def place(self, i: int) -> str:
        """Name a row by its index, or by one index for each axis of the rows."""
        at = np.unravel_index(self.first + i, self.layout.rows)
        if not at:
            return "the row"
        return f"row {int(at[0])}" if len(at) == 1 else f"row ({', '.join(str(int(k)) for k in at)})"

    @cached_property
    def y(self) -> Ints:
        """The class of every row, -1 where the target names none."""
        raw = self.raw
        assert raw is not None
        wrong = self.ignored | ~np.isfinite(raw) | (raw != np.rint(raw)) | (raw < 0) | (raw >= self.x.shape[1])
        return np.where(wrong, -1, np.where(np.isfinite(raw), raw, 0)).astype(np.int64)

    @cached_property
    def t(self) -> Array:
        """The weight of every class; nothing where it is ignored or no number."""
        raw = self.raw
        assert raw is not None
        return np.where(self.ignored | ~np.isfinite(raw), 0.0, raw)

    @property
    def indices(self) -> bool:
        """Whether there is a class for every row."""
        return self.raw is not None and self.raw.ndim == 1

    @cached_property
    def counts(self) -> Bools:
        """The rows that count."""
        if self.indices:
            return np.asarray(self.y >= 0)
        return ~everywhere(self.ignored) if self.raw is not None else np.ones(len(self.x), bool)

    @cached_property
    def cost(self) -> Array:
        """``-log p`` of every class; for a sigmoid, of yes."""
        return reference.softplus(-self.x) if self.binary else reference.surprisal(self.x)

    @cached_property
    def loss(self) -> Array:
        """The loss of every row, or of every logit for a sigmoid; nan where there is none."""
        if self.raw is None:
            return np.full(len(self.x), nan)
        if self.binary:
            return np.where(self.ignored, nan, reference.sigmoid_cross_entropy(self.x, self.t).loss)
        if self.indices:
            return np.where(self.counts, self.cost[np.arange(len(self.y)), self.y], nan)
        return np.asarray(reference.times(self.t, self.cost).sum(1))
