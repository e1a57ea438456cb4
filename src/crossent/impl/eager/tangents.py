"""Forward mode of the softmax losses: how a loss changes along tangents of what it is computed from."""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.reduction import compute_dtype, ordered_sum, times
from crossent.core.target import Target
from crossent.impl.eager.pieces import as_logits, class_sum, transform
from crossent.impl.eager.softmax import RowGradient, gradients, row_losses

Tangents = tuple[Tensor | None, ...]


def cross_entropy_tangent(logits: Tensor, target: Target, reduction: str, tangents: Tangents) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target, class weights and bias."""
    ones = torch.ones_like(logits.narrow(1, 0, 1), dtype=compute_dtype(logits, target.values))
    tangent = _tangent(RowGradient(ones), logits, target, tangents)
    return tangent if reduction == "none" else ordered_sum(tangent)


def statistics_tangent(logits: Tensor, target: Target, tangents: Tangents) -> tuple[Tensor, ...]:
    """Compute the derivatives of the four statistics that have some, in their order."""
    ones = torch.ones_like(logits.narrow(1, 0, 1), dtype=compute_dtype(logits, target.values))
    units = [RowGradient(*(ones if i == k else 0 * ones for i in range(4))) for k in range(4)]
    return tuple(_tangent(unit, logits, target, tangents) for unit in units)


def _tangent(row: RowGradient, logits: Tensor, target: Target, tangents: Tangents) -> Tensor:
    """Compute each row's derivative along the tangents: its gradients, as ``row`` weighs them, times these."""
    on_logits, on_target, on_weight, on_bias = tangents
    needs = (on_logits is not None, on_target is not None, False, on_bias is not None)
    bias, dtype = target.logit_bias, row.loss.dtype
    if bias is not None:  # one for each logit, so that its gradient is not summed over the rows
        bias = as_logits(bias, logits).expand_as(logits)
    slopes = gradients(row, logits, target._replace(logit_bias=bias), None, needs)
    tangent = torch.zeros_like(row.loss)
    for slope, along in ((slopes.logits, on_logits), (slopes.target, on_target), (slopes.logit_bias, on_bias)):
        if slope is not None and along is not None:
            along = along if along.dim() == slope.dim() else as_logits(along, logits)
            tangent = tangent + class_sum(times(along.to(dtype), slope.to(dtype)))
    if on_weight is not None:
        # The derivative along the weights' tangent is the loss with that in their place, less the loss with weights of 0. Torch
        # gives zeros where there is no tangent, and 0 times an infinite cost is 0.
        x = transform(logits.to(dtype), target).x
        along_weight, none = (
            row_losses(x, target._replace(weight=weight))[0] for weight in (on_weight, torch.zeros_like(on_weight))
        )
        tangent = tangent + times(row.loss, (along_weight - none).unsqueeze(1))
    return tangent.squeeze(1)
