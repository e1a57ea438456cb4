"""The ``torch.library`` operators and the autograd Functions over them; nothing else in this library knows autograd.

There is one operator forward and one backward for each of the two losses, opaque to the compiler, with the implementation
to run as their last argument. Around them stands an ``autograd.Function`` in three dresses with one backward:

- compiled, traced or fake: the operators, through the dispatcher;
- ``torch.func`` and vmap: formulas in torch operations, by the eager implementation, which these transforms know and
  can differentiate again. It has a ``jvp``, which a Function that is to be compiled must not have;
- plain tensors: the implementation itself, without the dispatcher and without the binding of arguments that
  ``setup_context`` costs, half of the time of a small call.

A backward that is differentiated itself (``create_graph``, forward over reverse) always runs the eager formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.nn import Parameter

from crossent.impl import eager, load
from crossent.targets import UNDIFFERENTIABLE_WEIGHT, Target

_library = torch.library.Library("crossent", "DEF")
_ANY_DEVICE = "CompositeExplicitAutograd"


def _transformed() -> bool:
    """Whether ``torch.func`` transforms or vmap are under way, which only torch operations pass through."""
    return torch._C._are_functorch_transforms_active()


def _differentiated(grad: Tensor, *saved: Tensor | None) -> bool:
    """Whether a backward running now is itself transformed or differentiated, in reverse or in forward mode."""
    if torch.is_grad_enabled() or _transformed():
        return True
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.is_legacy_batchedtensor(grad):  # of is_grads_batched
        return True
    return any(t is not None and unpack_dual(t).tangent is not None for t in (grad, *saved))


def _primal(value: Any) -> Any:
    """Return what was saved for forward mode without its tangent at this level.

    Torch switches forward mode off inside a ``jvp``, and the tangents of outer levels would be dropped in silence. Switched
    on again it nests rightly, provided that this level's own tangents are out of the way.
    """
    functorch = torch._C._functorch
    if value is None or not functorch.is_batchedtensor(value):
        return None if value is None else unpack_dual(value).primal
    batch, level = functorch.maybe_get_bdim(value), functorch.maybe_get_level(value)
    return functorch._add_batch_dim(_primal(functorch.get_unwrapped(value)), batch, level)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether these are torch's own tensors, with nobody looking on: then the dispatcher need not be asked."""
    return (
        not torch.compiler.is_compiling()
        and not _transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(t is None or type(t) is Tensor or type(t) is Parameter for t in tensors)
    )


def _gradients(grads: tuple[Tensor | None, ...], inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Lay each gradient out as its input is, as the operators promise; what was not asked for is an empty tensor."""
    return _like(grads[0], inputs[0]), _like(grads[1], inputs[1])


def _like(g: Tensor | None, x: Tensor) -> Tensor:
    if g is None:
        return x.new_empty(0)
    if g.stride() == x.stride():
        return g
    outer_first = sorted(range(x.dim()), key=torch.empty_like(x, device="meta").stride, reverse=True)
    back = [outer_first.index(axis) for axis in range(x.dim())]
    return g.permute(outer_first).contiguous().permute(back)


# --- softmax cross entropy --------------------------------------------------------------------------------------------

_library.define(
    "cross_entropy_forward(Tensor logits, Tensor target, Tensor? weight, int ignore_index, float label_smoothing, "
    "bool reduce, str impl) -> (Tensor loss, Tensor row_weight, Tensor top, Tensor log_sum)"
)
_library.define(
    "cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor top, Tensor log_sum, "
    "int ignore_index, float label_smoothing, bool[2] needs, str impl) -> (Tensor grad_logits, Tensor grad_target)"
)


def _forward(logits, target, weight, ignore_index, label_smoothing, reduce, impl):
    described = Target(target, weight, ignore_index, label_smoothing)
    if logits.shape[1] == 0:
        described.raise_if_out_of_range(0)
    try:
        return load(impl).cross_entropy_forward(logits, described, reduce)
    except RuntimeError:  # the gather of an index out of range: found for nothing, explained only then
        described.raise_if_out_of_range(logits.shape[1])
        raise


_library.impl("cross_entropy_forward", _forward, _ANY_DEVICE)


def _backward(grad, logits, target, weight, top, log_sum, ignore_index, label_smoothing, needs, impl):
    described = Target(target, weight, ignore_index, label_smoothing)
    grads = load(impl).cross_entropy_backward(grad, logits, described, (top, log_sum), (*needs, False))
    return _gradients(grads[:2], (logits, target))


_library.impl("cross_entropy_backward", _backward, _ANY_DEVICE)


@torch.library.register_fake("crossent::cross_entropy_forward", lib=_library)
def _(logits, target, weight, ignore_index, label_smoothing, reduce, impl):
    dtype = eager.compute_dtype(logits, target)
    rows = (logits.shape[0], *logits.shape[2:])
    loss = logits.new_empty(() if reduce else rows, dtype=dtype)
    lse = logits.new_empty((rows[0], 1, *rows[1:]), dtype=dtype)
    return loss, torch.empty_like(loss), lse, torch.empty_like(lse)


@torch.library.register_fake("crossent::cross_entropy_backward", lib=_library)
def _(grad, logits, target, weight, top, log_sum, ignore_index, label_smoothing, needs, impl):
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0) for x, need in zip((logits, target), needs, strict=True)
    )


class _CompiledCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, ignore_index, label_smoothing, reduce, impl):
        return torch.ops.crossent.cross_entropy_forward.default(
            logits, target, weight, ignore_index, label_smoothing, reduce, impl
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, target, weight, ctx.ignore_index, ctx.label_smoothing, ctx.reduce, ctx.impl = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(logits, target, weight, *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        logits, target, weight, *lse = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        grads: tuple[Tensor | None, ...]
        if needs[2] or _differentiated(grad, logits, target, weight):
            described = Target(target, weight, ctx.ignore_index, ctx.label_smoothing)
            grads = eager.cross_entropy_backward(grad, logits, described, None, needs)
        else:
            plain = _plain(grad, logits, target, weight)
            run: Any = _backward if plain else torch.ops.crossent.cross_entropy_backward.default
            both = run(grad, logits, target, weight, *lse, ctx.ignore_index, ctx.label_smoothing, needs[:2], ctx.impl)
            grads = (both[0] if needs[0] else None, both[1] if needs[1] else None, None)
        return (*grads, None, None, None, None)


class _TransformedCrossEntropy(_CompiledCrossEntropy):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, ignore_index, label_smoothing, reduce, impl):
        return eager.cross_entropy_forward(logits, Target(target, weight, ignore_index, label_smoothing), reduce)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, target, weight, ctx.ignore_index, ctx.label_smoothing, ctx.reduce, ctx.impl = inputs
        ctx.save_for_backward(logits, target, weight)
        ctx.save_for_forward(logits, target, weight)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        logits, target, weight = map(_primal, ctx.saved_tensors)
        described = Target(target, weight, ctx.ignore_index, ctx.label_smoothing)
        with _set_fwd_grad_enabled(True):
            return eager.cross_entropy_tangent(logits, described, ctx.reduce, (tangents[0], tangents[1], tangents[2]))


class CrossEntropy(Function):
    """Softmax cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, target, weight, ignore_index, label_smoothing, reduce, impl, mean):
        loss, row_weight, *lse = _forward(logits, target, weight, ignore_index, label_smoothing, reduce, impl)
        ctx.ignore_index, ctx.label_smoothing, ctx.reduce, ctx.impl = ignore_index, label_smoothing, reduce, impl
        ctx.divisor = row_weight if mean else None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, *lse)
        ctx.save_for_forward(logits, target, weight)
        if mean:  # here it is one operation, behind the Function it would be two and a node of the graph
            return loss / row_weight
        ctx.mark_non_differentiable(row_weight)
        return loss, row_weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is not None and ctx.divisor is not None:
            grad = grad / ctx.divisor
        return (*_CompiledCrossEntropy.backward(ctx, grad), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        if tangents[2] is not None and not ctx.saved_tensors[1].is_floating_point():
            raise RuntimeError(UNDIFFERENTIABLE_WEIGHT)
        tangent = _TransformedCrossEntropy.jvp(ctx, *tangents)
        return (tangent, None) if ctx.divisor is None else tangent / ctx.divisor


def cross_entropy(logits: Tensor, target: Target, reduction: str, impl: str) -> tuple[Tensor, Tensor | None]:
    """Compute the loss and the weight of every row, or the sum of both; or the mean loss, and None."""
    reduce, mean = reduction != "none", reduction == "mean"
    if _plain(logits, target.values, target.weight):
        result = CrossEntropy.apply(logits, *target, reduce, impl, mean)
        return (result, None) if mean else result
    if _transformed():
        loss = _TransformedCrossEntropy.apply(logits, *target, reduce, impl)
        row_weight = eager.row_weights(logits, target, reduce)
    else:
        loss, row_weight, _, _ = _CompiledCrossEntropy.apply(logits, *target, reduce, impl)
    return (loss / row_weight, None) if mean else (loss, row_weight)


# --- binary cross entropy ---------------------------------------------------------------------------------------------

_library.define(
    "binary_cross_entropy_forward(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, bool reduce, "
    "str impl) -> Tensor"
)
_library.define(
    "binary_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
    "bool[2] needs, str impl) -> (Tensor grad_logits, Tensor grad_target)"
)


def _binary_forward(logits, target, weight, pos_weight, reduce, impl):
    return load(impl).binary_cross_entropy_forward(logits, target, weight, pos_weight, reduce)


_library.impl("binary_cross_entropy_forward", _binary_forward, _ANY_DEVICE)


def _binary_backward(grad, logits, target, weight, pos_weight, needs, impl):
    grads = load(impl).binary_cross_entropy_backward(grad, logits, target, weight, pos_weight, needs)
    return _gradients(grads, (logits, target))


_library.impl("binary_cross_entropy_backward", _binary_backward, _ANY_DEVICE)


@torch.library.register_fake("crossent::binary_cross_entropy_forward", lib=_library)
def _(logits, target, weight, pos_weight, reduce, impl):
    dtype = eager.compute_dtype(logits, target)
    return logits.new_empty((), dtype=dtype) if reduce else torch.empty_like(logits, dtype=dtype)


@torch.library.register_fake("crossent::binary_cross_entropy_backward", lib=_library)
def _(grad, logits, target, weight, pos_weight, needs, impl):
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0) for x, need in zip((logits, target), needs, strict=True)
    )


class _CompiledBinaryCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, pos_weight, reduce, impl):
        return torch.ops.crossent.binary_cross_entropy_forward.default(logits, target, weight, pos_weight, reduce, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.reduce, ctx.impl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        logits, target, weight, pos_weight = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        if _differentiated(grad, logits, target):
            grads = eager.binary_cross_entropy_backward(grad, logits, target, weight, pos_weight, needs)
        else:
            plain = _plain(grad, logits, target, weight, pos_weight)
            run: Any = _binary_backward if plain else torch.ops.crossent.binary_cross_entropy_backward.default
            both = run(grad, logits, target, weight, pos_weight, needs, ctx.impl)
            grads = (both[0] if needs[0] else None, both[1] if needs[1] else None)
        return (*grads, None, None, None, None)


class _TransformedBinaryCrossEntropy(_CompiledBinaryCrossEntropy):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, pos_weight, reduce, impl):
        return eager.binary_cross_entropy_forward(logits, target, weight, pos_weight, reduce)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with _set_fwd_grad_enabled(True):
            logits, target, weight, pos_weight = map(_primal, ctx.saved_tensors)
            return eager.binary_cross_entropy_tangent(logits, target, weight, pos_weight, ctx.reduce, tangents[:4])


class BinaryCrossEntropy(Function):
    """Binary cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, target, weight, pos_weight, reduce, impl):
        ctx.set_materialize_grads(False)
        _CompiledBinaryCrossEntropy.setup_context(ctx, (logits, target, weight, pos_weight, reduce, impl), None)
        return _binary_forward(logits, target, weight, pos_weight, reduce, impl)

    backward = _CompiledBinaryCrossEntropy.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        if tangents[2] is not None or tangents[3] is not None:
            raise RuntimeError("binary_cross_entropy_with_logits is not differentiable in weight and pos_weight")
        return _TransformedBinaryCrossEntropy.jvp(ctx, *tangents)


def binary_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduce: bool, impl: str
) -> Tensor:
    """Compute the loss of every element, or its sum."""
    function: Any = _CompiledBinaryCrossEntropy
    if _plain(logits, target, weight, pos_weight):
        function = BinaryCrossEntropy
    elif _transformed():
        function = _TransformedBinaryCrossEntropy
    loss: Tensor = function.apply(logits, target, weight, pos_weight, reduce, impl)
    return loss
