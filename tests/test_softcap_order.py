"""A soft cap before or after the temperature, wherever a loss has one."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, IMPLEMENTATIONS
from torch.autograd import gradcheck, gradgradcheck

import crossent
from crossent import reference
from crossent.core.settings import Settings

CAP, T = 1.7, 2.5
AFTER = {"softcap": CAP, "temperature": T, "softcap_after_temperature": True}
torch.manual_seed(0)
X, Y = torch.randn(6, 5, dtype=torch.float64) * 4, torch.tensor([0, 1, -100, 3, 4, 0])


def scaled_then_capped(x):
    return CAP * ((x / T) / CAP).tanh()


ENTRIES = {
    "cross_entropy": lambda x, **o: crossent.cross_entropy(x, Y, **o),
    "focal": lambda x, **o: crossent.focal_loss(x, Y, **o),
    "multilabel": lambda x, **o: crossent.multilabel_cross_entropy(x, (X > 0).double(), **o),
    "statistics": lambda x, **o: sum(crossent.cross_entropy_stats(x, Y, reduction="mean", **o)[:4]),
    "module": lambda x, **o: crossent.CrossEntropyLoss(**o)(x, Y),
    "linear": lambda x, **o: crossent.linear_cross_entropy(x, torch.eye(5).to(x), Y, **o),
    "linear, in blocks": lambda x, **o: crossent.linear_cross_entropy(x, torch.eye(5).to(x), Y, max_bytes=90, **o),
    "linear module": lambda x, **o: _linear_module(x, **o),
}


def _linear_module(x, **options):
    loss = crossent.LinearCrossEntropyLoss(5, 5, dtype=x.dtype, **options)
    with torch.no_grad():
        loss.linear.weight.copy_(torch.eye(5))
    return loss(x, Y)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_scales_and_then_caps(name):
    x = X.clone().requires_grad_()
    loss, expected = ENTRIES[name](x, **AFTER), None
    if name.startswith("linear"):
        expected = crossent.cross_entropy(scaled_then_capped(x), Y)
    else:
        expected = ENTRIES[name](scaled_then_capped(x))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (loss, expected)))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_every_implementation_takes_it(impl, dtype):
    x = X.to(dtype)
    ours = crossent.cross_entropy(x, Y, impl=impl, reduction="none", **AFTER)
    expected = reference.cross_entropy(x.double().numpy(), Y.numpy(), reduction="none", **AFTER).loss
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=tolerance, atol=tolerance)
    assert crossent.choose_implementation(x, impl, **AFTER) == impl


def test_bias_and_margin_are_divided_by_the_temperature_in_either_order():
    bias = torch.randn(5, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(Y.clamp_min(0), 5)
    by_hand = scaled_then_capped(X) + (bias - 0.3 * one_hot) / T
    ours = crossent.cross_entropy(X, Y, logit_bias=bias, margin=0.3, **AFTER)
    torch.testing.assert_close(ours, crossent.cross_entropy(by_hand, Y))


def test_the_default_is_the_other_order_and_nothing_changes_without_either():
    first = crossent.cross_entropy(X, Y, softcap=CAP, temperature=T)
    torch.testing.assert_close(first, crossent.cross_entropy(CAP * (X / CAP).tanh() / T, Y))
    assert (first - crossent.cross_entropy(X, Y, **AFTER)).abs() > 1e-2
    for settings in ({}, {"temperature": T}, {"softcap": CAP}):
        ours, expected = (
            crossent.cross_entropy(X, Y, **settings, softcap_after_temperature=on) for on in (True, False)
        )
        assert torch.equal(ours, expected)


def test_there_is_one_way_to_compute_it():
    settings = Settings.of(**AFTER)
    assert settings == Settings.of(softcap=CAP * T, temperature=T)
    assert not settings.softcap_after_temperature
    assert Settings.of(softcap_after_temperature=True) == Settings.of()


def test_derivatives_of_any_order_and_mode():
    def f(x):
        return crossent.cross_entropy(x, Y, reduction="none", **AFTER)

    x = X.clone().requires_grad_()
    assert gradcheck(f, x, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, fast_mode=True)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x))


def test_the_modules_probabilities_are_those_of_its_loss():
    module = crossent.CrossEntropyLoss(**AFTER)
    torch.testing.assert_close(module.activation(X), scaled_then_capped(X).softmax(1))
    assert "softcap_after_temperature=True" in repr(module)


@pytest.mark.parametrize("value", [1, "yes", None, torch.tensor(True)])
def test_it_is_true_or_false(value):
    with pytest.raises(TypeError, match="softcap_after_temperature must be True or False"):
        crossent.cross_entropy(X, Y, softcap=CAP, softcap_after_temperature=value)


def test_a_cap_that_is_out_of_range_with_the_temperature_is_refused():
    with pytest.raises(ValueError, match="softcap must be positive, got inf"):
        crossent.cross_entropy(X, Y, softcap=1e200, temperature=1e200, softcap_after_temperature=True)
