"""The compiled CPU kernels of ``csrc/``, launched on torch tensors.

Forward reads the logits once and stores O(rows); backward reads them once and writes the gradient once, on memory that is
recycled from the step before (``CROSSENT_RECYCLE=0`` in the environment takes fresh memory each time). Logits are taken without
a copy where their dimensions behind the class dimension lie as one, whatever the strides: contiguous, channels_last, transposed,
sliced. Others are copied first. ``refuses`` says what the kernels do not take at all.
"""

from __future__ import annotations

import os
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from crossent import _native
from crossent.core.checks import may_be_overwritten
from crossent.core.penalties import NamedPenalty
from crossent.core.reduction import weigh
from crossent.core.settings import PLAIN, Settings
from crossent.core.target import BinaryTarget, Target
from crossent.impl.protocol import Forward, Gradients, Implementation, Partials, RowStatistics, Sum

_CPU = torch.device("cpu")  # said wherever a tensor is made, since a default device may be another
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _borrow_threads() -> None:
    """Hand torch's parallel_for to the kernels, so that there is one thread pool; without it they run on one thread."""
    library = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (library / name).exists():
            _native.use_threads_of(str(library / name))


def _obey_environment() -> None:
    """Use the instruction set that the environment names; a name is obeyed or refused."""
    if name := os.environ.get("CROSSENT_ISA"):
        try:
            _native.use_isa(name)
        except ValueError as error:
            raise ValueError(f"CROSSENT_ISA={name} cannot be obeyed: {error}; unset it, or name one of these") from None


_obey_environment()
_borrow_threads()
_native.know_types(torch.Tensor, torch.nn.Parameter)

_PENALTIES = {**_native.PENALTIES, "MAE": _native.PENALTIES["GCE"]}


def refuses(logits: Tensor, target: Tensor | None = None, described: Target | BinaryTarget | None = None) -> str | None:
    """Say why the kernels cannot take these logits, this target and what else the call says, or None if they can."""
    if logits.device.type != "cpu":
        return f"the native kernels run on the CPU, and the logits are on {logits.device}"
    soft = target is not None and target.is_floating_point()
    if target is not None and soft and target.dtype != logits.dtype:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if target.dtype != wide:
            return f"the native kernels take probabilities in {logits.dtype} or {wide} for such logits, not in {target.dtype}"
    if described is None or described.plain:
        return None
    left = _left_to_eager(described, soft) if isinstance(described, Target) else described.special[0]
    return None if left is None else f"the native kernels do not take {left}, which goes to torch operations"


def _left_to_eager(target: Target, soft: bool) -> str | None:
    """Name the first thing of a softmax loss that the kernels do not take; docs/performance.md has the list."""
    settings, bias, mask = target.settings, target.logit_bias, target.class_mask
    if target.valid is not None:
        return "rows left out beside those of ignore_index"
    for name, tensor in (("logit_bias", bias), ("class_mask", mask)):
        if tensor is not None and tensor.dim() != 1:
            return f"a {name} of the logits' shape"
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return "a logit_bias that requires grad"
    if settings.penalty.name not in _PENALTIES:
        return f"the penalty {settings.penalty.name}"
    return "a margin with probabilities" if soft and settings.margin else None


@cache
def _penalty(penalty: NamedPenalty) -> tuple[int, float, float]:
    """Write a penalty as the kernels have it: its number and two parameters."""
    kind, (a, b) = _PENALTIES[penalty.name], (*penalty.parameters, 0.0, 0.0)[:2]
    if penalty.name == "MAE":
        return kind, 1.0, 0.0
    if penalty.name == "GCE" and a == 0:
        return _PENALTIES[""], 0.0, 0.0  # its limit, -log p
    if penalty.name == "SCE":
        alpha, beta, log_of_zero = penalty.parameters
        return kind, alpha, -beta * log_of_zero
    return kind, a, b


class Member(NamedTuple):
    """What makes a member of the family other than cross entropy, as csrc/bind_softmax.h reads it by these names.

    To the kernels a mask is a bias that is the largest number there is, and a penalty is a number and two parameters.
    ``spread`` holds the weights over which smoothing spreads where some classes are masked, ``spread_classes`` how many are
    not, ``spread_sum`` the sum of those weights.
    """

    settings: Settings
    penalty: int
    penalty_a: float
    penalty_b: float
    bias: Tensor | None
    masked: bool
    spread: Tensor | None = None
    spread_classes: float = 0.0
    spread_sum: float = 0.0


def _member(target: Target, dtype: torch.dtype, num_classes: int) -> Member | None:
    """Describe a member of the family to the kernels; None for cross entropy itself."""
    if target.plain:
        return None
    settings, bias, mask = target.settings, target.logit_bias, target.class_mask
    bias = None if bias is None else bias.detach().to(dtype)
    if mask is not None:
        bias = torch.zeros(num_classes, dtype=dtype, device=_CPU) if bias is None else bias
        marker = torch.finfo(dtype).max
        bias = bias.masked_fill(bias == marker, marker / 2).masked_fill(~mask, marker)
    bias = None if bias is None else bias.contiguous()
    member = Member(settings, *_penalty(settings.penalty), bias, mask is not None)
    if mask is None or not settings.label_smoothing:
        return member
    spread = mask.to(dtype)
    allowed = spread.sum().item()
    spread = spread if target.weight is None else weigh(spread, target.weight.to(dtype))
    return member._replace(spread=spread, spread_classes=allowed, spread_sum=spread.sum(dtype=torch.float64).item())


class _StatisticsMemory(NamedTuple):
    """Where a pass over the rows writes what it tells beside the loss."""

    entropy: Tensor
    target_log_prob: Tensor
    correct: Tensor
    predicted: Tensor


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _weight(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.to(dtype).contiguous()


# --- memory -----------------------------------------------------------------------------------------------------------

_LARGE = 1 << 20  # bytes from which on memory is recycled
_DLPACK_CODE = {torch.bfloat16: 4}
_RECYCLES = _native.RECYCLES and os.environ.get("CROSSENT_RECYCLE", "1") != "0"


def new(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor, a large one in recycled memory, whose pages are there already."""
    if _RECYCLES and prod(shape) * dtype.itemsize >= _LARGE:
        strides = torch.empty(shape, device="meta").stride() if strides is None else strides
        capsule = _native.recycled(shape, strides, _DLPACK_CODE.get(dtype, 2), 8 * dtype.itemsize)
        if capsule is not None:
            return torch.from_dlpack(capsule)
    if strides is None:
        return torch.empty(shape, dtype=dtype, device=_CPU)
    return torch.empty_strided(shape, strides, dtype=dtype, device=_CPU)


def _new_like(x: Tensor) -> Tensor:
    if x.nbytes < _LARGE:
        return torch.empty_like(x)
    return new(x.shape, torch.empty_like(x, device="meta").stride(), x.dtype)


def _new_numbers(logits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an empty tensor of the dtype of sums: float32, or float64 for such logits."""
    return logits.new_empty(shape) if logits.dtype.itemsize >= 4 else logits.new_empty(shape, dtype=torch.float32)


def _new_lse(logits: Tensor) -> Tensor:
    shape = (2, *logits.shape[:1], *logits.shape[2:])
    return _new_numbers(logits, shape) if logits.nbytes < _LARGE else new(shape, None, _wide(logits))


def _number(dtype: torch.dtype) -> Tensor:
    return torch.empty((), dtype=dtype, device=_CPU)


def _losses_of_rows(logits: Tensor, target: Tensor, few: bool) -> Tensor:
    """Return an empty tensor for the loss of each row: a few in the dtype of the logits, more in that of sums."""
    dtype = logits.dtype if few else _wide(logits)
    if target.is_floating_point():
        return torch.empty(logits.shape[:1] + logits.shape[2:], dtype=dtype, device=_CPU)
    return torch.empty_like(target, dtype=dtype)


# A tensor of one number is made when the first call asks for it and not at import, which any mode may surround.
MAKERS = {
    "empty_like": torch.empty_like, "recycled_like": _new_like, "lse_of": _new_lse, "rows_of": _losses_of_rows,
    "number": lambda x: _number(x.dtype),
}  # fmt: skip
_native.know_makers(**MAKERS)


def _gradient(x: Tensor, target: Tensor, inplace: bool) -> Tensor:
    """Return where the gradient of x is to be written: new memory, or that of x where it may be overwritten."""
    return x.detach() if inplace and may_be_overwritten(x, target) else _new_like(x)


# --- softmax ----------------------------------------------------------------------------------------------------------


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> Forward:
    """Compute the loss and weight of each row, or the sum of both, or the mean and its divisor; see the eager implementation."""
    rows = logits.shape[:1] + logits.shape[2:]
    none = reduction == "none"
    loss = _new_numbers(logits, rows if none else ())
    row_weight = _new_numbers(logits, rows) if none else None
    if logits.numel() == 0:
        nothing = torch.nan if reduction == "mean" else 0.0
        lse = _new_lse(logits).zero_()
        return Forward(loss.fill_(nothing), 0.0 if row_weight is None else row_weight.zero_(), lse)
    total, lse = _forward(logits, target, _native.REDUCTIONS[reduction], loss, row_weight)
    return Forward(loss, total if row_weight is None else row_weight, lse)


def _forward(
    logits: Tensor,
    target: Target,
    reduction: int,
    loss: Tensor,
    row_weight: Tensor | None,
    statistics: Any = None,
    mass: Tensor | None = None,
) -> tuple[float, Tensor]:
    """Run the forward kernels; return the sum of the rows' weights and lse."""
    values, weight, _, _, _, settings = target
    if not values.is_floating_point():
        values = values.contiguous()
    wide, lse = loss.dtype, _new_lse(logits)
    member = None if target.plain else _member(target, wide, logits.shape[1])
    weight = None if weight is None else _weight(weight, wide)

    def run(logits: Tensor, values: Tensor) -> float | None:
        return _native.softmax_forward(
            logits, values, weight, settings.ignore_index, settings.label_smoothing, reduction, loss, row_weight, lse,
            member, statistics, mass,
        )  # fmt: skip

    total = run(logits, values)
    if total is None:
        total = run(logits.contiguous(), values.contiguous())
        assert total is not None
    return total, lse


def partials(logits: Tensor, target: Target) -> Partials:
    """Compute what a shard of the classes tells of each row; see the protocol."""
    if logits.numel() == 0:
        return Partials.of_nothing(logits, _wide(logits))
    loss, mass = (_new_numbers(logits, logits.shape[:1] + logits.shape[2:]) for _ in range(2))
    lse = _forward(logits, target, _native.REDUCTIONS["none"], loss, None, None, mass)[1]
    return Partials.of_rows(lse, loss, mass)


def cross_entropy_statistics(logits: Tensor, target: Target) -> RowStatistics:
    """Compute the statistics of each row in one pass."""
    rows = logits.shape[:1] + logits.shape[2:]
    loss, row_weight, entropy, log_prob = (_new_numbers(logits, rows) for _ in range(4))
    correct, predicted = (torch.empty(rows, dtype=dtype, device=_CPU) for dtype in (torch.uint8, torch.int64))
    memory = _StatisticsMemory(entropy, log_prob, correct, predicted)
    _, lse = _forward(logits, target, _native.REDUCTIONS["none"], loss, row_weight, memory)
    sums = lse[0] + lse[1]
    if target.indices:
        sums.masked_fill_(target.values == target.settings.ignore_index, 0.0)
    return RowStatistics(loss, sums, log_prob, entropy, row_weight, correct.to(loss.dtype), predicted)


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: Tensor,
    needs: tuple[bool, ...] = (True, False, False, False),
    divisor: float | Tensor = 1.0,
    inplace: bool = False,
    elsewhere: Tensor | None = None,
) -> Gradients:
    """Compute the gradients for logits and target; see the eager implementation."""
    dtype = _wide(logits)
    if grad.dim() > 0:
        grad = grad.to(dtype).contiguous()
    values = target.values.contiguous() if target.indices else target.values
    settings = (
        _weight(target.weight, dtype),
        lse.contiguous(),
        target.settings.ignore_index,
        target.settings.label_smoothing,
    )
    if logits.numel() == 0:
        return Gradients(_new_like(logits) if needs[0] else None, _new_like(target.values) if needs[1] else None)
    grad_logits = _gradient(logits, values, inplace) if needs[0] else None
    grad_target = _new_like(target.values) if needs[1] else None
    member = _member(target, dtype, logits.shape[1])
    elsewhere = None if elsewhere is None else elsewhere.to(dtype).contiguous()
    rest = (member, elsewhere)
    if not _native.softmax_backward(grad, float(divisor), logits, values, *settings, grad_logits, grad_target, *rest):
        grad_logits = None if grad_logits is None else torch.empty(logits.shape, dtype=logits.dtype, device=_CPU)
        grad_target = None if grad_target is None else torch.empty(values.shape, dtype=values.dtype, device=_CPU)
        _native.softmax_backward(
            grad, float(divisor), logits.contiguous(), values.contiguous(), *settings, grad_logits, grad_target, *rest,
        )  # fmt: skip
    return Gradients(grad_logits, grad_target)


def cross_entropy_sum(
    logits: Tensor,
    target: Target,
    mean: bool,
    dtype: torch.dtype | None,
    factor: float | None,
    inplace: bool = False,
    sample_weight: Tensor | None = None,
) -> Sum:
    """Compute a sum or mean and its gradient in one pass; see the protocol."""
    values, weight, bias, mask, valid, settings = target
    wide = _wide(logits)
    if logits.numel() == 0:
        nothing = torch.nan if mean else 0.0
        loss = None if dtype is None else torch.full((), nothing, dtype=dtype, device=_CPU)
        return Sum(loss, 0.0, None if factor is None else _new_like(logits))
    if target.indices:
        values = values.contiguous()
    plain = settings is PLAIN and bias is None and mask is None and valid is None
    member = None if plain else _member(target, wide, logits.shape[1])
    weight = None if weight is None else _weight(weight, wide)
    loss = None if dtype is None else _number(dtype if dtype == logits.dtype else wide)
    grad_logits = None
    u = _weight(sample_weight, wide)
    if factor is not None:
        inplace = inplace and (u is None or may_be_overwritten(logits, u))
        grad_logits = _gradient(logits, values, inplace)
    numbers = (settings.ignore_index, settings.label_smoothing, mean)
    rest = (1.0 if factor is None else factor, member, u)
    total = _native.softmax_sum(logits, values, weight, *numbers, loss, grad_logits, *rest)
    if total is None:
        dense = None if factor is None else torch.empty(logits.shape, dtype=logits.dtype, device=_CPU)
        total = _native.softmax_sum(logits.contiguous(), values.contiguous(), weight, *numbers, loss, dense, *rest)
        assert total is not None
        grad_logits = None if dense is None else _new_like(logits).copy_(dense)
    return Sum(loss, total, grad_logits)


def scale(gradient: Tensor, factor: float) -> None:
    """Multiply a gradient in its place."""
    _native.scale(gradient, factor)


def accumulate(g: Tensor, x: Tensor, sums: Tensor, first: bool) -> bool:
    """Add ``gᵀ x`` of bfloat16 matrices to sums in float32, or put it there; False where there is no such product."""
    if g.dtype != torch.bfloat16 or sums.dtype != torch.float32 or g.stride(1) != 1 or sums.numel() == 0:
        return False
    return _native.accumulate(g, x if x.stride(1) == 1 else x.contiguous(), sums, first)


# --- sigmoid ----------------------------------------------------------------------------------------------------------


class _Elements(NamedTuple):
    """The tensors of a binary loss with their dimensions in the order in which the logits lie in memory."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    order: list[int]

    @classmethod
    def of(cls, logits: Tensor, target: BinaryTarget) -> _Elements:
        if logits.is_contiguous() and target.weight is None and target.pos_weight is None:
            return cls(logits, target.values.contiguous(), None, None, [])
        order, strides = list(range(logits.dim())), list(logits.stride())
        if not logits.is_contiguous():
            order.sort(key=lambda d: (-strides[d], d))
        if not logits.permute(order).is_contiguous():  # with gaps, or several elements in one place: it is copied
            order.sort()

        def laid_out(w: Tensor | None) -> Tensor | None:
            return None if w is None else w.to(_wide(logits)).expand_as(logits).permute(order)

        dense = logits.permute(order).contiguous(), target.values.permute(order).contiguous()
        return cls(*dense, laid_out(target.weight), laid_out(target.pos_weight), order)

    def contiguous(self) -> _Elements:
        """Write the weights out, whose strides do not fit."""
        weight, pos_weight = (None if w is None else w.contiguous() for w in (self.weight, self.pos_weight))
        return self._replace(weight=weight, pos_weight=pos_weight)

    def back(self, x: Tensor) -> Tensor:
        """Put the dimensions into the caller's order."""
        if not self.order or self.order == sorted(self.order):
            return x
        return x.permute([self.order.index(d) for d in range(x.dim())])


def binary_cross_entropy_forward(logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0) -> Tensor:
    """Compute the loss of each element, or the sum over the divisor; see the eager implementation."""
    dtype = _wide(logits)
    if logits.numel() == 0:
        return (
            torch.full((), 0.0 if divisor else torch.nan, dtype=dtype, device=_CPU)
            if reduce
            else torch.empty_like(logits, dtype=dtype)
        )
    given = _Elements.of(logits, target)
    loss = torch.empty((), dtype=dtype, device=_CPU) if reduce else new(given.logits.shape, None, dtype)
    if not _native.binary_forward(*given[:4], reduce, divisor, loss):
        _native.binary_forward(*given.contiguous()[:4], reduce, divisor, loss)
    return loss if reduce else given.back(loss)


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: BinaryTarget,
    needs: tuple[bool, bool] = (True, False),
    divisor: float = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients for logits and target; see the eager implementation."""
    if logits.numel() == 0:
        return _new_like(logits) if needs[0] else None, _new_like(target.values) if needs[1] else None
    given = _Elements.of(logits, target)
    if grad.dim() > 0:
        grad = grad.to(_wide(logits))
        grad = (grad.permute(given.order) if given.order else grad).contiguous()
    inplace = inplace and given.logits.data_ptr() == logits.data_ptr()
    grad_target = _new_like(given.target) if needs[1] else None
    grad_logits = _gradient(given.logits, given.target, inplace) if needs[0] else None
    if not _native.binary_backward(grad, divisor, *given[:4], grad_logits, grad_target):
        _native.binary_backward(grad, divisor, *given.contiguous()[:4], grad_logits, grad_target)
    return None if grad_logits is None else given.back(grad_logits), None if grad_target is None else given.back(
        grad_target
    )


def binary_cross_entropy_sum(
    logits: Tensor,
    target: BinaryTarget,
    divisor: float,
    dtype: torch.dtype | None,
    factor: float | None,
    inplace: bool = False,
) -> Sum:
    """Compute a sum over a divisor and its gradient in one pass; see the protocol."""
    if logits.numel() == 0:
        loss = None if dtype is None else binary_cross_entropy_forward(logits, target, True, divisor).to(dtype)
        return Sum(loss, divisor, None if factor is None else _new_like(logits))
    given = _Elements.of(logits, target)
    loss = None if dtype is None else _number(dtype if dtype == logits.dtype else _wide(logits))
    inplace = inplace and given.logits.data_ptr() == logits.data_ptr()
    grad_logits = None if factor is None else _gradient(given.logits, given.target, inplace)
    by = 1.0 if factor is None else factor
    if not _native.binary_sum(*given[:4], divisor, loss, grad_logits, by):
        _native.binary_sum(*given.contiguous()[:4], divisor, loss, grad_logits, by)
    return Sum(loss, divisor, None if grad_logits is None else given.back(grad_logits))


# --- the implementation -----------------------------------------------------------------------------------------------


class Native(Implementation):
    """The kernels, with memory that is used again."""

    name = "native"
    numbers = frozenset(_native.NUMBERS)
    refuses = staticmethod(refuses)
    cross_entropy_forward = staticmethod(cross_entropy_forward)
    cross_entropy_backward = staticmethod(cross_entropy_backward)
    partials = staticmethod(partials)
    statistics = staticmethod(cross_entropy_statistics)
    binary_cross_entropy_forward = staticmethod(binary_cross_entropy_forward)
    binary_cross_entropy_backward = staticmethod(binary_cross_entropy_backward)
    has_short_way = weighs_samples = True
    cross_entropy_sum = staticmethod(cross_entropy_sum)
    binary_cross_entropy_sum = staticmethod(binary_cross_entropy_sum)
    short_ways: ClassVar = {
        "cross_entropy": _native.short_cross_entropy,
        "binary_cross_entropy_with_logits": _native.short_binary_cross_entropy,
    }
    know_torch = staticmethod(_native.know_torch)
    know_functions = staticmethod(_native.know_functions)
    attach = staticmethod(_native.attach)
    sum_gradient, rows_gradient = staticmethod(_native.sum_gradient), staticmethod(_native.rows_gradient)
    elements_gradient = staticmethod(_native.elements_gradient)
    holds = staticmethod(_native.holds)
    scale = staticmethod(scale)
    accumulate = staticmethod(accumulate)

    def kept_lse(self, kept: Tensor | bytes, logits: Tensor) -> Tensor:
        """Return what was kept of rows as a tensor, which many of them are already."""
        if isinstance(kept, Tensor):
            return kept
        return torch.frombuffer(bytearray(kept), dtype=_wide(logits)).view(2, *logits.shape[:1], *logits.shape[2:])

    def fuses(self, logits: Tensor) -> bool:
        """Sums and means form their gradient with the loss."""
        return True

    def empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an empty tensor, a large one in recycled memory."""
        return new(shape, None, dtype)

    def multiplies_in(self, dtype: torch.dtype) -> bool:
        """Only with units for bfloat16 are torch's products in half precision fast, and without copies in float32."""
        return dtype.itemsize >= 4 or (dtype == torch.bfloat16 and _native.isa() == "avx512bf16")


IMPLEMENTATION = Native()
