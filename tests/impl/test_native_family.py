"""The family in the kernels: held to the specification, alone and combined, and what they leave to torch operations."""

import itertools

import numpy as np
import pytest
import torch
from cases import LEFT_TO_TORCH
from closeness import assert_close, assert_close_in_family

import crossent
from crossent import reference
from crossent.core import penalties
from crossent.losses import softmax

native = pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")

PENALTIES = {
    "none": (None, None),
    "focal": (penalties.Focal(2.0), reference.focal(2.0)),
    "focal, steep": (penalties.Focal(0.5), reference.focal(0.5)),
    "poly1": (penalties.Poly1(1.0), reference.poly1(1.0)),
    "gce": (penalties.GCE(0.7), reference.gce(0.7)),
    "gce at 0": (penalties.GCE(0.0), reference.gce(0.0)),
    "mae": (penalties.MAE(), reference.mae()),
    "sce": (penalties.SCE(0.1, 1.0), reference.sce(0.1, 1.0)),
    "taylor": (penalties.Taylor(3), reference.taylor(3)),
}
SHAPES = [(5, 5), (5, 40), (4, 200), (3, 2100), (3, 5, 6), (2, 70, 3)]  # tiles, rows, blocks, classes apart
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def call(rng, shape, dtype, **choice):
    """Draw a problem with these settings: arguments for the library, and the same for the reference."""
    classes, rows = shape[1], (shape[0], *shape[2:])
    x = torch.from_numpy(rng.normal(size=shape) * 6).to(dtype)
    y = torch.from_numpy(rng.integers(classes, size=rows))
    y.view(-1)[1] = -100
    settings, spec = {}, {}
    for name in ("temperature", "softcap", "margin", "z_loss", "label_smoothing"):
        if name in choice:
            settings[name] = spec[name] = choice[name]
    settings["penalty"], spec["penalty"] = PENALTIES[choice.get("penalty", "none")]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if choice.get("weighted"):
        settings["weight"] = torch.from_numpy(rng.uniform(0.2, 2, classes)).to(dtype)
    if choice.get("biased"):
        settings["logit_bias"] = torch.from_numpy(rng.normal(size=classes)).to(wide)
    if choice.get("masked"):
        allowed = torch.from_numpy(rng.random(classes) > 0.3)
        allowed[0] = True
        settings["class_mask"] = allowed
    target = y
    if choice.get("soft"):
        target = torch.from_numpy(rng.random(shape)).to(dtype)
    spec |= {k: v.double().numpy() for k, v in settings.items() if k in ("weight", "logit_bias")}
    if "class_mask" in settings:
        spec["class_mask"] = settings["class_mask"].numpy()
    return x, target, settings, spec


def assert_kernels_keep_to_the_reference(rng, shape, dtype, **choice):
    x, target, settings, spec = call(rng, shape, dtype, **choice)
    soft = target.is_floating_point()
    x.requires_grad_(), target.requires_grad_(soft)
    chosen = {k: v for k, v in settings.items() if k != "weight"}
    assert crossent.choose_implementation(x, target=target, **chosen) == "native"
    loss = crossent.cross_entropy(x, target, reduction="none", impl="native", **settings)
    g = torch.from_numpy(rng.uniform(0.5, 2, loss.shape)).to(loss.dtype)
    grads = torch.autograd.grad(loss, [x, target] if soft else [x], g)
    exact = reference.cross_entropy(
        x.detach().double().numpy(),
        target.detach().double().numpy() if soft else target.numpy(),
        reduction="none",
        **spec,
    )
    alone = x.detach().requires_grad_()  # the only one with a gradient, which is formed with the sum
    total = crossent.cross_entropy(alone, target.detach(), reduction="sum", impl="native", **settings)
    (at_once,) = torch.autograd.grad(total, alone)
    assert_close_in_family(total, exact.loss.sum(), dtype, name=f"sum of {choice}")
    assert_close_in_family(at_once, exact.grad, dtype, name=f"gradient of the sum of {choice}")
    by = np.expand_dims(g.double().numpy(), 1)
    assert_close_in_family(loss, exact.loss, dtype, name=f"loss of {choice}")
    assert_close_in_family(grads[0], exact.grad * by, dtype, name=f"gradient of {choice}")
    if soft:
        assert_close_in_family(grads[1], exact.target_grad * by, dtype, name=f"gradient for the target of {choice}")


SINGLE = [
    *({"penalty": name} for name in PENALTIES),
    {"temperature": 2.0}, {"softcap": 3.0}, {"margin": 0.5}, {"z_loss": 0.01}, {"biased": True}, {"masked": True},
    {"masked": True, "label_smoothing": 0.1}, {"masked": True, "label_smoothing": 0.1, "weighted": True},
    {"soft": True, "temperature": 2.0}, {"soft": True, "softcap": 3.0, "biased": True}, {"soft": True, "z_loss": 0.01},
    *({"soft": True, "penalty": name, "weighted": True} for name in PENALTIES),
    *({"label_smoothing": 0.2, "penalty": name, "weighted": True} for name in PENALTIES),
    {"soft": True, "masked": True, "label_smoothing": 0.1, "weighted": True},
    {"soft": True, "masked": True, "label_smoothing": 0.1, "penalty": "mae"},
]  # fmt: skip


@pytest.mark.parametrize("choice", SINGLE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_members(choice, shape, dtype):
    assert_kernels_keep_to_the_reference(np.random.default_rng(0), shape, dtype, **choice)


@pytest.mark.parametrize("shape", SHAPES)
def test_native_members_combine(shape):
    rng = np.random.default_rng(1)
    settings = {
        "penalty": list(PENALTIES), "temperature": [1.0, 2.0], "softcap": [None, 3.0], "margin": [0.0, 0.5], "z_loss": [0.0, 0.01],
        "biased": [False, True],
        "masked": [False, True], "label_smoothing": [0.0, 0.1], "weighted": [False, True], "soft": [False, True],
    }  # fmt: skip
    tried = []
    for values in itertools.product(*settings.values()):
        choice = dict(zip(settings, values, strict=True))
        if rng.random() < 0.04 and not (choice["soft"] and choice["margin"]):
            dtype = torch.float32 if rng.random() < 0.5 else torch.float64
            assert_kernels_keep_to_the_reference(rng, shape, dtype, **choice)
            tried.append(choice)
    for name, values in settings.items():
        assert {choice[name] for choice in tried} == set(values), name


@pytest.mark.parametrize("classes", [3, 200])
def test_a_bias_of_minus_infinity_is_no_mask(classes):
    x, y = torch.zeros(2, classes, requires_grad=True), torch.tensor([1, 0])
    bias = torch.zeros(classes)
    bias[1] = -torch.inf
    for impl in ("native", "eager"):
        (grad,) = torch.autograd.grad(crossent.cross_entropy(x, y, logit_bias=bias, reduction="sum", impl=impl), x)
        assert grad[0, 1] == -1  # p - t, where a masked class would have 0
        masked = crossent.cross_entropy(x, y, class_mask=torch.arange(classes) != 1, reduction="sum", impl=impl)
        assert torch.autograd.grad(masked, x)[0][0, 1] == 0


@pytest.mark.parametrize("shape", [(7,), *SHAPES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True])
def test_statistics_of_one_pass(shape, dtype, reduction, soft, monkeypatch):
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=shape) * 4).round().to(dtype)  # with ties
    y = torch.from_numpy(
        rng.integers(shape[min(len(shape) - 1, 1)], size=(*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    )
    if y.dim():
        y[0] = x[0].argmax(0)
        y.view(-1)[1] = -100
    if soft:
        y = torch.from_numpy(rng.uniform(-1, 1, shape).clip(0).round(decimals=1)).to(
            dtype
        )  # with ties, and some rows of nothing
    settings = {"temperature": 2.0, "z_loss": 0.1, "label_smoothing": 0.2, "reduction": reduction}
    expected = reference.cross_entropy_stats(x.double().numpy(), y.numpy(), **settings)
    eager = crossent.cross_entropy_stats(x, y, impl="eager", **settings)
    passes, kernel = [], native.Native.statistics
    monkeypatch.setattr(native.Native, "statistics", staticmethod(lambda *a: passes.append(1) or kernel(*a)))
    monkeypatch.setattr(native.Native, "cross_entropy_forward", None)
    ours = crossent.cross_entropy_stats(x, y, **settings)
    assert passes == [1]
    for name, a, b, exact in zip(ours._fields, ours, eager, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert_close(a, exact, dtype, name=name)
    assert ours.lse.requires_grad is False


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_the_kernels_leave_goes_to_torch_operations(name, monkeypatch):
    x = torch.linspace(-2, 2, 12).view(4, 3)
    settings = dict(LEFT_TO_TORCH[name])
    target = x.softmax(1) if settings.pop("soft", False) else torch.tensor([0, 1, 0, -100])
    assert crossent.choose_implementation(x, target=target, **settings) == "eager"
    with pytest.raises(RuntimeError, match=r"the native kernels do not take .* which goes to torch operations"):
        crossent.cross_entropy(x, target, impl="native", **settings)

    def launched(*_):
        raise AssertionError("a kernel ran")

    expected = crossent.cross_entropy(x, target, impl="eager", **settings)
    for kernel in ("cross_entropy_forward", "cross_entropy_backward", "cross_entropy_sum"):
        monkeypatch.setattr(native.Native, kernel, staticmethod(launched))
    way = softmax._short
    monkeypatch.setattr(softmax, "_short", lambda given: None if way(given) is None else launched())
    with pytest.raises(AssertionError, match="a kernel ran"):
        crossent.cross_entropy(x, target.detach(), reduction="none")
    x.requires_grad_()
    loss = crossent.cross_entropy(x, target, **settings)
    assert torch.equal(loss, expected)
    assert torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"z_loss": 0.1}, {"penalty": penalties.Focal(1.0)}])
@pytest.mark.parametrize("shape", SHAPES)
def test_where_no_target_weighs_anything_the_gradient_of_the_mean_is_zero(shape, settings):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.ones(shape[1])
    weight[2] = 0
    target = torch.full((shape[0], *shape[2:]), 2)
    loss = crossent.cross_entropy(x, target, weight, impl="native", **settings)
    assert loss.isnan()
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@pytest.mark.parametrize("rows", [1, 3000])  # small and not, in tiles
@pytest.mark.parametrize("classes", [3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_bias_of_minus_infinity_is_no_mask_beside_one(dtype, classes, rows):
    """A class that is allowed and has no probability costs inf and pulls with its whole weight; a masked one has no gradient."""
    x = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias, mask, y = (
        torch.zeros(classes, dtype=dtype),
        torch.ones(classes, dtype=torch.bool),
        torch.ones(rows, dtype=torch.long),
    )
    bias[1], mask[2] = -torch.inf, False
    bias[2] = torch.finfo(dtype).max  # of a masked class, whatever it is
    for penalty in (None, crossent.Focal(2.0)):
        got = []
        for impl in ("native", "eager"):
            leaf = x.clone().requires_grad_()
            options = {"logit_bias": bias, "class_mask": mask, "penalty": penalty, "reduction": "sum", "impl": impl}
            loss = crossent.cross_entropy(leaf, y, **options)
            got.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        torch.testing.assert_close(got[0], got[1])
        assert got[0][0] == torch.inf
        assert (got[0][1][:, 2] == 0).all()
        assert (got[0][1][:, 1] == -1).all()


# --- rows without a softmax -----------------------------------------------------------------------------------------------

WITHOUT_SOFTMAX = {
    "none": {},
    "Focal(0)": {"penalty": crossent.Focal(0.0)},
    "Focal(2)": {"penalty": crossent.Focal(2.0)},
    "Focal(0.5)": {"penalty": crossent.Focal(0.5)},
    "Poly1": {"penalty": crossent.Poly1(1.0)},
    "GCE": {"penalty": crossent.GCE(0.7)},
    "MAE": {"penalty": crossent.MAE()},
    "SCE": {"penalty": crossent.SCE()},
    "Taylor": {"penalty": crossent.Taylor(4)},
    "z_loss": {"z_loss": 0.1},
    "softcap": {"softcap": 3.0},
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("classes", [1, 5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("member", WITHOUT_SOFTMAX)
def test_a_row_that_counts_and_has_no_softmax_is_nan_where_it_is_in_torch_operations(member, dtype, classes, apart):
    """A loss of 0 there would hide that the model has broken."""
    x = torch.randn(6, classes).to(dtype)
    x[1, classes // 2], x[2, classes // 2], x[3], x[4, 0], x[5] = (
        torch.nan,
        torch.inf,
        -torch.inf,
        -torch.inf,
        torch.inf,
    )
    x = x.T.contiguous().T if apart else x
    y, soft = torch.zeros(6, dtype=torch.long), torch.rand(6, classes).to(dtype)
    for target, more in ((y, {}), (y, {"label_smoothing": 0.1}), (soft, {})):
        found = []
        for impl in ("native", "eager"):
            options, z = {**WITHOUT_SOFTMAX[member], **more, "impl": impl}, x.clone().requires_grad_()
            rows = crossent.cross_entropy(z, target, reduction="none", **options)
            total = crossent.cross_entropy(z, target, reduction="sum", **options)
            grads = [torch.autograd.grad(loss.sum(), z)[0] for loss in (rows, total)]
            stats = crossent.cross_entropy_stats(x, target, **options)
            numbers = (rows, total, *grads, stats.loss, stats.lse, stats.entropy, stats.target_log_prob)
            found.append([*(number.isnan() for number in numbers), stats.predicted])
        assert all(map(torch.equal, *found))
        assert found[0][0][1]
