"""What the arguments of a loss must be: numbers, dtypes, shapes and axes.

Every refusal has the exception type torch has for it, and says which argument broke which rule, what came, and the fix.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import _VF, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from crossent.core import watch
from crossent.core.messages import layout_fix, shape, type_error

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

UNDIFFERENTIABLE_WEIGHT = (
    "weight must not require grad when target holds class indices: its derivative is not defined there; "
    "pass weight.detach(), or give the target as probabilities of the logits' shape, whose mean divides by the number of rows"
)


# --- numbers ----------------------------------------------------------------------------------------------------------


def as_python(value: Any) -> Any:
    """Read a number of NumPy's, or the one element of a tensor or array, as Python's; anything else stays what it is.

    A tensor that carries a derivative stays a tensor, since the derivative would be lost in silence.
    """
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not _carries_derivative(value) else value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item() if value.size == 1 else value
    return value


def _carries_derivative(value: Tensor) -> bool:
    """Whether a gradient or a forward-mode tangent would be lost if the value were read."""
    return value.requires_grad or _VF._unpack_dual(value, level=0)[1] is not None


def number(name: str, value: Any) -> float:
    """Read a number, and refuse what is none."""
    value = as_python(value)
    if isinstance(value, Tensor):
        _refuse_tensor(name, "a number", value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        type_error(name, "a number", value)
    return float(value)


def number_or_tensor(name: str, value: Any) -> float | Tensor:
    """Read a number; a tensor of one element stays one, which may carry a derivative and need not be waited for."""
    rule = "a number or a 0-d tensor"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be {rule}, got shape {shape(value)}: pass a single number")
        if value.dtype == torch.bool or value.is_complex():
            type_error(name, rule, value)
        return value.reshape(())
    value = as_python(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Real, torch.SymInt, torch.SymFloat)):
        type_error(name, rule, value)
    symbolic = isinstance(value, (torch.SymInt, torch.SymFloat))
    return value if symbolic or isinstance(value, (int, float)) else float(value)  # type: ignore[return-value]


def _refuse_tensor(name: str, rule: str, value: Tensor) -> NoReturn:
    """Refuse a tensor in the place of a number."""
    if value.numel() != 1:
        raise TypeError(f"{name} must be {rule}, got a tensor of shape {shape(value)}: pass a single one")
    by_hand = "; without softcap, logit_bias and margin you may divide the logits by it yourself instead"
    raise TypeError(
        f"{name} must be {rule}, got a tensor of shape {shape(value)} that carries a derivative: the loss is not "
        f"differentiable in it; pass {name}.item(){by_hand if name == 'temperature' else ''}"
    )


def number_such_that(holds: Callable[[float], bool], rule: str, why: str) -> Callable[[str, Any], float]:
    """Make the check of a number: ``holds`` says whether it is in its range, which ``rule`` names and ``why`` explains."""

    def check(name: str, value: Any) -> float:
        value = number(name, value)
        if not holds(value):
            raise ValueError(f"{name} must be {rule}, got {value}: {why}")
        return float(value)

    return check


def positive(why: str) -> Callable[[str, Any], float]:
    """Make the check of a number above 0."""
    return number_such_that(lambda value: 0.0 < value < inf, "positive", why)


def at_least_zero(why: str) -> Callable[[str, Any], float]:
    """Make the check of a number of at least 0."""
    return number_such_that(lambda value: 0.0 <= value < inf, "at least 0", why)


def finite(why: str) -> Callable[[str, Any], float]:
    """Make the check of a number that is neither infinite nor nan."""
    return number_such_that(lambda value: -inf < value < inf, "finite", why)


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Let None pass a check."""
    return lambda name, value: None if value is None else check(name, value)


def integer(name: str, value: Any, rule: str = "an int") -> int:
    """Read an integer, and refuse what is none; ``rule`` says what is wanted."""
    value = as_python(value)
    if isinstance(value, Tensor):
        _refuse_tensor(name, rule, value)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, Integral)):
        type_error(name, rule, value)
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore[return-value]


def integer_of_64_bits(name: str, value: Any) -> int:
    """Read an integer that an element of an int64 tensor can be, and refuse what is none."""
    number = integer(name, value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {number}: give a number between -2**63 and 2**63 - 1")
    return number


def integer_from(low: int, rule: str) -> Callable[[str, Any], int]:
    """Make the check of an integer of at least ``low``, which ``rule`` says."""

    def check(name: str, value: Any) -> int:
        number = integer(name, value, rule)
        if number < low:
            type_error(name, rule, number)
        return number

    return check


def flag(name: str, value: Any) -> bool:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        type_error(name, "True or False", value)
    return value


def smoothing(name: str, value: Any) -> float:
    """Check that a share of the target's weight is at most 1; as in torch, negative numbers and nan count as 0, and True as 1."""
    value = as_python(value)
    if isinstance(value, Tensor):
        _refuse_tensor(name, "a float in [0, 1]", value)
    if not isinstance(value, (int, float, Real)):
        type_error(name, "a float in [0, 1]", value)
    value = float(value)
    if value > 1.0:
        raise RuntimeError(f"{name} must lie in [0, 1], got {value}: it is a share of the target's weight, such as 0.1")
    return value if value > 0.0 else 0.0


# --- logits -----------------------------------------------------------------------------------------------------------


def check_tensors(**values: object) -> None:
    """Refuse what is not a dense tensor, by the name of its argument."""
    for name, value in values.items():
        check_tensor(name, value, "a torch.Tensor")


def check_tensor(name: str, value: object, what: str) -> Tensor:
    """Refuse what is not a tensor of that kind, or not a dense one."""
    if not isinstance(value, Tensor):
        type_error(name, what, value)
    if value.layout is not torch.strided:
        fix = f"{name}.to_dense() has a number at every place, 0 where nothing is stored"
        raise NotImplementedError(f"{name} must be dense, got the layout {value.layout}: {fix}")
    return value


def check_devices(logits: Tensor, **others: object) -> None:
    """Refuse a tensor that lies elsewhere than the logits, by the name of its argument; a single number may lie anywhere."""
    for name, value in others.items():
        if isinstance(value, Tensor) and value.device != logits.device and value.dim():
            fix = "a meta tensor has no numbers" if value.is_meta else f"move it with {name}.to({str(logits.device)!r})"
            if logits.is_meta:
                fix = "input is a meta tensor, which has no numbers"
            raise RuntimeError(f"{name} must lie on the logits' device, {logits.device}, got {value.device}: {fix}")


def check_logits_dtype(logits: Tensor) -> None:
    """Refuse logits that are not of a floating dtype this library computes with, as torch does."""
    if logits.dtype not in _FLOATS:
        fix = "convert with input.float()"
        if logits.is_complex():
            fix = "logits are real numbers"
        elif not logits.is_floating_point():
            fix = f"did you swap input and target? else {fix}"
        raise NotImplementedError(
            f"input must hold logits in float32, float64, bfloat16 or float16, got {logits.dtype}: {fix}"
        )


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is on for the device's type."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Leave autocast, if it is on, which would round products: a logit near 100 in bfloat16 is off by up to one quarter."""
    return torch.autocast(device.type, enabled=False) if under_autocast(device) else nullcontext()


def axis_of(dim: Any, logits: Tensor) -> int:
    """Check that a dimension is one of the logits', and count it from 0."""
    dim = integer("dim", dim, "an int or None")
    if not -logits.dim() <= dim < logits.dim():
        raise IndexError(
            f"dim must lie in [{-logits.dim()}, {logits.dim()}) for logits of shape {shape(logits)}, got {dim}"
        )
    return int(dim % logits.dim())


def class_axis(logits: Tensor, dim: int | None) -> int:
    """Find the class axis of logits: ``dim``, or 0 for one axis and 1 for more."""
    if logits.dim() == 0:
        raise IndexError("input must have a class dimension, got a tensor without dimensions: shape it (C,) or (N, C)")
    return min(logits.dim() - 1, 1) if dim is None else axis_of(dim, logits)


# --- the tensors of a softmax loss --------------------------------------------------------------------------------------


def check_bias(bias: object) -> Tensor:
    """Refuse a logit_bias that is not a floating tensor."""
    bias = check_tensor("logit_bias", bias, "a torch.Tensor of shape (C,) or of the logits' shape")
    if not bias.is_floating_point():
        fix = "convert with logit_bias.float()"
        if bias.dtype == torch.bool:
            fix = "classes are allowed and forbidden with class_mask, True for those allowed"
        raise RuntimeError(f"logit_bias must be floating, got {bias.dtype}: {fix}")
    return bias


def check_mask(mask: object) -> Tensor:
    """Refuse a class_mask that is not a boolean tensor."""
    mask = check_tensor("class_mask", mask, "a torch.Tensor of shape (C,) or of the logits' shape")
    if mask.dtype != torch.bool:
        fix = "pass class_mask == 1 if 1 stands for allowed, class_mask == 0 if it is to be added to the logits"
        raise RuntimeError(f"class_mask must be boolean, True for the classes allowed, got {mask.dtype}: {fix}")
    return mask


def along_classes_or_whole(value: Tensor, name: str, logits: Tensor, axis: int) -> Tensor:
    """Check that a tensor has the shape ``(C)`` or that of the logits, and lay it out as the logits will be."""
    if value.shape == logits.shape[axis : axis + 1]:
        return value
    if value.shape == logits.shape:
        return value.movedim(axis, 1)
    fix = "give one value a class, or one a logit"
    if value.dim() == logits.dim() and all(a in (1, b) for a, b in zip(value.shape, logits.shape, strict=True)):
        fix = f"expand it with {name}.expand{shape(logits)}"
    elif value.dim() == 1:
        fix = f"it has {len(value)} values for {logits.shape[axis]} classes, which lie along dimension {axis}"
    raise RuntimeError(
        f"{name} must have shape {(logits.shape[axis],)} or {shape(logits)} for logits of shape {shape(logits)}, "
        f"got {shape(value)}: {fix}"
    )


def check_probabilities(logits: Tensor, target: Tensor, dim: int | None) -> None:
    """Refuse a target of the logits' shape that is not floating."""
    if target.is_floating_point():
        return
    axis = class_axis(logits, dim) if logits.dim() else 0
    fix = f"for one-hot rows convert with target.float(), or pass class indices with target.argmax({axis})"
    if logits.dim() == 2 and logits.shape[axis] == 1:
        fix = f"for class indices use target.squeeze({axis})"
    fix += "; for a yes or no to each logit use binary_cross_entropy_with_logits"
    raise RuntimeError(
        f"target must hold floating-point probabilities when its shape equals that of the logits {shape(logits)}, "
        f"got {target.dtype}: {fix}"
    )


def check_index_dtype(logits: Tensor, target: Tensor) -> None:
    """Refuse class indices that are not integers."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise RuntimeError(
            f"target must hold class indices of an integer dtype for logits of shape {shape(logits)} and target of shape "
            f"{shape(target)}, got {target.dtype}: convert whole numbers with target.long(), or give probabilities of the "
            "logits' shape"
        )


def check_index_shape(logits: Tensor, target: Tensor, axis: int, dim: int | None) -> None:
    """Check that class indices have the logits' shape without the class axis."""
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    if target.shape == rows or (logits.dim() == 1 and target.shape == (1,)):
        return
    rule = f"target must have shape {tuple(rows)} or {shape(logits)} for logits of shape {shape(logits)}, got {shape(target)}"
    fix = _shape_fix(logits, target, rows, axis, dim)
    batch = target.shape[0] if target.dim() > 0 else 0
    if logits.dim() == 1:
        if target.dim() == 1:
            raise ValueError(f"{rule}: {fix}")
    elif target.dim() == 0 or batch != logits.shape[0]:
        raise ValueError(f"{rule}: the batch sizes {logits.shape[0]} and {batch} differ; {fix}")
    raise RuntimeError(f"{rule}: {fix}")


def _shape_fix(logits: Tensor, target: Tensor, rows: torch.Size, axis: int, dim: int | None) -> str:
    """Recognise the usual slip behind a wrong shape and say what mends it."""
    if dim is None and logits.dim() > 2 and target.shape == logits.shape[:-1]:
        return "the class dimension seems to be the last; pass dim=-1"
    if axis < target.dim() and target.shape == (*rows[:axis], 1, *rows[axis:]):
        return f"drop the dimension of size 1 with target.squeeze({axis})"
    if target.numel() == rows.numel():
        mixed = "the number of elements fits, but not the order of the dimensions, which a reshape would mix up"
        return layout_fix("target", target.shape, rows) or mixed
    if logits.dim() == 1 and target.dim() <= 1:
        return "logits of shape (C,) are one row and take one class; logits for several rows need shape (N, C)"
    if target.dim() == logits.dim():
        return (
            f"probabilities need exactly the shape of the logits, and class indices one dimension less, {tuple(rows)}"
        )
    return f"give one class index a row, {tuple(rows)}"


def class_weight(weight: Tensor | None, num_classes: int, logits: Tensor, probabilities: bool) -> Tensor | None:
    """Check that there is one weight a class, and for indices its dtype: the logits', or wider where that is half precision."""
    if weight is None:
        return None
    flat = not probabilities and logits.dim() > 2
    if weight.numel() != num_classes or (weight.dim() != 1 and not flat):
        fix = (
            "flatten it with weight.reshape(-1)" if weight.numel() == num_classes else "give one weight for every class"
        )
        if weight.shape == logits.shape[:1]:
            fix = "for one weight for every row, pass sample_weight instead"
        raise RuntimeError(
            f"weight must have shape ({num_classes},) for logits of shape {shape(logits)}, got {shape(weight)}: {fix}"
        )
    if not probabilities:
        if weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(UNDIFFERENTIABLE_WEIGHT)
        wider = logits.dtype.itemsize < 4 and weight.dtype in (torch.float32, torch.float64)
        if weight.dtype != logits.dtype and not wider and not under_autocast(logits.device):
            also = ", float32 or float64" if logits.dtype.itemsize < 4 else ""
            raise RuntimeError(
                f"weight must have the dtype of the logits, {logits.dtype}{also}, when target holds class indices, "
                f"got {weight.dtype}: convert with weight.to({torch.float32 if also else logits.dtype})"
            )
    return weight.reshape(-1)


# --- the tensors of a binary loss ---------------------------------------------------------------------------------------


def check_binary(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None) -> None:
    """Check the tensors of a binary loss against the logits: types, devices, shapes and dtypes."""
    check_tensors(input=input, target=target)
    weights = {"weight": weight, "pos_weight": pos_weight}
    check_tensors(**{name: value for name, value in weights.items() if value is not None})
    check_devices(input, target=target, **weights)
    if target.shape != input.shape:
        fix = "give every logit its own target"
        if target.numel() == input.numel():
            mixed = "the number of elements fits, but not the order of the dimensions, which a reshape would mix up"
            fix = layout_fix("target", target.shape, input.shape) or mixed
        elif input.dim() == target.dim() + 1 and input.shape[:1] == target.shape[:1]:
            fix = "for one class index a row use cross_entropy, or one-hot rows"
        raise ValueError(f"target must have the shape of the logits {shape(input)}, got {shape(target)}: {fix}")
    check_logits_dtype(input)
    if not target.is_floating_point():
        raise _torchs_refusal(target.dtype)(
            f"target must be floating, got {target.dtype}: convert zeros and ones with target.float()"
        )
    for name, value in weights.items():
        if value is None:
            continue
        if value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} must not require grad, the loss is not differentiable in it: pass {name}.detach()"
            )
        if not _broadcasts(value, input):
            fix = _broadcast_fix(name, value, input)
            raise RuntimeError(f"{name} must broadcast to the logits' shape {shape(input)}, got {shape(value)}: {fix}")


def _torchs_refusal(dtype: torch.dtype) -> type[Exception]:
    """Ask the installed torch how it refuses binary targets of a dtype: for bool that changed from 2.13 to 2.14."""
    try:
        binary_cross_entropy_with_logits(torch.zeros(1), torch.zeros(1, dtype=dtype))
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        return type(error)
    return RuntimeError


def _broadcasts(value: Tensor, logits: Tensor) -> bool:
    aligned = zip(reversed(value.shape), reversed(logits.shape), strict=False)
    return value.dim() <= logits.dim() and all(a in (1, b) for a, b in aligned)


def _broadcast_fix(name: str, value: Tensor, logits: Tensor) -> str:
    """Say how a tensor comes to broadcast to the logits."""
    if value.dim() == 1:
        fits = [axis for axis, size in enumerate(logits.shape) if size == value.shape[0]]
        ways = (f"along dimension {k} with {name}.reshape{(-1,) + (1,) * (logits.dim() - k - 1)}" for k in fits)
        return f"lay it {', or '.join(ways)}" if fits else "give one number for every entry of a dimension"
    if value.dim() < logits.dim() and value.shape == logits.shape[: value.dim()]:
        return f"for one number a row use {name}.reshape{tuple(value.shape) + (1,) * (logits.dim() - value.dim())}"
    if value.numel() == logits.numel() and (fix := layout_fix(name, value.shape, logits.shape)):
        return fix
    return "its dimensions must be the logits' last, each of their size or of size 1"


def pos_weight_along(dim: Any, input: object, pos_weight: Tensor | None) -> Tensor | None:
    """Lay a pos_weight of shape ``(C)`` along the class dimension."""
    if not isinstance(input, Tensor) or not isinstance(pos_weight, Tensor):
        integer("dim", dim, "an int or None")
        return pos_weight
    axis = axis_of(dim, input)
    if pos_weight.dim() != 1:
        return pos_weight
    if len(pos_weight) not in (1, input.shape[axis]):
        raise RuntimeError(
            f"pos_weight must have {input.shape[axis]} values along dimension {dim} of logits of shape {shape(input)}, "
            f"got {shape(pos_weight)}: give one weight for every class"
        )
    return pos_weight.reshape([-1] + [1] * (input.dim() - 1 - axis))


def element_mask(mask: object, input: Tensor) -> Tensor | None:
    """Check that a mask of elements is boolean and broadcasts to the logits' shape."""
    if mask is None:
        return None
    mask = check_tensor("mask", mask, "a torch.Tensor that broadcasts to the logits' shape")
    check_devices(input, mask=mask)
    if mask.dtype != torch.bool:
        raise RuntimeError(
            f"mask must be boolean, True for the elements that count, got {mask.dtype}: pass mask == 1 if 1 stands for those, "
            "and factors as weight, which the mean does not divide by"
        )
    if not _broadcasts(mask, input):
        fix = _broadcast_fix("mask", mask, input)
        raise RuntimeError(f"mask must broadcast to the logits' shape {shape(input)}, got {shape(mask)}: {fix}")
    return mask


Place = Literal["beside", "over in forward", "over in backward"]
"""Where the gradient of a sum or a mean goes: beside the logits or over them, and in which pass."""


def may_be_overwritten(logits: Tensor, target: Tensor) -> bool:
    """Whether each logit has memory of its own, which the target does not share.

    A view whose sign torch has put off changing (``is_neg``) does not hold its own numbers, and a target may be another view of
    the logits' memory.
    """
    apart = logits.untyped_storage().data_ptr() != target.untyped_storage().data_ptr()
    return apart and torch._debug_has_internal_overlap(logits) == 0 and not logits.is_neg()


def gradient_place(inplace_backward: bool, inplace_forward: bool, logits: Tensor) -> Place:
    """Say where the gradient is to go; refuse to write it over a leaf, or over a view of one."""
    flag("inplace_backward", inplace_backward)
    flag("inplace_forward", inplace_forward)
    asked = inplace_backward or inplace_forward
    if not asked or torch.compiler.is_compiling():  # compiled code never writes over logits
        return "beside"
    owner = logits._base if logits._is_view() else logits
    if owner is not None and owner.is_leaf and owner.requires_grad:
        raise RuntimeError(
            f"inplace_{'forward' if inplace_forward else 'backward'}=True would write the gradient over a leaf, whose values "
            "would be lost: use it for logits that a model computed, or leave it out"
        )
    # A watcher is shown the logits after forward.
    return "over in forward" if inplace_forward and watch.current() is None else "over in backward"
