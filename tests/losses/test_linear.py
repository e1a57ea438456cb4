"""The head and its loss in blocks: held to the specification at every number of blocks, and to every way of differentiating."""

import itertools
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from closeness import assert_close, assert_close_in_family, assert_no_worse
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import crossent
from crossent import Focal, Teacher, linear_cross_entropy, linear_cross_entropy_stats, linear_plan, reference
from crossent.core.reduction import dtype_of_sums
from crossent.core.target import Target
from crossent.impl import head as blocks
from crossent.impl import implementations

IMPLS = [name for name, why in implementations().items() if why is None and name != "torch"]  # which has no blocks
N, D, C = 13, 6, 40
SIZES = {1: 1 << 27, 2: 7 * C * 8, 7: 2 * C * 8, 13: 1}  # blocks: max_bytes, in float64 kernels
DOUBLE = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def no_logits_are_few(monkeypatch):
    monkeypatch.setattr("crossent.losses.head_ways.FEW", 0)


def problem(seed=0, soft=False, peaky=1.0):
    rng = np.random.default_rng(seed)
    h, W, b = rng.normal(size=(N, D)) * peaky, rng.normal(size=(C, D)), rng.normal(size=C)
    y = rng.integers(C, size=N)
    y[3] = y[9] = -100
    target = rng.random((N, C)) * (rng.random((N, C)) > 0.8) if soft else y
    return h, W, b, target


def tensors(*arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]


SETTINGS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "weighted": {"weight": np.linspace(0.2, 2, C)},
    "weighted and smoothed": {"weight": np.linspace(0.2, 2, C), "label_smoothing": 0.1},
    "sample weights": {"sample_weight": np.linspace(0, 2, N)},
    "denominator": {"denominator": 5.0},
    "temperature": {"temperature": 2.0},
    "softcap": {"softcap": 3.0},
    "bias": {"logit_bias": np.linspace(-1, 1, C)},
    "bias of each logit": {"logit_bias": np.linspace(-1, 1, N * C).reshape(N, C)},
    "mask": {"class_mask": np.arange(C) % 3 > 0},
    "z_loss": {"z_loss": 0.01},
    "penalty": {"penalty": 2.0},
    "everything": {
        "weight": np.linspace(0.2, 2, C), "label_smoothing": 0.1, "sample_weight": np.linspace(0, 2, N), "denominator": 5.0,
        "temperature": 2.0, "softcap": 3.0, "logit_bias": np.linspace(-1, 1, C), "z_loss": 0.01, "penalty": 2.0,
    },
}  # fmt: skip


def ours(settings, dtype=torch.float64):
    """Write the settings of the specification as the library takes them."""
    made = {
        k: torch.tensor(v, dtype=torch.bool if v.dtype == bool else dtype) if isinstance(v, np.ndarray) else v
        for k, v in settings.items()
    }
    return made | ({"penalty": Focal(settings["penalty"])} if "penalty" in settings else {})


def spec(settings):
    return settings | ({"penalty": reference.focal(settings["penalty"])} if "penalty" in settings else {})


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("impl", IMPLS)
def test_value_and_gradients(impl, count, name, soft):
    settings = SETTINGS[name]
    if impl == "native" and name == "bias of each logit":
        impl = None  # the kernels leave it to torch operations
    for reduction in ("none", "sum", "mean"):
        given = {k: v for k, v in settings.items() if k != "denominator" or reduction == "mean"}
        h, W, b, target = problem(soft=soft, peaky=3.0)
        if name == "mask":
            target = np.where(given["class_mask"], target, 0.0) if soft else np.where(target % 3 == 0, 1, target)
        exact = reference.linear_cross_entropy(h, W, target, b, reduction=reduction, **spec(given))
        th, tW, tb = tensors(h, W, b)
        call = {"linear_bias": tb, "reduction": reduction, "impl": impl, "max_bytes": SIZES[count], **ours(given)}
        loss = linear_cross_entropy(th, tW, torch.tensor(target), **call)
        assert_close_in_family(loss, exact.loss, torch.float64)
        grads = torch.autograd.grad(loss.sum(), (th, tW, tb))
        for ours_, theirs in zip(grads, exact[1:], strict=True):
            assert_close_in_family(ours_, theirs, torch.float64)


@pytest.mark.skipif("native" not in IMPLS, reason="counts the kernels' blocks")
def test_the_counts_of_blocks_are_those_meant():
    h, W, b, _ = tensors(*problem()[:3], np.zeros(1))
    for count, size in SIZES.items():
        y = torch.zeros(N, dtype=torch.long)
        assert linear_plan(h, W, y, linear_bias=b, max_bytes=size).blocks == count


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_lower_precision_is_that_of_one_product(impl, dtype, reduction):
    h, W, b, y = problem()
    h, W, b = (torch.tensor(a).to(dtype).double().numpy() for a in (h, W, b))
    exact = reference.linear_cross_entropy(h, W, y, b, reduction=reduction)
    th, tW, tb = tensors(h, W, b, dtype=dtype)

    def results(loss):
        return loss, *torch.autograd.grad(loss.sum(), (th, tW, tb))

    plain = results(crossent.cross_entropy(F.linear(th, tW, tb), torch.tensor(y), reduction=reduction))
    for size in (1 << 27, 4 * C * 2, 1):
        loss = linear_cross_entropy(
            th, tW, torch.tensor(y), linear_bias=tb, reduction=reduction, impl=impl, max_bytes=size
        )
        assert loss.dtype == dtype
        assert_no_worse(results(loss), plain, exact, dtype, factor=1.2)  # it is the same computation, in blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_of_the_heads_gradient_does_not_grow_with_the_blocks(dtype):
    torch.manual_seed(0)
    n, d, c = 512, 32, 300
    h, W = torch.randn(n, d).to(dtype).requires_grad_(), torch.randn(c, d).to(dtype).requires_grad_()
    y = torch.randint(c, (n,))
    logits = (h.double() @ W.double().t()).to(dtype)  # the same for all, so that the sums alone differ
    g = torch.autograd.grad(crossent.cross_entropy(logits.requires_grad_(), y, reduction="sum"), logits)[0]
    exact = g.double().t() @ h.detach().double()
    usual = ((g.t() @ h.detach()).double() - exact).norm()
    for count in (1, 8, 64, 512):
        step = n // count
        head, plan = blocks.Head(h.detach(), W.detach(), None, (c,)), None
        gradients = blocks.Gradients(head, (False, True, False), IMPLS[-1], count, False)
        for k in range(0, n, step):
            gradients.add(blocks.Block(slice(k, k + step), h.detach()[k : k + step], logits, plan), g[k : k + step])
        weight = gradients.finish()[1]
        assert weight.dtype == dtype
        assert (weight.double() - exact).norm() <= 1.2 * usual


def test_half_precision_losses_are_summed_in_float32():
    torch.manual_seed(0)
    h, W = torch.randn(4096, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    y = torch.randint(50, (4096,))
    exact = F.cross_entropy(F.linear(h, W).double(), y)
    for size in (1 << 27, 64 * 50 * 2, 1):
        loss = linear_cross_entropy(h, W, y, out_dtype=torch.float32, max_bytes=size)
        assert abs(loss - exact) < 1e-5 * exact


# --- derivatives of any kind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_derivatives(reduction):
    h, W, b, y = problem()
    inputs = tensors(h[:5], W, b)

    def loss(*inputs):
        return linear_cross_entropy(
            *inputs[:2], torch.tensor(y[:5]), linear_bias=inputs[2], reduction=reduction, max_bytes=C * 8
        )

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True, check_backward_ad=False)


def test_statistics_are_differentiable():
    h, W, b, y = problem()
    inputs = tensors(h[:5], W, b)
    y = torch.tensor(y[:5])

    def told(*inputs):
        return linear_cross_entropy_stats(inputs[0], inputs[1], y, linear_bias=inputs[2], max_bytes=C * 8)[:4]

    assert torch.autograd.gradcheck(told, inputs)
    for i in range(4):
        assert torch.autograd.gradgradcheck(lambda *x, i=i: told(*x)[i], inputs)


def test_functional_transforms():
    h, W, b, y = problem()
    y = torch.tensor(y)
    h, W, b = (torch.tensor(a) for a in (h, W, b))

    def loss(h, y):
        return linear_cross_entropy(h, W, y, linear_bias=b, reduction="sum")

    plain = linear_cross_entropy(h.requires_grad_(), W, y, linear_bias=b, reduction="none")
    (grad,) = torch.autograd.grad(plain.sum(), h)
    h = h.detach()
    torch.testing.assert_close(torch.vmap(loss)(h, y), plain.detach())
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(h, y), grad)
    tangent = torch.randn_like(h)
    torch.testing.assert_close(torch.func.jvp(lambda h: loss(h, y), (h,), (tangent,))[1], (grad * tangent).sum())
    hessian = torch.func.hessian(loss)(h[0], y[0])
    assert hessian.shape == (D, D)
    assert hessian.abs().max() > 0


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_incoming_gradient_and_a_second_backward(reduction):
    h, W, b, y = problem()
    th, tW, tb = tensors(h, W, b)
    loss = linear_cross_entropy(th, tW, torch.tensor(y), linear_bias=tb, reduction=reduction, max_bytes=C * 8 * 4).sum()
    once = torch.autograd.grad(loss, (th, tW, tb), retain_graph=True)
    kept = [g.clone() for g in once]
    again = torch.autograd.grad(loss, (th, tW, tb), torch.tensor(-3.0, **DOUBLE), retain_graph=True)
    last = torch.autograd.grad(loss, (th, tW, tb), torch.tensor(2.0, **DOUBLE))
    for a, before, b_, c in zip(once, kept, again, last, strict=True):
        torch.testing.assert_close(a, before, rtol=0, atol=0)
        torch.testing.assert_close(b_, -3 * before)
        torch.testing.assert_close(c, 2 * before)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, th)


def test_gradients_that_are_kept_are_not_shared():
    th, tW, tb = tensors(*problem()[:3])
    loss = linear_cross_entropy(th, tW, torch.zeros(N, dtype=torch.long), linear_bias=tb)
    loss.backward(retain_graph=True)
    first = tW.grad.clone()
    tW.grad.zero_()
    loss.backward()
    torch.testing.assert_close(tW.grad, first)


@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=3))[:-1], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_what_is_asked_is_computed(frozen, reduction, monkeypatch):
    inputs = tensors(*problem()[:3])
    for x, is_frozen in zip(inputs, frozen, strict=True):
        x.requires_grad_(not is_frozen)
    needs, init = [], blocks.Gradients.__init__
    monkeypatch.setattr(
        blocks.Gradients,
        "__init__",
        lambda self, head, n, *rest: (needs.append(tuple(n)), init(self, head, n, *rest))[1],
    )
    y = torch.zeros(N, dtype=torch.long)
    linear_cross_entropy(*inputs[:2], y, linear_bias=inputs[2], reduction=reduction).sum().backward()
    assert needs == [tuple(not is_frozen for is_frozen in frozen)]
    exact = reference.linear_cross_entropy(*problem()[:2], y.numpy(), problem()[2], reduction=reduction)
    for x, is_frozen, grad in zip(inputs, frozen, exact[1:], strict=True):
        assert (x.grad is None) == is_frozen
        if not is_frozen:
            assert_close(x.grad, grad, torch.float64)


def test_evaluation_forms_no_gradient(monkeypatch):
    monkeypatch.setattr(blocks, "Gradients", None)
    th, tW, _ = tensors(*problem()[:3])
    y = torch.zeros(N, dtype=torch.long)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(th, tW, y), F.cross_entropy(F.linear(th, tW), y))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_compiles_to_one_graph(reduction):
    torch._dynamo.reset()
    h, W, b, y = problem()
    inputs = tensors(h, W, b)

    y = torch.tensor(y)

    def loss(h, W, b):
        return linear_cross_entropy(h * 1.0, W, y, linear_bias=b, reduction=reduction, label_smoothing=0.1)

    eager = torch.autograd.grad(loss(*inputs).sum(), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, e in zip(torch.autograd.grad(compiled(*inputs).sum() * 2, inputs), eager, strict=True):
        torch.testing.assert_close(a, 2 * e)


def test_the_operators_keep_their_promises():
    from crossent.ops.linear import flat

    h, W, b, y = problem()
    head = blocks.Head(torch.tensor(h), torch.tensor(W), torch.tensor(b), (C,))
    plan = blocks.Plan(Target(torch.tensor(y)), None, 1 << 20, "eager")
    said = flat(head, plan)
    for op, arguments in {
        "linear_cross_entropy": (None, torch.ones((), **DOUBLE), (True, True, True)),
        "linear_rows": (),
        "linear_rows_backward": (torch.ones(N, **DOUBLE), (True, False, True)),
        "linear_statistics": (),
        "linear_statistics_backward": ([torch.ones(N, **DOUBLE)] * 4, (True, False, True)),
    }.items():
        torch.library.opcheck(
            getattr(torch.ops.crossent, op).default, (*said, *arguments), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_gives_what_eager_gives(dtype):
    h, W, b, y = problem()
    y = torch.tensor(y)
    inputs = tensors(h, W, b, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*inputs[:2], y, linear_bias=inputs[2], max_bytes=1)
        eager = F.cross_entropy(F.linear(*inputs), y)
    assert loss.dtype == eager.dtype
    torch.testing.assert_close(loss, eager, rtol=1e-6, atol=0)
    for a, e in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(eager, inputs), strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=2e-2, atol=2e-3)  # products of bfloat16, added in another order


def test_checkpointing_and_tied_weights():
    torch.manual_seed(0)
    table = torch.randn(C, D, requires_grad=True)
    tokens = torch.randint(C, (3, 5))

    def model(table, loss):
        hidden = torch.utils.checkpoint.checkpoint(lambda e: e.tanh(), F.embedding(tokens, table), use_reentrant=False)
        return torch.utils.checkpoint.checkpoint(loss, hidden, table, use_reentrant=False)

    def plain(h, W):
        return F.cross_entropy(F.linear(h, W)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    (expected,) = torch.autograd.grad(model(table, plain), table)
    (grad,) = torch.autograd.grad(
        model(table, lambda h, W: linear_cross_entropy(h, W, tokens, shift=1, max_bytes=1)), table
    )
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("what", ["soft", "weight", "logit_bias", "sample_weight", "denominator"])
def test_forward_mode_along_anything(what, reduction):
    h, W, _, t = (torch.tensor(a) for a in problem(soft=True))
    if what == "denominator" and reduction == "none":
        pytest.skip("only a mean has a denominator")
    of = {"soft": t, "denominator": torch.tensor(3.0, **DOUBLE), "sample_weight": torch.rand(N, **DOUBLE)}
    at = of.get(what, torch.rand(C, **DOUBLE))

    def tangent(loss):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(at, torch.ones_like(at))
            target, options = (dual, {}) if what == "soft" else (t, {what: dual})
            return torch.autograd.forward_ad.unpack_dual(loss(target, reduction=reduction, **options)).tangent

    ours_ = tangent(lambda target, **options: linear_cross_entropy(h, W, target, **options))
    torch.testing.assert_close(
        ours_, tangent(lambda target, **options: crossent.cross_entropy(h @ W.t(), target, **options))
    )
    assert ours_.abs().max() > 0


def test_gradients_of_float16_outlive_a_loss_scaler():
    torch.manual_seed(0)
    h, W = torch.randn(2048, 16).half().requires_grad_(), (torch.randn(3000, 16) / 16).half().requires_grad_()
    y = torch.randint(3000, (2048,))

    def errors(loss):
        grads = torch.autograd.grad(loss * 65536, (h, W))
        return [((a.double() - e).norm() / e.norm()).item() for a, e in zip(grads, exact, strict=True)]

    exact = torch.autograd.grad(F.cross_entropy(F.linear(h.double(), W.double()), y) * 65536, (h, W))
    exact = [e.double() for e in exact]
    usual = errors(crossent.cross_entropy(F.linear(h, W), y, out_dtype=torch.float32))
    for error, limit in zip(errors(linear_cross_entropy(h, W, y, out_dtype=torch.float32)), usual, strict=True):
        assert error <= 1.2 * limit


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("what", ["target", "sample_weight"])
def test_what_is_modified_before_backward_raises(what, reduction, create_graph):
    h, W, _ = tensors(*problem()[:3])
    given = {"target": torch.zeros(N, dtype=torch.long), "sample_weight": torch.ones(N, **DOUBLE)}
    loss = linear_cross_entropy(h, W, reduction=reduction, **given).sum()
    given[what].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, h, create_graph=create_graph)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_that_is_kept_keeps_nothing_after_backward(reduction):
    h, W, _, t = problem(soft=True)
    (leaf, W), t = tensors(h, W), torch.tensor(t)
    h = leaf * 1
    gone = [weakref.ref(h), weakref.ref(t)]
    loss = linear_cross_entropy(h, W, t, reduction=reduction)
    loss.sum().backward()
    del h, t
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_fake_and_traced(reduction):
    def gradients(h, W):
        loss = linear_cross_entropy(h, W, torch.zeros(N, dtype=torch.long), reduction=reduction)
        return torch.autograd.grad(loss.sum(), (h, W))

    with FakeTensorMode():
        fake = gradients(torch.randn(N, D, requires_grad=True), torch.randn(C, D, requires_grad=True))
    assert [g.shape for g in fake] == [(N, D), (C, D)]
    h, W, _ = tensors(*problem()[:3])
    for a, e in zip(make_fx(gradients)(h, W)(h, W), gradients(h, W), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_an_exported_module_gives_the_loss(reduction):
    module = crossent.LinearCrossEntropyLoss(D, C, bias=True, reduction=reduction)
    h, y = torch.randn(N, D), torch.randint(C, (N,))
    torch.testing.assert_close(torch.export.export(module, (h, y)).module()(h, y), module(h, y))


# --- targets, rows and shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_shift_is_slicing(reduction):
    torch.manual_seed(0)
    hidden, W = torch.randn(3, 7, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    tokens, u = torch.randint(C, (3, 7)), torch.rand(3, 5)
    tokens[1, 4:] = -100
    loss = linear_cross_entropy(hidden, W, tokens, shift=2, reduction=reduction, max_bytes=C * 4, sample_weight=u)
    sliced = linear_cross_entropy(hidden[:, :-2], W, tokens[:, 2:], reduction=reduction, sample_weight=u)
    assert loss.shape == sliced.shape
    torch.testing.assert_close(loss, sliced)
    g = torch.rand_like(loss)
    for a, e in zip(
        torch.autograd.grad(loss, (hidden, W), g), torch.autograd.grad(sliced, (hidden, W), g), strict=True
    ):
        torch.testing.assert_close(a, e)
    stats = linear_cross_entropy_stats(hidden, W, tokens, shift=2, reduction=reduction, sample_weight=u)
    expected = crossent.cross_entropy_stats(
        F.linear(hidden[:, :-2], W), tokens[:, 2:], dim=-1, reduction=reduction, sample_weight=u
    )
    for a, e in zip(stats, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", [1, 1 << 27])
def test_statistics_are_those_of_the_logits(reduction, soft, size):
    h, W, b, target = (torch.tensor(a) for a in problem(soft=soft))
    settings = {"temperature": 2.0, "label_smoothing": 0.1, "reduction": reduction}
    told = linear_cross_entropy_stats(h, W, target, linear_bias=b, max_bytes=size, **settings)
    expected = crossent.cross_entropy_stats(F.linear(h, W, b), target, **settings)
    for name, a, e in zip(told._fields, told, expected, strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape), name
        torch.testing.assert_close(a, e, msg=name)


@pytest.mark.parametrize("size", [1, 1 << 27])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_teacher_is_its_probabilities(size, reduction):
    torch.manual_seed(0)
    h, W = torch.randn(2, 5, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    teacher = Teacher(torch.randn(2, 5, 3), torch.randn(C, 3), torch.randn(C), 2.0)
    t = F.linear(*teacher[:3]).div(2.0).softmax(-1)
    loss = linear_cross_entropy(h, W, teacher, temperature=2.0, max_bytes=size, reduction=reduction)
    dense = linear_cross_entropy(h, W, t, temperature=2.0, max_bytes=size, reduction=reduction)
    torch.testing.assert_close(loss, dense)
    for a, e in zip(torch.autograd.grad(loss.sum(), (h, W)), torch.autograd.grad(dense.sum(), (h, W)), strict=True):
        torch.testing.assert_close(a, e)
    few = linear_cross_entropy(h, W, teacher, temperature=2.0, reduction="none")
    torch.testing.assert_close(
        few, crossent.cross_entropy(F.linear(h, W), t, dim=-1, temperature=2.0, reduction="none")
    )


@pytest.mark.parametrize("behind", [(), (2, 3)])
@pytest.mark.parametrize("n", [0, 3])
def test_a_teacher_of_any_shape(n, behind):
    torch.manual_seed(0)
    h, W = torch.randn(n, D, requires_grad=True), torch.randn(C, *behind, D, requires_grad=True)
    teacher = Teacher(torch.randn(n, 4), torch.randn(C, *behind, 4), torch.randn(C, *behind), 2.0)
    z = F.linear(teacher.input, teacher.weight.flatten(0, -2), teacher.bias.flatten()).view(n, C, *behind)
    loss = linear_cross_entropy(h, W, teacher, reduction="sum", max_bytes=1)
    dense = linear_cross_entropy(h, W, z.div(2.0).softmax(1), reduction="sum", max_bytes=1)
    torch.testing.assert_close(loss, dense)
    torch.testing.assert_close(*(torch.autograd.grad(x, W)[0] for x in (loss, dense)))


@pytest.mark.parametrize("few", [0, 1 << 20])
def test_a_teacher_learns_nothing(few, monkeypatch):
    monkeypatch.setattr("crossent.losses.head_ways.FEW", few)
    h, W, _ = tensors(*problem()[:3])
    teacher = Teacher(torch.randn(N, 4, **DOUBLE).requires_grad_(), torch.randn(C, 4, **DOUBLE).requires_grad_())
    linear_cross_entropy(h, W, teacher).backward()
    assert teacher.input.grad is None
    assert teacher.weight.grad is None


def test_a_teacher_under_autocast():
    h, W, _ = tensors(*problem()[:3], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        teacher = Teacher(torch.randn(N, 4).bfloat16(), torch.randn(C, 4))
        loss = linear_cross_entropy(h, W, teacher)
        expected = crossent.cross_entropy(F.linear(h, W), F.linear(*teacher[:2]).float().softmax(-1))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("few", [0, 1 << 20])
def test_an_index_out_of_range_is_found_in_the_callers_target(few, monkeypatch):
    monkeypatch.setattr("crossent.losses.head_ways.FEW", few)
    h, W, y = torch.randn(3, 4, D), torch.randn(C, D), torch.zeros(3, 4, dtype=torch.long)
    y[1, 2] = C
    for shift, call in itertools.product((0, 1), (linear_cross_entropy, linear_cross_entropy_stats)):
        with pytest.raises(IndexError, match=r"got 40 at target\[1, 2\]:"):
            call(h, W, y, shift=shift)


def test_one_ignored_row_in_many_may_hold_anything():
    h, W, _ = tensors(np.full((N * 4, D), 0.5), *problem()[1:3])
    with torch.no_grad():
        h[3] = torch.nan
    y = torch.zeros(N * 4, dtype=torch.long)
    y[3] = -100
    for reduction in ("none", "mean"):
        loss = linear_cross_entropy(h, W, y, reduction=reduction).sum()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (h, W)))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("behind", [(), (4,)])
@pytest.mark.parametrize("soft", [False, True])
def test_any_leading_dimensions_and_several_losses_a_row(shape, behind, soft):
    if behind and not shape:
        with pytest.raises(RuntimeError, match="needs a batch"):
            linear_cross_entropy(torch.randn(D), torch.randn(C, *behind, D), torch.zeros(behind, dtype=torch.long))
        return
    torch.manual_seed(0)
    h, W = torch.randn(*shape, D, **DOUBLE).requires_grad_(), torch.randn(C, *behind, D, **DOUBLE).requires_grad_()
    b = torch.randn(C, *behind, **DOUBLE).requires_grad_()
    target = torch.rand(*shape, C, *behind, **DOUBLE) if soft else torch.randint(C, (*shape, *behind))
    logits = F.linear(h, W.flatten(0, -2), b.flatten()).view(*shape, C, *behind)
    for reduction in ("none", "mean"):
        loss = linear_cross_entropy(h, W, target, linear_bias=b, reduction=reduction, max_bytes=1)
        eager = crossent.cross_entropy(logits, target, dim=len(shape), reduction=reduction)
        assert loss.shape == eager.shape
        torch.testing.assert_close(loss, eager)
        grads = torch.autograd.grad(eager.sum(), (h, W, b), retain_graph=True)
        for a, e in zip(torch.autograd.grad(loss.sum(), (h, W, b)), grads, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("layout", ["transposed head", "strided states", "expanded states", "strided head"])
def test_any_strides(layout):
    torch.manual_seed(0)
    h, W = torch.randn(N, D, **DOUBLE), torch.randn(C, D, **DOUBLE)
    if layout == "transposed head":
        W = W.t().contiguous().t()
    elif layout == "strided head":
        W = torch.randn(2 * C, D, **DOUBLE)[::2]
    elif layout == "strided states":
        h = torch.randn(N, 2 * D, **DOUBLE)[:, ::2]
    else:
        h = torch.randn(1, D, **DOUBLE).expand(N, D)
    y = torch.randint(C, (N,))
    h, W = h.requires_grad_(), W.requires_grad_()
    grads = torch.autograd.grad(linear_cross_entropy(h, W, y, max_bytes=1), (h, W))
    for a, e in zip(grads, torch.autograd.grad(F.cross_entropy(F.linear(h, W), y), (h, W)), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("layout", ["plain", "transposed", "expanded", "strided"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compilers_are_told_how_gradients_lie(reduction, layout, ignored):
    """A compiler that believes other strides than there are reads other numbers, or stops."""

    def lay_out(t):
        if layout == "expanded":
            return t[:1].expand(t.shape)
        return {"plain": t, "transposed": t.t().contiguous().t(), "strided": t.repeat(1, 2)[:, ::2]}[layout]

    h, W, b = lay_out(torch.randn(N, D)), lay_out(torch.randn(C, D)), torch.randn(2 * C)[::2]
    y = torch.full((N,), -100) if ignored else torch.randint(C, (N,))

    def gradients(h, W, b, y):
        h, W, b = (t.detach().requires_grad_() for t in (h, W, b))
        loss = linear_cross_entropy(h, W, y, linear_bias=b, reduction=reduction, max_bytes=4 * C, empty="zero")
        return torch.autograd.grad(loss.sum(), (h, W, b))

    seen = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.namespace == "crossent":
                results = result if isinstance(result, tuple) else (result,)
                seen.append([(r.shape, r.dtype, r.stride()) for r in results])
            return result

    with Operators():
        gradients(h, W, b, y)
    real, seen = seen, []
    with FakeTensorMode() as fake, Operators():
        gradients(*map(fake.from_tensor, (h, W, b, y)))
    assert real == seen != []


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8])
def test_every_integer_is_an_index(dtype):
    h, W, _, y = problem()
    y = torch.tensor(np.where(y < 0, 0, y))
    h, W = torch.tensor(h), torch.tensor(W)
    assert linear_cross_entropy(h, W, y.to(dtype)) == linear_cross_entropy(h, W, y)


def test_ignored_rows_are_left_out_of_the_products(monkeypatch):
    torch.manual_seed(0)
    h, W = torch.randn(64, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    y = torch.randint(C, (64,))
    y[::2] = -100
    with torch.no_grad():
        h[0] = torch.nan
    sizes, form = [], blocks.blocks

    def seen(head, plan):
        for block in form(head, plan):
            sizes.append(block.logits.shape[0])
            yield block

    monkeypatch.setattr(blocks, "blocks", seen)
    loss = linear_cross_entropy(h, W, y, max_bytes=16 * C * 4)
    assert sizes == [16, 16] if "native" in IMPLS else sum(sizes) == 32
    grads = torch.autograd.grad(loss, (h, W))
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(h[1::2], W), y[1::2]))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][::2] == 0).all()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_left_to_average(reduction):
    th, tW, tb = tensors(*problem()[:3])
    y = torch.full((N,), -100)
    loss = linear_cross_entropy(th, tW, y, linear_bias=tb, reduction=reduction)
    expected = F.cross_entropy(F.linear(th, tW, tb), y, reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    assert all((g == 0).all() for g in torch.autograd.grad(loss.sum(), (th, tW, tb)))
    if reduction == "mean":
        zero = linear_cross_entropy(th, tW, y, linear_bias=tb, empty="zero")
        assert zero == 0
        zero.backward()
        assert (tW.grad == 0).all()


def test_micro_batches_with_a_denominator_are_the_big_batch():
    h, W, b, y = problem()
    y = torch.tensor(y)
    th, tW, tb = tensors(h, W, b)
    count = (y != -100).sum()
    whole = torch.autograd.grad(linear_cross_entropy(th, tW, y, linear_bias=tb), (tW, tb))
    for k in range(0, N, 4):
        linear_cross_entropy(th[k : k + 4], tW, y[k : k + 4], linear_bias=tb, denominator=count, max_bytes=1).backward()
    torch.testing.assert_close(tW.grad, whole[0])
    torch.testing.assert_close(tb.grad, whole[1])
    other = count.double().requires_grad_()
    loss = linear_cross_entropy(th, tW, y, linear_bias=tb, denominator=other)
    torch.testing.assert_close(torch.autograd.grad(loss, other)[0], -(loss / count).detach())


def test_sample_weights_are_differentiable():
    h, W, b, y = problem()
    th, tW, tb = tensors(h, W, b)
    u = torch.rand(N, **DOUBLE).requires_grad_()
    loss = linear_cross_entropy(th, tW, torch.tensor(y), linear_bias=tb, sample_weight=u, max_bytes=1)
    expected = crossent.cross_entropy(F.linear(th, tW, tb), torch.tensor(y), sample_weight=u)
    for a, e in zip(torch.autograd.grad(loss, (u, tW)), torch.autograd.grad(expected, (u, tW)), strict=True):
        torch.testing.assert_close(a, e)


def test_probabilities_and_weights_that_require_grad_get_one():
    h, W, _, t = problem(soft=True)
    th, tW, tt, tc = tensors(h, W, t, np.linspace(0.2, 2, C))
    loss = linear_cross_entropy(th, tW, tt, weight=tc)
    expected = crossent.cross_entropy(F.linear(th, tW), tt, tc)
    for a, e in zip(torch.autograd.grad(loss, (tt, tc, tW)), torch.autograd.grad(expected, (tt, tc, tW)), strict=True):
        torch.testing.assert_close(a, e)
    assert "require grad" in linear_plan(th, tW, tt).why


def test_no_input_is_written():
    inputs = tensors(*problem()[:3])
    before = [x.detach().clone() for x in inputs]
    versions = [x._version for x in inputs]
    linear_cross_entropy(*inputs[:2], torch.zeros(N, dtype=torch.long), linear_bias=inputs[2]).backward()
    assert [x._version for x in inputs] == versions
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


# --- plans and refusals -----------------------------------------------------------------------------------------------


def test_a_plan_is_what_happens(monkeypatch):
    monkeypatch.undo()
    h, W, y = torch.randn(512, 8), torch.randn(1000, 8), torch.randint(1000, (512,))
    assert linear_plan(h, W, y, max_bytes=1 << 20)[:2] == ((2, 256) if "native" in IMPLS else (14, 37))
    assert linear_plan(h[:4], W, y[:4]).why == "few logits"
    assert linear_plan(h, W, torch.rand(512, 1000).requires_grad_()).blocks == 0
    y[::2] = -100
    plan = linear_plan(h, W, y, max_bytes=1 << 20)
    assert plan.blocks * plan.rows == 256 if "native" in IMPLS else plan.blocks > 1
    assert plan.bytes <= 1 << 20


h, W, y = torch.randn(4, D), torch.randn(C, D), torch.zeros(4, dtype=torch.long)
REFUSED = {
    "another matrix": (RuntimeError, "same last dimension", (h, torch.randn(C, 3), y), {}),
    "a transposed matrix": (RuntimeError, r"linear_weight\.t\(\)", (h, torch.randn(D, C), y), {}),
    "a vector for a matrix": (RuntimeError, "linear_weight", (h, torch.randn(D), y), {}),
    "another bias": (RuntimeError, "linear_bias must have shape", (h, W, y), {"linear_bias": torch.randn(3)}),
    "mixed dtypes": (RuntimeError, "dtype of input", (h, W.double(), y), {}),
    "a batch that differs": (ValueError, "batch", (h, W, y[:3]), {}),
    "a longer target": (ValueError, "batch", (h, W, torch.zeros(9, dtype=torch.long)), {}),
    "an index out of range": (IndexError, "got 40 at target", (h, W, torch.full((4,), C)), {}),
    "another reduction": (ValueError, "reduction must be", (h, W, y), {"reduction": "batchmean"}),
    "weights of another length": (RuntimeError, "weight must have shape", (h, W, y), {"weight": torch.rand(C + 1)}),
    "an index to ignore in probabilities": (RuntimeError, "ignore_index", (h, W, torch.rand(4, C)), {"ignore_index": -100}),
    "no bytes": (TypeError, "max_bytes", (h, W, y), {"max_bytes": 0}),
    "a shift that is no number": (TypeError, "shift", (h, W, y), {"shift": True}),
    "a negative shift": (TypeError, "shift", (h, W, y), {"shift": -1}),
    "a shift past the end": (ValueError, "shift", (h, W, y), {"shift": 4}),
    "a shift of probabilities": (RuntimeError, "shift moves class indices", (h, W, torch.rand(4, C)), {"shift": 1}),
    "an unknown argument": (TypeError, "there is no argument 'gamma'", (h, W, y), {"gamma": 2}),
    "a teacher of another vocabulary": (RuntimeError, "teacher", (h, W, Teacher(h, torch.randn(3, D))), {}),
    "a smoothing above 1": (RuntimeError, "label_smoothing", (h, W, y), {"label_smoothing": 1.5}),
    "integers for states": (NotImplementedError, "float", (h.long(), W.long(), y), {}),
    "an array": (TypeError, "torch.Tensor", (h.numpy(), W, y), {}),
    "an array of indices": (TypeError, "target must be", (h, W, y.numpy()), {}),
    "a teacher with another bias": (RuntimeError, "bias must", (h, W, Teacher(h, W, torch.randn(3))), {}),
}  # fmt: skip


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, few, monkeypatch):
    monkeypatch.setattr("crossent.losses.head_ways.FEW", few)
    error, message, arguments, options = REFUSED[name]
    with pytest.raises(error, match=message):
        linear_cross_entropy(*arguments, **options)


# --- modules ----------------------------------------------------------------------------------------------------------


def test_the_module_is_torchs():
    module = crossent.LinearCrossEntropyLoss(D, C, bias=True, label_smoothing=0.1, weight=torch.rand(C))
    assert isinstance(module, torch.nn.LinearCrossEntropyLoss)
    theirs = torch.nn.LinearCrossEntropyLoss(D, C, bias=True, label_smoothing=0.1, weight=torch.rand(C))
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(h, y), theirs(h, y))
    assert {name for name, _ in theirs.named_parameters()} == {name for name, _ in module.named_parameters()}
    several = crossent.LinearCrossEntropyLoss(D, C, out_features=(3,))
    assert several(h, torch.zeros(4, 3, dtype=torch.long)).shape == ()
    masked = crossent.LinearCrossEntropyLoss(D, C, class_mask=torch.arange(C) < 5, temperature=2.0, reduction="none")
    expected = crossent.cross_entropy(
        masked.linear(h), y, class_mask=torch.arange(C) < 5, temperature=2.0, reduction="none"
    )
    torch.testing.assert_close(masked(h, y), expected)
    assert "temperature=2.0" in repr(masked)
    assert masked.half().class_mask.dtype == torch.bool
    with pytest.raises(TypeError, match="there is no argument 'gamma'"):
        crossent.LinearCrossEntropyLoss(D, C, gamma=2.0)


@pytest.mark.parametrize("bound", ["max_bytes", "max_rows"])
@pytest.mark.parametrize("number", [1 << 62, 1 << 63, 1 << 70])
def test_a_bound_may_be_any_number(bound, number):
    torch.testing.assert_close(linear_cross_entropy(h, W, y, **{bound: number}), F.cross_entropy(F.linear(h, W), y))


@pytest.mark.parametrize("more", [{}, {"impl": "eager"}])
def test_an_index_beyond_64_bits_is_refused(more):
    with pytest.raises(ValueError, match="ignore_index must fit into 64 bits"):
        linear_cross_entropy(h, W, y, ignore_index=1 << 70, **more)


@pytest.mark.slow
def test_more_than_two_to_the_31_logits():
    n, c = 50_000, 43_000
    h, W = torch.randn(n, 2), torch.randn(c, 2, requires_grad=True)
    y = torch.arange(n) % c
    loss = linear_cross_entropy(h, W, y, max_bytes=1 << 28)
    (grad,) = torch.autograd.grad(loss, W)
    last = torch.arange(n - 3, n)
    rows = linear_cross_entropy(h[last], W, y[last], reduction="none")
    torch.testing.assert_close(rows, F.cross_entropy(F.linear(h[last], W), y[last], reduction="none"))
    t = torch.zeros(5)
    for k in range(0, n, 5000):
        p = F.linear(h[k : k + 5000], W.detach()[:]).softmax(1)[:, :5]
        p[torch.arange(5000)[y[k : k + 5000] < 5], y[k : k + 5000][y[k : k + 5000] < 5]] -= 1
        t += p.t() @ h[k : k + 5000, 0]
    torch.testing.assert_close(grad[:5, 0], t / n, rtol=1e-3, atol=1e-8)  # t is a sum of 50 000 terms in float32


def test_results_do_not_depend_on_the_number_of_threads():
    code = """
import hashlib, sys, torch, crossent
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
# The products are torch's and may depend on it, but not those of small whole numbers, which float32 holds in any order.
h, W = torch.randint(-4, 5, (300, 16)) / 4, (torch.randint(-4, 5, (700, 16)) / 4).requires_grad_()
loss = crossent.linear_cross_entropy(h, W, torch.arange(300), max_bytes=1 << 18)
rows = crossent.linear_cross_entropy(h, W, torch.arange(300), max_bytes=1 << 18, reduction="none")
print(loss.item().hex(), hashlib.sha256(rows.detach().numpy().tobytes()).hexdigest())
"""
    one, two = (
        subprocess.run([sys.executable, "-c", code, n], capture_output=True, text=True, check=True).stdout.split()
        for n in "12"
    )
    assert len(one) == 2
    assert one == two


def test_json_of_a_plan():
    assert json.loads(json.dumps(linear_plan(h, W, y)._asdict()))["impl"] in IMPLS


@pytest.mark.parametrize("few", [0, 1 << 20], ids=["blocks", "at once"])
@pytest.mark.parametrize("kind", ["indices", "probabilities", "a teacher"])
def test_rows_of_which_a_mask_allows_nothing_do_not_count(monkeypatch, kind, few):
    monkeypatch.setattr("crossent.losses.head_ways.FEW", few)
    generator = torch.Generator().manual_seed(0)
    h, w, z = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 4, 4))
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    y = torch.tensor([0, 1, 3, 2, 1, 3])
    q = (h @ z.T).masked_fill(~mask, -torch.inf).softmax(1).nan_to_num()
    target = {"indices": y, "probabilities": q, "a teacher": crossent.Teacher(h, z)}[kind]
    for reduction in ("mean", "sum", "none"):
        one, other = (h.clone().requires_grad_() for _ in range(2))
        for lead in ((6,), (2, 3)):
            shaped = target
            if lead != (6,):
                shaped = (
                    crossent.Teacher(h.view(2, 3, 3), z)
                    if kind == "a teacher"
                    else target.view(2, 3, *target.shape[1:])
                )
            call = other.view(*lead, 3), w, shaped
            more = {"class_mask": mask.view(*lead, 4), "reduction": reduction}
            wanted = crossent.cross_entropy(
                one @ w.T, y if kind == "indices" else q, class_mask=mask, reduction=reduction
            )
            loss = crossent.linear_cross_entropy(*call, **more)
            torch.testing.assert_close(loss.flatten(), wanted.flatten())
            (a,), (e,) = (torch.autograd.grad(x.sum(), leaf) for x, leaf in ((loss, other), (wanted, one)))
            torch.testing.assert_close(a, e)
            stats = crossent.linear_cross_entropy_stats(*call, **more)
            torch.testing.assert_close(stats.loss.flatten(), wanted.flatten())


# --- a bound for the rows that count ----------------------------------------------------------------------------------

BOUNDED = {
    "indices": {},
    "sample weights": {"sample_weight": torch.linspace(0, 2, 9, dtype=torch.float64)},
    "a bias of every logit": {"logit_bias": torch.randn(9, 6, generator=torch.Generator().manual_seed(3)).double()},
    "a mask of every row": {"class_mask": torch.arange(54).view(9, 6) % 5 > 0},
    "a teacher": {"teacher": True, "sample_weight": (torch.arange(9) % 3 > 0).double()},
    "a sum": {"reduction": "sum", "label_smoothing": 0.1},
    "learned weights": {"sample_weight": torch.linspace(0, 2, 9, dtype=torch.float64).requires_grad_()},
}


def _bounded_head(max_rows, options, max_bytes):
    generator = torch.Generator().manual_seed(0)
    h, w = (torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in ((9, 4), (6, 4)))
    y = torch.tensor([1, -100, 2, 2, -100, 3, -100, 1, -100])
    options = dict(options)
    target = (
        crossent.Teacher(torch.randn(9, 4, generator=generator).double(), w.detach())
        if options.pop("teacher", 0)
        else y
    )
    loss = linear_cross_entropy(h, w, target, max_rows=max_rows, max_bytes=max_bytes, **options)
    return (loss.detach(), *torch.autograd.grad(loss, (h, w)))


@pytest.mark.parametrize("max_bytes", [100, None])
@pytest.mark.parametrize("name", BOUNDED)
def test_no_more_rows_are_multiplied_than_may_count(name, max_bytes, monkeypatch):
    """On a GPU, which this CPU stands for: it is not asked how many rows count."""
    options = BOUNDED[name]
    expected = _bounded_head(None, options, max_bytes)
    monkeypatch.setattr("crossent.losses.head_ways.readable", lambda _: False)
    monkeypatch.setattr("crossent.impl.head.counted", lambda *_: None)
    multiplied, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: multiplied.append(a.shape) or mm(a, b, **more))
    for bound in (6, 7, 9, 20):
        multiplied.clear()
        torch.testing.assert_close(_bounded_head(bound, options, max_bytes), expected, msg=str(bound))
        # A teacher's logits are formed as well, and where weights learn, those of each block once more in backward.
        times = 2 if name in ("a teacher", "learned weights") else 1
        assert max_bytes is None or sum(n for n, k in multiplied if k == 4) <= times * min(bound, 9)
    if options.get("teacher") is None:
        loss, *grads = _bounded_head(3 if "sample_weight" in options else 4, options, max_bytes)
        assert loss.isnan()
        assert all((grad == 0).all() for grad in grads)


def test_a_bound_that_is_too_small_is_said_where_rows_can_be_counted():
    h, w, y = torch.zeros(5, 4), torch.zeros(6, 4), torch.tensor([1, -100, 2, 2, 5])
    assert linear_cross_entropy(h, w, y, max_rows=4).isfinite()
    with pytest.raises(ValueError, match="max_rows must be at least the rows that count, 4, got 3"):
        linear_cross_entropy(h, w, y, max_rows=3)
    with pytest.raises((TypeError, ValueError), match="max_rows must be None or an int of at least 0"):
        linear_cross_entropy(h, w, y, max_rows=-1)
    rows = linear_cross_entropy(h, w, y, max_rows=3, reduction="none")  # of which each is wanted
    assert rows.shape == (5,)


def test_a_plan_knows_the_bound(monkeypatch):
    monkeypatch.setattr("crossent.losses.head_ways.readable", lambda _: False)
    monkeypatch.setattr("crossent.losses.linear.counted", lambda *_: None)
    h, w, y = torch.zeros(4096, 8), torch.zeros(50257, 8), torch.zeros(4096, dtype=torch.long)
    plan = crossent.linear_plan(h, w, y, impl="eager", max_bytes=1 << 28, max_rows=1000)
    assert plan.blocks * plan.rows in range(1000, 1010)


def test_a_bound_is_for_whole_heads():
    with pytest.raises(ValueError, match="max_rows is for a head on one device"):
        linear_cross_entropy(
            torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(5, dtype=torch.long), max_rows=3,
            shard=crossent.VocabShard(None, 0, 3),
        )  # fmt: skip


# --- on a GPU, which fake tensors stand for ---------------------------------------------------------------------------


def test_a_block_on_a_gpu_has_a_gigabyte():
    """Of (4096, 128256) logits in bfloat16 that are two blocks, of rows, and never a hundred."""
    with FakeTensorMode():
        h, w = (torch.empty(size, 4096, device="cuda", dtype=torch.bfloat16) for size in (4096, 128256))
        y = torch.empty(4096, dtype=torch.int64, device="cuda")
        for impl in ("eager", None):
            plan = crossent.linear_plan(h, w, y, impl=impl)
            most = (1 << 30) // (3 if plan.impl == "eager" else 1)  # torch operations take float32 on their way
            assert most / 2 < plan.bytes <= most
            assert plan.blocks <= 3
    h, w = (torch.zeros((), dtype=torch.bfloat16).expand(size, 4096) for size in (4096, 128256))
    assert crossent.linear_plan(h, w, torch.zeros(4096, dtype=torch.int64), impl="eager").bytes <= 128 << 20


def test_a_heads_gradient_is_added_up_by_one_product_where_a_device_has_it(monkeypatch):
    """Tried once on each device: where there is none, each block's product is rounded once."""
    monkeypatch.setattr(blocks, "_MULTIPLIES_TO_FLOAT32", {})
    g, x = (torch.empty(size, device="meta", dtype=torch.bfloat16) for size in ((8, 6), (8, 4)))
    sums, calls = torch.empty(6, 4, device="meta"), []

    def product(name, works):
        def multiply(*args, **more):
            calls.append((name, more["out_dtype"], more["out"] is sums))
            if not works:
                raise NotImplementedError

        return multiply

    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, product(name, True))
    assert blocks.accumulate_in_float32(g, x, sums, True)
    assert blocks.accumulate_in_float32(g, x, sums, False)
    assert calls == [("mm", torch.float32, True), ("addmm", torch.float32, True)]
    monkeypatch.setattr(torch, "addmm", product("addmm", False))
    for _ in range(2):
        assert blocks.accumulate_in_float32(g, x, sums, False)
    assert len(calls) == 3
    assert not blocks.accumulate_in_float32(*(torch.empty_like(t, device="cpu") for t in (g, x, sums)), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_float64_where_a_device_has_none(dtype, monkeypatch):
    """As on Apple's: their sums are float32."""
    monkeypatch.setattr(blocks, "dtype_of_sums", lambda device: dtype_of_sums(torch.device("mps")))
    wide, to, zeros = [], torch.Tensor.to, torch.zeros

    def watched(call):
        def run(*args, **more):
            if torch.float64 in (*args, *more.values()):
                wide.append((args, more))
            return call(*args, **more)

        return run

    monkeypatch.setattr(torch.Tensor, "to", watched(to)), monkeypatch.setattr(torch, "zeros", watched(zeros))
    monkeypatch.setattr(torch.Tensor, "double", lambda *_: wide.append("double"))
    h, w, y = (
        torch.randn(5, 4).to(dtype).requires_grad_(),
        torch.randn(6, 4).to(dtype),
        torch.tensor([1, -100, 2, 2, 5]),
    )
    head, one = blocks.Head(h.detach(), w, None, (6,)), torch.ones(())
    for u in (None, torch.ones(5)):
        loss, grads = blocks.loss_and_gradients(
            head, blocks.Plan(Target(y), None, 24, "eager"), u, one, (True, True, False)
        )
        assert loss.dtype == torch.float32
        assert grads[0].isfinite().all()
    assert not wide
    assert dtype_of_sums(torch.device("cpu")) == torch.float64
