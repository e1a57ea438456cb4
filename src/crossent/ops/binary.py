"""The sigmoid operators and the autograd Functions over them, in the three forms that softmax.py describes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from crossent.core.checks import Place
from crossent.core.modes import plain, transformed
from crossent.core.reduction import compute_dtype, over
from crossent.core.settings import PLAIN_BINARY
from crossent.core.target import BinaryTarget
from crossent.impl import formulas, load
from crossent.ops import validation
from crossent.ops.fused import Fused, forms_gradient
from crossent.ops.lean import Call, Unreduced
from crossent.ops.library import (
    BINARY_TARGET,
    Operator,
    by_formula,
    differentiated,
    fake_gradients,
    for_each_input,
    gradients_like,
    primal,
    tell_if_in_place,
    where_asked,
)

_EAGER = formulas.IMPLEMENTATION

forward_operator = Operator(
    "binary_cross_entropy_forward", "Tensor logits", BINARY_TARGET, "bool reduce", "float divisor", "str impl",
    returns="Tensor", check=validation.binary_forward,
)  # fmt: skip
backward_operator = Operator(
    "binary_cross_entropy_backward", "Tensor grad", "float divisor", "Tensor logits", BINARY_TARGET, "bool[2] needs",
    "str impl", returns="(Tensor grad_logits, Tensor grad_target)", check=validation.binary_backward,
)  # fmt: skip


@forward_operator.implement
def _forward(logits, target, reduce, divisor, impl):
    return load(impl).binary_cross_entropy_forward(logits, target, reduce, divisor)


@forward_operator.fake
def _(logits, target, reduce, divisor, impl):
    dtype = compute_dtype(logits, target.values)
    return logits.new_empty((), dtype=dtype) if reduce else torch.empty_like(logits, dtype=dtype)


@backward_operator.implement
def _backward(grad, divisor, logits, target, needs, impl):
    grads = load(impl).binary_cross_entropy_backward(grad, logits, target, tuple(needs), divisor)
    return gradients_like(grads, (logits, target.values))


@backward_operator.fake
def _(grad, divisor, logits, target, needs, impl):
    return fake_gradients((logits, target.values), needs)


class _CompiledBinaryCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, pos_weight, mask, settings, reduce, divisor, impl):
        return forward_operator(logits, BinaryTarget(values, weight, pos_weight, mask, settings), reduce, divisor, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.settings, ctx.reduce, ctx.divisor, ctx.impl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return for_each_input(ctx, *_gradients(ctx, grad, False))


def _gradients(ctx: Any, grad: Tensor | None, inplace: bool) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None
    logits, *tensors = ctx.saved_tensors
    target, needs = BinaryTarget._make((*tensors, ctx.settings)), (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
    if differentiated(grad, logits, tensors[0]):
        return _EAGER.binary_cross_entropy_backward(grad, logits, target, needs, ctx.divisor)
    if not plain(grad, logits, *tensors):
        both = backward_operator(grad, ctx.divisor, logits, target, needs, ctx.impl)
    elif inplace:
        grads = load(ctx.impl).binary_cross_entropy_backward(grad, logits, target, needs, ctx.divisor, True)
        tell_if_in_place(grads[0], logits)
        both = gradients_like(grads, (logits, target.values))
    else:
        both = _backward(grad, ctx.divisor, logits, target, needs, ctx.impl)
    return where_asked(both, needs)


@forward_operator.differentiate
def _(logits, target, reduce, divisor, impl):
    return _CompiledBinaryCrossEntropy.apply(logits, *target.tensors, target.settings, reduce, divisor, impl)


@backward_operator.differentiate
def _(grad, divisor, logits, target, needs, impl):
    grads = _EAGER.binary_cross_entropy_backward(grad, logits, target, tuple(needs), divisor)
    return gradients_like(grads, (logits, target.values))


class _TransformedBinaryCrossEntropy(_CompiledBinaryCrossEntropy):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, pos_weight, mask, settings, reduce, divisor, impl):
        target = BinaryTarget(values, weight, pos_weight, mask, settings)
        return _EAGER.binary_cross_entropy_forward(logits, target, reduce, divisor)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with _set_fwd_grad_enabled(True):
            logits, *tensors = map(primal, ctx.saved_tensors)
            target = BinaryTarget._make((*tensors, ctx.settings))
            along = formulas.binary_cross_entropy_tangent(logits, target, ctx.reduce, tangents[:4])
            return over(along, ctx.divisor) if ctx.reduce else along


class BinaryCrossEntropy(Function):
    """Binary cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, values, weight, pos_weight, mask, settings, reduce, divisor, impl, inplace):
        ctx.set_materialize_grads(False)
        ctx.inplace = inplace
        tensors = (logits, values, weight, pos_weight, mask)
        _CompiledBinaryCrossEntropy.setup_context(ctx, (*tensors, settings, reduce, divisor, impl), None)
        loss = _forward(logits, BinaryTarget(*tensors[1:], settings=settings), reduce, divisor, impl)
        # Torch wants the tangent of a view to lie as the view does, and losses of permuted logits are one.
        return loss.clone() if forward_ad._current_level >= 0 and loss._is_view() else loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return for_each_input(ctx, *_gradients(ctx, grad, ctx.inplace))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        if tangents[2] is not None or tangents[3] is not None:
            raise RuntimeError("binary_cross_entropy_with_logits is not differentiable in weight and pos_weight")
        return _TransformedBinaryCrossEntropy.jvp(ctx, *tangents)


def _differentiable(grad: Tensor, logits: Tensor, target: BinaryTarget, call: Call) -> Tensor:
    gradient = _EAGER.binary_cross_entropy_backward(grad, logits, target, divisor=call.divided)[0]
    assert gradient is not None
    return gradient


class FusedBinaryCrossEntropy(Fused):
    """A sum over a divisor of plain tensors, with its gradient."""

    describe: Any = BinaryTarget
    differentiable = staticmethod(_differentiable)

    @staticmethod
    def compute(logits, target, call, dtype, factor, inplace, *formed):
        return call.implementation.binary_cross_entropy_sum(
            logits, target, call.divided, dtype, factor, inplace, *formed
        )


def described(target: Tensor) -> BinaryTarget:
    """Make the record of a target without weights."""
    return BinaryTarget(target, None, None, None, PLAIN_BINARY)


class UnreducedBinaryCrossEntropy(Unreduced):
    """The losses of plain tensors' elements."""

    describe, differentiable = staticmethod(described), staticmethod(_differentiable)

    @staticmethod
    def gradient(grad, logits, target, _, call):
        return call.implementation.binary_cross_entropy_backward(grad, logits, target)[0]


FusedBinaryCrossEntropy.settle(BinaryCrossEntropy._backward_cls.__name__)


def binary_cross_entropy(
    logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float, impl: str, place: Place = "beside"
) -> Tensor:
    """Compute the loss of every element, or the sum over a divisor."""
    arguments = (logits, *target.tensors, target.settings, reduce, divisor, impl)
    loss: Tensor
    implementation = load(impl)
    if implementation.differentiable:
        return implementation.binary_cross_entropy_forward(logits, target, reduce, divisor)
    if plain(logits, *target.tensors):
        if reduce and implementation.fuses(logits) and forms_gradient(logits, *target.tensors):
            dtype = compute_dtype(logits, target.values)
            formed = FusedBinaryCrossEntropy.of(logits, target, Call(divisor, implementation), dtype, place)
            assert formed.loss is not None
            return formed.loss
        loss = BinaryCrossEntropy.apply(*arguments, place != "beside")
    elif by_formula():
        loss = _EAGER.binary_cross_entropy_forward(logits, target, reduce, divisor)
    elif transformed():
        loss = _TransformedBinaryCrossEntropy.apply(*arguments)
    else:
        loss = forward_operator(logits, target, reduce, divisor, impl)
    return loss
