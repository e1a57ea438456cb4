"""Sums and means, which form their gradient with the loss: the logits are read once, and the gradient is written once.

A sum knows what its backward is most often given, a gradient of 1 or what came the last time, and a mean knows its divisor from
the target alone. So the gradient is formed while a row is near, in forward. Backward hands it over, or multiplies it in its place
where another number comes. The logits are kept as well, for what the gradient cannot give: a second backward pass, a second
derivative, and half precision under a factor that would be rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import frexp, isfinite, ldexp
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crossent.core.checks import Place
from crossent.impl.protocol import Sum
from crossent.ops.lean import Call, Lean, kept_as_they_are, needs_formula, restored
from crossent.ops.library import like, tell_if_in_place


def forms_gradient(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether a sum over plain logits is to form their gradient: it will be asked for, and no other one."""
    return (
        logits.requires_grad
        and torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and all(t is None or not t.requires_grad for t in others)
        and kept_as_they_are()
    )


def _scales_exactly(factor: float) -> bool:
    """Whether multiplying by a factor only changes exponents: it is a power of two."""
    return abs(frexp(factor)[0]) == 0.5


# The factor that backward is likely to bring, which is the one that it brought last; None where it is unknown. A loss scaler
# brings the same factor for thousands of steps, and so does a loss that is divided by the number of its micro-batches. Of float16
# nothing is expected at first, since a wrong guess cannot be mended by a multiplication there. The guess decides how long a call
# takes. It changes no bit of the result, except in numbers below the smallest normal one.
EXPECTED: dict[torch.dtype, float | None] = {
    torch.float64: 1.0, torch.float32: 1.0, torch.bfloat16: 1.0, torch.float16: None,
}  # fmt: skip

_MOST = 2.0**64  # what is expected at most: more might take gradients beyond the largest number


def _to_form_with(factor: float, dtype: torch.dtype) -> float:
    """Return the number with which a gradient is formed where backward brings a factor: the factor itself, or one near it.

    A factor that is no power of two is rounded up to one, and to 1 at least; the rest of it is multiplied on later. A power of
    two changes no bit, and nothing vanishes that the factor would have kept. Half precision would then be rounded twice, so it
    takes the factor itself.
    """
    if dtype.itemsize < 4 or _scales_exactly(factor):
        return factor
    return max(1.0, ldexp(1.0, frexp(factor)[1])) if isfinite(factor) else 1.0


def _remember(factor: float, dtype: torch.dtype) -> None:
    if not isfinite(factor) or factor == 0:
        return
    formed_with = _to_form_with(factor, dtype)
    EXPECTED[dtype] = formed_with if dtype.itemsize < 4 or abs(formed_with) <= _MOST else 1.0


def _can_become(factor: float, formed_with: float, dtype: torch.dtype) -> bool:
    """Whether a gradient that was formed with one factor becomes, by a multiplication, the one that is formed with another.

    It must do so bit for bit, so that no result depends on earlier calls. To multiply by a power of two is exact, unless numbers
    have vanished that it would make larger. A factor that is no power of two needs the gradient that ``_to_form_with`` names
    for it. Half precision would be rounded twice.
    """
    if factor == formed_with:
        return True
    if _scales_exactly(factor):
        return dtype != torch.float16 and _scales_exactly(formed_with) and abs(factor) <= abs(formed_with)
    return dtype.itemsize >= 4 and formed_with == _to_form_with(factor, dtype)


def _place_and_factor(place: Place, dtype: torch.dtype) -> tuple[Place, float | None]:
    """Decide where a gradient is written, and with what factor it is formed in forward; None where backward forms it."""
    if place == "beside":
        return place, EXPECTED[dtype]
    if place == "over in backward" or dtype == torch.float16:  # a loss scaler's factor comes in backward
        return "over in backward", None
    factor = EXPECTED[dtype]
    return place, factor if factor is not None and _scales_exactly(factor) else 1.0  # it cannot be formed again


def _restored(ctx: Any) -> tuple[Tensor, Any]:
    """Return logits and target; autograd sees only what is modified after forward, so what forward wrote is refused here."""
    if ctx.place == "over in forward":
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            "inplace_forward=True wrote the gradient over the logits, and a second derivative or a second backward pass needs "
            "them: leave it out, or use inplace_backward=True"
        )
    logits, target, _ = restored(ctx)
    return logits, target


def _taken(ctx: Any) -> Tensor | None:
    """Take the gradient that forward formed; None where there was none, or an earlier backward pass took it."""
    try:
        gradient: Tensor | None = ctx.gradients.pop()
    except IndexError:  # asking first would let another thread take it in between
        gradient = None
    if gradient is not None and ctx.place == "over in forward" and gradient._version != ctx.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            "inplace_forward=True had written the gradient over the logits, which were changed before backward"
        )
    return gradient


def _on_the_device(ctx: Any, factor: Tensor) -> Tensor:
    """Return the gradient for a factor that stays on the device; a kernel reads it, and changes nothing where it is 1.

    Otherwise the gradient that was formed for 1 is multiplied. In half precision that would round twice, so it is formed anew.
    """
    gradient, half = _taken(ctx), ctx.dtype.itemsize < 4
    if gradient is None:
        gradient = _formed(ctx, factor if half else 1.0)
        if half:
            return gradient
    if not half:
        ctx.call.implementation.scale(gradient, factor)
        return gradient
    try:
        logits, target = _restored(ctx)
    except RuntimeError:  # the logits are gone, by inplace_forward or by the caller's hand
        ctx.call.implementation.scale(gradient, factor)
        return gradient
    formed = ctx._forward_cls.compute(logits, target, ctx.call, None, factor, False, gradient).gradient
    return like(formed, logits)


def _formed(ctx: Any, factor: float | Tensor) -> Tensor:
    """Form the gradient in backward."""
    logits, target = _restored(ctx)
    over = ctx.place == "over in backward"
    gradient = like(ctx._forward_cls.compute(logits, target, ctx.call, None, factor, over).gradient, logits)
    if over:
        tell_if_in_place(gradient, logits)
    return gradient


def _multiplied(ctx: Any, grad: Tensor) -> Tensor:
    """Return the gradient that was formed in forward, multiplied by that of the loss, or form it."""
    factor = grad.item()
    _remember(factor, ctx.dtype)
    gradient, formed_with = _taken(ctx), ctx.formed_with
    if gradient is None or not (ctx.place == "over in forward" or _can_become(factor, formed_with, ctx.dtype)):
        formed_with = _to_form_with(factor, ctx.dtype)
        gradient = _formed(ctx, formed_with)
    if factor == 0:
        gradient.zero_()  # what has no weight is not there, whatever its logits hold
    elif factor != formed_with:
        ctx.call.implementation.scale(gradient, factor / formed_with)
    return gradient


@dataclass
class _Later:
    """A sum that is formed after autograd has noted where the logits come from, since its gradient may be written over them.

    For a view that was written to, torch works that out anew, and then no longer finds a leaf that is a view itself.
    """

    form: Callable[[], Sum]
    formed: Sum | None = None

    def now(self) -> Sum:
        """Form it."""
        self.formed = self.form()
        return self.formed


class Fused(Lean):
    """A sum or a mean, which forms its gradient.

    A subclass has ``compute(logits, target, call, dtype, factor, inplace, *formed)``, which asks the implementation for a
    :class:`~crossent.impl.protocol.Sum`. Small calls are attached to their logits otherwise: ``ops/small.py``.
    """

    compute: Any

    @classmethod
    def of(cls, logits: Tensor, target: Any, call: Call, dtype: torch.dtype, place: Place) -> Sum:
        """Compute the loss and the gradient, and attach them to the logits."""
        place, factor = _place_and_factor(place, logits.dtype)
        if not call.implementation.waits and factor is not None:  # what backward brought the last time is on the device
            factor = 1.0
        later = _Later(partial(cls.compute, logits, target, call, dtype, factor, place == "over in forward"))
        loss = cls.run(logits, later, target, call, place, factor)
        assert later.formed is not None
        return later.formed._replace(loss=loss)

    @staticmethod
    def forward(ctx, logits, later, target, call, place, factor):
        loss, _, gradient = later.now()
        gradient = None if gradient is None else like(gradient, logits)
        # In a list, from which it is taken once: compiled autograd keeps new attributes of its own.
        ctx.gradients = [] if gradient is None else [gradient]
        ctx.call, ctx.numbers, ctx.place = call, (target.settings,), place
        ctx.formed_with, ctx.dtype = factor, logits.dtype
        ctx.save_for_backward(logits, *target.tensors, call.sample_weight)
        if place == "over in forward":
            tell_if_in_place(gradient, logits)
            ctx.version = ctx.gradients[0]._version
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # What is asked first is what a training step needs: 5 us less than the questions below.
        as_formed = (
            ctx.place == "beside"
            and ctx.gradients
            and forward_ad._current_level < 0
            and not torch.is_grad_enabled()
            and ctx.call.implementation.holds(grad, ctx.formed_with)
        )
        gradient = _taken(ctx) if as_formed else None
        if gradient is None and needs_formula(grad):
            ctx.gradients.clear()
            logits, target = _restored(ctx)
            gradient = ctx._forward_cls.differentiable(grad, logits, target, ctx.call)
        elif gradient is None:
            form = _multiplied if ctx.call.implementation.waits else _on_the_device
            gradient = form(ctx, grad)
        return gradient, None, None, None, None, None
