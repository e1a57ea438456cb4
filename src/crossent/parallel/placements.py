"""Losses of DTensors: every process computes the rows that it has, and sums are completed over the mesh.

The logits decide where the work is done. Whatever else a loss takes is moved to where they are: a label beside its row, class
weights to every process. Kernels see plain tensors, and a result is a DTensor again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from crossent.core.checks import check_binary, class_axis, element_mask
from crossent.core.messages import shape
from crossent.core.modes import is_dtensor, readable
from crossent.core.reduction import Reduction, dtype_of_sums
from crossent.core.shard import VocabShard
from crossent.core.target import describe
from crossent.parallel.collectives import gather, spread, told_together

_SUMS = 8  # numbers of one collective: the most that a loss sums, and whether a process has failed


# --- sums over processes ------------------------------------------------------------------------------------------------


class Across:
    """Completes the sums of a loss whose rows are spread over processes, all of them in one gather a mesh dimension."""

    def __init__(self, groups: tuple[Any, ...]) -> None:
        self.groups = groups

    def __call__(self, *own: Tensor) -> tuple[Tensor, ...]:
        """Sum numbers over the processes, in float64 where the device has it."""
        wide = dtype_of_sums(own[0].device)
        padding = own[0].new_zeros(_SUMS - len(own), dtype=wide)
        total = self._summed(torch.cat([torch.stack([value.to(wide) for value in own]), padding]))
        if readable(total) and total[-1].item():
            self._raise(None)
        return tuple(total[at].to(value.dtype) for at, value in enumerate(own))

    def spread(self, shared: Tensor) -> Tensor:
        """Let each process divide its own sum by what all of them have: the gradients of all come together."""
        for group in self.groups:
            shared = spread(shared, group)
        return shared

    def fail(self, error: Exception) -> None:
        """Tell the processes that wait for this one's sums why there are none, and raise that on all of them."""
        failed = torch.zeros(_SUMS, dtype=torch.float64, device="cpu")
        failed[-1] = 1
        self._summed(failed)
        self._raise(error)

    def _raise(self, error: Exception | None) -> None:
        for group in self.groups:
            error = told_together(error, group)
        assert error is not None
        error.__dict__["told"] = True
        raise error

    def _summed(self, own: Tensor) -> Tensor:
        for group in self.groups:
            own = gather(own, group).sum(0)
        return own


# --- where the rows are -------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Where the logits of a loss are: of each dimension of the mesh, along which dimension of the logits they are split."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]  # Shard or Replicate; of the classes at most one is Shard
    shape: torch.Size  # of the logits, all of them
    axis: int | None  # of the classes; a binary loss has none
    answer: tuple[Placement, ...] | None = None  # where the rows of a result are to be, if not where they are computed

    @classmethod
    def of(cls, input: object, axis: int | None, others: dict[str, Any]) -> Rows:
        """Read the placements of the logits, and hold the other tensors of a call to the same mesh."""
        if not isinstance(input, DTensor):
            named = next(name for name, value in others.items() if is_dtensor(value))
            raise RuntimeError(
                f"input must be a DTensor where {named} is one, got {type(input).__name__}: say which rows of the batch these are "
                "with DTensor.from_local(input, mesh, placements), or pass the local parts of both with to_local()"
            )
        for name, value in others.items():
            if isinstance(value, DTensor) and value.device_mesh != input.device_mesh:
                raise RuntimeError(
                    f"{name} must be on the mesh of input, {input.device_mesh}, got {value.device_mesh}: move one of them"
                )
        return cls(input.device_mesh, _settled(input, axis), input.shape, axis)

    @property
    def split(self) -> tuple[int, ...]:
        """The dimensions of the mesh over which rows are spread."""
        return tuple(at for at, p in enumerate(self.placements) if isinstance(p, Shard) and p.dim != self.axis)

    @property
    def shard(self) -> VocabShard | None:
        """Which of the classes this process has; None where it has all."""
        for at, placement in enumerate(self.placements):
            if isinstance(placement, Shard) and placement.dim == self.axis:
                return VocabShard.even(self.shape[self.axis], self.mesh.get_group(at))
        return None

    @property
    def across(self) -> Across | None:
        """What completes sums; None where every process has all rows."""
        return Across(tuple(self.mesh.get_group(at) for at in self.split)) if self.split else None

    @property
    def own(self) -> tuple[int, ...]:
        """The dimensions of the logits that the rows have."""
        return tuple(each for each in range(len(self.shape)) if each != self.axis)

    @property
    def all(self) -> tuple[int, ...]:
        """The dimensions of the logits."""
        return tuple(range(len(self.shape)))

    def broadcast(self, value: Any) -> tuple[int | None, ...]:
        """Match the dimensions of what broadcasts to the logits with theirs."""
        first = len(self.shape) - value.dim()
        return tuple(None if size == 1 else first + at for at, size in enumerate(value.shape))

    def along(self, dims: Sequence[int | None]) -> tuple[Placement, ...]:
        """Place a tensor whose dimensions are these of the logits; where it has no such dimension all processes have it."""
        return tuple(
            Shard(dims.index(p.dim)) if isinstance(p, Shard) and p.dim in dims else Replicate() for p in self.placements
        )

    def local(
        self,
        name: str,
        value: Any,
        dims: Sequence[int | None],
        constant: bool = False,
        part_of_classes: bool = False,
    ) -> Any:
        """Take this process's part of a tensor, whose gradient comes back to where the tensor was.

        ``constant`` says that a plain tensor may stand for the same one on every process, as class weights do.
        ``part_of_classes`` says that its gradient is a share of a sum where classes are split, as that of hidden states is.
        """
        if not isinstance(value, Tensor):
            return value
        if not isinstance(value, DTensor):
            if not constant or value.requires_grad:
                same = " if every process has the same one" if constant else ""
                raise RuntimeError(
                    f"{name} must be a DTensor where input is one, got a plain tensor of shape {shape(value)}, which may be all of "
                    f"it or a part: use DTensor.from_local({name}, mesh, placements), with [Replicate()] for placements{same}"
                )
            value = DTensor.from_local(value, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        placements = self.along(dims)
        shared = [p for p in self.placements if isinstance(p, Shard) and (part_of_classes or p.dim != self.axis)]
        # Where a process has a share of the rows and all of a tensor, its gradient is a share of a sum.
        of_gradient = [
            Partial() if p in shared and isinstance(own, Replicate) else own
            for p, own in zip(self.placements, placements, strict=True)
        ]
        half = torch.float32 if value.is_floating_point() and value.dtype.itemsize < 4 and value.requires_grad else None
        return value.redistribute(placements=placements, backward_dtype=half).to_local(grad_placements=of_gradient)

    def _placed(self, value: Tensor, placements: tuple[Placement, ...], whole: torch.Size) -> DTensor:
        stride = torch.empty(whole, device="meta").stride()
        placed = DTensor.from_local(value, self.mesh, placements, run_check=False, shape=whole, stride=stride)
        # A gradient that comes in another placement is moved here, since from_local does that without a second derivative.
        return placed.redistribute(placements=placements)

    @contextmanager
    def tell_others(self, how: str) -> Iterator[None]:
        """Let what goes wrong here stop all processes that would wait for this one's sums; a GPU goes on with nan."""
        across = None if how == "none" else self.across
        try:
            yield
        except Exception as error:
            on_cpus = self.mesh.device_type == "cpu" and not torch.compiler.is_compiling()
            if across is None or not on_cpus or getattr(error, "told", False):
                raise
            across.fail(error)

    def result(self, value: Tensor, how: str) -> Tensor:
        """Return a result as a DTensor: rows where they are, and a total on every process."""
        if how == "none":
            rows = self._placed(value, self.along(self.own), torch.Size(self.shape[each] for each in self.own))
            if self.answer is None:
                return rows
            return rows.redistribute(placements=self._replace(placements=self.answer).along(self.own))
        return self._placed(value, (Replicate(),) * self.mesh.ndim, value.shape)

    def local_reduction(self, rows: Reduction, dims: Sequence[int]) -> Reduction:
        """Take this process's part of a reduction, whose sums are completed over the mesh."""
        u, given = self.local("sample_weight", rows.sample_weight, dims), self.denominator(rows.denominator)
        return rows._replace(sample_weight=u, denominator=given, across=None if rows.how == "none" else self.across)

    def denominator(self, given: Any) -> Any:
        """Take a denominator, which every process divides its own sum by."""
        if isinstance(given, DTensor):
            given = given.full_tensor()
        elif isinstance(given, Tensor) and given.requires_grad:
            raise RuntimeError(
                "denominator must be a DTensor where input is one and its gradient is wanted, got a plain tensor"
            )
        across = self.across
        return (
            across.spread(given) if across is not None and isinstance(given, Tensor) and given.requires_grad else given
        )


def softmax_rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    rows: Reduction,
    dim: int | None,
    options: dict[str, Any],
) -> tuple[Rows, tuple[Any, ...]]:
    """Find where the rows of a softmax loss are, and take this process's part of its tensors, in order."""
    bias, mask, given = options.get("logit_bias"), options.get("class_mask"), rows.denominator
    named = {
        "target": target,
        "weight": weight,
        "sample_weight": rows.sample_weight,
        "logit_bias": bias,
        "class_mask": mask,
    }
    placed = Rows.of(input, class_axis(input, dim), {**named, "denominator": given})
    whole = {**options, "logit_bias": stand_in(bias), "class_mask": stand_in(mask)}
    describe(stand_in(input), stand_in(target), stand_in(weight), dim, whole)
    of_classes: tuple[int | None, ...] = (placed.axis,)

    def along(value: Any) -> tuple[int | None, ...]:
        return placed.all if isinstance(value, Tensor) and value.shape == input.shape else of_classes

    options = {
        **options,
        "logit_bias": placed.local("logit_bias", bias, along(bias), along(bias) is of_classes),
        "class_mask": placed.local("class_mask", mask, along(mask), along(mask) is of_classes),
    }
    dims = placed.all if target.shape == input.shape else placed.own
    return placed, (
        placed.local("input", input, placed.all),
        placed.local("target", target, dims),
        placed.local("weight", weight, of_classes, True),
        placed.local_reduction(rows, placed.own),
        options,
    )


def binary_rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    rows: Reduction,
) -> tuple[Rows, tuple[Any, ...]]:
    """Find where the elements of a binary loss are, and take this process's part of its tensors, in order."""
    named = {"target": target, "weight": weight, "pos_weight": pos_weight, "mask": mask}
    placed = Rows.of(input, None, {**named, "sample_weight": rows.sample_weight, "denominator": rows.denominator})
    check_binary(*map(stand_in, (input, target, weight, pos_weight)))
    element_mask(stand_in(mask), stand_in(input))
    u = rows.sample_weight
    return placed, (
        placed.local("input", input, placed.all),
        *(
            placed.local(name, value, placed.broadcast(value), name != "target" and value.dim() < 2)
            if value is not None
            else None
            for name, value in named.items()
        ),
        placed.local_reduction(rows, placed.all[: 0 if u is None else u.dim()]),
    )


def _settled(input: DTensor, axis: int | None) -> tuple[Placement, ...]:
    """Decide how logits are split for a loss: by rows as they are, by classes over one dimension of the mesh, and else by rows.

    A sum that is pending is completed on the way there, to the rows that each process takes.
    """
    rows = [each for each in range(input.dim()) if each != axis]
    settled: list[Placement] = []
    for placement in input.placements:
        kept = placement if type(placement) in (Shard, Replicate) else None
        if isinstance(kept, Shard):
            kept = Shard(kept.dim % input.dim())
            if kept.dim == axis and kept in settled:
                kept = None
        settled.append(kept or (Shard(rows[0]) if rows else Replicate()))
    return tuple(settled)


def stand_in(value: Any) -> Any:
    """Return what has the shape and dtype of all of a tensor and holds nothing, for checks that are alike on all processes."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value
