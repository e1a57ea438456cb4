"""The family in torch operations: any device, dtype, layout and transform, differentiable by autograd to any order.

Here logits are ``(N, C, d1, ...)``, rows are ``(N, d1, ...)``, and a row's ``lse`` is kept as the pair ``(top, log_sum)`` of
shape ``(N, 1, d1, ...)`` with ``lse = top + log_sum``: their sum would round the small part of a confident row away.
All arithmetic is in float32 or wider. This file knows neither autograd nor reductions other than the plain sum.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from crossent.penalties import Penalty
from crossent.targets import BinaryTarget, Target

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


def ignored_rows(target: Target) -> Tensor | None:
    """Mark the rows that count for nothing, as ``(N, 1, d1, ...)``; None where every row counts."""
    ignored = (target.values == target.ignore_index).unsqueeze(1) if target.indices else None
    if target.valid is None:
        return ignored
    invalid = ~target.valid.unsqueeze(1)
    return invalid if ignored is None else ignored | invalid


def index_weights(target: Target, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Describe class indices as rows ``(N, 1, d1, ...)``: which are ignored, the class (0 where ignored), and ``c[y]``."""
    ignored = ignored_rows(target)
    assert ignored is not None
    y = target.values.unsqueeze(1).masked_fill(ignored, 0)
    if target.weight is None:
        return ignored, y, (~ignored).to(x.dtype)
    return ignored, y, target.weight.to(x.dtype)[y.clamp(0, x.shape[1] - 1)].masked_fill(ignored, 0.0)


def is_class(y: Tensor, x: Tensor) -> Tensor:
    """Mark the class ``y`` of each row, in the shape of the logits."""
    return along_classes(torch.arange(x.shape[1], device=x.device), x) == y


def as_logits(values: Tensor, x: Tensor) -> Tensor:
    """Lay values of shape ``(C)`` along the class axis; others have the logits' shape already."""
    return along_classes(values, x) if values.dim() == 1 else values


def uniform_share(target: Target, x: Tensor) -> float | Tensor:
    """Compute what the uniform distribution over the classes that are allowed gives to each."""
    if target.class_mask is None:
        return 1 / x.shape[1]
    allowed = target.class_mask.to(x.dtype)
    size = allowed.sum() if allowed.dim() == 1 else class_sum(allowed)
    return as_logits(allowed / size.clamp_min(1.0), x)


def smoothed_target(target: Target, x: Tensor) -> Tensor:
    """Write out ``t``, smoothed, in the shape of the logits; it is 0 in rows that do not count."""
    if target.indices:
        ignored, y, _ = index_weights(target, x)
        t = is_class(y, x).to(x.dtype)
    else:
        ignored, t = ignored_rows(target), target.values.to(x.dtype)
    if target.label_smoothing > 0:
        t = (1 - target.label_smoothing) * t + target.label_smoothing * uniform_share(target, x)
    return t if ignored is None else t.masked_fill(ignored, 0.0)


def row_weights(logits: Tensor, target: Target, reduce: bool) -> Tensor:
    """Compute what each row adds to the divisor of a mean: ``c[y]`` for indices, 0 where ignored, 1 for probabilities."""
    x = logits.to(compute_dtype(logits, target.values))
    rows = _row_weights(x, target)
    return ordered_sum(rows) if reduce else rows.squeeze(1)


def _row_weights(x: Tensor, target: Target) -> Tensor:
    if target.indices:
        return index_weights(target, x)[2]
    ones = torch.ones_like(x.narrow(1, 0, 1))
    return ones if target.valid is None else ones * target.valid.unsqueeze(1)


class Transformed(NamedTuple):
    """What stands in the place of the logits, and what the chain rule needs to come back.

    ``x`` has -inf for masked classes and 0 in the rows that do not count, whatever the logits hold there; ``slope`` is
    ``∂x/∂logits``, and ``dead`` marks the logits that have no gradient. None is 1 everywhere, and nowhere.
    """

    x: Tensor
    slope: Tensor | float
    dead: Tensor | None


def transform(x: Tensor, target: Target) -> Transformed:
    """Compute ``x' = (cap · tanh(x / cap) + bias - margin · t) / T``, in this order, then mask."""
    rule, slope = target.rule, 1.0
    ignored = ignored_rows(target)
    dead = masked = None if target.class_mask is None else ~as_logits(target.class_mask, x)
    if ignored is not None:
        dead = ignored if masked is None else ignored | masked
    if dead is not None:
        x = x.masked_fill(dead, 0.0)
    if rule.softcap is not None:
        u = x / rule.softcap
        x = rule.softcap * u.tanh()
        slope = 4 * (logsigmoid(2 * u) + logsigmoid(-2 * u)).exp()  # 1 - tanh², without cancellation
    if target.logit_bias is not None:
        x = x + as_logits(target.logit_bias.to(x.dtype), x)
    if rule.margin != 0:
        t = is_class(index_weights(target, x)[1], x) if target.indices else target.values
        x = x - rule.margin * t.to(x.dtype)
    if rule.temperature != 1:
        x, slope = x / rule.temperature, slope / rule.temperature
    if masked is not None:
        x = x.masked_fill(masked, -torch.inf)
    if ignored is not None:
        x = x.masked_fill(ignored, 0.0)
    return Transformed(x, slope, dead)


def cost(penalty: Penalty | None, log_p: Tensor, differentiable: bool = False) -> Tensor:
    """Compute ``f(p)``; with nothing to differentiate where p is 0, if it is to be differentiated."""
    if penalty is None:
        return -log_p
    if not differentiable:
        return penalty.f(log_p)
    hopeless = log_p == -torch.inf
    worst = penalty.f(torch.full((), -torch.inf, dtype=log_p.dtype, device=log_p.device))
    return torch.where(hopeless, worst.detach(), penalty.f(log_p.masked_fill(hopeless, -1.0)))


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``Σ_k c_k t_k f(p_k) + λ lse²`` for each row, or its sum or mean over the rows.

    Returns ``(loss, row_weight, lse)``: the row weight is what the row adds to the divisor of a mean, ``c[y]`` for indices,
    0 where ignored, 1 for probabilities, and for a sum or mean it is their sum; lse is the pair, ``(2, N, d1, ...)``, of
    the transformed logits.
    """
    x = logits.to(compute_dtype(logits, target.values))
    if x.numel() == 0:
        loss = row_weight = top = log_sum = x.sum(1, keepdim=True)
    else:
        x = x if target.plain else transform(x, target).x
        top, log_sum = row_lse(x)
        loss, row_weight = _index_loss(x, target, top, log_sum) if target.indices else _soft_loss(x, target, top, log_sum)
        if target.rule.z_loss:
            loss = loss + times(row_weight, target.rule.z_loss * (top + log_sum).square())
    lse = torch.stack([top.squeeze(1), log_sum.squeeze(1)])
    loss, row_weight = loss.squeeze(1), row_weight.squeeze(1)
    if reduction != "none":
        loss, row_weight = ordered_sum(loss), ordered_sum(row_weight)
    return loss / row_weight if reduction == "mean" else loss, row_weight, lse


def _soft_loss(x: Tensor, target: Target, top: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    t, c = smoothed_target(target, x), class_weights(target.weight, x)
    each = cost(target.penalty, (x - top) - log_sum)
    return class_sum(times(t if c is None else c * t, each)), _row_weights(x, target)


def _index_loss(x: Tensor, target: Target, top: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    ignored, y, row_weight = index_weights(target, x)
    loss = cost(target.penalty, (x.gather(1, y) - top) - log_sum)
    if target.weight is not None:
        loss = times(row_weight, loss)
    if target.label_smoothing > 0:
        each, share = cost(target.penalty, (x - top) - log_sum), uniform_share(target, x)
        c = class_weights(target.weight, x)
        if isinstance(share, Tensor):
            uniform = class_sum(times(share if c is None else share * c, each))
        else:
            uniform = share * class_sum(each if c is None else times(c, each))
        loss = (1 - target.label_smoothing) * loss + target.label_smoothing * uniform
    return loss.masked_fill(ignored, 0.0), row_weight


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: Tensor | None,
    needs: tuple[bool, ...] = (True, False, False, False),
    divisor: float | Tensor = 1.0,
    inplace: bool = False,
) -> Gradients:
    """Compute the gradients for logits, target, class weights and logit bias from that of the loss, a number or one a row.

    ``divisor`` is what a mean was divided by. With ``lse=None`` it is computed here, and the result is then a differentiable
    function of every tensor given. ``inplace`` would save nothing here, where other tensors as large are formed.
    """
    x = logits.to(compute_dtype(logits, target.values))
    g = grad / divisor if grad.dim() == 0 else grad.unsqueeze(1)
    on_logits, on_target, on_weight, on_bias = needs = (*needs, False)[:4]
    if x.numel() == 0:
        wanted = (logits, target.values, target.weight, target.logit_bias)
        empty = [torch.zeros_like(t) if need and t is not None else None for t, need in zip(wanted, needs, strict=True)]
        return empty[0], empty[1], empty[2], empty[3]
    slope, dead, rule = 1.0, None, target.rule
    if not target.plain:
        x, slope, dead = transform(x, target)
    elif target.indices and lse is None:
        x = x.masked_fill(index_weights(target, x)[0], 0.0)  # or nan of an ignored row would reach the second derivative
    top, log_sum = row_lse(x) if lse is None else lse.unsqueeze(2)
    log_p = (x - top) - log_sum
    grad_logits = grad_target = grad_weight = grad_bias = None
    if on_logits or on_bias or (on_target and rule.margin):
        sparse = target.indices and (target.plain or rule.label_smoothing == 0)
        at_x = (_index_gradient if sparse else _soft_gradient)(g, log_p, target, top + log_sum if rule.z_loss else None)
        if dead is not None:
            at_x = at_x.masked_fill(dead, 0.0)
        grad_logits = (at_x if target.plain else at_x * slope).to(logits.dtype) if on_logits else None
        if on_bias and target.logit_bias is not None:
            grad_bias = at_x / rule.temperature
            if target.logit_bias.dim() == 1:
                grad_bias = grad_bias.transpose(0, 1).reshape(x.shape[1], -1).sum(1)
            grad_bias = grad_bias.to(target.logit_bias.dtype)
    if (on_target and not target.indices) or (on_weight and target.weight is not None):
        each = cost(target.penalty, log_p, lse is None)
        if on_target:
            c = class_weights(target.weight, x)
            grad_target = times((1 - rule.label_smoothing) * g, each if c is None else times(c, each))
            if rule.margin:
                grad_target = grad_target - (rule.margin / rule.temperature) * at_x
            if target.valid is not None:
                grad_target = grad_target.masked_fill(~target.valid.unsqueeze(1), 0.0)
            grad_target = grad_target.to(target.values.dtype)
        if on_weight and target.weight is not None:
            terms = g * times(smoothed_target(target, x), each)
            grad_weight = terms.transpose(0, 1).reshape(x.shape[1], -1).sum(1).to(target.weight.dtype)
    return grad_logits, grad_target, grad_weight, grad_bias


def _soft_gradient(g: Tensor, log_p: Tensor, target: Target, lse: Tensor | None) -> Tensor:
    """Compute ``g (mass·p - w∘t)``.

    A class with more than half of the probability may have it next to 1; its entry is ``rest·p - w t (1 - p)``, where the rest
    of the mass is summed and not subtracted.
    """
    penalty = target.penalty
    pull, c = smoothed_target(target, log_p), class_weights(target.weight, log_p)
    if c is not None:
        pull = c * pull
    if penalty is not None:
        pull = pull * penalty.s(log_p)
    near_one = log_p > -log(2)
    mass, rest = class_sum(pull), class_sum(pull.masked_fill(near_one, 0.0))
    if lse is not None:
        extra = times(_row_weights(log_p, target), 2 * target.rule.z_loss * lse)
        mass, rest = mass + extra, rest + extra
    p = log_p.exp()
    return g * torch.where(near_one, rest * p + pull * log_p.expm1(), mass * p - pull)


def _index_gradient(g: Tensor, log_p: Tensor, target: Target, lse: Tensor | None) -> Tensor:
    """Compute ``g (mass·p - w∘t)``, with the true class's entry formed from ``p - 1 = expm1(log p)``."""
    ignored, y, row_weight = index_weights(target, log_p)
    log_p = log_p.masked_fill(ignored, 0.0)
    true_class, at_y = is_class(y, log_p), log_p.gather(1, y)
    if target.label_smoothing == 0:
        g = (g * row_weight).masked_fill(row_weight == 0, 0.0)
        mass = g if target.penalty is None else g * target.penalty.s(at_y)
        at_y_gradient = mass * at_y.expm1()
        if lse is not None:
            extra = g * (2 * target.rule.z_loss * lse).masked_fill(ignored, 0.0)
            mass, at_y_gradient = mass + extra, at_y_gradient + extra * at_y.exp()
        return torch.where(true_class, at_y_gradient, log_p.exp() * mass)
    g = g.expand_as(at_y).masked_fill(ignored, 0.0)
    share = target.label_smoothing / log_p.shape[1]
    c = class_weights(target.weight, log_p)
    total = float(log_p.shape[1]) if c is None else c.sum()
    mass = (1 - target.label_smoothing) * row_weight + share * total
    gradient = g * (log_p.exp() * mass - (share if c is None else share * c))
    at_y_gradient = g * (mass * at_y.expm1() + share * (total - row_weight))
    return torch.where(true_class, at_y_gradient, gradient)


def cross_entropy_tangent(logits: Tensor, target: Target, reduce: bool, tangents: tuple[Tensor | None, ...]) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target, class weights and bias (forward mode)."""
    on_logits, on_target, on_weight, on_bias = tangents
    dtype = compute_dtype(logits, target.values)
    tangent = torch.zeros_like(logits.select(1, 0), dtype=dtype)
    needs = (on_logits is not None, on_target is not None, False, on_bias is not None)
    # a bias for each logit, so that its gradient is not summed over the rows
    at = target
    if on_bias is not None and target.logit_bias is not None:
        at = target._replace(logit_bias=as_logits(target.logit_bias, logits).expand_as(logits))
    by_logits, by_target, _, by_bias = cross_entropy_backward(torch.ones_like(tangent), logits, at, None, needs)
    for slope, along in ((by_logits, on_logits), (by_target, on_target), (by_bias, on_bias)):
        if slope is not None and along is not None:
            along = along if along.dim() == slope.dim() else as_logits(along, logits)
            tangent = tangent + class_sum(times(along.to(dtype), slope.to(dtype))).squeeze(1)
    if on_weight is not None:
        x = transform(logits.to(dtype), target).x
        top, log_sum = row_lse(x)
        terms = times(smoothed_target(target, x), cost(target.penalty, (x - top) - log_sum, True))
        tangent = tangent + class_sum(terms * along_classes(on_weight.to(dtype), x)).squeeze(1)
        if target.rule.z_loss and target.indices:
            _, _, along_rows = index_weights(target._replace(weight=on_weight), x)
            tangent = tangent + (along_rows * (target.rule.z_loss * (top + log_sum).square())).squeeze(1)
    return ordered_sum(tangent) if reduce else tangent


# --- sigmoid ----------------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """What the loss of every element is made of: ``x`` and ``t``, 0 where it is to be ignored, and which elements those are."""

    x: Tensor
    t: Tensor
    ignored: Tensor | None


def _terms(logits: Tensor, target: BinaryTarget) -> Terms:
    dtype = compute_dtype(logits, target.values)
    x, t = logits.to(dtype), target.values.to(dtype)
    valid = valid_elements(target)
    if valid is not None:
        x, t = x.masked_fill(~valid, 0.0), t.masked_fill(~valid, 0.0)
    if target.rule.label_smoothing:
        t = (1 - target.rule.label_smoothing) * t + target.rule.label_smoothing / 2
    return Terms(x, t, None if valid is None else ~valid)


def valid_elements(target: BinaryTarget) -> Tensor | None:
    """Mark the elements that count; None where all do."""
    if target.rule.ignore_index is None:
        return target.mask
    counted = target.values != target.rule.ignore_index
    return counted if target.mask is None else counted & target.mask


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
    return ordered_sum(loss) / divisor if reduce else loss


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
    g = grad / divisor if grad.dim() == 0 else grad
    factor = g if target.weight is None else g * target.weight.to(x.dtype)
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
        yes, no = cost(on_yes, log_p, True), cost(on_no, log_not_p, True)
        slope = (yes if pi is None else times(pi, yes)) - no
        if target.rule.label_smoothing:
            slope = (1 - target.rule.label_smoothing) * slope
        grad_target = factor * slope
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
        tangent = tangent + on_weight * each
    if on_pos_weight is not None:
        gain = times(t, cost(target.penalties[0], logsigmoid(x), True))
        gain = gain if ignored is None else gain.masked_fill(ignored, 0.0)
        tangent = tangent + on_pos_weight * (gain if target.weight is None else target.weight * gain)
    return ordered_sum(tangent) if reduce else tangent
