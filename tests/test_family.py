"""The laws of the whole family: every penalty, transformation, mask and extra term, against the reference in float64."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import BINARY_FAMILY, DTYPES, FAMILY, IMPLEMENTATIONS, PENALTIES, law, rounded, tensors, to_reference
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
