"""Kernels: sums over rows in a fixed order, what a mean divides by, and a gradient times a number.

Each of at most ``_PROGRAMS`` programs adds up a stretch of rows, and one more program adds up what these have. So the order depends
on the number of rows alone.
"""

from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossent.impl.triton.numbers import times

_BLOCK, _PROGRAMS = 1024, 256


@triton.jit
def _stretch(values, sums, count, length, BLOCK: tl.constexpr):
    """Sum this program's stretch."""
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], sums.dtype.element_ty)
    for k in range(0, length, BLOCK):
        at = k + tl.arange(0, BLOCK)
        row = program * length + at
        total += tl.load(values + row, mask=(at < length) & (row < count), other=0.0)
    tl.store(sums + program, tl.sum(total, 0))


@triton.jit
def _stretch_of_weights(labels, weight, sums, count, length, classes, ignore_index, BLOCK: tl.constexpr):
    """Sum c[y] over this program's stretch of class indices, without those that are ignored or no class."""
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], sums.dtype.element_ty)
    for k in range(0, length, BLOCK):
        at = k + tl.arange(0, BLOCK)
        row = program * length + at
        inside = (at < length) & (row < count)
        y = tl.load(labels + row, mask=inside, other=0)
        counts = inside & (y != ignore_index) & (y >= 0) & (y < classes)
        if weight is None:
            total += tl.where(counts, 1.0, 0.0).to(sums.dtype.element_ty)
        else:
            total += tl.load(weight + tl.where(counts, y, 0), mask=counts, other=0.0)
    tl.store(sums + program, tl.sum(total, 0))


def _split(count: int) -> tuple[int, int]:
    """Say how many programs add up how many rows each."""
    programs = max(1, min(_PROGRAMS, ceil(count / (4 * _BLOCK))))
    length = ceil(ceil(count / programs) / _BLOCK) * _BLOCK
    return max(1, ceil(count / length)) if length else 1, max(length, 1)


def total(values: Tensor) -> Tensor:
    """Sum all numbers of a contiguous tensor."""
    programs, length = _split(values.numel())
    sums = torch.empty(programs, dtype=values.dtype, device=values.device)
    _stretch[(programs,)](values, sums, values.numel(), length, BLOCK=_BLOCK)
    return sums[0] if programs == 1 else total(sums)


def total_weight(labels: Tensor, weight: Tensor | None, classes: int, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Sum what the rows of class indices weigh."""
    programs, length = _split(labels.numel())
    sums = torch.empty(programs, dtype=dtype, device=labels.device)
    _stretch_of_weights[(programs,)](labels, weight, sums, labels.numel(), length, classes, ignore_index, BLOCK=_BLOCK)
    return sums[0] if programs == 1 else total(sums)


@triton.jit
def _scaled(gradient, factor, count, BLOCK: tl.constexpr):
    """Multiply this program's elements by a number that is read here; nothing is to be done if it is 1."""
    by = tl.load(factor)
    if by == 1.0:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(gradient + at, mask=at < count, other=0.0).to(by.dtype)
    tl.store(gradient + at, times(x, by).to(gradient.dtype.element_ty), mask=at < count)


def scale(gradient: Tensor, factor: Tensor) -> None:
    """Multiply a gradient without gaps in its place."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    _scaled[(triton.cdiv(gradient.numel(), _BLOCK),)](gradient, factor.to(wide), gradient.numel(), BLOCK=_BLOCK)
