"""Logits as a model hands them over: the output of a node, whose memory nobody else looks at."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


class _Computed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def computed(x: Tensor) -> Tensor:
    """Return ``x`` as the result of an operation that takes no time and no memory.

    A view would be refused where a gradient is written over the logits, since what lies under it is a leaf.
    """
    result: Tensor = _Computed.apply(x)
    return result
