"""Weights and biases in float32 or float64 with logits in half precision: taken everywhere, not rounded, and the dtype stays."""

import numpy as np
import pytest
import torch
from cases import IMPLEMENTATIONS

import crossent
from crossent import reference

N, C = 40, 5
HALVES = [torch.bfloat16, torch.float16]
WIDES = [torch.float32, torch.float64]
IMPLS = [None, *IMPLEMENTATIONS]

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(N, C, generator=GENERATOR) * 4
Y = torch.randint(C, (N,), generator=GENERATOR)
T = torch.rand(N, C, generator=GENERATOR)
# Weights whose rounding to half precision shows: their bits lie far apart.
WEIGHT = 1 + torch.rand(C, generator=GENERATOR, dtype=torch.float64) / 100
U = 1 + torch.rand(N, generator=GENERATOR, dtype=torch.float64) / 100
BIAS = 100 + torch.rand(C, generator=GENERATOR, dtype=torch.float64) / 10


def head_of(x):
    """Hidden states and a head whose product is exactly the logits: the unit matrix has no rounding."""
    return x, torch.eye(C, dtype=x.dtype)


def linear(x, y, **options):
    return crossent.linear_cross_entropy(*head_of(x), y, **options)


def linear_in_blocks(x, y, **options):
    return crossent.linear_cross_entropy(*head_of(x), y, max_bytes=2 * C * 7, **options)


def linear_stats(x, y, **options):
    options = {"reduction": "mean", **options}
    return crossent.linear_cross_entropy_stats(*head_of(x), y, max_bytes=2 * C * 7, **options).loss


def stats(x, y, **options):
    return crossent.cross_entropy_stats(x, y, **{"reduction": "mean", **options}).loss


def module(x, y, weight=None, sample_weight=None, impl=None, out_dtype=None, **options):
    loss = crossent.CrossEntropyLoss(weight, impl=impl, out_dtype=out_dtype, **options)
    return loss(x, y, sample_weight=sample_weight)


def focal_module(x, y, weight=None, sample_weight=None, impl=None, out_dtype=None, **options):
    loss = crossent.FocalLoss(0.0, weight, impl=impl, out_dtype=out_dtype, **options)
    return loss(x, y, sample_weight=sample_weight)


def linear_module(x, y, sample_weight=None, **options):
    loss = crossent.LinearCrossEntropyLoss(C, C, dtype=x.dtype, **options)
    torch.nn.init.eye_(loss.linear.weight)
    return loss(x, y, sample_weight=sample_weight)


def focal(x, y, **options):
    return crossent.focal_loss(x, y, 0.0, **options)


def compiled(x, y, **options):
    torch._dynamo.reset()
    return torch.compile(crossent.cross_entropy, backend="aot_eager", fullgraph=True)(x, y, **options)


LOSSES = [
    crossent.cross_entropy, stats, module, focal, focal_module, linear, linear_in_blocks, linear_stats, linear_module,
    compiled,
]  # fmt: skip
OPTIONS = {
    "weight": lambda wide: {"weight": WEIGHT.to(wide)},
    "weight, smoothed": lambda wide: {"weight": WEIGHT.to(wide), "label_smoothing": 0.25},
    "logit_bias": lambda wide: {"logit_bias": BIAS.to(wide)},
    "sample_weight": lambda wide: {"sample_weight": U.to(wide)},
    "all": lambda wide: {"weight": WEIGHT.to(wide), "logit_bias": BIAS.to(wide), "sample_weight": U.to(wide)},
}


def right(x, y, options):
    """Compute the loss and the gradient by the specification, in float64."""
    given = {name: v.double().numpy() if torch.is_tensor(v) else v for name, v in options.items()}
    return reference.cross_entropy(x.double().numpy(), y.numpy(), **given)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("wide", WIDES)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_wide_options_are_taken_and_not_rounded(loss, half, wide, name):
    x, options = X.to(half), OPTIONS[name](wide)
    expected = right(x, Y, options)
    for impl in IMPLS if loss in (crossent.cross_entropy, linear, module) else [None]:
        leaf = x.clone().requires_grad_(loss is not linear_module)
        result = loss(leaf, Y, impl=impl, **options)
        assert result.dtype == half
        exact = loss(x, Y, impl=impl, out_dtype=torch.float32, **options)
        assert exact.dtype == torch.float32
        assert abs(exact.item() - expected.loss) < 3e-6 * abs(expected.loss)
        if leaf.requires_grad and result.requires_grad:
            (grad,) = torch.autograd.grad(result, leaf)
            assert grad.dtype == half
            rounding = torch.finfo(half).eps * np.abs(expected.grad).max() + 1e-7
            np.testing.assert_allclose(grad.double().numpy(), expected.grad, atol=rounding, rtol=torch.finfo(half).eps)


@pytest.mark.parametrize("half", HALVES)
def test_probabilities_promote_as_torch_does(half):
    x, t, c = X.to(half), T.to(half), WEIGHT.float()
    for weight in (None, c, c.to(half), c.double()):
        ours = crossent.cross_entropy(x, t, weight)
        theirs = torch.nn.functional.cross_entropy(x, t, weight)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("wide", WIDES)
@pytest.mark.parametrize("half", HALVES)
def test_other_members_of_the_family(half, wide):
    x, c, u = X.to(half), WEIGHT.to(wide), U.to(wide)
    hot = T > 0.5
    lists = [row.nonzero().squeeze(1).tolist() for row in hot]
    for labels in (hot, hot.long(), lists):
        loss = crossent.multilabel_cross_entropy(x, labels, c, sample_weight=u)
        assert loss.dtype == half
        exact = crossent.multilabel_cross_entropy(x, labels, c, sample_weight=u, out_dtype=torch.float64)
        expected = crossent.multilabel_cross_entropy(x.double(), labels, c.double(), sample_weight=u.double())
        torch.testing.assert_close(exact, expected, rtol=3e-6, atol=0)
    loss = crossent.distillation_loss(x, x.flip(0), 2.0, Y, weight=c, sample_weight=u)
    assert loss.dtype == half
    exact = crossent.distillation_loss(x, x.flip(0), 2.0, Y, weight=c, sample_weight=u, out_dtype=torch.float64)
    expected = crossent.distillation_loss(
        x.double(), x.double().flip(0), 2.0, Y, weight=c.double(), sample_weight=u.double()
    )
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=0)
    t = T.to(half)
    for options in ({"weight": c}, {"pos_weight": c}, {"sample_weight": u}):
        loss = crossent.binary_cross_entropy_with_logits(x, t, **options)
        assert loss.dtype == half
        wider = {name: value.double() for name, value in options.items()}
        exact = crossent.binary_cross_entropy_with_logits(x, t, out_dtype=torch.float64, **options)
        expected = crossent.binary_cross_entropy_with_logits(x.double(), t.double(), **wider)
        torch.testing.assert_close(exact, expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("half", HALVES)
def test_transforms_take_them_too(half):
    x, c = X.to(half), WEIGHT.float()

    def loss(x, y):
        return crossent.cross_entropy(x, y, c, out_dtype=torch.float32)

    expected = right(x, Y, {"weight": c})
    rounding = torch.finfo(half).eps * np.abs(expected.grad).max() + 1e-7
    np.testing.assert_allclose(torch.func.grad(loss)(x, Y).double(), expected.grad, atol=rounding, rtol=0.01)
    each = torch.func.vmap(lambda x, y: loss(x[None], y[None]))(x, Y)
    rows = crossent.cross_entropy(x, Y, reduction="none", out_dtype=torch.float32)
    torch.testing.assert_close(each, rows, rtol=1e-5, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, Y), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.float().square().sum(), leaf)
    assert first.dtype == second.dtype == half
    assert second.isfinite().all()
