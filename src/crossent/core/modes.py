"""What looks on while a loss is computed: compilers, tracers, modes and transforms of torch, which may see no values yet."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

_PLAIN = frozenset((Tensor, Parameter, type(None)))


def transformed() -> bool:
    """Whether ``torch.func`` transforms or vmap are under way, which only torch operations pass through."""
    return torch._C._are_functorch_transforms_active()


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are torch's own tensors, with nobody looking on: then the dispatcher need not be asked."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(t is None or type(t) is Tensor or type(t) is Parameter for t in tensors)
    )


def in_forward_mode() -> bool:
    """Whether a level of forward mode is open, so that any tensor may carry a tangent."""
    return forward_ad._current_level >= 0


def readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor may decide what is done: they are there, and nobody would have to wait for them."""
    return plain(tensor) and tensor.is_cpu


def is_dtensor(*values: Any) -> bool:
    """Whether one of these is a DTensor. Where their module was never imported there is none, and it stays so."""
    if torch.compiler.is_compiling():  # the compiler does not watch which modules are imported
        return any(type(value).__name__ == "DTensor" for value in values)
    if _PLAIN.issuperset(map(type, values)):
        return False
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and any(isinstance(value, kind) for value in values)
