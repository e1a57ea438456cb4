"""The family in torch operations: any device, dtype, layout and transform, differentiable by autograd to any order.

``softmax`` and ``binary`` hold losses and gradients, ``blocks`` the same a block of rows at a time, ``statistics`` what else
the logits tell, ``tangents`` forward mode, ``pieces`` what they are made of. All arithmetic is in float32 or wider. Nothing
here knows autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.target import BinaryTarget, Target
from crossent.impl.eager import binary, blocks, softmax
from crossent.impl.eager.binary import binary_cross_entropy_tangent
from crossent.impl.eager.statistics import (
    correct_classes,
    correct_logits,
    distribution,
    predicted_logits,
    statistics,
    statistics_backward,
)
from crossent.impl.eager.tangents import cross_entropy_tangent, statistics_tangent
from crossent.impl.protocol import Forward, Gradients, Implementation, Sum

__all__ = [
    "IMPLEMENTATION",
    "Eager",
    "binary_cross_entropy_tangent",
    "correct_classes",
    "correct_logits",
    "cross_entropy_tangent",
    "distribution",
    "predicted_logits",
    "statistics",
    "statistics_backward",
    "statistics_tangent",
]


class Eager(Implementation):
    """Torch operations. It takes everything; with ``lse=None`` its backward passes are differentiable functions themselves."""

    name = "eager"
    workspace = 1
    statistics = staticmethod(statistics)

    def fuses(self, logits: Tensor) -> bool:
        """Only on the CPU, where the gradient that comes can be looked at."""
        return logits.is_cpu

    def cross_entropy_forward(self, logits: Tensor, target: Target, reduction: str) -> Forward:
        """Compute the losses, in blocks where nobody differentiates what is done."""
        if logits.numel() == 0 or not blocks.takes(logits, *target.tensors):
            return softmax.cross_entropy_forward(logits, target, reduction)
        return blocks.cross_entropy_forward(logits, target, reduction)

    def cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Target,
        lse: Tensor | None,
        needs: tuple[bool, ...] = (True, False, False, False),
        divisor: float | Tensor = 1.0,
        inplace: bool = False,
    ) -> Gradients:
        """Compute the gradients; with ``lse=None`` by a function that can be differentiated."""
        whole = lse is None or needs[2:] != (False, False) or logits.numel() == 0
        if lse is None or whole or not blocks.takes(grad, logits, *target.tensors):
            return softmax.cross_entropy_backward(grad, logits, target, lse, needs, divisor)
        return blocks.cross_entropy_backward(grad, logits, target, lse, needs, divisor, inplace)

    def cross_entropy_sum(
        self,
        logits: Tensor,
        target: Target,
        mean: bool,
        dtype: torch.dtype | None,
        factor: float | None,
        inplace: bool = False,
    ) -> Sum:
        """Compute a sum or mean and its gradient, block by block."""
        return blocks.cross_entropy_sum(logits, target, mean, dtype, factor, inplace)

    def binary_cross_entropy_forward(
        self, logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0
    ) -> Tensor:
        """Compute the losses, in blocks where nobody differentiates what is done."""
        if not blocks.takes(logits, *target.tensors):
            return binary.binary_cross_entropy_forward(logits, target, reduce, divisor)
        return blocks.binary_cross_entropy_forward(logits, target, reduce, divisor)

    def binary_cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        target: BinaryTarget,
        needs: tuple[bool, bool] = (True, False),
        divisor: float = 1.0,
        inplace: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the gradients."""
        if not blocks.takes(grad, logits, *target.tensors):
            return binary.binary_cross_entropy_backward(grad, logits, target, needs, divisor)
        return blocks.binary_cross_entropy_backward(grad, logits, target, needs, divisor, inplace)

    def binary_cross_entropy_sum(
        self,
        logits: Tensor,
        target: BinaryTarget,
        divisor: float,
        dtype: torch.dtype | None,
        factor: float | None,
        inplace: bool = False,
    ) -> Sum:
        """Compute a sum over a divisor and its gradient, block by block."""
        return blocks.binary_cross_entropy_sum(logits, target, divisor, dtype, factor, inplace)


IMPLEMENTATION = Eager()
