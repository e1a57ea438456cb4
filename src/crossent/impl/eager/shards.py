"""What a shard of the classes tells of each row, in differentiable torch operations."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.core.reduction import compute_dtype, times, weigh
from crossent.core.settings import PLAIN
from crossent.core.target import Target
from crossent.impl.eager.pieces import class_sum, class_weights, row_entropy, smoothed_target, total_cost
from crossent.impl.eager.softmax import transformed
from crossent.impl.eager.statistics import first_largest
from crossent.impl.protocol import Costs, Partials


def partials(logits: Tensor, target: Target) -> Partials:
    """Compute each row's ``lse_s``, ``Σ w (lse_s - x)`` and ``Σ w``, without penalty and z-loss; see the protocol."""
    x = transformed(logits, target)
    if x.shape[1] == 0:
        nothing = _nothing(x, target)
        return Partials(torch.stack([nothing - torch.inf, nothing]), nothing, nothing)
    w = _weights(logits, target)
    top, at = x.max(1, keepdim=True)
    level = top.masked_fill(top == -torch.inf, 0.0)  # a shard may have no class that is possible
    others = class_sum((x - level).scatter(1, at, -torch.inf).exp())
    log_sum = others.log1p() + (level - level)
    loss = total_cost(w, None, (x - level) - log_sum)
    return Partials(torch.cat([top, log_sum], 1).movedim(1, 0), loss.squeeze(1), class_sum(w).squeeze(1))


def partial_costs(logits: Tensor, target: Target, lse: Tensor) -> Costs:
    """Compute ``Σ w f(p)`` and ``Σ w s(p)`` of each row from the lse of all shards."""
    x, penalty = transformed(logits, target), target.penalty
    if x.shape[1] == 0:  # zeros that depend on lse as other shards do, so that backward makes the same calls everywhere
        nothing = times(x.sum(1), lse.sum(0))
        return Costs(nothing, nothing)
    w = _weights(logits, target)
    top, log_sum = lse.unsqueeze(2)
    log_p = (x - top) - log_sum
    pull = w if penalty is None else w * penalty.s(log_p)
    return Costs(total_cost(w, penalty, log_p).squeeze(1), class_sum(pull).squeeze(1))


class PartialStatistics(NamedTuple):
    """What a shard of the classes tells of each row beside its :class:`Partials`; ``t`` is the target before smoothing.

    ``cost`` is ``Σ t (lse_s - x)`` and ``mass`` is ``Σ t``; ``entropy`` is that among the shard's own classes; ``predicted`` is
    the first of its largest logits, ``most`` its largest ``t`` and ``wanted`` the first class that has it.
    """

    cost: Tensor
    mass: Tensor
    entropy: Tensor
    predicted: Tensor
    most: Tensor
    wanted: Tensor


def partial_statistics(logits: Tensor, target: Target, hard: Target, partials: Partials) -> PartialStatistics:
    """Compute what else the classes of a shard tell, from what ``partials`` told; ``hard`` is the target before smoothing."""
    x = transformed(logits, target)
    if x.shape[1] == 0:
        zero = x.sum(1)
        return PartialStatistics(zero, zero, zero, zero.long(), zero, zero.long())
    top, log_sum = partials.lse.unsqueeze(2)
    log_p = (x - top.masked_fill(top == -torch.inf, 0.0)) - log_sum
    bare = Target(hard.values, valid=hard.valid, settings=replace(PLAIN, ignore_index=hard.settings.ignore_index))
    t = smoothed_target(bare, x)
    most, wanted = t.detach().max(1)
    cost, mass = total_cost(t, None, log_p).squeeze(1), class_sum(t).squeeze(1)
    return PartialStatistics(cost, mass, row_entropy(log_p), first_largest(x.detach())[1].squeeze(1), most, wanted)


def _nothing(x: Tensor, target: Target) -> Tensor:
    """Return the zeros of a shard without classes; they depend on all that is differentiated, so that backward comes here."""
    differentiable = (None if target.indices else target.values, target.weight, target.logit_bias)
    total: Tensor = sum((t.sum().to(x.dtype) for t in differentiable if t is not None), x.sum(1))
    return total


def _weights(logits: Tensor, target: Target) -> Tensor:
    """Write out ``c ∘ t``, smoothed, in the shape of the logits; it is 0 in rows that do not count."""
    x = logits.to(compute_dtype(logits, target.values))
    t, c = smoothed_target(target, x), class_weights(target.weight, x)
    return t if c is None else weigh(c, t)
