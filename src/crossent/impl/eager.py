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

from crossent.core.penalties import Penalty
from crossent.core.target import BinaryTarget, Rule, Target

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
    ignored = ignored_rows(target)
    t = (is_class(index_weights(target, x)[1], x) if target.indices else target.values).to(x.dtype)
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


def counted_rows(logits: Tensor, target: Target) -> Tensor:
    """Mark the rows that count, as ``(N, d1, ...)``."""
    ignored = ignored_rows(target)
    if ignored is None:
        return torch.ones_like(logits.select(1, 0) if logits.shape[1] else logits.sum(1), dtype=torch.bool)
    return ~ignored.squeeze(1)


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
    rule = target.rule
    slope: Tensor | float = 1.0
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


def cost(penalty: Penalty | None, log_p: Tensor) -> Tensor:
    """Compute ``f(p)``."""
    return -log_p if penalty is None else penalty.f(log_p)


def weighted_cost(weight: Tensor, penalty: Penalty | None, log_p: Tensor) -> Tensor:
    """Compute ``weight · f(p)`` as a differentiable function; where p is 0 and f may be infinite, nothing is differentiated."""
    hopeless = log_p == -torch.inf
    worst = cost(penalty, torch.full((), -torch.inf, dtype=log_p.dtype, device=log_p.device))
    each = weight * cost(penalty, log_p.masked_fill(hopeless, -1.0))
    return torch.where(hopeless, times(torch.where(worst.isinf(), weight.sign(), weight), worst), each)


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``Σ_k c_k t_k f(p_k) + λ lse²`` for each row, or its sum or mean over the rows.

    Returns ``(loss, row_weight, lse)``: the row weight is what the row adds to the divisor of a mean, ``c[y]`` for indices,
    0 where ignored, 1 for probabilities, and for a sum or mean it is their sum; lse is the pair, ``(2, N, d1, ...)``, of
    the transformed logits. For the reduction "statistics" the loss is a stack of four for every row, loss, lse, the
    target's log-probability and entropy, and the row weight a stack of two, the second being whether the row is correct.
    """
    x = logits.to(compute_dtype(logits, target.values))
    if x.numel() == 0:
        loss = row_weight = top = log_sum = x.sum(1, keepdim=True)
    else:
        x = x if target.plain else transform(x, target).x
        top, log_sum = row_lse(x)
        loss, row_weight = (
            _index_loss(x, target, top, log_sum) if target.indices else _soft_loss(x, target, top, log_sum)
        )
        if target.rule.z_loss:
            loss = loss + times(row_weight, target.rule.z_loss * (top + log_sum).square())
    lse = torch.stack([top.squeeze(1), log_sum.squeeze(1)])
    loss, row_weight = loss.squeeze(1), row_weight.squeeze(1)
    if reduction == "statistics":
        correct = correct_rows(x, target)
        told = torch.cat([loss.unsqueeze(0), _statistics(x, target, top, log_sum)])
        return told, torch.stack([row_weight, correct]), lse
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

    The gradient of statistics is a stack, as they are. ``divisor`` is what a mean was divided by. With ``lse=None`` it is
    computed here, and the result is then a differentiable function of every tensor given. ``inplace`` would save nothing
    here, where other tensors as large are formed.
    """
    x = logits.to(compute_dtype(logits, target.values))
    told = grad.unbind(0) if grad.dim() == logits.dim() else None
    grad = grad if told is None else told[0]
    g = grad / divisor if grad.dim() == 0 else grad.unsqueeze(1)
    on_logits, on_target, on_weight, on_bias = needs = (*needs, False)[:4]
    if x.numel() == 0:
        wanted = (logits, target.values, target.weight, target.logit_bias)
        empty = [torch.zeros_like(t) if need and t is not None else None for t, need in zip(wanted, needs, strict=True)]
        return empty[0], empty[1], empty[2], empty[3]
    rule = target.rule
    slope: Tensor | float = 1.0
    dead = None
    if not target.plain or told is not None:
        x, slope, dead = transform(x, target)
    elif target.indices and lse is None:
        ignored = index_weights(target, x)[0]
        x = x.masked_fill(ignored, 0.0)  # or the nan of an ignored row would reach the second derivative
    top, log_sum = row_lse(x) if lse is None else lse.unsqueeze(2)
    log_p = (x - top) - log_sum
    grad_logits = grad_target = grad_weight = grad_bias = None
    if on_logits or on_bias or (on_target and rule.margin):
        sparse = target.indices and (target.plain or rule.label_smoothing == 0)
        at_x = (_index_gradient if sparse else _soft_gradient)(g, log_p, target, top + log_sum if rule.z_loss else None)
        if told is not None:
            at_x = at_x + _statistics_gradient(told, log_p, target)
        if dead is not None:
            at_x = at_x.masked_fill(dead, 0.0)
        grad_logits = (at_x if target.plain else at_x * slope).to(logits.dtype) if on_logits else None
        if on_bias and target.logit_bias is not None:
            grad_bias = at_x / rule.temperature
            if target.logit_bias.dim() == 1:
                grad_bias = grad_bias.transpose(0, 1).reshape(x.shape[1], -1).sum(1)
            grad_bias = grad_bias.to(target.logit_bias.dtype)
    if (on_target and not target.indices) or (on_weight and target.weight is not None):
        weigh = weighted_cost if lse is None else lambda weight, *f: times(weight, cost(*f))
        if on_target:
            c = class_weights(target.weight, x)
            by = (1 - rule.label_smoothing) * g
            grad_target = weigh(by if c is None else by * c, target.penalty, log_p)
            if told is not None:
                grad_target = grad_target - weigh(told[2].unsqueeze(1), None, log_p)
            if rule.margin:
                grad_target = grad_target - (rule.margin / rule.temperature) * at_x
            if target.valid is not None:
                grad_target = grad_target.masked_fill(~target.valid.unsqueeze(1), 0.0)
            grad_target = grad_target.to(target.values.dtype)
        if on_weight and target.weight is not None:
            terms = weigh(g * smoothed_target(target, x), target.penalty, log_p)
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


def cross_entropy_tangent(
    logits: Tensor, target: Target, reduction: str, tangents: tuple[Tensor | None, ...]
) -> Tensor:
    """Compute the derivative of the loss along tangents of logits, target, class weights and bias (forward mode)."""
    ones = torch.ones_like(logits.select(1, 0), dtype=compute_dtype(logits, target.values))
    if reduction == "statistics":
        unit = (torch.stack([ones if i == k else 0 * ones for i in range(4)]) for k in range(4))
        return torch.stack([_tangent(grad, logits, target, tangents) for grad in unit])
    tangent = _tangent(ones, logits, target, tangents)
    return tangent if reduction == "none" else ordered_sum(tangent)


def _tangent(grad: Tensor, logits: Tensor, target: Target, tangents: tuple[Tensor | None, ...]) -> Tensor:
    """Compute for each row how much of the tangents its gradient, of this of its loss, lets through."""
    on_logits, on_target, on_weight, on_bias = tangents
    needs = (on_logits is not None, on_target is not None, False, on_bias is not None)
    bias = target.logit_bias
    if bias is not None:  # one for each logit, so that its gradient is not summed over the rows
        bias = as_logits(bias, logits).expand_as(logits)
    slopes = cross_entropy_backward(grad, logits, target._replace(logit_bias=bias), None, needs)
    tangent = torch.zeros_like(logits.select(1, 0), dtype=grad.dtype)
    for slope, along in zip((slopes[0], slopes[1], slopes[3]), (on_logits, on_target, on_bias), strict=True):
        if slope is not None and along is not None:
            along = along if along.dim() == slope.dim() else as_logits(along, logits)
            tangent = tangent + class_sum(times(along.to(grad.dtype), slope.to(grad.dtype))).squeeze(1)
    if on_weight is not None:
        g = grad[0] if grad.dim() == logits.dim() else grad
        x = transform(logits.to(grad.dtype), target).x
        top, log_sum = row_lse(x)
        terms = weighted_cost(smoothed_target(target, x), target.penalty, (x - top) - log_sum)
        along_rows = class_sum(terms * along_classes(on_weight.to(grad.dtype), x))
        if target.rule.z_loss and target.indices:
            weight = index_weights(target._replace(weight=on_weight), x)[2]
            along_rows = along_rows + weight * (target.rule.z_loss * (top + log_sum).square())
        tangent = tangent + g * along_rows.squeeze(1)
    return tangent


# --- what else the logits tell ----------------------------------------------------------------------------------------


def log_softmax(x: Tensor) -> Tensor:
    """Compute ``log p``, as exactly as the loss does, and differentiably."""
    top, log_sum = row_lse(x)
    return (x - top) - log_sum


def row_entropy(log_p: Tensor) -> Tensor:
    """Compute ``-Σ p log p``, to which a class without probability adds nothing."""
    return -class_sum(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).squeeze(1)


def distribution(logits: Tensor, valid: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the probabilities of logits at a temperature and each row's entropy, 0 in rows that do not count."""
    x = logits.to(compute_dtype(logits)) / temperature
    if valid is not None:
        x = x.masked_fill(~valid.unsqueeze(1), 0.0)
    log_q = log_softmax(x) if x.numel() else x
    q, entropy = log_q.exp(), row_entropy(log_q)
    q = q.masked_fill(log_q == -torch.inf, 0.0)  # what has no probability has no gradient either
    return q, entropy if valid is None else entropy.masked_fill(~valid, 0.0)


def correct_rows(x: Tensor, target: Target) -> Tensor:
    """Tell whether the first largest of the transformed logits is that of the target's class, as 0 or 1; 0 where ignored."""
    if x.numel() == 0:
        return x.sum(1)
    top, at = x.max(1, keepdim=True)
    if target.indices:
        hit = at == index_weights(target, x)[1]
    else:
        largest, where = target.values.max(1, keepdim=True)
        hit = (at == where) & (largest > 0)
    hit = hit & top.isfinite()
    ignored = ignored_rows(target)
    return (hit if ignored is None else hit & ~ignored).to(x.dtype).squeeze(1)


def correct_logits(logits: Tensor, target: Target) -> Tensor:
    """Tell the same of logits that are not transformed yet."""
    return correct_rows(transform(logits.detach().to(compute_dtype(logits, target.values)), target).x, target)


def _statistics(x: Tensor, target: Target, top: Tensor, log_sum: Tensor) -> Tensor:
    """Compute lse, the target's log-probability and entropy, stacked; 0 for rows that are ignored."""
    if x.numel() == 0:
        return torch.stack([top.squeeze(1)] * 3)
    log_p = (x - top) - log_sum
    if target.indices:
        log_prob = log_p.gather(1, index_weights(target, x)[1])
    else:
        log_prob = -class_sum(times(target.values.to(x.dtype), -log_p))
    told = torch.stack([(top + log_sum).squeeze(1), log_prob.squeeze(1), row_entropy(log_p)])
    ignored = ignored_rows(target)
    return told if ignored is None else told.masked_fill(ignored.squeeze(1), 0.0)


def _statistics_gradient(grads: tuple[Tensor, ...], log_p: Tensor, target: Target) -> Tensor:
    """Compute ``∂lse/∂x = p``, ``∂ Σ t log p/∂x = t - mass·p`` and ``∂H/∂x = -p (log p + H)``, each times its gradient."""
    _, on_lse, on_log_prob, on_entropy = (grad.unsqueeze(1) for grad in grads)
    bare = Target(target.values, valid=target.valid, rule=Rule(target.ignore_index))
    by_log_prob = (_index_gradient if target.indices else _soft_gradient)(-on_log_prob, log_p, bare, None)
    p, finite = log_p.exp(), log_p.masked_fill(log_p == -torch.inf, 0.0)
    return by_log_prob + p * (on_lse - on_entropy * (finite + row_entropy(log_p).unsqueeze(1)))


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
        factor = ((1 - target.rule.label_smoothing) * factor).expand_as(x)
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
        tangent = tangent + on_weight * each
    if on_pos_weight is not None:
        gain = weighted_cost(t, target.penalties[0], logsigmoid(x))
        gain = gain if ignored is None else gain.masked_fill(ignored, 0.0)
        tangent = tangent + on_pos_weight * (gain if target.weight is None else target.weight * gain)
    return ordered_sum(tangent) if reduce else tangent
