"""The loss of a linear head over blocks of its classes: for budgets that hold the logits of few rows, on devices that want many.

Blocks of rows add up the head's gradient in float32, which is read and written once more for each of them. Here all rows stand
beside some of the classes at a time:

    each block of classes:  x = h W_kᵀ + b_k         its part of the lse, of Σ w (lse_k - x) and of Σ w
    once:                   lse, and the loss of every row
    each block again:       x = h W_kᵀ + b_k         g = mass · p - w ∘ t, over x         ∂L/∂W_k = gᵀ h         ∂L/∂h += g W_k

So there are four products in the place of three, and the gradient of the head is written once, in its own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, prod

import torch
from torch import Tensor

from crossent.core.reduction import dtype_of_sums, over, times, weigh
from crossent.core.target import ELSEWHERE, Target
from crossent.impl import load
from crossent.impl.head import (
    Head,
    HeadGradients,
    Plan,
    accumulate_in_float32,
    block_size,
    rows_that_count,
)
from crossent.impl.protocol import Implementation

MANY = 4  # blocks of rows from which on they take longer: each reads and writes the gradient of the head in float32
_FEWEST, _EVEN = (
    256,
    64,
)  # classes of a block at least, and a number of which they are a multiple: 16 bytes, and whole tiles
_IGNORED = -100


def classes_of_a_block(head: Head, plan: Plan) -> int:
    """Say how many classes are taken at a time with all rows; 0 where blocks of rows are better, or the only way."""
    rows, target = head.input.shape[0], plan.target
    if (
        load(plan.impl).waits
        or plan.teacher is not None
        or not (target.indices and target.plain)
        or len(head.shape) > 1
    ):
        return 0
    if rows == 0 or ceil(rows / block_size(head, plan, rows)) <= MANY:
        return 0
    most = plan.max_bytes // (rows * head.input.dtype.itemsize) // _EVEN * _EVEN
    if most < _FEWEST:
        return 0
    classes = head.shape[0]
    return min(most, ceil(classes / ceil(classes / most) / _EVEN) * _EVEN)


def loss_and_gradients(
    head: Head, plan: Plan, factor: Tensor | None, divisor: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor, HeadGradients]:
    """Compute ``Σ_n factor_n loss_n / divisor`` and, as far as they are needed, its gradients."""
    blocks = _Blocks(head, plan)
    compute, wide = load(plan.impl), torch.promote_types(head.input.dtype, torch.float32)
    lse, losses, mass = _first_walk(blocks, compute)
    u = torch.ones_like(losses) if factor is None else factor.to(wide)
    sums = dtype_of_sums(head.input.device)
    total = times(u.to(sums), losses.masked_fill(blocks.wrong, torch.nan).to(sums)).sum() / divisor
    return total.to(wide), _second_walk(
        blocks, compute, weigh(u, over(torch.ones_like(divisor), divisor)), lse, mass, needs
    )


class _Blocks:
    """The blocks of classes of a head, whose logits are formed in one piece of memory."""

    def __init__(self, head: Head, plan: Plan) -> None:
        self.head, self.target, self.step = head, plan.target, classes_of_a_block(head, plan)
        labels, ignored = plan.target.values, plan.target.values == plan.target.settings.ignore_index
        self.wrong = ~ignored & ((labels < 0) | (labels >= head.shape[0]))
        self.labels = labels.masked_fill(ignored | self.wrong, _IGNORED)
        valid = rows_that_count(plan.target)
        self.input = head.input if valid is None else head.input.masked_fill(~valid.unsqueeze(1), 0.0)
        self.settings = replace(plan.target.settings, ignore_index=_IGNORED, all_classes=prod(head.shape))
        self.memory = head.input.new_empty(head.input.shape[0] * self.step)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Target]]:
        """Form the logits of one block after the other; a label of another block is ``ELSEWHERE``."""
        head, classes = self.head, self.head.shape[0]
        for start in range(0, classes, self.step):
            at = slice(start, min(start + self.step, classes))
            size = at.stop - start
            x = self.memory[: head.input.shape[0] * size].view(-1, size)
            if head.bias is None:
                torch.mm(self.input, head.weight[at].t(), out=x)
            else:
                torch.addmm(head.bias[at], self.input, head.weight[at].t(), out=x)
            here = (self.labels >= start) & (self.labels < at.stop)
            y = torch.where(here, self.labels - start, ELSEWHERE).masked_fill(self.labels == _IGNORED, _IGNORED)
            weight = None if self.target.weight is None else self.target.weight[at]
            yield at, x, Target(y, weight, settings=self.settings)


def _first_walk(blocks: _Blocks, compute: Implementation) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the lse of each row as a pair, its loss ``Σ_k [L_k + M_k (lse - lse_k)]``, and the mass ``M_k`` of each block."""
    parts = [compute.partials(x, target) for _, x, target in blocks]
    tops, log_sums = (torch.stack([part.lse[i] for part in parts]) for i in range(2))
    top, first = tops.max(0)
    level = top.masked_fill(top == -torch.inf, 0.0)
    shrink = (tops - level).exp()
    # Of the block that has the top, whose sum contains a 1, only the rest is added: a confident row keeps its digits.
    own = torch.arange(len(parts), device=top.device).unsqueeze(1) == first
    rest = torch.where(own, log_sums.expm1(), shrink * log_sums.exp()).sum(0)
    log_sum = rest.log1p() + (top - top)
    losses, masses = torch.zeros_like(top), torch.stack([part.mass for part in parts])
    for k, part in enumerate(parts):
        losses += part.loss + times(part.mass, (top - tops[k]) + (log_sum - log_sums[k]))
    return torch.stack([top, log_sum]), losses, masses


def _second_walk(
    blocks: _Blocks, compute: Implementation, g: Tensor, lse: Tensor, mass: Tensor, needs: tuple[bool, ...]
) -> HeadGradients:
    """Form the logits again and their gradient over them, of which each product gives a block's part."""
    head, wide = blocks.head, torch.promote_types(blocks.head.weight.dtype, torch.float32)
    on_input = head.input.new_empty(head.input.shape, dtype=wide) if needs[0] else None
    on_weight = torch.empty_like(head.weight, memory_format=torch.contiguous_format) if needs[1] else None
    on_bias = None if head.bias is None or not needs[2] else torch.empty_like(head.bias)
    whole = mass.sum(0)
    if not any(needs):
        return None, None, None
    for k, (at, x, target) in enumerate(blocks):
        away = whole - mass[k]
        at_logits = compute.cross_entropy_backward(g, x, target, lse, inplace=True, elsewhere=away).logits
        assert at_logits is not None
        if on_input is not None:
            _add_product(at_logits, head.weight[at], on_input, first=k == 0)
        if on_weight is not None:
            torch.mm(at_logits.t(), blocks.input, out=on_weight[at])
        if on_bias is not None:
            on_bias[at] = at_logits.sum(0, dtype=wide).to(head.weight.dtype)
    return None if on_input is None else on_input.to(head.input.dtype), on_weight, on_bias


def _add_product(g: Tensor, weight: Tensor, sums: Tensor, first: bool) -> None:
    """Add ``g W`` to sums in float32 or wider, or put it there."""
    if accumulate_in_float32(g.t(), weight, sums, first):
        return
    if first:
        torch.mm(g.to(sums.dtype), weight.to(sums.dtype), out=sums)
    else:
        sums.addmm_(g.to(sums.dtype), weight.to(sums.dtype))
