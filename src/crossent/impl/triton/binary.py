"""Kernel: sigmoid cross entropy, element by element: losses or their sum, and the gradients for logits and target.

It is softmax over ``[x, 0]``: yes costs ``log(1 + e^-x)`` and no costs ``log(1 + e^x)``, and the gradient is ``σ(x) - t``. Each
tensor is read and written once. Logits, target and gradients lie alike, in one run of memory; weights repeat after a period.
What is not wanted is None and is not compiled. With ``FORMED`` the gradient for a factor of 1 lies there already, and the
kernel ends at once if the factor is 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossent.core.target import BinaryTarget
from crossent.impl.triton import sums
from crossent.impl.triton.launch import CONSTANTS, by_bits, constant, device_of, warp_size
from crossent.impl.triton.numbers import exp_, inverse, log1p_unit, plain_nan, rounded, times, weigh

_WARPS = 4


class Weights(NamedTuple):
    """Numbers that belong to elements, and after how many elements they repeat."""

    of: Any
    period: Any


class Wanted(NamedTuple):
    """Where results go; None for what is not wanted. ``total`` gets one number a program."""

    loss: Any = None
    total: Any = None
    to: Any = None
    to_target: Any = None


@triton.jit
def load_numbers(source, first, offset, inside, R: tl.constexpr, EDGE: tl.constexpr):
    """Load numbers of elements, with 0 for those behind the end."""
    if EDGE:
        return tl.load(source + first + offset, mask=inside, other=0.0).to(R)
    return tl.load(source + first + offset).to(R)


@triton.jit
def load_weights(weights, first, offset, inside, R: tl.constexpr):
    """Load the weights of elements."""
    return tl.load(weights.of + (first + offset) % weights.period, mask=inside, other=0.0).to(R)


@triton.jit
def store_numbers(to, first, offset, value, inside, EDGE: tl.constexpr, BITS: tl.constexpr):
    """Store numbers of elements."""
    value = rounded(value, to.dtype.element_ty, BITS)
    if EDGE:
        tl.store(to + first + offset, value, mask=inside)
    else:
        tl.store(to + first + offset, value)


@triton.jit
def elements(
    first, left, logits, target, weight, pos_weight, factor, divisor, wanted,
    EDGE: tl.constexpr, PER_ELEMENT: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute a program's elements: BLOCK of them, or those that are left at the edge."""
    offset = tl.arange(0, BLOCK)
    inside = offset < left
    x, t = load_numbers(logits, first, offset, inside, R, EDGE), load_numbers(target, first, offset, inside, R, EDGE)
    wants = t  # what yes weighs; no weighs 1 - t
    if pos_weight is not None:
        pi = load_weights(pos_weight, first, offset, inside, R)
        wants = weigh(pi, t)
    e = exp_(-tl.abs(x), EXACT)  # the smaller of the two odds, of which all else is made
    rest = log1p_unit(e)
    yes, no = rest + tl.where(x < 0.0, -x, 0.0), rest + tl.where(x > 0.0, x, 0.0)
    if wanted.loss is not None or wanted.total is not None:
        each = times(wants, yes) + times(1.0 - t, no)
        if weight is not None:
            each = times(load_weights(weight, first, offset, inside, R), each)
        if wanted.loss is not None:
            store_numbers(wanted.loss, first, offset, each, inside, EDGE, BITS)
        else:
            tl.store(wanted.total + tl.program_id(0), tl.sum(tl.where(inside, each, 0.0), 0))
    if wanted.to is not None or wanted.to_target is not None:
        g = tl.full((), 1.0, R)
        if PER_ELEMENT:
            g = load_numbers(factor, first, offset, inside, R, EDGE)
        else:
            if factor is not None:
                g = plain_nan(tl.load(factor).to(R), BITS)
            g = g / tl.full((), divisor, R) + tl.zeros_like(x)
        if weight is not None:
            g = times(load_weights(weight, first, offset, inside, R), g)
        if wanted.to is not None:
            larger = inverse(1.0 + e)
            smaller = e * larger
            p, q = tl.where(x < 0.0, smaller, larger), tl.where(x < 0.0, larger, smaller)
            slope = g * ((1.0 - t) * p - wants * q)
            slope = tl.where((g == 0.0) & (x != x), 0.0, slope)
            if pos_weight is not None:  # then both may weigh nothing, and there is no slope, whatever x and g are
                slope = tl.where((wants == 0.0) & (t == 1.0), 0.0, slope)
            store_numbers(wanted.to, first, offset, slope, inside, EDGE, BITS)
        if wanted.to_target is not None:
            on_yes = g if pos_weight is None else weigh(g, pi)
            gain = times(on_yes, yes) - times(g, no)
            store_numbers(wanted.to_target, first, offset, gain, inside, EDGE, BITS)


@triton.jit
def binary(
    logits, target, weight, pos_weight, factor, divisor, wanted, count,
    FORMED: tl.constexpr, PER_ELEMENT: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, R: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the losses of this program's elements or their sum, and ``factor / divisor`` times their gradients."""
    if FORMED:
        if tl.load(factor).to(R) == 1.0:
            return
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if first + BLOCK <= count:
        elements(
            first, BLOCK, logits, target, weight, pos_weight, factor, divisor, wanted,
            False, PER_ELEMENT, BITS, EXACT, R, BLOCK,
        )  # fmt: skip
    else:
        elements(
            first, (count - first).to(tl.int32), logits, target, weight, pos_weight, factor, divisor, wanted,
            True, PER_ELEMENT, BITS, EXACT, R, BLOCK,
        )  # fmt: skip


class Elements(NamedTuple):
    """The tensors of a sigmoid loss, laid out alike in one run of memory."""

    logits: Tensor
    target: Tensor
    weight: Weights | None
    pos_weight: Weights | None

    @classmethod
    def of(cls, logits: Tensor, target: BinaryTarget, dtype: torch.dtype) -> Elements:
        """Lay tensors out as the logits are, without a copy where they lie so; logits with gaps are copied."""
        like = torch.empty_like(logits, device="meta")
        x = laid_out(logits, like)
        weights = (_weights(w, like, dtype, logits.device) for w in (target.weight, target.pos_weight))
        return cls(x, laid_out(target.values, like), *weights)


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Lay a tensor out like another one, and return it itself where it lies so."""
    alike = all(a == b or size == 1 for a, b, size in zip(x.stride(), like.stride(), x.shape, strict=True))
    if alike and not x.is_neg():  # memory alone does not show a sign that torch has put off changing
        return x
    return empty(like, x.dtype, x.device).copy_(x)


def empty(like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty tensor that is laid out like another one."""
    return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=device)


def _weights(w: Tensor | None, like: Tensor, dtype: torch.dtype, device: torch.device) -> Weights | None:
    """Describe weights by a period where they belong to the last dimensions, and else write them out."""
    if w is None:
        return None
    w = w.to(dtype).resolve_neg()
    while w.dim() and w.shape[0] == 1:
        w = w[0]
    if like.is_contiguous() and w.shape == like.shape[like.dim() - w.dim() :]:
        return Weights(w.contiguous(), max(1, w.numel()))
    return Weights(laid_out(w.expand(like.shape), like), max(1, like.numel()))


def block_of(logits: Tensor) -> int:
    """Say how many elements a program takes: as many as its threads load in 16 bytes each, or 1024."""
    return max(1024, _WARPS * warp_size() * 16 // logits.element_size())


def programs(logits: Tensor) -> int:
    """Tell how many programs there are."""
    return -(-logits.numel() // block_of(logits))


def launch(
    given: Elements, wanted: Wanted, dtype: torch.dtype, factor: Tensor | None = None, divisor: float = 1.0,
    formed: bool = False,
) -> None:  # fmt: skip
    """Launch the kernel; ``factor`` is one number or one an element, and a ``divisor`` of 0 that of a mean over nothing."""
    count, divisor = given.logits.numel(), divisor or float("inf")
    per_element = factor is not None and factor.dim() > 0
    exact = given.logits.dtype.itemsize >= 4
    plain = not per_element and given.weight is None and given.pos_weight is None
    bits = by_bits() and plain and given.target.dtype == torch.bfloat16  # a nan of float32 may have any bits
    with device_of(given.logits):
        binary[(programs(given.logits),)](
            *given, factor, constant(divisor) if dtype == torch.float64 else divisor, wanted, count,
            FORMED=formed, PER_ELEMENT=per_element, BITS=bits, EXACT=exact, R=CONSTANTS[dtype], BLOCK=block_of(given.logits),
            num_warps=_WARPS,
        )  # fmt: skip


def total_of(parts: Tensor, divisor: float) -> Tensor:
    """Add up what the programs have, and divide; over nothing it is nan."""
    with device_of(parts):
        total = sums.total(parts)
    return total / divisor if divisor else torch.full_like(total, torch.nan)
