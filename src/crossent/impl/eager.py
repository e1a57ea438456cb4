"""The family in torch operations: any device, dtype, layout and transform, differentiable by autograd to any order.

Here logits are ``(N, C, d1, ...)``, rows are ``(N, d1, ...)``, and a row's ``lse`` is kept as the pair ``(top, log_sum)`` of
shape ``(N, 1, d1, ...)`` with ``lse = top + log_sum``: their sum would round the small part of a confident row away.
All arithmetic is in float32 or wider. This file knows neither autograd nor reductions other than the plain sum.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crossent.targets import Target

_BLOCK = 4096


def ordered_sum(x: Tensor) -> Tensor:
    """Sum all elements in an order that does not depend on the number of threads.

    Torch splits a reduction to one number over the threads; one to many numbers it never splits.
    """
    while x.numel() > _BLOCK:
        x = x.reshape(-1)
        whole = x.numel() // _BLOCK * _BLOCK
        x = torch.cat([x[:whole].view(-1, _BLOCK).sum(1), x[whole:].sum(0, keepdim=True)])
    return x.sum()


def class_sum(x: Tensor) -> Tensor:
    """Sum over the class axis, kept, in a fixed order."""
    if x.numel() > x.shape[1] or x.numel() <= _BLOCK:
        return x.sum(1, keepdim=True)
    return ordered_sum(x).reshape([1] * x.dim())


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Promote the dtypes of these tensors, to float32 at least."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def times(weight: Tensor, value: Tensor) -> Tensor:
    """Multiply, with ``0 · inf = 0``."""
    return (weight * value).masked_fill((weight == 0) & value.isinf(), 0.0)


# --- softmax ----------------------------------------------------------------------------------------------------------


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


def index_weights(target: Target, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Describe class indices as rows ``(N, 1, d1, ...)``: which are ignored, the class (0 where ignored), and ``c[y]``."""
    values = target.values.unsqueeze(1)
    ignored = values == target.ignore_index
    y = values.masked_fill(ignored, 0)
    if target.weight is None:
        return ignored, y, (~ignored).to(x.dtype)
    return ignored, y, target.weight.to(x.dtype)[y.clamp(0, x.shape[1] - 1)].masked_fill(ignored, 0.0)


def smoothed_target(target: Target, x: Tensor) -> Tensor:
    """Write out ``t``, smoothed, in the shape of the logits."""
    share: float | Tensor = 1 / x.shape[1]
    if target.indices:
        ignored, y, _ = index_weights(target, x)
        t = (along_classes(torch.arange(x.shape[1], device=x.device), x) == y).to(x.dtype) * ~ignored
        share = (~ignored).to(x.dtype) * share
    else:
        t = target.values.to(x.dtype)
    if target.label_smoothing > 0:
        t = (1 - target.label_smoothing) * t + target.label_smoothing * share
    return t


def soft_weights(target: Target, x: Tensor) -> Tensor:
    """Compute ``c ∘ t`` of a probability target, smoothed."""
    t, c = smoothed_target(target, x), class_weights(target.weight, x)
    return t if c is None else c * t


def row_weights(logits: Tensor, target: Target, reduce: bool) -> Tensor:
    """Compute what each row adds to the divisor of a mean: ``c[y]`` for indices, 0 where ignored, 1 for probabilities."""
    x = logits.to(compute_dtype(logits, target.values))
    rows = index_weights(target, x)[2] if target.indices else torch.ones_like(x.narrow(1, 0, 1))
    return ordered_sum(rows) if reduce else rows.squeeze(1)


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``Σ_k c_k t_k (-log p_k)`` for each row, or its sum or mean over the rows.

    Returns ``(loss, row_weight, lse)``: the row weight is what the row adds to the divisor of a mean, ``c[y]`` for indices,
    0 where ignored, 1 for probabilities, and for a sum or mean it is their sum; lse is the pair, ``(2, N, d1, ...)``.
    """
    x = logits.to(compute_dtype(logits, target.values))
    if x.numel() == 0:
        loss = row_weight = top = log_sum = x.sum(1, keepdim=True)
    else:
        top, log_sum = row_lse(x)
        if target.indices:
            loss, row_weight = _index_loss(x, target, top, log_sum)
        else:
            loss = class_sum(times(soft_weights(target, x), (top - x) + log_sum))
            row_weight = torch.ones_like(top)
    lse = torch.stack([top.squeeze(1), log_sum.squeeze(1)])
    loss, row_weight = loss.squeeze(1), row_weight.squeeze(1)
    if reduction != "none":
        loss, row_weight = ordered_sum(loss), ordered_sum(row_weight)
    return loss / row_weight if reduction == "mean" else loss, row_weight, lse


def _index_loss(x: Tensor, target: Target, top: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    ignored, y, row_weight = index_weights(target, x)
    loss = (top - x.gather(1, y)) + log_sum
    if target.weight is not None:
        loss = times(row_weight, loss)
    if target.label_smoothing > 0:
        cost = (top - x) + log_sum
        c = class_weights(target.weight, x)
        uniform = class_sum(cost if c is None else times(c, cost))
        loss = (1 - target.label_smoothing) * loss + (target.label_smoothing / x.shape[1]) * uniform
    return loss.masked_fill(ignored, 0.0), row_weight


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: Tensor | None,
    needs: tuple[bool, bool, bool] = (True, False, False),
    divisor: float | Tensor = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients for logits, target and class weights from that of the loss, a number or one a row.

    ``divisor`` is what a mean was divided by. With ``lse=None`` it is computed here, and the result is then a differentiable
    function of every tensor given. ``inplace`` would save nothing here, where other tensors as large are formed.
    """
    x = logits.to(compute_dtype(logits, target.values))
    g = grad / divisor if grad.dim() == 0 else grad.unsqueeze(1)
    if x.numel() == 0:
        wanted = (logits, target.values, target.weight)
        empty = [torch.zeros_like(t) if need and t is not None else None for t, need in zip(wanted, needs, strict=True)]
        return empty[0], empty[1], empty[2]
    if target.indices:
        return _index_gradient(g, x, target, lse).to(logits.dtype), None, None
    top, log_sum = row_lse(x) if lse is None else lse.unsqueeze(2)
    log_p = (x - top) - log_sum
    grad_logits = grad_target = grad_weight = None
    if needs[0]:
        weighted = soft_weights(target, x)
        mass = class_sum(weighted)
        near_one = mass * log_p.expm1() + (mass - weighted)
        grad_logits = (g * torch.where(log_p > -log(2), near_one, mass * log_p.exp() - weighted)).to(logits.dtype)
    if needs[1]:
        c = class_weights(target.weight, x)
        slope = -log_p if c is None else times(c, -log_p)
        grad_target = times((1 - target.label_smoothing) * g, slope).to(target.values.dtype)
    if needs[2] and target.weight is not None:
        terms = g * times(smoothed_target(target, x), -log_p)
        grad_weight = terms.transpose(0, 1).reshape(x.shape[1], -1).sum(1).to(target.weight.dtype)
    return grad_logits, grad_target, grad_weight


def _index_gradient(g: Tensor, x: Tensor, target: Target, lse: Tensor | None) -> Tensor:
    """Compute ``g (mass·p - c∘t)``, with the true class's entry formed from ``p - 1 = expm1(log p)``."""
    ignored, y, row_weight = index_weights(target, x)
    if lse is None:
        x = x.masked_fill(ignored, 0.0)  # or the nan of an ignored row would reach the second derivative
    top, log_sum = row_lse(x) if lse is None else lse.unsqueeze(2)
    log_p = ((x - top) - log_sum).masked_fill(ignored, 0.0)
    true_class = along_classes(torch.arange(x.shape[1], device=x.device), x) == y
    if target.label_smoothing == 0:
        g_mass = (g * row_weight).masked_fill(row_weight == 0, 0.0)
        return torch.where(true_class, g_mass * log_p.gather(1, y).expm1(), log_p.exp() * g_mass)
    g = g.expand_as(top).masked_fill(ignored, 0.0)
    share = target.label_smoothing / x.shape[1]
    c = class_weights(target.weight, x)
    total = float(x.shape[1]) if c is None else c.sum()
    mass = (1 - target.label_smoothing) * row_weight + share * total
    gradient = g * (log_p.exp() * mass - (share if c is None else share * c))
    at_y = g * (mass * log_p.gather(1, y).expm1() + share * (total - row_weight))
    return torch.where(true_class, at_y, gradient)


def cross_entropy_tangent(
    logits: Tensor, target: Target, reduce: bool, tangents: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target and class weights (forward mode)."""
    on_logits, on_target, on_weight = tangents
    dtype = compute_dtype(logits, target.values)
    tangent = torch.zeros_like(logits.select(1, 0), dtype=dtype)
    needs = (on_logits is not None, on_target is not None, False)
    by_logits, by_target, _ = cross_entropy_backward(torch.ones_like(tangent), logits, target, None, needs)
    if on_logits is not None and by_logits is not None:
        tangent = tangent + class_sum(by_logits * on_logits).squeeze(1)
    if on_target is not None and by_target is not None:
        tangent = tangent + class_sum(by_target * on_target).squeeze(1)
    if on_weight is not None:
        x = logits.to(dtype)
        top, log_sum = row_lse(x)
        terms = times(smoothed_target(target, x), (top - x) + log_sum)
        tangent = tangent + class_sum(terms * along_classes(on_weight.to(dtype), x)).squeeze(1)
    return ordered_sum(tangent) if reduce else tangent


# --- sigmoid ----------------------------------------------------------------------------------------------------------


def binary_cross_entropy_forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduce: bool, divisor: float = 1.0
) -> Tensor:
    """Compute ``π t softplus(-x) + (1 - t) softplus(x)`` for each element, or the sum over a mean's divisor."""
    dtype = compute_dtype(logits, target)
    x, t = logits.to(dtype), target.to(dtype)
    positive = t if pos_weight is None else pos_weight.to(dtype) * t
    loss = times(positive, -logsigmoid(x)) + times(1 - t, -logsigmoid(-x))
    if weight is not None:
        loss = times(weight.to(dtype), loss)
    return ordered_sum(loss) / divisor if reduce else loss


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    needs: tuple[bool, bool] = (True, False),
    divisor: float = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients for logits and target from that of the loss, a number or one an element.

    ``divisor`` is what a mean was divided by; ``inplace`` would save nothing here, as in the softmax loss.
    """
    dtype = compute_dtype(logits, target)
    x, t = logits.to(dtype), target.to(dtype)
    g = grad / divisor if grad.dim() == 0 else grad
    factor = g if weight is None else g * weight.to(dtype)
    pi = None if pos_weight is None else pos_weight.to(dtype)
    grad_logits = grad_target = None
    if needs[0]:
        # exp(logsigmoid) and not torch.sigmoid, whose last bit depends on how threads share the elements
        pull = t * logsigmoid(-x).exp()
        slope = (1 - t) * logsigmoid(x).exp() - (pull if pi is None else pi * pull)
        grad_logits = (factor * slope).to(logits.dtype)
    if needs[1]:
        gain = -logsigmoid(x)
        slope = (gain if pi is None else times(pi, gain)) + logsigmoid(-x)
        grad_target = (factor * slope).to(target.dtype)
    return grad_logits, grad_target


def binary_cross_entropy_tangent(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduce: bool,
    tangents: tuple[Tensor | None, ...],
) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target, weight and pos_weight (forward mode)."""
    on_logits, on_target, on_weight, on_pos_weight = tangents
    ones = torch.ones_like(logits, dtype=compute_dtype(logits, target))
    needs = (on_logits is not None, on_target is not None)
    grads = binary_cross_entropy_backward(ones, logits, target, weight, pos_weight, needs)
    tangent = torch.zeros_like(ones)
    for grad, along in zip(grads, (on_logits, on_target), strict=True):
        if grad is not None and along is not None:
            tangent = tangent + grad * along
    if on_weight is not None:
        tangent = tangent + on_weight * binary_cross_entropy_forward(logits, target, None, pos_weight, False)
    if on_pos_weight is not None:
        gain = times(target.to(ones.dtype), -logsigmoid(logits.to(ones.dtype)))
        tangent = tangent + on_pos_weight * (gain if weight is None else weight * gain)
    return ordered_sum(tangent) if reduce else tangent
