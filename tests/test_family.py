"""The laws of the whole family: every penalty, transformation, mask and extra term, against the reference in float64."""

import io
import math
import pickle
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import (
    BINARY_FAMILY,
    DTYPES,
    FAMILY,
    IMPLEMENTATIONS,
    INF,
    PENALTIES,
    SOFTMAX,
    Case,
    law,
    rounded,
    tensors,
    to_reference,
)
from cases import (
    SPECIAL as SPECIAL_SETTINGS,
)
from closeness import assert_close_in_family, assert_no_worse
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import crossent
from crossent import reference
from crossent.core.target import SPECIAL

implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


@contextmanager
def skipping_refusals(impl):
    """Skip what an implementation refuses."""
    try:
        yield
    except RuntimeError as refusal:
        if impl == "eager" or "goes to torch operations" not in str(refusal):
            raise
        pytest.skip(str(refusal))


@implementations
@dtypes
@law(FAMILY)
def test_softmax_value_and_gradients(case, impl, dtype):
    case = rounded(case, dtype)
    for reduction in ("none", "sum", "mean"):
        if reduction != "mean" and "denominator" in case.settings:
            continue
        x, t, settings = tensors(case, dtype)
        leaves = {"x": x}
        if t.is_floating_point():
            leaves["t"] = t.requires_grad_()
        if "logit_bias" in settings and impl == "eager":
            leaves["bias"] = settings["logit_bias"].requires_grad_()
        with skipping_refusals(impl):
            loss = crossent.cross_entropy(x, t, reduction=reduction, impl=impl, **settings)
        expected = reference.cross_entropy(case.logits, case.target, reduction=reduction, **to_reference(case.settings))
        assert loss.dtype == dtype
        assert_close_in_family(loss, expected.loss, dtype)
        loss.sum().backward()
        assert_close_in_family(x.grad, expected.grad, dtype)
        if "t" in leaves:
            assert_close_in_family(t.grad, expected.target_grad, dtype)
        if "bias" in leaves and "softcap" not in settings:
            bias, grad = leaves["bias"], expected.grad
            if bias.dim() == 1 and grad.ndim > 1:
                grad = np.moveaxis(grad, settings.get("dim", 1), -1).reshape(-1, len(bias)).sum(0)
            # ∂x'/∂x is 1/T without a cap, as ∂x'/∂bias
            assert_close_in_family(bias.grad, grad, dtype, terms=32 * x.numel())


@implementations
@dtypes
@law(BINARY_FAMILY)
def test_sigmoid_value_and_gradients(case, impl, dtype):
    case = rounded(case, dtype)
    for reduction in ("none", "sum", "mean"):
        if reduction != "mean" and "denominator" in case.settings:
            continue
        x, t, settings = tensors(case, dtype)
        t.requires_grad_()
        with skipping_refusals(impl):
            loss = crossent.binary_cross_entropy_with_logits(x, t, reduction=reduction, impl=impl, **settings)
        expected = reference.binary_cross_entropy_with_logits(
            case.logits, case.target, reduction=reduction, **to_reference(case.settings)
        )
        assert loss.dtype == dtype
        assert_close_in_family(loss, expected.loss, dtype)
        loss.sum().backward()
        assert_close_in_family(x.grad, expected.grad, dtype)
        assert_close_in_family(t.grad, expected.target_grad, dtype)


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


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", SPECIAL_SETTINGS)
def test_every_option_has_its_tangents(name, smoothing, soft):
    """Forward mode along logits, class weights and bias, beside finite differences, with everything that the record has."""
    options = dict(SPECIAL_SETTINGS[name])
    if name == "impossible class":
        options["logit_bias"] = np.where(np.isinf(options["logit_bias"]), -3.0, options["logit_bias"])
    given = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    generator = torch.Generator().manual_seed(4)
    x, c, b = torch.randn(7, 5, generator=generator, **DOUBLE), torch.rand(5, generator=generator, **DOUBLE), None
    t, y = torch.rand(7, 5, generator=generator, **DOUBLE), torch.tensor([0, 1, -100, 3, 4, 0, 1])
    b = given.pop("logit_bias", torch.zeros(5, **DOUBLE))
    if soft and "class_mask" in given:
        t = t * given["class_mask"]

    def loss(x, c, b):
        return crossent.cross_entropy(
            x, t if soft else y, c, label_smoothing=smoothing, reduction="sum", logit_bias=b, **given
        )

    along = [torch.randn(v.shape, generator=generator, **DOUBLE) for v in (x, c, b)]
    for which in range(3):
        tangents = tuple(v if i == which else torch.zeros_like(v) for i, v in enumerate(along))
        value, tangent = torch.func.jvp(loss, (x, c, b), tangents)
        torch.testing.assert_close(value, loss(x, c, b))
        h = 1e-5
        ahead, behind = (loss(*(v + s * h * d for v, d in zip((x, c, b), tangents, strict=True))) for s in (1, -1))
        assert abs(tangent - (ahead - behind) / (2 * h)) <= 1e-6 * (1 + abs(tangent)), which


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
    assert seconds[0] is not None
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
        lambda x, t: crossent.cross_entropy(x, t, penalty=FOCAL, logit_bias=b.detach())
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
        torch.rand(6, 5, **DOUBLE),
        torch.rand(5, **DOUBLE),
        torch.randn(5, **DOUBLE),
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
    one_hot = torch.nn.functional.one_hot(y.clamp_min(0), 5).double()
    teacher = torch.where(one_hot == 1, 0.0, -torch.inf)
    valid = y >= 0
    return {
        "Focal(0) = CE": (penalised(crossent.Focal(0.0)), plain),
        "Poly1(0) = CE": (penalised(crossent.Poly1(0.0)), plain),
        "GCE(0) = CE": (penalised(crossent.GCE(0.0)), plain),
        "GCE(q → 0) → CE": (penalised(crossent.GCE(1e-6)), plain),
        "SCE(1, 0) = CE": (penalised(crossent.SCE(1.0, 0.0)), plain),
        "Taylor(n → ∞) → CE": (lambda x: penalised(crossent.Taylor(3000))(x / 4), lambda x: plain(x / 4)),
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
            lambda x: bce(x, t, torch.tensor(0.75, **DOUBLE), pos_weight=torch.tensor(1 / 3, **DOUBLE), penalty=FOCAL),
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
    # some are limits, which are not reached
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
    assert_close_in_family(loss, expected.loss, torch.float32, roundings=64, terms=0)
    assert_close_in_family(grad, expected.grad, torch.float32, terms=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_at_0_is_cross_entropy_to_the_last_bit(dtype, smoothing):
    x, y = (torch.randn(64, 7) * 8).to(dtype).requires_grad_(), torch.randint(7, (64,))
    t = torch.rand(64, 7).to(dtype)
    for focal, plain in (
        (
            crossent.focal_loss(x, y, 0.0, label_smoothing=smoothing),
            crossent.cross_entropy(x, y, label_smoothing=smoothing),
        ),
        (
            crossent.binary_cross_entropy_with_logits(x, t, label_smoothing=smoothing, penalty=crossent.Focal(0.0)),
            crossent.binary_cross_entropy_with_logits(x, t, label_smoothing=smoothing),
        ),
    ):
        assert torch.equal(focal, plain)
        assert torch.equal(torch.autograd.grad(focal, x)[0], torch.autograd.grad(plain, x)[0])


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
    ours = both(crossent.cross_entropy, x, y, penalty=crossent.Focal(2.0), **settings)
    assert_no_worse(ours, both(textbook, x, y), expected[:2], dtype)


def test_results_do_not_depend_on_the_number_of_threads():
    x, y = torch.randn(1, 50003), torch.tensor([5])
    rows, many = torch.randn(40001, 3), torch.randint(3, (40001,))
    t, some = torch.rand(1, 50003), torch.rand(40001, 3)

    def results():
        for penalty in (crossent.Focal(1.3), crossent.GCE(0.6), crossent.Taylor(3)):
            for more in ({"reduction": "none"}, {"label_smoothing": 0.1, "softcap": 4.0, "z_loss": 0.1}):
                yield from both(crossent.cross_entropy, rows, many, penalty=penalty, **more)
                yield from both(crossent.cross_entropy, x, y, penalty=penalty, **more)
        yield from both(crossent.sigmoid_focal_loss, x, t, 0.25, 1.7)
        penalty = crossent.Asymmetric(0.5, 3.5, 0.1)
        yield from both(crossent.binary_cross_entropy_with_logits, rows, some, penalty=penalty)
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


@pytest.mark.parametrize("seed", range(80))
def test_any_combination(seed):
    """Everything combines with everything, in any layout, as the reference says."""
    rng = np.random.default_rng(seed)
    shape = [(4, 5), (2, 5, 3), (5,), (2, 5, 2, 2)][seed % 4]
    axis = min(len(shape) - 1, 1)
    rows = shape[:axis] + shape[axis + 1 :]

    def sometimes(**option):
        return option if rng.random() < 0.5 else {}

    mask = rng.random((5,) if rng.random() < 0.5 else shape) < 0.7
    np.moveaxis(mask, 0 if mask.ndim == 1 else axis, 0)[:2] = True
    settings = {
        **sometimes(weight=rng.random(5)),
        **sometimes(label_smoothing=0.3),
        **sometimes(sample_weight=rng.random(rows)),
        **sometimes(temperature=rng.uniform(0.5, 3)),
        **sometimes(softcap=rng.uniform(2, 5)),
        **sometimes(logit_bias=rng.normal(size=5 if rng.random() < 0.5 else shape)),
        **sometimes(margin=0.5),
        **sometimes(class_mask=mask),
        **sometimes(z_loss=0.1),
        **sometimes(penalty=list(PENALTIES.values())[rng.integers(len(PENALTIES))]),
    }
    reduction = ["none", "sum", "mean"][rng.integers(3)]
    if reduction == "mean":
        settings |= {**sometimes(denominator=7.0)}
    x, target = rng.normal(size=shape) * 2, rng.integers(0, 2, rows)
    if rng.random() < 0.5:
        target = np.where(rng.random(rows) < 0.3, -100, target)
    elif rng.random() < 0.5:
        target = rng.random(shape) * (mask if mask.shape == shape else mask.reshape(-1, *[1] * (len(shape) - 1 - axis)))
    got_x, got_t, made = tensors(Case("", x, np.asarray(target), settings), torch.float64)
    if got_t.is_floating_point():
        got_t.requires_grad_()
    loss = crossent.cross_entropy(got_x, got_t, reduction=reduction, **made)
    expected = reference.cross_entropy(x, target, reduction=reduction, **to_reference(settings))
    assert_close_in_family(loss, expected.loss, torch.float64)
    loss.sum().backward()
    assert_close_in_family(got_x.grad, expected.grad, torch.float64)
    if got_t.is_floating_point():
        assert_close_in_family(got_t.grad, expected.target_grad, torch.float64)
    options = {k: v for k, v in to_reference(settings).items() if k != "reduction"}
    theirs = reference.cross_entropy_stats(x, target, reduction=reduction, **options)
    ours = crossent.cross_entropy_stats(got_x, got_t, reduction=reduction, **made)
    for a, b in zip(ours, theirs, strict=True):
        assert_close_in_family(a, b, torch.float64)


# --- statistics -------------------------------------------------------------------------------------------------------

STATISTICS = [case for case in FAMILY + SOFTMAX if not case.name.startswith(("extreme", "volume"))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@law(STATISTICS)
def test_statistics(case, dtype):
    case = rounded(case, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for reduction in ("none", "sum", "mean"):
        if reduction != "mean" and "denominator" in case.settings:
            continue
        x, t, settings = tensors(case, dtype)
        ours = crossent.cross_entropy_stats(x, t, reduction=reduction, **settings)
        theirs = reference.cross_entropy_stats(
            case.logits, case.target, reduction=reduction, **to_reference(case.settings)
        )
        assert ours.loss.dtype == dtype
        assert ours.count.dtype == torch.int64
        assert ours.correct.dtype == (torch.bool if reduction == "none" else wide)
        for name, got, expected in zip(ours._fields, ours, theirs, strict=True):
            assert got.shape == np.shape(expected), name
            assert got.dtype in (torch.bool, torch.int64, dtype if name == "loss" else wide), name
            assert_close_in_family(got, expected, dtype if name == "loss" else wide, terms=32)


@law([case for case in STATISTICS if case.logits.size])
def test_gradients_of_statistics(case):
    options = {k: v for k, v in case.settings.items() if k in ("ignore_index", "dim", *SPECIAL["cross_entropy"])}
    theirs = reference.cross_entropy_stats_gradients(case.logits, case.target, **to_reference(options))
    x, t, settings = tensors(case._replace(settings=options), torch.float64)
    ours = crossent.cross_entropy_stats(x, t, **settings)
    for name, expected in theirs._asdict().items():
        (grad,) = torch.autograd.grad(getattr(ours, name).sum(), x, retain_graph=True)
        # near uniform, log p and -H are next to each other
        np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-15)


def test_statistics_in_one_backward_pass():
    x, y, t = torch.randn(6, 5), torch.tensor([0, 1, -100, 3, 4, 0]), torch.rand(6, 5, requires_grad=True)
    x.requires_grad_()
    for target in (y, t):
        stats = crossent.cross_entropy_stats(x, target, reduction="mean", penalty=FOCAL, margin=0.3)
        total = stats.loss + 0.1 * stats.lse - 0.2 * stats.target_log_prob + 0.3 * stats.entropy
        inputs = [v for v in (x, target) if v.requires_grad]
        together = torch.autograd.grad(total, inputs, retain_graph=True)
        parts = [torch.autograd.grad(v, inputs, retain_graph=True, allow_unused=True) for v in stats[:4]]
        for i, g in enumerate(together):
            torch.testing.assert_close(g, sum(w * p[i] for w, p in zip((1, 0.1, -0.2, 0.3), parts, strict=True)))
        assert not any(v.requires_grad for v in stats[4:])
    torch.testing.assert_close(stats.loss, crossent.cross_entropy(x, t, penalty=FOCAL, margin=0.3))


def test_totals_add_up_and_means_do_not():
    x, y, c = torch.randn(12, 5, **DOUBLE), torch.arange(12) % 5, torch.rand(5, **DOUBLE)
    y[[0, 1, 2, 4]] = -100
    batches = [slice(0, 5), slice(5, 12)]
    whole, grad = both(crossent.cross_entropy, x, y, c)
    parts = [crossent.cross_entropy_stats(x[b], y[b], c, reduction="sum") for b in batches]
    torch.testing.assert_close(sum(p.loss for p in parts) / sum(p.weight_sum for p in parts), whole)
    means = [crossent.cross_entropy(x[b], y[b], c) for b in batches]
    assert abs(sum(means) / 2 - whole) > 0.01
    denominator = sum(p.weight_sum for p in parts)
    grads = [both(crossent.cross_entropy, x[b], y[b], c, denominator=denominator)[1] for b in batches]
    torch.testing.assert_close(torch.cat(grads), grad)
    assert sum(p.count for p in parts) == 8
    assert sum(p.correct for p in parts) == ((x.argmax(1) == y) & (y >= 0)).sum()


# --- members with names of their own ----------------------------------------------------------------------------------


def arrays(*tensors):
    return (v.detach().double().numpy() for v in tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3), (5,)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_multilabel(dtype, shape, reduction):
    x, amounts = torch.randn(shape).to(dtype), torch.rand(shape).to(dtype)
    axis = min(len(shape) - 1, 1)
    labels = amounts > 0.6
    if len(shape) > 1:
        labels[0] = False
        x[0] = torch.nan
    rows = shape[:axis] + shape[axis + 1 :]
    settings = {"label_smoothing": 0.2, "z_loss": 0.1, "margin": 0.2, "reduction": reduction}
    c, u = torch.rand(5).to(dtype), torch.rand(rows).to(dtype)
    for target in (labels, amounts * labels, labels.long()):
        got = both(
            crossent.multilabel_cross_entropy, x, target, c, sample_weight=u, penalty=crossent.Focal(1.0), **settings
        )
        wide = dict(zip(("weight", "sample_weight"), arrays(c, u), strict=True))
        expected = reference.multilabel_cross_entropy(
            *arrays(x, target), penalty=reference.focal(1.0), **settings, **wide
        )
        assert got[0].dtype == dtype
        assert_close_in_family(got[0], expected.loss, dtype)
        assert_close_in_family(got[1], expected.grad, dtype)
    if dtype == torch.float64:
        t = (amounts * labels).requires_grad_()
        crossent.multilabel_cross_entropy(
            x, t, c, sample_weight=u, penalty=crossent.Focal(1.0), **settings
        ).sum().backward()
        expected = reference.multilabel_cross_entropy(*arrays(x, t), penalty=reference.focal(1.0), **settings, **wide)
        assert_close_in_family(t.grad, expected.target_grad, dtype)


def test_multilabel_lists():
    x = torch.randn(4, 5)
    lists = [[0, 2, 2], (), torch.tensor([4]), range(5)]
    hot = torch.tensor([[1, 0, 1, 0, 0], [0] * 5, [0, 0, 0, 0, 1], [1] * 5])
    for reduction in ("none", "mean"):
        ours = both(crossent.multilabel_cross_entropy, x, lists, reduction=reduction)
        torch.testing.assert_close(ours, both(crossent.multilabel_cross_entropy, x, hot, reduction=reduction))
    module = crossent.MultilabelCrossEntropyLoss(reduction="none")
    torch.testing.assert_close(module(x, lists), crossent.multilabel_cross_entropy(x, hot, reduction="none"))
    nothing = both(crossent.multilabel_cross_entropy, x, [[]] * 4)
    assert nothing[0].isnan()
    assert (nothing[1] == 0).all()
    assert crossent.multilabel_cross_entropy(x, [[]] * 4, empty="zero") == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", ["soft", "indices", "probabilities"])
def test_distillation(dtype, reduction, kind):
    x, z = torch.randn(2, 5, 3).to(dtype), (torch.randn(2, 5, 3) * 2).to(dtype)
    c, u = torch.rand(5).to(dtype), torch.rand(2, 3).to(dtype)
    target = {
        "soft": None,
        "indices": torch.tensor([[0, 1, -100], [4, 2, 0]]),
        "probabilities": torch.rand(2, 5, 3).to(dtype),
    }[kind]
    if kind == "indices":
        x[0, :, 2], z[0, :, 2] = torch.nan, torch.inf
    settings = {"reduction": reduction, "label_smoothing": 0.1}
    z.requires_grad_()
    leaf = x.clone().requires_grad_()
    loss = crossent.distillation_loss(
        leaf, z, 2.0, target, 0.7, weight=c, sample_weight=u, teacher_grad=True, **settings
    )
    loss.sum().backward()
    wide = dict(zip(("weight", "sample_weight"), arrays(c, u), strict=True))
    t = target if target is None else target.double().numpy() if target.is_floating_point() else target.numpy()
    expected = reference.distillation_loss(*arrays(x, z), 2.0, t, 0.7, **settings, **wide)
    assert loss.dtype == dtype
    assert_close_in_family(loss, expected.loss, dtype, terms=32)
    # two gradients, each rounded to the logits' dtype before they are added
    roundings = (
        1 if target is None else torch.finfo(dtype).eps / torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    )
    assert_close_in_family(leaf.grad, expected.grad, dtype, terms=32 + 2 * roundings)
    assert_close_in_family(z.grad, expected.target_grad, dtype, terms=128)
    constant = crossent.distillation_loss(leaf, z, 2.0, target, 0.7, weight=c, sample_weight=u, **settings)
    torch.testing.assert_close(constant, loss)
    assert torch.autograd.grad(constant.sum(), z, allow_unused=True) == (None,)


@pytest.mark.parametrize("impl", [None, "eager"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_who_agrees_with_the_teacher_is_exactly_0_from_it(dtype, reverse, impl):
    x = (torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    mask = torch.arange(300) % 3 > 0
    for options in ({}, {"class_mask": mask}, {"temperature": 3.0}):
        loss = crossent.distillation_loss(x, x.clone(), reduction="none", reverse=reverse, impl=impl, **options)
        assert torch.equal(loss, torch.zeros_like(loss))


def test_distillation_is_torchs_kl_div():
    x, z = torch.randn(6, 4, **DOUBLE), torch.randn(6, 4, **DOUBLE)

    def torchs(x, temperature):
        p, q = (x / temperature).log_softmax(1), (z / temperature).softmax(1)
        return torch.nn.functional.kl_div(p, q, reduction="batchmean") * temperature**2

    for temperature in (1.0, 4.0):
        ours = both(crossent.distillation_loss, x, z, temperature)
        torch.testing.assert_close(ours, both(torchs, x, temperature))
        module = crossent.DistillationLoss(temperature)
        torch.testing.assert_close(module(x, z), ours[0])
    assert abs(crossent.distillation_loss(x, x)) < 1e-15
    x[:, 1] = z[:, 1] = -torch.inf  # what both find impossible
    ours = both(crossent.distillation_loss, x, z)
    without = [0, 2, 3]
    torch.testing.assert_close(ours[0], crossent.distillation_loss(x[:, without], z[:, without]))
    assert (ours[1][:, 1] == 0).all()


def test_contrastive_is_clips():
    a, b, log_scale = (
        torch.nn.functional.normalize(torch.randn(6, 3, **DOUBLE), dim=1).requires_grad_(),
        torch.nn.functional.normalize(torch.randn(6, 3, **DOUBLE), dim=1).requires_grad_(),
        torch.tensor(2.66, **DOUBLE).requires_grad_(),
    )
    loss = crossent.contrastive_cross_entropy(a, b, log_scale.exp())
    grads = torch.autograd.grad(loss, (a, b, log_scale))
    scale = log_scale.exp().item()
    expected = reference.contrastive_cross_entropy(*arrays(a, b), scale)
    assert_close_in_family(loss, expected.loss, torch.float64)
    for got, theirs in zip(grads, (expected.a_grad, expected.b_grad, expected.scale_grad * scale), strict=True):
        assert_close_in_family(got, theirs, torch.float64, terms=64)
    # two machines, each with half of the vectors: their losses and gradients average to the whole
    halves = [
        crossent.contrastive_cross_entropy(mine[i : i + 3], everybodys, scale, offset=i)
        for i in (0, 3)
        for mine, everybodys in ((a, b), (b, a))
    ]
    torch.testing.assert_close(sum(halves) / 4, loss)


@dtypes
def test_sigmoid_focal(dtype):
    x, t = torch.randn(6, 4).to(dtype), (torch.rand(6, 4) > 0.7).to(dtype)
    for alpha, gamma in ((0.25, 2.0), (1.0, 1.5), (0.0, 2.0), (None, 0.5), (-1.0, 2.0)):
        got = both(crossent.sigmoid_focal_loss, x, t, alpha, gamma, "mean", denominator=3.0, label_smoothing=0.1)
        expected = reference.sigmoid_focal_loss(
            *arrays(x, t), alpha, gamma, "mean", denominator=3.0, label_smoothing=0.1
        )
        assert_close_in_family(got[0], expected.loss, dtype)
        assert_close_in_family(got[1], expected.grad, dtype)
    infinite = torch.tensor([-torch.inf, torch.inf])
    assert crossent.sigmoid_focal_loss(infinite, torch.tensor([0.0, 1.0]), 1.0).tolist() == [0.0, 0.0]
    assert crossent.sigmoid_focal_loss(infinite, torch.tensor([0.0, 0.0]), 1.0).tolist() == [0.0, 0.0]


# --- third parties, by the formulas of their documentation and source -------------------------------------------------


def torchvision_focal(inputs, targets, alpha, gamma):
    p = torch.sigmoid(inputs)
    ce_loss = torch.nn.functional.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = ce_loss * ((1 - p_t) ** gamma)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * loss if alpha >= 0 else loss


def timm_asymmetric(x, y, gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8):
    xs_pos = torch.sigmoid(x)
    xs_neg = (1 - xs_pos + clip).clamp(max=1)
    loss = y * torch.log(xs_pos.clamp(min=eps)) + (1 - y) * torch.log(xs_neg.clamp(min=eps))
    pt = xs_pos * y + xs_neg * (1 - y)
    return -(loss * torch.pow(1 - pt, gamma_pos * y + gamma_neg * (1 - y))).sum()


def timm_soft_target(x, target):
    return torch.sum(-target * torch.nn.functional.log_softmax(x, dim=-1), dim=-1).mean()


def timm_label_smoothing(x, target, smoothing=0.1):
    logprobs = torch.nn.functional.log_softmax(x, dim=-1)
    nll_loss = -logprobs.gather(dim=-1, index=target.unsqueeze(1)).squeeze(1)
    return ((1.0 - smoothing) * nll_loss + smoothing * -logprobs.mean(dim=-1)).mean()


def optax_poly(logits, labels, epsilon=2.0):
    p = torch.softmax(logits, -1)
    cross_entropy = -(labels * torch.log_softmax(logits, -1)).sum(-1)
    return cross_entropy + epsilon * (labels * (1 - p)).sum(-1)


def optax_sigmoid_focal(logits, labels, alpha=None, gamma=2.0):
    p = torch.sigmoid(logits)
    ce_loss = -labels * torch.nn.functional.logsigmoid(logits) - (1 - labels) * torch.nn.functional.logsigmoid(-logits)
    loss = ce_loss * (1 - (p * labels + (1 - p) * (1 - labels))) ** gamma
    return loss if alpha is None else (alpha * labels + (1 - alpha) * (1 - labels)) * loss


def keras_categorical_generalized(y_true, logits, q=0.5):
    prob = (torch.softmax(logits, -1) * y_true).sum(-1)
    return (1 - prob**q) / q


def keras_categorical_focal(y_true, logits, alpha=0.25, gamma=2.0):
    p = torch.softmax(logits, -1)
    return (alpha * (1 - p) ** gamma * -(y_true * p.log())).sum(-1)


def keras_binary(y_true, logits, label_smoothing):
    y = y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, y)


def megatron_z_loss(logits, target, factor):
    return torch.nn.functional.cross_entropy(logits, target) + factor * logits.logsumexp(-1).square().mean()


def gemma_cap(logits, target, cap):
    return torch.nn.functional.cross_entropy(torch.tanh(logits / cap) * cap, target)


def balanced_softmax(logits, target, count):
    return torch.nn.functional.cross_entropy(logits + count.unsqueeze(0).expand(len(logits), -1).log(), target)


def am_softmax(cosine, target, m, s):
    one_hot = torch.nn.functional.one_hot(target, cosine.shape[1]).to(cosine.dtype)
    return torch.nn.functional.cross_entropy(s * (cosine - m * one_hot), target)


def sce_authors(pred, labels, alpha, beta):
    ce = torch.nn.functional.cross_entropy(pred, labels)
    pred = torch.softmax(pred, dim=1).clamp(min=1e-7, max=1.0)
    one_hot = torch.nn.functional.one_hot(labels, pred.shape[1]).to(pred.dtype).clamp(min=1e-4, max=1.0)
    return alpha * ce + beta * (-torch.sum(pred * torch.log(one_hot), dim=1)).mean()


def third_parties():
    """List pairs of calls: ours, and a formula of somebody else's."""
    torch.manual_seed(5)
    y, soft, hot = torch.arange(6) % 4, torch.rand(6, 4, **DOUBLE), torch.eye(4, **DOUBLE)[torch.arange(6) % 4]
    labels, count = (torch.rand(6, 4) > 0.6).double(), torch.tensor([1000.0, 100, 10, 1], **DOUBLE)
    ce, bce = crossent.cross_entropy, crossent.binary_cross_entropy_with_logits
    return {
        "torchvision sigmoid_focal_loss": (
            lambda x: crossent.sigmoid_focal_loss(x, labels), lambda x: torchvision_focal(x, labels, 0.25, 2.0)
        ),
        "timm AsymmetricLossMultiLabel": (
            lambda x: bce(x, labels, reduction="sum", penalty=crossent.Asymmetric(1, 4, 0.05)),
            lambda x: timm_asymmetric(x, labels),
        ),
        "timm SoftTargetCrossEntropy": (lambda x: ce(x, soft), lambda x: timm_soft_target(x, soft)),
        "timm LabelSmoothingCrossEntropy": (
            lambda x: ce(x, y, label_smoothing=0.1), lambda x: timm_label_smoothing(x, y)
        ),
        "optax poly_loss_cross_entropy": (
            lambda x: ce(x, soft, reduction="none", penalty=crossent.Poly1(2.0)), lambda x: optax_poly(x, soft)
        ),
        "optax sigmoid_focal_loss": (
            lambda x: crossent.sigmoid_focal_loss(x, labels, None), lambda x: optax_sigmoid_focal(x, labels)
        ),
        "Keras CategoricalGeneralizedCrossEntropy": (
            lambda x: ce(x, hot, reduction="none", penalty=crossent.GCE(0.5)),
            lambda x: keras_categorical_generalized(hot, x),
        ),
        "Keras CategoricalFocalCrossentropy": (
            lambda x: 0.25 * crossent.focal_loss(x, hot, reduction="none"), lambda x: keras_categorical_focal(hot, x)
        ),
        "Keras BinaryCrossentropy with smoothing": (
            lambda x: bce(x, labels, label_smoothing=0.1), lambda x: keras_binary(labels, x, 0.1)
        ),
        "z-loss": (lambda x: ce(x, y, z_loss=1e-2), lambda x: megatron_z_loss(x, y, 1e-2)),
        "Gemma's soft cap": (lambda x: ce(x, y, softcap=3.0), lambda x: gemma_cap(x, y, 3.0)),
        "balanced softmax": (
            lambda x: ce(x, y, logit_bias=(count / count.sum()).log()), lambda x: balanced_softmax(x, y, count)
        ),
        "AM-softmax": (
            lambda x: ce(x.tanh(), y, margin=0.35, temperature=1 / 30.0), lambda x: am_softmax(x.tanh(), y, 0.35, 30.0)
        ),
        "the authors' SCE": (
            lambda x: ce(x, y, penalty=crossent.SCE(0.1, 1.0, A=math.log(1e-4))), lambda x: sce_authors(x, y, 0.1, 1.0)
        ),
    }  # fmt: skip


THIRD_PARTIES = third_parties()


@pytest.mark.parametrize("name", THIRD_PARTIES)
def test_third_party(name):
    ours, theirs = (
        both(f, torch.randn(6, 4, **DOUBLE, generator=torch.Generator().manual_seed(6))) for f in THIRD_PARTIES[name]
    )
    # float64 less the digits that their formulas lose by subtraction and by an epsilon under a logarithm
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_class_weights():
    counts = [5000, 300, 0, 20, 1]
    for given in (counts, torch.tensor(counts), np.array(counts)):
        for scheme, beta in (("balanced", 0.9), ("effective", 0.0), ("effective", 0.999)):
            ours = crossent.class_weights(given, scheme, beta)
            assert ours.dtype == torch.float32
            np.testing.assert_allclose(ours, reference.class_weights(counts, scheme, beta), rtol=1e-6)
    x, y = torch.randn(8, 2), torch.tensor([0] * 7 + [1])
    crossent.cross_entropy(x, y, crossent.class_weights(torch.bincount(y)))
    with pytest.raises(ValueError, match="'balanced' or 'effective', got 'sqrt'"):
        crossent.class_weights(counts, "sqrt")
    with pytest.raises(ValueError, match="beta must lie in"):
        crossent.class_weights(counts, "effective", 1.0)
    for wrong in ([], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="none negative and not all zero"):
            crossent.class_weights(wrong)


def test_floors():
    for n in (1, 2, 10, 1000):
        assert crossent.expected_initial_loss(n) == pytest.approx(reference.expected_initial_loss(n), rel=1e-14)
        assert crossent.double_softmax_floor(n) == pytest.approx(
            reference.double_softmax_floor(n), rel=1e-12, abs=1e-15
        )
        uniform = crossent.cross_entropy(torch.zeros(n, **DOUBLE), torch.tensor(0))
        assert crossent.expected_initial_loss(n) == pytest.approx(uniform.item(), rel=1e-14)
        twice = crossent.cross_entropy(torch.eye(n, **DOUBLE)[0], torch.tensor(0))
        assert crossent.double_softmax_floor(n) == pytest.approx(twice.item(), rel=1e-12, abs=1e-15)
    for counts in ([70, 20, 0, 10], torch.tensor([70, 20, 0, 10])):
        assert crossent.prior_entropy(counts) == pytest.approx(reference.prior_entropy([70, 20, 0, 10]), rel=1e-14)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        crossent.expected_initial_loss(0)
    with pytest.raises(TypeError, match="an int"):
        crossent.double_softmax_floor(2.5)


# --- modules ----------------------------------------------------------------------------------------------------------


def test_modules_are_functions():
    x, y, t = torch.randn(6, 4), torch.tensor([0, 1, -100, 3, 2, 0]), torch.rand(6, 4)
    settings = {
        "penalty": FOCAL, "temperature": 2.0, "softcap": 5.0, "logit_bias": torch.randn(4), "margin": 0.1,
        "class_mask": torch.tensor([True] * 4), "z_loss": 0.1, "label_smoothing": 0.1,
    }  # fmt: skip
    module = crossent.CrossEntropyLoss(**settings)
    torch.testing.assert_close(module(x, y), crossent.cross_entropy(x, y, **settings))
    mask = torch.rand(6, 4) < 0.8
    mask[:, 0] = True
    anew = settings | {"class_mask": mask, "logit_bias": t}
    torch.testing.assert_close(
        module(x, t * mask, class_mask=mask, logit_bias=t), crossent.cross_entropy(x, t * mask, **anew)
    )
    settings = {"penalty": crossent.Asymmetric(), "ignore_index": -1, "label_smoothing": 0.1, "dim": 1}
    module = crossent.BCEWithLogitsLoss(pos_weight=torch.rand(4), **settings)
    torch.testing.assert_close(
        module(x, t, mask=mask),
        crossent.binary_cross_entropy_with_logits(x, t, pos_weight=module.pos_weight, mask=mask, **settings),
    )
    torch.testing.assert_close(crossent.FocalLoss(1.5)(x, y), crossent.focal_loss(x, y, 1.5))
    torch.testing.assert_close(crossent.SigmoidFocalLoss(0.3, 1.5)(x, t), crossent.sigmoid_focal_loss(x, t, 0.3, 1.5))
    c = torch.rand(4)
    module = crossent.DistillationLoss(2.0, 0.7, weight=c, label_smoothing=0.1)
    expected = crossent.distillation_loss(x, t, 2.0, y, 0.7, weight=c, label_smoothing=0.1)
    torch.testing.assert_close(module(x, t, y), expected)


def test_modules_keep_their_settings():
    bias, mask = torch.randn(4), torch.tensor([True, True, False, True])
    module = crossent.CrossEntropyLoss(torch.ones(4), logit_bias=bias, class_mask=mask, penalty=crossent.GCE(0.5))
    assert set(module.state_dict()) == {"weight"}
    assert module.double().logit_bias.dtype == torch.float64
    assert module.class_mask.dtype == torch.bool
    again = pickle.loads(pickle.dumps(module))
    assert again.penalty == crossent.GCE(0.5)
    assert torch.equal(again.logit_bias, bias.double())
    assert module.to("meta").class_mask.is_meta
    learned = crossent.CrossEntropyLoss(logit_bias=torch.nn.Parameter(torch.zeros(4)))
    assert set(learned.state_dict()) == {"logit_bias"}
    learned(torch.randn(3, 4), torch.tensor([0, 1, 2])).backward()
    assert learned.logit_bias.grad.abs().sum() > 0
    said = repr(crossent.CrossEntropyLoss(logit_bias=bias, class_mask=mask, margin=0.3, z_loss=1e-4, softcap=30.0))
    for part in ("logit_bias of shape (4,)", "class_mask of shape (4,)", "margin=0.3", "z_loss=0.0001", "softcap=30.0"):
        assert part in said
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    assert isinstance(crossent.SigmoidFocalLoss(), torch.nn.BCEWithLogitsLoss)


def test_activation_and_prediction():
    x = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 5.0]])
    mask = torch.tensor([True, True, False])
    module = crossent.CrossEntropyLoss(
        class_mask=mask, temperature=2.0, softcap=4.0, logit_bias=torch.ones(3), margin=9.0
    )
    p = module.activation(x)
    torch.testing.assert_close(p[:, :2], (4 * (x / 4).tanh() / 2)[:, :2].softmax(1))
    assert (p[:, 2] == 0).all()
    assert module.predict(x).tolist() == module.decodes(p).tolist() == [0, 1]
    images = x.T.reshape(1, 3, 2)
    assert module.predict(images).tolist() == [[0, 1]]
    torch.testing.assert_close(module.activation(images)[0].T, p)


# --- messages ---------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(8, 5), torch.arange(8) % 5
HALF = torch.full((8, 5), 0.5)
MESSAGES = [
    ("a penalty's class", {"penalty": crossent.Focal}, ["penalty must be", "crossent.Penalty", "make one, Focal()"]),
    ("a penalty's name", {"penalty": "focal"}, ["'focal'", "crossent.Focal()"]),
    ("a function", {"penalty": torch.exp}, ["subclass of crossent.Penalty", "f is that function of log p"]),
    ("a number", {"penalty": 2.0}, ["penalty must be", "2.0"]),
    ("a binary penalty", {"penalty": crossent.Asymmetric()}, ["binary_cross_entropy_with_logits"]),
    ("no temperature", {"temperature": 0.0}, ["temperature must be positive, got 0.0"]),
    ("negative temperature", {"temperature": -1}, ["temperature must be positive, got -1.0"]),
    ("temperature as text", {"temperature": "2"}, ["temperature must be a number", "builtins.str"]),
    ("no cap", {"softcap": 0}, ["softcap must be positive, got 0.0", "None"]),
    ("negative z-loss", {"z_loss": -1e-4}, ["z_loss must be at least 0, got -0.0001"]),
    ("infinite margin", {"margin": float("inf")}, ["margin must be finite", "inf"]),
    ("a list as a mask", {"class_mask": [True] * 5}, ["class_mask must be a torch.Tensor", "builtins.list"]),
    ("zeros and ones", {"class_mask": torch.ones(5, dtype=torch.long)}, ["boolean", "torch.int64", "class_mask == 1"]),
    ("an additive mask", {"class_mask": torch.zeros(5)}, ["boolean", "torch.float32", "class_mask == 0"]),
    ("a mask of rows", {"class_mask": torch.ones(8, dtype=torch.bool)}, ["(5,) or (8, 5)", "(8,)", "along dimension 1"]),
    ("a column", {"class_mask": torch.ones(8, 1, dtype=torch.bool)}, ["(8, 1)", "class_mask.expand(8, 5)"]),
    ("a bias of rows", {"logit_bias": torch.ones(8)}, ["logit_bias must have shape (5,) or (8, 5)", "got (8,)"]),
    ("counts as a bias", {"logit_bias": torch.ones(5, dtype=torch.long)}, ["floating", "torch.int64", "logit_bias.float()"]),
    ("a bias of numbers", {"logit_bias": [0.0] * 5}, ["logit_bias must be a torch.Tensor"]),
    ("kernels that do not", {"penalty": Brier(2.0), "impl": "native"}, ["impl='native'"]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_message(settings, said):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        crossent.cross_entropy(X, Y, **settings)
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert len(message) < 320


BINARY_MESSAGES = [
    ("a mask of floats", {"mask": torch.ones(8, 5)}, ["mask must be boolean", "torch.float32", "mask == 1"]),
    ("a mask of rows", {"mask": torch.ones(8, dtype=torch.bool)}, ["broadcast", "(8, 5)", "(8,)"]),
    ("no dimension", {"dim": 2, "pos_weight": torch.ones(5)}, ["dim must lie in [-2, 2)", "got 2"]),
    ("too many weights", {"dim": 0, "pos_weight": torch.ones(5)}, ["8 values along dimension 0", "(5,)"]),
    ("smoothing in percent", {"label_smoothing": 10}, ["label_smoothing", "[0, 1]", "10.0"]),
    ("a name", {"penalty": "asymmetric"}, ["crossent.Asymmetric()"]),
    ("index as text", {"ignore_index": "x"}, ["ignore_index must be a number"]),
]


@pytest.mark.parametrize(("settings", "said"), [m[1:] for m in BINARY_MESSAGES], ids=[m[0] for m in BINARY_MESSAGES])
def test_binary_message(settings, said):
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)) as caught:
        crossent.binary_cross_entropy_with_logits(X, HALF, **settings)
    assert all(part in str(caught.value) for part in said), str(caught.value)


MORE_MESSAGES = [
    ("labels in another shape", lambda: crossent.multilabel_cross_entropy(X, Y), ["labels", "(8, 5)", "(8,)", "list"]),
    ("too few lists", lambda: crossent.multilabel_cross_entropy(X, [[0]]), ["every row", "1 lists"]),
    ("a label beyond", lambda: crossent.multilabel_cross_entropy(X, [[0, 5], *[[]] * 7]), ["[0, 5)", "got 5 in row 0"]),
    ("lists for images", lambda: crossent.multilabel_cross_entropy(X[None], [[0]]), ["(N, C) only"]),
    ("unknown setting", lambda: crossent.multilabel_cross_entropy(X, HALF, gamma=2), ["'gamma'", "temperature"]),
    ("another teacher", lambda: crossent.distillation_loss(X, X[:4]), ["teacher_logits", "(8, 5)", "(4, 5)"]),
    (
        "labels for a teacher",
        lambda: crossent.distillation_loss(X, X.long()),
        ["teacher_logits must be floating", "target"],
    ),
    ("too much of a share", lambda: crossent.distillation_loss(X, X, 2.0, Y, 1.5), ["alpha must lie in [0, 1]", "1.5"]),
    ("cold", lambda: crossent.distillation_loss(X, X, 0.0), ["temperature must be positive"]),
    ("partners beyond", lambda: crossent.contrastive_cross_entropy(X, X, 1.0, 1), ["among the 8 rows", "offset=1"]),
    ("vectors that differ", lambda: crossent.contrastive_cross_entropy(X, X[:, :3]), ["(8, 5)", "(8, 3)"]),
    ("negative gamma", lambda: crossent.Focal(-1.0), ["gamma of Focal must be a number of at least 0, got -1.0"]),
    ("q above one", lambda: crossent.GCE(1.5), ["q of GCE", "[0, 1]", "1.5"]),
    ("half an order", lambda: crossent.Taylor(1.5), ["order of Taylor", "whole", "1.5"]),
    ("positive A", lambda: crossent.SCE(A=4.0), ["A of SCE", "at most 0"]),
    ("clip in percent", lambda: crossent.Asymmetric(clip=5), ["clip of Asymmetric", "[0, 1]"]),
    ("alpha of two classes", lambda: crossent.sigmoid_focal_loss(X, HALF, 1.5), ["alpha of BalancedFocal", "[0, 1]"]),
    ("another reduction", lambda: crossent.cross_entropy_stats(X, Y, reduction="all"), ["'none', 'sum' or 'mean'"]),
    ("an odd question", lambda: crossent.choose_implementation(X, empty="zero"), ["settings", "not on empty"]),
]


@pytest.mark.parametrize(("call", "said"), [m[1:] for m in MORE_MESSAGES], ids=[m[0] for m in MORE_MESSAGES])
def test_other_messages(call, said):
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)) as caught:
        call()
    assert all(part in str(caught.value) for part in said), str(caught.value)


# --- a penalty of one's own -------------------------------------------------------------------------------------------


def test_a_penalty_without_s_has_that_of_autograd():
    log_p = torch.tensor([-1e-3, -0.5, -3.0, -INF], **DOUBLE)
    p = log_p.exp()
    torch.testing.assert_close(Brier(2.0).s(log_p), 4 * (1 - p) * p)
    with torch.no_grad():
        torch.testing.assert_close(Brier(2.0).s(log_p), 4 * (1 - p) * p)


def test_a_penalty_defined_anew_is_not_mistaken():
    def define(sign):
        class Anew(crossent.Penalty):
            def f(self, log_p):
                return sign * -log_p

        return Anew()

    old = define(1.0)
    assert crossent.cross_entropy(X, Y, penalty=old) > 0
    new = define(-1.0)
    assert crossent.cross_entropy(X, Y, penalty=new) < 0
    with pytest.raises(TypeError, match="defined anew since"):
        crossent.cross_entropy(X, Y, penalty=old)


def test_autocast_and_subclasses():
    x, t = torch.randn(4, 3).bfloat16(), torch.rand(4, 3)
    y = torch.tensor([0, 2, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert crossent.cross_entropy(x, y, penalty=FOCAL).dtype == torch.float32
        assert crossent.multilabel_cross_entropy(x, t > 0.5).dtype == torch.float32
        assert crossent.distillation_loss(x, x).dtype == torch.float32

    class Named(torch.Tensor):
        pass

    plain = crossent.cross_entropy(x, y, logit_bias=t[0], penalty=FOCAL)
    named = crossent.cross_entropy(x, y, logit_bias=t[0].as_subclass(Named), penalty=FOCAL)
    assert isinstance(named, Named)
    torch.testing.assert_close(named.as_subclass(torch.Tensor), plain)
