"""The short way of plain calls, of which some are so small that Python is what takes time.

An implementation that has it looks at the arguments once, just as the caller gave them, and says whether they fit together, so
that nothing needs to be checked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.core.settings import PLAIN, PLAIN_BINARY, Settings
from crossent.core.target import BinaryTarget, Target
from crossent.impl import with_short_way
from crossent.ops.binary import FusedBinaryCrossEntropy, UnreducedBinaryCrossEntropy
from crossent.ops.fused import Fused
from crossent.ops.lean import Call, Unreduced, kept_as_they_are, quiet
from crossent.ops.softmax import FusedCrossEntropy, UnreducedCrossEntropy

_IMPLEMENTATION = with_short_way()


def quick_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: str
) -> Tensor | None:
    """Compute the loss if an implementation takes the arguments just as they came, with nothing to check."""
    implementation = _IMPLEMENTATION
    if implementation is None or not quiet():
        return None
    if not implementation.takes_as_they_are(logits, target, weight, ignore_index):
        return None
    usual = ignore_index == -100 and label_smoothing == 0.0
    settings = PLAIN if usual else Settings(ignore_index, label_smoothing)
    described, call = Target(target, weight, None, None, None, settings), Call(reduction == "mean", implementation)
    try:
        return _run(FusedCrossEntropy, UnreducedCrossEntropy, logits, described, call, reduction)
    except RuntimeError:
        described.raise_if_out_of_range(logits.shape[1])
        raise


def quick_binary_cross_entropy(logits: Tensor, target: Tensor, reduction: str) -> Tensor | None:
    """Compute binary losses without weights in the same way."""
    implementation = _IMPLEMENTATION
    if implementation is None or not quiet() or not implementation.takes_binary_as_they_are(logits, target):
        return None
    described = BinaryTarget(target, None, None, None, PLAIN_BINARY)
    call = Call(float(logits.numel()) if reduction == "mean" else 1.0, implementation)
    return _run(FusedBinaryCrossEntropy, UnreducedBinaryCrossEntropy, logits, described, call, reduction)


def _run(
    fused: type[Fused], unreduced: type[Unreduced], logits: Tensor, target: Any, call: Call, reduction: str
) -> Tensor | None:
    """Compute the loss, with autograd where it is wanted; None for what the short way does not know."""
    dtype, loss = logits.dtype, None
    wants_gradient = logits.requires_grad and torch.is_grad_enabled()
    if reduction == "none":
        loss = (
            unreduced.run(logits, target, call, dtype) if wants_gradient else unreduced.losses(logits, target, call)[0]
        )
        loss = loss if loss.dtype == dtype else loss.to(dtype)
    elif reduction in ("mean", "sum"):
        if not wants_gradient:
            loss = fused.compute(logits, target, call, dtype, None, False).loss
        elif kept_as_they_are():
            loss = fused.run(logits, target, call, dtype, "beside")[0]
    return loss
