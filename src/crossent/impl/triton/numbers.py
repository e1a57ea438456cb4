"""Exponentials and logarithms that keep their digits, inside kernels.

They take and give float32 or float64. ``EXACT`` is off for logits in half precision, whose results have three digits: the product
``d · log2 e`` is then rounded once, which makes e^d wrong by up to |d| units in the last place. With ``EXACT`` what that rounding
loses is put back.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG_HALF = tl.constexpr(-0.6931471805599453)


@triton.jit
def exp_(d, EXACT: tl.constexpr):
    """Compute e^d for d ≤ 0; nan stays."""
    log2e = tl.full((), 1.4426950408889634, d.dtype)
    if not EXACT:
        return tl.exp2(d * log2e)
    d = tl.where(d < -800.0, -800.0, d)  # or -inf would meet its own negative
    power = d * log2e
    lost = tl.fma(d, log2e, -power)
    if d.dtype == tl.float32:
        lost = tl.fma(d, tl.full((), 1.925963033500e-8, d.dtype), lost)  # log2 e has more digits than float32
    else:
        lost = tl.fma(d, tl.full((), 2.0355273740931033e-17, d.dtype), lost)
    e = tl.exp2(power)
    return tl.fma(e, lost * tl.full((), 0.6931471805599453, d.dtype), e)


@triton.jit
def exp_minus(d, less, EXACT: tl.constexpr):
    """Compute e^(d - less) for d - less ≤ 0."""
    if EXACT:
        return exp_(d - less, True)
    log2e = tl.full((), 1.4426950408889634, d.dtype)
    return tl.exp2(tl.fma(d, tl.broadcast_to(log2e, d.shape), tl.broadcast_to(-less * log2e, d.shape)))


@triton.jit
def log1p_(u):
    """Compute log(1 + u) for u ≥ 0: what rounding 1 + u loses, the quotient puts back."""
    w = 1.0 + u
    return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def log1p_unit(u):
    """Compute log(1 + u) for 0 ≤ u ≤ 1, in float32 without a division; at most 1.5 units off."""
    if u.dtype == tl.float64:
        return log1p_(u)
    p = u * -0.0032440247014164925 + 0.019851459190249443
    p = p * u - 0.05695952847599983
    p = p * u + 0.10603654384613037
    p = p * u - 0.15305592119693756
    p = p * u + 0.1967593878507614
    p = p * u - 0.24954134225845337
    p = p * u + 0.3332996368408203
    p = p * u - 0.4999990165233612
    return p * (u * u) + u


@triton.jit
def inverse(u):
    """Compute 1 / u for u ≥ 1, in float32 by way of the inverse root, for which processors have an instruction."""
    if u.dtype == tl.float64:
        return 1.0 / u
    root = tl.rsqrt(u)
    return root * root


@triton.jit
def expm1_(z):
    """Compute e^z - 1 for z ≤ 0, with its relative accuracy near 0; nan stays."""
    e = exp_(z, True)
    less = e - 1.0
    usual = (less == 0.0) | (less == -1.0)
    return tl.where(less == 0.0, z, tl.where(less == -1.0, -1.0, less * (z / tl.log(tl.where(usual, 0.5, e)))))


@triton.jit
def times(weight, value):
    """Multiply, with 0 · x = 0 also where x is infinite or nan: what has no weight is not there."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def weigh(weight, by):
    """Multiply two weights: where either of them is 0, so is the product, whatever the other one is."""
    return tl.where((weight == 0.0) | (by == 0.0), 0.0, weight * by)


@triton.jit
def rounded(value, dtype: tl.constexpr, BITS: tl.constexpr):
    """Round a result to the dtype it is stored in; with BITS from float32 to bfloat16 by adding to the bits.

    What is below an even upper half moves up from 0x8001 on, and below an odd one from 0x8000 on: to the nearest, and halves to
    even. A nan stays one if its lower 16 bits are 0, as ``plain_nan`` leaves them. One of 0x7FFFFFFF would become -0.
    """
    if BITS and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@triton.jit
def plain_nan(value, BITS: tl.constexpr):
    """Replace every nan by the one whose lower bits are 0, for ``rounded`` by bits; arithmetic passes them on as they are."""
    if BITS:
        return tl.where(value == value, value, float("nan"))
    return value
