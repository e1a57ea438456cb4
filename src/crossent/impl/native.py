"""The compiled CPU kernels of ``csrc/``, launched on torch tensors.

Forward reads the logits once and stores O(rows); backward reads them once and writes the gradient once. Taken without a copy
are logits whose dimensions behind the class dimension lie as one, whatever the strides: contiguous, channels_last, transposed,
sliced. Others are copied first. What the kernels do not take at all, ``refuses`` says.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from torch import Tensor

from crossent import _native
from crossent.targets import Target

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _borrow_threads() -> None:
    """Hand torch's parallel_for to the kernels, so that there is one thread pool; without it they run on one thread."""
    library = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (library / name).exists():
            function = getattr(ctypes.CDLL(str(library / name)), "torch_parallel_for", None)
            if function is not None:
                _native.use_threads_of(ctypes.cast(function, ctypes.c_void_p).value or 0)


_borrow_threads()
if os.environ.get("CROSSENT_ISA"):
    _native.use_isa(os.environ["CROSSENT_ISA"])


def refuses(logits: Tensor, target: Tensor | None = None) -> str | None:
    """Say why the kernels cannot take these logits and this target, or None if they can."""
    if logits.device.type != "cpu":
        return f"the native kernels run on the CPU, and the logits are on {logits.device}"
    if target is not None and target.is_floating_point() and target.dtype != logits.dtype:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if target.dtype != wide:
            return f"the native kernels take probabilities in {logits.dtype} or {wide} for such logits, not in {target.dtype}"
    return None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _weight(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.to(dtype).contiguous()


def cross_entropy_forward(logits: Tensor, target: Target, reduce: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss and weight of each row, or their sums, and each row's ``(top, log_sum)``; see the eager implementation."""
    dtype = _wide(logits)
    rows = logits.shape[:1] + logits.shape[2:]
    out = () if reduce else rows
    loss, row_weight = torch.empty(out, dtype=dtype), torch.empty(out, dtype=dtype)
    kept = (rows[0], 1, *rows[1:])
    top, log_sum = torch.empty(kept, dtype=dtype), torch.empty(kept, dtype=dtype)
    if logits.numel() == 0:
        return loss.zero_(), row_weight.zero_(), top.zero_(), log_sum.zero_()
    values = target.values.contiguous() if target.indices else target.values
    settings = _weight(target.weight, dtype), target.ignore_index, target.label_smoothing
    results = loss, row_weight, top, log_sum
    outcome = _native.softmax_forward(logits, values, *settings, reduce, *results)
    if outcome == _native.NEEDS_COPY:
        logits, values = logits.contiguous(), values.contiguous()
        outcome = _native.softmax_forward(logits, values, *settings, reduce, *results)
    if outcome == _native.OUT_OF_RANGE:
        raise RuntimeError("a class index is out of range")
    return results


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: tuple[Tensor, Tensor],
    needs: tuple[bool, bool, bool] = (True, False, False),
) -> tuple[Tensor | None, Tensor | None, None]:
    """Compute the gradients for logits and target; see the eager implementation."""
    dtype = _wide(logits)
    grad = grad.to(dtype).contiguous()
    values = target.values.contiguous() if target.indices else target.values
    settings = _weight(target.weight, dtype), *lse, target.ignore_index, target.label_smoothing
    grad_logits = torch.empty_like(logits) if needs[0] else None
    grad_target = torch.empty_like(target.values) if needs[1] else None
    if logits.numel() == 0:
        return grad_logits, grad_target, None
    outcome = _native.softmax_backward(grad, logits, values, *settings, grad_logits, grad_target)
    if outcome == _native.NEEDS_COPY:
        grad_logits = None if grad_logits is None else grad_logits.contiguous()
        grad_target = None if grad_target is None else grad_target.contiguous()
        _native.softmax_backward(grad, logits.contiguous(), values.contiguous(), *settings, grad_logits, grad_target)
    return grad_logits, grad_target, None


def _binary_weights(logits: Tensor, *weights: Tensor | None) -> list[Tensor | None]:
    return [None if w is None else w.to(_wide(logits)).expand_as(logits) for w in weights]


def binary_cross_entropy_forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduce: bool
) -> Tensor:
    """Compute the loss of each element, or its sum; see the eager implementation."""
    loss = torch.empty(() if reduce else logits.shape, dtype=_wide(logits))
    if logits.numel() == 0:
        return loss.zero_()
    weight, pos_weight = _binary_weights(logits, weight, pos_weight)
    logits, target = logits.contiguous(), target.contiguous()
    if _native.binary_forward(logits, target, weight, pos_weight, reduce, loss) == _native.NEEDS_COPY:
        weight, pos_weight = (None if w is None else w.contiguous() for w in (weight, pos_weight))
        _native.binary_forward(logits, target, weight, pos_weight, reduce, loss)
    return loss


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    needs: tuple[bool, bool] = (True, False),
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients for logits and target; see the eager implementation."""
    weight, pos_weight = _binary_weights(logits, weight, pos_weight)
    logits, target, grad = logits.contiguous(), target.contiguous(), grad.to(_wide(logits)).contiguous()
    grad_logits = torch.empty_like(logits) if needs[0] else None
    grad_target = torch.empty_like(target) if needs[1] else None
    if logits.numel() == 0:
        return grad_logits, grad_target
    outcome = _native.binary_backward(grad, logits, target, weight, pos_weight, grad_logits, grad_target)
    if outcome == _native.NEEDS_COPY:
        weight, pos_weight = (None if w is None else w.contiguous() for w in (weight, pos_weight))
        _native.binary_backward(grad, logits, target, weight, pos_weight, grad_logits, grad_target)
    return grad_logits, grad_target
