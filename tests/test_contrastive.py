"""Contrastive cross entropy: one direction or two, and logits that are not rounded whatever the vectors are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import crossent
from crossent import reference

directions = pytest.mark.parametrize("symmetric", [None, True, False])
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
DOUBLE = {"dtype": torch.float64}


def vectors(n, m, d, seed=0):
    torch.manual_seed(seed)
    normalize = torch.nn.functional.normalize
    return normalize(torch.randn(n, d, **DOUBLE), dim=1), normalize(torch.randn(m, d, **DOUBLE), dim=1)


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@directions
@pytest.mark.parametrize(("n", "m", "offset"), [(6, 6, 0), (3, 7, 2), (1, 1, 0)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_value_and_gradients_are_those_of_the_specification(symmetric, n, m, offset, label_smoothing):
    if symmetric and n != m:
        pytest.skip("refused")
    a, b = (v.requires_grad_() for v in vectors(n, m, 4))
    scale = torch.tensor(14.0, **DOUBLE, requires_grad=True)
    options = {"symmetric": symmetric, "label_smoothing": label_smoothing}
    loss = crossent.contrastive_cross_entropy(a, b, scale, offset, **options)
    expected = reference.contrastive_cross_entropy(a.detach().numpy(), b.detach().numpy(), 14.0, offset, **options)
    np.testing.assert_allclose(loss.item(), expected.loss, rtol=1e-13)
    for got, theirs in zip(gradients(loss, a, b, scale), expected[1:], strict=True):
        np.testing.assert_allclose(got.numpy(), theirs, rtol=1e-10, atol=1e-13)


def test_one_direction_is_cross_entropy_of_the_rows_and_two_are_the_mean_of_both():
    a, b = vectors(5, 5, 4)
    logits, y = 3 * a @ b.T, torch.arange(5)
    rows, columns = (torch.nn.functional.cross_entropy(x, y) for x in (logits, logits.T))
    torch.testing.assert_close(crossent.contrastive_cross_entropy(a, b, 3.0, symmetric=False), rows)
    torch.testing.assert_close(crossent.contrastive_cross_entropy(b, a, 3.0, symmetric=False), columns)
    for symmetric in (None, True):
        both = crossent.contrastive_cross_entropy(a, b, 3.0, symmetric=symmetric)
        torch.testing.assert_close(both, (rows + columns) / 2)


@HALF
@directions
@pytest.mark.parametrize("scale", [1.0, 100.0, torch.tensor(100.0)])
def test_only_the_inputs_and_the_results_are_rounded(dtype, symmetric, scale):
    for seed in range(5):
        a, b = (v.to(dtype).requires_grad_() for v in vectors(32, 32, 64, seed))
        loss = crossent.contrastive_cross_entropy(a, b, scale, symmetric=symmetric)
        exact = reference.contrastive_cross_entropy(
            *(v.detach().double().numpy() for v in (a, b)), float(scale), symmetric=symmetric
        )
        assert loss.dtype == dtype
        eps = torch.finfo(dtype).eps
        np.testing.assert_allclose(loss.item(), exact.loss, rtol=eps / 2 * 1.01)
        for got, theirs in zip(gradients(loss, a, b), exact[1:3], strict=True):
            largest = np.abs(theirs).max()
            np.testing.assert_allclose(got.double().numpy(), theirs, rtol=1.5 * eps, atol=1e-4 * largest)


def test_a_scale_in_half_precision_is_learned():
    a, b = (v.half() for v in vectors(8, 8, 16))
    scale = torch.tensor(20.0, dtype=torch.float16, requires_grad=True)
    (grad,) = gradients(crossent.contrastive_cross_entropy(a, b, scale), scale)
    exact = reference.contrastive_cross_entropy(a.double().numpy(), b.double().numpy(), 20.0)
    np.testing.assert_allclose(grad.item(), exact.scale_grad, rtol=2e-3)


def test_under_autocast_the_logits_are_not_rounded_and_the_loss_is_float32():
    a, b = (v.float() for v in vectors(16, 16, 32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = crossent.contrastive_cross_entropy(a, b, 100.0)
        of_half = crossent.contrastive_cross_entropy(a.half(), b.half(), 100.0)
    torch.testing.assert_close(loss, crossent.contrastive_cross_entropy(a, b, 100.0))
    assert of_half.dtype == torch.float32


@directions
def test_derivatives_of_any_order_and_mode(symmetric):
    a, b = (v.requires_grad_() for v in vectors(4, 4, 3))
    scale = torch.tensor(2.0, **DOUBLE, requires_grad=True)

    def f(a, b, scale):
        return crossent.contrastive_cross_entropy(a, b, scale, symmetric=symmetric, label_smoothing=0.1)

    assert gradcheck(f, (a, b, scale), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, (a, b, scale), check_fwd_over_rev=True, fast_mode=True)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    half = [v.detach().bfloat16() for v in (a, b)]
    torch.testing.assert_close(compiled(*half, 2.0), f(*half, 2.0))


def test_meta_tensors_keep_shapes_and_dtypes():
    a, b = (v.half().to("meta") for v in vectors(3, 3, 4))
    loss = crossent.contrastive_cross_entropy(a, b, 10.0)
    assert (loss.shape, loss.dtype) == ((), torch.float16)


def test_both_directions_of_unequal_sets_are_refused():
    a, b = vectors(3, 5, 4)
    with pytest.raises(ValueError, match=r"symmetric=True needs as many a as b.*\(3, 4\) and \(5, 4\).*average"):
        crossent.contrastive_cross_entropy(a, b, symmetric=True)
