"""Weights of rows in sums and means, which every implementation takes in the pass that forms the gradient."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import IMPLEMENTATIONS

import crossent
from crossent import impl as implementations
from crossent.core.target import Target

EPS = {torch.float32: 2e-6, torch.float64: 4e-15, torch.bfloat16: 2**-8, torch.float16: 2**-10}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
MEMBERS = {
    "plain": {},
    "weight": {"weight": torch.linspace(0.5, 2, 70, dtype=torch.float64)},
    "smoothed": {"label_smoothing": 0.1},
    "penalised": {"penalty": crossent.Focal(2.0), "label_smoothing": 0.2},
    "capped": {"softcap": 5.0, "temperature": 2.0, "z_loss": 0.1},
    "masked": {"class_mask": torch.arange(70) % 7 != 3, "logit_bias": torch.linspace(-1, 1, 70, dtype=torch.float64)},
}
SHAPES = [(40, 70), (5, 70, 9), (3, 70, 4, 4)]


def calls(*lists, of_triton):
    """Combine an implementation with one of each list; Triton's interpreter is slow, and gets one of so many of them."""
    places = [*product(*(range(len(each)) for each in lists))]
    return [
        (impl, *(each[i] for each, i in zip(lists, at, strict=True)))
        for impl in IMPLEMENTATIONS
        for at in places
        if impl != "triton" or sum(at) % of_triton == 0
    ]


each_implementation = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum"])


def weighted(shape, dtype, soft, options, impl="eager"):
    """Return logits, a target and weights of rows, of which some are 0, and the options in the dtype of sums.

    Triton's interpreter takes a millisecond an operation, and gets fewer rows.
    """
    if impl == "triton":
        shape = (min(shape[0], 4 if options else 6), *(min(size, 2) if i else size for i, size in enumerate(shape[1:])))
        shape = (shape[0], 70 if options or len(shape) < 3 else 9, *shape[2:])
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype).requires_grad_()
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    if "class_mask" in options:
        y = y + (y % 7 == 3).long()
    y.view(-1)[2::7] = -100
    wide = torch.promote_types(dtype, torch.float32)
    u = torch.linspace(1, 3, y.numel(), dtype=wide).view(y.shape)
    u.view(-1)[::5] = 0
    t = torch.rand(shape, generator=generator).to(dtype)
    if "class_mask" in options:
        t = t * options["class_mask"].view(-1, *[1] * (len(shape) - 2))
    options = {
        k: v.to(wide) if isinstance(v, torch.Tensor) and v.dtype != torch.bool else v for k, v in options.items()
    }
    return x, t if soft else y, u, options


def gradient(loss, x, factor=1.0, **more):
    return torch.autograd.grad(loss, x, torch.tensor(factor, dtype=loss.dtype), **more)[0]


def by_hand(x, target, u, reduction, options):
    """Weigh the losses of rows in torch operations."""
    losses = crossent.cross_entropy(x, target, reduction="none", out_dtype=u.dtype, impl="eager", **options)
    total = (u * losses).sum()
    if reduction == "sum":
        return total
    weight = options.get("weight")
    if target.is_floating_point():
        return total / u.sum()
    of_rows = (target != -100).to(u.dtype) if weight is None else weight[target.clamp(min=0)] * (target != -100)
    return total / (u * of_rows).sum()


@pytest.mark.parametrize(
    ("impl", "reduction", "soft", "shape", "member", "dtype"),
    calls(["mean", "sum"], [False, True], SHAPES, [*MEMBERS], DTYPES, of_triton=6),
)
def test_weights_of_rows(impl, reduction, soft, shape, member, dtype):
    x, target, u, options = weighted(shape, dtype, soft, MEMBERS[member], impl)
    call = {"reduction": reduction, "sample_weight": u, "impl": impl, **options}
    with torch.no_grad():
        forward = crossent.cross_entropy(x, target, **call)
    loss = crossent.cross_entropy(x, target, **call)
    assert torch.equal(loss, forward)
    expected = by_hand(x, target, u, reduction, options)
    # Of half precision the kernels for GPUs round each exponent once: tests/closeness.py.
    rtol = 8 * EPS[dtype] if impl != "triton" else max(8 * EPS[dtype], 1e-5 if dtype != torch.float64 else 0)
    torch.testing.assert_close(loss.to(u.dtype), expected, rtol=rtol, atol=0)
    for factor in (1.0, 1 / 3):
        ours, right = (gradient(each, x, factor, retain_graph=True) for each in (loss, expected))
        size = float(right.abs().max())
        torch.testing.assert_close(ours, right, rtol=8 * EPS[dtype], atol=EPS[dtype] * size / 8)
    assert (ours.movedim(1, -1)[u == 0] == 0).all()


@each_implementation
@pytest.mark.parametrize("soft", [False, True])
def test_weights_of_rows_take_one_pass(impl, soft, monkeypatch):
    """One that forms the gradient; where nobody may look at the gradient that comes, it is looked at on the device."""
    x, target, u, _ = weighted((40, 70), torch.float32, soft, {}, impl)
    passes, kind = [], type(implementations.load(impl))
    for name in ("cross_entropy_forward", "cross_entropy_backward", "cross_entropy_sum"):
        compute = getattr(kind, name)
        monkeypatch.setattr(
            kind, name, staticmethod(lambda *args, n=name, c=compute, **more: passes.append(n) or c(*args, **more))
        )
    gradient(crossent.cross_entropy(x, target, sample_weight=u, impl=impl), x)
    with torch.no_grad():
        crossent.cross_entropy(x, target, sample_weight=u, impl=impl)
    assert passes == ["cross_entropy_sum"] * 2


@each_implementation
@each_reduction
def test_weights_of_rows_in_second_derivatives_and_forward_mode(impl, reduction):
    x, y, u, _ = weighted((6, 5), torch.float64, False, {}, impl)
    loss = lambda z: crossent.cross_entropy(z, y, reduction=reduction, sample_weight=u, impl=impl)  # noqa: E731
    if impl != "triton":  # of which a hundred calls take a minute
        assert torch.autograd.gradgradcheck(loss, x)
    expected = lambda z: by_hand(z, y, u, reduction, {})  # noqa: E731
    tangent = torch.ones_like(x).cumsum(1)
    for ours, right in zip(
        torch.func.jvp(loss, (x,), (tangent,)), torch.func.jvp(expected, (x,), (tangent,)), strict=True
    ):
        torch.testing.assert_close(ours, right)
    of_both = []
    for each in (loss, expected):
        (first,) = torch.autograd.grad(each(x), x, create_graph=True)
        of_both.append((first.detach(), *torch.autograd.grad(first.square().sum(), x)))
    torch.testing.assert_close(*of_both)
    assert of_both[0][1].abs().sum() > 0


@each_implementation
def test_weights_of_rows_that_are_learned_have_a_gradient(impl):
    x, y, u, _ = weighted((6, 5), torch.float64, False, {}, impl)
    u.requires_grad_()
    loss = crossent.cross_entropy(x, y, sample_weight=u, impl=impl)
    expected = by_hand(x, y, u, "mean", {})
    for ours, right in zip(torch.autograd.grad(loss, (x, u)), torch.autograd.grad(expected, (x, u)), strict=True):
        torch.testing.assert_close(ours, right)


@each_implementation
def test_weights_of_rows_that_are_changed_in_between_are_seen(impl):
    x, y, u, _ = weighted((40, 70), torch.float32, False, {}, impl)
    loss = crossent.cross_entropy(x, y, sample_weight=u, impl=impl)
    gradient(loss, x, retain_graph=True)
    u.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(loss, x)


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_reduction
@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
@pytest.mark.parametrize("create_graph", [False, True])
def test_no_gradient_reaches_a_row_of_weight_0(factor, reduction, create_graph, dtype, impl):
    x, y, u, _ = weighted((40, 70), dtype, False, {}, impl)
    loss = crossent.cross_entropy(x, y, reduction=reduction, sample_weight=u, impl=impl)
    grad = gradient(loss, x, factor, create_graph=create_graph)
    assert (grad[u == 0] == 0).all()
    assert not grad[(u != 0) & (y != -100)].isfinite().any()


@pytest.mark.parametrize(
    ("impl", "reduction", "soft", "member", "dtype"),
    calls(["mean", "sum"], [False, True], [*MEMBERS], DTYPES, of_triton=4),
)
def test_a_row_of_weight_0_may_hold_anything(impl, reduction, soft, member, dtype):
    """Its logits and its target are no numbers, and what it adds to loss, divisor and gradient is 0."""
    x, target, u, options = weighted((40, 70), dtype, soft, MEMBERS[member], impl)
    garbage, nothing = x.detach().clone(), u == 0
    garbage[nothing] = torch.nan
    garbage[nothing, 1] = torch.inf
    call = {"reduction": reduction, "sample_weight": u, "impl": impl, **options}
    results = []
    for logits in (x.detach(), garbage):
        for how in ({}, {"inplace_backward": True}, {"inplace_forward": True}):
            leaf = logits.clone().requires_grad_()
            loss = crossent.cross_entropy(leaf * 1, target, **call, **how)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for loss, grad in results:
        assert loss.isfinite()
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(grad, results[0][1])
        assert (grad[nothing] == 0).all()


@each_implementation
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -1.0])
@each_reduction
def test_unusual_weights_of_rows_give_what_the_losses_of_rows_would(reduction, value, impl):
    """A mean over infinity is nan and has a gradient of 0, as one over nothing, which autograd would make nan."""
    x, y, u, _ = weighted((40, 70), torch.float32, False, {}, impl)
    u[1] = value
    call = {"reduction": reduction, "sample_weight": u, "impl": impl}
    ours = crossent.cross_entropy(x, y, **call)
    by_rows = crossent.cross_entropy(x, y, **call | {"sample_weight": u.clone().requires_grad_()})
    torch.testing.assert_close(ours, by_rows, equal_nan=True)
    grad, right = gradient(ours, x), gradient(by_rows, x)
    if reduction == "mean" and abs(value) == torch.inf:
        assert (grad == 0).all()
    else:
        torch.testing.assert_close(grad, right.masked_fill((u == 0).unsqueeze(1), 0.0), equal_nan=True)
    assert (grad[u == 0] == 0).all()


@each_implementation
def test_weights_of_rows_that_sum_to_nothing(impl):
    x, y, u, _ = weighted((40, 70), torch.float32, False, {}, impl)
    u.zero_()
    for empty in ("nan", "zero"):
        loss = crossent.cross_entropy(x, y, sample_weight=u, empty=empty, impl=impl)
        assert loss.isnan() if empty == "nan" else loss == 0
        assert (gradient(loss, x) == 0).all()
    total = crossent.cross_entropy(x, y, sample_weight=u + 1, denominator=7.0, impl=impl)
    torch.testing.assert_close(total, by_hand(x, y, u + 1, "sum", {}) / 7.0)
    torch.testing.assert_close(gradient(total, x), gradient(by_hand(x, y, u + 1, "sum", {}) / 7.0, x))


@each_implementation
@pytest.mark.parametrize("how", ["inplace_backward", "inplace_forward"])
@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 7), (6, 1), (6, 5)])
def test_weights_of_rows_in_the_memory_of_the_logits(shape, how, impl):
    """Where it would be written over, the gradient is formed beside the logits."""
    x = torch.linspace(-1, 2, 5 * 7 * 6)[: torch.Size(shape).numel()].view(shape).requires_grad_()
    y = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    expected = crossent.cross_entropy(x, y, sample_weight=x.detach()[:, 0].clone(), reduction="sum", impl=impl)
    logits = x * 1
    loss = crossent.cross_entropy(
        logits, y, sample_weight=logits.detach()[:, 0], reduction="sum", impl=impl, **{how: True}
    )
    assert torch.equal(loss, expected)
    torch.testing.assert_close(gradient(loss, x), gradient(expected, x))


@each_implementation
@pytest.mark.parametrize("strict", [False, True])
@each_reduction
def test_as_many_rows_of_their_own_weight_as_there_happen_to_be_are_exported(strict, reduction, impl):
    class Picking(torch.nn.Module):
        def forward(self, x, y, u):
            keep = u > 0
            return crossent.cross_entropy(x[keep], y[keep], sample_weight=u[keep], reduction=reduction, impl=impl)

    if impl == "eager" and strict:
        pytest.skip("torch operations that Dynamo follows ask whether there are rows at all")
    x, y, u, _ = weighted((40, 70), torch.float32, False, {}, impl)
    exported = torch.export.export(Picking(), (x.detach(), y, u), strict=strict).module()
    for weights in (u, u.flip(0), u * (u > 2)):
        torch.testing.assert_close(exported(x.detach(), y, weights), Picking()(x.detach(), y, weights))


@each_implementation
@each_reduction
def test_weights_of_rows_in_compiled_code(reduction, impl):
    x, y, u, _ = weighted((40, 70), torch.float32, False, {}, impl)
    call = lambda x, u: crossent.cross_entropy(x, y, sample_weight=u, reduction=reduction, impl=impl)  # noqa: E731
    loss, expected = torch.compile(call, fullgraph=True, backend="aot_eager")(x, u), call(x, u)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, x), gradient(expected, x))


def test_no_gradient_is_lost_where_an_implementation_forms_none_with_the_loss(monkeypatch):
    """As torch operations do not on a GPU, where the gradient that comes cannot be looked at."""
    x, y, u, _ = weighted((40, 70), torch.float32, False, {})
    monkeypatch.setattr(type(implementations.load("eager")), "fuses", lambda *_: False)
    loss = crossent.cross_entropy(x, y, sample_weight=u, impl="eager")
    torch.testing.assert_close(gradient(loss, x), gradient(by_hand(x, y, u, "mean", {}), x))


def test_what_rows_weigh_together():
    y, u = torch.tensor([0, 1, -100, 2]), torch.tensor([2.0, 0.0, 5.0, 1.0])
    c, x = torch.tensor([0.5, torch.inf, 1.0]), torch.zeros(4, 3)
    assert Target(y, c).divisor(x, u) == 2.0
    assert Target(y).divisor(x, u) == 3.0
    assert Target(torch.rand(4, 3), valid=y != 2).divisor(x, u) == 7.0
