"""Decisions, a block at a time: what is read from the file becomes rows of ``-log p`` with the class that is right.

A decision is a choice among classes: a row, a pixel, a token; or, with several labels a row, the yes or no of one class, which is
the softmax over ``[0, x]``. Everything that is measured is measured on blocks of decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent import reference
from crossent.reference import Array, Bools
from crossent.tools.errors import FileError
from crossent.tools.files import RowArray
from crossent.tools.inputs import IN_PERCENT, ValueRange, log_of_no, log_probabilities, no_probabilities, percentages
from crossent.tools.score.layout import DecisionLayout
from crossent.tools.score.options import ScoreOptions

Ints = NDArray[np.int64]
Choice = Callable[[Ints, Ints], Bools]  # which decisions, from their rows and positions

SOFT = 1e-3  # how far the sum of a soft label may be from 1
ELEMENTS = 1 << 19  # of float64 in a block: 4 MiB, of which there are a few copies


class Decisions:
    """Decisions that count: in which row and where in it, the logits ``x`` of each, and the class ``y`` that is right.

    A soft label is one weight ``t`` a class, and ``y`` the class with most of it.
    """

    def __init__(self, row: Ints, position: Ints, x: Array, y: Ints, t: Array | None = None) -> None:
        self.row, self.position, self.x, self.y, self.t = row, position, x, y, t

    def __len__(self) -> int:
        return len(self.y)

    def where(self, keep: Bools) -> Decisions:
        """Keep some of the decisions."""
        if keep.all():
            return self
        t = None if self.t is None else self.t[keep]
        return Decisions(self.row[keep], self.position[keep], self.x[keep], self.y[keep], t)

    def tempered(self, temperature: float) -> Decisions:
        """Divide the logits by a temperature."""
        return Decisions(self.row, self.position, self.x / temperature, self.y, self.t)

    @cached_property
    def cost(self) -> Array:
        """``-log p`` of every class."""
        return reference.surprisal(self.x)

    @cached_property
    def p(self) -> Array:
        """The probability of every class."""
        return np.exp(-self.cost)

    @cached_property
    def predicted(self) -> Ints:
        """The first of the most probable classes."""
        return np.asarray(self.x.argmax(1))

    @cached_property
    def nll(self) -> Array:
        """``-log p`` of the class that is right, or ``-Σ t log p``."""
        return self.of(self.cost, self.y) if self.t is None else reference.times(self.t, self.cost).sum(1)

    @cached_property
    def x_true(self) -> Array:
        """The logit of the class that is right, or ``Σ t x``."""
        return self.of(self.x, self.y) if self.t is None else reference.times(self.t, self.x).sum(1)

    @cached_property
    def p_true(self) -> Array:
        """The probability of the class that is right."""
        return self.of(self.p, self.y)

    @cached_property
    def p_predicted(self) -> Array:
        """The largest probability."""
        return self.of(self.p, self.predicted)

    @cached_property
    def right(self) -> Bools:
        """Whether the first of the most probable classes is the right one."""
        return np.asarray(self.predicted == self.y)

    @property
    def broken(self) -> Bools:
        """Whether a decision has no softmax: a nan or +inf among its logits, or -inf everywhere."""
        return np.asarray(~np.isfinite(self.x.max(1)))

    @staticmethod
    def of(values: Array, classes: Ints) -> Array:
        """Take one class of every decision."""
        return np.asarray(np.take_along_axis(values, classes[:, None], 1)[:, 0])


class RawDecisions(NamedTuple):
    """A part of the file on its way to a block: values as given, one decision a line, and their labels."""

    row: Ints
    position: Ints
    values: Array
    labels: NDArray[Any]


class Reader:
    """Reads two arrays in blocks of decisions, and notes what looks wrong on the way.

    Args:
        logits: the values.
        labels: the labels.
        layout: how the two belong together.
        options: how to read them.
    """

    def __init__(self, logits: RowArray, labels: RowArray, layout: DecisionLayout, options: ScoreOptions) -> None:
        self.logits, self.labels, self.layout, self.options = logits, labels, layout, options
        self.ignored, self.value_range, self.soft = 0, _value_range(options), False

    def blocks(self, watch: Callable[[int], None]) -> Iterator[Decisions]:
        """Read everything; ``watch`` is told how many rows are done.

        Raises:
            FileError: labels that are no classes, or, after the last block, decisions without a softmax.
        """
        self.ignored, self.value_range = 0, _value_range(self.options)
        broken = Broken(self.logits.name)
        for stop, piece in self._pieces(None):
            y, keep, t = self._classes(piece)
            self.ignored += int((~keep).sum())
            self.value_range.add(piece.values[keep])
            block = Decisions(piece.row, piece.position, self._logits(piece, keep), y, t).where(keep)
            if not broken.found_in(block):
                yield block
            watch(stop)
        broken.refuse()

    def sample(self, chosen: Choice) -> Iterator[Decisions]:
        """Read some of the decisions, leaving out what :meth:`blocks` refuses."""
        for _, piece in self._pieces(chosen):
            y, keep, t = self._classes(piece)
            block = Decisions(piece.row, piece.position, self._logits(piece, keep), y, t).where(keep)
            yield block.where(~block.broken)

    def _pieces(self, chosen: Choice | None) -> Iterator[tuple[int, RawDecisions]]:
        """Read a few rows at a time, as many as make a piece; with each piece comes how many rows have been read."""
        step = max(1, ELEMENTS // (self.layout.per_row * self.layout.choices))
        for start in range(0, len(self.logits), step):
            stop = min(start + step, len(self.logits))
            for piece in self._cut(start, stop, chosen):
                yield stop, piece

    def _cut(self, start: int, stop: int, chosen: Choice | None) -> Iterator[RawDecisions]:
        """Cut rows of the file into pieces of decisions, one line each, that fit into memory whatever a row is."""
        axis, per_row = self.layout.axis, self.layout.per_row
        values, labels = self.logits.rows(start, stop), self.labels.rows(start, stop)
        if axis is None:
            values = values.reshape(-1, 1)
        else:
            values = np.moveaxis(values, axis, -1)
            labels = np.moveaxis(labels, axis, -1) if self.layout.one_hot else labels
        if self.layout.shift:
            values, labels = values[:, :-1], labels[:, 1:]
        lines = (stop - start) * per_row
        values = values.reshape(lines, -1)
        labels = labels.reshape((lines, -1) if self.layout.one_hot else lines)
        step = max(1, ELEMENTS // self.layout.choices)
        for first in range(0, lines, step):
            at = np.arange(first, min(first + step, lines))
            row, position = start + at // per_row, at % per_row
            if chosen is not None:
                wanted = chosen(row, position)
                at, row, position = at[wanted], row[wanted], position[wanted]
            if len(at):
                part: Any = slice(first, first + step) if chosen is None else at
                yield RawDecisions(row, position, values[part].astype(np.float64), labels[part])

    def _classes(self, piece: RawDecisions) -> tuple[Ints, Bools, Array | None]:
        """Read labels as class indices, say which of them count, and give the weights of those that are soft."""
        labels, name = piece.labels, self.labels.name
        if self.layout.one_hot:
            t = labels.astype(np.float64)
            keep: Bools = np.asarray(~np.isnan(t).any(1))
            wrong = ((t < 0).any(1) | (np.abs(t.sum(1) - 1) > SOFT)) & keep
            if wrong.any():
                raise FileError(
                    f"{name}: row {piece.row[wrong.argmax()]} is neither one-hot nor a soft label that sums to 1; "
                    "--task multilabel scores several labels a row"
                )
            self.soft |= bool(((t != 0) & (t != 1) & keep[:, None]).any())
            t = np.where(keep[:, None], t, 0.0)
            return t.argmax(1), keep, t if self.soft else None
        keep = (labels != self.options.ignore_index) & (labels == labels)  # a label that is missing is nan
        y = np.where(keep, labels, 0)
        if y.dtype.kind == "f" and not np.all(np.rint(y) == y):
            at = (np.rint(y) != y).argmax()
            raise FileError(f"{name}: row {piece.row[at]} has label {y[at]:g}, which is no class number")
        outside = (y < 0) | (y >= self.layout.choices)
        if outside.any():
            self._refuse(piece, y, int(outside.argmax()))
        return y.astype(np.int64), np.asarray(keep), None

    def _refuse(self, piece: RawDecisions, y: NDArray[Any], at: int) -> None:
        classes, row = self.layout.choices, f"{self.labels.name}: row {piece.row[at]} has label {y[at]:.0f}"
        if self.layout.axis is None:
            raise FileError(f"{row}, but --task multilabel takes 0 and 1 (and --ignore-index for neither)")
        hint = ": labels that start at 1 need 1 subtracted" if y[at] == classes and self._lowest() >= 1 else ""
        if y[at] == 255 and classes == 2 and self._values() == {0, 255}:
            hint = ": a mask of 0 and 255 for two classes wants labels // 255"
        raise FileError(
            f"{row}, but the {classes} classes are 0 to {classes - 1}{hint or '; --ignore-index leaves a label out'}"
        )

    def _values(self) -> set[float]:
        """Find which labels there are that count."""
        values = np.unique(self.labels.rows(0, len(self.labels))).tolist()
        return {value for value in values if value != self.options.ignore_index}

    def _lowest(self) -> float:
        """Find the lowest label that counts, in all of the file."""
        values = self.labels.rows(0, len(self.labels))
        return float(np.nanmin(np.where(values == self.options.ignore_index, np.nan, values.astype(np.float64))))

    def _logits(self, piece: RawDecisions, keep: Bools) -> Array:
        """Turn what was given into logits. Those of probabilities are their logarithms: the softmax of log p is p again."""
        given, x = self.options.input, piece.values
        if given == "probs":
            outside = no_probabilities(x) & keep
            if outside.any():
                at = outside.argmax()
                if percentages(x[at]):
                    raise FileError(f"{self.logits.name}: {IN_PERCENT}")
                raise FileError(
                    f"{self.logits.name}: row {piece.row[at]} goes from {x[at].min():.4g} to {x[at].max():.4g}, which are no "
                    "probabilities: leave out --input probs"
                )
        x = log_probabilities(x, given)
        if self.layout.axis is not None:
            return x
        return np.concatenate([np.zeros_like(x) if given == "logits" else log_of_no(x), x], 1)


def _value_range(options: ScoreOptions) -> ValueRange:
    return ValueRange(options.input, options.task == "multilabel")


class Broken:
    """Counts the decisions without a softmax, and remembers the rows of the first."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.first = name, 0, list[int]()

    def found_in(self, block: Decisions) -> bool:
        """Note those of a block, and say whether there are any."""
        bad = block.broken
        self.count += int(bad.sum())
        for row in block.row[bad][:5].tolist():
            if len(self.first) < 5 and row not in self.first:
                self.first.append(row)
        return bool(bad.any())

    def refuse(self) -> None:
        """Raise if there were any, with where the first are."""
        if self.count:
            rows = ", ".join(map(str, self.first))
            raise FileError(
                f"{self.name}: {self.count} {'has' if self.count == 1 else 'have'} no softmax (nan, +inf, or only -inf), first in "
                f"row {rows}: a mean without them would look too good"
            )
