"""Any target → one description of ``c`` and ``t``, which is all that an implementation is told beside the logits."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossent.core import checks
from crossent.core.modes import readable
from crossent.core.penalties import Penalty
from crossent.core.reduction import compute_dtype, ordered_sum, weigh
from crossent.core.settings import PLAIN, PLAIN_BINARY, TORCHS, BinarySettings, LogitOptions, Record, Settings, names_of

# Reads off a record the numbers that torch's loss does not have. An attrgetter does so in C, which counts in every call.
_own_numbers = attrgetter(*(name for name in Settings.names if name not in TORCHS))
_NO_OWN_NUMBERS = _own_numbers(PLAIN)


def stand_in(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the shape and device of logits that takes no memory."""
    return logits.new_empty((), dtype=dtype).expand(logits.shape)


ELSEWHERE = -1
"""The index of a class that another shard has."""


class Target(NamedTuple):
    """All that a call of ``cross_entropy`` says about its logits ``(N, C, d1, ...)``: the one thing that implementations take.

    ``values`` holds class indices ``(N, d1, ...)`` as int64, or the weights ``t`` as floats ``(N, C, d1, ...)``; ``weight``
    holds the class weights ``c`` as ``(C)``, or None for ones. ``logit_bias`` and ``class_mask`` (True for the classes that are
    allowed) are ``(C)`` or of the logits' shape. ``valid``, ``(N, d1, ...)``, is False for rows that do not count. Rows of
    ``ignore_index`` do not count either. Where the logits are a shard of the classes, so is every tensor that has
    classes, and the index ``ELSEWHERE`` is that of a row that counts and has its class on another shard.
    """

    values: Tensor
    weight: Tensor | None = None
    logit_bias: Tensor | None = None
    class_mask: Tensor | None = None
    valid: Tensor | None = None
    settings: Settings = PLAIN

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What it holds beside the numbers, in order."""
        return self.values, self.weight, self.logit_bias, self.class_mask, self.valid

    @property
    def penalty(self) -> Penalty | None:
        """``(f, s)``, or None for ``(-log p, 1)``."""
        penalty: Penalty | None = self.settings.penalty.make()
        return penalty

    @property
    def special(self) -> tuple[str, ...]:
        """The options in use that torch's loss does not have, by name."""
        numbers = tuple(name for name in self.settings.unusual() if name not in TORCHS)
        return numbers + tuple(
            name for name in ("logit_bias", "class_mask", "valid") if getattr(self, name) is not None
        )

    @property
    def plain(self) -> bool:
        """Whether this is torch's cross entropy: class weights, smoothing and ignored indices, and nothing else."""
        if self.logit_bias is not None or self.class_mask is not None or self.valid is not None:
            return False
        if self.settings is PLAIN:
            return True
        if torch.compiler.is_compiling():  # the compiler cannot look into an attrgetter
            return not self.special
        usual: bool = _own_numbers(self.settings) == _NO_OWN_NUMBERS
        return usual

    @property
    def is_shard(self) -> bool:
        """Whether the logits are some of the classes only."""
        return self.settings.all_classes != 0

    @property
    def indices(self) -> bool:
        """Whether the target holds class indices, rather than weights of the logits' shape."""
        return not self.values.is_floating_point()

    def leaving_out(self, rows: Tensor) -> Target:
        """Let some rows, marked as ``(N, d1, ...)``, count for nothing, whatever they hold."""
        if self.indices:
            return self._replace(values=self.values.masked_fill(rows, self.settings.ignore_index))
        return self._replace(valid=~rows if self.valid is None else self.valid & ~rows)

    def ignored_rows(self) -> Tensor | None:
        """Mark the rows that count for nothing, as ``(N, 1, d1, ...)``; None where every row counts."""
        ignored = (self.values == self.settings.ignore_index).unsqueeze(1) if self.indices else None
        if self.valid is None:
            return ignored
        invalid = ~self.valid.unsqueeze(1)
        return invalid if ignored is None else ignored | invalid

    def counted_rows(self, logits: Tensor) -> Tensor:
        """Mark the rows that count, as ``(N, d1, ...)``."""
        ignored = self.ignored_rows()
        if ignored is None:
            return torch.ones_like(logits.select(1, 0) if logits.shape[1] else logits.sum(1), dtype=torch.bool)
        return ~ignored.squeeze(1)

    def labels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Describe class indices as rows ``(N, 1, d1, ...)``: which are ignored, the class (0 where ignored), and ``c[y]``."""
        ignored = self.ignored_rows()
        assert ignored is not None
        y = self.values.unsqueeze(1).masked_fill(ignored, 0)
        weightless = ignored if not self.is_shard else ignored | (y == ELSEWHERE)
        if self.weight is None:
            return ignored, y, (~weightless).to(x.dtype)
        return ignored, y, self.weight.to(x.dtype)[y.clamp(0, x.shape[1] - 1)].masked_fill(weightless, 0.0)

    def row_weights(self, x: Tensor) -> Tensor:
        """Compute what each row adds to the divisor of a mean, as ``(N, 1, d1, ...)`` in the dtype of ``x``.

        That is ``c[y]`` for indices, 0 where ignored, and 1 for probabilities.
        """
        if self.indices:
            return self.labels(x)[2]
        ones = torch.ones_like(x.narrow(1, 0, 1))
        return ones if self.valid is None else ones * self.valid.unsqueeze(1)

    def some_rows(self, rows: slice) -> Target:
        """Describe the target of some rows of the batch."""
        values, valid = self.values[rows], None if self.valid is None else self.valid[rows]
        bias, mask = (t if t is None or t.dim() == 1 else t[rows] for t in (self.logit_bias, self.class_mask))
        return self._replace(values=values, logit_bias=bias, class_mask=mask, valid=valid)

    def some_pixels(self, pixels: slice) -> Target:
        """Describe the target of some positions along the one dimension behind the classes."""
        values, valid = self.values[..., pixels], None if self.valid is None else self.valid[..., pixels]
        bias, mask = (t if t is None or t.dim() == 1 else t[..., pixels] for t in (self.logit_bias, self.class_mask))
        return self._replace(values=values, logit_bias=bias, class_mask=mask, valid=valid)

    def divisor(self, logits: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute what the mean divides by; ``sample_weight`` multiplies what each row adds."""
        of_rows = self.row_weights(stand_in(logits, compute_dtype(logits, self.values)))
        return ordered_sum(of_rows if sample_weight is None else weigh(of_rows.squeeze(1), sample_weight))

    def raise_if_out_of_range(self, num_classes: int) -> None:
        """Raise an IndexError that names the first class index outside ``[0, C)``, if there is one to be read."""
        if not self.indices or self.values.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(self.values):
            return
        ignore_index = self.settings.ignore_index
        values = self.values.long()  # torch cannot compare every integer dtype
        wrong = (values != ignore_index) & ((values < 0) | (values >= num_classes))
        where = wrong.nonzero()
        if len(where) == 0:
            return
        at = tuple(where[0].tolist())
        label = int(values[at])
        place = ", ".join(map(str, at))
        fix = self._range_fix(label, values, num_classes)
        raise IndexError(
            f"target must lie in [0, {num_classes}) for logits with {num_classes} classes, or equal "
            f"ignore_index={ignore_index}; got {label} at target[{place}]"
            f"{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {fix}"
        )

    def _range_fix(self, label: int, values: Tensor, num_classes: int) -> str:
        """Say what a label out of range usually means, with a fix that changes the meaning of no other row."""
        ignore_index = self.settings.ignore_index
        ignores = bool((values == ignore_index).any()) or 0 <= ignore_index < num_classes
        if label == num_classes:
            start = int(values.masked_fill(values == ignore_index, num_classes).min())
            missing_logit = "if there is one more class, the model needs one more logit"
            also = f" from all of target.long() and pass ignore_index={ignore_index - 1}" if ignores else ""
            return f"if labels start at 1, subtract 1{also}; {missing_logit}" if start == 1 else missing_logit
        if label < 0 or label == 255:
            if ignores:
                return f"to leave such rows out too, use target.long().masked_fill(target == {label}, {ignore_index})"
            return f"to leave such rows out, pass ignore_index={label}"
        return "check the labels against the number of logits"


class BinaryTarget(NamedTuple):
    """All that a call of ``binary_cross_entropy_with_logits`` says about its logits.

    ``values`` holds ``t``, of the logits' shape; ``weight``, ``pos_weight`` and ``mask`` (True for the elements that count)
    broadcast to it.
    """

    values: Tensor
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    mask: Tensor | None = None
    settings: BinarySettings = PLAIN_BINARY

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What it holds beside the numbers, in order."""
        return self.values, self.weight, self.pos_weight, self.mask

    @property
    def penalties(self) -> tuple[Penalty, Penalty] | tuple[None, None]:
        """``(f, s)`` of yes and of no, or None for ``(-log p, 1)``."""
        return self.settings.penalty.sides()

    @property
    def plain(self) -> bool:
        """Whether this is torch's loss, and nothing else."""
        return self.mask is None and (self.settings is PLAIN_BINARY or self.settings == PLAIN_BINARY)

    @property
    def special(self) -> tuple[str, ...]:
        """The options in use that torch's loss does not have, by name."""
        return (*self.settings.unusual(), *(["mask"] if self.mask is not None else []))

    def some_rows(self, rows: slice) -> BinaryTarget:
        """Describe the target of some slices of the first dimension."""
        dims = self.values.dim()
        weight, pos_weight, mask = (
            t if t is None or t.dim() < dims or len(t) == 1 else t[rows] for t in self.tensors[1:]
        )
        return BinaryTarget(self.values[rows], weight, pos_weight, mask, self.settings)

    def valid_elements(self) -> Tensor | None:
        """Mark the elements that count; None where all do."""
        if self.settings.ignore_index is None:
            return self.mask
        counted = self.values != self.settings.ignore_index
        return counted if self.mask is None else counted & self.mask


class Teacher(NamedTuple):
    """The target of a distillation: ``t = softmax((h Wᵀ + b) / T)`` of a teacher's hidden states and head, formed in blocks.

    With a ``class_mask`` it is the softmax over the classes that are allowed, as the student's is.

    Attributes:
        input: hidden states ``h``, ``(..., D)``, the same leading dimensions as the student's.
        weight: head ``W``, ``(C, D)`` or ``(C, d1, ..., D)``; or the module that is the head.
        bias: ``b``, of the shape of ``W`` without its last dimension.
        temperature: ``T``, positive.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0


SPECIAL: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("penalty", *names_of(LogitOptions)),
    "binary_cross_entropy_with_logits": (
        "penalty",
        *(name for name in BinarySettings.names if name not in ("penalty", "label_smoothing")),
        "mask",
    ),
}
"""The options of each loss that describe its logits and that torch does not have."""

_OF_BOTH = ("label_smoothing", "reduction", "sample_weight", "inplace_backward", "inplace_forward")
CHOICE_OPTIONS: dict[str, tuple[str, ...]] = {
    "cross_entropy": _OF_BOTH,
    "binary_cross_entropy_with_logits": (*_OF_BOTH, "pos_weight"),
}
"""The other options of each loss on which the choice of an implementation depends."""


def describe(
    logits: Tensor, target: Tensor, weight: Tensor | None, dim: int | None, options: dict[str, Any]
) -> tuple[Tensor, Target]:
    """Check what the caller gave and lay it out as the operators want it: logits ``(N, C, d1, ...)`` and a Target.

    The class axis is ``dim``, or 0 for one axis and 1 for more; logits of one axis become a batch of one row. ``options``
    holds the numbers of :class:`Settings`, ``logit_bias`` and ``class_mask``, as far as they are given.
    """
    checks.check_tensors(input=logits, target=target)
    if weight is not None:
        checks.check_tensor("weight", weight, "a torch.Tensor of shape (C,) or None")
    bias, mask = options.get("logit_bias"), options.get("class_mask")
    checks.check_devices(logits, target=target, weight=weight, logit_bias=bias, class_mask=mask)
    ignore_index = checks.integer_of_64_bits("ignore_index", options.get("ignore_index", -100))
    probabilities = target.shape == logits.shape
    checks.check_logits_dtype(logits)
    if probabilities:
        checks.check_probabilities(logits, target, dim)
    axis = checks.class_axis(logits, dim)
    numbers = _numbers(Settings, options)
    label_smoothing = checks.smoothing("label_smoothing", numbers.get("label_smoothing", 0.0))
    if probabilities:
        if ignore_index >= 0:
            raise RuntimeError(
                f"ignore_index must be negative when target holds probabilities, which have no index to ignore; "
                f"got {ignore_index}: leave it out, and give rows to be ignored a sample_weight of 0"
            )
    else:
        checks.check_index_shape(logits, target, axis, dim)
        checks.check_index_dtype(logits, target)
    weight = checks.class_weight(weight, logits.shape[axis], logits, probabilities)
    numbers["ignore_index"], numbers["label_smoothing"] = ignore_index, label_smoothing
    settings = Settings.of(**numbers)
    if bias is not None:
        bias = checks.along_classes_or_whole(checks.check_bias(bias), "logit_bias", logits, axis)
    if mask is not None:
        mask = checks.along_classes_or_whole(checks.check_mask(mask), "class_mask", logits, axis)

    if logits.dim() == 1:
        logits, target = logits.unsqueeze(0), target.reshape(1, -1) if probabilities else target.reshape(1)
    elif axis != 1:
        logits = logits.movedim(axis, 1)
        target = target.movedim(axis, 1) if probabilities else target
    values = target if probabilities or target.dtype == torch.int64 else target.long()
    described = Target(values, weight, bias, mask, None, settings)
    return logits, described if mask is None or logits.shape[1] == 0 else allowing_some(described, mask, logits)


def allowing_some(target: Target, mask: Tensor, logits: Tensor) -> Target:
    """Leave out the rows that allow no class; the mask is ``(C)`` or has the shape ``(N, C, d1, ...)`` of the logits."""
    nothing = ~mask.any(0 if mask.dim() == 1 else 1)
    if mask.dim() == 1 and readable(mask) and not nothing:
        return target
    return target.leaving_out(nothing.expand(logits.shape[:1] + logits.shape[2:]))


def describe_options(loss: str, target: Tensor | None, options: dict[str, Any]) -> Target | BinaryTarget:
    """Describe the options of a call without its logits, as far as the choice of an implementation depends on them."""
    if not isinstance(loss, str) or loss not in SPECIAL:
        raise ValueError(f"loss must be one of {', '.join(map(repr, SPECIAL))}, got {loss!r:.60}")
    names = (*SPECIAL[loss], *CHOICE_OPTIONS[loss])
    for name in options:
        if name not in names:
            raise TypeError(f"the implementation of {loss} depends on its settings {', '.join(names)}, not on {name}")
    values = torch.empty(0, dtype=torch.int64, device="cpu") if target is None else target
    if loss == "cross_entropy":
        bias, mask = options.get("logit_bias"), options.get("class_mask")
        bias, mask = (
            None if bias is None else checks.check_bias(bias),
            None if mask is None else checks.check_mask(mask),
        )
        return Target(values, None, bias, mask, None, Settings.of(**_numbers(Settings, options)))
    settings = BinarySettings.of(**_numbers(BinarySettings, options))
    return BinaryTarget(values, None, options.get("pos_weight"), options.get("mask"), settings)


def _numbers(record: type[Record], options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in record.names if name in options}
