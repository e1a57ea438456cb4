"""Kernel: the loss of each row, what it weighs, and its lse as the pair (top, log_sum). It reads the logits once.

Where every class has a weight (probabilities, smoothing) it reads them twice, the second time from a cache. A row that is
ignored is not read and gets zeros; one whose label is no class gets a loss of nan.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.impl.triton.tile import rows_of_program
from crossent.impl.triton.walks import labels_of, losses_of, row_sums


@triton.jit
def forward(logits, target, loss, row_weight, lse, to_mass, count, member, layout, tile):
    """Write the loss, weight, lse and, where it is wanted, mass of this program's rows, of which there are ``count``."""
    rows = rows_of_program(layout, tile)
    labels = labels_of(target, rows, member, layout, tile)
    live = labels.counts
    top, log_sum = row_sums(logits, rows, live, labels, member, layout, tile)
    cost, u, mass = losses_of(logits, target, top, log_sum, rows, live, labels, member, layout, tile)
    cost = tl.where(labels.wrong, float("nan"), tl.where(live, cost, 0.0))
    tl.store(loss + rows.number, cost, mask=rows.inside)
    tl.store(row_weight + rows.number, labels.weight, mask=rows.inside)
    tl.store(lse + rows.number, tl.where(live, top, 0.0), mask=rows.inside)
    tl.store(lse + count + rows.number, tl.where(live, log_sum, 0.0), mask=rows.inside)
    if to_mass is not None:
        tl.store(to_mass + rows.number, tl.where(live, mass.own + mass.spread, 0.0), mask=rows.inside)
