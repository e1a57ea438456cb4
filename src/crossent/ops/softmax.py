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

from crossent.core.target import UNDIFFERENTIABLE_WEIGHT, BinaryRule, BinaryTarget, Rule, Target
from crossent.impl import eager, load

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


def _tell_if_in_place(grad: Tensor | None, logits: Tensor) -> None:
    """Tell autograd that the logits are gone, if the gradient was written over them."""
    if grad is not None and grad.data_ptr() == logits.data_ptr():
        torch.autograd.graph.increment_version(logits)


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

# All that a call says beside its logits, in the order of Target and Rule.
_TARGET = "Tensor target, Tensor? weight, Tensor? logit_bias, Tensor? class_mask, Tensor? valid"
_RULE = (
    "int ignore_index, float label_smoothing, float temperature, float? softcap, float margin, float z_loss, "
    "str penalty, float[] parameters"
)
_library.define(
    f"cross_entropy_forward(Tensor logits, {_TARGET}, {_RULE}, str reduction, str impl) "
    "-> (Tensor loss, Tensor row_weight, Tensor lse)"
)
_library.define(
    f"cross_entropy_backward(Tensor grad, Tensor? divisor, Tensor logits, {_TARGET}, Tensor lse, {_RULE}, "
    "bool[2] needs, str impl) -> (Tensor grad_logits, Tensor grad_target)"
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


def _described(tensors: Any, rule: Any) -> Target:
    return Target._make((*tensors, Rule._make(rule)))


def _forward(logits, *arguments):
    *said, reduction, impl = arguments
    described = _described(said[:5], said[5:])
    loss, row_weight, lse = _explained(load(impl).cross_entropy_forward, logits, described, reduction)
    return loss, row_weight if isinstance(row_weight, Tensor) else loss.new_full((), row_weight), lse


_library.impl("cross_entropy_forward", _forward, _ANY_DEVICE)


def _backward(grad, divisor, logits, *arguments):
    *said, needs, impl = arguments
    described, lse = _described(said[:5], said[6:]), said[5]
    divisor = 1.0 if divisor is None else divisor
    grads = load(impl).cross_entropy_backward(grad, logits, described, lse, (*needs, False, False), divisor)
    return _gradients(grads[:2], (logits, described.values))


_library.impl("cross_entropy_backward", _backward, _ANY_DEVICE)


@torch.library.register_fake("crossent::cross_entropy_forward", lib=_library)
def _(logits, target, *arguments):
    dtype = eager.compute_dtype(logits, target)
    rows = (logits.shape[0], *logits.shape[2:])
    lse = logits.new_empty((2, *rows), dtype=dtype)
    if arguments[-2] == "statistics":
        return logits.new_empty((4, *rows), dtype=dtype), torch.empty_like(lse), lse
    loss = logits.new_empty(rows if arguments[-2] == "none" else (), dtype=dtype)
    return loss, torch.empty_like(loss), lse


@torch.library.register_fake("crossent::cross_entropy_backward", lib=_library)
def _(grad, divisor, logits, target, *arguments):
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0) for x, need in zip((logits, target), arguments[-2], strict=True)
    )


class _CompiledCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, logit_bias, class_mask, valid, rule, reduction, impl):
        return torch.ops.crossent.cross_entropy_forward.default(
            logits, target, weight, logit_bias, class_mask, valid, *rule, reduction, impl
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.rule, reduction, ctx.impl = inputs
        _, row_weight, lse = output
        ctx.mark_non_differentiable(row_weight, lse)
        ctx.save_for_backward(*tensors, lse, row_weight if reduction == "mean" else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        logits, *tensors, lse, divisor = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:4],)
        if needs[2] or needs[3] or _differentiated(grad, logits, *tensors):
            by = 1.0 if divisor is None else divisor
            described = Target._make((*tensors, ctx.rule))
            grads: tuple[Tensor | None, ...] = eager.cross_entropy_backward(grad, logits, described, None, needs, by)
        else:
            both = torch.ops.crossent.cross_entropy_backward.default(
                grad, divisor, logits, *tensors, lse, *ctx.rule, needs[:2], ctx.impl
            )
            grads = (both[0] if needs[0] else None, both[1] if needs[1] else None, None, None)
        return (*grads, None, None, None, None, None)


class _Sealed:
    """A rule in one piece: torch.func would take a tuple apart, and expect a gradient for every number in it."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule


class _TransformedCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, logit_bias, class_mask, valid, sealed, reduction):
        described = Target(target, weight, logit_bias, class_mask, valid, sealed.rule)
        return eager.cross_entropy_forward(logits, described, reduction)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, sealed, ctx.reduction = inputs
        ctx.rule = sealed.rule
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        logits, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        grads = eager.cross_entropy_backward(grad, logits, Target._make((*tensors, ctx.rule)), None, needs)
        return (*grads, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        logits, *tensors = map(_primal, ctx.saved_tensors[:6])
        with _set_fwd_grad_enabled(True):
            described = Target._make((*tensors, ctx.rule))
            return eager.cross_entropy_tangent(logits, described, ctx.reduction, tangents[:4])


class CrossEntropy(Function):
    """Softmax cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, target, weight, logit_bias, class_mask, valid, rule, reduction, impl, inplace):
        described = Target(target, weight, logit_bias, class_mask, valid, rule)
        loss, row_weight, lse = _explained(load(impl).cross_entropy_forward, logits, described, reduction)
        ctx.rule, ctx.reduction = rule, reduction
        ctx.impl, ctx.inplace, ctx.mean = impl, inplace, reduction == "mean"
        ctx.divisor = row_weight if ctx.mean else 1.0
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, logit_bias, class_mask, valid, lse)
        ctx.save_for_forward(logits, target, weight, logit_bias, class_mask, valid)
        if ctx.mean:
            return loss
        row_weight = row_weight if isinstance(row_weight, Tensor) else loss.new_full((), row_weight)
        ctx.mark_non_differentiable(row_weight)
        return loss, row_weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 10
        logits, *tensors, lse = ctx.saved_tensors
        described = Target._make((*tensors, ctx.rule))
        needs = ctx.needs_input_grad[:4]
        grads: tuple[Tensor | None, ...]
        if needs[2] or needs[3] or _differentiated(grad, logits, *tensors):
            grads = eager.cross_entropy_backward(grad, logits, described, None, needs, ctx.divisor)
        elif _plain(grad, logits, *tensors):
            compute = load(ctx.impl).cross_entropy_backward
            grads = compute(grad, logits, described, lse, needs, ctx.divisor, ctx.inplace)
            if ctx.inplace:
                _tell_if_in_place(grads[0], logits)
            pairs = zip(grads, (logits, tensors[0]), strict=False)
            grads = (*(None if g is None else _like(g, x) for g, x in pairs), None, None)
        else:
            both = torch.ops.crossent.cross_entropy_backward.default(
                grad / ctx.divisor, None, logits, *tensors, lse, *ctx.rule, needs[:2], ctx.impl
            )
            grads = (both[0] if needs[0] else None, both[1] if needs[1] else None, None, None)
        return (*grads, None, None, None, None, None, None)

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
    described = Target(target, weight, rule=Rule(ignore_index, label_smoothing))
    divisor = eager.row_weights(logits, described, True) if mean else 1.0
    gradient = eager.cross_entropy_backward(grad, logits, described, None, divisor=divisor)[0]
    assert gradient is not None
    return gradient


# Function.apply adds what torch.func needs, and the node looks its backward up in several places; both are settled here.
_apply_small = super(Function, SmallCrossEntropy).apply
SmallCrossEntropy._backward_cls.apply = SmallCrossEntropy.backward  # type: ignore[attr-defined]
SmallCrossEntropy._backward_cls.__name__ = CrossEntropy._backward_cls.__name__


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
            Target(target, rule=Rule(ignore_index)).raise_if_out_of_range(logits.shape[1])
            raise
    rule, reduction = Rule(ignore_index, label_smoothing), "mean" if mean else "sum"
    result = CrossEntropy.apply(logits, target, weight, None, None, None, rule, reduction, "native", False)
    loss = result if mean else result[0]
    return loss if loss.dtype == logits.dtype else loss.to(logits.dtype)


def cross_entropy(
    logits: Tensor, target: Target, reduction: str, impl: str, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss and the weight of every row, or the sum of both; or the mean loss, and None.

    With the reduction "statistics" it is the stacks that the eager implementation describes.
    """
    mean = reduction == "mean"
    if _plain(logits, *target[:5]):
        result = CrossEntropy.apply(logits, *target, reduction, impl, inplace)
        return (result, None) if mean else result
    if _transformed():
        how = "sum" if mean else reduction
        loss = _TransformedCrossEntropy.apply(logits, *target[:5], _Sealed(target.rule), how)
        row_weight = eager.row_weights(logits, target, how == "sum")
        if reduction == "statistics":
            return loss, torch.stack([row_weight, eager.correct_logits(logits, target)])
        return (loss / row_weight, None) if mean else (loss, row_weight)
    loss, row_weight, _ = _CompiledCrossEntropy.apply(logits, *target, reduction, impl)
    return loss, None if mean else row_weight


def statistics(logits: Tensor, target: Target, impl: str, named: bool) -> tuple[Tensor, Tensor | None]:
    """Compute the stacks of statistics: in one pass of the kernels where nothing is to be differentiated, else by formula."""
    differentiable = torch.is_grad_enabled() and (
        logits.requires_grad or any(t is not None and t.requires_grad for t in target[:5])
    )
    plain = _plain(logits, *target[:5]) and forward_ad._current_level < 0 and not torch.compiler.is_compiling()
    if impl == "native" and logits.numel() and plain and not differentiable:
        both: tuple[Tensor, Tensor] = _explained(_native.cross_entropy_statistics, logits, target)
        return both
    if impl == "native" and named:
        raise RuntimeError(
            "impl='native' cannot run here: the native kernels give statistics where nothing is to be differentiated; "
            "use impl='eager' or leave it out"
        )
    return cross_entropy(logits, target, "statistics", "eager")


# --- binary cross entropy ---------------------------------------------------------------------------------------------

_BINARY = (
    "Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? mask, "
    "float? ignore_index, float label_smoothing, str penalty, float[] parameters"
)
_library.define(
    f"binary_cross_entropy_forward(Tensor logits, {_BINARY}, bool reduce, float divisor, str impl) -> Tensor"
)
_library.define(
    f"binary_cross_entropy_backward(Tensor grad, float divisor, Tensor logits, {_BINARY}, bool[2] needs, str impl) "
    "-> (Tensor grad_logits, Tensor grad_target)"
)


def _for(impl: str, target: BinaryTarget) -> tuple[Any, ...]:
    """Write a target as the implementation takes it: the kernels know torch's three tensors only."""
    return target[:3] if impl == "native" else (target,)


def _binary_forward(logits, *arguments):
    *said, reduce, divisor, impl = arguments
    described = BinaryTarget._make((*said[:4], BinaryRule._make(said[4:])))
    return load(impl).binary_cross_entropy_forward(logits, *_for(impl, described), reduce, divisor)


_library.impl("binary_cross_entropy_forward", _binary_forward, _ANY_DEVICE)


def _binary_backward(grad, divisor, logits, *arguments):
    *said, needs, impl = arguments
    described = BinaryTarget._make((*said[:4], BinaryRule._make(said[4:])))
    grads = load(impl).binary_cross_entropy_backward(grad, logits, *_for(impl, described), needs, divisor)
    return _gradients(grads, (logits, described.values))


_library.impl("binary_cross_entropy_backward", _binary_backward, _ANY_DEVICE)


@torch.library.register_fake("crossent::binary_cross_entropy_forward", lib=_library)
def _(logits, target, *arguments):
    dtype = eager.compute_dtype(logits, target)
    return logits.new_empty((), dtype=dtype) if arguments[-3] else torch.empty_like(logits, dtype=dtype)


@torch.library.register_fake("crossent::binary_cross_entropy_backward", lib=_library)
def _(grad, divisor, logits, target, *arguments):
    return tuple(
        torch.empty_like(x) if need else x.new_empty(0) for x, need in zip((logits, target), arguments[-2], strict=True)
    )


class _CompiledBinaryCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, pos_weight, mask, rule, reduce, divisor, impl):
        return torch.ops.crossent.binary_cross_entropy_forward.default(
            logits, target, weight, pos_weight, mask, *rule, reduce, divisor, impl
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, rule, ctx.reduce, ctx.divisor, ctx.impl = inputs
        ctx.rule = rule.rule if isinstance(rule, _Sealed) else rule
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = _binary_gradients(ctx, grad, False)
        return (*grads, None, None, None, None, None, None, None)


def _binary_gradients(ctx: Any, grad: Tensor | None, inplace: bool) -> tuple[Tensor | None, Tensor | None]:
    if grad is None:
        return None, None
    logits, *tensors = ctx.saved_tensors
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
    if _differentiated(grad, logits, tensors[0]):
        return eager.binary_cross_entropy_backward(
            grad, logits, BinaryTarget._make((*tensors, ctx.rule)), needs, ctx.divisor
        )
    if inplace and _plain(grad, logits, *tensors):
        compute, described = load(ctx.impl).binary_cross_entropy_backward, BinaryTarget._make((*tensors, ctx.rule))
        both = compute(grad, logits, *_for(ctx.impl, described), needs, ctx.divisor, True)
        _tell_if_in_place(both[0], logits)
        both = _gradients(both, (logits, described.values))
    else:
        plain = _plain(grad, logits, *tensors)
        run: Any = _binary_backward if plain else torch.ops.crossent.binary_cross_entropy_backward.default
        both = run(grad, ctx.divisor, logits, *tensors, *ctx.rule, needs, ctx.impl)
    return both[0] if needs[0] else None, both[1] if needs[1] else None


class _TransformedBinaryCrossEntropy(_CompiledBinaryCrossEntropy):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, target, weight, pos_weight, mask, sealed, reduce, divisor, impl):
        described = BinaryTarget(target, weight, pos_weight, mask, sealed.rule)
        return eager.binary_cross_entropy_forward(logits, described, reduce, divisor)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with _set_fwd_grad_enabled(True):
            logits, *tensors = map(_primal, ctx.saved_tensors)
            described = BinaryTarget._make((*tensors, ctx.rule))
            along = eager.binary_cross_entropy_tangent(logits, described, ctx.reduce, tangents[:4])
            return along / ctx.divisor if ctx.reduce else along


class BinaryCrossEntropy(Function):
    """Binary cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, target, weight, pos_weight, mask, rule, reduce, divisor, impl, inplace):
        ctx.set_materialize_grads(False)
        ctx.inplace = inplace
        tensors = (logits, target, weight, pos_weight, mask)
        _CompiledBinaryCrossEntropy.setup_context(ctx, (*tensors, rule, reduce, divisor, impl), None)
        return _binary_forward(*tensors, *rule, reduce, divisor, impl)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_binary_gradients(ctx, grad, ctx.inplace), None, None, None, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        if tangents[2] is not None or tangents[3] is not None:
            raise RuntimeError("binary_cross_entropy_with_logits is not differentiable in weight and pos_weight")
        return _TransformedBinaryCrossEntropy.jvp(ctx, *tangents)


def binary_cross_entropy(
    logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float, impl: str, inplace: bool = False
) -> Tensor:
    """Compute the loss of every element, or the sum over a divisor."""
    loss: Tensor
    if _plain(logits, *target[:4]):
        loss = BinaryCrossEntropy.apply(logits, *target, reduce, divisor, impl, inplace)
    elif _transformed():
        rule = _Sealed(target.rule)
        loss = _TransformedBinaryCrossEntropy.apply(logits, *target[:4], rule, reduce, divisor, impl)
    else:
        loss = _CompiledBinaryCrossEntropy.apply(logits, *target, reduce, divisor, impl)
    return loss
