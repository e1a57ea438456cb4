"""Losses of rows whose targets are made on the way, as a distillation's are: formed over a block of rows, and again in backward.

Such a loss is a function of logits and targets in torch operations. Left to autograd, it would keep what it forms for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from crossent.core import watch
from crossent.core.modes import plain
from crossent.core.reduction import compute_dtype
from crossent.core.target import Target
from crossent.impl import formulas
from crossent.impl.protocol import Gradients
from crossent.ops.library import differentiated

Compute = Callable[..., Iterable[Tensor]]  # losses of rows, of logits and targets
_SIZE = len(Target._fields) - 1  # tensors of a target


def _targets(settings: Sequence[Any], tensors: Sequence[Any]) -> list[Target]:
    """Put targets together again from their tensors, one after the other, and their numbers."""
    parts = [tensors[i * _SIZE : (i + 1) * _SIZE] for i in range(len(settings))]
    return [Target._make((*part, numbers)) for part, numbers in zip(parts, settings, strict=True)]


def _differentiated(
    grads: Sequence[Tensor | None], compute: Compute, dtype: torch.dtype, needs: Sequence[bool]
) -> Callable[..., Gradients]:
    """Return what computes the gradients of a block from those of losses of rows.

    The losses of the block are computed once more and differentiated by autograd, in the dtype of sums, so that no part of a
    gradient is rounded before all are added.
    """
    flat = [g if g is None or g.dim() < 2 else g.flatten(1) for g in grads]

    @torch.enable_grad()
    def of_block(block: Any, *same_rows: Any) -> Gradients:
        leaves = [
            None if t is None else t.detach().to(dtype).requires_grad_() if need else t
            for t, need in zip(formulas.sources_of(block.logits, block.target), needs, strict=True)
        ]
        values = block.target.values if leaves[1] is None else leaves[1]
        target = block.target._replace(values=values, weight=leaves[2], logit_bias=leaves[3])
        given = [leaf for leaf, need in zip(leaves, needs, strict=True) if need and leaf is not None]
        totals: list[Tensor | None] = [None] * len(given)
        losses = compute(leaves[0], target, *(other.target for other in same_rows))
        for of_rows, g in zip(losses, flat, strict=True):  # one after the other: what one keeps is gone before the next
            if g is not None and of_rows.requires_grad:
                parts = torch.autograd.grad(of_rows, given, g[block.at], allow_unused=True)
                totals = [_added(*both) for both in zip(totals, parts, strict=True)]
        found = (torch.zeros_like(leaf) if t is None else t for leaf, t in zip(given, totals, strict=True))
        return Gradients(
            *(next(found) if need and t is not None else None for t, need in zip(leaves, needs, strict=True))
        )

    return of_block


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class RowLosses(Function):
    """Losses of rows in blocks, differentiable in the logits and in what the first target is made of."""

    @staticmethod
    def forward(ctx, compute, settings, logits, *tensors):
        ctx.compute, ctx.settings = compute, settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, *tensors)
        targets = _targets(settings, tensors)
        try:
            return formulas.composed_rows(compute, logits, targets)
        except (IndexError, RuntimeError):
            for target in targets:  # a block does not know where among all rows it is
                target.raise_if_out_of_range(logits.shape[1])
            raise

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, *tensors = ctx.saved_tensors
        inputs, needs = (logits, *tensors), ctx.needs_input_grad[2:]
        incoming = [g for g in grads if g is not None]
        if not incoming:
            return (None,) * (2 + len(inputs))
        targets = _targets(ctx.settings, tensors)
        if plain(*incoming, *inputs) and not differentiated(incoming[0], *incoming[1:], *inputs):
            of_block = _differentiated(grads, ctx.compute, compute_dtype(logits, targets[0].values), needs[:4])
            gradients = formulas.composed_rows_backward(of_block, logits, targets, needs[:4])
            return (None, None, *gradients, *(None for _ in inputs[4:]))
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            losses = tuple(ctx.compute(logits, *targets))
        pairs = [both for both in zip(losses, grads, strict=True) if both[0].requires_grad and both[1] is not None]
        given = [t for t, need in zip(inputs, needs, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [of_rows for of_rows, _ in pairs], given, [g for _, g in pairs], create_graph=again, allow_unused=True
            )
        )
        return (None, None, *(next(found) if need else None for need in needs))


_LARGE = 1 << 22  # logits from which on memory counts for more than time on the CPU, too


def saves_memory(logits: Tensor) -> bool:
    """Whether memory counts for more than time, which blocks take more of: they form losses of rows again in backward."""
    return logits.numel() >= _LARGE or not formulas.IMPLEMENTATION.fuses(logits)


def takes_blocks(name: str, logits: Tensor, *targets: Target) -> bool:
    """Whether losses of such rows are formed in blocks: by torch operations, and nobody looks on or uses forward mode.

    Only the first target may have gradients.
    """
    others = [t for target in targets[1:] for t in target.tensors if t is not None]
    if name != formulas.IMPLEMENTATION.name or not saves_memory(logits):
        return False
    if forward_ad._current_level >= 0 or watch.current() is not None:
        return False
    if any(t.requires_grad for t in others) or not plain(logits, *targets[0].tensors, *others):
        return False
    return logits.numel() > 0


def row_losses(compute: Compute, logits: Tensor, *targets: Target) -> tuple[Tensor, ...]:
    """Compute losses of rows in blocks, where ``takes_blocks`` says so."""
    settings, tensors = [target.settings for target in targets], [t for target in targets for t in target.tensors]
    losses: tuple[Tensor, ...] = RowLosses.apply(compute, settings, logits, *tensors)
    return losses
