"""Contrastive cross entropy: one direction or two, and logits that are not rounded whatever the vectors are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import crossent
from crossent import reference
from crossent.core import watch
from crossent.impl import eager
from crossent.impl.eager import blocks

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
    check_roundings(dtype, symmetric, scale, None)


def check_roundings(dtype, symmetric, scale, impl):
    for seed in range(5):
        a, b = (v.to(dtype).requires_grad_() for v in vectors(32, 32, 64, seed))
        loss = crossent.contrastive_cross_entropy(a, b, scale, symmetric=symmetric, impl=impl)
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


# --- in blocks of rows, as large calls go where there are no kernels --------------------------------------------------


@pytest.fixture
def in_blocks(monkeypatch):
    """Let small calls go by blocks of a row or two, and count the backward passes that did."""
    passes = []
    monkeypatch.setattr(eager.Eager, "fuses", lambda *_: False)
    monkeypatch.setattr(blocks, "_CACHED", 13)
    gradients_in_blocks = eager.pair_gradients
    monkeypatch.setattr(eager, "pair_gradients", lambda *args: passes.append(1) or gradients_in_blocks(*args))
    return passes


@directions
@pytest.mark.parametrize(("n", "m", "offset"), [(6, 6, 0), (3, 7, 2), (1, 1, 0), (1, 4, 3)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_blocks_are_the_specification(symmetric, n, m, offset, label_smoothing, in_blocks):
    if symmetric and n != m:
        pytest.skip("refused")
    a, b = (v.requires_grad_() for v in vectors(n, m, 4))
    scale = torch.tensor(14.0, **DOUBLE, requires_grad=True)
    options = {"symmetric": symmetric, "label_smoothing": label_smoothing}
    loss = crossent.contrastive_cross_entropy(a, b, scale, offset, impl="eager", **options)
    expected = reference.contrastive_cross_entropy(a.detach().numpy(), b.detach().numpy(), 14.0, offset, **options)
    np.testing.assert_allclose(loss.item(), expected.loss, rtol=1e-13)
    for factor in (1.0, -2.5):  # and a second backward pass
        found = torch.autograd.grad(loss, [a, b, scale], torch.tensor(factor, **DOUBLE), retain_graph=True)
        for got, theirs in zip(found, expected[1:], strict=True):
            np.testing.assert_allclose(got.numpy(), factor * theirs, rtol=1e-10, atol=1e-13)
    assert len(in_blocks) == 2


@HALF
@directions
def test_in_blocks_only_the_inputs_and_the_results_are_rounded(dtype, symmetric, in_blocks):
    check_roundings(dtype, symmetric, torch.tensor(100.0), "eager")
    a, b = (v.to(dtype).requires_grad_() for v in vectors(32, 32, 64))
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = crossent.contrastive_cross_entropy(a, b, 100.0, symmetric=symmetric, impl="eager")
            found.append((loss.to(dtype), *gradients(loss, a, b)))
    assert loss.dtype == torch.float32
    assert len(in_blocks) == 7
    for plain, under_autocast in zip(*found, strict=True):
        assert torch.equal(plain, under_autocast)


def test_confident_pairs_keep_their_digits_in_blocks(in_blocks):
    """In float32 ``1 - p`` would be 0 from a scale of 17 on."""
    a = torch.eye(5, requires_grad=True)
    loss = crossent.contrastive_cross_entropy(a, torch.eye(5), 30.0, impl="eager")
    rest = 4 * np.exp(-30.0)
    np.testing.assert_allclose(loss.item(), np.log1p(rest), rtol=1e-5)
    (gradient,) = gradients(loss, a)
    off = 30 / 5 * np.exp(-30.0) / (1 + rest)
    np.testing.assert_allclose(gradient.numpy(), off * (1 - 5 * np.eye(5)), rtol=1e-5)
    assert in_blocks


@directions
def test_derivatives_of_any_order_and_mode_in_blocks(symmetric, in_blocks):
    a, b = (v.requires_grad_() for v in vectors(4, 4, 3))
    scale = torch.tensor(2.0, **DOUBLE, requires_grad=True)

    def f(a, b, scale):
        options = {"symmetric": symmetric, "label_smoothing": 0.1, "impl": "eager"}
        return crossent.contrastive_cross_entropy(a, b, scale, **options)

    assert gradcheck(f, (a, b, scale), check_forward_ad=True, check_batched_grad=True)
    assert in_blocks
    assert gradgradcheck(f, (a, b, scale), check_fwd_over_rev=True)
    assert gradcheck(lambda x: f(x, x, scale), (a,))  # one set, which is both
    assert gradgradcheck(lambda x: f(x, x, scale), (a,))
    per_sample = torch.func.vmap(torch.func.grad(f), (0, 0, None))
    stacked = per_sample(torch.stack([a, b]), torch.stack([b, a]), scale)
    torch.testing.assert_close(stacked, torch.stack([gradients(f(a, b, scale), a)[0], gradients(f(b, a, scale), b)[0]]))


def test_vectors_that_change_between_forward_and_backward_are_noticed_in_blocks(in_blocks):
    a, b = (v.requires_grad_() for v in vectors(6, 6, 4))
    loss = crossent.contrastive_cross_entropy(a, b, 3.0, impl="eager")
    with torch.no_grad():
        b.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torchs_operator_runs_only_where_it_is_named():
    """On a device without kernels it is chosen for plain calls; here it would have two gradients of the logits."""
    a, b = (torch.empty(6, 4, device="meta", requires_grad=True) for _ in range(2))
    assert crossent.choose_implementation(a) == "torch"
    assert crossent.contrastive_cross_entropy(a, b).grad_fn.name() == "PairLossesBackward"
    assert crossent.contrastive_cross_entropy(a, b, impl="torch").grad_fn.name() != "PairLossesBackward"


def test_a_watcher_is_shown_whole_logits(in_blocks, monkeypatch):
    a, b = (v.requires_grad_() for v in vectors(6, 6, 4))
    shown = []
    monkeypatch.setattr(watch, "current", lambda: lambda input, *_: shown.append(input))
    gradients(crossent.contrastive_cross_entropy(a, b, 3.0, impl="eager"), a, b)
    assert not in_blocks
    for logits, x in zip(shown, (3.0 * a @ b.T, 3.0 * b @ a.T), strict=True):
        torch.testing.assert_close(logits, x)


def test_wrong_arguments_are_named_as_they_are_without_blocks(in_blocks):
    a, b = vectors(6, 6, 4)
    with pytest.raises(RuntimeError, match="label_smoothing must lie in"):
        crossent.contrastive_cross_entropy(a, b, 3.0, label_smoothing=2.0, impl="eager")
    with pytest.raises(ValueError, match="impl must be None or one of"):
        crossent.contrastive_cross_entropy(a, b, 3.0, impl="none")
    empty = crossent.contrastive_cross_entropy(a[:0], b, 3.0, impl="eager")
    assert empty.isnan()
