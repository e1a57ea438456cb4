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
from torch.autograd import Function, forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.nn import Parameter

from crossent.impl import eager, load
from crossent.targets import UNDIFFERENTIABLE_WEIGHT, Target

try:
    _native: Any = load("native")
    _SMALL = _native.SMALL
except KeyError:
    _native = None

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
    "str reduction, str impl) -> (Tensor loss, Tensor row_weight, Tensor lse)"
)
_library.define(
    "cross_entropy_backward(Tensor grad, Tensor? divisor, Tensor logits, Tensor target, Tensor? weight, Tensor lse, "
    "int ignore_index, float label_smoothing, bool[2] needs, str impl) -> (Tensor grad_logits, Tensor grad_target)"
)


def _explained(compute: Any, logits: Tensor, target: Target, *arguments: Any) -> Any:
    """Run the forward of an implementation; an index out of range is found there for nothing, and explained only then."""
    if logits.shape[1] == 0:
        target.raise_if_out_of_range(0)
    try:
        return compute(logits, target, *arguments)
    except RuntimeError:
        target.raise_if_out_of_range(logits.shape[1])
        raise


def _forward(logits, target, weight, ignore_index, label_smoothing, reduction, impl):
    described = Target(target, weight, ignore_index, label_smoothing)
    loss, row_weight, lse = _explained(load(impl).cross_entropy_forward, logits, described, reduction)
    return loss, row_weight if isinstance(row_weight, Tensor) else loss.new_full((), row_weight), lse


_library.impl("cross_entropy_forward", _forward, _ANY_DEVICE)


def _backward(grad, divisor, logits, target, weight, lse, ignore_index, label_smoothing, needs, impl):
    described = Target(target, weight, ignore_index, label_smoothing)
    divisor = 1.0 if divisor is None else divisor
    grads = load(impl).cross_entropy_backward(grad, logits, described, lse, (*needs, False), divisor)
    return _gradients(grads[:2], (logits, target))


_library.impl("cross_entropy_backward", _backward, _ANY_DEVICE)


@torch.library.register_fake("crossent::cross_entropy_forward", lib=_library)
def _(logits, target, weight, ignore_index, label_smoothing, reduction, impl):
    dtype = eager.compute_dtype(logits, target)
    rows = (logits.shape[0], *logits.shape[2:])
    loss = logits.new_empty(rows if reduction == "none" else (), dtype=dtype)
    return loss, torch.empty_like(loss), logits.new_empty((2, *rows), dtype=dtype)


@torch.library.register_fake("crossent::cross_entropy_backward", lib=_library)
def _(grad, divisor, logits, target, weight, lse, ignore_index, label_smoothing, needs, impl):
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0) for x, need in zip((logits, target), needs, strict=True)
    )


class _CompiledCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, ignore_index, label_smoothing, reduction, impl):
        return torch.ops.crossent.cross_entropy_forward.default(
            logits, target, weight, ignore_index, label_smoothing, reduction, impl
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, target, weight, ctx.ignore_index, ctx.label_smoothing, reduction, ctx.impl = inputs
        _, row_weight, lse = output
        ctx.mark_non_differentiable(row_weight, lse)
        ctx.save_for_backward(logits, target, weight, lse, row_weight if reduction == "mean" else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        logits, target, weight, lse, divisor = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        if needs[2] or _differentiated(grad, logits, target, weight):
            described = Target(target, weight, ctx.ignore_index, ctx.label_smoothing)
            by = 1.0 if divisor is None else divisor
            grads: tuple[Tensor | None, ...] = eager.cross_entropy_backward(grad, logits, described, None, needs, by)
        else:
            both = torch.ops.crossent.cross_entropy_backward.default(
                grad, divisor, logits, target, weight, lse, ctx.ignore_index, ctx.label_smoothing, needs[:2], ctx.impl
            )
            grads = (both[0] if needs[0] else None, both[1] if needs[1] else None, None)
        return (*grads, None, None, None, None)


class _TransformedCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, ignore_index, label_smoothing, reduce):
        described = Target(target, weight, ignore_index, label_smoothing)
        return eager.cross_entropy_forward(logits, described, "sum" if reduce else "none")[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, target, weight, ctx.ignore_index, ctx.label_smoothing, ctx.reduce = inputs
        ctx.save_for_backward(logits, target, weight)
        ctx.save_for_forward(logits, target, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        logits, target, weight = ctx.saved_tensors
        described = Target(target, weight, ctx.ignore_index, ctx.label_smoothing)
        grads = eager.cross_entropy_backward(grad, logits, described, None, ctx.needs_input_grad[:3])
        return (*grads, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        logits, target, weight = map(_primal, ctx.saved_tensors)
        described = Target(target, weight, ctx.ignore_index, ctx.label_smoothing)
        with _set_fwd_grad_enabled(True):
            return eager.cross_entropy_tangent(logits, described, ctx.reduce, (tangents[0], tangents[1], tangents[2]))


class CrossEntropy(Function):
    """Softmax cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, target, weight, ignore_index, label_smoothing, reduction, impl, inplace):
        described = Target(target, weight, ignore_index, label_smoothing)
        loss, row_weight, lse = _explained(load(impl).cross_entropy_forward, logits, described, reduction)
        ctx.ignore_index, ctx.label_smoothing, ctx.reduce = ignore_index, label_smoothing, reduction != "none"
        ctx.impl, ctx.inplace, ctx.mean = impl, inplace, reduction == "mean"
        ctx.divisor = row_weight if ctx.mean else 1.0
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, lse)
        ctx.save_for_forward(logits, target, weight)
        if ctx.mean:
            return loss
        row_weight = row_weight if isinstance(row_weight, Tensor) else loss.new_full((), row_weight)
        ctx.mark_non_differentiable(row_weight)
        return loss, row_weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        logits, target, weight, lse = ctx.saved_tensors
        described = Target(target, weight, ctx.ignore_index, ctx.label_smoothing)
        needs = ctx.needs_input_grad[:3]
        grads: tuple[Tensor | None, ...]
        if needs[2] or _differentiated(grad, logits, target, weight):
            grads = eager.cross_entropy_backward(grad, logits, described, None, needs, ctx.divisor)
        elif _plain(grad, logits, target, weight):
            compute = load(ctx.impl).cross_entropy_backward
            grads = compute(grad, logits, described, lse, needs, ctx.divisor, ctx.inplace)
            grads = (*(None if g is None else _like(g, x) for g, x in zip(grads, (logits, target), strict=False)), None)
        else:
            both = torch.ops.crossent.cross_entropy_backward.default(
                grad / ctx.divisor, None, logits, target, weight, lse, *described[2:], needs[:2], ctx.impl
            )
            grads = (both[0] if needs[0] else None, both[1] if needs[1] else None, None)
        return (*grads, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        if tangents[2] is not None and not ctx.saved_tensors[1].is_floating_point():
            raise RuntimeError(UNDIFFERENTIABLE_WEIGHT)
        tangent = _TransformedCrossEntropy.jvp(ctx, *tangents)
        return tangent / ctx.divisor if ctx.mean else (tangent, None)


class SmallCrossEntropy(Function):
    """The sum or mean over so few elements that the gradient costs less than a second launch: it is formed with the loss.

    Here Python is what takes the time, so autograd is told of nothing but the logits. The rest does not require grad.
    """

    @staticmethod
    def forward(ctx, logits, settings):
        loss, ctx.gradient = _native.small_cross_entropy(logits, *settings, True)
        ctx.settings, ctx.version = settings, settings[0]._version
        ctx.save_for_backward(logits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled() or not _quiet() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return _small_gradient(ctx, grad), None
        if gradient is None:  # given away by an earlier backward pass
            gradient = _native.small_cross_entropy(*ctx.saved_tensors, *ctx.settings, True)[1]
        _native.scale(gradient, grad)
        return gradient, None


def _small_gradient(ctx: Any, grad: Tensor) -> Tensor:
    """Form the gradient as a differentiable function."""
    (logits,) = ctx.saved_tensors
    target, weight, ignore_index, label_smoothing, mean = ctx.settings
    if target._version != ctx.version:
        raise RuntimeError("target was modified in place between the forward and the backward pass: clone it before")
    described = Target(target, weight, ignore_index, label_smoothing)
    divisor = eager.row_weights(logits, described, True) if mean else 1.0
    gradient = eager.cross_entropy_backward(grad, logits, described, None, divisor=divisor)[0]
    assert gradient is not None
    return gradient


# Function.apply adds what torch.func needs, and the node looks its backward up in several places; both are settled here.
_apply_small = super(Function, SmallCrossEntropy).apply
SmallCrossEntropy._backward_cls.apply = SmallCrossEntropy.backward  # type: ignore[attr-defined]


def _quiet() -> bool:
    """Whether nothing looks on or transforms: no mode, no forward-mode level, no autocast."""
    return (
        forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_any_autocast_enabled()
    )


def quick_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, mean: bool
) -> Tensor | None:
    """Compute the sum or mean loss if the kernels take the arguments just as the caller gave them, with nothing to check."""
    kind = _native.kind_of(logits, target, weight, ignore_index) if _native is not None and _quiet() else 0
    if kind == 0:
        return None
    if kind == _SMALL:
        settings = (target, weight, ignore_index, label_smoothing, mean)
        try:
            if logits.requires_grad and torch.is_grad_enabled():
                loss: Tensor = _apply_small(logits, settings)
                return loss
            loss, _ = _native.small_cross_entropy(logits, *settings, False)
            return loss
        except RuntimeError:
            Target(*settings[:4]).raise_if_out_of_range(logits.shape[1])
            raise
    reduction = "mean" if mean else "sum"
    result = CrossEntropy.apply(logits, target, weight, ignore_index, label_smoothing, reduction, "native", False)
    loss = result if mean else result[0]
    return loss if loss.dtype == logits.dtype else loss.to(logits.dtype)


def cross_entropy(
    logits: Tensor, target: Target, reduction: str, impl: str, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss and the weight of every row, or the sum of both; or the mean loss, and None."""
    mean = reduction == "mean"
    if _plain(logits, target.values, target.weight):
        result = CrossEntropy.apply(logits, *target, reduction, impl, inplace)
        return (result, None) if mean else result
    if _transformed():
        loss = _TransformedCrossEntropy.apply(logits, *target, reduction != "none")
        row_weight = eager.row_weights(logits, target, reduction != "none")
        return (loss / row_weight, None) if mean else (loss, row_weight)
    loss, row_weight, _ = _CompiledCrossEntropy.apply(logits, *target, reduction, impl)
    return loss, None if mean else row_weight


# --- binary cross entropy ---------------------------------------------------------------------------------------------

_library.define(
    "binary_cross_entropy_forward(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, bool reduce, "
    "float divisor, str impl) -> Tensor"
)
_library.define(
    "binary_cross_entropy_backward(Tensor grad, float divisor, Tensor logits, Tensor target, Tensor? weight, "
    "Tensor? pos_weight, bool[2] needs, str impl) -> (Tensor grad_logits, Tensor grad_target)"
)


def _binary_forward(logits, target, weight, pos_weight, reduce, divisor, impl):
    return load(impl).binary_cross_entropy_forward(logits, target, weight, pos_weight, reduce, divisor)


_library.impl("binary_cross_entropy_forward", _binary_forward, _ANY_DEVICE)


def _binary_backward(grad, divisor, logits, target, weight, pos_weight, needs, impl):
    grads = load(impl).binary_cross_entropy_backward(grad, logits, target, weight, pos_weight, needs, divisor)
    return _gradients(grads, (logits, target))


_library.impl("binary_cross_entropy_backward", _binary_backward, _ANY_DEVICE)


@torch.library.register_fake("crossent::binary_cross_entropy_forward", lib=_library)
def _(logits, target, weight, pos_weight, reduce, divisor, impl):
    dtype = eager.compute_dtype(logits, target)
    return logits.new_empty((), dtype=dtype) if reduce else torch.empty_like(logits, dtype=dtype)


@torch.library.register_fake("crossent::binary_cross_entropy_backward", lib=_library)
def _(grad, divisor, logits, target, weight, pos_weight, needs, impl):
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0) for x, need in zip((logits, target), needs, strict=True)
    )


class _CompiledBinaryCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, pos_weight, reduce, divisor, impl):
        return torch.ops.crossent.binary_cross_entropy_forward.default(
            logits, target, weight, pos_weight, reduce, divisor, impl
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.reduce, ctx.divisor, ctx.impl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = _binary_gradients(ctx, grad, False)
        return (*grads, None, None, None, None, None)


def _binary_gradients(ctx: Any, grad: Tensor | None, inplace: bool) -> tuple[Tensor | None, Tensor | None]:
    if grad is None:
        return None, None
    logits, target, weight, pos_weight = ctx.saved_tensors
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
    if _differentiated(grad, logits, target):
        return eager.binary_cross_entropy_backward(grad, logits, target, weight, pos_weight, needs, ctx.divisor)
    if inplace and _plain(grad, logits, target, weight, pos_weight):
        compute = load(ctx.impl).binary_cross_entropy_backward
        both = compute(grad, logits, target, weight, pos_weight, needs, ctx.divisor, True)
    else:
        plain = _plain(grad, logits, target, weight, pos_weight)
        run: Any = _binary_backward if plain else torch.ops.crossent.binary_cross_entropy_backward.default
        both = run(grad, ctx.divisor, logits, target, weight, pos_weight, needs, ctx.impl)
    return both[0] if needs[0] else None, both[1] if needs[1] else None


class _TransformedBinaryCrossEntropy(_CompiledBinaryCrossEntropy):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, pos_weight, reduce, divisor, impl):
        return eager.binary_cross_entropy_forward(logits, target, weight, pos_weight, reduce, divisor)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with _set_fwd_grad_enabled(True):
            logits, target, weight, pos_weight = map(_primal, ctx.saved_tensors)
            along = eager.binary_cross_entropy_tangent(logits, target, weight, pos_weight, ctx.reduce, tangents[:4])
            return along / ctx.divisor if ctx.reduce else along


class BinaryCrossEntropy(Function):
    """Binary cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, target, weight, pos_weight, reduce, divisor, impl, inplace):
        ctx.set_materialize_grads(False)
        ctx.inplace = inplace
        arguments = (logits, target, weight, pos_weight, reduce, divisor, impl)
        _CompiledBinaryCrossEntropy.setup_context(ctx, arguments, None)
        return _binary_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_binary_gradients(ctx, grad, ctx.inplace), None, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        if tangents[2] is not None or tangents[3] is not None:
            raise RuntimeError("binary_cross_entropy_with_logits is not differentiable in weight and pos_weight")
        return _TransformedBinaryCrossEntropy.jvp(ctx, *tangents)


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduce: bool,
    divisor: float,
    impl: str,
    inplace: bool = False,
) -> Tensor:
    """Compute the loss of every element, or the sum over a divisor."""
    arguments = (logits, target, weight, pos_weight, reduce, divisor, impl)
    loss: Tensor
    if _plain(logits, target, weight, pos_weight):
        loss = BinaryCrossEntropy.apply(*arguments, inplace)
    else:
        function: Any = _TransformedBinaryCrossEntropy if _transformed() else _CompiledBinaryCrossEntropy
        loss = function.apply(*arguments)
    return loss
