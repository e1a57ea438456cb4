"""How the losses of rows become a result: weights of rows, sums in a fixed order, and what a mean divides by."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossent.core.checks import check_devices, check_tensor, number_or_tensor, under_autocast
from crossent.core.messages import shape, type_error
from crossent.core.modes import transformed

_BLOCK = 4096
_How = Literal["none", "sum", "mean"]
_HOW: tuple[_How, ...] = ("mean", "sum", "none")


class Reduction(NamedTuple):
    """What becomes of the losses of rows.

    ``how`` is ``"none"``, ``"sum"`` or ``"mean"``; ``sample_weight`` multiplies them; ``denominator`` replaces what a mean
    divides by; ``empty`` is what a mean over nothing is; ``across`` completes sums where other processes have other rows.
    """

    how: str
    sample_weight: Tensor | None = None
    denominator: float | Tensor | None = None
    empty: str = "nan"
    across: Callable[..., tuple[Tensor, ...]] | None = None

    @property
    def over_own_rows(self) -> bool:
        """Whether this is a mean over what the rows of this process weigh."""
        return self.how == "mean" and self.denominator is None and self.across is None

    @property
    def as_torch(self) -> bool:
        """Whether this is torch's mean: no sample weights, no denominator given, and no rows on other processes."""
        return self.over_own_rows and self.sample_weight is None

    def whole(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Complete sums over the rows of this process to sums over all rows."""
        return sums if self.across is None else self.across(*sums)

    def finish(self, total: Tensor, divisor: float | Tensor | None) -> Tensor:
        """Turn the sum over this process's rows, and the sum of what they weigh, into the sum or mean over all rows."""
        if self.how == "mean" and self.denominator is None:
            assert divisor is not None
            if isinstance(divisor, Tensor):
                total, divisor = self.whole(total, divisor)
            return divide(total, divisor, self.empty)
        if self.how == "mean":
            assert self.denominator is not None
            total = divide(total, self.denominator, self.empty)
        return self.whole(total)[0]

    @classmethod
    def of(
        cls,
        reduction: str,
        sample_weight: Tensor | None = None,
        denominator: Any = None,
        empty: str = "nan",
        *,
        size_average: bool | None = None,
        reduce: bool | None = None,
    ) -> Reduction:
        """Check the arguments of a reduction; the deprecated ones override ``reduction``."""
        how = read_reduction(reduction, size_average, reduce)
        if not isinstance(empty, str) or empty not in ("nan", "zero"):
            raise ValueError(f"empty must be 'nan' or 'zero', got {empty!r}")
        if denominator is not None:
            if how != "mean":
                raise ValueError(
                    f"denominator replaces what reduction='mean' divides by, got it with reduction={how!r}: drop one"
                )
            denominator = number_or_tensor("denominator", denominator)
        return cls(how, sample_weight, denominator, empty)

    @classmethod
    def among(cls, reduction: str, options: Any) -> Reduction:
        """Check those arguments of a reduction that are among some options."""
        given = {name: options[name] for name in ("sample_weight", "denominator", "empty") if name in options}
        return cls.of(reduction, **given)


def check_deprecated(size_average: object, reduce: object) -> None:
    """Refuse arrays in the place of the two deprecated arguments, which take all else that is true or false, as in torch."""
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if isinstance(value, (Tensor, np.ndarray)) and value.shape != ():
            type_error(name, "True, False or None", value)


def read_reduction(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> _How:
    """Read ``reduction``, or the two deprecated arguments that override it."""
    if size_average is not None or reduce is not None:
        check_deprecated(size_average, reduce)
        averaged = size_average is None or size_average
        reduction = ("mean" if averaged else "sum") if reduce is None or reduce else "none"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead.",
            stacklevel=4,
        )
    if not isinstance(reduction, str):
        raise ValueError(f"reduction must be 'none', 'sum' or 'mean', got {reduction!r:.60}")
    for how in _HOW:
        if reduction == how:
            return how
    if reduction == "elementwise_mean":
        warnings.warn("reduction='elementwise_mean' is deprecated, please use reduction='mean' instead.", stacklevel=4)
        return "mean"
    hint = "; to divide by the batch size, pass 'mean' with denominator=len(input)" if reduction == "batchmean" else ""
    raise ValueError(f"reduction must be 'none', 'sum' or 'mean', got {reduction!r}{hint}")


def times(weight: Tensor, value: Tensor) -> Tensor:
    """Multiply, with ``0 · x = 0`` also where x is infinite or nan: what has no weight is not there.

    Only there is the product replaced, so that elsewhere a weight of 0 has a derivative.
    """
    return (weight * value).masked_fill((weight == 0) & ~value.isfinite(), 0.0)


def weigh(weight: Tensor, by: Tensor) -> Tensor:
    """Multiply two weights: where either of them is 0, so is the product, whatever the other one is.

    Only what would be nan is replaced, so that elsewhere a weight of 0 has a derivative.
    """
    product = weight * by
    return product.masked_fill(product.isnan() & ((weight == 0) | (by == 0)), 0.0)


def over(value: Tensor, divisor: float | Tensor) -> Tensor:
    """Divide the gradient or the tangent of a mean by what it divides by; those of a mean over nothing are 0."""
    if isinstance(divisor, Tensor):
        return value / divisor.masked_fill(divisor == 0, torch.inf)
    return value / (divisor or torch.inf)


def ordered_sum(x: Tensor) -> Tensor:
    """Sum all elements in an order that does not depend on the number of threads.

    Torch splits a reduction to one number over the threads; one to many numbers it never splits.
    """
    while x.numel() > _BLOCK:
        x = x.reshape(-1)
        whole = x.numel() // _BLOCK * _BLOCK
        x = torch.cat([x[:whole].view(-1, _BLOCK).sum(1), x[whole:].sum(0, keepdim=True)])
    return x.sum()


def sums_of_rows(x: Tensor, dims: int) -> Tensor:
    """Sum over all but the first dimensions, in an order that does not depend on the number of threads."""
    if x.dim() == dims:
        return x
    rows = x.flatten(dims)
    return ordered_sum(rows).reshape(rows.shape[:dims]) if rows.shape[:dims].numel() == 1 else rows.sum(-1)


def reduce_rows(loss: Tensor, row_weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Weigh a loss a row, and sum or average; ``row_weight`` is what each row adds to the divisor."""
    if reduction.sample_weight is not None:
        u = weights_of_rows(reduction.sample_weight, loss, whole=True)
        loss, row_weight = times(u, loss), None if row_weight is None else weigh(row_weight, u)
    if reduction.how == "none":
        return loss
    loss = ordered_sum(loss)
    by_weights = reduction.how == "mean" and reduction.denominator is None
    return reduction.finish(loss, ordered_sum(row_weight) if by_weights and row_weight is not None else None)


def divide(total: Tensor, divisor: float | Tensor, empty: str) -> Tensor:
    """Divide a sum for the mean; over nothing it is nan, or a zero that keeps its graph, and the gradient is 0."""
    nothing = 0.0 if empty == "zero" else torch.nan
    if torch.compiler.is_compiling() and transformed():  # a tangent over a number of Python would be float64 there
        divisor = torch.as_tensor(divisor, dtype=total.dtype, device=total.device)
    if isinstance(divisor, Tensor):
        divisor = divisor.to(total.dtype)
        return over(total, divisor).masked_fill(divisor == 0, nothing)
    return total / divisor if divisor else total.masked_fill(torch.ones_like(total, dtype=torch.bool), nothing)


def weights_of_rows(sample_weight: Tensor, rows: Tensor, *, whole: bool) -> Tensor:
    """Check sample weights against the rows' shape, all of it or its leading part, and make them broadcast to it."""
    sample_weight = check_tensor("sample_weight", sample_weight, "a torch.Tensor of the rows' shape")
    check_devices(rows, sample_weight=sample_weight)
    k = sample_weight.dim()
    if sample_weight.shape != rows.shape[:k] or (whole and k != rows.dim()):
        rule = "must have the shape of the rows" if whole else "must have the shape of the leading dimensions of"
        raise ValueError(f"sample_weight {rule} {shape(rows)}, got {shape(sample_weight)}: give one number a row")
    return sample_weight.to(rows.dtype).reshape(sample_weight.shape + (1,) * (rows.dim() - k))


def result_dtype(like: Tensor, promoted: tuple[Tensor | None, ...], out_dtype: torch.dtype | None) -> torch.dtype:
    """Decide the loss's dtype: what is asked, float32 for half precision under autocast, or torch's promotion."""
    if out_dtype is not None:
        if not isinstance(out_dtype, torch.dtype) or not out_dtype.is_floating_point:
            type_error("out_dtype", "a floating torch.dtype", out_dtype)
        return out_dtype
    dtype = like.dtype
    for tensor in promoted:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    if dtype.itemsize < 4 and under_autocast(like.device):
        return torch.float32
    return dtype


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """Return the widest dtype of a device: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Promote the dtypes of these tensors, to float32 at least."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
