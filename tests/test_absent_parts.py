"""A part that does not count is not there: a class, an element, or the side of yes or no that weighs nothing, whatever it holds.

A call with garbage where nothing weighs anything is held to the same call with harmless numbers there, in losses and derivatives
of every order: every entry point × every way to weigh nothing × garbage × every implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import IMPLEMENTATIONS
from torch import Tensor

import crossent
from crossent import reference

INF, NAN = float("inf"), float("nan")
GARBAGE = {"nan": NAN, "inf": INF}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Call(NamedTuple):
    """A loss of logits, a target and weights, those numbers, and which of them (0, 1 or 2) holds the garbage, and where."""

    loss: Callable[..., Tensor]
    numbers: tuple[Tensor, Tensor, Tensor]
    which: int
    where: Tensor | tuple[Any, ...]

    def given(self, garbage: float | None, dtype: torch.dtype) -> list[Tensor]:
        numbers = [n.to(dtype) if n.is_floating_point() else n for n in self.numbers]
        if garbage is not None:
            numbers[self.which] = numbers[self.which].clone()
            numbers[self.which][self.where] = garbage
        return numbers


# --- the binary loss --------------------------------------------------------------------------------------------------

bce = crossent.binary_cross_entropy_with_logits
BINARY: dict[str, Callable[..., Tensor]] = {
    "function": bce,
    "module": lambda x, t, weight=None, pos_weight=None, impl=None, sample_weight=None, **o: crossent.BCEWithLogitsLoss(
        weight, pos_weight=pos_weight, impl=impl, **o
    )(x, t, sample_weight=sample_weight),
    "sum": lambda x, t, **o: bce(x, t, reduction="sum", **o),
    "none": lambda x, t, **o: bce(x, t, reduction="none", **o).sum(),
    "focal": lambda x, t, **o: crossent.sigmoid_focal_loss(x, t, reduction="mean", **o),
    "focal without alpha": lambda x, t, **o: crossent.sigmoid_focal_loss(x, t, None, reduction="mean", **o),
    "asymmetric": lambda x, t, **o: bce(x, t, penalty=crossent.Asymmetric(), **o),
    "poly": lambda x, t, **o: bce(x, t, penalty=crossent.Poly1(), **o),
    "masked": lambda x, t, **o: bce(x, t, mask=torch.ones(4, dtype=torch.bool), **o),
    "expanded logits": lambda x, t, **o: bce(
        x.unsqueeze(0).expand(2, -1, -1), t.expand(2, -1, -1), reduction="sum", **o
    ),
}
IN_TORCH_OPERATIONS = {"focal", "focal without alpha", "asymmetric", "poly", "masked"}


def _binary(name: str) -> dict[str, Call]:
    """List the ways in which elements of a binary loss weigh nothing."""
    f = BINARY[name]
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.linspace(0, 1, 24).double().reshape(6, 4)
    gone = torch.rand(6, 4, generator=generator) < 0.3
    rows = torch.tensor([False, True, False, False, True, False])
    sure, refused = t.masked_fill(gone, 1.0), t.masked_fill(gone, 0.0)
    pi = torch.linspace(0.5, 2, 24).double().reshape(6, 4)
    zeros = pi.masked_fill(gone, 0.0)
    calls = {
        "pos_weight": Call(lambda x, t, w, **o: f(x, t, pos_weight=w, **o), (x, sure, zeros), 0, gone),
        "weight": Call(lambda x, t, w, **o: f(x, t, weight=w, **o), (x, t, zeros), 0, gone),
        "target, weight": Call(lambda x, t, w, **o: f(x, t, weight=w, **o), (x, t, zeros), 1, gone),
        "pos_weight, weight": Call(
            lambda x, t, w, **o: f(x, t, weight=zeros.to(x.dtype), pos_weight=w, **o), (x, t, pi), 2, gone
        ),
        "a positive weight of negatives": Call(lambda x, t, w, **o: f(x, t, pos_weight=w, **o), (x, refused, pi), 2, gone),
    }  # fmt: skip
    if name != "expanded logits":
        u = torch.ones(6, dtype=torch.float64).masked_fill(rows, 0.0)
        by_rows = lambda x, t, w, **o: f(x, t, sample_weight=w, **o)  # noqa: E731
        calls |= {
            "sample_weight": Call(by_rows, (x, t, u), 0, rows),
            "target, sample_weight": Call(by_rows, (x, t, u), 1, rows),
        }
    return calls


def _alpha(alpha: float, side: float) -> Call:
    x = torch.linspace(-3, 3, 8, dtype=torch.float64)
    t = torch.tensor([side, 0.5, side, 0.2, 1 - side, 0.9, side, 1 - side], dtype=torch.float64)

    def loss(x: Tensor, t: Tensor, _: Tensor, **options: Any) -> Tensor:
        return crossent.sigmoid_focal_loss(x, t, alpha, reduction="sum", **options)

    return Call(loss, (x, t, x), 0, t == side)


BINARY_CALLS = {f"{name}: {way}": call for name in BINARY for way, call in _binary(name).items()}
BINARY_CALLS |= {"focal: alpha 0 and a yes": _alpha(0.0, 1.0), "focal: alpha 1 and a no": _alpha(1.0, 0.0)}

# --- the softmax loss -------------------------------------------------------------------------------------------------


def _head(max_bytes: int) -> Callable[..., Tensor]:
    def loss(x: Tensor, t: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        head = torch.linspace(-1, 1, t.shape[1] * x.shape[1], dtype=x.dtype).reshape(t.shape[1], -1)
        return crossent.linear_cross_entropy(x, head, t, weight=weight, max_bytes=max_bytes, **options)

    return loss


def _statistic(x: Tensor, t: Tensor, **options: Any) -> Tensor:
    stats = crossent.cross_entropy_stats(x, t, reduction="mean", **options)
    return stats.loss


SOFTMAX: dict[str, Callable[..., Tensor]] = {
    "function": crossent.cross_entropy,
    "sum": lambda x, t, **o: crossent.cross_entropy(x, t, reduction="sum", **o),
    "none": lambda x, t, **o: crossent.cross_entropy(x, t, reduction="none", **o).sum(),
    "module": lambda x, t, weight=None, sample_weight=None, **o: crossent.CrossEntropyLoss(weight, **o)(
        x, t, sample_weight=sample_weight
    ),
    "smoothed": lambda x, t, **o: crossent.cross_entropy(x, t, label_smoothing=0.1, **o),
    "smoothed fully": lambda x, t, **o: crossent.cross_entropy(x, t, label_smoothing=1.0, **o),
    "focal": crossent.focal_loss,
    "poly": lambda x, t, **o: crossent.cross_entropy(x, t, penalty=crossent.Poly1(), **o),
    "tempered": lambda x, t, **o: crossent.cross_entropy(x, t, temperature=2.0, softcap=5.0, z_loss=0.1, **o),
    "stats": _statistic,
    "head with few logits": _head(1 << 28),
    "head in blocks": _head(64),
    "classes apart": lambda x, t, **o: crossent.cross_entropy(
        x.t()[None], t.t()[None] if t.dim() == 2 else t[None], **o
    ),
}
SMOOTHED = {"smoothed", "smoothed fully"}
WITHOUT_GRADIENT = {("stats", "native")}  # the kernels refuse statistics that are to be differentiated


def _softmax(name: str, classes: int) -> dict[str, Call]:
    """List the ways in which classes and rows of a softmax loss weigh nothing."""
    f = SOFTMAX[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, classes, generator=generator, dtype=torch.float64)
    t = torch.rand(6, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(1, classes, (6,), generator=generator)
    hidden = x[:, :3] if "head" in name else x
    c, rows = torch.linspace(0.5, 2, classes).double(), torch.tensor([1, 4])
    u = torch.ones(6, dtype=torch.float64).index_fill(0, rows, 0.0)
    by_class = lambda x, t, w, **o: f(x, t, weight=w, **o)  # noqa: E731
    without = torch.tensor([0])
    calls = {
        "target of a class without weight": Call(
            by_class, (hidden, t, c.index_fill(0, without, 0.0)), 1, (slice(None), 0)
        ),
    }
    if name != "classes apart":
        calls["target, sample_weight"] = Call(
            lambda x, t, w, **o: f(x, t, sample_weight=w, **o), (hidden, t, u), 1, (rows,)
        )
    if name not in SMOOTHED:
        calls["weight of a class nobody wants"] = Call(by_class, (hidden, t.index_fill(1, without, 0.0), c), 2, (0,))
    if name not in SMOOTHED and "head" not in name:
        calls["weight of a class that is no label"] = Call(by_class, (hidden, y, c), 2, (0,))
    return calls


SOFTMAX_CALLS = {
    f"{name}, {classes}: {way}": call
    for name in SOFTMAX
    for classes in (4, 100)
    for way, call in _softmax(name, classes).items()
}
CALLS = BINARY_CALLS | SOFTMAX_CALLS


# --- the laws ---------------------------------------------------------------------------------------------------------


def _gradient(loss: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    value = loss(x, *rest)
    return value.detach(), torch.autograd.grad(value, x)[0]


def _skipped(name: str, impl: str) -> bool:
    entry = name.split(":")[0].split(",")[0]
    return impl != "eager" and (
        (entry in IN_TORCH_OPERATIONS and name in BINARY_CALLS) or (entry, impl) in WITHOUT_GRADIENT
    )


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CALLS)
def test_value_and_gradient(name, impl, garbage):
    if _skipped(name, impl):
        pytest.skip("goes to torch operations")
    call = CALLS[name]
    for dtype in DTYPES:
        clean, dirty = (
            _gradient(lambda *a: call.loss(*a, impl=impl), *call.given(g, dtype)) for g in (None, GARBAGE[garbage])
        )
        assert clean[0].isfinite()
        torch.testing.assert_close(dirty, clean)


def _further(loss: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Compute further derivatives in the ways there are."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    of_sum = torch.func.grad(loss)
    return {
        "double backward": torch.autograd.grad((grad * v).sum(), leaf)[0],
        "forward mode": torch.func.jvp(loss, (x,), (v,))[1],
        "forward over reverse": torch.func.jvp(of_sum, (x,), (v,))[1],
        "reverse over reverse": torch.func.grad(lambda z: (of_sum(z) * v).sum())(x),
    }


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", [name for name in CALLS if ", 100:" not in name])
def test_further_derivatives(name, garbage):
    call = CALLS[name]
    (x, *rest), dirty = call.given(None, torch.float64), call.given(GARBAGE[garbage], torch.float64)
    v = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(x.shape)
    expected = _further(lambda x: call.loss(x, *rest), x, v)
    got = _further(lambda x: call.loss(x, *dirty[1:]), dirty[0], v)
    for way, value in expected.items():
        torch.testing.assert_close(got[way], value, msg=lambda text, way=way: f"{way}: {text}")


# What is left of an element under a positive weight of 0 or inf: t, x and the loss, its gradient, and that of the target.
SOFTPLUS_1, SIGMOID_1 = 1.3132616875182228, 0.7310585786300049
LEFT = {
    0.0: [
        (1.0, NAN, 0.0, 0.0, NAN),
        (1.0, INF, 0.0, 0.0, -INF),
        (1.0, -INF, 0.0, 0.0, 0.0),
        (1.0, 1.0, 0.0, 0.0, -SOFTPLUS_1),
        (0.5, NAN, NAN, NAN, NAN),
        (0.5, INF, INF, 0.5, -INF),
        (0.5, -INF, 0.0, 0.0, 0.0),
        (0.5, 1.0, SOFTPLUS_1 / 2, SIGMOID_1 / 2, -SOFTPLUS_1),
        (0.0, NAN, NAN, NAN, NAN),
        (NAN, 1.0, NAN, NAN, -SOFTPLUS_1),
        (NAN, NAN, NAN, NAN, NAN),
        (INF, 1.0, -INF, -INF, -SOFTPLUS_1),
        (-INF, 1.0, INF, INF, -SOFTPLUS_1),
    ],
    INF: [
        (0.0, 1.0, SOFTPLUS_1, SIGMOID_1, INF),
        (0.0, NAN, NAN, NAN, NAN),
        (1.0, 1.0, INF, -INF, INF),
    ],
}


@pytest.mark.parametrize("how", ["reference", *IMPLEMENTATIONS, "torch"])
@pytest.mark.parametrize("pi", LEFT)
def test_a_positive_weight_of_nothing_or_infinity(pi, how):
    """Torch has the same wherever it has no nan."""
    for t, x, *expected in LEFT[pi]:
        if how == "reference":
            with np.errstate(invalid="ignore"):
                got = [float(np.sum(n)) for n in reference.sigmoid_cross_entropy(x, t, pi)]  # type: ignore[arg-type]
        else:
            leaves = [torch.tensor([n], dtype=torch.float64, requires_grad=True) for n in (x, t)]
            f = F.binary_cross_entropy_with_logits if how == "torch" else bce
            more = {} if how == "torch" else {"impl": how}
            loss = f(*leaves, pos_weight=torch.tensor([pi], dtype=torch.float64), reduction="sum", **more)
            got = [n.item() for n in (loss, *torch.autograd.grad(loss, leaves))]
            expected = [g if how == "torch" and np.isnan(g) else e for g, e in zip(got, expected, strict=True)]
        np.testing.assert_allclose(got, expected, rtol=1e-14, err_msg=f"t = {t}, x = {x}")


def test_what_is_absent_now_may_weigh_something_next():
    """The target moves away from 1: the derivative of a gradient by it, or by a weight, is that of what would be there then."""
    x = torch.tensor([NAN, 1.0], dtype=torch.float64, requires_grad=True)
    t = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = bce(x, t, pos_weight=torch.zeros(1, dtype=torch.float64), reduction="sum")
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(grad, torch.zeros(2, dtype=torch.float64))
    (mixed,) = torch.autograd.grad(grad.sum(), t)
    assert mixed[0].isnan()  # no number is known for it, and 0 would be a guess
    torch.testing.assert_close(mixed[1].item(), -SIGMOID_1)


def test_a_class_weight_has_the_cost_of_its_class_as_its_gradient():
    """Also where the class is masked: who wants it pays f(0), who does not pays nothing, and who allows nothing is not there."""
    x, c = torch.randn(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75], [0.2, 0.3, 0.5]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    for create_graph in (False, True):
        loss = crossent.cross_entropy(x, t, c, class_mask=mask, reduction="sum")
        (grad,) = torch.autograd.grad(loss, c, create_graph=create_graph)
        surprisal = -x.masked_fill(~mask, -INF).log_softmax(1)
        torch.testing.assert_close(grad, (t * surprisal).nan_to_num(0.0)[:2].sum(0))
    t[0] = torch.tensor([0.5, 0.0, 0.5])
    loss = crossent.cross_entropy(x, t, c, class_mask=mask, reduction="sum")
    (grad,) = torch.autograd.grad(loss, c)
    assert grad.isinf().tolist() == [False, False, True]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_smoothing_spreads_nothing_over_classes_without_weight(soft, garbage, classes, impl):
    x = torch.zeros(4, classes, dtype=torch.float64)
    x[1] = GARBAGE[garbage]
    x.requires_grad_()
    target = torch.ones_like(x) / classes if soft else torch.zeros(4, dtype=torch.int64)
    for reduction in ("sum", "none"):
        loss = crossent.cross_entropy(
            x, target, torch.zeros(classes, dtype=torch.float64), label_smoothing=0.1, reduction=reduction, impl=impl
        )
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert loss.count_nonzero() == grad.count_nonzero() == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("hot", [False, True], ids=["index", "one-hot"])
@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entry", ["function", "module", "head", "head in blocks"])
def test_a_target_that_full_smoothing_leaves_nothing_of_may_be_impossible(entry, dtype, classes, hot, impl):
    """With ε = 1 the label itself weighs 0: that its class is masked costs 0 times infinity."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, classes, generator=generator, dtype=torch.float64).to(dtype)
    y, mask = torch.tensor([1, 0, 1, 2]), torch.arange(classes) != 1
    target = F.one_hot(y, classes).to(dtype) if hot else y
    options = {"class_mask": mask, "label_smoothing": 1.0}
    eye = torch.eye(classes, dtype=dtype)
    loss = {
        "function": lambda x: crossent.cross_entropy(x, target, impl=impl, **options),
        "module": lambda x: crossent.CrossEntropyLoss(impl=impl, **options)(x, target),
        "head": lambda x: crossent.linear_cross_entropy(x, eye, target, impl=impl, **options),
        "head in blocks": lambda x: crossent.linear_cross_entropy(x, eye, target, impl=impl, max_bytes=64, **options),
    }[entry]
    leaf = x.clone().requires_grad_()
    got = loss(leaf)
    (grad,) = torch.autograd.grad(got, leaf)
    expected = reference.cross_entropy(
        x.double().numpy(), target.double().numpy() if hot else y.numpy(), **{**options, "class_mask": mask.numpy()}
    )
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(got.double(), torch.tensor(float(expected.loss), dtype=torch.float64), **close)
    torch.testing.assert_close(grad.double(), torch.from_numpy(expected.grad), **close)
