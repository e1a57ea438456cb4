"""A row that does not count is not there: losses and derivatives of every order are those of the batch without it.

Every entry point × every way in which a row can weigh nothing × what it may hold × every implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cases import IMPLEMENTATIONS
from torch import Tensor

import crossent

INF, NAN = float("inf"), float("nan")
ROWS, FEATURES = 6, 3
GONE = torch.tensor([1, 4])  # the rows that do not count
KEPT = torch.tensor([0, 2, 3, 5])
GARBAGE = {
    "nan": [NAN, NAN],
    "a nan": [NAN, 0.5],
    "inf": [INF, 1.0],
    "infs": [INF, INF],
    "-infs": [-INF, -INF],
    "mixed": [INF, NAN],
}
"""What the rows that do not count hold: the first and the second half of their numbers."""


class Entry(NamedTuple):
    """A loss of logits and a target of rows, called with options; ``soft`` where the target is probabilities."""

    loss: Callable[..., Tensor]
    soft: bool = False
    classes: int = 4


def _linear(max_bytes: int) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        head = torch.linspace(-1.0, 1.0, 4 * x.shape[1], dtype=x.dtype).reshape(4, -1)
        return crossent.linear_cross_entropy(x, head, y, max_bytes=max_bytes, **options)

    return loss


def _taught(max_bytes: int) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        head = torch.linspace(-1.0, 1.0, 4 * x.shape[1], dtype=x.dtype).reshape(4, -1)
        teacher = crossent.Teacher(y, head.new_ones(4, 4).triu(), temperature=2.0)
        return crossent.linear_cross_entropy(x, head, teacher, max_bytes=max_bytes, **options)

    return loss


def _statistic(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    stats = crossent.cross_entropy_stats(x, y, **{"reduction": "mean", **options})
    return stats.loss


def _module(x: Tensor, y: Tensor, sample_weight: Tensor | None = None, **options: Any) -> Tensor:
    loss: Tensor = crossent.CrossEntropyLoss(**options)(x, y, sample_weight=sample_weight)
    return loss


def _distillation(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    teacher = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(ROWS, -1) if len(x) == ROWS else None
    whole = torch.linspace(-1, 1, ROWS * x.shape[1], dtype=x.dtype).reshape(ROWS, -1)
    return crossent.distillation_loss(x, whole[KEPT] if teacher is None else teacher, 2.0, y, **options)


def _reverse_distillation(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return _distillation(x, y, reverse=True, **options)


ENTRIES = {
    "cross_entropy": Entry(crossent.cross_entropy),
    "long rows": Entry(crossent.cross_entropy, classes=300),
    "probabilities": Entry(crossent.cross_entropy, soft=True),
    "long rows of probabilities": Entry(crossent.cross_entropy, soft=True, classes=300),
    "focal": Entry(crossent.focal_loss),
    "long rows, focal": Entry(crossent.focal_loss, classes=300),
    "stats": Entry(_statistic),
    "module": Entry(_module),
    "head with few logits": Entry(_linear(1 << 28)),
    "head in blocks": Entry(_linear(64)),
    "head of probabilities": Entry(_linear(1 << 28), soft=True),
    "head of probabilities in blocks": Entry(_linear(64), soft=True),
    "taught head": Entry(_taught(1 << 28), soft=True),
    "taught head in blocks": Entry(_taught(64), soft=True),
    "distillation": Entry(_distillation),
    "reverse distillation": Entry(_reverse_distillation),
    "multilabel": Entry(lambda x, y, **options: crossent.multilabel_cross_entropy(x, y > 0.5, **options), soft=True),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z": {"z_loss": 0.1, "softcap": 5.0},
    "penalised": {"penalty": crossent.Poly1(), "label_smoothing": 0.2},
    "biased": {"logit_bias": torch.tensor([0.3, -1.0, 0.2, 0.0]), "temperature": 2.0},
}


def _weightless(options: dict[str, Any], entry: Entry) -> dict[str, dict[str, Any]]:
    """List the ways in which rows can weigh nothing, as further options; a target is changed under ``target``."""
    weight = torch.ones(ROWS, dtype=torch.float64).index_fill(0, GONE, 0.0)
    ways: dict[str, dict[str, Any]] = {"sample_weight": {"sample_weight": weight}}
    ways["no class"] = {"class_mask": (weight > 0)[:, None].expand(ROWS, entry.classes)}
    if not entry.soft:
        ways["ignored"] = {"target": -100}
        # distillation: the class weights are those of its second part only
        if (
            not options.get("label_smoothing")
            and entry.classes == 4
            and entry.loss not in (_distillation, _reverse_distillation)
        ):
            ways["class weight"] = {"target": 3, "weight": torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)}
    return ways


def _refused(name: str, options: dict[str, Any]) -> bool:
    """Whether an entry point does not take these options."""
    if "distillation" in name:
        return bool(options.keys() - {"label_smoothing"})
    return "focal" in name and "penalty" in options


def _arguments(entry: Entry, name: str, garbage: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    columns = FEATURES if "head" in name else entry.classes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64).to(dtype)
    half = columns // 2
    x[GONE, :half], x[GONE, half:] = garbage[0], garbage[1]
    if entry.soft:
        return x, torch.rand(ROWS, entry.classes, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (ROWS,), generator=generator)


def _calls() -> list[Any]:
    calls = []
    for name, entry in ENTRIES.items():
        for said, options in OPTIONS.items():
            if _refused(name, options) or ("logit_bias" in options and entry.classes != 4):
                continue
            for way, more in _weightless(options, entry).items():
                calls.append(pytest.param(name, options, more, id=f"{name}-{said}-{way}"))
    return calls


def _setup(name: str, options: dict[str, Any], more: dict[str, Any], garbage: str, dtype: torch.dtype, impl: str):  # type: ignore[no-untyped-def]
    """Return the loss of the whole batch and of the rows that count, each with its logits or hidden states."""
    entry = ENTRIES[name]
    x, y = _arguments(entry, name, GARBAGE[garbage], dtype)
    options = {
        key: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for key, v in (options | more).items()
        if key != "target"
    }
    options["impl"] = impl
    if "target" in more:
        y[GONE] = more["target"]
    of_rows = {name: options.pop(name) for name in ("sample_weight", "class_mask") if name in options}
    whole = options | of_rows
    return (lambda z: entry.loss(z, y, **whole)), x, (lambda z: entry.loss(z, y[KEPT], **options)), x[KEPT].clone()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "options", "more"), _calls())
def test_value_and_gradient(name, options, more, impl, garbage):
    for dtype in (torch.float64, torch.float32):
        whole, x, kept, few = _setup(name, options, more, garbage, dtype, impl)
        x.requires_grad_(), few.requires_grad_()
        try:
            loss, expected = whole(x), kept(few)
        except RuntimeError as error:
            if "cannot run here" not in str(error):
                raise
            pytest.skip(str(error))
        torch.testing.assert_close(loss, expected)
        (grad,), (of_few,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, few)
        torch.testing.assert_close(grad[KEPT], of_few)
        assert (grad[GONE] == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("max_bytes", [64, 1 << 28], ids=["blocks", "few logits"])
@pytest.mark.parametrize(
    "way", ["ignored", "sample_weight", "class weight", "no class", "probabilities of 0", "classes without weight"]
)
def test_the_gradient_of_a_head_is_that_of_the_rows_that_count(way, max_bytes, impl, garbage):
    """Its product with the hidden states has 0 times nan in it, unless rows that do not count are left out of that, too."""
    for reduction in ("mean", "sum", "none"):
        x, y = _arguments(ENTRIES["head in blocks"], "head", GARBAGE[garbage], torch.float64)
        c, u = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.ones(ROWS).double().index_fill(0, GONE, 0.0)
        options: dict[str, Any] = {"reduction": reduction, "max_bytes": max_bytes, "impl": impl}
        of_rows: dict[str, Any] = {}
        if way == "sample_weight":
            of_rows = {"sample_weight": u}
        elif way == "no class":
            of_rows = {"class_mask": (u > 0)[:, None].expand(ROWS, 4)}
        elif way == "probabilities of 0":
            y = torch.nn.functional.one_hot(y, 4) * u[:, None]
            options["denominator"] = 4.0 if reduction == "mean" else None  # which is over all rows of probabilities
        elif way == "classes without weight":
            y[GONE], options["weight"] = 3, c
            y = torch.nn.functional.one_hot(y, 4).double()
            options["denominator"] = 4.0 if reduction == "mean" else None
        else:
            y[GONE] = -100 if way == "ignored" else 3
            options["weight"] = c if way == "class weight" else None
        of_both = []
        for rows, more in ((torch.arange(ROWS), of_rows), (KEPT, {})):
            head, bias = torch.linspace(-1, 1, 12).double().reshape(4, 3), torch.linspace(0, 1, 4).double()
            leaves = head.requires_grad_(), bias.requires_grad_()
            try:
                loss = crossent.linear_cross_entropy(x[rows], head, y[rows], linear_bias=bias, **options, **more)
            except RuntimeError as error:
                if "cannot run here" not in str(error):
                    raise
                pytest.skip(str(error))
            of_both.append((loss.detach().sum(), *torch.autograd.grad(loss.sum(), leaves)))
        torch.testing.assert_close(*of_both)


@pytest.mark.parametrize("holds", [0.5, NAN])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "options", "more"), [c for c in _calls() if "sample_weight" not in c.values[2]])
def test_an_infinite_gradient_of_a_row_that_is_not_there(name, options, more, impl, holds):
    """The product with a sample weight is torch's, in which 0 times infinity is nan."""
    for create_graph in (False, True):
        whole, x, _, _ = _setup(name, {**options, "reduction": "none"}, more, "nan", torch.float32, impl)
        x[GONE] = holds
        try:
            losses = whole(x.requires_grad_())
        except RuntimeError as error:
            if "cannot run here" not in str(error):
                raise
            pytest.skip(str(error))
        comes = torch.ones_like(losses).index_fill(0, GONE, torch.inf)
        (grad,) = torch.autograd.grad(losses, x, comes, create_graph=create_graph)
        assert (grad[GONE] == 0).all()
        assert grad[KEPT].isfinite().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("way", ["pos_weight", "weight", "mask", "ignored"])
def test_an_infinite_gradient_of_an_element_that_is_not_there(impl, way):
    for create_graph in (False, True):
        x = torch.linspace(-3, 3, 4 * ROWS).reshape(ROWS, 4).requires_grad_()
        t, zero = torch.linspace(0, 1, 4 * ROWS).reshape(ROWS, 4), torch.ones(ROWS).index_fill(0, GONE, 0.0)[:, None]
        t[GONE] = {"pos_weight": 1.0, "ignored": -1.0}.get(way, 0.5)
        options = {
            "pos_weight": {"pos_weight": zero}, "weight": {"weight": zero}, "mask": {"mask": zero > 0},
            "ignored": {"ignore_index": -1},
        }[way]  # fmt: skip
        if way in ("mask", "ignored") and impl != "eager":
            pytest.skip("goes to torch operations")
        losses = crossent.binary_cross_entropy_with_logits(x, t, reduction="none", impl=impl, **options)
        comes = torch.ones_like(losses).index_fill(0, GONE, torch.inf)
        (grad,) = torch.autograd.grad(losses, x, comes, create_graph=create_graph)
        assert (grad[GONE] == 0).all()
        assert grad[KEPT].isfinite().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("entry", ["loss", "statistics", "head"])
def test_what_a_row_that_is_not_there_adds_to_the_divisor(entry, impl):
    """Nothing, though its class weighs infinitely, as one over its count is where there is none."""
    x, y = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, -100, 1, 0, 2, 1])
    u, weight = torch.ones(ROWS), torch.tensor([1.0, 2.0, torch.inf])
    u[4] = 0.0
    few = crossent.cross_entropy(x[KEPT], y[KEPT], weight)
    options = {"sample_weight": u, "impl": impl}
    if entry == "loss":
        z = x.clone().requires_grad_()
        got = crossent.cross_entropy(z, y, weight, **options)
        assert torch.autograd.grad(got, z)[0].isfinite().all()
    elif entry == "statistics":
        got = crossent.cross_entropy_stats(x, y, weight, reduction="mean", **options).loss
    else:
        got = crossent.linear_cross_entropy(x, torch.eye(3), y, weight=weight, max_bytes=64, **options)
    torch.testing.assert_close(got, few)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("max_bytes", [64, 1 << 28])
def test_an_infinite_gradient_of_a_sum_leaves_out_rows_that_are_not_there(reduction, max_bytes):
    x, w = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0)), torch.randn(3, FEATURES)
    y = torch.tensor([0, -100, 1, 2, -100, 0])
    for loss, z in (
        (lambda z: crossent.linear_cross_entropy(z, w, y, reduction=reduction, max_bytes=max_bytes), x),
        (lambda z: crossent.cross_entropy(z, y, reduction=reduction), x[:, :3].clone()),
    ):
        (grad,) = torch.autograd.grad(loss(z.requires_grad_()), z, torch.tensor(torch.inf))
        assert (grad[GONE] == 0).all()
        assert not grad[KEPT].isfinite().any()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_infinite_gradient_reaches_what_a_row_without_weight_may_learn(impl):
    """A target of 0 on every class weighs nothing, and would cost if it were more than that."""
    x, t = torch.randn(2, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0]], requires_grad=True)
    comes = torch.tensor([torch.inf, 1.0])
    losses = crossent.cross_entropy(x, t, reduction="none", impl=impl)
    assert (torch.autograd.grad(losses, t, comes)[0][0] == torch.inf).all()
    z = x.clone().requires_grad_()
    losses = crossent.cross_entropy(z, t.detach(), reduction="none", z_loss=0.1, impl=impl)
    assert not (torch.autograd.grad(losses, z, comes)[0][0] == 0).any()  # such a row has a z-loss
    yes = torch.ones(2, requires_grad=True)
    losses = crossent.binary_cross_entropy_with_logits(
        torch.zeros(2), yes, pos_weight=torch.zeros(2), reduction="none", impl=impl
    )
    assert torch.autograd.grad(losses, yes, comes)[0][0] == -torch.inf


@pytest.mark.parametrize("garbage", ["nan", "inf", "mixed"])
@pytest.mark.parametrize(("name", "options", "more"), _calls())
def test_further_derivatives(name, options, more, garbage):
    dtype = torch.float64
    whole, x, kept, few = _setup(name, options, more, garbage, dtype, "eager")
    along = torch.linspace(-1, 1, x.numel(), dtype=dtype).reshape(x.shape)
    second = []
    for loss, z, v in ((whole, x, along), (kept, few, along[KEPT])):
        z = z.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z, create_graph=True)
        second.append(torch.autograd.grad((grad * v).sum(), z)[0])
    torch.testing.assert_close(second[0][KEPT], second[1])
    assert (second[0][GONE] == 0).all()
    tangents = [torch.func.jvp(loss, (z,), (v,))[1] for loss, z, v in ((whole, x, along), (kept, few, along[KEPT]))]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("way", ["sample_weight", "weight", "mask", "ignored"])
def test_binary(impl, garbage, way):
    for dtype in (torch.float64, torch.float32):
        x = torch.randn(ROWS, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
        t = torch.linspace(0, 1, 4 * ROWS, dtype=dtype).reshape(ROWS, 4)
        x[GONE, :2], x[GONE, 2:] = GARBAGE[garbage]
        zero = torch.ones(ROWS, dtype=dtype).index_fill(0, GONE, 0.0)
        if way == "ignored":
            t[GONE] = -1.0
        options = {
            "sample_weight": {"sample_weight": zero}, "weight": {"weight": zero[:, None], "reduction": "sum"},
            "mask": {"mask": zero[:, None] > 0}, "ignored": {"ignore_index": -1},
        }[way]  # fmt: skip
        if way in ("mask", "ignored") and impl != "eager":
            pytest.skip("goes to torch operations")
        whole, few = (
            (x.requires_grad_(), t.requires_grad_()),
            (x[KEPT].detach().requires_grad_(), t[KEPT].detach().requires_grad_()),
        )
        loss = crossent.binary_cross_entropy_with_logits(*whole, impl=impl, **options)
        expected = crossent.binary_cross_entropy_with_logits(
            *few, impl=impl, reduction=options.get("reduction", "mean")
        )
        torch.testing.assert_close(loss, expected)
        for got, right in zip(torch.autograd.grad(loss, whole), torch.autograd.grad(expected, few), strict=True):
            torch.testing.assert_close(got[KEPT], right)
            assert (got[GONE] == 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_a_row_that_allows_no_class(impl, soft):
    x, mask = (
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
        torch.tensor([[True] * 5, [False] * 5, [True] * 5]),
    )
    y = torch.softmax(torch.randn(3, 5, dtype=torch.float64), 1) if soft else torch.tensor([0, 1, 2])
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"penalty": crossent.Focal()}):
        for reduction in ("sum", "none", "mean"):
            loss = crossent.cross_entropy(x, y, class_mask=mask, reduction=reduction, **options)
            few = crossent.cross_entropy(x[[0, 2]], y[[0, 2]], reduction=reduction, **options)
            if reduction == "none":
                assert loss[1] == 0
                loss = loss[[0, 2]]
            elif soft and reduction == "mean":
                few = few * 2 / 2
            torch.testing.assert_close(loss, few)
            (grad,) = torch.autograd.grad(loss.sum(), x)
            torch.testing.assert_close(grad, torch.autograd.grad(few.sum(), x)[0])
    nobody = crossent.cross_entropy(
        x, y, class_mask=torch.zeros(5, dtype=torch.bool), reduction="none", impl=None if soft else impl
    )
    assert (nobody == 0).all()
    stats = crossent.cross_entropy_stats(x, y, class_mask=mask)
    assert stats.count.tolist() == [1, 0, 1]
    assert stats.loss[1] == stats.lse[1] == stats.entropy[1] == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "entry", ["cross_entropy", "long rows", "head with few logits", "head in blocks", "stats", "module"]
)
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_a_mean_over_no_weight(impl, entry, empty):
    """Smoothing where every target has class weight 0: as any mean over nothing, nan with a gradient of 0."""
    classes = ENTRIES[entry].classes
    x, _ = _arguments(ENTRIES[entry], entry, [0.0, 1.0], torch.float64)
    x.requires_grad_()
    weight = torch.ones(classes, dtype=torch.float64)
    weight[2] = 0
    y = torch.full((ROWS,), 2)
    if entry == "stats":
        x.requires_grad_(impl == "eager")  # the kernels refuse statistics that are to be differentiated
    loss = ENTRIES[entry].loss(x, y, weight=weight, label_smoothing=0.1, empty=empty, impl=impl)
    assert loss.isnan() if empty == "nan" else loss == 0
    if x.requires_grad:
        (grad,) = torch.autograd.grad(loss, x)
        assert (grad == 0).all()


def test_a_learned_weight_of_zero_has_a_derivative():
    """Reweighting starts at 0 and differentiates there: a row that weighs nothing is not forgotten."""
    x, y = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3])
    u = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    rows = crossent.cross_entropy(x, y, reduction="none")
    loss = crossent.cross_entropy(x, y, sample_weight=u, reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(loss, u, retain_graph=True)[0], rows)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    assert (grad == 0).all()
    along = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
    of_rows = torch.autograd.grad(crossent.cross_entropy(x, y, reduction="sum"), x)[0]
    torch.testing.assert_close(torch.autograd.grad((grad * along).sum(), u)[0], (of_rows * along).sum(1))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_of_classes_without_weight_has_no_gradient(impl, garbage, dtype):
    """Whatever the row holds: each class adds ``c_k (-log p_k)`` to the gradient of its target, and 0 of anything is 0."""
    x = torch.tensor([[0.5, 1.0, -1.0, 2.0], [*GARBAGE[garbage], 0.0, 0.1]], dtype=dtype)
    t = torch.full((2, 4), 0.25, requires_grad=True)
    for reduction in ("none", "sum"):
        loss = crossent.cross_entropy(x, t, torch.zeros(4), reduction=reduction, impl=impl)
        (grad,) = torch.autograd.grad(loss.sum(), t)
        assert torch.equal(grad, torch.zeros(2, 4))
