"""Sigmoid losses that are not reduced, in blocks: weighed by their rows, and rounded to the result's dtype as they are formed.

The losses are as large as the logits, and so is their gradient. Left to autograd, a product with weights that learn and a
conversion of dtypes would keep or make tensors as large, in the dtype of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from crossent.core.modes import plain
from crossent.core.reduction import times
from crossent.core.target import BinaryTarget
from crossent.impl import formulas
from crossent.ops.binary import binary_cross_entropy
from crossent.ops.library import differentiated, tell_if_in_place
from crossent.ops.rows import gradients_of


class ElementLosses(Function):
    """Losses of elements times weights that broadcast to them, differentiable in the logits, the target and the weights."""

    @staticmethod
    def forward(ctx, settings, dtype, inplace, logits, values, row_weight, weight, pos_weight, mask):
        ctx.settings, ctx.dtype, ctx.inplace = settings, dtype, inplace
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, values, row_weight, weight, pos_weight, mask)
        target = BinaryTarget(values, weight, pos_weight, mask, settings)
        return formulas.weighed_elements(logits, target, row_weight, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if grad is None:
            return (None,) * (3 + len(inputs))
        if not plain(grad, *inputs) or differentiated(grad, *inputs):
            return (None, None, None, *gradients_of(_formula(ctx), inputs, needs, [grad]))
        logits, values, row_weight, *more = inputs
        target = BinaryTarget._make((values, *more, ctx.settings))
        gradients = formulas.weighed_elements_backward(
            grad, logits, target, row_weight, ctx.dtype, needs[:3], ctx.inplace
        )
        if ctx.inplace:
            tell_if_in_place(gradients[0], logits)
        return (None, None, None, *gradients, None, None, None)


def _formula(ctx: Any) -> Any:
    """Return the losses as a function of what is saved, in torch operations."""

    def compute(logits: Tensor, values: Tensor, row_weight: Tensor | None, *more: Tensor | None) -> list[Tensor]:
        target = BinaryTarget._make((values, *more, ctx.settings))
        losses = binary_cross_entropy(logits, target, False, 1.0, formulas.IMPLEMENTATION.name)
        return [(losses if row_weight is None else times(row_weight, losses)).to(ctx.dtype)]

    return compute


def element_losses(
    logits: Tensor, target: BinaryTarget, row_weight: Tensor | None, dtype: torch.dtype, inplace: bool
) -> Tensor:
    """Compute losses of elements in a dtype, where ``takes_blocks`` says so; ``row_weight`` is in that of sums."""
    values, *more = target.tensors
    loss: Tensor = ElementLosses.apply(target.settings, dtype, inplace, logits, values, row_weight, *more)
    return loss
