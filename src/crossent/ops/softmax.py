"""The softmax operators and the autograd Functions over them.

There is one operator forward and one backward, opaque to the compiler, with the implementation to run as their last argument,
and two more for statistics. Around them stands an ``autograd.Function`` in three forms with one backward:

- compiled, traced, exported or fake: the operators, through the dispatcher, whose derivative it is;
- ``torch.func`` and vmap: formulas in torch operations, which these transforms know and can differentiate again. It has a
  ``jvp``, which a Function that is to be compiled must not have;
- plain tensors: the implementation itself, without the dispatcher and without the binding of arguments that
  ``setup_context`` costs, half of the time of a small call. A sum or a mean forms its gradient with the loss: ``fused.py``.

A backward that is differentiated itself (``create_graph``, forward over reverse) always runs the formulas.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from crossent.core import torchs
from crossent.core.checks import UNDIFFERENTIABLE_WEIGHT, Place
from crossent.core.modes import plain, transformed
from crossent.core.reduction import compute_dtype, divide, over, weigh
from crossent.core.settings import PLAIN, Settings
from crossent.core.target import Target
from crossent.impl import formulas, load
from crossent.impl.protocol import Gradients, RowStatistics
from crossent.ops import validation
from crossent.ops.fused import Fused, forms_gradient
from crossent.ops.lean import Call, Unreduced
from crossent.ops.library import (
    TARGET,
    Operator,
    by_formula,
    differentiated,
    exporting_to_onnx,
    fake_gradients,
    for_each_input,
    gradients_like,
    like,
    primal,
    tell_if_in_place,
    where_asked,
)

_EAGER = formulas.IMPLEMENTATION

forward_operator = Operator(
    "cross_entropy_forward", "Tensor logits", TARGET, "str reduction", "str impl",
    returns="(Tensor loss, Tensor row_weight, Tensor lse)", check=validation.softmax_forward,
)  # fmt: skip
traced_operator = Operator(
    "cross_entropy_traced", "Tensor logits", TARGET, "str reduction",
    returns="(Tensor loss, Tensor row_weight, Tensor lse)", check=validation.softmax_traced,
)  # fmt: skip
backward_operator = Operator(
    "cross_entropy_backward", "Tensor grad", "Tensor? divisor", "Tensor logits", TARGET, "Tensor lse", "bool[2] needs",
    "str impl", returns="(Tensor grad_logits, Tensor grad_target)", check=validation.softmax_backward,
)  # fmt: skip
statistics_operator = Operator(
    "cross_entropy_statistics", "Tensor logits", TARGET, "str impl",
    returns="(Tensor loss, Tensor lse, Tensor target_log_prob, Tensor entropy, Tensor row_weight, Tensor correct, "
    "Tensor predicted)",
    check=validation.statistics,
)  # fmt: skip
statistics_backward_operator = Operator(
    "cross_entropy_statistics_backward", "Tensor[] grads", "Tensor logits", TARGET, "bool[2] needs",
    returns="(Tensor grad_logits, Tensor grad_target)", check=validation.statistics_backward,
)  # fmt: skip


def explained(compute: Any, logits: Tensor, target: Target, *arguments: Any) -> Any:
    """Run the forward of an implementation, which finds an index out of range at no cost; only then is it named."""
    if logits.shape[1] == 0:
        target.raise_if_out_of_range(0)
    try:
        return compute(logits, target, *arguments)
    except RuntimeError:
        target.raise_if_out_of_range(logits.shape[1])
        raise


def _labels_in_range(logits: Tensor, target: Target) -> None:
    """Look at the labels before formulas that would not; a GPU would have to be waited for, and is not asked."""
    if logits.device.type == "cpu":
        target.raise_if_out_of_range(logits.shape[1])


def _as_tensor(row_weight: Tensor | float, loss: Tensor) -> Tensor:
    return row_weight if isinstance(row_weight, Tensor) else loss.new_full((), row_weight)


@forward_operator.implement
def _(logits, target, reduction, impl):
    loss, row_weight, lse = explained(load(impl).cross_entropy_forward, logits, target, reduction)
    return loss, _as_tensor(row_weight, loss), lse


@forward_operator.fake
def _(logits, target, reduction, impl):
    dtype, rows = compute_dtype(logits, target.values), (logits.shape[0], *logits.shape[2:])
    loss = logits.new_empty(rows if reduction == "none" else (), dtype=dtype)
    return loss, torch.empty_like(loss), logits.new_empty((2, *rows), dtype=dtype)


@backward_operator.implement
def _(grad, divisor, logits, target, lse, needs, impl):
    divisor, needs = 1.0 if divisor is None else divisor, (*needs, False, False)
    if impl == _EAGER.name:
        _labels_in_range(logits, target)
    try:
        grads = load(impl).cross_entropy_backward(grad, logits, target, lse, needs, divisor)
    except RuntimeError:
        target.raise_if_out_of_range(logits.shape[1])
        raise
    return gradients_like((grads.logits, grads.target), (logits, target.values))


@backward_operator.fake
def _(grad, divisor, logits, target, lse, needs, impl):
    return fake_gradients((logits, target.values), needs)


@statistics_operator.implement
def _(logits, target, impl):
    return tuple(map(_own, explained(load(impl).statistics, logits, target)))


@statistics_operator.fake
def _(logits, target, impl):
    rows = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=compute_dtype(logits, target.values))
    return tuple(RowStatistics.made_by(lambda dtype: torch.empty_like(rows, dtype=dtype), rows.dtype))


@statistics_backward_operator.implement
def _(grads, logits, target, needs):
    _labels_in_range(logits, target)
    gradients = formulas.statistics_backward(tuple(grads), logits, target, (*needs, False, False))
    return gradients_like((gradients.logits, gradients.target), (logits, target.values))


@statistics_backward_operator.fake
def _(grads, logits, target, needs):
    return fake_gradients((logits, target.values), needs)


def _own(result: Tensor) -> Tensor:
    """Give a result memory of its own.

    Operators promise that, and the statistics of zero rows are all the same tensor. Torch wants the tangent of a view to lie as
    the view does, or stops in an assertion; inside vmap nothing shows whether a tensor is a view.
    """
    return result.clone() if transformed() or result._is_view() or not result.numel() else result


# --- the loss ---------------------------------------------------------------------------------------------------------


class _CompiledCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, logit_bias, class_mask, valid, settings, reduction, impl):
        target = Target(values, weight, logit_bias, class_mask, valid, settings)
        return forward_operator(logits, target, reduction, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.settings, reduction, ctx.impl = inputs
        _, row_weight, lse = output
        ctx.mark_non_differentiable(row_weight, lse)
        ctx.save_for_backward(*tensors, lse, row_weight if reduction == "mean" else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        logits, *tensors, lse, divisor = ctx.saved_tensors
        target, needs = Target._make((*tensors, ctx.settings)), (*ctx.needs_input_grad[:4],)
        if needs[2] or needs[3] or differentiated(grad, logits, *tensors):
            by = 1.0 if divisor is None else divisor
            return for_each_input(ctx, *_EAGER.cross_entropy_backward(grad, logits, target, None, needs, by))
        both = backward_operator(grad, divisor, logits, target, lse, needs[:2], ctx.impl)
        return for_each_input(ctx, *where_asked(both, needs[:2]))


class _TracedCrossEntropy(Function):
    """The same in torch operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, logit_bias, class_mask, valid, settings, reduction):
        target = Target(values, weight, logit_bias, class_mask, valid, settings)
        return explained(_EAGER.cross_entropy_forward, logits, target, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _CompiledCrossEntropy.setup_context(ctx, (*inputs, _EAGER.name), output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        logits, *tensors, lse, divisor = ctx.saved_tensors
        target, needs = Target._make((*tensors, ctx.settings)), (*ctx.needs_input_grad[:4],)
        by, lse = 1.0 if divisor is None else divisor, None if differentiated(grad, logits, *tensors) else lse
        return for_each_input(ctx, *_EAGER.cross_entropy_backward(grad, logits, target, lse, needs, by))


@traced_operator.compose
def _(logits, target, reduction):
    return _TracedCrossEntropy.apply(logits, *target.tensors, target.settings, reduction)


@forward_operator.differentiate
def _(logits, target, reduction, impl):
    return _CompiledCrossEntropy.apply(logits, *target.tensors, target.settings, reduction, impl)


@backward_operator.differentiate
def _(grad, divisor, logits, target, lse, needs, impl):
    by, needs = 1.0 if divisor is None else divisor, (*needs, False, False)
    grads = _EAGER.cross_entropy_backward(grad, logits, target, None, needs, by)
    return gradients_like((grads.logits, grads.target), (logits, target.values))


class _TransformedCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, logit_bias, class_mask, valid, settings, reduction):
        target = Target(values, weight, logit_bias, class_mask, valid, settings)
        return _own(_EAGER.cross_entropy_forward(logits, target, reduction).loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.settings, ctx.reduction = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        logits, *tensors = ctx.saved_tensors
        target, needs = Target._make((*tensors, ctx.settings)), ctx.needs_input_grad[:4]
        return for_each_input(ctx, *_EAGER.cross_entropy_backward(grad, logits, target, None, needs))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        logits, *tensors = map(primal, ctx.saved_tensors[:6])
        with _set_fwd_grad_enabled(True):
            return formulas.cross_entropy_tangent(
                logits, Target._make((*tensors, ctx.settings)), ctx.reduction, tangents[:4]
            )


class CrossEntropy(Function):
    """Softmax cross entropy of plain tensors; the class is public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, logits, values, weight, logit_bias, class_mask, valid, settings, reduction, impl, inplace):
        target = Target(values, weight, logit_bias, class_mask, valid, settings)
        loss, row_weight, lse = explained(load(impl).cross_entropy_forward, logits, target, reduction)
        loss = _own(loss)
        ctx.settings, ctx.reduction = settings, reduction
        ctx.impl, ctx.inplace, ctx.mean = impl, inplace, reduction == "mean"
        ctx.divisor = row_weight if ctx.mean else 1.0
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, values, weight, logit_bias, class_mask, valid, lse)
        ctx.save_for_forward(logits, values, weight, logit_bias, class_mask, valid)
        if ctx.mean:
            return loss
        row_weight = _as_tensor(row_weight, loss)
        ctx.mark_non_differentiable(row_weight)
        return loss, row_weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        logits, *tensors, lse = ctx.saved_tensors
        target, needs = Target._make((*tensors, ctx.settings)), ctx.needs_input_grad[:4]
        if needs[2] or needs[3] or differentiated(grad, logits, *tensors):
            grads = _EAGER.cross_entropy_backward(grad, logits, target, None, needs, ctx.divisor)
        elif plain(grad, logits, *tensors):
            compute = load(ctx.impl).cross_entropy_backward
            grads = compute(grad, logits, target, lse, needs, ctx.divisor, ctx.inplace)
            if ctx.inplace:
                tell_if_in_place(grads.logits, logits)
            on_logits, on_target = grads.logits, grads.target
            grads = Gradients(
                None if on_logits is None else like(on_logits, logits),
                None if on_target is None else like(on_target, target.values),
            )
        else:
            both = backward_operator(over(grad, ctx.divisor), None, logits, target, lse, needs[:2], ctx.impl)
            grads = Gradients(*where_asked(both, needs[:2]))
        return for_each_input(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        if tangents[2] is not None and not ctx.saved_tensors[1].is_floating_point():
            raise RuntimeError(UNDIFFERENTIABLE_WEIGHT)
        tangent = _TransformedCrossEntropy.jvp(ctx, *tangents)
        return over(tangent, ctx.divisor) if ctx.mean else (tangent, None)


def _differentiable(grad: Tensor, logits: Tensor, target: Target, call: Call) -> Tensor:
    """Compute the gradient for the logits of plain tensors, whose class indices may have any integer dtype."""
    if target.indices:
        target = target._replace(values=target.values.long())
    divisor: float | Tensor = 1.0
    if call.sample_weight is not None:
        if call.divided:
            divisor = target.divisor(logits, call.sample_weight)
        grad, divisor = weigh(call.sample_weight, over(grad, divisor)), 1.0
    elif call.divided:
        divisor = target.divisor(logits)
    gradient = _EAGER.cross_entropy_backward(grad, logits, target, None, divisor=divisor).logits
    assert gradient is not None
    return gradient


class FusedCrossEntropy(Fused):
    """The sum or mean over plain tensors, with its gradient."""

    describe: Any = Target
    differentiable = staticmethod(_differentiable)

    @staticmethod
    def compute(logits, target, call, dtype, factor, inplace, *formed):
        compute: Any = call.implementation.cross_entropy_sum
        weighed = {} if call.sample_weight is None else {"sample_weight": call.sample_weight}
        return compute(logits, target, call.divided, dtype, factor, inplace, *formed, **weighed)


def described(target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float) -> Target:
    """Make the record of what a plain call says of its target."""
    usual = ignore_index == -100 and label_smoothing == 0.0
    return Target(target, weight, None, None, None, PLAIN if usual else Settings(ignore_index, label_smoothing))


class UnreducedCrossEntropy(Unreduced):
    """The losses of plain tensors' rows."""

    describe, differentiable = staticmethod(described), staticmethod(_differentiable)

    @staticmethod
    def gradient(grad, logits, target, kept, call):
        lse = call.implementation.kept_lse(kept, logits)
        return call.implementation.cross_entropy_backward(grad, logits, target, lse).logits


FusedCrossEntropy.settle(CrossEntropy._backward_cls.__name__)


def weighs_samples(logits: Tensor, target: Target, sample_weight: Tensor, impl: str) -> bool:
    """Whether an implementation sums rows of these weights in one pass over the logits: nothing else is asked than that."""
    tensors = (*target.tensors, sample_weight)
    implementation = load(impl)
    if not (implementation.weighs_samples and implementation.fuses(logits)):
        return False
    if not plain(logits, *tensors) or logits.numel() == 0:  # last, since a compiler may not know the size
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (logits, *tensors)):
        return forms_gradient(logits, *tensors)
    return forward_ad._current_level < 0


def cross_entropy(
    logits: Tensor,
    target: Target,
    reduction: str,
    impl: str,
    place: Place = "beside",
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss and the weight of every row, or the sum of both; or the mean loss, and None.

    ``sample_weight`` multiplies both in a sum or mean that ``weighs_samples`` allows.
    """
    mean, tensors, implementation = reduction == "mean", target.tensors, load(impl)
    if implementation.differentiable:
        loss, row_weight, _ = implementation.cross_entropy_forward(logits, target, reduction)
        return loss, None if mean else _as_tensor(row_weight, loss)
    if plain(logits, *tensors):
        if reduction != "none" and implementation.fuses(logits) and forms_gradient(logits, *tensors):
            dtype = compute_dtype(logits, target.values)
            call = Call(mean, implementation, sample_weight)
            loss, total, _ = explained(FusedCrossEntropy.of, logits, target, call, dtype, place)
            return loss, None if mean else _as_tensor(total, loss)
        if sample_weight is not None:
            dtype = compute_dtype(logits, target.values)
            compute: Any = implementation.cross_entropy_sum
            weighed = partial(compute, sample_weight=sample_weight)
            loss, total, _ = explained(weighed, logits, target, mean, dtype, None)
            return loss, None if mean else _as_tensor(total, loss)
        result = CrossEntropy.apply(logits, *tensors, target.settings, reduction, impl, place != "beside")
        return (result, None) if mean else result
    if by_formula():
        if exporting_to_onnx() and target.indices and target.plain and not target.settings.label_smoothing:
            return _in_onnx(logits, target, reduction)
        loss, row_weight, _ = _EAGER.cross_entropy_forward(logits, target, reduction)
        return loss, None if mean else _as_tensor(row_weight, loss)
    if transformed():
        how = "sum" if mean else reduction
        loss = _TransformedCrossEntropy.apply(logits, *tensors, target.settings, how)
        if how == "sum":
            divisor = target.divisor(logits)
            return (divide(loss, divisor, "nan"), None) if mean else (loss, divisor)
        x = logits.to(compute_dtype(logits, target.values))
        return loss, target.row_weights(x).squeeze(1)
    if impl == _EAGER.name and torch.compiler.is_dynamo_compiling():
        loss, row_weight, _ = traced_operator(logits, target, reduction)
    else:
        loss, row_weight, _ = forward_operator(logits, target, reduction, impl)
    return loss, None if mean else row_weight


def _in_onnx(logits: Tensor, target: Target, reduction: str) -> tuple[Tensor, Tensor | None]:
    """Ask torch for what ONNX has an operator of its own for, SoftmaxCrossEntropyLoss, so that its runtimes recognise it."""
    x = logits.to(compute_dtype(logits, target.values))
    weight = None if target.weight is None else target.weight.to(x.dtype)
    ignored = target.settings.ignore_index
    loss = torchs.cross_entropy(x, target.values, weight, ignore_index=ignored, reduction=reduction)
    if reduction == "mean":
        return loss, None
    return loss, target.divisor(x) if reduction == "sum" else target.row_weights(x).squeeze(1)


# --- the statistics ---------------------------------------------------------------------------------------------------


class _CompiledStatistics(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, logit_bias, class_mask, valid, settings, impl):
        return statistics_operator(logits, Target(values, weight, logit_bias, class_mask, valid, settings), impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.settings, _ = inputs
        ctx.mark_non_differentiable(*output[4:])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, *tensors = ctx.saved_tensors
        target, needs, grads = Target._make((*tensors, ctx.settings)), ctx.needs_input_grad[:4], grads[:4]
        if needs[2] or needs[3] or differentiated(grads[0], *grads[1:], logits, *tensors):
            return for_each_input(ctx, *formulas.statistics_backward(grads, logits, target, needs))
        both = statistics_backward_operator(grads, logits, target, needs[:2])
        return for_each_input(ctx, *where_asked(both, needs[:2]))


@statistics_operator.differentiate
def _(logits, target, impl):
    return _CompiledStatistics.apply(logits, *target.tensors, target.settings, impl)


@statistics_backward_operator.differentiate
def _(grads, logits, target, needs):
    gradients = formulas.statistics_backward(tuple(grads), logits, target, (*needs, False, False))
    return gradients_like((gradients.logits, gradients.target), (logits, target.values))


class Statistics(_CompiledStatistics):
    """The statistics of rows, of which the first four have derivatives; public for its name, which autograd shows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, values, weight, logit_bias, class_mask, valid, settings, impl):
        target = Target(values, weight, logit_bias, class_mask, valid, settings)
        return tuple(map(_own, explained(formulas.statistics, logits, target)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Mark nothing as without derivative: vmap forgets the mark of what is batched, and then refuses a missing tangent."""
        *tensors, ctx.settings, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, *tensors = map(primal, ctx.saved_tensors)
        with _set_fwd_grad_enabled(True):
            of_four = formulas.statistics_tangent(logits, Target._make((*tensors, ctx.settings)), tangents[:4])
        nothing = torch.zeros_like(of_four[0])
        return (*of_four, nothing, nothing.clone(), None)


def statistics(logits: Tensor, target: Target, impl: str, named: bool) -> RowStatistics:
    """Compute the statistics of rows: in one pass of an implementation where nothing is to be differentiated, else by formula."""
    differentiable = torch.is_grad_enabled() and (
        logits.requires_grad or any(t is not None and t.requires_grad for t in target.tensors)
    )
    outside = plain(logits, *target.tensors)
    row_statistics: RowStatistics
    if logits.numel() and outside and not differentiable and forward_ad._current_level < 0:
        row_statistics = explained(load(impl).statistics, logits, target)
        return row_statistics
    if named and impl != _EAGER.name:
        raise RuntimeError(
            f"impl={impl!r} cannot run here: the {impl} kernels give statistics where nothing is to be differentiated; "
            "use impl='eager' or leave it out"
        )
    if not outside and by_formula():
        row_statistics = formulas.statistics(logits, target)
        return row_statistics
    if outside or transformed():
        row = RowStatistics._make(Statistics.apply(logits, *target.tensors, target.settings, _EAGER.name))
        return row._replace(row_weight=row.row_weight.detach(), correct=row.correct.detach())
    return RowStatistics._make(statistics_operator(logits, target, _EAGER.name))
