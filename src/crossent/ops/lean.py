"""Autograd Functions that are told of nothing but the logits, and how they see that nothing else is wanted.

A Function over every argument of a loss costs a small call more than its kernel does. Here the logits are the one tensor that
autograd follows. The others do not require grad, and are saved so that autograd refuses what was modified in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from crossent.impl.protocol import Implementation
from crossent.ops.library import like

# Bound once, since a small call takes hardly longer than looking them up.
_tracing = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_autocast = torch._C._is_any_autocast_enabled
_saved_tensor_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_grad_enabled = torch.is_grad_enabled
_batched = torch._C._functorch.is_legacy_batchedtensor


def quiet() -> bool:
    """Whether nothing looks on or transforms, or decides dtypes: no tracer, mode, transform, forward-mode level or autocast."""
    return (
        forward_ad._current_level < 0 and not _tracing() and not _modes() and not _transforms() and not _autocast()
    )  # fmt: skip


def kept_as_they_are() -> bool:
    """Whether autograd keeps tensors as they are: hooks that move or recompute what is saved would not see a gradient."""
    return _saved_tensor_hooks(False) is None


def needs_formula(grad: Tensor) -> bool:
    """Whether a gradient has to be computed in torch operations: it is differentiated, transformed or batched itself."""
    looked_on = _tracing() is not None or _transforms() or _modes() > 0
    return _grad_enabled() or forward_ad._current_level >= 0 or looked_on or _batched(grad)


class Call(NamedTuple):
    """What a loss has beside its tensors: its divisor (for a softmax loss whether it is a mean), and the implementation.

    ``sample_weight`` is one number a row, which multiplies its loss and what it adds to the divisor.
    """

    divided: Any
    implementation: Implementation
    sample_weight: Tensor | None = None


class Lean(Function):
    """A loss of which autograd is told nothing but the logits.

    A subclass has ``differentiable(grad, logits, target, call)``, the gradient for the logits in torch operations.
    """

    run: Any  # ``apply`` without what torch.func needs, once ``settle`` was called

    @staticmethod
    def differentiable(grad: Tensor, logits: Tensor, target: Any, call: Call) -> Tensor:
        """Compute the gradient in torch operations, which can be differentiated and transformed again."""
        raise NotImplementedError

    @classmethod
    def settle(cls, name: str) -> None:
        """Look up once what each call would look up in several places; autograd shows the node under this name."""
        cls._backward_cls.apply = cls.backward  # type: ignore[attr-defined]
        cls._backward_cls.__name__ = name
        cls.run = super(Function, cls).apply  # type: ignore[misc]


def as_logits(losses: Tensor, logits: Tensor) -> Tensor:
    """Give losses the dtype that torch gives them."""
    return losses if losses.dtype == logits.dtype else losses.to(logits.dtype)


class Unreduced(Lean):
    """The losses of rows or elements, each for itself, which were computed before.

    With them comes what their gradient needs, or None. ``given`` is what the caller said of the target, its tensors first. A
    subclass has the number of ``tensors``; ``quick``, the name of what computes the gradient from them just as they are;
    ``gradient(grad, logits, target, kept, call)``, which computes it otherwise; and ``describe(*given)``, which makes the record.
    """

    tensors: int
    quick: str
    gradient: Any
    describe: Any

    @classmethod
    def of(cls, logits: Tensor, formed: tuple[Tensor, Any], given: tuple[Any, ...], call: Call) -> Tensor:
        """Attach losses to their logits."""
        loss: Tensor = cls.run(logits, formed, given, call)
        return loss

    @staticmethod
    def forward(ctx, logits, formed, given, call):
        (losses, kept), kind = formed, ctx._forward_cls
        few = type(kept) is bytes  # and not a tensor, which autograd frees and shows to hooks
        ctx.kept, ctx.call = kept if few else None, call
        ctx.numbers, ctx.quick = given[kind.tensors :], getattr(call.implementation, kind.quick)
        ctx.save_for_backward(logits, *given[: kind.tensors], None if few else kept)
        return as_logits(losses, logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, *tensors, kept = ctx.saved_tensors
        if needs_formula(grad):
            kind = ctx._forward_cls
            gradient = kind.differentiable(grad, logits, kind.describe(*tensors, *ctx.numbers), ctx.call)
        else:
            kept = ctx.kept if kept is None else kept
            gradient = ctx.quick(grad, logits, *tensors, *ctx.numbers, kept)
            if gradient is None:
                kind = ctx._forward_cls
                target = kind.describe(*tensors, *ctx.numbers)
                gradient = like(kind.gradient(grad, logits, target, kept, ctx.call), logits)
        return gradient, None, None, None
