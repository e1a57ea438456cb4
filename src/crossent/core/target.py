"""Any target → one description of ``c`` and ``t``; the checks that lead there, and their messages.

Every refusal has the exception type torch has for it, and says which argument broke which rule, what came, and the fix.
"""

from __future__ import annotations

from math import inf
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from crossent.core.penalties import Penalty, check_penalty, named, sides

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

UNDIFFERENTIABLE_WEIGHT = (
    "weight must not require grad when target holds class indices: its derivative is not defined there; "
    "pass weight.detach(), or give the target as probabilities of the logits' shape"
)


class Rule(NamedTuple):
    """The numbers of a call of ``cross_entropy``: what is asked beside its tensors. By default that is nothing.

    ``t`` is smoothed before ``c`` multiplies it. The penalty is named, "" for ``-log p``, with its parameters.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    margin: float = 0.0
    z_loss: float = 0.0
    penalty: str = ""
    parameters: tuple[float, ...] = ()


_NOTHING_SPECIAL = Rule()[2:]


class Target(NamedTuple):
    """All that a call of ``cross_entropy`` says about its logits ``(N, C, d1, ...)``: the one thing that implementations take.

    ``values`` holds class indices ``(N, d1, ...)`` as int64, or the weights ``t`` as floats ``(N, C, d1, ...)``; ``weight``
    holds the class weights ``c`` as ``(C)``, or None for ones. ``logit_bias`` and ``class_mask`` (True for the classes that are
    allowed) are ``(C)`` or of the logits' shape. ``valid``, ``(N, d1, ...)``, is True for the rows that count, beside which
    those of ``ignore_index`` do not either.
    """

    values: Tensor
    weight: Tensor | None = None
    logit_bias: Tensor | None = None
    class_mask: Tensor | None = None
    valid: Tensor | None = None
    rule: Rule = Rule()

    @property
    def ignore_index(self) -> int:
        """The index of rows that count for nothing."""
        return self.rule.ignore_index

    @property
    def label_smoothing(self) -> float:
        """``ε``."""
        return self.rule.label_smoothing

    @property
    def penalty(self) -> Penalty | None:
        """``(f, s)``, or None for ``(-log p, 1)``."""
        penalty: Penalty | None = named(self.rule.penalty, self.rule.parameters)
        return penalty

    @property
    def plain(self) -> bool:
        """Whether this is torch's cross entropy: class weights, smoothing and ignored indices, and nothing else."""
        return (
            self.logit_bias is None
            and self.class_mask is None
            and self.valid is None
            and self.rule[2:] == _NOTHING_SPECIAL
        )

    @property
    def special(self) -> tuple[str, ...]:
        """The settings in use that torch's loss does not have, by name."""
        tensors = [name for name in ("logit_bias", "class_mask", "valid") if getattr(self, name) is not None]
        usual = zip(Rule._fields[2:7], self.rule[2:], _NOTHING_SPECIAL, strict=False)
        return (*(name for name, value, nothing in usual if value != nothing), *tensors)

    @property
    def indices(self) -> bool:
        """Whether the target holds class indices, rather than weights of the logits' shape."""
        return not self.values.is_floating_point()

    def raise_if_out_of_range(self, num_classes: int) -> None:
        """Raise an IndexError that names the first class index outside ``[0, C)``, if there is one to be read."""
        if not self.indices or self.values.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(self.values):
            return
        values = self.values.long()  # torch does not compare every integer
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


class BinaryRule(NamedTuple):
    """The numbers of a call of ``binary_cross_entropy_with_logits``, as :class:`Rule`."""

    ignore_index: float | None = None
    label_smoothing: float = 0.0
    penalty: str = ""
    parameters: tuple[float, ...] = ()


_NOTHING_BINARY = BinaryRule()


class BinaryTarget(NamedTuple):
    """All that a call of ``binary_cross_entropy_with_logits`` says about its logits.

    ``values`` holds ``t``, of the logits' shape; ``weight``, ``pos_weight`` and ``mask`` (True for the elements that count)
    broadcast to it.
    """

    values: Tensor
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    mask: Tensor | None = None
    rule: BinaryRule = _NOTHING_BINARY

    @property
    def penalties(self) -> tuple[Penalty, Penalty] | tuple[None, None]:
        """``(f, s)`` of yes and of no, or None for ``(-log p, 1)``."""
        return sides(self.rule.penalty, self.rule.parameters)

    @property
    def plain(self) -> bool:
        """Whether this is torch's loss, and nothing else."""
        return self.mask is None and self.rule == _NOTHING_BINARY

    @property
    def special(self) -> tuple[str, ...]:
        """The settings in use that torch's loss does not have, by name."""
        usual = zip(BinaryRule._fields[:3], self.rule, _NOTHING_BINARY, strict=False)
        return (
            *(name for name, value, nothing in usual if value != nothing),
            *(["mask"] if self.mask is not None else []),
        )


def describe(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    dim: int | None,
    special: dict[str, Any] | None = None,
) -> tuple[Tensor, Target]:
    """Check what the caller gave and lay it out as the operators want it: logits ``(N, C, d1, ...)`` and a Target.

    The class axis is ``dim``, or 0 for one axis and 1 for more; logits of one axis become a batch of one row. ``special``
    holds the settings that torch does not have, by their names in ``cross_entropy``.
    """
    _check_kinds(logits, target, weight, ignore_index)
    probabilities = target.shape == logits.shape
    check_logits_dtype(logits)
    _check_probabilities(logits, target, probabilities)
    axis = class_axis(logits, dim)
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
    rule, bias, mask = Rule(ignore_index, label_smoothing), None, None
    if special is not None:
        rule = special_rule(rule, **special)
        bias, mask = special["logit_bias"], special["class_mask"]
        bias = None if bias is None else _along(check_bias(bias), "logit_bias", logits, axis)
        mask = None if mask is None else _along(check_mask(mask), "class_mask", logits, axis)

    if logits.dim() == 1:
        logits, target = logits.unsqueeze(0), target.reshape(1, -1) if probabilities else target.reshape(1)
    elif axis != 1:
        logits = logits.movedim(axis, 1)
        target = target.movedim(axis, 1) if probabilities else target
    values = target if probabilities or target.dtype == torch.int64 else target.long()
    return logits, Target(values, weight, bias, mask, None, rule)


def special_rule(
    rule: Rule,
    *,
    penalty: Any = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    margin: float = 0.0,
    z_loss: float = 0.0,
    logit_bias: object = None,
    class_mask: object = None,
) -> Rule:
    """Check the settings that torch does not have, and add their numbers to a rule."""
    temperature = _number("temperature", temperature)
    if not 0.0 < temperature < inf:
        raise ValueError(f"temperature must be positive, got {temperature}: it divides the logits")
    if softcap is not None:
        softcap = _number("softcap", softcap)
        if not 0.0 < softcap < inf:
            raise ValueError(f"softcap must be positive, got {softcap}: it bounds the logits; for none pass None")
    z_loss = _number("z_loss", z_loss)
    if not 0.0 <= z_loss < inf:
        raise ValueError(f"z_loss must be at least 0, got {z_loss}: it is the factor of lse², such as 1e-4")
    margin = _number("margin", margin)
    if not -inf < margin < inf:
        raise ValueError(f"margin must be finite, got {margin}: it is subtracted from the target's logit")
    name, parameters = check_penalty(penalty, binary=False)
    return Rule(rule.ignore_index, rule.label_smoothing, temperature, softcap, margin, z_loss, name, parameters)


# The settings that torch does not have, and what they are where nothing is said.
SPECIAL: dict[str, dict[str, Any]] = {
    "cross_entropy": {
        "penalty": None,
        "temperature": 1.0,
        "softcap": None,
        "logit_bias": None,
        "margin": 0.0,
        "class_mask": None,
        "z_loss": 0.0,
    },
    "binary_cross_entropy_with_logits": {"penalty": None, "ignore_index": None, "label_smoothing": 0.0, "mask": None},
}


def described_settings(loss: str, target: Tensor | None, settings: dict[str, Any]) -> Target | BinaryTarget:
    """Describe the settings of a call without its logits, as far as the choice of an implementation depends on them."""
    known = dict.fromkeys((*SPECIAL[loss], "label_smoothing"))
    for name in settings:
        if name not in known:
            raise TypeError(f"the implementation of {loss} depends on its settings {', '.join(known)}, not on {name}")
    values = torch.empty(0, dtype=torch.int64) if target is None else target
    given = {name: value for name, value in settings.items() if name not in ("mask", "ignore_index", "label_smoothing")}
    smoothing = _smoothing(settings.get("label_smoothing", 0.0))
    if loss != "cross_entropy":
        rule = binary_rule(settings.get("ignore_index"), smoothing, given.get("penalty"))
        return BinaryTarget(values, mask=settings.get("mask"), rule=rule)
    bias, mask = given.get("logit_bias"), given.get("class_mask")
    bias, mask = None if bias is None else check_bias(bias), None if mask is None else check_mask(mask)
    return Target(values, None, bias, mask, None, special_rule(Rule(label_smoothing=smoothing), **given))


def binary_rule(ignore_index: float | None, label_smoothing: float, penalty: Any) -> BinaryRule:
    """Check the numbers of a binary loss."""
    if ignore_index is not None:
        ignore_index = _number("ignore_index", ignore_index)
    return BinaryRule(ignore_index, _smoothing(label_smoothing), *check_penalty(penalty, binary=True))


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a plain number, got a tensor of shape {shape(value)}: the loss is not differentiable in it; "
            f"pass {name}.item()" + (", or divide the logits by it yourself" if name == "temperature" else "")
        )
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        type_error(name, "a number", value)
    return float(value)


def check_bias(bias: object) -> Tensor:
    """Refuse a logit_bias that is not a floating tensor."""
    if not isinstance(bias, Tensor):
        type_error("logit_bias", "a torch.Tensor of shape (C,) or of the logits' shape", bias)
    if not bias.is_floating_point():
        raise RuntimeError(f"logit_bias must be floating, got {bias.dtype}: convert with logit_bias.float()")
    return bias


def check_mask(mask: object) -> Tensor:
    """Refuse a class_mask that is not a boolean tensor."""
    if not isinstance(mask, Tensor):
        type_error("class_mask", "a torch.Tensor of shape (C,) or of the logits' shape", mask)
    if mask.dtype != torch.bool:
        fix = "pass class_mask == 0 if it is to be added" if mask.is_floating_point() else "pass class_mask.bool()"
        raise RuntimeError(f"class_mask must be boolean, True for the classes allowed, got {mask.dtype}: {fix}")
    return mask


def _along(value: Tensor, name: str, logits: Tensor, axis: int) -> Tensor:
    """Hold a tensor to the shape ``(C)`` or that of the logits, and lay it out as the logits will be."""
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


def class_axis(logits: Tensor, dim: int | None) -> int:
    """Find the class axis of logits: ``dim``, or 0 for one axis and 1 for more."""
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
