"""What else the logits tell, in torch operations: log-probabilities, entropy, correctness, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.reduction import compute_dtype, times
from crossent.core.target import Target
from crossent.impl.eager.pieces import class_sum, log_softmax, row_entropy, transform
from crossent.impl.eager.softmax import RowGradient, gradients, row_losses, transformed
from crossent.impl.protocol import NO_CLASS, Gradients, RowStatistics

_RUN = 64  # numbers of a row, of which amax finds the largest


def statistics(logits: Tensor, target: Target) -> RowStatistics:
    """Compute the statistics of each row; 0 and no class for rows that are ignored."""
    x = transformed(logits, target)
    loss, row_weight, lse = row_losses(x, target)
    if x.numel() == 0:
        nothing = torch.full_like(loss, NO_CLASS, dtype=torch.int64)
        return RowStatistics(loss, loss, loss, loss, row_weight, loss, nothing)
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
    predicted = _predicted_rows(x.detach(), target)
    return RowStatistics._make((loss, *each, row_weight, _correct(predicted, target).to(x.dtype), predicted))


def statistics_backward(
    grads: tuple[Tensor, ...], logits: Tensor, target: Target, needs: tuple[bool, ...]
) -> Gradients:
    """Compute the gradients for logits, target, class weights and bias from those of the four statistics that have some."""
    return gradients(RowGradient(*(grad.unsqueeze(1) for grad in grads)), logits, target, None, needs)


def _predicted_rows(x: Tensor, target: Target) -> Tensor:
    """Find the first largest of each row's transformed logits; no class where there is no softmax, or the row is ignored."""
    top, at = first_largest(x)
    none, ignored = ~top.isfinite(), target.ignored_rows()
    return at.masked_fill(none if ignored is None else none | ignored, NO_CLASS).squeeze(1)


def first_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest number over the class axis, kept, and where it is first.

    Where torch returns a place too, it compares number by number. ``amax`` compares several at a time. So in long rows it finds
    the largest of each run, and only the first run that has the largest of all is searched.
    """
    classes = x.shape[1]
    if torch.compiler.is_compiling() or x.dim() != 2 or classes < 16 * _RUN or x.stride(1) != 1:
        return x.max(1, keepdim=True)
    runs = x[:, : classes - classes % _RUN].unflatten(1, (-1, _RUN))
    highest, run = runs.amax(2).max(1, keepdim=True)
    at = run * _RUN + runs.take_along_dim(run.unsqueeze(2), 1).squeeze(1).max(1, keepdim=True).indices
    if classes % _RUN == 0:
        return highest, at
    top, behind = x[:, classes - classes % _RUN :].max(1, keepdim=True)
    higher = (top > highest) | top.isnan()
    return torch.where(higher, top, highest), torch.where(higher, behind + (classes - classes % _RUN), at)


def _correct(predicted: Tensor, target: Target) -> Tensor:
    """Tell whether what is predicted is the target's class; for probabilities, where the first largest is, if it is positive."""
    if target.indices or target.values.numel() == 0:
        hit = predicted == (target.values if target.indices else NO_CLASS)
    else:
        largest, at = target.values.max(1)
        hit = (predicted == at) & (largest > 0)
    return hit & (predicted != NO_CLASS)


def distribution(logits: Tensor, target: Target) -> Tensor:
    """Compute the probabilities of logits as a loss with this target sees them."""
    x = transform(logits.to(compute_dtype(logits)), target).x
    log_q = log_softmax(x) if x.numel() else x
    return log_q.exp().masked_fill(log_q == -torch.inf, 0.0)  # what has no probability has no gradient either
