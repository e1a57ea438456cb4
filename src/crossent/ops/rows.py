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
from crossent.core.target import BinaryTarget, Target
from crossent.impl import formulas
from crossent.ops.library import differentiated, tell_if_in_place

Compute = Callable[..., Iterable[Tensor]]  # losses of rows, of logits and targets
_SIZE = len(Target._fields) - 1  # tensors of a target, of which the first ``LEARNED`` may have gradients


def _targets(settings: Sequence[Any], tensors: Sequence[Any]) -> list[Target]:
    """Put targets together again from their tensors, one after the other, and their numbers."""
    parts = [tensors[i * _SIZE : (i + 1) * _SIZE] for i in range(len(settings))]
    return [Target._make((*part, numbers)) for part, numbers in zip(parts, settings, strict=True)]


def _with_leaves(
    logits: Tensor, targets: Sequence[Target], needs: Sequence[bool]
) -> tuple[Tensor, list[Target], list[Tensor | None]]:
    """Put leaves in the dtype of sums in the place of what is differentiated, so that no part of a gradient is rounded early."""
    dtypes = [compute_dtype(logits, target.values) for target in targets]
    wide = [dtypes[0], *(dtype for dtype in dtypes for _ in range(formulas.LEARNED))]
    sources = formulas.sources_of(logits, *targets)
    leaves = [
        t.detach().to(dtype).requires_grad_() if need and t is not None else None
        for t, dtype, need in zip(sources, wide, needs, strict=True)
    ]
    (of_logits, *others), made = [t if leaf is None else leaf for t, leaf in zip(sources, leaves, strict=True)], []
    for i, target in enumerate(targets):
        values, weight, bias = others[formulas.LEARNED * i : formulas.LEARNED * (i + 1)]
        values = target.values if values is None else values
        made.append(target._replace(values=values, weight=weight, logit_bias=bias))
    assert of_logits is not None
    return of_logits, made, leaves


def _differentiated(
    grads: Sequence[Tensor | None], compute: Compute, needs: Sequence[bool]
) -> Callable[..., list[Tensor | None]]:
    """Return what computes the gradients of a block from those of losses of rows.

    The losses of the block are computed once more and differentiated by autograd.
    """
    flat = [g if g is None or g.dim() < 2 else g.flatten(1) for g in grads]

    @torch.enable_grad()
    def of_block(block: Any, *same_rows: Any) -> list[Tensor | None]:
        logits, targets, leaves = _with_leaves(
            block.logits, [block.target, *(other.target for other in same_rows)], needs
        )
        given = [leaf for leaf in leaves if leaf is not None]
        totals: list[Tensor | None] = [None] * len(given)
        losses = compute(logits, *targets)
        for of_rows, g in zip(losses, flat, strict=True):  # one after the other: what one keeps is gone before the next
            if g is not None and of_rows.requires_grad:
                parts = torch.autograd.grad(of_rows, given, g[block.at], allow_unused=True)
                totals = [_added(*both) for both in zip(totals, parts, strict=True)]
        found = (torch.zeros_like(leaf) if t is None else t for leaf, t in zip(given, totals, strict=True))
        return [None if leaf is None else next(found) for leaf in leaves]

    return of_block


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class RowLosses(Function):
    """Losses of rows in blocks, differentiable in the logits and in what the targets are made of."""

    @staticmethod
    def forward(ctx, compute, settings, inplace, logits, *tensors):
        ctx.compute, ctx.settings, ctx.inplace = compute, settings, inplace
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
        inputs, needs = (logits, *tensors), ctx.needs_input_grad[3:]
        incoming = [g for g in grads if g is not None]
        if not incoming:
            return (None,) * (3 + len(inputs))
        targets = _targets(ctx.settings, tensors)
        if plain(*incoming, *inputs) and not differentiated(incoming[0], *incoming[1:], *inputs):
            of_targets = [needs[1 + _SIZE * i :][: formulas.LEARNED] for i in range(len(targets))]
            wanted = (needs[0], *(need for of_target in of_targets for need in of_target))
            of_block = _differentiated(grads, ctx.compute, wanted)
            on_logits, *others = formulas.composed_rows_backward(of_block, logits, targets, wanted, ctx.inplace)
            if ctx.inplace:
                tell_if_in_place(on_logits, logits)
            rest = (None,) * (_SIZE - formulas.LEARNED)
            of_each = [(*others[formulas.LEARNED * i : formulas.LEARNED * (i + 1)], *rest) for i in range(len(targets))]
            return (None, None, None, on_logits, *(g for of_target in of_each for g in of_target))

        def formula(x: Tensor, *tensors: Tensor | None) -> Iterable[Tensor]:
            losses: Iterable[Tensor] = ctx.compute(x, *_targets(ctx.settings, tensors))
            return losses

        return (None, None, None, *gradients_of(formula, inputs, needs, grads))


def gradients_of(
    formula: Callable[..., Iterable[Tensor]],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Compute the gradients of a function in torch operations whole, so that they may be differentiated or batched themselves."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():  # of views, since a tensor that is given twice has two gradients here
        given = [t.view_as(t) if need and t is not None else t for t, need in zip(inputs, needs, strict=True)]
        results = tuple(formula(*given))
    pairs = [both for both in zip(results, grads, strict=True) if both[0].requires_grad and both[1] is not None]
    leaves = [t for t, need in zip(given, needs, strict=True) if need and t is not None]
    outputs, incoming = [result for result, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(outputs, leaves, incoming, create_graph=again, allow_unused=True))
    return [next(found) if need else None for need in needs]


_LARGE = 1 << 22  # logits from which on memory counts for more than time on the CPU, too


def saves_memory(logits: Tensor) -> bool:
    """Whether memory counts for more than time, which blocks take more of: they form losses of rows again in backward."""
    return logits.numel() >= _LARGE or not formulas.IMPLEMENTATION.fuses(logits)


def takes_blocks(name: str, logits: Tensor, *targets: Target | BinaryTarget) -> bool:
    """Whether such losses are formed in blocks: by torch operations, and nobody looks on or uses forward mode."""
    if name != formulas.IMPLEMENTATION.name or forward_ad._current_level >= 0 or watch.current() is not None:
        return False
    if not plain(logits, *(t for target in targets for t in target.tensors)):
        return False
    return saves_memory(logits) and logits.numel() > 0  # last, since a compiler may not know the size


def row_losses(compute: Compute, logits: Tensor, *targets: Target, inplace: bool = False) -> tuple[Tensor, ...]:
    """Compute losses of rows in blocks, where ``takes_blocks`` says so; ``inplace`` as ``inplace_backward`` of a loss."""
    settings, tensors = [target.settings for target in targets], [t for target in targets for t in target.tensors]
    losses: tuple[Tensor, ...] = RowLosses.apply(compute, settings, inplace, logits, *tensors)
    return losses
