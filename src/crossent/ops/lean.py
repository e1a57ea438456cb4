"""Autograd Functions that are told of nothing but the logits, and how they see that nothing else is wanted.

A Function over every argument of a loss costs a small call more than its kernel does. Here the logits are the one tensor that
autograd follows. The others do not require grad, and are saved so that autograd refuses what was modified in place.
"""

from __future__ import annotations

from inspect import getattr_static
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from crossent.core import watch
from crossent.impl.protocol import Implementation
from crossent.ops.library import like

QUESTIONS = SimpleNamespace(
    is_grad_enabled=torch.is_grad_enabled,
    tracing_state=torch._C._get_tracing_state,
    modes=torch._C._len_torch_dispatch_stack,
    function_mode=torch._C._is_torch_function_mode_enabled,
    transforms=torch._C._are_functorch_transforms_active,
    autocast=torch._C._is_any_autocast_enabled,
    saved_hooks=torch._C._autograd._top_saved_tensors_default_hooks,
    is_batched=torch._C._functorch.is_legacy_batchedtensor,
    forward_ad=forward_ad,
    watch=watch,
)
"""What is asked, here and in csrc/bind_attach.h, to see whether anything looks on, transforms, or decides dtypes."""


def kept_as_they_are() -> bool:
    """Whether autograd keeps tensors as they are: hooks that move or recompute what is saved would not see a gradient."""
    return QUESTIONS.saved_hooks(False) is None


def needs_formula(grad: Tensor) -> bool:
    """Whether a gradient has to be computed in torch operations: it is differentiated, transformed or batched itself.

    The short way asks the same in C++, ``is_last`` in csrc/bind_attach.h.
    """
    ask = QUESTIONS
    looked_on = ask.tracing_state() is not None or ask.transforms() or ask.modes() > 0
    return ask.is_grad_enabled() or forward_ad._current_level >= 0 or looked_on or ask.is_batched(grad)


class Call(NamedTuple):
    """What a loss has beside its tensors: its divisor (for a softmax loss whether it is a mean), and the implementation.

    ``sample_weight`` is one number a row, which multiplies its loss and what it adds to the divisor.
    """

    divided: Any
    implementation: Implementation
    sample_weight: Tensor | None = None


class Lean(Function):
    """A loss of which autograd is told nothing but the logits.

    What the caller said of the target comes as tensors, which autograd saves, and as ``ctx.numbers``. A subclass has
    ``describe(*tensors, *numbers)``, which makes the record of it, and ``differentiable(grad, logits, target, call)``, the
    gradient for the logits in torch operations. ``ctx.call`` is the :class:`Call`.
    """

    run: Any  # ``apply`` without what torch.func needs, once ``settle`` was called
    describe: Any

    @staticmethod
    def differentiable(grad: Tensor, logits: Tensor, target: Any, call: Call) -> Tensor:
        """Compute the gradient in torch operations, which can be differentiated and transformed again."""
        raise NotImplementedError

    @classmethod
    def settle(cls, name: str, backward: Any = None, **attributes: Any) -> None:
        """Look up once what each call would look up in several places.

        Autograd shows the node under this name. ``attributes`` are those that the node has in every call, and ``backward`` what
        it runs in the place of the Function's own. Torch asks the class for these by new strings in each call, which no cache
        knows, so the class has them itself, and its bases are not searched.
        """
        for each in ("forward", "setup_context", "clear_saved_tensors_on_access", "boxed_grads_call"):
            if hasattr(cls, each):  # torch 2.13 asks for all of them
                setattr(cls, each, getattr_static(cls, each))
        cls._backward_cls.apply = backward or cls.backward  # type: ignore[attr-defined]
        cls._backward_cls.__name__ = name
        for each, value in attributes.items():
            setattr(cls._backward_cls, each, value)
        cls.run = super(Function, cls).apply  # type: ignore[misc]


def restored(ctx: Any) -> tuple[Tensor, Any, Tensor | None]:
    """Return the logits, the record of the target, and what else was saved with them."""
    logits, *tensors, other = ctx.saved_tensors
    return logits, ctx._forward_cls.describe(*tensors, *ctx.numbers), other


class Unreduced(Lean):
    """The losses of rows or elements, each for itself, which ``ops/small.py`` attaches to their logits.

    With them comes what their gradient needs: bytes in ``ctx.kept``, or a tensor that autograd saves. A subclass has
    ``gradient(grad, logits, target, kept, call)``.
    """

    gradient: Any

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, kept = restored(ctx)
        kind = ctx._forward_cls
        if needs_formula(grad):
            return kind.differentiable(grad, logits, target, ctx.call), None
        gradient = kind.gradient(grad, logits, target, ctx.kept if kept is None else kept, ctx.call)
        return like(gradient, logits), None
