"""Kernel: what else the logits of each row tell.

That is lse, the log-probability of the target, entropy, the first of the largest classes, and whether that is the target's. The
logits are read once from memory and again from a cache. A row that is ignored is not read, and gets zeros and no class. One whose
label is no class gets a loss of nan, and else the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.impl.protocol import NO_CLASS
from crossent.impl.triton.numbers import exp_, times
from crossent.impl.triton.tile import are_classes, chunks, classes_of, load, rows_of_program
from crossent.impl.triton.walks import labels_of, losses_of, row_sums, transformed

_NOWHERE = tl.constexpr(2**31 - 1)
_NO_CLASS = tl.constexpr(NO_CLASS)


@triton.jit
def _look_again(logits, target, top, log_sum, rows, live, labels, member, layout, tile):
    """Compute each row's entropy, Σ t log p, and where x' and t are first at their largest."""
    shape: tl.constexpr = (tile.ROWS, tile.LANES)
    entropy, log_prob = tl.zeros(shape, tile.R), tl.zeros(shape, tile.R)
    likeliest = tl.zeros(shape, tl.int32) + _NOWHERE
    wanted, most = likeliest, tl.zeros(shape, tile.R)
    for k in range(0, layout.classes + tile.SLACK, tile.LANES * tile.E):
        chunk = chunks(k, tile)
        cls = classes_of(chunk, rows, tile) + tl.zeros([tile.ROWS, tile.LANES, tile.E], tl.int32)
        valid = are_classes(chunk, rows, layout, tile)
        x = load(logits, rows.at_x, layout.x_class, chunk, True, rows, live, -float("inf"), layout, tile)
        x = transformed(x, chunk, rows, labels, member, layout, tile)
        u = (x - top[:, None, None]) - log_sum[:, None, None]
        entropy -= tl.sum(tl.where(u == -float("inf"), 0.0, exp_(u, True) * u), 2)
        at_top = valid & (x == top[:, None, None])
        likeliest = tl.minimum(likeliest, tl.min(tl.where(at_top, cls, _NOWHERE), 2))
        if not target.INDICES:
            t = load(target.data, rows.at_g, layout.g_class, chunk, True, rows, live, 0.0, layout, tile)
            log_prob += tl.sum(times(t, u), 2)
            more = tl.maximum(most, tl.max(t, 2))
            first = tl.min(tl.where(valid & (t == more[:, :, None]) & (t > most[:, :, None]), cls, _NOWHERE), 2)
            wanted, most = tl.where(more > most, first, wanted), more
    largest = tl.max(most, 1)
    wanted = tl.min(tl.where(most == largest[:, None], wanted, _NOWHERE), 1)
    return tl.sum(entropy, 1), tl.sum(log_prob, 1), tl.min(likeliest, 1), wanted


@triton.jit
def statistics(
    logits, target, loss, lse, target_log_prob, entropy, row_weight, correct, predicted, member, layout, tile,
):  # fmt: skip
    """Write the statistics of this program's rows."""
    rows = rows_of_program(layout, tile)
    labels = labels_of(target, rows, member, layout, tile)
    live = labels.counts
    top, log_sum = row_sums(logits, rows, live, labels, member, layout, tile)
    cost, u, _ = losses_of(logits, target, top, log_sum, rows, live, labels, member, layout, tile)
    disorder, log_prob, likeliest, wanted = _look_again(
        logits, target, top, log_sum, rows, live, labels, member, layout, tile
    )
    if target.INDICES:
        log_prob, wanted = u, labels.y.to(tl.int32)
    level = top + log_sum
    found = live & (likeliest != _NOWHERE) & ((level - level) == 0.0)
    hit = found & (likeliest == wanted)
    cost = tl.where(labels.wrong, float("nan"), tl.where(live, cost, 0.0))
    tl.store(loss + rows.number, cost, mask=rows.inside)
    tl.store(lse + rows.number, tl.where(live, level, 0.0), mask=rows.inside)
    tl.store(target_log_prob + rows.number, tl.where(live, log_prob, 0.0), mask=rows.inside)
    tl.store(entropy + rows.number, tl.where(live, disorder, 0.0), mask=rows.inside)
    tl.store(row_weight + rows.number, labels.weight, mask=rows.inside)
    tl.store(correct + rows.number, tl.where(hit, 1.0, 0.0).to(tile.R), mask=rows.inside)
    tl.store(predicted + rows.number, tl.where(found, likeliest, _NO_CLASS).to(tl.int64), mask=rows.inside)
