"""The short way of plain calls, some of which are so small that most of their time is Python's.

An implementation that has it looks at the arguments once, just as the caller gave them, computes the loss and its gradient in the
same step and attaches them to the logits; or it returns None, and they have to be checked in Python. The Functions here are those
that autograd sees then. Their forward, and the backward of a training step, are the implementation's. Whatever else is asked of
them, such as a second derivative, is asked of the backward in Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from crossent.impl import with_short_way
from crossent.impl.protocol import Implementation
from crossent.ops.binary import BinaryCrossEntropy, FusedBinaryCrossEntropy, UnreducedBinaryCrossEntropy
from crossent.ops.binary import described as described_binary
from crossent.ops.fused import EXPECTED
from crossent.ops.lean import QUESTIONS, Call, Lean
from crossent.ops.softmax import CrossEntropy, FusedCrossEntropy, UnreducedCrossEntropy, described

_IMPLEMENTATION = with_short_way()


class _ShortCrossEntropy(FusedCrossEntropy):
    describe = staticmethod(described)


class _ShortBinaryCrossEntropy(FusedBinaryCrossEntropy):
    describe = staticmethod(described_binary)


def _attached_by(implementation: Implementation) -> None:
    """Let an implementation attach the losses of plain calls to their logits, and form their gradients."""

    def runner(kind: type[Lean], shown_as: type, gradient: Any, **attributes: Any) -> Any:
        kind.forward = staticmethod(implementation.attach)  # type: ignore[method-assign]
        kind.settle(shown_as.__name__, gradient, **attributes)
        return kind.run

    def formed(first: int) -> property:
        return property(lambda ctx: ctx.formed[first])

    # What the backward in Python asks a node, as the implementation has formed it.
    of_sum: dict[str, Any] = {
        "place": "beside", "gradients": formed(0), "formed_with": formed(1), "dtype": formed(2),
        "call": property(lambda ctx: Call(ctx.formed[3], implementation)), "numbers": property(lambda ctx: ctx.formed[4:]),
    }  # fmt: skip
    of_each: dict[str, Any] = {"kept": formed(0), "numbers": property(lambda ctx: ctx.formed[1:])}
    softmax, binary = CrossEntropy._backward_cls, BinaryCrossEntropy._backward_cls
    implementation.know_functions(
        runner(_ShortCrossEntropy, softmax, implementation.sum_gradient, **of_sum),
        runner(
            UnreducedCrossEntropy, softmax, implementation.rows_gradient, call=Call(False, implementation), **of_each
        ),
        runner(_ShortBinaryCrossEntropy, binary, implementation.sum_gradient, **of_sum),
        runner(
            UnreducedBinaryCrossEntropy,
            binary,
            implementation.elements_gradient,
            call=Call(1.0, implementation),
            **of_each,
        ),
        EXPECTED,
    )


if _IMPLEMENTATION is not None:
    _IMPLEMENTATION.know_torch(QUESTIONS)
    _attached_by(_IMPLEMENTATION)


def short_way(loss: Callable[..., Tensor]) -> Callable[[tuple[Any, ...]], Tensor | None]:
    """Return what computes a loss from all of its arguments, a tuple in the order of its signature, or gives None.

    None says that the arguments are not plain, are wrong, or that something looks on.
    """
    if _IMPLEMENTATION is None:
        return lambda given: None
    parameters = inspect.signature(loss).parameters
    defaults = tuple(None if p.default is p.empty else p.default for p in parameters.values())
    way: Callable[[tuple[Any, ...]], Tensor | None] = _IMPLEMENTATION.short_ways[loss.__name__](
        list(parameters), defaults
    )
    return way
