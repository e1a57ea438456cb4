"""The loss of pairs in blocks: two softmaxes over the same logits ``x = a bᵀ``, ``p`` along rows and ``q`` along columns.

    L = mean_i (-Σ t log p_i) + mean_j (-Σ t log q_j), halved       ∂L/∂x = (p - t + q - t) / 2N       ∂L/∂a = ∂L/∂x b

The gradient for the logits is formed for some rows at a time, and multiplied at once, so that it takes no memory of their size.
The entry of a pair is ``expm1(log p)``, in which nothing cancels where ``p`` is next to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossent.core.reduction import times
from crossent.core.target import Target
from crossent.impl.eager import blocks


def pair_losses(logits: Tensor, target: Target, both: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute the mean loss of the rows, or of rows and columns, and the lse of each as a pair; ``target`` holds the partners."""
    of_each = [blocks.cross_entropy_forward(x, target, "mean") for x in ((logits, logits.T) if both else (logits,))]
    loss = of_each[0].loss if not both else (of_each[0].loss + of_each[1].loss) / 2
    return loss, tuple(forward.lse for forward in of_each)


def pair_gradients(
    grad: Tensor, a: Tensor, b: Tensor, logits: Tensor, target: Target, lses: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the gradients for a and b; ``lses`` is what ``pair_losses`` gave."""
    on_a, on_b = torch.empty_like(a), torch.zeros_like(b)
    num_rows, num_columns = logits.shape
    step = max(1, blocks.size_of(logits, logits.itemsize) // num_columns)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        x, y = logits[rows], target.values[rows].unsqueeze(1)
        at_x = _of_one_direction(x, y, lses[0][:, rows].unsqueeze(2), target)
        for of_columns in lses[1:]:
            at_x.add_(_of_one_direction(x, y, of_columns.unsqueeze(1), target))
        torch.mm(at_x, b, out=on_a[rows])
        on_b.addmm_(at_x.T, a[rows])
    factor = grad / (num_rows * len(lses))
    return times(factor, on_a), times(factor, on_b)


def _of_one_direction(x: Tensor, y: Tensor, lse: Tensor, target: Target) -> Tensor:
    """Compute ``p - t`` of some rows of logits, whose pairs are in the columns y; the lse is that of the rows or of the columns."""
    smoothing = target.settings.label_smoothing
    share = smoothing / x.shape[1]
    log_p = (x - lse[0]).sub_(lse[1])
    at_pairs = log_p.gather(1, y).expm1_() + (smoothing - share)
    p = log_p.exp_()
    return (p.sub_(share) if share else p).scatter_(1, y, at_pairs)
