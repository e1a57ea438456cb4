"""The family in torch operations: any device, dtype, layout and transform, differentiable by autograd to any order.

``softmax`` and ``binary`` hold losses and gradients, ``statistics`` what else the logits tell, ``tangents`` forward mode,
``pieces`` what they are made of. All arithmetic is in float32 or wider. Nothing here knows autograd.
"""

from __future__ import annotations

from crossent.impl.eager import binary, softmax
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
from crossent.impl.protocol import Implementation

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
    workspace = 6
    cross_entropy_forward = staticmethod(softmax.cross_entropy_forward)
    cross_entropy_backward = staticmethod(softmax.cross_entropy_backward)
    statistics = staticmethod(statistics)
    binary_cross_entropy_forward = staticmethod(binary.binary_cross_entropy_forward)
    binary_cross_entropy_backward = staticmethod(binary.binary_cross_entropy_backward)


IMPLEMENTATION = Eager()
