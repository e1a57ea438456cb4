"""The operators of a linear head with its loss and the autograd Functions over them, as softmax.py has them for logits that exist.

A sum over rows forms its gradients together with the loss, which costs three products instead of four; backward hands them
over, multiplied by what arrives. Rows kept apart form the logits of a block once more in backward, with each row's gradient.
A backward that is differentiated itself runs the loss of all logits at once, and differentiates that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from crossent.core.modes import plain, transformed
from crossent.core.reduction import times
from crossent.impl import head as heads
from crossent.impl.classes import classes_of_a_block
from crossent.impl.classes import loss_and_gradients as loss_and_gradients_by_classes
from crossent.impl.head import Head, Plan
from crossent.impl.protocol import RowStatistics
from crossent.ops import validation
from crossent.ops.library import (
    HEAD,
    PLAN,
    Operator,
    differentiated,
    exporting_to_onnx,
    for_each_input,
    has_tangent,
    where_asked,
)

_GRADIENTS = "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"

sum_operator = Operator(
    "linear_cross_entropy", HEAD, PLAN, "Tensor? factor", "Tensor divisor", "bool[3] needs",
    returns="(Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)", check=validation.linear_sum,
)  # fmt: skip
rows_operator = Operator("linear_rows", HEAD, PLAN, returns="Tensor", check=validation.linear_rows)
rows_backward_operator = Operator(
    "linear_rows_backward", HEAD, PLAN, "Tensor grad", "bool[3] needs",
    returns=_GRADIENTS, check=validation.linear_rows_backward,
)  # fmt: skip
statistics_operator = Operator(
    "linear_statistics",
    HEAD,
    PLAN,
    returns="(Tensor loss, Tensor lse, Tensor target_log_prob, Tensor entropy, Tensor correct, Tensor predicted)",
    check=validation.linear_rows,
)
statistics_backward_operator = Operator(
    "linear_statistics_backward", HEAD, PLAN, "Tensor[] grads", "bool[3] needs",
    returns=_GRADIENTS, check=validation.linear_statistics_backward,
)  # fmt: skip


def flat(head: Head, plan: Plan) -> tuple[Any, ...]:
    """Write a head and its plan as the operators take them."""
    return (*HEAD.write(head), *PLAN.write(plan))


_SIZE = HEAD.size + PLAN.size


def _records(arguments: list[Any]) -> tuple[Head, Plan]:
    rest = iter(arguments)
    return HEAD.read(rest), PLAN.read(rest)


def _asked(head: Head, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Return gradients, an empty tensor for what was not asked for."""
    return tuple(head.input.new_empty(0) if g is None else g for g in grads)


def _explained(compute: Callable[..., Any], head: Head, plan: Plan, *arguments: Any) -> Any:
    """Run without autocast and autograd; the kernels find an index out of range at no cost, and only then is it named."""
    try:
        with torch.no_grad(), torch.autocast(head.input.device.type, enabled=False):
            return compute(head, plan, *arguments)
    except RuntimeError:
        plan.target.raise_if_out_of_range(head.shape[0])
        raise


@sum_operator.implement
def _(head, plan, factor, divisor, needs):
    by_classes = needs[1] and classes_of_a_block(head, plan)
    compute = loss_and_gradients_by_classes if by_classes else heads.loss_and_gradients
    loss, grads = _explained(compute, head, plan, factor, divisor, needs)
    return (loss, *_asked(head, grads))


@rows_operator.implement
def _(head, plan):
    return _explained(heads.row_losses, head, plan)


@rows_backward_operator.implement
def _(head, plan, grad, needs):
    return _asked(head, _explained(heads.row_losses_backward, head, plan, grad, needs))


@statistics_operator.implement
def _(head, plan):
    row = _explained(heads.statistics, head, plan)
    return (*row[:4], row.correct, row.predicted)


@statistics_backward_operator.implement
def _(head, plan, grads, needs):
    return _asked(head, _explained(heads.statistics_backward, head, plan, grads, needs))


def _products(head: Any, plan: Any, count: int) -> int:
    """Count the flops of products of all hidden states with a head, given by their shapes, and of the teacher's own."""
    (columns, features), size = head.weight, head.input[0]
    taught = 0 if plan.teacher is None else 2 * size * columns * plan.teacher.weight[1]
    return int(2 * size * columns * features * count + taught)


@sum_operator.count_flops
def _(head, plan, factor, divisor, needs):
    return _products(head, plan, 1 + needs[0] + needs[1])


@rows_operator.count_flops
@statistics_operator.count_flops
def _(head, plan):
    return _products(head, plan, 1)


@rows_backward_operator.count_flops
@statistics_backward_operator.count_flops
def _(head, plan, grads, needs):
    return _products(head, plan, 1 + needs[0] + needs[1])


def _rows_like(head: Head) -> Tensor:
    return head.input.new_empty((head.input.shape[0], *head.shape[1:]), dtype=_wide(head.input))


def _fake_gradients(head: Head, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Describe gradients, which lie row after row however their inputs lie; what was not asked for is an empty tensor."""
    return tuple(
        head.input.new_empty(0) if x is None or not need else x.new_empty(x.shape)
        for x, need in zip(head[:3], needs, strict=True)
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@sum_operator.fake
def _(head, plan, factor, divisor, needs):
    return (head.input.new_empty((), dtype=_wide(head.input)), *_fake_gradients(head, needs))


@rows_operator.fake
def _(head, plan):
    return _rows_like(head)


@rows_backward_operator.fake
def _(head, plan, grad, needs):
    return _fake_gradients(head, needs)


@statistics_operator.fake
def _(head, plan):
    rows = tuple(_rows_like(head) for _ in range(5))
    return (*rows, rows[0].new_empty(rows[0].shape, dtype=torch.int64))


@statistics_backward_operator.fake
def _(head, plan, grads, needs):
    return _fake_gradients(head, needs)


def function_under_way() -> bool:
    """Whether the forward of some :class:`torch.autograd.Function` is being run, where gradients are not followed."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not torch.autograd.Function.apply.__code__:
        frame = frame.f_back
    return frame is not None


def transform_under_way(*tensors: Tensor | None) -> str:
    """Name the transform under way that only torch operations pass through, or "" for none."""
    if transformed():
        return "torch.func"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if exporting_to_onnx():
        return "an export to ONNX"
    if torch.compiler.is_compiling():
        return "forward mode" if forward_ad._current_level >= 0 else ""
    return (
        "forward mode"
        if forward_ad._current_level >= 0 and any(has_tangent(t) for t in tensors if t is not None)
        else ""
    )


Formed = Callable[..., Any]
_AT_ONCE: dict[str, Formed] = {}


def at_once(kind: str) -> Callable[[Formed], Formed]:
    """Register how a loss of a head and its plan is computed in operations that autograd knows: a sum, rows or statistics."""

    def register(compute: Formed) -> Formed:
        _AT_ONCE[kind] = compute
        return compute

    return register


def _to_differentiate(x: Tensor | None) -> Tensor | None:
    """Return a tensor that requires grad, on whose graph it stays if it has one."""
    return x if x is None or x.requires_grad else x.detach().requires_grad_()


def _gradients_at_once(
    kind: str, grads: Any, needs: Sequence[bool], head: Head, plan: Plan, *more: Any
) -> tuple[Tensor | None, ...]:
    """Compute gradients for a head that can be differentiated."""
    with torch.enable_grad():
        input, weight, bias = map(_to_differentiate, head[:3])
        assert input is not None
        assert weight is not None
        head = Head(input, weight, bias, head.shape)
        wanted = [x for x, need in zip(head[:3], needs, strict=True) if need and x is not None]
        of_heads = iter(torch.autograd.grad(_AT_ONCE[kind](head, plan, *more), wanted, grads, create_graph=True))
    return tuple(next(of_heads) if need else None for need in needs)


def _save(ctx: Any, arguments: tuple[Any, ...], *formed: Tensor) -> None:
    """Save arguments, so that autograd frees them after backward and refuses what was modified in place before."""
    ctx.numbers = tuple(None if isinstance(x, Tensor) else x for x in arguments)
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in arguments), *formed)


def _saved(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """Return the arguments and what was formed."""
    # The tensors are read once, since a checkpoint that recomputes hands them out only once.
    tensors, size = ctx.saved_tensors, len(ctx.numbers)
    return [x if t is None else t for t, x in zip(tensors, ctx.numbers, strict=False)], list(tensors[size:])


class LinearCrossEntropy(Function):
    """The weighted sum of a head's losses over a divisor; public for its name, which autograd shows."""

    @staticmethod
    def forward(*arguments):
        return sum_operator.dispatch(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *given, ctx.needs = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        _save(ctx, tuple(given), *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        given, formed = _saved(ctx)
        if not torch.compiler.is_compiling() and differentiated(grad, *given[:3]):
            at_once = _gradients_at_once("sum", grad, ctx.needs, *_records(given), *given[_SIZE:])
            return for_each_input(ctx, *at_once)
        gradients = iter(scaled(grad, [g for g, need in zip(formed, ctx.needs, strict=True) if need]))
        return for_each_input(ctx, *(next(gradients) if need else None for need in ctx.needs))


def scaled(grad: Tensor, formed: list[Tensor]) -> list[Tensor]:
    """Multiply gradients by what arrives: in their own memory where nobody will ask for them again."""
    if not plain(grad, *formed) or torch._C._autograd._get_current_graph_task_keep_graph():
        return [times(g, grad) for g in formed]
    if grad.device.type == "cpu" and not grad.is_meta:
        factor = grad.item()
        if factor == 1:
            return formed
        if not isfinite(factor):  # what is 0 stays 0, as of a row that does not count
            return [times(g, grad) for g in formed]
    return [g.mul_(grad) for g in formed]


class LinearRows(Function):
    """A head's loss of every row; public for its name, which autograd shows."""

    @staticmethod
    def forward(*arguments):
        return rows_operator.dispatch(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        return for_each_input(ctx, *_rows_gradients(ctx, "rows", grad, rows_backward_operator))


class LinearStatistics(Function):
    """The statistics of a head's rows; public for its name, which autograd shows."""

    @staticmethod
    def forward(*arguments):
        return tuple(statistics_operator.dispatch(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[4:])
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        at_head = _rows_gradients(ctx, "statistics", grads[:4], statistics_backward_operator)
        return for_each_input(ctx, *at_head)


def _rows_gradients(ctx: Any, kind: str, grads: Any, backward: Operator) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a head from those of its rows."""
    given, needs = _saved(ctx)[0], ctx.needs_input_grad[:3]
    first = grads[0] if isinstance(grads, tuple) else grads
    if not torch.compiler.is_compiling() and differentiated(first, *given[:3]):
        return _gradients_at_once(kind, grads, needs, *_records(given))
    return where_asked(tuple(backward.dispatch(*given, grads, needs)), needs)


@sum_operator.differentiate
def _(head, plan, factor, divisor, needs):
    wanted = tuple(need or (x is not None and x.requires_grad) for x, need in zip(head[:3], needs, strict=True))
    return LinearCrossEntropy.apply(*flat(head, plan), factor, divisor, wanted)


@rows_operator.differentiate
def _(head, plan):
    return LinearRows.apply(*flat(head, plan))


@statistics_operator.differentiate
def _(head, plan):
    return LinearStatistics.apply(*flat(head, plan))


@rows_backward_operator.differentiate
def _(head, plan, grad, needs):
    return _asked(head, _gradients_at_once("rows", grad, needs, head, plan))


@statistics_backward_operator.differentiate
def _(head, plan, grads, needs):
    return _asked(head, _gradients_at_once("statistics", tuple(grads), needs, head, plan))


def linear_statistics(head: Head, plan: Plan, row_weight: Tensor) -> RowStatistics:
    """Compute the statistics of rows in blocks; what rows weigh is given, and needs no logits."""
    *four, correct, predicted = statistics_operator(head, plan)
    return RowStatistics._make([*four, row_weight, correct, predicted])
