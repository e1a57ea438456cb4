"""The three walks over the classes of a program's rows, of which every kernel here is made.

- ``row_sums`` gives ``top`` and ``log_sum``, whose sum is the lse of x'.
- ``dense_sums`` gives ``Σ w f(p)`` and ``Σ w s(p)``, where every class has a weight: of probabilities, or of smoothing.
- ``write_gradient`` writes ``mass · p - w ∘ s(p)`` and, where it is wanted, the gradient for probabilities.

Rows that are not ``live`` are not read, or what is read of them is not used. Numbers of rows are vectors of ``ROWS``, those of a
block ``(ROWS, LANES, E)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.impl.triton.family import chain, penalise, transform
from crossent.impl.triton.numbers import LOG_HALF, exp_, exp_minus, expm1_, log1p_, plain_nan, times, weigh
from crossent.impl.triton.tile import (
    are_classes,
    chunks,
    classes_of,
    edge_block,
    edge_blocks,
    inner_blocks,
    load,
    store,
)


class Labels(NamedTuple):
    """The class indices of rows: which class, c of it, whether the row counts, and whether there is such a class."""

    y: Any
    weight: Any
    counts: Any
    wrong: Any


class Target(NamedTuple):
    """Class indices of the rows, or probabilities laid out as ``g`` is.

    ``valid`` is 0 for rows that do not count, or None. ``samples`` is what each row weighs in a sum and its gradient, or None.
    """

    data: Any
    INDICES: Any
    valid: Any
    samples: Any


class Mass(NamedTuple):
    """Σ w s(p) in parts, and the largest size of a w.

    ``own`` is that of the label, ``spread`` that of the weights that all classes have, ``others`` the same on other classes than
    the label, and ``rest`` all of it without the class that has more than half of p.
    """

    own: Any
    spread: Any
    others: Any
    rest: Any
    largest: Any


@triton.jit
def labels_of(target, rows, member, layout, tile):
    """Read the class indices of the rows, or what takes their place where the target is probabilities."""
    there = rows.inside
    if target.valid is not None:
        there = there & (tl.load(target.valid + rows.number, mask=rows.inside, other=0) != 0)
    if target.INDICES:
        y = tl.load(target.data + rows.number, mask=rows.inside, other=0)
        named = there & (y != member.ignore_index)
        wrong = named & ((y < 0) | (y >= layout.classes))
        if member.SHARD:
            wrong = wrong & (y != -1)
        counts = named & (wrong == 0)
        y = tl.where(counts, y, 0)
        here = counts
        if member.SHARD:
            here = counts & (y >= 0)
        weight = tl.where(here, 1.0, 0.0).to(tile.R)
        if member.weight is not None:
            weight = tl.load(member.weight + y, mask=here, other=0.0).to(tile.R)
    else:
        y, wrong, counts = rows.number * 0 - 1, rows.inside & (rows.number < 0), there
        weight = tl.where(counts, 1.0, 0.0).to(tile.R)
    return Labels(y, weight, counts, wrong)


@triton.jit
def transformed(x, chunk, rows, labels, member, layout, tile):
    """Compute x' of logits x, -inf for what is no class."""
    if member.MOVED:
        cls = classes_of(chunk, rows, tile)
        valid = are_classes(chunk, rows, layout, tile)
        x = tl.where(valid, transform(x, cls, valid, member, tile.EXACT), -float("inf"))
        if member.SCALED:
            x = tl.where(cls == labels.y[:, None, None], x - member.margin, x)
    return x


# --- the first walk ---------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """The largest logit of each lane, Σ e^(x - high) of those that differ from it or of all, and how many do not differ."""

    high: Any
    below: Any
    ties: Any


@triton.jit
def _add_block(sums, logits, k, EDGE: tl.constexpr, rows, live, labels, member, layout, tile):
    """Add the block of classes that begins at k to what the lanes have seen."""
    chunk = chunks(k, tile)
    stay: tl.constexpr = "evict_last" if tile.KEEP else ""
    absent: tl.constexpr = -float("inf") if EDGE else tile.UNREAD
    x = load(logits, rows.at_x, layout.x_class, chunk, EDGE, rows, live, absent, layout, tile, stay)
    x = transformed(x, chunk, rows, labels, member, layout, tile)
    higher = tl.maximum(sums.high, tl.max(x, 2))
    level = tl.where(higher == -float("inf"), 0.0, higher)
    shrink, d = exp_(sums.high - level, tile.EXACT), x - level[:, :, None]
    if tile.TIES:
        raised = higher > sums.high
        below = tl.where(raised, sums.below + sums.ties, sums.below) * shrink
        below += tl.sum(tl.where(d == 0.0, 0.0, exp_(d, tile.EXACT)), 2)
        ties = tl.where(raised, 0.0, sums.ties) + tl.sum(tl.where(d == 0.0, 1.0, 0.0), 2)
    else:
        below, ties = sums.below * shrink + tl.sum(exp_(d, tile.EXACT), 2), sums.ties
    return Sums(higher, below, ties)


@triton.jit
def row_sums(logits, rows, live, labels, member, layout, tile):
    """Compute ``top`` and ``log_sum = log1p(Σ e^(x - top))`` over all classes but one at the top.

    Each lane carries its own largest logit and a sum, so that nothing is exchanged in the loop. The sum of the lane that has the
    top contains a 1, in which the rest of a confident row would drown. With TIES what equals the largest is counted beside the
    sum. Without it that lane's elements, a row's classes over LANES, are read again.
    """
    high = tl.full([tile.ROWS, tile.LANES], -float("inf"), tile.R)
    below, ties = tl.zeros([tile.ROWS, tile.LANES], tile.R), tl.zeros([tile.ROWS, tile.LANES], tile.R)
    sums = Sums(high, below, ties)
    first, last = inner_blocks(layout, tile)
    for k in range(first, last, tile.LANES * tile.E):
        sums = _add_block(sums, logits, k, False, rows, live, labels, member, layout, tile)
    for i in range(0, edge_blocks(layout, tile)):
        k = edge_block(i, layout, tile)
        sums = _add_block(sums, logits, k, True, rows, live, labels, member, layout, tile)
    high, below, ties = sums.high, sums.below, sums.ties
    top, lane = tl.max(high, 1), tl.argmax(high, 1)
    level = tl.where(top == -float("inf"), 0.0, top)
    seen = (below + ties) * exp_(high - level[:, None], tile.EXACT)
    has_top = tl.arange(0, tile.LANES)[None, :] == lane[:, None]
    if tile.TIES:
        others = tl.sum(tl.where(has_top, below + (ties - 1.0), seen), 1)
    else:
        others = tl.sum(tl.where(has_top, 0.0, seen), 1)
        others += _without_top(logits, lane, level, rows, live, labels, member, layout, tile)
    return top, log1p_(others) + (top - top)


@triton.jit
def _without_top(logits, lane, level, rows, live, labels, member, layout, tile):
    """Compute Σ e^(x - level) over one lane of each row, without one of those that equal level."""
    below, ties = tl.zeros([tile.ROWS, tile.LANES], tile.R), tl.zeros([tile.ROWS, tile.LANES], tile.R)
    step: tl.constexpr = tile.LANES * tile.E
    for k in range(0, layout.classes + tile.SLACK, step * tile.LANES):
        chunk = k + (tl.arange(0, tile.LANES) * step)[None, :, None] + (lane * tile.E)[:, None, None]
        x = load(logits, rows.at_x, layout.x_class, chunk, True, rows, live, -float("inf"), layout, tile)
        d = transformed(x, chunk, rows, labels, member, layout, tile) - level[:, None, None]
        below += tl.sum(tl.where(d == 0.0, 0.0, exp_(d, tile.EXACT)), 2)
        ties += tl.sum(tl.where(d == 0.0, 1.0, 0.0), 2)
    return tl.sum(below, 1) + (tl.sum(ties, 1) - 1.0)


# --- the second walk --------------------------------------------------------------------------------------------------


@triton.jit
def weights_of(target, chunk, EDGE: tl.constexpr, rows, live, member, layout, tile):
    """Compute w of a block: what smoothing spreads, and of probabilities ``(1 - ε) c t``."""
    cls = classes_of(chunk, rows, tile)
    valid = are_classes(chunk, rows, layout, tile)
    w = tl.zeros([tile.ROWS, tile.LANES, tile.E], tile.R)
    if not target.INDICES:
        w = load(target.data, rows.at_g, layout.g_class, chunk, EDGE, rows, live, 0.0, layout, tile) * member.keep
        if member.weight is not None:
            w = weigh(tl.load(member.weight + cls, mask=valid, other=0.0).to(tile.R), w)
    if member.spread is not None:
        w += tl.load(member.spread + cls, mask=valid, other=0.0).to(tile.R)
    elif member.SMOOTHED:
        w += tl.where(valid, 1.0, 0.0).to(tile.R) * member.share
    return w


@triton.jit
def dense_sums(logits, target, top, log_sum, rows, live, labels, member, layout, tile):
    """Compute Σ w f(p), Σ w s(p), this without the class that has more than half of p, and the largest size of a w."""
    cost, mass = tl.zeros([tile.ROWS, tile.LANES], tile.R), tl.zeros([tile.ROWS, tile.LANES], tile.R)
    rest, largest = tl.zeros([tile.ROWS, tile.LANES], tile.R), tl.zeros([tile.ROWS, tile.LANES], tile.R)
    for k in range(0, layout.classes + tile.SLACK, tile.LANES * tile.E):
        chunk = chunks(k, tile)
        x = load(logits, rows.at_x, layout.x_class, chunk, True, rows, live, -float("inf"), layout, tile)
        x = transformed(x, chunk, rows, labels, member, layout, tile)
        w = weights_of(target, chunk, True, rows, live, member, layout, tile)
        u = (x - top[:, None, None]) - log_sum[:, None, None]
        f, s = penalise(u, member)
        pull = times(w, s)
        cost += tl.sum(times(w, f), 2)
        mass += tl.sum(pull, 2)
        rest += tl.sum(tl.where(u > LOG_HALF, 0.0, pull), 2)
        largest = tl.maximum(largest, tl.max(tl.abs(w), 2))
    return tl.sum(cost, 1), tl.sum(mass, 1), tl.sum(rest, 1), tl.max(largest, 1)


@triton.jit
def log_p_of_label(logits, top, log_sum, rows, live, labels, member, layout, tile):
    """Compute log p of the class index of each row."""
    y, here = labels.y, live
    if member.SHARD:
        here = live & (y >= 0)
    if tile.CHUNKS:
        x = tl.load(logits + (rows.at_x + rows.phase + y), mask=here, other=0.0).to(tile.R)
    else:
        x = tl.load(logits + (rows.at_x + y * layout.x_class), mask=here, other=0.0).to(tile.R)
    if member.MOVED:
        x = transform(x, y, here, member, tile.EXACT)
        if member.SCALED:
            x -= member.margin
    return (x - top) - log_sum


@triton.jit
def losses_of(logits, target, top, log_sum, rows, live, labels, member, layout, tile):
    """Compute Σ w f(p) + z-loss of each row, log p of its label, and the masses of its gradient."""
    cost = tl.zeros([tile.ROWS], tile.R)
    own, spread, others, rest, largest = cost, cost, cost, cost, cost
    u = cost
    if member.SMOOTHED or not target.INDICES:
        cost, spread, rest, largest = dense_sums(logits, target, top, log_sum, rows, live, labels, member, layout, tile)
    if target.INDICES:
        u = log_p_of_label(logits, top, log_sum, rows, live, labels, member, layout, tile)
        f, s = penalise(u, member)
        weight = labels.weight * member.keep
        cost += times(weight, f)
        own = times(weight, s)
        largest = tl.maximum(largest, weight)
        if member.SMOOTHED:
            even = share_of_label(labels, live, member, tile)
            others = tl.where(u > LOG_HALF, rest, spread - times(even, s))
            rest += own
    if member.Z:
        lse = top + log_sum
        cost += times(labels.weight, lse * lse * member.z_loss)
    return cost, u, Mass(own, spread, others, rest, largest)


@triton.jit
def with_elsewhere(mass, elsewhere, rows, live, tile):
    """Add what the rows have on other shards of the classes, which is mass on other classes than their own here."""
    away = tl.load(elsewhere + rows.number, mask=live, other=0.0).to(tile.R)
    largest = tl.maximum(mass.largest, tl.abs(away))
    return Mass(mass.own, mass.spread + away, mass.others + away, mass.rest + away, largest)


@triton.jit
def share_of_label(labels, live, member, tile):
    """Tell what smoothing spreads to the class index of each row."""
    if member.spread is not None:
        here = live
        if member.SHARD:
            here = live & (labels.y >= 0)
        return tl.load(member.spread + labels.y, mask=here, other=0.0).to(tile.R)
    return labels.weight * 0.0 + member.share


# --- the third walk ---------------------------------------------------------------------------------------------------


class Slopes(NamedTuple):
    """What the gradients of a row's classes have in common.

    ``g`` is the gradient of the loss, ``scale`` is ``g (mass + 2λ lse)``, ``at_label`` the gradient of the class index, and
    ``at_top`` that of the one class that is ``likely``, with more than half of p: ``g ((mass + 2λ lse) (p - 1) + rest + 2λ lse)``.
    """

    g: Any
    scale: Any
    at_label: Any
    at_top: Any
    likely: Any
    live: Any


@triton.jit
def seen_rows(g, mass, top, log_sum, labels, member):
    """Tell which rows are to be read for the gradient: those that count, but for those that weigh nothing and have no softmax."""
    lse = top + log_sum
    finite = (lse - lse) == 0.0
    heavy = g != 0.0
    if not member.SMOOTHED:
        heavy = heavy & (mass.largest != 0.0)
    return labels.counts & (finite | heavy)


@triton.jit
def slopes_of(g, u, mass, top, log_sum, labels, member, tile):
    """Compute what the gradients of a row have in common from that of its loss."""
    live = seen_rows(g, mass, top, log_sum, labels, member)
    by, extra = tl.where(live, g, 0.0), tl.zeros_like(top)
    if member.Z:
        extra = times(labels.weight, (top + log_sum) * 2.0 * member.z_loss)
    total = mass.own + mass.spread
    weightless = (total == 0.0) & (mass.others == 0.0) & (extra == 0.0)  # then there is no slope, whatever g is
    at_label = times(by, times(total, expm1_(u)) + mass.others + times(extra, exp_(u, True)))
    at_label = tl.where(weightless, 0.0, at_label)
    scale = weigh(by, total + extra)
    at_top = times(scale, expm1_(-log_sum)) + weigh(by, mass.rest + extra)
    scale, at_label = plain_nan(scale, tile.BITS), plain_nan(at_label, tile.BITS)
    return Slopes(g, scale, at_label, at_top, -log_sum > LOG_HALF, live)


@triton.jit
def write_gradient(
    logits, target, to, to_target, top, log_sum, slopes, rows, labels, member, layout, tile,
):  # fmt: skip
    """Write ``g (mass · p - w ∘ s(p))``, brought back to the logits, and the gradient for probabilities."""
    top = plain_nan(tl.where(slopes.live, top, 0.0), tile.BITS)
    log_sum = plain_nan(tl.where(slopes.live, log_sum, 0.0), tile.BITS)
    tl.debug_barrier()  # or one warp would write over the label's logit before another has read it, in place
    first, last = inner_blocks(layout, tile)
    for k in range(first, last, tile.LANES * tile.E):
        _write_block(k, False, logits, target, to, to_target, top, log_sum, slopes, rows, labels, member, layout, tile)
    for i in range(0, edge_blocks(layout, tile)):
        k = edge_block(i, layout, tile)
        _write_block(k, True, logits, target, to, to_target, top, log_sum, slopes, rows, labels, member, layout, tile)


@triton.jit
def _write_block(
    k, EDGE: tl.constexpr, logits, target, to, to_target, top, log_sum, slopes, rows, labels, member, layout, tile,
):  # fmt: skip
    """Write the gradients of the block of classes that begins at k."""
    chunk, live = chunks(k, tile), slopes.live
    stay: tl.constexpr = "evict_first" if tile.KEEP else ""
    absent: tl.constexpr = -float("inf") if EDGE else tile.UNREAD
    x = load(logits, rows.at_x, layout.x_class, chunk, EDGE, rows, live, absent, layout, tile, stay)
    moved = transformed(x, chunk, rows, labels, member, layout, tile)
    cls = classes_of(chunk, rows, tile)
    below = moved - top[:, None, None]
    slope = slopes.scale[:, None, None] * exp_minus(below, log_sum[:, None, None], tile.EXACT)
    if member.SMOOTHED or not target.INDICES:
        u = below - log_sum[:, None, None]
        w = weights_of(target, chunk, EDGE, rows, live, member, layout, tile)
        f, s = penalise(u, member)
        slope -= weigh(tl.where(live, slopes.g, 0.0)[:, None, None], times(w, s))
        slope = tl.where(slopes.likely[:, None, None] & (below == 0.0), slopes.at_top[:, None, None], slope)
        if to_target is not None:
            gain = _gains(f, cls, are_classes(chunk, rows, layout, tile), slopes, member, tile)
            store(to_target, rows.at_g, layout.g_class, chunk, EDGE, gain, rows, layout, tile)
    if target.INDICES:
        # Compared in one chunk: e == y - chunk. A long row has its label in one block, which alone looks for it.
        at = (labels.y.to(tl.int32) + rows.phase)[:, None, None] - chunk
        hit = tl.arange(0, tile.E)[None, None, :] == at
        if tile.ROWS == 1 and tile.LANES > 1:
            if tl.sum(labels.y + rows.phase, 0) // (tile.LANES * tile.E) == k // (tile.LANES * tile.E):
                slope = tl.where(hit, slopes.at_label[:, None, None], slope)
        else:
            slope = tl.where(hit, slopes.at_label[:, None, None], slope)
    if member.MOVED:
        slope = chain(slope, x, cls, are_classes(chunk, rows, layout, tile), member, tile.EXACT)
    if tile.APART:
        slope = tl.where(live[:, None, None], slope, 0.0)
    if to is not None:
        # A nan of other numbers in float32, which each class has its own of, may have any bits.
        bits: tl.constexpr = tile.BITS and target.INDICES and not member.SMOOTHED and member.bias is None
        store(to, rows.at_g, layout.g_class, chunk, EDGE, slope, rows, layout, tile, bits)


@triton.jit
def _gains(f, cls, valid, slopes, member, tile):
    """Compute the gradient for probabilities, ``g (1 - ε) c f(p)``; nan in a row that wants no class and has no softmax."""
    by = tl.broadcast_to((slopes.g * member.keep)[:, None, None], f.shape)
    if member.weight is not None:
        by = weigh(by, tl.load(member.weight + cls, mask=valid, other=0.0).to(tile.R))
    return tl.where(slopes.live[:, None, None], times(by, f), tl.where(by == 0.0, 0.0, float("nan")))
