"""Reads logits and target once, a block of rows at a time, and lets the facts look at every block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent import reference
from crossent.tools.check.facts import OFFSETS, Facts, LogitFacts, LossFacts, TargetFacts
from crossent.tools.check.layout import RowLayout, row_layout
from crossent.tools.check.matches import LABELS, SMALL, MatchFacts, other_orders
from crossent.tools.check.options import CheckOptions
from crossent.tools.check.row_block import Ints, RowBlock
from crossent.tools.files import RowArray
from crossent.tools.inputs import IN_PERCENT, log_of_no, log_probabilities, no_probabilities, percentages
from crossent.tools.shared_options import OptionError

SURE = 745.0  # stands for the logit of a probability of 1, which is infinite
ELEMENTS = 1 << 19  # of float64 in a block: 4 MiB, of which there are a few copies


def survey(
    logits: RowArray,
    target: RowArray | None,
    options: CheckOptions,
    watch: Callable[[str, int, int], None] | None = None,
) -> Facts:
    """Read everything once; ``watch`` is called with how much has been read."""
    layout = row_layout(logits, target, options)
    facts = Facts(
        options,
        layout,
        logits.dtype,
        LogitFacts(),
        TargetFacts(np.zeros(layout.num_classes)),
        LossFacts(np.zeros(layout.num_classes), np.zeros(layout.num_classes)),
        MatchFacts(layout.num_classes),
    )
    elsewhere = _other_orders(target, facts)
    for x, raw, start in blocks(logits, target, layout):
        if watch is not None:
            watch("reading", start, len(logits))
        if layout.square:
            _add_last_axis(facts, x, raw)
        # the values may be anything: nan, as of inf - inf, is an answer here
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            others = {name: labels[start : start + len(x)] for name, labels in elsewhere.items()}
            for block in _pieces(facts, x, raw, start, others):
                facts.logits.add(block)
                facts.target.add(block)
                facts.loss.add(block, options)
                facts.matches.add(block, block.others)
                if block.ends is not None:
                    facts.padding.add(block.loss, block.ends)
    return facts


def blocks(
    logits: RowArray, target: RowArray | None, layout: RowLayout
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


def _other_orders(target: RowArray | None, facts: Facts) -> dict[str, NDArray[Any]]:
    """Bring all labels into other orders, if they are few enough to be kept."""
    layout = facts.layout
    few = target is not None and layout.kind == "indices" and prod(target.shape) <= LABELS and facts.C <= SMALL
    if (
        target is None
        or not few
        or layout.axis in (0, None)
        or target.shape[:1] != layout.shape[:1]
        or prod(target.shape) < 20
    ):
        return {}
    return other_orders(target.rows(0, len(target)))


def _pieces(
    facts: Facts, x: NDArray[Any], raw: NDArray[Any] | None, start: int, others: dict[str, NDArray[Any]]
) -> Iterator[RowBlock]:
    """Cut a block into rows, and the rows into blocks so small that a few copies of one fit into any memory."""
    options = facts.options
    near: dict[int, Ints] = {}
    ends: NDArray[Any] | None = None
    if facts.layout.kind == "indices" and raw is not None and raw.ndim == x.ndim - 1 == 2 and raw.shape[1] > 3:
        ends = facts.padding.mark(np.where(raw == options.ignored, -1, raw))
        ends = (ends[:, 1:] if options.shift else ends).reshape(-1)
    if options.shift:
        others = {}
    if options.task == "lm" and raw is not None and raw.ndim == x.ndim - 1 == 2:
        x, raw, near = _shifted(facts, x, raw, start)
    x, size = x.reshape(-1, facts.C), x.shape[-1]
    raw = None if raw is None else raw.reshape(len(x), *(() if facts.layout.kind == "indices" else (size,)))
    step = max(1, ELEMENTS // size)
    for at in range(0, len(x), step):
        cut = slice(at, at + step)
        part = _logits(facts, x[cut].astype(np.float64))
        labels = None if raw is None else raw[cut].astype(np.float64)
        ignored = np.zeros((len(part), size), bool)
        if labels is not None:
            ignored = np.zeros(labels.shape, bool) if options.ignored is None else labels == options.ignored
            if options.stored and facts.layout.kind == "indices":
                ignored |= np.isnan(labels)  # a label that is missing
            if facts.layout.kind == "weights" and not options.binary:
                ignored[:] = False  # probabilities have no index to ignore
        elsewhere = {name: _usable(facts, values.reshape(-1)[cut]) for name, values in others.items()}
        nearby = {k: labels[cut] for k, labels in near.items()}
        yield RowBlock(
            facts.layout,
            start * facts.layout.row_size + at,
            part,
            labels,
            ignored,
            options.binary,
            nearby,
            elsewhere,
            None if ends is None else ends[cut],
        )


def _usable(facts: Facts, labels: NDArray[Any]) -> Ints:
    """Read labels as classes, -1 where they name none."""
    y = np.asarray(labels, np.float64)
    wrong = ~((y >= 0) & (y < facts.C) & (y == np.rint(y))) | (y == facts.options.ignored)
    return np.where(wrong, -1, np.where(wrong, 0, y)).astype(np.int64)


def _logits(facts: Facts, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn what was given into logits."""
    given = facts.options.input
    if given == "logits":
        return values
    if given == "probs" and (outside := no_probabilities(values)).any():
        row = values[outside.argmax()]
        if percentages(row):
            raise OptionError("input", f"is probs, and {IN_PERCENT}")
        raise OptionError("input", f"is probs, but the values of a row go from {row.min():.4g} to {row.max():.4g}")
    x = log_probabilities(values, given)
    if not facts.options.binary:
        return x
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(x - log_of_no(x), nan=np.nan, posinf=SURE, neginf=-SURE)


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
    labels = labels[:, : inputs.shape[1] - 2]
    facts.pairs += int((labels >= 0).sum())
    for ahead in (0, 1, 2):
        same = (labels == inputs[:, ahead : ahead + labels.shape[1]]) & (labels >= 0)
        facts.ahead[ahead] = facts.ahead.get(ahead, 0) + int(same.sum())


def _add_last_axis(facts: Facts, x: NDArray[Any], raw: NDArray[Any] | None) -> None:
    """Compute the loss of logits ``(N, C, C)`` if the classes are on the last axis."""
    if raw is not None:
        rows = np.moveaxis(x.astype(np.float64), -1, 1).reshape(-1, facts.C)  # as they were given
        y = raw.reshape(-1)
        there = np.flatnonzero((y != facts.options.ignored) & (y >= 0) & (y < facts.C))
        facts.last_axis.add(reference.surprisal(rows[there])[np.arange(len(there)), y[there].astype(np.int64)])
