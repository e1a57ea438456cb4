"""The sigmoid losses in torch operations: the loss of an element, its gradient, and forward mode."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crossent.core.penalties import costs_nothing
from crossent.core.reduction import compute_dtype, divide, ordered_sum, over, times, weigh
from crossent.core.target import BinaryTarget
from crossent.impl.eager.pieces import cost, weighted_cost

BINARY_NUMBERS = frozenset({"ignore_index", "label_smoothing", "penalty"})
"""The numbers of the record that the formulas here compute with; others are refused."""


class Terms(NamedTuple):
    """What the loss of every element is made of: ``x`` and ``t``, and what yes and no weigh, ``π t`` and ``1 - t``.

    ``absent`` marks the elements that are ignored, in which ``x`` and ``t`` are 0, and those without weight of which some number
    is nan or infinite. In the latter ``x`` is a constant, or a nan would come back from the derivatives.
    """

    x: Tensor
    t: Tensor
    yes: Tensor
    no: Tensor
    absent: Tensor | None


def _terms(logits: Tensor, target: BinaryTarget, factor: Tensor | None) -> Terms:
    """Understand logits and target; ``factor`` is what the loss of each element is multiplied by."""
    dtype = compute_dtype(logits, target.values)
    x, t = logits.to(dtype), target.values.to(dtype)
    valid, smoothing = target.valid_elements(), target.settings.label_smoothing
    if valid is not None:
        x, t = x.masked_fill(~valid, 0.0), t.masked_fill(~valid, 0.0)
    if smoothing:
        t = (torch.zeros_like(t) if smoothing == 1 else (1 - smoothing) * t) + smoothing / 2
    yes, no = t if target.pos_weight is None else weigh(target.pos_weight.to(dtype), t), 1 - t
    yes_is_free, no_is_free = map(costs_nothing, target.penalties)
    yes, no = torch.zeros_like(yes) if yes_is_free else yes, torch.zeros_like(no) if no_is_free else no
    weightless = None if factor is None else factor == 0
    if target.pos_weight is not None or yes_is_free or no_is_free:
        nothing = (yes == 0) & (no == 0)
        weightless = nothing if weightless is None else weightless | nothing
    if weightless is None:
        return Terms(x, t, yes, no, None if valid is None else ~valid)
    absent = weightless & (x.isnan() | ~(yes + no).isfinite())
    x = x.masked_fill(absent, torch.nan)
    return Terms(x, t, yes, no, absent if valid is None else absent | ~valid)


def binary_cross_entropy_forward(logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0) -> Tensor:
    """Compute ``π t f₊(σ(x)) + (1 - t) f₋(σ(-x))`` for each element, or the sum over a mean's divisor."""
    x, _, yes, no, absent = _terms(logits, target, target.weight)
    on_yes, on_no = target.penalties
    loss = times(yes, cost(on_yes, logsigmoid(x))) + times(no, cost(on_no, logsigmoid(-x)))
    if target.weight is not None:
        loss = times(target.weight.to(x.dtype), loss)
    if absent is not None:
        loss = loss.masked_fill(absent, 0.0)
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
    g = over(grad, divisor) if grad.dim() == 0 else grad
    factor = g if target.weight is None else times(target.weight.to(compute_dtype(logits, target.values)), g)
    x, _, yes, no, absent = _terms(logits, target, factor)
    pi = None if target.pos_weight is None else target.pos_weight.to(x.dtype)
    on_yes, on_no = target.penalties
    log_p, log_not_p = logsigmoid(x), logsigmoid(-x)
    grad_logits = grad_target = None
    if needs[0]:
        # exp(logsigmoid) and not torch.sigmoid, whose last bit depends on how threads share the elements
        pull, push = yes * log_not_p.exp(), no * log_p.exp()
        if on_yes is not None and on_no is not None:
            pull, push = on_yes.s(log_p) * pull, on_no.s(log_not_p) * push
        grad_logits = factor * (push - pull)
        nothing = (yes == 0) & (no == 0) & ~factor.isfinite()
        grad_logits = grad_logits.masked_fill(nothing if absent is None else nothing | absent, 0.0)
        grad_logits = grad_logits.to(logits.dtype)
    if needs[1]:
        factor = ((1 - target.settings.label_smoothing) * factor).expand_as(x)
        gain = weighted_cost(factor if pi is None else weigh(factor, pi), on_yes, log_p)
        grad_target = gain - weighted_cost(factor, on_no, log_not_p)
        valid = target.valid_elements()
        grad_target = grad_target if valid is None else grad_target.masked_fill(~valid, 0.0)
        grad_target = grad_target.to(target.values.dtype)
    return grad_logits, grad_target


def binary_cross_entropy_tangent(
    logits: Tensor, target: BinaryTarget, reduce: bool, tangents: tuple[Tensor | None, ...]
) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target, weight and pos_weight (forward mode)."""
    on_logits, on_target, on_weight, on_pos_weight = tangents
    x, t, *_ = _terms(logits, target, None)
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
        valid = target.valid_elements()
        gain = gain if valid is None else gain.masked_fill(~valid, 0.0)
        tangent = tangent + times(on_pos_weight if target.weight is None else on_pos_weight * target.weight, gain)
    return ordered_sum(tangent) if reduce else tangent
