"""The laws of the whole family: every penalty, transformation, mask and extra term, against the reference in float64."""

import numpy as np
import pytest
import torch
from cases import BINARY_FAMILY, DTYPES, FAMILY, IMPLEMENTATIONS, INF, law, rounded, tensors, to_reference

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
        expected = reference.cross_entropy(
            case.logits, case.target, reduction=reduction, **to_reference(case.settings)
        )
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
