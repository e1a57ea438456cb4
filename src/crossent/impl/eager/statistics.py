"""What else the logits tell, in torch operations: log-probabilities, entropy, correctness, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.reduction import compute_dtype
from crossent.core.target import Target
from crossent.impl.eager.pieces import class_sum, log_softmax, row_entropy, times, transform
from crossent.impl.eager.softmax import RowGradient, gradients, row_losses, transformed
from crossent.impl.protocol import Gradients, RowStatistics


def statistics(logits: Tensor, target: Target) -> RowStatistics:
    """Compute the statistics of each row; 0 for rows that are ignored."""
    x = transformed(logits, target)
    loss, row_weight, lse = row_losses(x, target)
    if x.numel() == 0:
        return RowStatistics(loss, loss, loss, loss, row_weight, loss)
    top, log_sum = lse.unsqueeze(2)
    log_p = (x - top) - log_sum
    if target.indices:
        log_prob = log_p.gather(1, target.labels(x)[1])
    else:
        log_prob = -class_sum(times(target.values.to(x.dtype), -log_p))
    each = [(top + log_sum).squeeze(1), log_prob.squeeze(1), row_entropy(log_p)]
    ignored = target.ignored_rows()
    if ignored is not None:
        each = [rows.masked_fill(ignored.squeeze(1), 0.0) for rows in each]
    return RowStatistics._make((loss, *each, row_weight, _correct_rows(x, target)))


def statistics_backward(
    grads: tuple[Tensor, ...], logits: Tensor, target: Target, needs: tuple[bool, ...]
) -> Gradients:
    """Compute the gradients for logits, target, class weights and bias from those of the four statistics that have some."""
    return gradients(RowGradient(*(grad.unsqueeze(1) for grad in grads)), logits, target, None, needs)


def _correct_rows(x: Tensor, target: Target) -> Tensor:
    """Tell whether the first largest of the transformed logits is that of the target's class, as 0 or 1; 0 where ignored."""
    top, at = x.max(1, keepdim=True)
    if target.indices:
        hit = at == target.labels(x)[1]
    else:
        largest, where = target.values.max(1, keepdim=True)
        hit = (at == where) & (largest > 0)
    hit = hit & top.isfinite()
    ignored = target.ignored_rows()
    return (hit if ignored is None else hit & ~ignored).to(x.dtype).squeeze(1)


def correct_logits(logits: Tensor, target: Target) -> Tensor:
    """Tell whether rows of logits that are not transformed yet are correct."""
    x = logits.detach().to(compute_dtype(logits, target.values))
    return _correct_rows(transform(x, target).x, target) if x.numel() else x.sum(1)


def distribution(logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Compute the probabilities of logits as a loss with this target sees them, and each row's entropy, 0 where it is ignored."""
    x = transform(logits.to(compute_dtype(logits)), target).x
    log_q = log_softmax(x) if x.numel() else x
    q, entropy = log_q.exp(), row_entropy(log_q)
    q = q.masked_fill(log_q == -torch.inf, 0.0)  # what has no probability has no gradient either
    ignored = target.ignored_rows()
    return q, entropy if ignored is None else entropy.masked_fill(ignored.squeeze(1), 0.0)
