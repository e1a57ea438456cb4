"""Any target → one description of ``c`` and ``t``; the checks that lead there, and their messages.

Every refusal has the exception type torch has for it, and says which argument broke which rule, what came, and the fix.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

UNDIFFERENTIABLE_WEIGHT = (
    "weight must not require grad when target holds class indices: its derivative is not defined there; "
    "pass weight.detach(), or give the target as probabilities of the logits' shape"
)


class Target(NamedTuple):
    """What a row's ``c ∘ t`` is made of.

    ``values`` holds class indices ``(N, d1, ...)`` as int64, or the weights ``t`` as floats ``(N, C, d1, ...)``; ``weight``
    holds the class weights ``c`` as ``(C)``, or None for ones. ``t`` is smoothed before ``c`` multiplies it.
    """

    values: Tensor
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float

    @property
    def indices(self) -> bool:
        """Whether the target holds class indices, rather than weights of the logits' shape."""
        return not self.values.is_floating_point()

    def raise_if_out_of_range(self, num_classes: int) -> None:
        """Raise an IndexError that names the first class index outside ``[0, C)``, if there is one to be read."""
        if not self.indices or self.values.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(self.values):
            return
        values = self.values
        wrong = (values != self.ignore_index) & ((values < 0) | (values >= num_classes))
        where = wrong.nonzero()
        if len(where) == 0:
            return
        at = tuple(where[0].tolist())
        label = int(values[at])
        place = ", ".join(map(str, at))
        if label == num_classes:
            fix = "if labels start at 1, subtract 1; if there is one more class, the model needs one more logit"
        elif label < 0 or label == 255:
            fix = f"to leave such rows out, pass ignore_index={label}"
        else:
            fix = "check the labels against the number of logits"
        raise IndexError(
            f"target must lie in [0, {num_classes}) for logits with {num_classes} classes, or equal "
            f"ignore_index={self.ignore_index}; got {label} at target[{place}]"
            f"{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {fix}"
        )


def describe(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, dim: int | None
) -> tuple[Tensor, Target]:
    """Check what the caller gave and lay it out as the operators want it: logits ``(N, C, d1, ...)`` and a Target.

    The class axis is ``dim``, or 0 for one axis and 1 for more; logits of one axis become a batch of one row.
    """
    _check_kinds(logits, target, weight, ignore_index)
    probabilities = target.shape == logits.shape
    check_logits_dtype(logits)
    _check_probabilities(logits, target, probabilities)
    axis = _class_axis(logits, dim)
    num_classes = logits.shape[axis]
    label_smoothing = _smoothing(label_smoothing)
    if probabilities:
        if ignore_index >= 0:
            raise RuntimeError(
                f"ignore_index must be negative when target holds probabilities, which have no index to ignore; "
                f"got {ignore_index}: leave it out, and give rows to be ignored a sample_weight of 0"
            )
    else:
        _check_index_shape(logits, target, axis, dim)
        _check_index_dtype(logits, target)
    weight = _class_weight(weight, num_classes, logits, probabilities)

    if logits.dim() == 1:
        logits, target = logits.unsqueeze(0), target.reshape(1, -1) if probabilities else target.reshape(1)
    elif axis != 1:
        logits = logits.movedim(axis, 1)
        target = target.movedim(axis, 1) if probabilities else target
    values = target if probabilities or target.dtype == torch.int64 else target.long()
    return logits, Target(values, weight, ignore_index, label_smoothing)


def shape(tensor: Tensor) -> str:
    """Write a shape as a tuple, for a message."""
    return str(tuple(tensor.shape))


def type_error(name: str, rule: str, value: object) -> NoReturn:
    """Refuse a value of the wrong type."""
    raise TypeError(f"{name} must be {rule}, got {type(value).__module__}.{type(value).__qualname__}: {value!r:.60}")


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is on for the device's type."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def check_logits_dtype(logits: Tensor) -> None:
    """Refuse logits that are not of a floating dtype this library computes with, as torch does."""
    if logits.dtype not in _FLOATS:
        raise NotImplementedError(
            f"input must hold logits in float32, float64, bfloat16 or float16, got {logits.dtype}: "
            f"{'did you swap input and target? else ' if not logits.is_floating_point() else ''}"
            f"convert with input.float()"
        )


def _check_kinds(logits: object, target: object, weight: object, ignore_index: object) -> None:
    for name, value in (("input", logits), ("target", target)):
        if not isinstance(value, Tensor):
            type_error(name, "a torch.Tensor", value)
    if weight is not None and not isinstance(weight, Tensor):
        type_error("weight", "a torch.Tensor of shape (C,) or None", weight)
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        type_error("ignore_index", "an int", ignore_index)


def _check_probabilities(logits: Tensor, target: Tensor, probabilities: bool) -> None:
    if probabilities and not target.is_floating_point():
        fix = "for one-hot rows convert with target.float(), or pass class indices with target.argmax(1)"
        if logits.dim() == 2 and logits.shape[1] == 1:
            fix = "for class indices use target.squeeze(1); for one logit a row use binary_cross_entropy_with_logits"
        raise RuntimeError(
            f"target must hold floating-point probabilities when its shape equals that of the logits {shape(logits)}, "
            f"got {target.dtype}: {fix}"
        )


def _check_index_dtype(logits: Tensor, target: Tensor) -> None:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise RuntimeError(
            f"target must hold class indices of an integer dtype for logits of shape {shape(logits)} and target of shape "
            f"{shape(target)}, got {target.dtype}: convert with target.long(), or give probabilities of the logits' shape"
        )


def _class_axis(logits: Tensor, dim: int | None) -> int:
    if logits.dim() == 0:
        raise IndexError("input must have a class dimension, got a tensor without dimensions: shape it (C,) or (N, C)")
    if dim is None:
        return min(logits.dim() - 1, 1)
    if not isinstance(dim, int) or isinstance(dim, bool):
        type_error("dim", "an int or None", dim)
    if not -logits.dim() <= dim < logits.dim():
        raise IndexError(
            f"dim must lie in [{-logits.dim()}, {logits.dim()}) for logits of shape {shape(logits)}, got {dim}"
        )
    return dim % logits.dim()


def _check_index_shape(logits: Tensor, target: Tensor, axis: int, dim: int | None) -> None:
    """Hold class indices to the logits' shape without the class axis."""
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
    if (
        target.dim() == len(rows) + 1
        and target.numel() == rows.numel()
        and axis < target.dim()
        and target.shape[axis] == 1
    ):
        return f"drop the dimension of size 1 with target.squeeze({axis})"
    if target.numel() == rows.numel():
        return f"the number of elements fits; reshape with target.reshape{tuple(rows)}"
    if logits.dim() == 1 and target.dim() <= 1:
        return "logits of shape (C,) are one row and take one class; logits for several rows need shape (N, C)"
    if target.dim() == logits.dim():
        return (
            f"probabilities need exactly the shape of the logits, and class indices one dimension less, {tuple(rows)}"
        )
    return f"give one class index a row, {tuple(rows)}"


def _smoothing(label_smoothing: float | Tensor) -> float:
    if isinstance(label_smoothing, (str, bytes)) or label_smoothing is None:
        type_error("label_smoothing", "a float in [0, 1]", label_smoothing)
    value = float(label_smoothing)
    if value > 1.0:
        raise RuntimeError(
            f"label_smoothing must lie in [0, 1], got {value}: it is a share of the target's weight, such as 0.1"
        )
    return value if value > 0.0 else 0.0  # torch reads negative numbers and nan as 0


def _class_weight(weight: Tensor | None, num_classes: int, logits: Tensor, probabilities: bool) -> Tensor | None:
    """Hold class weights to one a class, and for indices to the logits' dtype."""
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
        if weight.dtype != logits.dtype and not under_autocast(logits.device):
            raise RuntimeError(
                f"weight must have the dtype of the logits, {logits.dtype}, when target holds class indices, "
                f"got {weight.dtype}: convert with weight.to({logits.dtype})"
            )
    return weight.reshape(-1)
