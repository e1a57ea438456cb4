"""The short way of plain calls, some of which are so small that most of their time is Python's.

An implementation that has it looks at the arguments once, just as the caller gave them, and computes the loss and its gradient
in the same step; or it returns None, and they have to be checked in Python.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from crossent.impl import with_short_way
from crossent.impl.protocol import Implementation
from crossent.ops.binary import FusedBinaryCrossEntropy, UnreducedBinaryCrossEntropy
from crossent.ops.binary import described as described_binary
from crossent.ops.fused import expected
from crossent.ops.lean import Call, as_logits, kept_as_they_are, quiet
from crossent.ops.softmax import FusedCrossEntropy, UnreducedCrossEntropy, described

_Given = tuple[Tensor, Tensor | None, int, float]  # target, weight, ignore_index and label_smoothing

_IMPLEMENTATION = with_short_way()
_PLAIN = (Tensor, Parameter)
_grad_enabled = torch.is_grad_enabled


def quick_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: str
) -> Tensor | None:
    """Compute the loss if an implementation takes the arguments just as they came, with nothing to check."""
    if _IMPLEMENTATION is None or type(logits) not in _PLAIN or not quiet():
        return None
    try:
        if reduction == "none":
            return _rows(_IMPLEMENTATION, logits, (target, weight, ignore_index, label_smoothing))
        if reduction in ("mean", "sum"):
            return _sum(_IMPLEMENTATION, logits, (target, weight, ignore_index, label_smoothing), reduction == "mean")
    except RuntimeError:
        described(target, weight, ignore_index, label_smoothing).raise_if_out_of_range(logits.shape[1])
        raise
    return None


def _rows(implementation: Implementation, logits: Tensor, given: _Given) -> Tensor | None:
    formed = implementation.quick_rows(logits, *given)
    if formed is None or not (logits.requires_grad and _grad_enabled()):
        return None if formed is None else as_logits(formed[0], logits)
    return UnreducedCrossEntropy.of(logits, formed, given, Call(False, implementation))


def _sum(implementation: Implementation, logits: Tensor, given: _Given, mean: bool) -> Tensor | None:
    if not (logits.requires_grad and _grad_enabled()):
        formed = implementation.quick_sum(logits, *given, mean, None)
        return None if formed is None else formed[0]
    if not kept_as_they_are():
        return None
    factor = expected(logits.dtype)
    formed = implementation.quick_sum(logits, *given, mean, factor)
    if formed is None:
        return None
    call = Call(mean, implementation)
    loss: Tensor = FusedCrossEntropy.run(logits, formed, described(*given), call, "beside", factor)
    return loss


def quick_binary_cross_entropy(logits: Tensor, target: Tensor, reduction: str) -> Tensor | None:
    """Compute binary losses without weights in the same way."""
    if _IMPLEMENTATION is None or type(logits) not in _PLAIN or not quiet():
        return None
    if reduction == "none":
        return _elements(_IMPLEMENTATION, logits, target)
    return _binary_sum(_IMPLEMENTATION, logits, target, reduction == "mean") if reduction in ("mean", "sum") else None


def _elements(implementation: Implementation, logits: Tensor, target: Tensor) -> Tensor | None:
    losses = implementation.quick_binary_elements(logits, target)
    if losses is None or not (logits.requires_grad and _grad_enabled()):
        return losses
    return UnreducedBinaryCrossEntropy.of(logits, (losses, None), (target,), Call(1.0, implementation))


def _binary_sum(implementation: Implementation, logits: Tensor, target: Tensor, mean: bool) -> Tensor | None:
    if not (logits.requires_grad and _grad_enabled()):
        formed = implementation.quick_binary_sum(logits, target, mean, None)
        return None if formed is None else formed[0]
    if not kept_as_they_are():
        return None
    factor = expected(logits.dtype)
    formed = implementation.quick_binary_sum(logits, target, mean, factor)
    if formed is None:
        return None
    call = Call(formed[1], implementation)
    loss: Tensor = FusedBinaryCrossEntropy.run(logits, formed, described_binary(target), call, "beside", factor)
    return loss
