"""What the members of the family change, inside kernels: the logits x → x', and the penalty f(p) with s(p) = -f'(p) p.

Takes numbers in float32 or float64, and a :class:`Member`, whose fields that are None or off are not compiled. ``f`` and ``s`` are
functions of ``u = log p``, so that neither p nor 1 - p loses its digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.impl.triton.numbers import exp_, expm1_, inverse, log1p_, times

NUMBERS = frozenset(
    {"ignore_index", "label_smoothing", "temperature", "softcap", "margin", "z_loss", "penalty", "all_classes"}
)
"""The numbers of the record that ``member_of`` in ``launch.py`` hands over; a call with others is refused."""
PENALTIES = {"": 0, "Focal": 1, "Poly1": 2, "GCE": 3, "MAE": 3, "SCE": 4, "Taylor": 5}


class Member(NamedTuple):
    """What a kernel is told of the settings. Numbers are given as the formulas have them, tensors in the dtype of the computation.

    ``weight`` holds c, ``bias`` and ``mask`` belong to classes. What smoothing spreads to a class is ``share`` where that is the
    same for all, else in ``spread``, which contains c. ``keep`` is 1 - ε.
    """

    weight: Any
    bias: Any
    mask: Any
    spread: Any
    SMOOTHED: Any
    CAPPED: Any
    MOVED: Any  # whether x' may be another number than x
    SCALED: Any  # whether there is a temperature or a margin
    PENALTY: Any
    Z: Any
    share: Any
    keep: Any
    cap: Any
    per_cap: Any
    per_temperature: Any
    margin: Any  # over the temperature
    z_loss: Any
    a: Any
    b: Any
    order: Any  # of Taylor's expansion
    ignore_index: Any
    SHARD: Any  # whether these are some of the classes, and an index of -1 is that of one elsewhere


@triton.jit
def tanh_(z, EXACT: tl.constexpr):
    """Compute tanh from t = e^(-2|z|)."""
    u = -2.0 * tl.abs(z)
    t = exp_(u, EXACT)
    size = tl.where(u > -1e-3, u * (u * u * (1.0 / 24.0) - 0.5), (1.0 - t) * inverse(1.0 + t))
    return tl.where(z < 0.0, -size, size)


@triton.jit
def tanh_slope(z, EXACT: tl.constexpr):
    """Compute 1 - tanh² = 4t / (1 + t)², in which nothing cancels."""
    t = exp_(-2.0 * tl.abs(z), EXACT)
    per = inverse(1.0 + t)
    return 4.0 * t * per * per


@triton.jit
def transform(x, cls, valid, member, EXACT: tl.constexpr):
    """Compute x' of logits x of the classes cls, without the margin: (cap · tanh(x / cap) + bias) / T, and -inf for masked ones."""
    if member.CAPPED:
        x = tanh_(x * member.per_cap, EXACT) * member.cap
    if member.bias is not None:
        x += tl.load(member.bias + cls, mask=valid, other=0.0)
    if member.SCALED:
        x *= member.per_temperature
    if member.mask is not None:
        x = tl.where(tl.load(member.mask + cls, mask=valid, other=0) != 0, x, -float("inf"))
    return x


@triton.jit
def chain(slope, x, cls, valid, member, EXACT: tl.constexpr):
    """Bring ∂L/∂x' back to x, which is 0 for masked classes."""
    if member.SCALED:
        slope *= member.per_temperature
    if member.CAPPED:
        slope = times(slope, tanh_slope(x * member.per_cap, EXACT))
    if member.mask is not None:
        slope = tl.where(tl.load(member.mask + cls, mask=valid, other=0) != 0, slope, 0.0)
    return slope


@triton.jit
def power(base, exponent):
    """Compute a power of a number in [0, 1]; 0 to the power of 0 is 1."""
    of = tl.exp2(exponent * tl.log2(tl.where(base > 0.0, base, 1.0)))
    return tl.where(base > 0.0, of, tl.where(exponent == 0.0, 1.0, 0.0))


@triton.jit
def penalise(u, member):
    """Compute f and s of log p = u."""
    a, b = tl.full((), member.a, u.dtype), tl.full((), member.b, u.dtype)
    if member.PENALTY == 0:
        f, s = -u, tl.zeros_like(u) + 1.0
    elif member.PENALTY == 1:  # (1-p)^γ (-log p), and (1-p)^γ (1 + γ p (-log p)/(1-p))
        p, lack = exp_(u, True), 0.0 - expm1_(u)
        some = tl.where(lack > 0.0, lack, 1.0)
        rest = exp_(-a * log1p_(p / some), True)
        rest = tl.where(lack > 0.0, rest, tl.where(p != p, p, tl.where(a == 0.0, 1.0, 0.0)))
        f = times(rest, -u)
        s = rest * (1.0 + a * times(p, tl.where(lack > 0.0, -u / some, 1.0)))
    elif member.PENALTY == 2:
        f, s = 0.0 - a * expm1_(u) - u, 1.0 + a * exp_(u, True)
    elif member.PENALTY == 3:  # and MAE, where a = 1
        f, s = (0.0 - expm1_(a * u)) / a, exp_(a * u, True)
    elif member.PENALTY == 4:  # a = α, b = -β A
        f, s = (0.0 - b * expm1_(u)) - times(a + 0.0 * u, u), a + b * exp_(u, True)
    else:  # Taylor
        lack, term = 0.0 - expm1_(u), tl.zeros_like(u) + 1.0
        f, s = tl.zeros_like(u), tl.zeros_like(u)
        for k in range(1, member.order + 1):
            s += term
            term *= lack
            f += term / k
        s *= exp_(u, True)
    return f, s
