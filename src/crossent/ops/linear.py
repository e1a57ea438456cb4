"""The operators of ``linear_cross_entropy`` and the autograd Functions over them, as softmax.py has them for logits that exist.

A sum over rows forms its gradients together with the loss, which costs three products instead of four; backward hands them
over, multiplied by what arrives. Rows kept apart form the logits of a block once more in backward, with each row's gradient.
A backward that is differentiated itself runs the loss of all logits (``again``), and differentiates that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from crossent.core.target import Rule, Target
from crossent.impl import head as blocks
from crossent.impl.head import Head, Plan, Teacher
from crossent.ops.softmax import _ANY_DEVICE, _RULE, _TARGET, _differentiated, _library, _plain, _transformed

_HEAD = "Tensor input, Tensor weight, Tensor? bias, SymInt[] shape"
_TEACHER = "Tensor? teacher_input, Tensor? teacher_weight, Tensor? teacher_bias, float teacher_temperature"
_PLAN = f"{_TARGET.replace('Tensor? weight', 'Tensor? class_weight')}, {_RULE}, {_TEACHER}, int max_bytes, str impl"
_GRADIENTS = "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"

_library.define(
    f"linear_cross_entropy({_HEAD}, {_PLAN}, Tensor? factor, Tensor divisor, bool[3] needs) "
    "-> (Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
)
_library.define(f"linear_rows({_HEAD}, {_PLAN}, bool statistics) -> (Tensor rows, Tensor correct)")
_library.define(f"linear_rows_backward({_HEAD}, {_PLAN}, Tensor grads, bool[3] needs) -> {_GRADIENTS}")

_SIZE = 4 + 5 + len(Rule._fields) + 4 + 2  # arguments of a head and its plan


def flat(head: Head, plan: Plan) -> tuple[Any, ...]:
    """Write a head and its plan as the operators take them."""
    teacher = (None, None, None, 1.0) if plan.teacher is None else plan.teacher
    return (*head, *plan.target[:5], *plan.target.rule, *teacher, plan.max_bytes, plan.impl)


def _understood(said: Any) -> tuple[Head, Plan]:
    head, rest = Head._make(said[:4]), said[9 + len(Rule._fields) : _SIZE]
    target = Target._make((*said[4:9], Rule._make(said[9 : 9 + len(Rule._fields)])))
    teacher = None if rest[0] is None else Teacher._make(rest[:4])
    return head._replace(shape=tuple(head.shape)), Plan(target, teacher, *rest[4:])


def _wanted(head: Head, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Return gradients, an empty tensor for what was not asked for."""
    return tuple(head.input.new_empty(0) if g is None else g for g in grads)


def _explained(compute: Callable[..., Any], head: Head, plan: Plan, *arguments: Any) -> Any:
    """Run without autocast and autograd; an index out of range is found there for nothing, and explained only then."""
    try:
        with torch.no_grad(), torch.autocast(head.input.device.type, enabled=False):
            return compute(head, plan, *arguments)
    except RuntimeError:
        plan.target.raise_if_out_of_range(head.shape[0])
        raise


def _linear_cross_entropy(*said):
    head, plan = _understood(said)
    loss, grads = _explained(blocks.loss_and_gradients, head, plan, *said[_SIZE:])
    return (loss, *_wanted(head, grads))


def _linear_rows(*said):
    return _explained(blocks.rows_of, *_understood(said), said[-1])


def _linear_rows_backward(*said):
    head, plan = _understood(said)
    return _wanted(head, _explained(blocks.rows_backward, head, plan, *said[_SIZE:]))


_library.impl("linear_cross_entropy", _linear_cross_entropy, _ANY_DEVICE)
_library.impl("linear_rows", _linear_rows, _ANY_DEVICE)
_library.impl("linear_rows_backward", _linear_rows_backward, _ANY_DEVICE)


def _fake_gradients(said, needs):
    of = (said[0], said[1], said[2])
    return tuple(torch.empty_like(x) if need else said[0].new_empty(0) for x, need in zip(of, needs, strict=True))


def _wide(x):
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.register_fake("crossent::linear_cross_entropy", lib=_library)
def _(*said):
    return (said[0].new_empty((), dtype=_wide(said[0])), *_fake_gradients(said, said[-1]))


@torch.library.register_fake("crossent::linear_rows", lib=_library)
def _(*said):
    rows, statistics = (said[0].shape[0], *said[3][1:]), said[-1]
    told = said[0].new_empty((4 if statistics else 1, *rows), dtype=_wide(said[0]))
    return told, told.new_empty(rows if statistics else (0,))


@torch.library.register_fake("crossent::linear_rows_backward", lib=_library)
def _(*said):
    return _fake_gradients(said, said[-1])


def transformed(*tensors: Tensor | None) -> str:
    """Name the transform under way that only torch operations pass through, or "" for none."""
    if _transformed():
        return "torch.func"
    duals = (forward_ad.unpack_dual(t).tangent is not None for t in tensors if t is not None)
    return "forward mode" if forward_ad._current_level >= 0 and any(duals) else ""


class Again:
    """How a loss is computed of a head and a plan in operations that autograd knows; it holds no tensor, autograd saves them."""

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        self.compute = compute

    def gradients(self, grad: Tensor, needs: tuple[bool, ...], head: Head, plan: Plan, *more: Any) -> tuple[Any, ...]:
        """Compute gradients for a head that can be differentiated."""
        with torch.enable_grad():
            inputs: tuple[Any, ...] = head[:3]
            wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
            found = iter(torch.autograd.grad(self.compute(head, plan, *more), wanted, grad, create_graph=True))
        return tuple(next(found) if need else None for need in needs)


def _save(ctx: Any, said: tuple[Any, ...], *formed: Tensor) -> None:
    """Save what was said, so that autograd frees it after backward and refuses what was modified in place before."""
    ctx.numbers = tuple(None if isinstance(x, Tensor) else x for x in said)
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in said), *formed)


def _saved(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """Return what was said and what was formed."""
    tensors, size = (
        ctx.saved_tensors,
        len(ctx.numbers),
    )  # once: a checkpoint that recomputes hands them out no more often
    return [x if t is None else t for t, x in zip(tensors, ctx.numbers, strict=False)], list(tensors[size:])


class LinearCrossEntropy(Function):
    """The weighted sum of a head's losses over a divisor; public for its name, which autograd shows."""

    @staticmethod
    def forward(*arguments):
        *said, _, needs = arguments
        return torch.ops.crossent.linear_cross_entropy.default(*said, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *said, ctx.again, ctx.needs = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        _save(ctx, tuple(said), *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * (len(ctx.numbers) - 1)
        if grad is None:
            return (None, None, None, *rest)
        said, formed = _saved(ctx)
        if not torch.compiler.is_compiling() and _differentiated(grad, *said[:3]):
            return (*ctx.again.gradients(grad, ctx.needs, *_understood(said), *said[_SIZE:]), *rest)
        found = iter(_scaled(grad, [g for g, need in zip(formed, ctx.needs, strict=True) if need]))
        return (*(next(found) if need else None for need in ctx.needs), *rest)


def _scaled(grad: Tensor, formed: list[Tensor]) -> list[Tensor]:
    """Multiply gradients by what arrives: in their own memory where nobody will ask for them again."""
    if not _plain(grad, *formed) or torch._C._autograd._get_current_graph_task_keep_graph():
        return [g * grad for g in formed]
    if grad.device.type == "cpu" and not grad.is_meta and grad.item() == 1:
        return formed
    return [g.mul_(grad) for g in formed]


class LinearRows(Function):
    """A head's loss of every row, or the four statistics of every row; public for its name, which autograd shows."""

    @staticmethod
    def forward(*arguments):
        *said, _, statistics = arguments
        return torch.ops.crossent.linear_rows.default(*said, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *said, ctx.again, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        _save(ctx, tuple(said))

    @staticmethod
    def backward(ctx: Any, grads: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        rest = (None,) * (_SIZE - 1)
        if grads is None:
            return (None, None, None, *rest)
        said, needs = _saved(ctx)[0], ctx.needs_input_grad[:3]
        if not torch.compiler.is_compiling() and _differentiated(grads, *said[:3]):
            return (*ctx.again.gradients(grads, needs, *_understood(said)), *rest)
        found = torch.ops.crossent.linear_rows_backward.default(*said, grads, needs)
        return (*(g if need else None for g, need in zip(found, needs, strict=True)), *rest)
