"""The compiled CPU kernels of ``csrc/``, launched on torch tensors.

Forward reads the logits once and stores O(rows); backward reads them once and writes the gradient once, on memory that is
recycled from the step before (``CROSSENT_RECYCLE=0`` in the environment takes fresh memory each time). Taken without a copy
are logits whose dimensions behind the class dimension lie as one, whatever the strides: contiguous, channels_last, transposed,
sliced. Others are copied first. What the kernels do not take at all, ``refuses`` says.
"""

from __future__ import annotations

import ctypes
import os
from math import prod
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
_native.know_types(torch.Tensor, torch.nn.Parameter)
if os.environ.get("CROSSENT_ISA"):
    _native.use_isa(os.environ["CROSSENT_ISA"])


def refuses(logits: Tensor, target: Tensor | None = None, special: tuple[str, ...] = ()) -> str | None:
    """Say why the kernels cannot take these logits, this target and these special settings, or None if they can."""
    if logits.device.type != "cpu":
        return f"the native kernels run on the CPU, and the logits are on {logits.device}"
    if target is not None and target.is_floating_point() and target.dtype != logits.dtype:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if target.dtype != wide:
            return f"the native kernels take probabilities in {logits.dtype} or {wide} for such logits, not in {target.dtype}"
    for name in special:
        return f"the native kernels do not take {name} yet, which goes to torch operations"
    return None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _weight(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.to(dtype).contiguous()


# --- memory -----------------------------------------------------------------------------------------------------------

_LARGE = 1 << 20  # bytes from which on memory is recycled
_DLPACK_CODE = {torch.bfloat16: 4}
_RECYCLES = _native.RECYCLES and os.environ.get("CROSSENT_RECYCLE", "1") != "0"


def _new(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor, a large one in recycled memory, whose pages are there already."""
    if _RECYCLES and prod(shape) * dtype.itemsize >= _LARGE:
        strides = torch.empty(shape, device="meta").stride() if strides is None else strides
        capsule = _native.recycled(shape, strides, _DLPACK_CODE.get(dtype, 2), 8 * dtype.itemsize)
        if capsule is not None:
            return torch.from_dlpack(capsule)
    return torch.empty(shape, dtype=dtype) if strides is None else torch.empty_strided(shape, strides, dtype=dtype)


def _new_like(x: Tensor) -> Tensor:
    if x.nbytes < _LARGE:
        return torch.empty_like(x)
    return _new(x.shape, torch.empty_like(x, device="meta").stride(), x.dtype)


def _gradient(x: Tensor, inplace: bool) -> Tensor:
    """Return where the gradient of x is to be written: new memory, or that of x, and autograd is told."""
    if not inplace or torch._debug_has_internal_overlap(x) != 0:
        return _new_like(x)
    torch.autograd.graph.increment_version(x)
    return x.detach()


# --- softmax ----------------------------------------------------------------------------------------------------------

_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> tuple[Tensor, Tensor | float, Tensor]:
    """Compute the loss and weight of each row, or the sum of both, or the mean and its divisor; see the eager implementation."""
    dtype = _wide(logits)
    rows = logits.shape[:1] + logits.shape[2:]
    none = reduction == "none"
    loss = torch.empty(rows if none else (), dtype=dtype)
    row_weight = torch.empty(rows, dtype=dtype) if none else None
    lse = _new((2, *rows), None, dtype)
    if logits.numel() == 0:
        nothing = torch.nan if reduction == "mean" else 0.0
        return loss.fill_(nothing), 0.0 if row_weight is None else row_weight.zero_(), lse.zero_()
    values = target.values.contiguous() if target.indices else target.values
    weight = _weight(target.weight, dtype)
    for copied in (False, True):
        if copied:
            logits, values = logits.contiguous(), values.contiguous()
        total = _native.softmax_forward(
            logits, values, weight, target.ignore_index, target.label_smoothing, _REDUCTIONS[reduction], loss, row_weight, lse
        )  # fmt: skip
        if total is not None:
            break
    assert total is not None
    return loss, total if row_weight is None else row_weight, lse


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: Tensor,
    needs: tuple[bool, bool, bool] = (True, False, False),
    divisor: float | Tensor = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None, None]:
    """Compute the gradients for logits and target; see the eager implementation."""
    dtype = _wide(logits)
    if grad.dim() > 0:
        grad = grad.to(dtype).contiguous()
    values = target.values.contiguous() if target.indices else target.values
    settings = _weight(target.weight, dtype), lse, target.ignore_index, target.label_smoothing
    if logits.numel() == 0:
        return _new_like(logits) if needs[0] else None, _new_like(target.values) if needs[1] else None, None
    grad_logits = _gradient(logits, inplace) if needs[0] else None
    grad_target = _new_like(target.values) if needs[1] else None
    if not _native.softmax_backward(grad, float(divisor), logits, values, *settings, grad_logits, grad_target):
        grad_logits = None if grad_logits is None else torch.empty(logits.shape, dtype=logits.dtype)
        grad_target = None if grad_target is None else torch.empty(values.shape, dtype=values.dtype)
        _native.softmax_backward(
            grad, float(divisor), logits.contiguous(), values.contiguous(), *settings, grad_logits, grad_target
        )  # fmt: skip
    return grad_logits, grad_target, None


# Whether a call is one that the two functions below take as it is, unchecked: ORDINARY, or SMALL. Anything else is 0.
kind_of, ORDINARY, SMALL = _native.kind_of, _native.ORDINARY, _native.SMALL


_NUMBER = {dtype: torch.empty((), dtype=dtype) for dtype in (torch.float32, torch.float64)}  # to be like costs half


def small_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    mean: bool,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute a SMALL sum or mean and, if it is wanted, the gradient at once."""
    loss, gradient = torch.empty_like(_NUMBER[logits.dtype]), torch.empty_like(logits) if grad else None
    _native.softmax_small(logits, target, weight, ignore_index, label_smoothing, mean, loss, gradient)
    return loss, gradient


scale = _native.scale


# --- sigmoid ----------------------------------------------------------------------------------------------------------


def _binary_weights(logits: Tensor, *weights: Tensor | None) -> list[Tensor | None]:
    return [None if w is None else w.to(_wide(logits)).expand_as(logits) for w in weights]


def binary_cross_entropy_forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduce: bool, divisor: float = 1.0
) -> Tensor:
    """Compute the loss of each element, or the sum over the divisor; see the eager implementation."""
    dtype = _wide(logits)
    loss = torch.empty((), dtype=dtype) if reduce else _new(logits.shape, None, dtype)
    if logits.numel() == 0:
        return loss.fill_(0.0 if divisor else torch.nan)
    weight, pos_weight = _binary_weights(logits, weight, pos_weight)
    logits, target = logits.contiguous(), target.contiguous()
    if not _native.binary_forward(logits, target, weight, pos_weight, reduce, divisor, loss):
        weight, pos_weight = (None if w is None else w.contiguous() for w in (weight, pos_weight))
        _native.binary_forward(logits, target, weight, pos_weight, reduce, divisor, loss)
    return loss


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    needs: tuple[bool, bool] = (True, False),
    divisor: float = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients for logits and target; see the eager implementation."""
    weight, pos_weight = _binary_weights(logits, weight, pos_weight)
    inplace = inplace and logits.is_contiguous()
    logits, target = logits.contiguous(), target.contiguous()
    if grad.dim() > 0:
        grad = grad.to(_wide(logits)).contiguous()
    if logits.numel() == 0:
        return _new_like(logits) if needs[0] else None, _new_like(target) if needs[1] else None
    grad_target = _new_like(target) if needs[1] else None
    grad_logits = _gradient(logits, inplace) if needs[0] else None
    if not _native.binary_backward(grad, divisor, logits, target, weight, pos_weight, grad_logits, grad_target):
        weight, pos_weight = (None if w is None else w.contiguous() for w in (weight, pos_weight))
        _native.binary_backward(grad, divisor, logits, target, weight, pos_weight, grad_logits, grad_target)
    return grad_logits, grad_target
