"""A call of a head, understood: its arguments are checked, and its rows lie side by side."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossent.core.checks import (
    check_devices,
    check_logits_dtype,
    check_tensor,
    check_tensors,
    integer,
    integer_from,
    optional,
    positive,
    under_autocast,
)
from crossent.core.messages import shape
from crossent.core.reduction import Reduction, result_dtype, weights_of_rows
from crossent.core.settings import LinearArguments, check_names
from crossent.core.target import Target, Teacher, describe
from crossent.impl import choose
from crossent.impl.head import (
    Head,
    Plan,
)
from crossent.losses.heads import head_of

MAX_BYTES = 128 << 20  # of a block of logits on the CPU
MAX_BYTES_ELSEWHERE = 1 << 30  # on a GPU, whose products want many rows
_BYTES = integer_from(1, "a positive int, the bytes of a block of logits")
_ROWS = integer_from(0, "None or an int of at least 0, the rows that count at most")
_SHIFT = integer_from(0, "an int of at least 0")
_TEACHERS_TEMPERATURE = positive("it divides the teacher's logits")


class HeadCall(NamedTuple):
    """A call understood: the head with its rows side by side, and what is asked of them."""

    head: Head
    target: Target  # values are empty where there is a teacher
    teacher: Teacher | None
    reduction: Reduction  # with sample weights (N, d1, ...)
    lead: tuple[int, ...]  # the dimensions that were flattened into rows
    shift: int
    max_bytes: int
    max_rows: int | None
    impl: str
    named: bool  # whether the caller named impl
    dtype: torch.dtype
    moved: str = ""  # of DTensors, over the mesh

    def rows_back(self, rows: Tensor) -> Tensor:
        """Give the values of rows the dimensions that the caller's rows have."""
        rows = rows.reshape(self.lead + self.head.shape[1:])
        return rows if self.shift == 0 else rows[..., : self.lead[-1] - self.shift]

    def plan(self) -> Plan:
        """Return what the operators are told."""
        return Plan(self.target, self.teacher, self.max_bytes, self.impl)


def understand(
    input: Tensor, linear_weight: Tensor | nn.Module, target: Tensor | Teacher, arguments: dict[str, Any]
) -> HeadCall:
    """Check the arguments, under the names that the caller gave them, and lay the rows out side by side."""
    check_names(arguments, LinearArguments, "linear_cross_entropy")
    rows = Reduction.among(arguments.get("reduction", "mean"), arguments)
    linear_bias, weight = arguments.get("linear_bias"), arguments.get("weight")
    ignore_index = optional(integer)("ignore_index", arguments.get("ignore_index"))
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, linear_bias = head_of(linear_weight, input, linear_bias)
    check_head(input, linear_weight, linear_bias)
    max_bytes = bytes_of_a_block(arguments.get("max_bytes"), input)
    shift = _SHIFT("shift", arguments.get("shift", 0))
    assert isinstance(linear_weight, Tensor)
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    assert isinstance(linear_weight, Tensor)
    lead, classes = tuple(input.shape[:-1]), tuple(linear_weight.shape[:-1])
    like = input.new_empty(()).expand(lead + classes)
    teacher = target if isinstance(target, Teacher) else None
    if teacher is not None:
        teacher = _teacher(teacher, input, classes)
        target = like.detach()
    elif (
        check_tensor("target", target, "a torch.Tensor or a crossent.Teacher").shape == like.shape
        and ignore_index is not None
    ):
        raise RuntimeError("ignore_index cannot be specified when target holds probabilities: leave it out")
    ignored = -100 if ignore_index is None else ignore_index
    assert isinstance(target, Tensor)
    target = _shifted(target, lead, shift, ignored)
    _, described = describe(like, target, weight, len(lead), {**arguments, "ignore_index": ignored})
    size = prod(lead)
    if teacher is not None:
        values = torch.empty(0, dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    elif described.indices:
        values = described.values.reshape(size, *classes[1:])  # rows of which a mask allows no class are ignored here
    else:
        values = target.to(described.values.dtype).reshape(size, *classes)
    valid = described.valid
    described = described._replace(
        values=values,
        valid=None if valid is None else valid.reshape(size, *classes[1:]),
        logit_bias=laid_out_by_rows(described.logit_bias, arguments.get("logit_bias"), size, classes),
        class_mask=laid_out_by_rows(described.class_mask, arguments.get("class_mask"), size, classes),
    )
    rows = rows._replace(sample_weight=_row_factors(rows.sample_weight, like, lead, classes, shift))
    promoted = (described.values, weight) if not described.indices else ()
    dtype, impl = result_dtype(like, promoted, arguments.get("out_dtype")), arguments.get("impl")
    head = Head(*_side_by_side(input, linear_weight, linear_bias), classes)
    name = choose(like.reshape(size, *classes), impl, described.values, described)
    max_bytes = min(max_bytes, 1 << 62)  # an operator takes 64 bits
    max_rows = optional(_ROWS)("max_rows", arguments.get("max_rows"))
    return HeadCall(head, described, teacher, rows, lead, shift, max_bytes, max_rows, name, impl is not None, dtype)


def check_head(input: object, weight: object, bias: object) -> None:
    """Check hidden states, matrix and bias against each other."""
    check_tensors(input=input, linear_weight=weight, **({} if bias is None else {"linear_bias": bias}))
    assert isinstance(input, Tensor)
    assert isinstance(weight, Tensor)
    check_devices(input, linear_weight=weight, linear_bias=bias)
    if input.dim() < 1 or weight.dim() < 2:
        raise RuntimeError(
            f"input must have shape (..., D) and linear_weight (C, D) or (C, d1, ..., D), got {shape(input)} and {shape(weight)}"
        )
    if input.shape[-1] != weight.shape[-1]:
        fix = (
            "transpose it with linear_weight.t()"
            if weight.dim() == 2 and weight.shape[0] == input.shape[-1]
            else "they are the features, D"
        )
        raise RuntimeError(
            f"input and linear_weight must have the same last dimension, got {shape(input)} and {shape(weight)}: {fix}"
        )
    if weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"linear_weight of shape {shape(weight)} needs a batch, (N, {input.shape[0]}), got {shape(input)}"
        )
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:-1]):
        got = shape(bias) if isinstance(bias, Tensor) else type(bias).__name__
        raise RuntimeError(
            f"linear_bias must have shape {tuple(weight.shape[:-1])} for such a linear_weight, got {got}"
        )
    check_logits_dtype(input)
    for name, value in (("linear_weight", weight), ("linear_bias", bias)):
        if isinstance(value, Tensor) and value.dtype != input.dtype and not under_autocast(input.device):
            raise RuntimeError(
                f"{name} must have the dtype of input, {input.dtype}, got {value.dtype}: convert one of them"
            )


def bytes_of_a_block(max_bytes: Any, input: Tensor) -> int:
    """Check ``max_bytes``, or choose it by the device."""
    if max_bytes is None:
        return MAX_BYTES if input.device.type == "cpu" else MAX_BYTES_ELSEWHERE
    return _BYTES("max_bytes", max_bytes)


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """Cast as autocast would for the product."""
    device = tensors[0].device if tensors[0] is not None else torch.device("cpu")
    if not under_autocast(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device.type)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _side_by_side(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lay hidden states out as ``(N, D)``, and the matrix and bias of all classes as ``(C·d1·..., D)`` and one dimension."""
    rows, columns, features = prod(input.shape[:-1]), prod(weight.shape[:-1]), input.shape[-1]
    return input.reshape(rows, features), weight.reshape(columns, features), None if bias is None else bias.reshape(-1)


def _teacher(teacher: Teacher, input: Tensor, classes: tuple[int, ...]) -> Teacher:
    """Check a teacher and lay it out as the student's head; it is a constant, whatever it requires."""
    if isinstance(teacher.weight, nn.Module):
        with torch.no_grad():
            teacher = Teacher(*head_of(teacher.weight, teacher.input, teacher.bias), teacher.temperature)
    given = {f"the teacher's {name}": value for name, value in teacher._asdict().items() if name != "temperature"}
    check_tensors(**{name: value for name, value in given.items() if value is not None or name != "the teacher's bias"})
    check_devices(input, **given)
    if teacher.input.shape[:-1] != input.shape[:-1] or tuple(teacher.weight.shape[:-1]) != classes:
        raise RuntimeError(
            f"the teacher must have input of shape {(*input.shape[:-1], 'D')} and weight of shape {(*classes, 'D')}, got "
            f"{shape(teacher.input)} and {shape(teacher.weight)}"
        )
    if teacher.input.shape[-1] != teacher.weight.shape[-1]:
        raise RuntimeError(
            "the teacher's input and weight must have the same last dimension, got "
            f"{shape(teacher.input)} and {shape(teacher.weight)}"
        )
    temperature = _TEACHERS_TEMPERATURE("the teacher's temperature", teacher.temperature)
    if teacher.bias is not None and tuple(teacher.bias.shape) != classes:
        raise RuntimeError(f"the teacher's bias must have shape {classes}, got {shape(teacher.bias)}")
    head = _side_by_side(*_autocast(*(None if t is None else t.detach() for t in teacher[:3])))
    return Teacher(*head, temperature)


def _shifted(target: Tensor, lead: tuple[int, ...], shift: int, ignore_index: int) -> Tensor:
    """Move class indices ``shift`` positions to the front; what has no label any more is ignored."""
    if shift == 0:
        return target
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != torch.Size(lead) or not lead:
        raise RuntimeError(
            f"shift moves class indices of shape {lead} along their last dimension, got a target of shape "
            f"{shape(target)} and dtype {target.dtype}: leave shift out where the target belongs to each row already"
        )
    if shift >= lead[-1]:
        raise ValueError(f"shift must be less than the {lead[-1]} positions of input, got {shift}")
    return F.pad(target.long()[..., shift:], (0, shift), value=ignore_index)


def laid_out_by_rows(
    laid_out: Tensor | None, given: Tensor | None, size: int, classes: tuple[int, ...]
) -> Tensor | None:
    """Lay a bias or mask of the logits' shape out by rows; one of ``(C)`` is that already."""
    if laid_out is None or given is None:
        return None
    return given if given.dim() == 1 and given.shape == classes[:1] else given.reshape(size, *classes)


def _row_factors(
    u: Tensor | None, like: Tensor, lead: tuple[int, ...], classes: tuple[int, ...], shift: int
) -> Tensor | None:
    if u is None:
        return None
    rows = like.new_empty(()).expand(lead + classes[1:])
    if shift:
        rows = rows[..., : lead[-1] - shift]
    u = weights_of_rows(u, rows.to(torch.promote_types(like.dtype, torch.float32)), whole=True)
    return (F.pad(u, (0, shift)) if shift else u).reshape(prod(lead), *classes[1:])
