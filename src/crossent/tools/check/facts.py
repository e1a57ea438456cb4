"""Everything that one pass over the values tells: the rules look at this, never at the values.

What is kept does not grow with the number of rows, but for a few numbers a micro-batch. Logits are read a block of rows at a
time. The cost of a class is that of ``crossent.reference``, without class weights and smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, nan, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent import reference
from crossent.reference import Array, Bools
from crossent.tools.check.options import Layout, Options, layout_of
from crossent.tools.files import Table

Ints = NDArray[np.int64]

ELEMENTS = 1 << 19  # of float64 in a piece: 4 MiB, of which there are a few copies
SHOWN = 3
OFFSETS = (-1, 0, 1)


def numbers(row: Sequence[float] | NDArray[Any], most: int = 4) -> str:
    """Write the first numbers of a row.

    >>> numbers([0.25, -1.0, 3.0, 1e5, 7.0])
    '0.25, -1, 3, 1e+05, …'
    """
    said = ", ".join(f"{value:.3g}" for value in row[:most])
    return said + (", …" if len(row) > most else "")


def anywhere(mask: Bools) -> Bools:
    """Mark the rows with something in them."""
    return np.asarray(mask.any(1))


def everywhere(mask: Bools) -> Bools:
    """Mark the rows with nothing else in them."""
    return np.asarray(mask.all(1))


@dataclass
class Piece:
    """Some rows, one after the other, with their target as class indices or as weights.

    Attributes:
        layout: of the whole.
        first: the number of the first row.
        x: the logits ``(R, C)``.
        raw: the target as it is stored, ``(R,)`` or ``(R, C)``; None if there is none.
        ignored: what of it counts for nothing.
        binary: whether every logit has a sigmoid.
        near: language models: the labels some positions on, -1 where there is none.
    """

    layout: Layout
    first: int
    x: Array
    raw: Array | None
    ignored: Bools
    binary: bool = False
    near: dict[int, Ints] = field(default_factory=dict)

    def place(self, i: int) -> str:
        """Name a row as the user counts: by its index, or by several."""
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


@dataclass
class Tally:
    """How many rows show something, and the first of them in words."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    at: int = -1

    def add(self, piece: Piece, rows: Bools, values: Any) -> None:
        """Count rows; ``values`` has one row or number for each row of the piece."""
        found = np.flatnonzero(rows)
        if len(found) == 0:
            return
        if self.count == 0:
            self.at = piece.first + int(found[0])
        self.count += len(found)
        for i in found[: SHOWN - len(self.first)]:
            shown = np.atleast_1d(values[i])
            self.first.append(f"{piece.place(int(i))}: {numbers(shown)}")

    def of(self, total: int) -> str:
        """Say it: how many of how many, and the first."""
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
    log_error: float = 0.0  # the largest |lse|
    example: str = ""
    nan: Tally = field(default_factory=Tally)
    nan_counts: int = 0
    nan_columns: Bools | None = None
    infinite: Tally = field(default_factory=Tally)  # +inf
    masked: Tally = field(default_factory=Tally)  # -inf, but not everywhere
    nothing: Tally = field(default_factory=Tally)  # -inf everywhere

    def add(self, piece: Piece) -> None:
        """Look at some rows."""
        x = piece.x
        is_nan, low = np.isnan(x), np.isneginf(x)
        with_nan, closed = anywhere(is_nan), everywhere(low) & (x.shape[1] > 1)
        self.nan.add(piece, with_nan, x)
        self.nan_counts += int((with_nan & piece.counts).sum())
        if with_nan.any():
            columns = np.asarray(is_nan[with_nan].all(0))
            self.nan_columns = columns if self.nan_columns is None else self.nan_columns & columns
        self.infinite.add(piece, anywhere(np.isposinf(x)), x)
        self.masked.add(piece, anywhere(low) & ~closed & piece.counts, x)
        self.nothing.add(piece, closed & piece.counts, x)
        rows = x[piece.counts & ~with_nan]
        if len(rows) == 0:
            return
        if not self.example:
            self.example = f"{piece.place(int(np.argmax(piece.counts & ~with_nan)))}: {numbers(rows[0])}"
        finite = rows[np.isfinite(rows)]
        self.low, self.high = min(self.low, finite.min(initial=inf)), max(self.high, finite.max(initial=-inf))
        self.unit &= bool(rows.min() >= -1e-6 and rows.max() <= 1 + 1e-6)
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

    def add(self, piece: Piece) -> None:
        """Look at some rows."""
        raw, ignored = piece.raw, piece.ignored
        if raw is None:
            return
        self.rows += len(raw)
        self.ignored += int((ignored if piece.indices else ignored.all(1)).sum())
        kept = raw[~ignored]
        kept = kept[np.isfinite(kept)]
        self.low, self.high = min(self.low, kept.min(initial=inf)), max(self.high, kept.max(initial=-inf))
        if piece.indices:
            self._add_indices(piece, raw)
        else:
            self._add_weights(piece, raw)

    def _add_indices(self, piece: Piece, raw: Array) -> None:
        y, counts = piece.y, piece.counts
        broken = ~piece.ignored & (~np.isfinite(raw) | (raw != np.rint(raw)))
        self.broken.add(piece, broken, raw)
        self.outside.add(piece, ~counts & ~piece.ignored & ~broken, raw)
        np.add.at(self.counts, y[counts], 1)
        forbidden = np.isneginf(piece.x[np.arange(len(y)), y]) & counts
        self.forbidden.add(piece, forbidden & ~everywhere(np.isneginf(piece.x)), raw)

    def _add_weights(self, piece: Piece, raw: Array) -> None:
        t, low = piece.t, np.isneginf(piece.x) & ~np.isneginf(piece.x).all(1, keepdims=True)
        self.counts += t.sum(0)
        total = t.sum(1)
        self.sums = (min(self.sums[0], total.min(initial=inf)), max(self.sums[1], total.max(initial=-inf)))
        self.broken.add(piece, anywhere(~np.isfinite(raw) & ~piece.ignored), raw)
        self.outside.add(piece, anywhere((t < 0) | (t > 1)), raw)
        self.negative.add(piece, anywhere(t < 0), raw)
        self.off_sum.add(piece, np.abs(total - 1) > 0.01, raw)
        self.forbidden.add(piece, anywhere(low & (t > 0)), raw)
        self.masked.add(piece, anywhere(low & (t == 0)), piece.x)


@dataclass
class Mean:
    """A mean that can be added to, with its standard error."""

    total: float = 0.0
    squares: float = 0.0
    n: int = 0

    def add(self, values: Array) -> None:
        """Add values; those that are not finite are left out."""
        values = values[np.isfinite(values)]
        self.total, self.squares, self.n = (
            self.total + float(values.sum()),
            self.squares + float((values**2).sum()),
            self.n + values.size,
        )

    @property
    def value(self) -> float:
        """The mean, nan of nothing."""
        return self.total / self.n if self.n else nan

    @property
    def variance(self) -> float:
        """The square of its standard error."""
        return max(self.squares / self.n - self.value**2, 0.0) / self.n if self.n else inf

    def above(self, other: Mean) -> float:
        """How many standard errors it lies above another."""
        return (self.value - other.value) / max(sqrt(self.variance + other.variance), 1e-12)


@dataclass
class Part:
    """A micro-batch: how many of its rows count, and what they cost."""

    counted: int = 0
    loss: Mean = field(default_factory=Mean)


@dataclass
class LossFacts:
    """What the logits predict, and what that costs. The loss is plain: no class weights, no smoothing."""

    p_sum: Array
    p_squares: Array
    p_rows: int = 0
    loss: Mean = field(default_factory=Mean)
    as_probabilities: Mean = field(default_factory=Mean)  # if the logits are the probabilities
    right: int = 0
    near: dict[int, Mean] = field(default_factory=lambda: {k: Mean() for k in OFFSETS})
    parts: list[Part] = field(default_factory=list)  # micro-batches

    def add(self, piece: Piece, options: Options) -> None:
        """Look at some rows."""
        good = piece.counts & np.isfinite(piece.cost).any(1)
        p = np.exp(-piece.cost[good])
        self.p_sum += p.sum(0)
        self.p_squares += (p**2).sum(0)
        self.p_rows += len(p)
        self.loss.add(piece.loss)
        if piece.indices:
            rows = np.flatnonzero(piece.counts)
            y = piece.y[rows]
            self.right += int((piece.x[rows].argmax(1) == y).sum())
            self.as_probabilities.add(-np.log(piece.x[rows, y]))
        for k, labels in piece.near.items():
            there = np.flatnonzero(labels >= 0)
            self.near[k].add(piece.cost[there, labels[there]])
        if options.micro_batch is not None:
            self._add_parts(piece, options.micro_batch)

    def _add_parts(self, piece: Piece, micro_batch: int) -> None:
        part = (piece.first + np.arange(len(piece.x))) // piece.layout.row_size // micro_batch
        for k in np.unique(part):
            while len(self.parts) <= k:
                self.parts.append(Part())
            here = part == k
            self.parts[k].counted += int((piece.counts & here).sum())
            self.parts[k].loss.add(piece.loss[here])

    @cached_property
    def p(self) -> Array:
        """The mean probability of every class."""
        return self.p_sum / max(self.p_rows, 1)

    @cached_property
    def spread(self) -> float:
        """How much a class's probability varies from row to row, relative to its mean: of the class where it does most."""
        variance = np.maximum(self.p_squares / max(self.p_rows, 1) - self.p**2, 0.0)
        return float((np.sqrt(variance) / np.maximum(self.p, 1e-30)).max()) if self.p_rows else inf


@dataclass
class Facts:
    """What is known of a call: how it is meant, and what a pass over the values tells."""

    options: Options
    layout: Layout
    dtype: str
    logits: LogitFacts
    target: TargetFacts
    loss: LossFacts
    last_axis: Mean = field(default_factory=Mean)  # the loss if the classes of (N, C, C) are on the last axis
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


def survey(
    logits: Table, target: Table | None, options: Options, watch: Callable[[str, int, int], None] | None = None
) -> Facts:
    """Read everything once; ``watch`` is told how far."""
    layout = layout_of(logits, target, options)
    facts = Facts(
        options,
        layout,
        logits.dtype,
        LogitFacts(),
        TargetFacts(np.zeros(layout.num_classes)),
        LossFacts(np.zeros(layout.num_classes), np.zeros(layout.num_classes)),
    )
    for x, raw, start in blocks(logits, target, layout):
        if watch is not None:
            watch("reading", start, len(logits))
        if layout.square:
            _add_last_axis(facts, x, raw)
        # whatever the values are, inf - inf is an answer here
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for piece in _pieces(facts, x, raw, start):
                facts.logits.add(piece)
                facts.target.add(piece)
                facts.loss.add(piece, options)
    return facts


def blocks(
    logits: Table, target: Table | None, layout: Layout
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None, int]]:
    """Read blocks along the leading axis, the classes moved to the end; whole, if those are the leading axis."""
    used = target if layout.kind else None
    rest = prod(layout.shape[1:])
    whole = layout.axis == 0 or (used is not None and used.shape[:1] != layout.shape[:1])
    step = len(logits) if whole else max(1, ELEMENTS // max(rest, 1))
    for start in range(0, len(logits), step):
        x, raw = logits.rows(start, start + step), None
        x = x[..., None] if layout.axis is None else np.moveaxis(x, layout.axis, -1)
        if used is not None:
            raw = used.rows(0, len(used)) if whole else used.rows(start, start + step)
            if layout.kind == "weights":
                raw = raw.reshape(x.shape if layout.axis is None else (-1, *layout.shape[1:]))
                raw = raw if layout.axis is None else np.moveaxis(raw, layout.axis, -1)
            else:
                raw = raw.reshape(x.shape[:-1])
        yield x, raw, start


def _pieces(facts: Facts, x: NDArray[Any], raw: NDArray[Any] | None, start: int) -> Iterator[Piece]:
    """Cut a block into rows, and those into pieces that a few copies of fit anywhere."""
    options = facts.options
    near: dict[int, Ints] = {}
    if options.task == "lm" and raw is not None and raw.ndim == x.ndim - 1 == 2:
        x, raw, near = _shifted(facts, x, raw, start)
    x, size = x.reshape(-1, facts.C), x.shape[-1]
    raw = None if raw is None else raw.reshape(len(x), *(() if facts.layout.kind == "indices" else (size,)))
    step = max(1, ELEMENTS // size)
    for at in range(0, len(x), step):
        cut = slice(at, at + step)
        part = x[cut].astype(np.float64)
        labels = None if raw is None else raw[cut].astype(np.float64)
        ignored = np.zeros((len(part), size), bool)
        if labels is not None:
            ignored = np.zeros(labels.shape, bool) if options.ignored is None else labels == options.ignored
            if facts.layout.kind == "weights" and not options.binary:
                ignored[:] = False  # probabilities have no index to ignore
        nearby = {k: labels[cut] for k, labels in near.items()}
        yield Piece(facts.layout, start * facts.layout.row_size + at, part, labels, ignored, options.binary, nearby)


def _shifted(
    facts: Facts, x: NDArray[Any], y: NDArray[Any], start: int
) -> tuple[NDArray[Any], NDArray[Any], dict[int, Ints]]:
    """Pair the logits of a language model with its labels, and with those a position before and behind."""
    options, base = facts.options, int(facts.options.shift)
    length = y.shape[1] - base
    usable = np.where((y != options.ignored) & (y >= 0) & (y < facts.C), y, -1).astype(np.int64)
    near = {k: np.full((len(y), length), -1, np.int64) for k in OFFSETS}
    for k, labels in near.items():
        there = range(max(0, -base - k), min(length, y.shape[1] - base - k))
        labels[:, there.start : there.stop] = usable[:, there.start + base + k : there.stop + base + k]
    if options.inputs is not None:
        _add_inputs(facts, near[0], options.inputs[start : start + len(y)])
    return x[:, :length], y[:, base:], {k: labels.reshape(-1) for k, labels in near.items()}


def _add_inputs(facts: Facts, labels: Ints, inputs: NDArray[Any]) -> None:
    """Count how often the label of a position is the input there, or one or two positions on."""
    known = labels[:, : inputs.shape[1] - 2]
    facts.pairs += int((known >= 0).sum())
    for ahead in (0, 1, 2):
        same = (known == inputs[:, ahead : ahead + known.shape[1]]) & (known >= 0)
        facts.ahead[ahead] = facts.ahead.get(ahead, 0) + int(same.sum())


def _add_last_axis(facts: Facts, x: NDArray[Any], raw: NDArray[Any] | None) -> None:
    """Compute the loss of logits ``(N, C, C)`` if the classes are on the last axis."""
    if raw is not None:
        rows = np.moveaxis(x.astype(np.float64), -1, 1).reshape(-1, facts.C)  # as they were given
        y = raw.reshape(-1)
        there = np.flatnonzero((y != facts.options.ignored) & (y >= 0) & (y < facts.C))
        facts.last_axis.add(reference.surprisal(rows[there])[np.arange(len(there)), y[there].astype(np.int64)])
