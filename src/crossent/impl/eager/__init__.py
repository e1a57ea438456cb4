"""The family in torch operations: any device, dtype, layout and transform, differentiable by autograd to any order.

``softmax`` and ``binary`` hold losses and gradients, ``blocks`` the same a block of rows at a time, ``pairs`` those of two sets
of vectors, ``statistics`` what else the logits tell, ``shards`` what some of the classes tell, ``tangents`` forward mode,
``pieces`` what they are made of. All arithmetic is in float32 or wider. Nothing here knows autograd.
"""

from __future__ import annotations

from torch import Tensor

from crossent.impl.eager import blocks
from crossent.impl.eager.binary import BINARY_NUMBERS, binary_cross_entropy_tangent
from crossent.impl.eager.blocks import (
    LEARNED,
    composed_rows,
    composed_rows_backward,
    partial_costs,
    sources_of,
    statistics,
    statistics_backward,
    weighed_elements,
    weighed_elements_backward,
)
from crossent.impl.eager.pairs import pair_gradients, pair_losses
from crossent.impl.eager.pieces import as_logits, smoothed_target
from crossent.impl.eager.shards import partial_statistics, partials
from crossent.impl.eager.softmax import NUMBERS
from crossent.impl.eager.statistics import distribution
from crossent.impl.eager.tangents import cross_entropy_tangent, statistics_tangent
from crossent.impl.protocol import Implementation

__all__ = [
    "IMPLEMENTATION",
    "LEARNED",
    "Eager",
    "as_logits",
    "binary_cross_entropy_tangent",
    "composed_rows",
    "composed_rows_backward",
    "cross_entropy_tangent",
    "distribution",
    "pair_gradients",
    "pair_losses",
    "partial_costs",
    "partial_statistics",
    "partials",
    "smoothed_target",
    "sources_of",
    "statistics",
    "statistics_backward",
    "statistics_tangent",
    "weighed_elements",
    "weighed_elements_backward",
]


class Eager(Implementation):
    """Torch operations. It takes every tensor; with ``lse=None`` its backward passes are differentiable functions themselves."""

    name = "eager"
    numbers, binary_numbers = NUMBERS, BINARY_NUMBERS
    workspace, weighs_samples = 1, True
    cross_entropy_forward = staticmethod(blocks.cross_entropy_forward)
    cross_entropy_backward = staticmethod(blocks.cross_entropy_backward)
    cross_entropy_sum = staticmethod(blocks.cross_entropy_sum)
    partials = staticmethod(blocks.partials)
    statistics = staticmethod(statistics)
    binary_cross_entropy_forward = staticmethod(blocks.binary_cross_entropy_forward)
    binary_cross_entropy_backward = staticmethod(blocks.binary_cross_entropy_backward)
    binary_cross_entropy_sum = staticmethod(blocks.binary_cross_entropy_sum)

    def fuses(self, logits: Tensor) -> bool:
        """Only on the CPU, where the incoming gradient can be read without waiting."""
        return logits.is_cpu


IMPLEMENTATION = Eager()
