"""No nan from a finite question: derivatives of every penalty at margins from -1000 to 1000 are those of its formula.

Every entry point × penalty × dtype, by double backward, forward mode and both at once. With two classes a loss is a function of the
margin m alone, ``F(m) = f(1 / (1 + e^-m))``; its slopes are taken of the formula in many digits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mpmath
import pytest
import torch
from cases import DTYPES
from torch import Tensor
from torch.autograd import forward_ad

import crossent

MARGINS = [0, 0.5, 4, 16, 17, 44, 45, 46, 80, 87, 88, 89, 92, 95, 100, 102, 103, 104, 110, 300, 700, 745, 746, 1000]
MARGINS += [-margin for margin in MARGINS[1:]]

FORMULAS: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "none": (None, lambda p, q: -mpmath.log(p)),
    "focal 0": (crossent.Focal(0.0), lambda p, q: -mpmath.log(p)),
    "focal 0.5": (crossent.Focal(0.5), lambda p, q: -(q ** mpmath.mpf(0.5)) * mpmath.log(p)),
    "focal 1": (crossent.Focal(1.0), lambda p, q: -q * mpmath.log(p)),
    "focal 1.5": (crossent.Focal(1.5), lambda p, q: -(q ** mpmath.mpf(1.5)) * mpmath.log(p)),
    "focal 3": (crossent.Focal(3.0), lambda p, q: -(q**3) * mpmath.log(p)),
    "poly1": (crossent.Poly1(2.0), lambda p, q: -mpmath.log(p) + 2 * q),
    "gce": (crossent.GCE(0.5), lambda p, q: 2 * (1 - p ** mpmath.mpf(0.5))),
    "mae": (crossent.MAE(), lambda p, q: q),
    "sce": (crossent.SCE(0.5, 1.0, -4.0), lambda p, q: -mpmath.log(p) / 2 + 4 * q),
    "taylor": (crossent.Taylor(3), lambda p, q: q + q**2 / 2 + q**3 / 3),
}
"""Each penalty with its f of p and of q = 1 - p."""


@lru_cache
def slopes(name: str, order: int) -> tuple[float, ...]:
    """Return the derivative of F of this order at each margin."""
    f = FORMULAS[name][1]
    with mpmath.workdps(560):  # log p of margin 1000 begins after 434 zeros, and its second difference 60 digits later

        def of(m: Any) -> Any:
            return f(1 / (1 + mpmath.exp(-m)), 1 / (1 + mpmath.exp(m)))

        step = mpmath.mpf(10) ** -30
        return tuple(float(mpmath.diff(of, mpmath.mpf(m), order, h=step)) for m in MARGINS)


def _hot(x: Tensor) -> Tensor:
    return torch.eye(2, dtype=x.dtype)[:1].expand(len(x), 2)


def _none(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


ENTRIES: dict[str, Callable[..., Tensor]] = {
    "function": lambda x, **o: crossent.cross_entropy(x, _none(x), reduction="sum", **o),
    "rows": lambda x, **o: crossent.cross_entropy(x, _none(x), reduction="none", **o).sum(),
    "probabilities": lambda x, **o: crossent.cross_entropy(x, _hot(x), reduction="sum", **o),
    "classes apart": lambda x, **o: crossent.cross_entropy(x.T[None], _none(x)[None], reduction="sum", **o),
    "module": lambda x, **o: crossent.CrossEntropyLoss(reduction="sum", **o)(x, _none(x)),
    "multilabel": lambda x, **o: crossent.multilabel_cross_entropy(x, _hot(x), reduction="sum", **o),
    "statistics": lambda x, **o: crossent.cross_entropy_stats(x, _none(x), reduction="sum", **o).loss,
    "distillation": lambda x, **o: crossent.distillation_loss(
        x, x.detach(), 1.0, _none(x), alpha=0.0, reduction="sum", **o
    ),
    "head": lambda x, **o: crossent.linear_cross_entropy(
        x, torch.eye(2, dtype=x.dtype), _none(x), reduction="sum", **o
    ),
    "head in blocks": lambda x, **o: crossent.linear_cross_entropy(
        x, torch.eye(2, dtype=x.dtype), _none(x), reduction="sum", max_bytes=64, **o
    ),
}
BINARY: dict[str, Callable[..., Tensor]] = {
    "binary, yes": lambda x, **o: crossent.binary_cross_entropy_with_logits(
        x, torch.ones_like(x), reduction="sum", **o
    ),
    "binary, no": lambda x, **o: crossent.binary_cross_entropy_with_logits(
        -x, torch.zeros_like(x), reduction="sum", **o
    ),
    "binary, elements": lambda x, **o: crossent.binary_cross_entropy_with_logits(
        x, torch.ones_like(x), reduction="none", **o
    ).sum(),
    "binary module": lambda x, **o: crossent.BCEWithLogitsLoss(reduction="sum", **o)(x, torch.ones_like(x)),
}


def _sigmoid_focal(x: Tensor, penalty: Any) -> Tensor:
    return crossent.sigmoid_focal_loss(x, torch.ones_like(x), None, penalty.gamma, "sum")


def _by_every_mode(loss: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradient and the tangent, and the second derivative along a direction: backward, and by two transforms."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((grad * along).sum(), leaf)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, along))).tangent
    forward = torch.func.jvp(torch.func.grad(loss), (x,), (along,))[1]
    reverse = torch.func.grad(lambda x: (torch.func.grad(loss)(x) * along).sum())(x)
    return [grad, tangent], [second, forward, reverse]


def _assert_slopes(loss: Callable[[Tensor], Tensor], name: str, dtype: torch.dtype, binary: bool) -> None:
    first, second = (torch.tensor(slopes(name, order), dtype=torch.float64) for order in (1, 2))
    m = torch.tensor(MARGINS, dtype=torch.float64)
    x = m.to(dtype) if binary else torch.stack([m, torch.zeros_like(m)], 1).to(dtype)
    along = torch.ones_like(m) if binary else torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(m), 2)
    (grad, tangent), seconds = _by_every_mode(loss, x, along.to(dtype))
    eps = torch.finfo(dtype).eps
    close = {"rtol": 2 * eps, "atol": 2 * eps}  # slopes are sums of terms around 1, and are rounded twice
    torch.testing.assert_close(tangent.double(), first.sum(), rtol=2 * eps, atol=2 * eps * len(m))
    for got, right in ((grad, first), *((each, second) for each in seconds)):
        rows = right if binary else torch.stack([right, -right], 1)
        torch.testing.assert_close(got.double(), rows, **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("entry", [*ENTRIES, *BINARY])
def test_every_penalty_and_entry(entry, name, dtype):
    call, penalty = {**ENTRIES, **BINARY}[entry], FORMULAS[name][0]
    _assert_slopes(lambda x: call(x, penalty=penalty), name, dtype, binary=entry in BINARY)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", [name for name in FORMULAS if "focal" in name])
def test_named_focal_losses(name, dtype):
    gamma = FORMULAS[name][0].gamma
    _assert_slopes(lambda x: _sigmoid_focal(x, FORMULAS[name][0]), name, dtype, binary=True)
    _assert_slopes(lambda x: crossent.focal_loss(x, _none(x), gamma, reduction="sum"), name, dtype, binary=False)
