"""What the arguments of an operator must be. The public functions give nothing else; a saved program or a direct call may.

Each check takes what its operator's functions take, real tensors or fake ones, and raises what names the argument. Sizes that are
symbols become conditions of the program that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from crossent.core.checks import check_tensor
from crossent.core.messages import shape as shape_of
from crossent.core.modes import readable
from crossent.core.penalties import NamedPenalty, Penalty
from crossent.core.reduction import compute_dtype
from crossent.core.settings import Record
from crossent.core.target import BinaryTarget, Target
from crossent.impl import choose
from crossent.impl.head import Head, Plan

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require(holds: Any, message: Callable[[], str]) -> None:
    """Raise a ValueError unless a condition holds; one on symbols is checked when the program that is compiled runs."""
    if holds is True:
        return
    if holds is False:
        raise ValueError(message())
    torch._check_value(holds, message)


# --- one argument -----------------------------------------------------------------------------------------------------


def _shape(name: str, value: Tensor, wanted: Sequence[Any]) -> None:
    def message() -> str:
        return f"{name} must have shape {tuple(wanted)}, got {shape_of(value)}"

    require(value.dim() == len(wanted), message)
    for got, want in zip(value.shape, wanted, strict=True):
        require(got == want, message)


def _dtype(name: str, value: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if value.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be {names}, got {value.dtype}")


def _with(logits: Tensor, **others: Tensor | None) -> None:
    """Check that tensors are on one device, and dense."""
    for name, value in {"logits": logits, **others}.items():
        if value is None:
            continue
        check_tensor(name, value, "a torch.Tensor")
        if value.device != logits.device:
            raise ValueError(f"{name} must be on {logits.device}, where the logits are, got {value.device}")


def _broadcast(name: str, value: Tensor, to: Tensor) -> None:
    fits = value.dim() <= to.dim() and all(
        not (type(a) is type(b) is int) or a in (1, b) for a, b in zip(value.shape[::-1], to.shape[::-1], strict=False)
    )
    require(fits, lambda: f"{name} must broadcast to the logits' shape {shape_of(to)}, got {shape_of(value)}")


def _needs(needs: Sequence[bool], size: int, **given: bool) -> None:
    require(len(needs) == size, lambda: f"needs must say of {size} gradients whether they are needed, got {needs}")
    for need, (name, there) in zip(needs, given.items(), strict=False):
        if need and not there:
            raise ValueError(f"needs must not ask for the gradient of {name}, which has none")


def _penalty(penalty: NamedPenalty, binary: bool) -> None:
    if penalty.name == "":
        require(not penalty.parameters, lambda: f"parameters must be () without a penalty, got {penalty.parameters}")
        return
    try:
        made = penalty.make()
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"penalty must be the name of one that is known, with its parameters, got {penalty.name!r} with "
            f"{penalty.parameters}"
        ) from error
    require(binary or isinstance(made, Penalty), lambda: f"penalty {penalty.name} belongs to binary losses")
    require(
        made.parameters == tuple(penalty.parameters),
        lambda: f"parameters of {penalty.name} must be all of {tuple(made.__dict__)}, got {penalty.parameters}",
    )


def _settings(settings: Record, binary: bool = False) -> None:
    for name, check in settings.checks.items():
        value = getattr(settings, name)
        if name == "penalty":
            _penalty(value, binary)
        elif type(value) in (int, float, type(None)) and check(name, value) != value:
            raise ValueError(f"{name} is out of its range, got {value}")


def _incoming(name: str, grad: Tensor, rows: Sequence[Any]) -> None:
    _dtype(name, grad, _FLOATS)
    if grad.dim() > 0:
        _shape(name, grad, rows)


def _one_number(name: str, value: Tensor) -> None:
    _dtype(name, value, _FLOATS)
    require(value.dim() == 0, lambda: f"{name} must be one number, got shape {shape_of(value)}")


# --- softmax ----------------------------------------------------------------------------------------------------------


def _values(target: Target, whole: Sequence[Any]) -> None:
    """Check class indices or probabilities against logits of the shape ``whole`` = (N, C, d1, ...)."""
    if target.indices:
        _dtype("target", target.values, (torch.int64,))
        _shape("target", target.values, (whole[0], *whole[2:]))
    else:
        _dtype("target", target.values, _FLOATS)
        _shape("target", target.values, whole)


def _options(target: Target, whole: Sequence[Any], like: Tensor) -> None:
    """Check all else that a target says against logits of the shape ``whole``."""
    rows, classes = (whole[0], *whole[2:]), whole[1]
    names = ("target", "class_weight", "logit_bias", "class_mask", "valid")
    _with(like, **dict(zip(names, target.tensors, strict=True)))
    if target.weight is not None:
        _dtype("class_weight", target.weight, _FLOATS)
        _shape("class_weight", target.weight, (classes,))
    for name, value, dtypes in (
        ("logit_bias", target.logit_bias, _FLOATS),
        ("class_mask", target.class_mask, (torch.bool,)),
    ):
        if value is not None:
            _dtype(name, value, dtypes)
            _shape(name, value, (classes,) if value.dim() == 1 else whole)
    if target.valid is not None:
        _dtype("valid", target.valid, (torch.bool,))
        _shape("valid", target.valid, rows)
    _settings(target.settings)
    if target.is_shard:
        raise ValueError(
            f"all_classes must be 0, got {target.settings.all_classes}: an operator sees all classes; shard= tells shards"
        )


def _softmax(logits: Tensor, target: Target, impl: str) -> tuple[Any, ...]:
    """Check logits and their target against each other, and return the shape of rows."""
    _dtype("logits", logits, _FLOATS)
    require(logits.dim() >= 2, lambda: f"logits must have shape (N, C, d1, ...), got {shape_of(logits)}")
    _values(target, logits.shape)
    _options(target, logits.shape, logits)
    choose(logits, impl, target.values, target)
    return (logits.shape[0], *logits.shape[2:])


def softmax_forward(logits: Tensor, target: Target, reduction: str, impl: str) -> None:
    """Check what the forward operator is given."""
    _softmax(logits, target, impl)
    require(
        reduction in ("none", "sum", "mean"), lambda: f'reduction must be "none", "sum" or "mean", got {reduction!r}'
    )


def softmax_traced(logits: Tensor, target: Target, reduction: str) -> None:
    """Check what the operator in torch operations is given."""
    softmax_forward(logits, target, reduction, "eager")


def softmax_backward(
    grad: Tensor, divisor: Tensor | None, logits: Tensor, target: Target, lse: Tensor, needs: Sequence[bool], impl: str
) -> None:
    """Check what the backward operator is given."""
    rows = _softmax(logits, target, impl)
    _with(logits, grad=grad, divisor=divisor, lse=lse)
    _incoming("grad", grad, rows)
    if divisor is not None:
        _one_number("divisor", divisor)
    _dtype("lse", lse, (compute_dtype(logits, target.values),))
    _shape("lse", lse, (2, *rows))
    _needs(needs, 2, logits=True, target=not target.indices)


def statistics(logits: Tensor, target: Target, impl: str) -> None:
    """Check what the operator of the statistics is given."""
    _softmax(logits, target, impl)


def statistics_backward(grads: Sequence[Tensor], logits: Tensor, target: Target, needs: Sequence[bool]) -> None:
    """Check what the backward operator of the statistics is given."""
    _row_gradients(grads, _softmax(logits, target, "eager"), logits)
    _needs(needs, 2, logits=True, target=not target.indices)


def _row_gradients(grads: Sequence[Tensor], rows: Sequence[Any], like: Tensor) -> None:
    require(len(grads) == 4, lambda: f"grads must be those of four statistics, got {len(grads)}")
    for grad in grads:
        _with(like, grads=grad)
        _dtype("grads", grad, _FLOATS)
        _shape("grads", grad, rows)


# --- sigmoid ----------------------------------------------------------------------------------------------------------


def _binary(logits: Tensor, target: BinaryTarget, impl: str) -> None:
    _with(logits, **dict(zip(("target", "weight", "pos_weight", "mask"), target.tensors, strict=True)))
    _dtype("logits", logits, _FLOATS)
    _dtype("target", target.values, _FLOATS)
    _shape("target", target.values, logits.shape)
    for name, value, dtypes in (
        ("weight", target.weight, _FLOATS),
        ("pos_weight", target.pos_weight, _FLOATS),
        ("mask", target.mask, (torch.bool,)),
    ):
        if value is not None:
            _dtype(name, value, dtypes)
            _broadcast(name, value, logits)
    _settings(target.settings, binary=True)
    choose(logits, impl, target.values, target)


def binary_forward(logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float, impl: str) -> None:
    """Check what the forward operator is given."""
    _binary(logits, target, impl)


def binary_backward(
    grad: Tensor, divisor: float, logits: Tensor, target: BinaryTarget, needs: Sequence[bool], impl: str
) -> None:
    """Check what the backward operator is given."""
    _binary(logits, target, impl)
    _with(logits, grad=grad)
    _incoming("grad", grad, logits.shape)
    _needs(needs, 2, logits=True, target=True)


# --- linear heads -----------------------------------------------------------------------------------------------------


def _matrices(prefix: str, input: Tensor, weight: Tensor, bias: Tensor | None, columns: Any) -> None:
    """Check hidden states (N, D), a matrix (columns, D) and a bias against each other."""
    _dtype(f"{prefix}input", input, _FLOATS)
    require(input.dim() == 2, lambda: f"{prefix}input must have shape (N, D), got {shape_of(input)}")
    for name, value, wanted in (
        (f"{prefix}weight", weight, (columns, input.shape[1])),
        (f"{prefix}bias", bias, (columns,)),
    ):
        if value is not None:
            _dtype(name, value, (input.dtype,))
            _shape(name, value, wanted)


def _head(head: Head, plan: Plan) -> tuple[Any, ...]:
    """Check a head, its target and its teacher against each other, and return the shape of rows."""
    input, weight, bias, shape = head
    require(len(shape) >= 1, lambda: "shape must be (C, d1, ...), got ()")
    columns: Any = 1
    for size in shape:
        columns = columns * size
    _with(input, weight=weight, bias=bias)
    _matrices("", input, weight, bias, columns)
    target, teacher, whole = plan.target, plan.teacher, (input.shape[0], *shape)
    _options(target, whole, input)
    if teacher is None:
        _values(target, whole)
    else:
        _dtype("target", target.values, _FLOATS)
        _with(input, teacher_input=teacher.input, teacher_weight=teacher.weight, teacher_bias=teacher.bias)
        _matrices("teacher_", *teacher[:3], columns)
        _shape("teacher_input", teacher.input, (input.shape[0], teacher.weight.shape[1]))
        temperature = teacher.temperature
        require(0 < temperature < inf, lambda: f"teacher_temperature must be positive, got {temperature}")
    require(plan.max_bytes > 0, lambda: f"max_bytes must be at least 1, got {plan.max_bytes}")
    choose(input, plan.impl, target.values, target._replace(valid=_seen_valid(target.valid)))
    return (input.shape[0], *shape[1:])


def _seen_valid(valid: Tensor | None) -> Tensor | None:
    """Return what an implementation is shown of ``valid``; None where whole rows are left out, of which it gets no logits.

    On other devices than the CPU it gets the logits of all rows, since whoever listed them would have to wait for the device.
    """
    if valid is None or not valid.is_cpu:
        return valid
    if valid.dim() == 1 or not readable(valid):
        return None
    flat = valid.flatten(1)
    return None if torch.equal(flat.any(1), flat.all(1)) else valid


def _head_needs(head: Head, needs: Sequence[bool]) -> None:
    _needs(needs, 3, input=True, weight=True, bias=head.bias is not None)


def linear_sum(head: Head, plan: Plan, factor: Tensor | None, divisor: Tensor, needs: Sequence[bool]) -> None:
    """Check what the operator of a weighted sum is given."""
    rows = _head(head, plan)
    _with(head.input, factor=factor, divisor=divisor)
    if factor is not None:
        _dtype("factor", factor, _FLOATS)
        _shape("factor", factor, rows)
    _one_number("divisor", divisor)
    _head_needs(head, needs)


def linear_rows(head: Head, plan: Plan) -> None:
    """Check what the operators of rows are given."""
    _head(head, plan)


def linear_rows_backward(head: Head, plan: Plan, grad: Tensor, needs: Sequence[bool]) -> None:
    """Check what the backward operator of rows is given."""
    rows = _head(head, plan)
    _with(head.input, grad=grad)
    _dtype("grad", grad, _FLOATS)
    _shape("grad", grad, rows)
    _head_needs(head, needs)


def linear_statistics_backward(head: Head, plan: Plan, grads: Sequence[Tensor], needs: Sequence[bool]) -> None:
    """Check what the backward operator of the statistics is given."""
    _row_gradients(grads, _head(head, plan), head.input)
    _head_needs(head, needs)
