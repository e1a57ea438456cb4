"""Everything that one pass over the values tells: the rules look at this, never at the values.

What is kept does not grow with the number of rows, except for a few numbers a micro-batch. The cost of a class is that of
``crossent.reference``, without class weights and smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import inf, prod
from typing import Any

import numpy as np

from crossent import reference
from crossent.reference import Array, Bools
from crossent.tools.check.layout import RowLayout
from crossent.tools.check.matches import MatchFacts
from crossent.tools.check.options import CheckOptions
from crossent.tools.check.row_block import RowBlock, anywhere, everywhere, numbers
from crossent.tools.check.running_mean import RunningMean

SHOWN = 3  # rows that are written out
OFFSETS = (-1, 0, 1)  # of the labels of a language model, in positions


@dataclass
class Tally:
    """How many rows show something, and the first of them in words."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    at: int = -1

    def add(self, block: RowBlock, rows: Bools, values: Any) -> None:
        """Count rows; ``values`` has one row or number for each row of the block."""
        marked = np.flatnonzero(rows)
        if len(marked) == 0:
            return
        if self.count == 0:
            self.at = block.first + int(marked[0])
        self.count += len(marked)
        for i in marked[: SHOWN - len(self.first)]:
            shown = np.atleast_1d(values[i])
            self.first.append(f"{block.place(int(i))}: {numbers(shown)}")

    def of(self, total: int) -> str:
        """Say how many of how many rows, and name the first."""
        all_of_them = f"all {total:,} rows" if total > 1 else "the only row"
        many = f"{self.count:,} of {total:,} rows" if self.count < total else all_of_them
        more = "; …" if self.count > len(self.first) else ""
        return f"{many} ({'; '.join(self.first)}{more})"


@dataclass
class LogitFacts:
    """What the logits are like, in the rows that count; nan and infinities in all rows."""

    low: float = inf
    high: float = -inf
    unit: bool = True  # whether all are in [0, 1]
    unit_error: float = 0.0  # the largest |Σ x - 1|
    rounded: bool = True  # whether all have two decimals at most
    percent: bool = True  # whether all are in [0, 100] and sum to 100
    log_error: float = 0.0  # the largest |lse|
    example: str = ""
    nan: Tally = field(default_factory=Tally)
    nan_counts: int = 0
    nan_columns: Bools | None = None
    infinite: Tally = field(default_factory=Tally)  # +inf
    masked: Tally = field(default_factory=Tally)  # -inf, but not everywhere
    nothing: Tally = field(default_factory=Tally)  # -inf everywhere

    def add(self, block: RowBlock) -> None:
        """Look at some rows."""
        x = block.x
        is_nan, low = np.isnan(x), np.isneginf(x)
        with_nan, closed = anywhere(is_nan), everywhere(low) & (x.shape[1] > 1)
        self.nan.add(block, with_nan, x)
        self.nan_counts += int((with_nan & block.counts).sum())
        if with_nan.any():
            columns = np.asarray(is_nan[with_nan].all(0))
            self.nan_columns = columns if self.nan_columns is None else self.nan_columns & columns
        self.infinite.add(block, anywhere(np.isposinf(x)), x)
        self.masked.add(block, anywhere(low) & ~closed & block.counts, x)
        self.nothing.add(block, closed & block.counts, x)
        rows = x[block.counts & ~with_nan]
        if len(rows) == 0:
            return
        if not self.example:
            self.example = f"{block.place(int(np.argmax(block.counts & ~with_nan)))}: {numbers(rows[0])}"
        finite = rows[np.isfinite(rows)]
        self.low, self.high = min(self.low, finite.min(initial=inf)), max(self.high, finite.max(initial=-inf))
        self.unit &= bool(rows.min() >= -1e-6 and rows.max() <= 1 + 1e-6)
        self.rounded &= bool(np.abs(rows * 100 - np.rint(rows * 100)).max() < 1e-4) if self.unit else False
        self.percent &= bool(
            rows.min() >= 0
            and rows.max() <= 100
            and np.abs(rows.sum(1) - 100).max() < 2 + rows.shape[1] / 2
            and rows.max() > 1
        )
        self.unit_error = max(self.unit_error, float(np.abs(rows.sum(1) - 1).max()))
        lse = reference.log_sum_exp(rows)
        self.log_error = max(self.log_error, float(np.nan_to_num(np.abs(lse), nan=inf).max()))


@dataclass
class TargetFacts:
    """What the target is like, and how many rows count."""

    counts: Array  # how often each class is the target, or the sum of its weights
    rows: int = 0
    ignored: int = 0
    low: float = inf
    high: float = -inf
    outside: Tally = field(default_factory=Tally)  # labels that are no class, or weights outside [0, 1]
    negative: Tally = field(default_factory=Tally)
    off_sum: Tally = field(default_factory=Tally)
    broken: Tally = field(default_factory=Tally)  # nan, inf, or an index that is not whole
    forbidden: Tally = field(default_factory=Tally)  # the target's class has a logit of -inf
    masked: Tally = field(default_factory=Tally)  # weight 0 meets a logit of -inf
    sums: tuple[float, float] = (inf, -inf)

    def add(self, block: RowBlock) -> None:
        """Look at some rows."""
        raw, ignored = block.raw, block.ignored
        if raw is None:
            return
        self.rows += len(raw)
        self.ignored += int((ignored if block.indices else ignored.all(1)).sum())
        kept = raw[~ignored]
        kept = kept[np.isfinite(kept)]
        self.low, self.high = min(self.low, kept.min(initial=inf)), max(self.high, kept.max(initial=-inf))
        if block.indices:
            self._add_indices(block, raw)
        else:
            self._add_weights(block, raw)

    def _add_indices(self, block: RowBlock, raw: Array) -> None:
        y, counts = block.y, block.counts
        broken = ~block.ignored & (~np.isfinite(raw) | (raw != np.rint(raw)))
        self.broken.add(block, broken, raw)
        self.outside.add(block, ~counts & ~block.ignored & ~broken, raw)
        np.add.at(self.counts, y[counts], 1)
        forbidden = np.isneginf(block.x[np.arange(len(y)), y]) & counts
        self.forbidden.add(block, forbidden & ~everywhere(np.isneginf(block.x)), raw)

    def _add_weights(self, block: RowBlock, raw: Array) -> None:
        t, low = block.t, np.isneginf(block.x) & ~np.isneginf(block.x).all(1, keepdims=True)
        self.counts += t.sum(0)
        total = t.sum(1)
        self.sums = (min(self.sums[0], total.min(initial=inf)), max(self.sums[1], total.max(initial=-inf)))
        self.broken.add(block, anywhere(~np.isfinite(raw) & ~block.ignored), raw)
        self.outside.add(block, anywhere((t < 0) | (t > 1)), raw)
        self.negative.add(block, anywhere(t < 0), raw)
        self.off_sum.add(block, np.abs(total - 1) > 0.01, raw)
        self.forbidden.add(block, anywhere(low & (t > 0)), raw)
        self.masked.add(block, anywhere(low & (t == 0)), block.x)


@dataclass
class MicroBatch:
    """A micro-batch: how many of its rows count, and what they cost."""

    counted: int = 0
    loss: RunningMean = field(default_factory=RunningMean)


@dataclass
class LossFacts:
    """What the logits predict, and what that costs. The loss is plain: no class weights, no smoothing."""

    p_sum: Array
    p_squares: Array
    p_rows: int = 0
    loss: RunningMean = field(default_factory=RunningMean)
    as_probabilities: RunningMean = field(default_factory=RunningMean)  # if the logits are the probabilities
    right: int = 0
    near: dict[int, RunningMean] = field(default_factory=lambda: {k: RunningMean() for k in OFFSETS})
    parts: list[MicroBatch] = field(default_factory=list)  # micro-batches

    def add(self, block: RowBlock, options: CheckOptions) -> None:
        """Look at some rows."""
        good = block.counts & np.isfinite(block.cost).any(1)
        p = np.exp(-block.cost[good])
        self.p_sum += p.sum(0)
        self.p_squares += (p**2).sum(0)
        self.p_rows += len(p)
        self.loss.add(block.loss)
        if block.indices:
            rows = np.flatnonzero(block.counts)
            y = block.y[rows]
            self.right += int((block.x[rows].argmax(1) == y).sum())
            self.as_probabilities.add(-np.log(block.x[rows, y]))
        for k, labels in block.near.items():
            there = np.flatnonzero(labels >= 0)
            self.near[k].add(block.cost[there, labels[there]])
        if options.micro_batch is not None:
            self._add_parts(block, options.micro_batch)

    def _add_parts(self, block: RowBlock, micro_batch: int) -> None:
        part = (block.first + np.arange(len(block.x))) // block.layout.row_size // micro_batch
        for k in np.unique(part):
            while len(self.parts) <= k:
                self.parts.append(MicroBatch())
            here = part == k
            self.parts[k].counted += int((block.counts & here).sum())
            self.parts[k].loss.add(block.loss[here])

    @cached_property
    def p(self) -> Array:
        """The mean probability of every class."""
        return self.p_sum / max(self.p_rows, 1)

    @cached_property
    def spread(self) -> float:
        """How much the probability of a class varies from row to row, relative to its mean, for the class where it varies most."""
        variance = np.maximum(self.p_squares / max(self.p_rows, 1) - self.p**2, 0.0)
        return float((np.sqrt(variance) / np.maximum(self.p, 1e-30)).max()) if self.p_rows else inf


@dataclass
class PaddingFacts:
    """Labels ``(B, T)`` at the end of rows that all are one and the same label: how many, and what they and the others cost."""

    label: int | None = None
    rows: int = 0  # that end with it at least twice
    of: int = 0
    elsewhere: int = 0  # how often it occurs before the end of a row
    ends: RunningMean = field(default_factory=RunningMean)
    text: RunningMean = field(default_factory=RunningMean)

    def mark(self, labels: Any) -> Bools:
        """Mark the labels at the end of rows that are all the same, with at least two of them."""
        y = np.asarray(labels)
        last = y[:, -1]
        if self.label is None:
            twice = last[y[:, -2] == last]
            values, counts = np.unique(twice[twice >= 0], return_counts=True)
            self.label = int(values[counts.argmax()]) if len(values) else None
        self.of += len(y)
        if self.label is None:
            return np.zeros(y.shape, bool)
        same = y == self.label
        run = np.flip(np.logical_and.accumulate(np.flip(same, 1), 1), 1)
        run &= run.sum(1, keepdims=True) > 1
        self.rows += int(run[:, -1].sum())
        self.elsewhere += int((same & ~run).sum())
        return np.asarray(run)

    def add(self, loss: Array, ends: Bools) -> None:
        """Look at what labels cost."""
        self.ends.add(loss[ends])
        self.text.add(loss[~ends])


@dataclass
class Facts:
    """What is known of a call: its options, and what a pass over the values tells."""

    options: CheckOptions
    layout: RowLayout
    dtype: str
    logits: LogitFacts
    target: TargetFacts
    loss: LossFacts
    matches: MatchFacts
    padding: PaddingFacts = field(default_factory=lambda: PaddingFacts())
    last_axis: RunningMean = field(
        default_factory=RunningMean
    )  # the loss if the classes of (N, C, C) are on the last axis
    ahead: dict[int, int] = field(default_factory=dict)  # how many labels are the input so many positions on
    pairs: int = 0

    @property
    def C(self) -> int:
        """The number of classes."""
        return self.layout.num_classes

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return prod(self.layout.rows)

    @property
    def counted(self) -> int:
        """How many rows count."""
        return self.rows - self.target.ignored

    @property
    def has_target(self) -> bool:
        """Whether the target can be used."""
        return self.layout.kind != ""
