"""The pieces of the softmax losses in torch operations: sums over classes, lse, the target written out, x → x', and costs.

A row's ``lse`` is kept as the pair ``(top, log_sum)`` of shape ``(N, 1, d1, ...)`` with ``lse = top + log_sum``: their sum would
round the small part of a confident row away.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crossent.core.penalties import Penalty
from crossent.core.reduction import ordered_sum, times
from crossent.core.target import Target

_BLOCK = 4096


def class_sum(x: Tensor) -> Tensor:
    """Sum over the class axis, kept, in a fixed order.

    Where the class axis steps farthest, but not in the first dimension, torch's order depends on the number of threads: it takes
    whole vectors of neighbouring rows, and the rest one by one.
    """
    if not x.is_contiguous() and x.stride(1) == max(x.stride()):
        x = x.contiguous()
    if x.numel() > x.shape[1] or x.numel() <= _BLOCK:
        return x.sum(1, keepdim=True)
    return ordered_sum(x).reshape([1] * x.dim())


def row_lse(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each row's ``(top, log_sum)``; a row whose largest logit is not finite gets nan."""
    top, at = x.max(1, keepdim=True)
    others = (x - top).scatter(1, at, -torch.inf).exp()
    return top, class_sum(others).log1p() + (top - top)


def along_classes(values: Tensor, x: Tensor) -> Tensor:
    """Lay ``(C)`` values along the class axis of the logits."""
    return values.reshape([-1] + [1] * (x.dim() - 2))


def class_weights(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """Lay ``(C)`` class weights along the class axis of the logits, in the logits' dtype."""
    return None if weight is None else along_classes(weight.to(x.dtype), x)


def is_class(y: Tensor, x: Tensor) -> Tensor:
    """Mark the class ``y`` of each row, in the shape of the logits."""
    return along_classes(torch.arange(x.shape[1], device=x.device), x) == y


def as_logits(values: Tensor, x: Tensor) -> Tensor:
    """Lay values of shape ``(C)`` along the class axis; others have the logits' shape already."""
    return along_classes(values, x) if values.dim() == 1 else values


def uniform_share(target: Target, x: Tensor) -> float | Tensor:
    """Compute what the uniform distribution over the classes that are allowed gives to each."""
    if target.class_mask is None:
        return 1 / (target.settings.all_classes or x.shape[1])
    allowed = target.class_mask.to(x.dtype)
    size = allowed.sum() if allowed.dim() == 1 else class_sum(allowed)
    return as_logits(allowed / size.clamp_min(1.0), x)


def smoothed_target(target: Target, x: Tensor) -> Tensor:
    """Write out ``t``, smoothed, in the shape of the logits; it is 0 in rows that do not count."""
    ignored = target.ignored_rows()
    t = (is_class(target.labels(x)[1], x) if target.indices else target.values).to(x.dtype)
    smoothing = target.settings.label_smoothing
    if smoothing > 0:
        t = (torch.zeros_like(t) if smoothing == 1 else (1 - smoothing) * t) + smoothing * uniform_share(target, x)
    return t if ignored is None else t.masked_fill(ignored, 0.0)


def log_softmax(x: Tensor) -> Tensor:
    """Compute ``log p``, as exactly as the loss does, and differentiably."""
    top, log_sum = row_lse(x)
    return (x - top) - log_sum


def row_entropy(log_p: Tensor) -> Tensor:
    """Compute ``-Σ p log p``, to which a class without probability adds nothing."""
    return -class_sum(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).squeeze(1)


class Transformed(NamedTuple):
    """What stands in the place of the logits, and what the chain rule needs to come back.

    ``x`` has -inf for masked classes and 0 in the rows that do not count, whatever the logits hold there; ``slope`` is
    ``∂x/∂logits``, and ``dead`` marks the logits that have no gradient, or is None where all have one.
    """

    x: Tensor
    slope: Tensor | float
    dead: Tensor | None


def transform(x: Tensor, target: Target) -> Transformed:
    """Compute ``x' = (cap · tanh(x / cap) + bias - margin · t) / T``, in this order, then mask."""
    settings = target.settings
    slope: Tensor | float = 1.0
    ignored = target.ignored_rows()
    dead = masked = None if target.class_mask is None else ~as_logits(target.class_mask, x)
    if ignored is not None:
        dead = ignored if masked is None else ignored | masked
    if dead is not None:
        x = x.masked_fill(dead, 0.0)
    if settings.softcap is not None:
        u = x / settings.softcap
        x = settings.softcap * u.tanh()
        slope = 4 * (logsigmoid(2 * u) + logsigmoid(-2 * u)).exp()  # 1 - tanh², without cancellation
    if target.logit_bias is not None:
        x = x + as_logits(target.logit_bias.to(x.dtype), x)
    if settings.margin != 0:
        t = is_class(target.labels(x)[1], x) if target.indices else target.values
        x = x - settings.margin * t.to(x.dtype)
    if settings.temperature != 1:
        x, slope = x / settings.temperature, slope / settings.temperature
    if masked is not None:
        x = x.masked_fill(masked, -torch.inf)
    if ignored is not None:
        x = x.masked_fill(ignored, 0.0)
    return Transformed(x, slope, dead)


def cost(penalty: Penalty | None, log_p: Tensor) -> Tensor:
    """Compute ``f(p)``."""
    return -log_p if penalty is None else penalty.f(log_p)


def total_cost(weight: Tensor, penalty: Penalty | None, log_p: Tensor) -> Tensor:
    """Compute ``Σ_k weight_k f(p_k)``; a class that has neither weight nor probability adds nothing, and has no derivative."""
    nothing = (weight == 0) & (log_p == -torch.inf)
    each = times(weight, cost(penalty, log_p.masked_fill(nothing, -1.0)))
    return class_sum(each.masked_fill(nothing, 0.0))


def weighted_cost(weight: Tensor, penalty: Penalty | None, log_p: Tensor) -> Tensor:
    """Compute ``weight · f(p)`` as a differentiable function; where p is 0, f may be infinite and is not differentiated."""
    hopeless = log_p == -torch.inf
    worst = cost(penalty, torch.full((), -torch.inf, dtype=log_p.dtype, device=log_p.device))
    each = times(weight, cost(penalty, log_p.masked_fill(hopeless, -1.0)))
    return torch.where(hopeless, times(torch.where(worst.isinf(), weight.sign(), weight), worst), each)
