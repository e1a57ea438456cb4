"""``VocabShard``: which of the classes a process has, and who has the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from crossent.core.checks import flag, integer_from

_START, _CLASSES = integer_from(0, "the first class of this process"), integer_from(1, "the number of all classes")


@dataclass(frozen=True)
class VocabShard:
    """Some of the classes: the logits of a process are those of ``[start, start + C_s)``, of ``classes`` in all.

    The loss of all classes is put together from what each shard tells, which is a few numbers a row::

        lse = log Σ_s e^{lse_s}        L = Σ_s [L_s + M_s (lse - lse_s)]        L_s = Σ_k w_k (lse_s - x_k)        M_s = Σ_k w_k

    Labels are indices among all classes, the same on all processes of the group. Everything else that has classes (probabilities,
    class weights, ``logit_bias``, ``class_mask``) may be this shard's part, or whole. The loss is the same on all processes,
    bit for bit, and so is each gradient that is not of a part.

    Shards may differ in size, have one class, or none. Together they are all classes, in the order of the processes.

    Attributes:
        group: a ``torch.distributed`` group; None is all processes.
        start: the first class that this process has.
        classes: the number of classes of all processes.
        sequence_parallel: of a head only: each process gives its own rows of the hidden states and their labels, as many as the
            others. They are gathered a block at a time, and their gradient is that of the process's own rows.
        reduce_input_grad: of a head only: the gradient of the hidden states is added up over the processes. Without it, it is
            this shard's part, for a caller that adds it up itself, as a layer before the head may.

    Raises:
        ValueError: a start that is larger than the number of classes.
        TypeError: a start or a number of classes that is no integer, or is too small.
        RuntimeError: no process group, in :meth:`even` and in the losses.

    >>> VocabShard(None, 0, 50257).start
    0

    See also: :func:`crossent.cross_entropy` and :func:`crossent.linear_cross_entropy`, which take it as ``shard``.

    Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism", 2019, whose
    two all-reduces are one gather here.
    """

    group: Any
    start: int
    classes: int
    sequence_parallel: bool = False
    reduce_input_grad: bool = True

    def __post_init__(self) -> None:
        start, classes = _START("start", self.start), _CLASSES("classes", self.classes)
        if start > classes:
            raise ValueError(f"start must not lie behind the {classes} classes, got {start}")
        flag("sequence_parallel", self.sequence_parallel)
        flag("reduce_input_grad", self.reduce_input_grad)

    @classmethod
    def even(
        cls, classes: int, group: Any = None, *, sequence_parallel: bool = False, reduce_input_grad: bool = True
    ) -> VocabShard:
        """Cut the classes as ``torch.chunk`` and DTensor do: ``ceil(classes / P)`` a process, until there are no more."""
        _require_processes()
        each = ceil(_CLASSES("classes", classes) / dist.get_world_size(group))
        start = min(dist.get_rank(group) * each, classes)
        return cls(group, start, classes, sequence_parallel, reduce_input_grad)

    @classmethod
    def of(
        cls, tensor: Any, dim: int = 0, *, sequence_parallel: bool = False, reduce_input_grad: bool = True
    ) -> VocabShard:
        """Read the shard off a DTensor whose dimension ``dim`` holds the classes and is sharded over one dimension of its mesh."""
        from torch.distributed.tensor import DTensor, Shard
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if not isinstance(tensor, DTensor):
            raise TypeError(
                f"tensor must be a DTensor, got {type(tensor).__name__}: use VocabShard.even for plain ones"
            )
        dim = dim % tensor.dim()
        meshes = [i for i, place in enumerate(tensor.placements) if isinstance(place, Shard) and place.dim == dim]
        if len(meshes) != 1:
            raise ValueError(
                f"dimension {dim} of the tensor must be sharded over one dimension of its mesh, got {tensor.placements}"
            )
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        group = tensor.device_mesh.get_group(meshes[0])
        start = min(offset[dim], tensor.shape[dim])
        return cls(group, start, tensor.shape[dim], sequence_parallel, reduce_input_grad)

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: a process group cannot be copied, and nothing in a shard changes."""
        return self

    def part(self, tensor: Tensor, dim: int, size: int) -> Tensor:
        """Take this shard's ``size`` classes of a tensor that has all of them along ``dim``; any other is a part already."""
        if dim >= tensor.dim() or tensor.shape[dim] != self.classes or size == self.classes:
            return tensor
        return tensor.narrow(dim, self.start, size)


def _require_processes() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "shards of the classes need a process group: call torch.distributed.init_process_group first, under torchrun"
        )


def checked_shard(shard: object) -> VocabShard:
    """Refuse what is no shard."""
    if not isinstance(shard, VocabShard):
        raise TypeError(
            f"shard must be a crossent.VocabShard or None, got {type(shard).__name__}: VocabShard.even(classes) cuts the "
            "classes evenly over all processes"
        )
    _require_processes()
    return shard
