"""How far off a result may be, and why: the bounds that several tests hold results to.

A bound comes from the arithmetic, never from what passes. There are three questions, with an assertion each:

- ``assert_close``: is this number right? It is held to the specification in float64 (``reference.py``).
- ``assert_no_worse``: is it as exact as what people have? It is held to the error of the formula written out in the same dtype.
- ``assert_slope``: is this gradient that of this loss? It is held to central differences.

Two ways of computing one thing (a layout, a module and its function, ``vmap`` and a loop) are compared with
``torch.testing.assert_close`` as it is, whose defaults belong to the dtype. What must be the same bit for bit is compared with
``torch.equal`` or ``assert_array_equal``. A test with a bound of its own says beside it where that comes from; ``fuzz.py``
derives one for every element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


def assert_close(
    got: Tensor,
    expected: Any,
    dtype: torch.dtype,
    *,
    roundings: float = 64,
    terms: float = 4,
    term_size: float | None = None,
    name: str = "",
) -> None:
    """Hold a result of ``dtype`` to the specification.

    Args:
        got: the result, of any shape.
        expected: the same from the specification, computed in float64 from inputs that ``dtype`` can hold.
        dtype: of the result. Behind float16 and bfloat16 the library computes in float32, and rounds once at the end.
        roundings: how many units of that arithmetic an entry may be off, beside the one rounding to ``dtype``. 64 are a few
            dozen operations, of which each may be off by a unit: logarithm, exponentials, their sum, the weights, the divisor.
        terms: how many units of ``term_size`` every entry may be off. A sum of terms of both signs is accurate to the size of
            its terms and not to its own, and ``mass · p - w t`` may be 0: its two terms have two roundings each.
            0 asks for relative accuracy everywhere, as sums of positive terms have it.
        term_size: how large the terms of such a sum are; by default as large as the largest entry.
        name: what to call the result when it is off.

    What ``dtype`` cannot hold may be infinite, and what is below its smallest number may be 0.
    """
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    got, expected = got.detach().double().numpy(), np.asarray(expected)
    with np.errstate(over="ignore"):
        as_dtype = torch.from_numpy(np.array(expected)).to(dtype).double().numpy()
    expected = np.where(np.isinf(as_dtype) & np.isfinite(expected), as_dtype, expected)
    if term_size is None:
        term_size = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    # Gradients of a mean are often below the smallest normal number of float16, but not below its smallest number, 2⁻²⁴.
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).smallest_normal
    rtol, atol = torch.finfo(dtype).eps + roundings * wide, terms * wide * term_size + smallest
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=name)


# A power, a hyperbolic tangent or a logarithm of a logarithm multiplies a rounding of its argument by what it is steep: the
# penalties and transformations have twice the roundings of cross entropy.
assert_close_in_family = partial(assert_close, roundings=128, terms=8)


def assert_no_worse(
    ours: Sequence[Tensor], usual: Sequence[Tensor], exact: Sequence[Any], dtype: torch.dtype, factor: float = 2.0
) -> None:
    """Hold results to ``factor`` times the error of the usual computation, and one rounding to ``dtype``.

    The usual computation is the formula in the arithmetic of ``dtype``, which is what people have. Its error is one draw of the
    errors that this arithmetic makes, so that another good way may be off by twice as much. A draw may be 0 by luck, of one number
    above all, so that it counts as half a unit of the last place at least. Both the largest error and the norm of all errors are
    held.
    """
    eps = torch.finfo(dtype).eps
    for result, theirs, right in zip(ours, usual, exact, strict=True):
        right = np.asarray(right)
        off, usually = (np.abs(v.detach().double().numpy() - right) for v in (result, theirs))
        for size in (np.max, np.linalg.norm):
            last_place = eps * size(np.abs(right))
            bound = factor * max(size(usually), last_place / 2) + last_place
            assert size(off) <= bound, f"off by {size(off)}, where {bound} is allowed"


def central_differences(f: Callable[[Any], Any], x: Any, step: float = 1e-5) -> np.ndarray:
    """Differentiate the sum of f in float64: off by ``step²`` and by a rounding divided by the step, 1e-10 of its size."""
    x, slope = np.array(x, np.float64), np.zeros(np.shape(x))
    for at in np.ndindex(x.shape):
        there, back = x.copy(), x.copy()
        there[at] += step
        back[at] -= step
        slope[at] = (np.sum(f(there)) - np.sum(f(back))) / (2 * step)
    return slope


def assert_slope(grad: Any, f: Callable[[Any], Any], x: Any, atol: float = 2e-9) -> None:
    """Hold a gradient to central differences, with a margin of ten for losses of size ten."""
    np.testing.assert_allclose(grad, central_differences(f, x), rtol=1e-6, atol=atol)
