"""Sums and means over so few elements that Python is what takes time: no dispatcher, and the gradient with the loss.

An implementation that has such calls looks at the arguments once, just as the caller gave them, and says whether they are SMALL,
ORDINARY (plain tensors that fit together, so that nothing needs to be checked), or neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from crossent.core.modes import transformed
from crossent.core.settings import Settings
from crossent.core.target import Target
from crossent.impl import fastest_small, formulas
from crossent.ops.softmax import CrossEntropy

_IMPLEMENTATION = fastest_small()
_SMALL: Any = None if _IMPLEMENTATION is None else _IMPLEMENTATION.small


class SmallCrossEntropy(Function):
    """The sum or mean over so few elements that the gradient costs less than a second launch: it is formed with the loss.

    Autograd is told of nothing but the logits. The rest does not require grad, and is saved so that autograd refuses what was
    modified in place where it is needed again.
    """

    @staticmethod
    def forward(ctx, logits, call):
        target, weight, *ctx.numbers = call
        loss, ctx.gradient = _SMALL.small_cross_entropy(logits, *call, True)
        ctx.save_for_backward(logits, target, weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled() or not _quiet() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return _differentiable_gradient(ctx, grad), None
        if gradient is None:  # given away by an earlier backward pass
            gradient = _SMALL.small_cross_entropy(*ctx.saved_tensors, *ctx.numbers, True)[1]
        _SMALL.scale(gradient, grad)
        return gradient, None


def _differentiable_gradient(ctx: Any, grad: Tensor) -> Tensor:
    """Form the gradient as a differentiable function."""
    logits, values, weight = ctx.saved_tensors
    ignore_index, label_smoothing, mean = ctx.numbers
    values = values if values.is_floating_point() else values.long()  # the kernels take every integer
    target = Target(values, weight, settings=Settings(ignore_index, label_smoothing))
    divisor = target.divisor(logits) if mean else 1.0
    gradient = formulas.IMPLEMENTATION.cross_entropy_backward(grad, logits, target, None, divisor=divisor).logits
    assert gradient is not None
    return gradient


# Function.apply adds what torch.func needs, and the node looks its backward up in several places; both are settled here.
_apply_small = super(Function, SmallCrossEntropy).apply
SmallCrossEntropy._backward_cls.apply = SmallCrossEntropy.backward  # type: ignore[attr-defined]
SmallCrossEntropy._backward_cls.__name__ = CrossEntropy._backward_cls.__name__


def _quiet() -> bool:
    """Whether nothing looks on or transforms: no tracer, no mode, no forward-mode level, no autocast."""
    return (
        forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and not transformed()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_any_autocast_enabled()
    )


def quick_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, mean: bool
) -> Tensor | None:
    """Compute the sum or mean loss if an implementation takes the arguments just as they came, with nothing to check."""
    if _IMPLEMENTATION is None or not _quiet():
        return None
    kind = _SMALL.kind_of(logits, target, weight, ignore_index)
    if kind == 0:
        return None
    if kind == _SMALL.SMALL:
        call = (target, weight, ignore_index, label_smoothing, mean)
        try:
            if logits.requires_grad and torch.is_grad_enabled():
                loss: Tensor = _apply_small(logits, call)
                return loss
            loss, _ = _SMALL.small_cross_entropy(logits, *call, False)
            return loss
        except RuntimeError:
            Target(target, settings=Settings(ignore_index)).raise_if_out_of_range(logits.shape[1])
            raise
    settings, reduction = Settings(ignore_index, label_smoothing), "mean" if mean else "sum"
    name = _IMPLEMENTATION.name
    result = CrossEntropy.apply(logits, target, weight, None, None, None, settings, reduction, name, False)
    loss = result if mean else result[0]
    return loss if loss.dtype == logits.dtype else loss.to(logits.dtype)
