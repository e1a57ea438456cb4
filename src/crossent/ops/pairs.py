"""The loss of pairs, along the rows and the columns of the same logits, whose gradient is never as large as they are.

Left to autograd, either direction would have a gradient of the logits, and their sum would be a third one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from crossent.core.checks import without_autocast
from crossent.core.modes import plain
from crossent.core.target import Target
from crossent.impl import formulas
from crossent.ops.library import differentiated
from crossent.ops.rows import gradients_of

Compute = Callable[[Tensor, Tensor], Tensor]  # the mean loss of two sets of vectors, in torch operations


class PairLosses(Function):
    """The mean loss of pairs in blocks, differentiable in both sets of vectors, which are in the dtype of sums."""

    @staticmethod
    def forward(ctx, compute, settings, both, a, b, partner):
        ctx.compute, ctx.settings = compute, settings
        ctx.set_materialize_grads(False)
        with without_autocast(a.device):
            logits = a @ b.T
        loss, lses = formulas.pair_losses(logits, Target(partner, settings=settings), both)
        ctx.save_for_backward(a, b, partner, logits, *lses)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, partner, logits, *lses = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:5]
        if grad is None:
            return (None,) * 6
        if not plain(grad, a, b) or differentiated(grad, a, b):
            return (None, None, None, *gradients_of(lambda *ab: [ctx.compute(*ab)], (a, b), needs, [grad]), None)
        target = Target(partner, settings=ctx.settings)
        with without_autocast(a.device):
            gradients = formulas.pair_gradients(grad, a, b, logits, target, lses)
        return (None, None, None, *(g if need else None for g, need in zip(gradients, needs, strict=True)), None)


def pair_losses(compute: Compute, a: Tensor, b: Tensor, target: Target, both: bool) -> Tensor:
    """Compute the mean loss of pairs in blocks, where ``takes_blocks`` says so of their logits."""
    loss: Tensor = PairLosses.apply(compute, target.settings, both, a, b, target.values)
    return loss
