"""Linear heads of DTensors: which of hidden states and matrix moves to the other, and the part of each that a process works on."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.nn import functional as F

from crossent.core.messages import shape
from crossent.core.modes import is_dtensor
from crossent.core.reduction import dtype_of_sums, ordered_sum, weigh
from crossent.core.shard import VocabShard
from crossent.core.target import Teacher
from crossent.parallel.collectives import finish, start_gathering
from crossent.parallel.placements import Rows

_OF_FSDP = (
    "FSDP shards it, so (1) call unshard() on the module that owns it before the loss, or (2) compute the loss in a method of "
    "that module and name it to torch.distributed.fsdp.register_fsdp_forward_method, or (3) say which rows of the batch these are "
    "with DTensor.from_local(input, mesh, [Shard(0)]), and the same for the target, and the loss is that of all rows"
)


class HeadPart(NamedTuple):
    """The part of a head and its rows that this process works on.

    Attributes:
        rows: where the rows are, and which of the classes are here.
        moved: what goes over the mesh.
        tensors: input, weight and target, and the other arguments by name.
    """

    rows: Rows
    moved: str
    tensors: tuple[Any, ...]

    @property
    def shard(self) -> VocabShard | None:
        """Which classes are here; the gradient of the input, a share of a sum, is brought together by its placement."""
        shard = self.rows.shard
        return None if shard is None else replace(shard, reduce_input_grad=False)


def head_part(input: Tensor, weight: Tensor, target: Any, arguments: dict[str, Any]) -> HeadPart:
    """Decide what moves, and take this process's part of a head.

    Where the matrix is split by classes and the hidden states are whole, or are less than the matrix, each process has its
    classes of all rows. Else the rows stay where they are, and the matrix comes to them.
    """
    refuse_mixed(input, weight)
    lead, classes = tuple(input.shape[:-1]), tuple(weight.shape[:-1])
    named = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    mesh = Rows.of(input, len(lead), {"linear_weight": weight, "target": target, **named}).mesh
    placements, answer = _placements(input, weight, len(lead), prod(lead) < prod(classes))
    placed = Rows(mesh, placements, torch.Size(lead + classes), len(lead), answer)
    features, columns = (*range(len(lead)), None), tuple(range(len(lead), len(lead) + len(classes)))
    given = dict(arguments)
    if given.get("shift"):
        target, given = _shifted(target, given, placed)
    for name, dims in (("linear_bias", columns), ("weight", columns[:1]), ("sample_weight", placed.own)):
        given[name] = placed.local(name, given.get(name), dims, name != "sample_weight")
    for name in ("logit_bias", "class_mask"):
        value = given.get(name)
        of_classes = isinstance(value, Tensor) and value.shape != placed.shape
        given[name] = placed.local(name, value, columns[:1] if of_classes else placed.all, of_classes)
    given["denominator"] = placed.denominator(given.get("denominator"))
    moved = [
        name
        for name, tensor, dims in (("input", input, features), ("weight", weight, (*columns, None)))
        if any(p != to and not isinstance(p, Replicate) for p, to in zip(_on(tensor), placed.along(dims), strict=True))
    ]
    tensors = (
        placed.local("input", input, features, part_of_classes=True),
        placed.local("linear_weight", weight, (*columns, None)),
        _target(placed, target, features, columns),
        {name: value for name, value in given.items() if value is not None or name in arguments},
    )
    return HeadPart(placed, " and ".join(moved), tensors)


def _placements(
    input: Any, weight: Any, lead: int, smaller: bool
) -> tuple[tuple[Placement, ...], tuple[Placement, ...]]:
    """Decide how the logits are split, and where the rows of a result are, which is where those of the input were.

    ``smaller`` says that the hidden states are less than the matrix.
    """
    placements: list[Placement] = []
    answer: list[Placement] = []
    for h, w in zip(input.placements, weight.placements, strict=True):
        of_rows = type(h) is Shard and h.dim < lead
        rows: Placement = h if of_rows else Shard(0) if lead else Replicate()
        if isinstance(h, Replicate) and isinstance(w, Replicate):
            placements.append(h)
        elif w == Shard(0) and Shard(lead) not in placements and (isinstance(h, Replicate) or smaller):
            placements.append(Shard(lead))
        else:
            placements.append(rows)
        answer.append(h if of_rows or isinstance(h, Replicate) else placements[-1])
    return tuple(placements), tuple(Replicate() if p == Shard(lead) else p for p in answer)


def own_weight(
    target: Tensor | Teacher,
    arguments: dict[str, Any],
    weight: Any,
    ignored: int,
    rows: torch.Size,
    lead: int,
    shard: VocabShard,
) -> Tensor:
    """Sum what this process's rows weigh in a mean, by the class weights of all classes, which lie behind ``lead`` dimensions."""
    u, mask = arguments.get("sample_weight"), arguments.get("class_mask")
    device = (target.input if isinstance(target, Teacher) else target).device
    dtype = dtype_of_sums(device)
    if isinstance(target, Teacher) or target.is_floating_point():
        counts = torch.ones(rows, dtype=dtype, device=device)
    else:
        y = target.long()
        counts = (y != ignored).to(dtype)
        if weight is not None:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            counts = counts * whole.detach().to(dtype)[y.clamp(0, len(whole) - 1)]
    if mask is not None:  # of this shard's classes; a row of which no shard allows one does not count
        allowed = mask.any() if mask.dim() == 1 else mask.any(lead)
        everywhere = finish(start_gathering(allowed.to(dtype), shard.group)).sum(0) > 0
        counts = counts * everywhere
    return ordered_sum(counts if u is None else weigh(counts, u))


def refuse_mixed(input: object, weight: object) -> None:
    """Refuse a matrix that is a DTensor beside hidden states that are not, or the other way round."""
    if isinstance(input, DTensor) and isinstance(weight, DTensor):
        return
    if isinstance(weight, DTensor):
        raise RuntimeError(
            f"input must be a DTensor where linear_weight is one, got {type(input).__name__} and a linear_weight placed "
            f"{tuple(weight.placements)}, of which this process has a part. {_ways(weight)}"
        )
    if isinstance(input, DTensor):
        raise RuntimeError(
            f"linear_weight must be a DTensor where input is one, got a plain tensor of shape {shape(weight)}: use "  # type: ignore[arg-type]
            "DTensor.from_local(linear_weight, mesh, [Replicate()]) if every process has the same one, with one Replicate() a "
            "dimension of the mesh"
        )
    raise RuntimeError(
        "input and linear_weight must be DTensors where the target or an option is one, got plain tensors"
    )


def _ways(weight: DTensor) -> str:
    """Say what to do with hidden states that are plain beside a matrix that FSDP, or else tensor parallelism, shards."""
    if _fsdp_shards(weight):
        return _OF_FSDP
    same = ", ".join(["Replicate()"] * weight.device_mesh.ndim)
    return (
        "Under tensor parallelism, where every process of the mesh has the same rows, use "
        f"DTensor.from_local(input, linear_weight.device_mesh, [{same}]), and the same for the target. Rows that are split over a "
        "dimension of the mesh have Shard(0) in its place"
    )


def _on(tensor: Any) -> tuple[Placement, ...]:
    """Return the placements of a DTensor."""
    return tuple(tensor.placements)


def _shifted(target: Any, given: dict[str, Any], placed: Rows) -> tuple[Any, dict[str, Any]]:
    """Move labels to the positions that predict them, across the borders between processes; the last ones have no label."""
    shift, ignored = given.pop("shift"), given.get("ignore_index")

    def pad(value: Any, fill: float) -> Any:
        if not isinstance(value, DTensor):
            return value
        padded = F.pad(value.full_tensor(), (0, shift), value=fill)
        return DTensor.from_local(padded, placed.mesh, [Replicate()] * placed.mesh.ndim, run_check=False)

    if isinstance(target, DTensor):
        target = pad(target.long()[..., shift:], -100 if ignored is None else ignored)
    return target, {**given, "sample_weight": pad(given.get("sample_weight"), 0.0)}


def _target(placed: Rows, target: Any, features: tuple[Any, ...], columns: tuple[int, ...]) -> Any:
    """Take this process's part of labels, probabilities or a teacher."""
    if not isinstance(target, Teacher):
        return placed.local("target", target, placed.all if target.shape == placed.shape else placed.own)
    return Teacher(
        placed.local("the teacher's input", target.input, features),
        placed.local("the teacher's weight", target.weight, (*columns, None), True),
        placed.local("the teacher's bias", target.bias, columns, True),
        target.temperature,
    )


# --- FSDP ---------------------------------------------------------------------------------------------------------------


def refuse_gathered(weight: Tensor) -> None:
    """Refuse what ``full_tensor()`` made of a parameter that FSDP shards: its gradient would be that of this process's rows alone.

    Backward slices the gradient of each process, where FSDP averages those of all. With ``grad_placements`` given it is right.
    """
    node = weight.grad_fn
    if not torch.is_grad_enabled() or getattr(node, "grad_placements", ()) is not None:
        return
    mesh = node.dtensor_spec.mesh  # type: ignore[union-attr]
    if mesh.size() > 1 and is_dtensor(leaf := _leaf(node)) and leaf is not None and _fsdp_shards(leaf):
        raise RuntimeError(
            "linear_weight must bring the gradients of all processes together, got full_tensor() of a parameter that FSDP shards, "
            "whose gradient would be that of this process's rows alone: use full_tensor(grad_placements=[Partial('avg')]), one "
            "for each dimension of its mesh, or unshard() the module that owns it and pass its weight"
        )


def _leaf(node: Any) -> Tensor | None:
    """Follow a chain of operations on one tensor to where it begins."""
    while node is not None:
        if hasattr(node, "variable"):
            return node.variable  # type: ignore[no-any-return]
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def _fsdp_shards(parameter: Tensor) -> bool:
    """Whether a parameter is one of those that a module under ``fully_shard`` has while it is sharded."""
    states = sys.modules.get("torch.distributed._composable_state")
    if states is None:
        return False
    of_modules = [each() for each in states._module_state_mapping.values()]
    groups = [group for state in of_modules for group in getattr(state, "_fsdp_param_groups", ())]
    return any(param.sharded_param is parameter for group in groups for param in group.fsdp_params)
