"""The softmax losses in torch operations: the loss of a row, and its gradient.

Here logits are ``(N, C, d1, ...)`` and rows are ``(N, d1, ...)``. All arithmetic is in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.core.reduction import compute_dtype, divide, ordered_sum, over, times, weigh
from crossent.core.settings import Settings
from crossent.core.target import Target
from crossent.impl.eager.pieces import (
    class_sum,
    class_weights,
    cost,
    is_class,
    row_entropy,
    row_lse,
    smoothed_target,
    total_cost,
    transform,
    uniform_share,
    weighted_cost,
)
from crossent.impl.protocol import Forward, Gradients

NUMBERS = frozenset(
    {"ignore_index", "label_smoothing", "temperature", "softcap", "margin", "z_loss", "penalty", "all_classes"}
)
"""The numbers of the record that the formulas here compute with, forward and backward; others are refused."""


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> Forward:
    """Compute ``Σ_k c_k t_k f(p_k) + λ lse²`` for each row, or its sum or mean over the rows; see :class:`Forward`."""
    loss, row_weight, lse = row_losses(transformed(logits, target), target)
    if reduction != "none":
        loss, row_weight = ordered_sum(loss), ordered_sum(row_weight)
    return Forward(divide(loss, row_weight, "nan") if reduction == "mean" else loss, row_weight, lse)


def transformed(logits: Tensor, target: Target) -> Tensor:
    """Compute x' in the dtype of the computation."""
    x = logits.to(compute_dtype(logits, target.values))
    return x if target.plain or x.numel() == 0 else transform(x, target).x


def row_losses(x: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss, weight and lse of each row of transformed logits."""
    if x.numel() == 0:
        loss = row_weight = top = log_sum = x.sum(1, keepdim=True)
    else:
        top, log_sum = row_lse(x)
        loss = (_index_loss if target.indices else _soft_loss)(x, target, top, log_sum)
        row_weight = target.row_weights(x)
        if target.settings.z_loss:
            loss = loss + times(row_weight, target.settings.z_loss * (top + log_sum).square())
    return loss.squeeze(1), row_weight.squeeze(1), torch.stack([top.squeeze(1), log_sum.squeeze(1)])


def _soft_loss(x: Tensor, target: Target, top: Tensor, log_sum: Tensor) -> Tensor:
    t, c = smoothed_target(target, x), class_weights(target.weight, x)
    return total_cost(t if c is None else weigh(c, t), target.penalty, (x - top) - log_sum)


def _index_loss(x: Tensor, target: Target, top: Tensor, log_sum: Tensor) -> Tensor:
    ignored, y, row_weight = target.labels(x)
    loss = cost(target.penalty, (x.gather(1, y) - top) - log_sum)
    if target.weight is not None:
        loss = times(row_weight, loss)
    smoothing = target.settings.label_smoothing
    if smoothing > 0:
        log_p, share, c = (x - top) - log_sum, uniform_share(target, x), class_weights(target.weight, x)
        if isinstance(share, Tensor):
            uniform = total_cost(share if c is None else weigh(share, c), target.penalty, log_p)
        elif c is None:
            uniform = share * class_sum(cost(target.penalty, log_p))
        else:
            uniform = share * total_cost(c, target.penalty, log_p)
        loss = smoothing * uniform + (0.0 if smoothing == 1 else (1 - smoothing) * loss)  # 0 times inf would be nan
    return loss.masked_fill(ignored, 0.0)


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: Tensor | None,
    needs: tuple[bool, ...] = (True, False, False, False),
    divisor: float | Tensor = 1.0,
    inplace: bool = False,
    elsewhere: Tensor | None = None,
) -> Gradients:
    """Compute the gradients for logits, target, class weights and logit bias from that of the loss, a number or one a row.

    ``divisor`` is what a mean was divided by, ``elsewhere`` the mass of each row on other shards of the classes. With
    ``lse=None`` it is computed here, and the result is then a differentiable function of every tensor given. ``inplace`` would
    save nothing here, where other tensors as large are formed.
    """
    g = over(grad, divisor) if grad.dim() == 0 else grad.unsqueeze(1)
    return gradients(RowGradient(g), logits, target, lse, needs, None if elsewhere is None else elsewhere.unsqueeze(1))


class RowGradient(NamedTuple):
    """The gradient of a row's loss and, where they are wanted, of its other statistics, as ``(N, 1, d1, ...)``."""

    loss: Tensor
    lse: Tensor | None = None
    target_log_prob: Tensor | None = None
    entropy: Tensor | None = None


def gradients(
    row: RowGradient,
    logits: Tensor,
    target: Target,
    lse: Tensor | None,
    needs: tuple[bool, ...],
    elsewhere: Tensor | None = None,
) -> Gradients:
    """Compute the gradients for logits, target, class weights and logit bias from those of the rows.

    ``elsewhere`` is the mass of the loss on other shards of the classes, as ``(N, 1, d1, ...)``.
    """
    x = logits.to(compute_dtype(logits, target.values))
    on_logits, on_target, on_weight, on_bias = needs = (*needs, False)[:4]
    if x.numel() == 0:
        return _of_nothing(row, (logits, target.values, target.weight, target.logit_bias), needs)
    settings = target.settings
    target = _without_garbage(target, _unasked(row, row.loss == 0))
    no_weight = _weightless_rows(x, target, elsewhere)
    unseen = _unseen_rows(row, x, no_weight, lse)
    x, lse = x.masked_fill(unseen, 0.0), None if lse is None else lse.masked_fill(unseen.squeeze(1), 0.0)
    slope: Tensor | float = 1.0
    dead = None
    if not target.plain or row.lse is not None:
        x, slope, dead = transform(x, target)
    elif target.indices and lse is None:
        x = x.masked_fill(target.labels(x)[0], 0.0)  # or the nan of an ignored row would reach the second derivative
    top, log_sum = row_lse(x) if lse is None else lse.unsqueeze(2)
    log_p = (x - top) - log_sum
    at_x = grad_logits = grad_target = grad_weight = grad_bias = None
    if on_logits or on_bias or (on_target and settings.margin):
        at_x = _at_transformed(row, log_p, target, top + log_sum, no_weight, elsewhere)
        at_x = at_x if dead is None else at_x.masked_fill(dead, 0.0)
        if on_logits:
            grad_logits = (at_x if target.plain else at_x * slope).to(logits.dtype)
        if on_bias and target.logit_bias is not None:
            grad_bias = at_x / settings.temperature
            grad_bias = sum_over_rows(grad_bias) if target.logit_bias.dim() == 1 else grad_bias
            grad_bias = grad_bias.to(target.logit_bias.dtype)
    costs = weighted_cost if lse is None else lambda weight, *f: times(weight, cost(*f))
    if on_target and not target.indices:
        grad_target = _at_probabilities(row, log_p, target, at_x, unseen, costs).to(target.values.dtype)
    if on_weight and target.weight is not None:
        terms = costs(weigh(row.loss, smoothed_target(target, x)), target.penalty, log_p)
        grad_weight = sum_over_rows(terms).to(target.weight.dtype)
    return Gradients(grad_logits, grad_target, grad_weight, grad_bias)


def _of_nothing(row: RowGradient, wanted: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> Gradients:
    """Return the gradients of no logits, which are 0.

    They depend on the incoming gradient and on what they belong to, though all of it is empty: where other processes have rows,
    a second backward must come here too.
    """
    on = (row.loss, *(t for t, need in zip(wanted, needs, strict=True) if need and t is not None))
    nothing = torch.cat([t.flatten()[:0].to(row.loss.dtype) for t in on]).sum()
    zeros = (
        torch.zeros_like(t) + nothing.to(t.dtype) if need and t is not None else None
        for t, need in zip(wanted, needs, strict=True)
    )
    return Gradients(*zeros)


def _at_transformed(
    row: RowGradient,
    log_p: Tensor,
    target: Target,
    lse: Tensor,
    no_weight: Tensor | None,
    elsewhere: Tensor | None,
) -> Tensor:
    """Compute the gradient for x'; that of the loss of a row without any weight is 0, whatever comes."""
    z_loss, whole = target.settings.z_loss, row.lse is not None
    g, of_z = row.loss, lse if z_loss else None
    if no_weight is not None:
        nothing = no_weight & (target.row_weights(log_p) == 0) if z_loss else no_weight
        g = g.masked_fill(nothing & ~g.isfinite(), 0.0)
    of_loss = _without_garbage(target, row.loss == 0) if whole else target
    if target.indices and (target.plain or target.settings.label_smoothing == 0) and not target.is_shard:
        at_x = _index_gradient(g, log_p, of_loss, of_z)
    else:
        at_x = _soft_gradient(g, log_p, of_loss, of_z, elsewhere)
    return at_x + _statistics_gradient(row, log_p, target) if whole else at_x


def _at_probabilities(
    row: RowGradient,
    log_p: Tensor,
    target: Target,
    at_x: Tensor | None,
    unseen: Tensor,
    costs: Callable[..., Tensor],
) -> Tensor:
    """Compute the gradient for a probability target; ``at_x`` is that for x', of which a margin takes a part."""
    settings, c = target.settings, class_weights(target.weight, log_p)
    by = (1 - settings.label_smoothing) * row.loss
    by = by if c is None else weigh(by, c)
    gradient = costs(by, target.penalty, log_p)
    if row.target_log_prob is not None:
        gradient = gradient - costs(row.target_log_prob, None, log_p)
    if at_x is not None and settings.margin:
        gradient = gradient - (settings.margin / settings.temperature) * at_x
    gradient = gradient.masked_fill(unseen & (by != 0), torch.nan)  # a larger t would need a softmax
    return gradient if target.valid is None else gradient.masked_fill(~target.valid.unsqueeze(1), 0.0)


def _weightless_rows(x: Tensor, target: Target, elsewhere: Tensor | None) -> Tensor | None:
    """Mark the rows, as ``(N, 1, d1, ...)``, in which no class has a weight; None where smoothing gives each row some."""
    c, smoothing = class_weights(target.weight, x), target.settings.label_smoothing
    if smoothing != 0 and c is None:
        return None
    no_weight = (_weights(target, x) == 0).all(1, keepdim=True)
    if smoothing != 0 and c is not None:
        no_weight = no_weight & (weigh(c, uniform_share(target, x) * torch.ones_like(x)) == 0).all(1, keepdim=True)
    return no_weight if elsewhere is None else no_weight & (elsewhere == 0)


def _unseen_rows(row: RowGradient, x: Tensor, no_weight: Tensor | None, lse: Tensor | None) -> Tensor:
    """Mark the rows, as ``(N, 1, d1, ...)``, that weigh nothing and have no softmax: whose logits may as well be 0.

    A row that weighs nothing and has a softmax stays: its gradient is 0, and the derivative of that by the weight is not.
    """
    weightless = row.loss == 0
    if no_weight is not None:
        weightless = weightless | no_weight
    level = x.detach().amax(1, keepdim=True) if lse is None else lse.sum(0).unsqueeze(1)
    return (_unasked(row, weightless) & ~level.isfinite()).expand_as(level)


def _without_garbage(target: Target, rows: Tensor) -> Target:
    """Put 0 in the place of what is not finite in some rows of a probability target, of which nothing is asked."""
    if target.indices:
        return target
    return target._replace(values=target.values.masked_fill(rows & ~target.values.isfinite(), 0.0))


def _unasked(row: RowGradient, weightless: Tensor) -> Tensor:
    """Mark the rows of which nothing is asked: not their loss, which is weightless, and no other statistic."""
    for g in row[1:]:
        weightless = weightless if g is None else weightless & (g == 0)
    return weightless


def _weights(target: Target, x: Tensor) -> Tensor:
    """Compute ``c ∘ t`` without smoothing, of class indices only where it is not 0."""
    if target.indices:
        return target.labels(x)[2]
    c = class_weights(target.weight, x)
    return target.values if c is None else weigh(c, target.values)


def sum_over_rows(x: Tensor) -> Tensor:
    """Sum ``(N, C, d1, ...)`` to ``(C)``."""
    return x.transpose(0, 1).reshape(x.shape[1], -1).sum(1)


def _statistics_gradient(row: RowGradient, log_p: Tensor, target: Target) -> Tensor:
    """Compute ``∂lse/∂x = p``, ``∂ Σ t log p/∂x = t - mass·p`` and ``∂H/∂x = -p (log p + H)``, each times its gradient."""
    assert row.lse is not None
    assert row.target_log_prob is not None
    assert row.entropy is not None
    bare = Target(target.values, valid=target.valid, settings=Settings(target.settings.ignore_index))
    bare = _without_garbage(bare, row.target_log_prob == 0)
    by_log_prob = (_index_gradient if target.indices else _soft_gradient)(-row.target_log_prob, log_p, bare, None)
    p, finite = log_p.exp(), log_p.masked_fill(log_p == -torch.inf, 0.0)
    return by_log_prob + p * (row.lse - row.entropy * (finite + row_entropy(log_p).unsqueeze(1)))


def _soft_gradient(
    g: Tensor, log_p: Tensor, target: Target, lse: Tensor | None, elsewhere: Tensor | None = None
) -> Tensor:
    """Compute ``g (mass·p - w∘t)``, where some of the mass may lie elsewhere.

    A class with more than half of the probability may have it next to 1; its entry is ``rest·p - w t (1 - p)``, where the rest
    of the mass is summed and not subtracted.
    """
    penalty = target.penalty
    pull, c = smoothed_target(target, log_p), class_weights(target.weight, log_p)
    if c is not None:
        pull = weigh(c, pull)
    if penalty is not None:
        pull = pull * penalty.s(log_p)
    near_one = log_p > -log(2)
    mass, rest = class_sum(pull), class_sum(pull.masked_fill(near_one, 0.0))
    if lse is not None:
        extra = times(target.row_weights(log_p), 2 * target.settings.z_loss * lse)
        mass, rest = mass + extra, rest + extra
    if elsewhere is not None:
        mass, rest = mass + elsewhere, rest + elsewhere
    p = log_p.exp()
    return g * torch.where(near_one, rest * p + pull * log_p.expm1(), times(mass, p) - pull)


def _index_gradient(g: Tensor, log_p: Tensor, target: Target, lse: Tensor | None) -> Tensor:
    """Compute ``g (mass·p - w∘t)``, with the true class's entry formed from ``p - 1 = expm1(log p)``."""
    ignored, y, row_weight = target.labels(log_p)
    log_p = log_p.masked_fill(ignored, 0.0)
    true_class, at_y = is_class(y, log_p), log_p.gather(1, y)
    if target.settings.label_smoothing == 0:
        g = weigh(g, row_weight)
        mass = g if target.penalty is None else g * target.penalty.s(at_y)
        at_y_gradient = mass * at_y.expm1()
        if lse is not None:
            extra = g * (2 * target.settings.z_loss * lse).masked_fill(ignored, 0.0)
            mass, at_y_gradient = mass + extra, at_y_gradient + extra * at_y.exp()
        return torch.where(true_class, at_y_gradient, log_p.exp() * mass)
    g = g.expand_as(at_y).masked_fill(ignored, 0.0)
    share = target.settings.label_smoothing / log_p.shape[1]
    c = class_weights(target.weight, log_p)
    total = float(log_p.shape[1]) if c is None else c.sum()
    mass = (1 - target.settings.label_smoothing) * row_weight + share * total
    gradient = g * (log_p.exp() * mass - (share if c is None else share * c))
    at_y_gradient = g * (mass * at_y.expm1() + share * (total - row_weight))
    return torch.where(true_class, at_y_gradient, gradient)
