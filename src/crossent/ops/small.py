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
from crossent.impl.protocol import Implementation
from crossent.ops import binary, softmax
from crossent.ops.lean import Call, kept_as_they_are, quiet

_IMPLEMENTATION = with_short_way()


def quick_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: str
) -> Tensor | None:
    """Compute the loss if an implementation takes the arguments just as they came, with nothing to check."""
    if _IMPLEMENTATION is None or reduction not in ("mean", "sum", "none") or not quiet():
        return None
    if not _IMPLEMENTATION.takes_as_they_are(logits, target, weight, ignore_index):
        return None
    usual = ignore_index == -100 and label_smoothing == 0.0
    settings = PLAIN if usual else Settings(ignore_index, label_smoothing)
    described = Target(target, weight, None, None, None, settings)
    try:
        return _cross_entropy(logits, described, reduction, _IMPLEMENTATION)
    except RuntimeError:
        described.raise_if_out_of_range(logits.shape[1])
        raise


def _cross_entropy(logits: Tensor, target: Target, reduction: str, implementation: Implementation) -> Tensor | None:
    mean, dtype, loss = reduction == "mean", logits.dtype, None
    wants_gradient = logits.requires_grad and torch.is_grad_enabled()
    if reduction == "none":
        if wants_gradient:
            loss = softmax.apply_unreduced(logits, target, Call(False, implementation), dtype)
        else:
            loss = implementation.losses_of_rows(logits, target)[0].to(dtype)
    elif not wants_gradient:
        loss = implementation.cross_entropy_sum(logits, target, mean, dtype, None).loss
    elif kept_as_they_are():
        loss = softmax.apply_fused(logits, target, Call(mean, implementation), dtype, "beside")[0]
    return loss


def quick_binary_cross_entropy(logits: Tensor, target: Tensor, reduction: str) -> Tensor | None:
    """Compute binary losses without weights in the same way."""
    implementation = _IMPLEMENTATION
    if implementation is None or reduction not in ("mean", "sum", "none") or not quiet():
        return None
    if not implementation.takes_binary_as_they_are(logits, target):
        return None
    described, dtype, loss = BinaryTarget(target, None, None, None, PLAIN_BINARY), logits.dtype, None
    divisor = float(logits.numel()) if reduction == "mean" else 1.0
    wants_gradient = logits.requires_grad and torch.is_grad_enabled()
    if reduction == "none":
        if wants_gradient:
            loss = binary.apply_unreduced(logits, described, Call(1.0, implementation), dtype)
        else:
            loss = implementation.binary_cross_entropy_forward(logits, described, False).to(dtype)
    elif not wants_gradient:
        loss = implementation.binary_cross_entropy_sum(logits, described, divisor, dtype, None).loss
    elif kept_as_they_are():
        loss = binary.apply_fused(logits, described, Call(divisor, implementation), dtype, "beside")[0]
    return loss
