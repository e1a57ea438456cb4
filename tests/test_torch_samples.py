"""The sample inputs that torch ships for its own tests, through this library's functions."""

import functools

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from torch.utils._pytree import tree_leaves, tree_map_only

import crossent

OPS = {
    "nn.functional.cross_entropy": crossent.cross_entropy,
    "nn.functional.binary_cross_entropy_with_logits": crossent.binary_cross_entropy_with_logits,
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@functools.cache
def operators():
    """Import what torch tests its operators with, for seconds, where these tests run and not where they are collected."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.name: op for op in op_db if not op.variant_test_name}


@functools.cache
def modules():
    from torch.testing._internal.common_modules import module_db

    return {info.module_cls: info for info in module_db}


def widen(tensor):
    return tensor.detach().double().requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else tensor


def differentiate(f, sample, change=lambda v: v):
    """Run a sample: the loss and the gradient of everything that requires one."""
    given = tree_map_only(torch.Tensor, change, (sample.input, sample.args, sample.kwargs))
    loss = f(given[0], *given[1], **given[2])
    wanted = [v for v in tree_leaves(given) if torch.is_tensor(v) and v.requires_grad]
    return loss.detach(), *torch.autograd.grad(loss.double().sum(), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_operator_samples(name, dtype):
    samples = list(operators()[name].sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) > 20
    theirs = getattr(F, name.rsplit(".", 1)[1])
    for sample in samples:
        got, same = differentiate(OPS[name], sample), differentiate(theirs, sample)
        exact = differentiate(theirs, sample, widen)
        for a, b, c in zip(got, same, exact, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert_close(
                a, c, dtype, roundings=31, terms=32, term_size=1
            )  # p, t and log p are near 1, the losses far above


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("module", [crossent.CrossEntropyLoss, crossent.BCEWithLogitsLoss])
def test_module_samples(module, dtype):
    (torchs,) = module.__bases__[1:]
    info = modules()[torchs]
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
    assert len(samples) > 5
    for sample in samples:
        ours, theirs = (
            cls(*sample.constructor_input.args, **sample.constructor_input.kwargs) for cls in (module, torchs)
        )
        given = (sample.forward_input.args, sample.forward_input.kwargs)
        torch.testing.assert_close(
            ours(*given[0], **given[1]), theirs(*given[0], **given[1]), rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_module_error_samples():
    info = modules()[torch.nn.CrossEntropyLoss]
    errors = list(
        info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    )
    assert errors
    for error in errors:
        made = error.module_error_input
        loss = crossent.CrossEntropyLoss(*made.constructor_input.args, **made.constructor_input.kwargs)
        with pytest.raises(error.error_type):
            loss(*made.forward_input.args, **made.forward_input.kwargs)
