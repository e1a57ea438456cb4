"""Kernels: sums over rows in a fixed order, what a mean divides by, and a gradient times a number.

Each of at most ``_PROGRAMS`` programs adds up a stretch of rows, and one more program adds up what these have. So the order depends
on the number of rows alone.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossent.impl.triton.launch import by_bits
from crossent.impl.triton.numbers import plain_nan, rounded, times, weigh

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
def _stretch_of_weights(
    labels, weight, valid, samples, sums, count, length, classes, ignore_index, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum what this program's stretch of rows weighs, without those that are ignored or whose label is no class.

    That is ``c[y]``, or 1 where ``labels`` is None or there are no class weights, times what ``samples`` says.
    """
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], sums.dtype.element_ty)
    for k in range(0, length, BLOCK):
        at = k + tl.arange(0, BLOCK)
        row = program * length + at
        inside = (at < length) & (row < count)
        counts = inside
        if valid is not None:
            counts = counts & (tl.load(valid + row, mask=inside, other=0) != 0)
        if labels is not None:
            y = tl.load(labels + row, mask=inside, other=0)
            counts = counts & (y != ignore_index) & (y >= 0) & (y < classes)
        adds = tl.where(counts, 1.0, 0.0).to(sums.dtype.element_ty)
        if labels is not None:
            if weight is not None:
                adds = tl.load(weight + tl.where(counts, y, 0), mask=counts, other=0.0)
        if samples is not None:
            adds = weigh(adds, tl.load(samples + row, mask=counts, other=0.0))
        total += adds
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


def total_weight(
    target: Any, weight: Tensor | None, rows: int, classes: int, ignore_index: int, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """Sum what rows weigh, of a target as the kernels are told of it; ``like`` lies where the sum is to lie."""
    labels = target.data if target.INDICES.value else None
    if labels is None and target.valid is None and target.samples is None:
        return torch.full((), rows, dtype=dtype, device=like.device)
    programs, length = _split(rows)
    sums = torch.empty(programs, dtype=dtype, device=like.device)
    _stretch_of_weights[(programs,)](
        labels, weight, target.valid, target.samples, sums, rows, length, classes, ignore_index, BLOCK=_BLOCK,
    )  # fmt: skip
    return sums[0] if programs == 1 else total(sums)


@triton.jit
def _scaled(gradient, factor, count, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply this program's elements by a number that is read here; nothing is to be done if it is 1."""
    by = tl.load(factor)
    if by == 1.0:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(gradient + at, mask=at < count, other=0.0).to(by.dtype)
    scaled = rounded(times(x, plain_nan(by, BITS)), gradient.dtype.element_ty, BITS)
    tl.store(gradient + at, scaled, mask=at < count)


def scale(gradient: Tensor, factor: Tensor) -> None:
    """Multiply a gradient without gaps in its place."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    programs = triton.cdiv(gradient.numel(), _BLOCK)
    _scaled[(programs,)](gradient, factor.to(wide), gradient.numel(), BITS=by_bits(), BLOCK=_BLOCK)
