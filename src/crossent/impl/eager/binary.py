"""The sigmoid losses in torch operations: the loss of an element, its gradient, and forward mode."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crossent.core.reduction import compute_dtype, divide, ordered_sum, over, times
from crossent.core.target import BinaryTarget
from crossent.impl.eager.pieces import cost, weighted_cost


class Terms(NamedTuple):
    """What the loss of every element is made of: ``x`` and ``t``, 0 where it is to be ignored, and which elements those are."""

    x: Tensor
    t: Tensor
    ignored: Tensor | None


def _terms(logits: Tensor, target: BinaryTarget) -> Terms:
    dtype = compute_dtype(logits, target.values)
    x, t = logits.to(dtype), target.values.to(dtype)
    valid = target.valid_elements()
    if valid is not None:
        x, t = x.masked_fill(~valid, 0.0), t.masked_fill(~valid, 0.0)
    if target.settings.label_smoothing:
        t = (1 - target.settings.label_smoothing) * t + target.settings.label_smoothing / 2
    return Terms(x, t, None if valid is None else ~valid)


def binary_cross_entropy_forward(logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0) -> Tensor:
    """Compute ``π t f₊(σ(x)) + (1 - t) f₋(σ(-x))`` for each element, or the sum over a mean's divisor."""
    x, t, ignored = _terms(logits, target)
    on_yes, on_no = target.penalties
    yes, no = cost(on_yes, logsigmoid(x)), cost(on_no, logsigmoid(-x))
    positive = t if target.pos_weight is None else target.pos_weight.to(x.dtype) * t
    loss = times(positive, yes) + times(1 - t, no)
    if target.weight is not None:
        loss = times(target.weight.to(x.dtype), loss)
    if ignored is not None:
        loss = loss.masked_fill(ignored, 0.0)
    return divide(ordered_sum(loss), divisor, "nan") if reduce else loss


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: BinaryTarget,
    needs: tuple[bool, bool] = (True, False),
    divisor: float = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients for logits and target from that of the loss, a number or one an element.

    ``divisor`` is what a mean was divided by; ``inplace`` would save nothing here, as in the softmax loss.
    """
    x, t, ignored = _terms(logits, target)
    g = over(grad, divisor) if grad.dim() == 0 else grad
    factor = g if target.weight is None else times(target.weight.to(x.dtype), g)
    x = x.masked_fill((factor == 0) & x.isnan(), 0.0)  # what weighs nothing is not there, in derivatives either
    pi = None if target.pos_weight is None else target.pos_weight.to(x.dtype)
    on_yes, on_no = target.penalties
    log_p, log_not_p = logsigmoid(x), logsigmoid(-x)
    grad_logits = grad_target = None
    if needs[0]:
        # exp(logsigmoid) and not torch.sigmoid, whose last bit depends on how threads share the elements
        pull, push = t * log_not_p.exp(), (1 - t) * log_p.exp()
        if on_yes is not None and on_no is not None:
            pull, push = on_yes.s(log_p) * pull, on_no.s(log_not_p) * push
        grad_logits = factor * (push - (pull if pi is None else pi * pull))
        if ignored is not None:
            grad_logits = grad_logits.masked_fill(ignored, 0.0)
        grad_logits = grad_logits.to(logits.dtype)
    if needs[1]:
        factor = ((1 - target.settings.label_smoothing) * factor).expand_as(x)
        gain = weighted_cost(factor if pi is None else factor * pi, on_yes, log_p)
        grad_target = gain - weighted_cost(factor, on_no, log_not_p)
        if ignored is not None:
            grad_target = grad_target.masked_fill(ignored, 0.0)
        grad_target = grad_target.to(target.values.dtype)
    return grad_logits, grad_target


def binary_cross_entropy_tangent(
    logits: Tensor, target: BinaryTarget, reduce: bool, tangents: tuple[Tensor | None, ...]
) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target, weight and pos_weight (forward mode)."""
    on_logits, on_target, on_weight, on_pos_weight = tangents
    x, t, ignored = _terms(logits, target)
    ones = torch.ones_like(x)
    needs = (on_logits is not None, on_target is not None)
    grads = binary_cross_entropy_backward(ones, logits, target, needs)
    tangent = torch.zeros_like(ones)
    for grad, along in zip(grads, (on_logits, on_target), strict=True):
        if grad is not None and along is not None:
            tangent = tangent + times(along, grad)
    if on_weight is not None:
        each = binary_cross_entropy_forward(logits, target._replace(weight=None), False)
        tangent = tangent + times(on_weight, each)
    if on_pos_weight is not None:
        gain = weighted_cost(t, target.penalties[0], logsigmoid(x))
        gain = gain if ignored is None else gain.masked_fill(ignored, 0.0)
        tangent = tangent + times(on_pos_weight if target.weight is None else on_pos_weight * target.weight, gain)
    return ordered_sum(tangent) if reduce else tangent
