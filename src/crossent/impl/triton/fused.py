"""Kernel: the loss of each row and a factor times its gradient, which is formed while the row is near.

It reads the logits from memory once and writes the gradient once, over them where that is allowed; the second time it reads a row,
from a cache. A row that is ignored or weighs nothing is not read. With ``FORMED`` the gradient for a factor of 1 lies there
already, and the kernel ends at once if the factor is 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.impl.triton.backward import over
from crossent.impl.triton.numbers import times, weigh
from crossent.impl.triton.tile import rows_of_program
from crossent.impl.triton.walks import Labels, labels_of, losses_of, row_sums, slopes_of, write_gradient


@triton.jit
def fused(logits, target, to, factor, divisor, loss, FORMED: tl.constexpr, member, layout, tile):
    """Write what this program's rows add to the sum of losses, if it is wanted, and ``factor / divisor`` times their gradient."""
    g = tl.zeros([tile.ROWS], tile.R) + 1.0
    if factor is not None:
        by = tl.load(factor).to(tile.R)
        if FORMED:
            if by == 1.0:
                return
        g = g * by
    if divisor is not None:
        g = over(g, tl.load(divisor).to(tile.R))
    rows = rows_of_program(layout, tile)
    labels = labels_of(target, rows, member, layout, tile)
    if target.samples is not None:
        weight_in_sum = tl.load(target.samples + rows.number, mask=rows.inside, other=0.0)
        g = weigh(weight_in_sum, g)
        labels = Labels(labels.y, labels.weight, labels.counts & (weight_in_sum != 0.0), labels.wrong)
    live = labels.counts
    top, log_sum = row_sums(logits, rows, live, labels, member, layout, tile)
    cost, u, mass = losses_of(logits, target, top, log_sum, rows, live, labels, member, layout, tile)
    if loss is not None:
        cost = tl.where(labels.wrong, float("nan"), tl.where(live, cost, 0.0))
        if target.samples is not None:
            cost = times(weight_in_sum, cost)
        tl.store(loss + rows.number, cost, mask=rows.inside)
    if to is not None:
        slopes = slopes_of(g, u, mass, top, log_sum, labels, member, tile)
        write_gradient(logits, target, to, None, top, log_sum, slopes, rows, labels, member, layout, tile)
