"""Kernel: the gradient for the logits, and for probabilities where it is wanted, from that of the loss and the lse of each row.

It reads the logits once and writes the gradient once. Where every class has a weight, it first reads them for the mass. The
incoming gradient and the divisor of a mean are read on the device: nobody waits for them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.impl.triton.tile import rows_of_program
from crossent.impl.triton.walks import labels_of, losses_of, slopes_of, with_elsewhere, write_gradient


@triton.jit
def over(g, divisor):
    """Divide by what a mean was divided by; a mean over nothing has no gradient."""
    return tl.where(divisor == 0.0, 0.0, g / tl.where(divisor == 0.0, 1.0, divisor))


@triton.jit
def backward(
    logits, target, to, to_target, grad, divisor, lse, elsewhere, count, PER_ROW: tl.constexpr, member, layout, tile,
):  # fmt: skip
    """Write the gradients of this program's rows; ``grad`` is one number or one a row, ``divisor`` one number or None.

    ``elsewhere`` is the mass of each row on other shards of the classes, or None.
    """
    rows = rows_of_program(layout, tile)
    labels = labels_of(target, rows, member, layout, tile)
    live = labels.counts
    top = tl.load(lse + rows.number, mask=live, other=0.0)
    log_sum = tl.load(lse + count + rows.number, mask=live, other=0.0)
    if PER_ROW:
        g = tl.load(grad + rows.number, mask=live, other=0.0).to(tile.R)
    else:
        g = tl.load(grad).to(tile.R) + tl.zeros([tile.ROWS], tile.R)
    if divisor is not None:
        g = over(g, tl.load(divisor).to(tile.R))
    _, u, mass = losses_of(logits, target, top, log_sum, rows, live, labels, member, layout, tile)
    if elsewhere is not None:
        mass = with_elsewhere(mass, elsewhere, rows, live, tile)
    slopes = slopes_of(g, u, mass, top, log_sum, labels, member, tile)
    write_gradient(logits, target, to, to_target, top, log_sum, slopes, rows, labels, member, layout, tile)
