"""The laws of the whole family: every penalty, transformation, mask and extra term, against the reference in float64."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import BINARY_FAMILY, DTYPES, FAMILY, IMPLEMENTATIONS, INF, PENALTIES, law, rounded, tensors, to_reference
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import crossent
from crossent import reference

implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def assert_close(got, expected, dtype, scale=1.0):
    """Hold a result to the reference: one rounding to its dtype, and a hundred in the float32 or float64 behind it.

    A power, a hyperbolic tangent or a logarithm of a logarithm multiplies a rounding of its argument by what it is steep,
    so there are more of them than in cross entropy; and a sum of both signs is accurate to the size of its terms.
    """
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    got, expected = got.detach().double().numpy(), np.asarray(expected)
    with np.errstate(over="ignore"):
        here = torch.from_numpy(np.array(expected)).to(dtype).double().numpy()
    expected = np.where(np.isinf(here) & np.isfinite(expected), here, expected)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    smallest = torch.finfo(dtype).smallest_normal if dtype != torch.float16 else 2.0**-24
    np.testing.assert_allclose(
        got, expected, rtol=torch.finfo(dtype).eps + 128 * wide, atol=8 * scale * wide * largest + smallest
    )


def taken_by(impl, loss, settings):
    """Skip what an implementation refuses."""
    known = crossent.targets.SPECIAL[loss]
    special = {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in settings.items() if k in known}
    try:
        crossent.choose_implementation(torch.zeros(1, 2), impl, loss=loss, **special)
    except RuntimeError as refusal:
        pytest.skip(str(refusal))


@implementations
@dtypes
@law(FAMILY)
def test_softmax_value_and_gradients(case, impl, dtype):
    taken_by(impl, "cross_entropy", case.settings)
    case = rounded(case, dtype)
    for reduction in ("none", "sum", "mean"):
        if reduction != "mean" and "denominator" in case.settings:
            continue
        x, t, settings = tensors(case, dtype)
        leaves = {"x": x}
        if t.is_floating_point():
            leaves["t"] = t.requires_grad_()
        if "logit_bias" in settings:
            leaves["bias"] = settings["logit_bias"].requires_grad_()
        loss = crossent.cross_entropy(x, t, reduction=reduction, impl=impl, **settings)
        expected = reference.cross_entropy(case.logits, case.target, reduction=reduction, **to_reference(case.settings))
        assert loss.dtype == dtype
        assert_close(loss, expected.loss, dtype)
        loss.sum().backward()
        assert_close(x.grad, expected.grad, dtype)
        if "t" in leaves:
            assert_close(t.grad, expected.target_grad, dtype)
        if "bias" in leaves and "softcap" not in settings:
            bias, grad = leaves["bias"], expected.grad
            if bias.dim() == 1 and grad.ndim > 1:
                grad = np.moveaxis(grad, settings.get("dim", 1), -1).reshape(-1, len(bias)).sum(0)
            # ∂x'/∂x is 1/T without a cap, as ∂x'/∂bias
            assert_close(bias.grad, grad, dtype, scale=4 * x.numel())


@implementations
@dtypes
@law(BINARY_FAMILY)
def test_sigmoid_value_and_gradients(case, impl, dtype):
    taken_by(impl, "binary_cross_entropy_with_logits", case.settings)
    case = rounded(case, dtype)
    for reduction in ("none", "sum", "mean"):
        if reduction != "mean" and "denominator" in case.settings:
            continue
        x, t, settings = tensors(case, dtype)
        t.requires_grad_()
        loss = crossent.binary_cross_entropy_with_logits(x, t, reduction=reduction, impl=impl, **settings)
        expected = reference.binary_cross_entropy_with_logits(
            case.logits, case.target, reduction=reduction, **to_reference(case.settings)
        )
        assert loss.dtype == dtype
        assert_close(loss, expected.loss, dtype)
        loss.sum().backward()
        assert_close(x.grad, expected.grad, dtype)
        assert_close(t.grad, expected.target_grad, dtype)


# --- derivatives of any kind ------------------------------------------------------------------------------------------

DOUBLE = {"dtype": torch.float64}


@dataclass(frozen=True)
class Brier(crossent.Penalty):
    """A penalty of a user's own, without s."""

    scale: float = 1.0

    def f(self, log_p):
        return self.scale * torch.expm1(log_p) ** 2


def derivative_calls():
    """List functions of differentiable tensors, with those tensors."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape):
        return torch.rand(shape, generator=generator, **DOUBLE)

    x, t, c, b, each = rand(3, 4) * 3 - 1, rand(3, 4), rand(4), rand(4), rand(3, 4)
    y, mask = torch.tensor([0, -100, 2]), torch.tensor([True, False, True, True])
    some = torch.tensor([[True, True, False, True], [True] * 4, [True, False, True, True]])
    inside = t * mask
    garbage = x.clone()
    garbage[1], garbage[:, 1] = torch.nan, torch.tensor([torch.inf, 0, -torch.inf], **DOUBLE)
    ce, bce = crossent.cross_entropy, crossent.binary_cross_entropy_with_logits
    everything = {
        "temperature": 1.7, "softcap": 3.0, "margin": 0.4, "class_mask": mask, "z_loss": 0.2, "label_smoothing": 0.1,
        "penalty": crossent.Focal(1.5),
    }  # fmt: skip

    def soft(x, t, c, b):
        return ce(x, t.masked_fill(~mask, 0), c, logit_bias=b, **everything)

    return {
        **{name: (lambda x, t, p=p: ce(x, t, label_smoothing=0.1, penalty=p), x, t) for name, p in PENALTIES.items()},
        "indices, focal": (lambda x: ce(x, y, penalty=crossent.Focal(0.5), reduction="none"), x),
        "a penalty without s": (lambda x, t: ce(x, t, penalty=Brier(2.0)), x, t),
        "temperature and cap": (lambda x: ce(x, y, temperature=2.0, softcap=1.5), x),
        "bias": (lambda x, b: ce(x, y, logit_bias=b, temperature=2.0), x, b),
        "bias of every logit": (lambda x, b: ce(x, y, c, logit_bias=b, reduction="sum"), x, each),
        "margin": (lambda x, t: ce(x, t, margin=0.7), x, t),
        "mask": (lambda x, t: ce(x, t.masked_fill(~mask, 0), class_mask=mask, label_smoothing=0.2), x, inside),
        "mask of every row": (lambda x: ce(x, y, class_mask=some, label_smoothing=0.2), x),
        "z-loss": (lambda x: ce(x, y, c, z_loss=0.3), x),
        "everything": (lambda x, b: ce(x, y, c, logit_bias=b, **everything), x, each),
        "everything, probabilities": (soft, x, inside, c, b),
        "garbage in masked classes and ignored rows": (lambda x: ce(x, y, class_mask=mask, softcap=9.0, z_loss=0.1), garbage),
        "one class is left": (lambda x: ce(x, torch.tensor([1, 1, 1]), class_mask=~mask, penalty=crossent.Focal(0.5)), x),
        **{
            f"binary {name}": (lambda x, t, p=p: bce(x, t, penalty=p, label_smoothing=0.1), x, t)
            for name, p in {"focal": crossent.Focal(1.5), "asymmetric": crossent.Asymmetric(0.5, 3.0, 0.05)}.items()
        },
        "binary without s": (lambda x, t: bce(x, t, penalty=Brier(), pos_weight=c), x, t),
        "binary masked": (lambda x, t: bce(x, t, mask=some), x, t),
        "binary ignored": (lambda x: bce(garbage * 0 + x, torch.where(garbage.isfinite(), t, -1.0), ignore_index=-1), x),
        "multilabel": (lambda x: crossent.multilabel_cross_entropy(x, [[0, 2], [], [1]], c), x),
        "multilabel amounts": (lambda x, t: crossent.multilabel_cross_entropy(x, t), x, t),
        "distillation": (lambda x: crossent.distillation_loss(x, each, 2.0, y, 0.7), x),
        "distillation of both": (lambda x, z: crossent.distillation_loss(x, z, 2.0, teacher_grad=True), x, each),
        "contrastive": (lambda a, b, s: crossent.contrastive_cross_entropy(a, b, s), x, each, torch.tensor(2.0, **DOUBLE)),
        **{
            f"statistics, {name}": (
                lambda x, i=i: crossent.cross_entropy_stats(x, y, class_mask=mask, softcap=4.0, reduction="mean")[i], x
            )
            for i, name in enumerate(("loss", "lse", "log-probability", "entropy"))
        },
        "statistics, probabilities": (
            lambda x, t: sum(crossent.cross_entropy_stats(x, t, margin=0.3, logit_bias=b)[1:4]).sum(), x, t
        ),
    }  # fmt: skip


DERIVATIVES = derivative_calls()
calls = pytest.mark.parametrize(
    ("f", "inputs"), [(call[0], call[1:]) for call in DERIVATIVES.values()], ids=DERIVATIVES
)


def leaves(inputs):
    return tuple(v.clone().requires_grad_() for v in inputs)


def finite(f, inputs):
    """Put numbers in the place of garbage, whose derivatives are not asked for: those must be 0."""
    clean = tuple(torch.where(v.isfinite(), v, 0.0) for v in inputs)
    return f, clean


@calls
def test_first_derivatives(f, inputs):
    f, inputs = finite(f, inputs)
    assert gradcheck(f, leaves(inputs), check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@calls
def test_second_derivatives(f, inputs):
    f, inputs = finite(f, inputs)
    assert gradgradcheck(f, leaves(inputs), check_fwd_over_rev=True, fast_mode=True)


@calls
def test_second_derivatives_are_finite(f, inputs):
    here = leaves(inputs)
    grads = torch.autograd.grad(f(*here).sum(), here, create_graph=True)
    assert all(g.isfinite().all() for g in grads)
    seconds = torch.autograd.grad(sum(g.square().sum() for g in grads), here, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in seconds)


@calls
def test_functional_transforms(f, inputs):
    def scalar(*v):
        return f(*v).sum()

    every = tuple(range(len(inputs)))
    here = leaves(inputs)
    by_autograd = torch.autograd.grad(scalar(*here), here, create_graph=True)
    torch.testing.assert_close(torch.func.grad(scalar, every)(*inputs), by_autograd)
    tangents = tuple(torch.ones_like(v) + 0.1 * torch.arange(v.numel()).view_as(v) for v in inputs)
    value, tangent = torch.func.jvp(scalar, inputs, tangents)
    torch.testing.assert_close(value, scalar(*inputs))
    torch.testing.assert_close(tangent, sum((g * v).sum() for g, v in zip(by_autograd, tangents, strict=True)))
    hessian = torch.func.hessian(scalar)(*inputs)
    torch.testing.assert_close(hessian, torch.func.jacrev(torch.func.jacrev(scalar))(*inputs))


@calls
def test_vmap_is_a_loop(f, inputs):
    many = tuple(torch.stack([v, v + 0.5]) for v in inputs)

    def loop(g):
        return torch.utils._pytree.tree_map(lambda *v: torch.stack(v), *[g(*(v[i] for v in many)) for i in range(2)])

    torch.testing.assert_close(torch.vmap(f)(*many), loop(f))
    slope = torch.func.grad(lambda *v: f(*v).sum(), tuple(range(len(inputs))))
    torch.testing.assert_close(torch.vmap(slope)(*many), loop(slope))


GARBAGE = "garbage in masked classes and ignored rows"


def test_what_is_ignored_or_masked_has_no_gradient_of_any_order():
    f, x = DERIVATIVES[GARBAGE]
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(x), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    for g in (grad, second):
        assert (g[1] == 0).all()
        assert (g[:, 1] == 0).all()
        assert (g[[0, 2]][:, [0, 2, 3]] != 0).all()


def test_parameters_are_not_differentiable_and_say_so():
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    learned = torch.tensor(2.0, requires_grad=True)
    for settings in ({"temperature": learned}, {"softcap": learned}, {"margin": learned}, {"z_loss": learned}):
        with pytest.raises(TypeError, match=r"not differentiable in it; pass .*item"):
            crossent.cross_entropy(x, y, **settings)
    for make in (crossent.Focal, crossent.GCE, crossent.SCE):
        with pytest.raises(ValueError, match="must be a number"):
            make(learned)
    with pytest.raises(TypeError, match="parameters must be plain numbers, got Tensor for scale"):
        crossent.cross_entropy(x, y, penalty=Brier(learned))


# --- compiled, fake, exported -----------------------------------------------------------------------------------------

FOCAL = crossent.Focal(1.5)
COMPILED = {
    "penalty": lambda x, y, t, b, m: crossent.cross_entropy(x, y, penalty=FOCAL, label_smoothing=0.1),
    "made inside, everything": lambda x, y, t, b, m: crossent.cross_entropy(
        x, t, penalty=crossent.GCE(0.4), temperature=2.0, softcap=9.0, logit_bias=b, class_mask=m, margin=0.2, z_loss=0.1
    ),
    "a user's own": lambda x, y, t, b, m: crossent.cross_entropy(x, y, penalty=Brier(2.0), reduction="none"),
    "binary": lambda x, y, t, b, m: crossent.binary_cross_entropy_with_logits(
        x, t, penalty=crossent.Asymmetric(), mask=m, ignore_index=-1, label_smoothing=0.1, dim=1, pos_weight=b.detach()
    ),
    "statistics": lambda x, y, t, b, m: sum(crossent.cross_entropy_stats(x, y, logit_bias=b, reduction="mean")[:4]),
    "multilabel": lambda x, y, t, b, m: crossent.MultilabelCrossEntropyLoss(z_loss=0.1)(x, t > 0.5),
    "distillation": lambda x, y, t, b, m: crossent.distillation_loss(x, t, 2.0, y, 0.3),
    "vmap": lambda x, y, t, b, m: torch.vmap(
        lambda x, t: crossent.cross_entropy(x, t, penalty=FOCAL, logit_bias=b)
    )(x, t),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_to_one_graph(name):
    f = COMPILED[name]
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 7):
        x, b = torch.randn(n, 3, requires_grad=True), torch.randn(3, requires_grad=True)
        t, y, m = torch.rand(n, 3), torch.randint(3, (n,)), torch.tensor([True, True, True])
        ours, same = compiled(x, y, t, b, m), f(x, y, t, b, m)
        torch.testing.assert_close(ours, same)
        grads = (torch.autograd.grad(v.sum(), (x, b), allow_unused=True) for v in (ours, same))
        torch.testing.assert_close(*grads)


def test_fake_and_meta_tensors_keep_shapes_and_dtypes():
    x = torch.randn(2, 3, 4).bfloat16()
    y, t, mask = torch.zeros(2, 4, dtype=torch.long), torch.rand(2, 3, 4), torch.tensor([True, False, True])
    ce = crossent.cross_entropy
    calls = [
        lambda x, y, t, m: ce(x, y, penalty=FOCAL, temperature=2.0, class_mask=m, z_loss=0.1),
        lambda x, y, t, m: ce(x, t, softcap=2.0, logit_bias=t, margin=0.1, reduction="none"),
        lambda x, y, t, m: crossent.binary_cross_entropy_with_logits(x, t, mask=t > 0, penalty=crossent.Asymmetric()),
        lambda x, y, t, m: crossent.cross_entropy_stats(x, y, class_mask=m),
        lambda x, y, t, m: crossent.cross_entropy_stats(x, t, reduction="mean"),
        lambda x, y, t, m: crossent.multilabel_cross_entropy(x, t > 0),
        lambda x, y, t, m: crossent.distillation_loss(x, t, 2.0, y),
    ]
    for call in calls:
        real = call(x, y, t, mask)
        with FakeTensorMode() as mode:
            fake = call(*map(mode.from_tensor, (x, y, t, mask)))
        meta = call(*(v.to("meta") for v in (x, y, t, mask)))
        for others in (fake, meta):
            for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (real, others)), strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_export_and_load():
    class Model(torch.nn.Module):
        def forward(self, x, y):
            return crossent.cross_entropy(x, y, penalty=crossent.Focal(1.5), temperature=2.0)

    x, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    batch = torch.export.Dim("batch")
    program = torch.export.export(Model(), (x, y), dynamic_shapes=({0: batch}, {0: batch}))
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    x, y = torch.randn(9, 3), torch.randint(3, (9,))
    torch.testing.assert_close(torch.export.load(saved).module()(x, y), Model()(x, y))


# --- members that are others ------------------------------------------------------------------------------------------


def both(f, x, *args, **kwargs):
    """Compute a loss and its gradient."""
    x = x.detach().requires_grad_()
    loss = f(x, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def equivalences():
    """List pairs of calls that are the same, by name."""
    torch.manual_seed(4)
    y, t, c, b = (
        torch.tensor([0, 1, -100, 3, 4, 0]),
        torch.rand(6, 5),
        torch.rand(5),
        torch.randn(5),
    )
    mask = torch.tensor([True, False, True, True, True])
    inside = torch.tensor([0, 2, -100, 1, 3, 0])  # y in the classes that the mask leaves
    y_inside = torch.tensor([0, 3, -100, 2, 4, 0])
    ce, bce, more = (
        crossent.cross_entropy,
        crossent.binary_cross_entropy_with_logits,
        {"weight": c, "label_smoothing": 0.2},
    )

    def penalised(penalty, factor=1.0):
        return lambda x: factor * ce(x, y, penalty=penalty, **more)

    plain = penalised(None)
    one_hot = torch.nn.functional.one_hot(y.clamp_min(0), 5).float()
    teacher = torch.where(one_hot == 1, 0.0, -torch.inf)
    valid = y >= 0
    return {
        "Focal(0) = CE": (penalised(crossent.Focal(0.0)), plain),
        "Poly1(0) = CE": (penalised(crossent.Poly1(0.0)), plain),
        "GCE(0) = CE": (penalised(crossent.GCE(0.0)), plain),
        "GCE(q → 0) → CE": (penalised(crossent.GCE(1e-6)), plain),
        "SCE(1, 0) = CE": (penalised(crossent.SCE(1.0, 0.0)), plain),
        "Taylor(n → ∞) → CE": (penalised(crossent.Taylor(3000)), plain),
        "MAE = GCE(1)": (penalised(crossent.MAE()), penalised(crossent.GCE(1.0))),
        "MAE = Taylor(1)": (penalised(crossent.MAE()), penalised(crossent.Taylor(1))),
        "SCE = α Poly1": (penalised(crossent.SCE(0.3, 0.7)), penalised(crossent.Poly1(4 * 0.7 / 0.3), 0.3)),
        "SCE(0, β) = 4β MAE": (penalised(crossent.SCE(0.0, 0.7)), penalised(crossent.MAE(), 2.8)),
        "T = 1": (lambda x: ce(x, y, temperature=1, **more), plain),
        "z_loss = 0": (lambda x: ce(x, y, z_loss=0, **more), plain),
        "margin = 0": (lambda x: ce(x, y, margin=0, **more), plain),
        "no bias": (lambda x: ce(x, y, logit_bias=torch.zeros(6, 5), **more), plain),
        "all allowed": (lambda x: ce(x, y, class_mask=torch.ones(6, 5, dtype=torch.bool), **more), plain),
        "temperature = dividing": (lambda x: ce(x, y, temperature=3.0, **more), lambda x: ce(x / 3, y, **more)),
        "bias = adding": (lambda x: ce(x, y, logit_bias=b, **more), lambda x: ce(x + b, y, **more)),
        "margin = subtracting": (lambda x: ce(x, t, margin=0.7, **more), lambda x: ce(x - 0.7 * t, t, **more)),
        "cap = tanh": (lambda x: ce(x, y, softcap=2.0, **more), lambda x: ce(2 * (x / 2).tanh(), y, **more)),
        "mask = slicing": (
            lambda x: ce(x, y_inside, class_mask=mask, **more),
            lambda x: ce(x[:, mask], inside, c[mask], label_smoothing=0.2),
        ),
        "z-loss = adding": (
            lambda x: ce(x, y, z_loss=0.1),
            lambda x: ce(x, y) + 0.1 * x[valid].logsumexp(1).square().mean(),
        ),
        "one-hot = index": (
            lambda x: ce(x, one_hot, sample_weight=valid, penalty=FOCAL, margin=0.4, z_loss=0.1, label_smoothing=0.1),
            lambda x: ce(x, y, penalty=FOCAL, margin=0.4, z_loss=0.1, label_smoothing=0.1),
        ),
        "sigmoid = softmax over [x, 0]": (
            lambda x: bce(x.flatten(), t.flatten(), penalty=FOCAL, label_smoothing=0.1),
            lambda x: ce(torch.stack([x.flatten(), 0 * x.flatten()], 1), torch.stack([t.flatten(), 1 - t.flatten()], 1),
                         penalty=FOCAL, label_smoothing=0.1),
        ),
        "mask of elements = picking them": (lambda x: bce(x, t, mask=t > 0.3), lambda x: bce(x[t > 0.3], t[t > 0.3])),
        "asymmetric of equals = focal": (
            lambda x: bce(x, t, penalty=crossent.Asymmetric(2.0, 2.0, 0.0)), lambda x: bce(x, t, penalty=crossent.Focal(2.0))
        ),
        "focal_loss": (lambda x: crossent.focal_loss(x, y, 1.5, c), lambda x: ce(x, y, c, penalty=FOCAL)),
        "sigmoid focal = weights": (
            lambda x: crossent.sigmoid_focal_loss(x, t, 0.25, 1.5, "mean"),
            lambda x: bce(x, t, torch.tensor(0.75), pos_weight=torch.tensor(1 / 3), penalty=FOCAL),
        ),
        "multilabel of one label = index": (
            lambda x: crossent.multilabel_cross_entropy(x, [[0], [1], [], [3], [4], [0]], c, label_smoothing=0.1),
            lambda x: ce(x, one_hot, c, label_smoothing=0.1, sample_weight=valid),
        ),
        "distillation of one-hot = CE": (
            lambda x: crossent.distillation_loss(x, teacher, 3.0, y, 1.0), lambda x: 9 * ce(x, y, temperature=3.0)
        ),
        "distillation = CE of the teacher's probabilities": (
            lambda x: crossent.distillation_loss(x, 3 * t),
            lambda x: ce(x, (3 * t).softmax(1)) - ce(3 * t, (3 * t).softmax(1)),
        ),
        "distillation without a teacher": (
            lambda x: crossent.distillation_loss(x, t, 2.0, y, 0.0, weight=c), lambda x: ce(x, y, c)
        ),
        "a user's own penalty": (penalised(Brier(1.0)), lambda x: sum(
            w * ce(x, y, penalty=p, **more) for w, p in ((2.0, crossent.MAE()), (-2.0, HalfSquare()))
        )),
    }  # fmt: skip


@dataclass(frozen=True)
class HalfSquare(crossent.Penalty):
    """``(1 - p²) / 2``, so that Brier = 2 MAE - 2 HalfSquare: ``(1-p)² = 2 (1-p) - (1-p²)``."""

    def f(self, log_p):
        return -torch.expm1(2 * log_p) / 2

    def s(self, log_p):
        return (2 * log_p).exp()


EQUIVALENCES = equivalences()


@pytest.mark.parametrize("name", EQUIVALENCES)
def test_equivalence(name):
    x = torch.randn(6, 5, **DOUBLE) * 2
    loose = {"GCE(q → 0) → CE": 1e-5, "Taylor(n → ∞) → CE": 1e-6}.get(name, 1e-6)
    ours, same = (both(f, x) for f in EQUIVALENCES[name])
    torch.testing.assert_close(ours, same, rtol=loose, atol=1e-7, check_dtype=False)


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("kind", ["right", "wrong", "one-hot", "mixed"])
def test_a_confident_row_keeps_its_relative_accuracy(name, kind):
    margins = torch.tensor([1.0, 5.0, 10.0, 14.0, 16.7, 20.0, 30.0, 40.0])
    x = torch.zeros(8, 2)
    x[:, 1] = margins
    y = torch.full((8,), kind != "wrong").long()
    hot = torch.nn.functional.one_hot(y, 2).float()
    target = {"one-hot": hot, "mixed": 0.2 + 0.6 * hot}.get(kind, y)
    loss, grad = both(crossent.cross_entropy, x, target, reduction="none", penalty=PENALTIES[name])
    expected = reference.cross_entropy(
        x.double().numpy(), target.numpy(), reduction="none", **to_reference({"penalty": PENALTIES[name]})
    )
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(grad, expected.grad, rtol=2e-5, atol=1e-37)


def test_half_focal_where_subtraction_gives_nan():
    # torchvision's, mmdetection's and MONAI's formulas have nan gradients here
    x = torch.tensor([18.0, 40.0, 200.0, INF])
    loss, grad = both(crossent.sigmoid_focal_loss, x, torch.ones(4), None, 0.5)
    rest = torch.sigmoid(-x)
    torch.testing.assert_close(loss, rest**1.5, rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(grad, -1.5 * rest**1.5, rtol=1e-5, atol=1e-37)
    pair = torch.stack([x, torch.zeros(4)], 1)[:3]
    loss, grad = both(crossent.focal_loss, pair, torch.zeros(3, dtype=torch.long), 0.5, reduction="none")
    torch.testing.assert_close(grad[:, 0], -1.5 * rest[:3] ** 1.5, rtol=1e-5, atol=1e-37)


@dtypes
@pytest.mark.parametrize("scale", [0.1, 3.0, 15.0])
def test_error_is_at_most_that_of_the_textbook(dtype, scale):
    """Within twice the error of the formulas written out in this dtype's arithmetic, which is what people have."""
    torch.manual_seed(1)
    x = (torch.randn(64, 257) * scale).to(dtype)
    y = torch.randint(257, (64,))
    y[:32] = x[:32].argmax(1)

    def textbook(x, y):
        log_p = (x / 2).log_softmax(1).gather(1, y[:, None])
        return (-((1 - log_p.exp()) ** 2) * log_p).mean() + 0.01 * (x / 2).logsumexp(1).square().mean()

    settings = {"temperature": 2.0, "z_loss": 0.01}
    expected = reference.cross_entropy(x.double().numpy(), y.numpy(), penalty=reference.focal(2.0), **settings)
    errors = []
    for f, more in ((crossent.cross_entropy, settings | {"penalty": crossent.Focal(2.0)}), (textbook, {})):
        loss, grad = both(f, x, y, **more)
        off = np.abs(grad.double().numpy() - expected.grad)
        errors.append((abs(loss.item() - expected.loss), off.max(), np.sqrt((off**2).sum())))
    sizes = (expected.loss, np.abs(expected.grad).max(), np.sqrt((expected.grad**2).sum()))
    for ours, theirs, size in zip(*errors, sizes, strict=True):
        assert ours <= 2 * theirs + torch.finfo(dtype).eps * size


def test_results_do_not_depend_on_the_number_of_threads():
    x, y = torch.randn(1, 100003), torch.tensor([5])
    rows, many = torch.randn(60001, 3), torch.randint(3, (60001,))

    def results():
        for penalty in (crossent.Focal(1.3), crossent.GCE(0.6), crossent.Taylor(3)):
            for more in ({"reduction": "none"}, {"label_smoothing": 0.1, "softcap": 4.0, "z_loss": 0.1}):
                yield from both(crossent.cross_entropy, rows, many, penalty=penalty, **more)
                yield from both(crossent.cross_entropy, x, y, penalty=penalty, **more)
        yield from both(crossent.sigmoid_focal_loss, x, x.sigmoid(), 0.25, 1.7)
        penalty = crossent.Asymmetric(0.5, 3.5, 0.1)
        yield from both(crossent.binary_cross_entropy_with_logits, rows, rows.sigmoid(), penalty=penalty)
        for i in range(4):
            yield from both(lambda x, i=i: crossent.cross_entropy_stats(x, y, reduction="mean")[i], x)

    try:
        one = list(results())
        torch.set_num_threads(2)
        two = list(results())
        torch.set_num_threads(5)
        five = list(results())
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, five, strict=True))


def test_no_input_is_written():
    x, y, t, c, b, u = (
        torch.randn(8, 5),
        torch.randint(5, (8,)),
        torch.rand(8, 5),
        torch.rand(5),
        torch.rand(5),
        torch.rand(8),
    )
    mask, some = torch.rand(8, 5) < 0.9, torch.rand(8, 5) < 0.7
    mask[torch.arange(8), y] = True
    given = (x, y, t, c, b, u, mask, some)
    before = [v.clone() for v in given]
    settings = {
        "softcap": 3.0,
        "margin": 0.1,
        "temperature": 2.0,
        "z_loss": 0.1,
        "label_smoothing": 0.1,
        "penalty": FOCAL,
    }
    for target in (y, t):
        both(crossent.cross_entropy, x, target, c, logit_bias=b, class_mask=mask, sample_weight=u, **settings)
        both(lambda *a, **k: crossent.cross_entropy_stats(*a, **k).entropy, x, target, class_mask=mask, logit_bias=b)
    both(crossent.binary_cross_entropy_with_logits, x, t, c, mask=some, ignore_index=0, penalty=crossent.Asymmetric())
    both(crossent.multilabel_cross_entropy, x, some, c)
    both(crossent.distillation_loss, x, t, 2.0, y, 0.3, weight=c)
    crossent.class_weights(y.bincount(minlength=5))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
