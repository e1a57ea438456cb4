"""Triton kernels for GPUs, launched on torch tensors: one for the loss, one for the gradient, one for both at once.

Arithmetic is in float32, or float64 for such logits. Nothing is added up by atomics or in an order that may change, nothing
waits for the device, and nothing is tuned at run time. Sums and means read the logits from memory once and write the gradient once.
Logits are taken without a copy where their classes lie side by side (rows, channels_last) or their positions do (segmentation);
others are copied first. ``refuses`` says what the kernels do not take at all.

With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs the same kernels on a CPU, for tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.checks import may_be_overwritten
from crossent.core.reduction import compute_dtype
from crossent.core.target import BinaryTarget, Target
from crossent.impl.protocol import NO_CLASS, Forward, Gradients, Implementation, Partials, RowStatistics, Sum
from crossent.impl.triton import binary, sums
from crossent.impl.triton import launch as to
from crossent.impl.triton.backward import backward
from crossent.impl.triton.family import NUMBERS, PENALTIES
from crossent.impl.triton.forward import forward
from crossent.impl.triton.fused import fused
from crossent.impl.triton.statistics import statistics

_DEVICES = {"cuda", "cpu"} if to.INTERPRETED else {"cuda"}


def refuses(logits: Tensor, target: Tensor | None = None, described: Target | BinaryTarget | None = None) -> str | None:
    """Say why the kernels cannot take these logits, this target and what else the call says, or None if they can."""
    if logits.device.type not in _DEVICES:
        return f"the Triton kernels run on a GPU, and the logits are on {logits.device}"
    if target is not None and target.is_floating_point() and compute_dtype(target) != compute_dtype(logits):
        return f"the Triton kernels take no probabilities in {target.dtype} for logits in {logits.dtype}"
    if described is None:
        return None
    if isinstance(described, Target):
        left = _left_to_eager(described, target)
    else:
        left = None if described.plain else described.special[0]
    return None if left is None else f"the Triton kernels do not take {left}, which goes to torch operations"


def _left_to_eager(described: Target, target: Tensor | None) -> str | None:
    """Name the first thing of a softmax loss that the kernels do not take."""
    bias, mask = described.logit_bias, described.class_mask
    for name, tensor in (("logit_bias", bias), ("class_mask", mask)):
        if tensor is not None and tensor.dim() != 1:
            return f"a {name} of the logits' shape"
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return "a logit_bias that requires grad"
    if described.settings.penalty.name not in PENALTIES:
        return f"the penalty {described.settings.penalty.name}"
    soft = target is not None and target.is_floating_point()
    return "a margin with probabilities" if soft and described.settings.margin else None


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> Forward:
    """Compute the loss and weight of each row, or their sums, or the mean and its divisor."""
    dtype, shape = compute_dtype(logits), logits.shape[:1] + logits.shape[2:]
    loss, row_weight = (torch.zeros(shape, dtype=dtype, device=logits.device) for _ in range(2))
    lse = torch.zeros((2, *shape), dtype=dtype, device=logits.device)
    if logits.numel():
        launch = to.arrange(logits)
        with to.device_of(logits):
            forward[(launch.programs,)](
                launch.logits, to.target_of(target, launch), loss, row_weight, lse, None, launch.rows,
                to.member_of(target, launch), launch.layout, launch.tile, num_warps=launch.warps,
            )  # fmt: skip
    if reduction == "none":
        return Forward(loss, row_weight, lse)
    with to.device_of(logits):
        total, divisor = sums.total(loss), sums.total(row_weight)
    return Forward(_mean(total, divisor) if reduction == "mean" else total, divisor, lse)


def partials(logits: Tensor, target: Target) -> Partials:
    """Compute what a shard of the classes tells of each row; see the protocol."""
    dtype, shape = compute_dtype(logits), logits.shape[:1] + logits.shape[2:]
    if logits.numel() == 0:
        return Partials.of_nothing(logits, dtype)
    loss, row_weight, mass = (torch.zeros(shape, dtype=dtype, device=logits.device) for _ in range(3))
    lse, launch = torch.zeros((2, *shape), dtype=dtype, device=logits.device), to.arrange(logits)
    with to.device_of(logits):
        forward[(launch.programs,)](
            launch.logits, to.target_of(target, launch), loss, row_weight, lse, mass, launch.rows,
            to.member_of(target, launch), launch.layout, launch.tile, num_warps=launch.warps,
        )  # fmt: skip
    return Partials.of_rows(lse, loss, mass)


def _mean(total: Tensor, divisor: Tensor) -> Tensor:
    """Divide a sum for the mean, which over nothing is nan whatever the sum is."""
    return torch.where(divisor == 0, torch.nan, total / divisor)


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
    """Compute the gradients for logits and target; see the protocol."""
    if logits.numel() == 0:
        return Gradients(
            torch.empty_like(logits) if needs[0] else None, torch.empty_like(target.values) if needs[1] else None
        )
    inplace = inplace and _can_be_written(logits, target)
    launch = to.arrange(logits, inplace)
    grad_logits = _gradient(launch, logits, inplace) if needs[0] else None
    grad_target = launch.new(target.values.dtype) if needs[1] else None
    with to.device_of(logits):
        backward[(launch.programs,)](
            launch.logits, to.target_of(target, launch), grad_logits, grad_target, grad.contiguous().resolve_neg(),
            _number(divisor, launch), lse.contiguous(), None if elsewhere is None else elsewhere.contiguous(), launch.rows,
            grad.dim() > 0, to.member_of(target, launch), launch.layout, launch.tile, num_warps=launch.warps,
        )  # fmt: skip
    return Gradients(grad_logits, grad_target)


def _can_be_written(logits: Tensor, target: Target, sample_weight: Tensor | None = None) -> bool:
    """Whether each logit has memory of its own, without gaps, that nothing else of a call shares: then a gradient may lie there."""
    like = torch.empty_like(logits, device="meta")
    dense = all(a == b or size == 1 for a, b, size in zip(logits.stride(), like.stride(), logits.shape, strict=True))
    others = (*target.tensors, sample_weight)
    return dense and all(t is None or may_be_overwritten(logits, t) for t in others)


def _gradient(launch: to.Launch, logits: Tensor, inplace: bool) -> Tensor:
    """Return where the gradient is to be written: over the logits where that is allowed and they were not copied."""
    if inplace and launch.logits is logits and launch.like.data_ptr() == logits.data_ptr():
        return logits
    return launch.new(logits.dtype)


def _number(value: float | Tensor | None, launch: to.Launch) -> Tensor | None:
    """Hand a number over in memory of the device; None for 1."""
    if value is None or isinstance(value, Tensor):
        return value if value is None else value.resolve_neg()
    return None if value == 1 else torch.full((), value, dtype=launch.dtype, device=launch.logits.device)


def cross_entropy_sum(
    logits: Tensor,
    target: Target,
    mean: bool,
    dtype: torch.dtype | None,
    factor: float | Tensor | None,
    inplace: bool = False,
    formed: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Sum:
    """Compute a sum or mean and its gradient in one pass; see the protocol."""
    wide = compute_dtype(logits)
    inplace = inplace and factor is not None and _can_be_written(logits, target, sample_weight)
    if logits.numel() == 0:
        nothing = torch.nan if mean else 0.0
        loss = None if dtype is None else torch.full((), nothing, dtype=dtype, device=logits.device)
        total = torch.zeros((), dtype=wide, device=logits.device)
        return Sum(loss, total, None if factor is None else torch.empty_like(logits))
    launch = to.arrange(logits, inplace, factor is not None)
    member, given = to.member_of(target, launch), to.target_of(target, launch, sample_weight)
    losses = None if dtype is None else torch.empty(launch.rows, dtype=wide, device=logits.device)
    loss = None
    if formed is not None and not launch.lies(formed):  # it lies in another order by now, and is formed anew
        formed = None
    gradient = None if factor is None else formed if formed is not None else _gradient(launch, logits, inplace)
    with to.device_of(logits):
        weight = sums.total_weight(
            given, member.weight, launch.rows, launch.shape[1], member.ignore_index, logits, wide
        )
        fused[(launch.programs,)](
            launch.logits, given, gradient, _number(factor, launch), weight if mean else None, losses,
            formed is not None, member, launch.layout, launch.tile, num_warps=launch.warps,
        )  # fmt: skip
        if losses is not None:
            loss = sums.total(losses)
            loss = (_mean(loss, weight) if mean else loss).to(dtype)
    return Sum(loss, weight, gradient)


def cross_entropy_statistics(logits: Tensor, target: Target) -> RowStatistics:
    """Compute the statistics of each row without a derivative."""
    dtype, shape = compute_dtype(logits), logits.shape[:1] + logits.shape[2:]
    of_rows = RowStatistics.made_by(lambda dtype: torch.zeros(shape, dtype=dtype, device=logits.device), dtype)
    of_rows.predicted.fill_(NO_CLASS)
    if logits.numel():
        launch = to.for_statistics(logits)
        with to.device_of(logits):
            statistics[(launch.programs,)](
                launch.logits, to.target_of(target, launch), *of_rows, to.member_of(target, launch), launch.layout,
                launch.tile, num_warps=launch.warps,
            )  # fmt: skip
    return of_rows


def scale(gradient: Tensor, factor: float | Tensor) -> None:
    """Multiply a gradient in its place, which is done at once where the factor is 1."""
    by = factor.resolve_neg() if isinstance(factor, Tensor) else torch.full((), factor, device=gradient.device)
    with to.device_of(gradient):
        sums.scale(gradient, by)


# --- sigmoid ----------------------------------------------------------------------------------------------------------


def binary_cross_entropy_forward(logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0) -> Tensor:
    """Compute the loss of each element, or the sum over the divisor; see the protocol."""
    dtype = compute_dtype(logits, target.values)
    if logits.numel() == 0:
        nothing = torch.full((), 0.0 if divisor else torch.nan, dtype=dtype, device=logits.device)
        return nothing if reduce else torch.empty_like(logits, dtype=dtype)
    given = binary.Elements.of(logits, target, dtype)
    if reduce:
        parts = torch.empty(binary.programs(logits), dtype=dtype, device=logits.device)
        binary.launch(given, binary.Wanted(total=parts), dtype)
        return binary.total_of(parts, divisor)
    loss = binary.empty(given.logits, dtype, logits.device)
    binary.launch(given, binary.Wanted(loss=loss), dtype)
    return loss


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: BinaryTarget,
    needs: tuple[bool, bool] = (True, False),
    divisor: float = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients for logits and target; see the protocol."""
    if logits.numel() == 0:
        return torch.empty_like(logits) if needs[0] else None, torch.empty_like(target.values) if needs[1] else None
    dtype = compute_dtype(logits, target.values)
    given = binary.Elements.of(logits, target, dtype)
    x = given.logits
    over = inplace and x is logits
    grad_logits = (logits if over else binary.empty(x, logits.dtype, x.device)) if needs[0] else None
    grad_target = binary.empty(x, target.values.dtype, x.device) if needs[1] else None
    grad = binary.laid_out(grad, x) if grad.dim() > 0 else grad.resolve_neg()
    binary.launch(given, binary.Wanted(to=grad_logits, to_target=grad_target), dtype, grad, divisor)
    return grad_logits, grad_target


def binary_cross_entropy_sum(
    logits: Tensor,
    target: BinaryTarget,
    divisor: float,
    dtype: torch.dtype | None,
    factor: float | Tensor | None,
    inplace: bool = False,
    formed: Tensor | None = None,
) -> Sum:
    """Compute a sum over a divisor and its gradient in one pass; see the protocol."""
    if logits.numel() == 0:
        loss = None if dtype is None else binary_cross_entropy_forward(logits, target, True, divisor).to(dtype)
        return Sum(loss, divisor, None if factor is None else torch.empty_like(logits))
    wide = compute_dtype(logits, target.values)
    given = binary.Elements.of(logits, target, wide)
    x = given.logits
    parts = None if dtype is None else torch.empty(binary.programs(x), dtype=wide, device=x.device)
    if formed is not None and formed.stride() != x.stride():
        formed = None
    gradient = formed
    if factor is not None and formed is None:
        gradient = logits if inplace and x is logits else binary.empty(x, logits.dtype, x.device)
    if isinstance(factor, Tensor):
        factor = factor.resolve_neg()
    elif factor is not None:
        factor = None if factor == 1 else torch.full((), factor, dtype=wide, device=x.device)
    binary.launch(given, binary.Wanted(total=parts, to=gradient), wide, factor, divisor, formed is not None)
    loss = None if parts is None or dtype is None else binary.total_of(parts, divisor).to(dtype)
    return Sum(loss, divisor, gradient)


# --- the implementation -----------------------------------------------------------------------------------------------


class Triton(Implementation):
    """The kernels."""

    name = "triton"
    numbers = NUMBERS
    waits, weighs_samples = False, True
    refuses = staticmethod(refuses)
    cross_entropy_forward = staticmethod(cross_entropy_forward)
    cross_entropy_backward = staticmethod(cross_entropy_backward)
    partials = staticmethod(partials)
    cross_entropy_sum = staticmethod(cross_entropy_sum)
    statistics = staticmethod(cross_entropy_statistics)
    binary_cross_entropy_forward = staticmethod(binary_cross_entropy_forward)
    binary_cross_entropy_backward = staticmethod(binary_cross_entropy_backward)
    binary_cross_entropy_sum = staticmethod(binary_cross_entropy_sum)
    scale = staticmethod(scale)

    def fuses(self, logits: Tensor) -> bool:
        """Sums and means form their gradient with the loss."""
        return True


IMPLEMENTATION = Triton()
