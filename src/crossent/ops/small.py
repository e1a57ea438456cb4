"""The short way of plain calls, of which some are so small that Python is what takes time.

An implementation that has it looks at the arguments once, just as the caller gave them, and says whether they fit together, so
that nothing needs to be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.settings import PLAIN, PLAIN_BINARY, Settings
from crossent.core.target import BinaryTarget, Target
from crossent.impl import with_short_way
from crossent.ops.binary import apply_fused as apply_binary
from crossent.ops.fused import Call, kept_as_they_are, quiet
from crossent.ops.softmax import CrossEntropy, apply_fused

_IMPLEMENTATION = with_short_way()


def quick_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: str
) -> Tensor | None:
    """Compute the loss if an implementation takes the arguments just as they came, with nothing to check."""
    if _IMPLEMENTATION is None or not quiet():
        return None
    if not _IMPLEMENTATION.takes_as_they_are(logits, target, weight, ignore_index):
        return None
    usual = ignore_index == -100 and label_smoothing == 0.0
    settings = PLAIN if usual else Settings(ignore_index, label_smoothing)
    mean, wants_gradient = reduction == "mean", logits.requires_grad and torch.is_grad_enabled()
    try:
        if not mean and reduction != "sum":
            return _of_rows(logits, target, weight, settings) if reduction == "none" else None
        if not wants_gradient:
            described = Target(target, weight, None, None, None, settings)
            return _IMPLEMENTATION.cross_entropy_sum(logits, described, mean, logits.dtype, None).loss
        if not kept_as_they_are():
            return None
        tensors, call = (target, weight, None, None, None), Call(settings, mean, _IMPLEMENTATION)
        loss: Tensor = apply_fused(logits, tensors, call, logits.dtype, "beside")[0]
        return loss
    except RuntimeError:
        Target(target, settings=settings).raise_if_out_of_range(logits.shape[1])
        raise


def _of_rows(logits: Tensor, target: Tensor, weight: Tensor | None, settings: Settings) -> Tensor:
    assert _IMPLEMENTATION is not None
    if target.dtype != torch.int64 and not target.is_floating_point():
        target = target.long()
    name = _IMPLEMENTATION.name
    loss: Tensor = CrossEntropy.apply(logits, target, weight, None, None, None, settings, "none", name, False)[0]
    return loss if loss.dtype == logits.dtype else loss.to(logits.dtype)


def quick_binary_cross_entropy(logits: Tensor, target: Tensor, mean: bool) -> Tensor | None:
    """Compute the sum or mean of binary losses without weights in the same way."""
    if _IMPLEMENTATION is None or not quiet() or not _IMPLEMENTATION.takes_binary_as_they_are(logits, target):
        return None
    divisor = float(logits.numel()) if mean else 1.0
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _IMPLEMENTATION.binary_cross_entropy_sum(logits, BinaryTarget(target), divisor, logits.dtype, None).loss
    if not kept_as_they_are():
        return None
    call = Call(PLAIN_BINARY, divisor, _IMPLEMENTATION)
    loss: Tensor = apply_binary(logits, (target, None, None, None), call, logits.dtype, "beside")[0]
    return loss
