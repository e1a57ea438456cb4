"""The laws that every member of the family, implementation, dtype and layout keeps, against the reference in float64."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, IMPLEMENTATIONS, SIGMOID, SOFTMAX, law, rounded, tensors
from closeness import assert_close, assert_no_worse

import crossent
from crossent import reference

implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
reductions = pytest.mark.parametrize("reduction", ["none", "sum", "mean"])


@implementations
@dtypes
@reductions
@law(SOFTMAX)
def test_softmax_value_and_gradients(case, impl, dtype, reduction):
    if reduction != "mean" and "denominator" in case.settings:
        pytest.skip("only a mean has a denominator")
    case = rounded(case, dtype)
    x, t, settings = tensors(case, dtype)
    if t.is_floating_point():
        t.requires_grad_()
    loss = crossent.cross_entropy(x, t, reduction=reduction, impl=impl, **settings)
    expected = reference.cross_entropy(case.logits, case.target, reduction=reduction, **case.settings)
    assert loss.dtype == dtype
    assert_close(loss, expected.loss, dtype)
    loss.sum().backward()
    assert x.grad.dtype == dtype
    assert_close(x.grad, expected.grad, dtype)
    if t.is_floating_point():
        assert_close(t.grad, expected.target_grad, dtype)


@implementations
@dtypes
@reductions
@law(SIGMOID)
def test_sigmoid_value_and_gradients(case, impl, dtype, reduction):
    if reduction != "mean" and "denominator" in case.settings:
        pytest.skip("only a mean has a denominator")
    case = rounded(case, dtype)
    x, t, settings = tensors(case, dtype)
    t.requires_grad_()
    loss = crossent.binary_cross_entropy_with_logits(x, t, reduction=reduction, impl=impl, **settings)
    expected = reference.binary_cross_entropy_with_logits(
        case.logits, case.target, reduction=reduction, **case.settings
    )
    assert loss.dtype == dtype
    assert_close(loss, expected.loss, dtype)
    loss.sum().backward()
    assert_close(x.grad, expected.grad, dtype)
    assert_close(t.grad, expected.target_grad, dtype)


@implementations
@dtypes
@pytest.mark.parametrize("scale", [0.1, 3.0, 15.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_error_is_at_most_that_of_torch(impl, dtype, scale, smoothing):
    x = (torch.randn(64, 257) * scale).to(dtype)
    y = torch.randint(257, (64,))
    y[:32] = x[:32].argmax(1)
    expected = reference.cross_entropy(x.double().numpy(), y.numpy(), label_smoothing=smoothing)
    ours = both(crossent.cross_entropy, x, y, label_smoothing=smoothing, impl=impl)
    torchs = both(F.cross_entropy, x, y, label_smoothing=smoothing)
    assert_no_worse(ours, torchs, expected[:2], dtype)


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["indices", "one-hot", "weighted"])
def test_a_confident_row_keeps_its_relative_accuracy(impl, dtype, kind):
    margins = torch.tensor([1.0, 5.0, 10.0, 14.0, 16.7, 20.0, 30.0, 50.0, 80.0], dtype=dtype)
    x = torch.zeros(9, 3, dtype=dtype)
    x[:, 1] = margins
    y = torch.ones(9, dtype=torch.int64)
    target = F.one_hot(y, 3).to(dtype) if kind == "one-hot" else y
    weight = torch.tensor([1.0, 3.0, 2.0], dtype=dtype) if kind == "weighted" else None
    x.requires_grad_()
    loss = crossent.cross_entropy(x, target, weight, reduction="none", impl=impl)
    loss.sum().backward()
    c = None if weight is None else weight.numpy()
    expected = reference.cross_entropy(x.detach().numpy(), y.numpy(), c, reduction="none")
    rtol = 16 * torch.finfo(dtype).eps  # of numbers down to 1e-35, so that nothing absolute may be allowed beside it
    np.testing.assert_allclose(loss.detach(), expected.loss, rtol=rtol)
    np.testing.assert_allclose(x.grad, expected.grad, rtol=rtol)
    assert (loss > 0).all()


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels_last": lambda x: (
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.mT.contiguous().mT
    ),
}


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 7), (2, 5, 3, 4)])
@pytest.mark.parametrize("soft", [False, True])
def test_layout_does_not_matter(impl, dtype, layout, shape, soft):
    base = torch.randn(shape).to(dtype)
    x = LAYOUTS[layout](base)
    rows = shape[:1] + shape[2:]
    t = (
        LAYOUTS[layout](torch.rand(shape).to(dtype))
        if soft
        else torch.randint(5, rows).mT.contiguous().mT
        if len(rows) > 1
        else torch.randint(5, rows)
    )
    weight = torch.rand(10).to(dtype)[::2]
    here, there = x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()
    ours = crossent.cross_entropy(here, t, weight, label_smoothing=0.1, impl=impl)
    same = crossent.cross_entropy(there, t.contiguous(), weight.contiguous(), label_smoothing=0.1, impl=impl)
    torch.testing.assert_close(ours, same)
    ours.backward()
    same.backward()
    torch.testing.assert_close(here.grad, there.grad)


@implementations
def test_channels_last_gradients_stay_channels_last(impl):
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    (grad,) = torch.autograd.grad(crossent.cross_entropy(x, torch.randint(5, (2, 3, 4)), impl=impl), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(crossent.cross_entropy(x, torch.rand(2, 5, 3, 4), impl=impl), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def both(f, x, *args, **kwargs):
    """Compute a loss and its gradient."""
    x = x.detach().requires_grad_()
    loss = f(x, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


@implementations
def test_shifting_the_logits_changes_nothing(impl):
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(5, (8,))
    before = both(crossent.cross_entropy, x, y, label_smoothing=0.1, impl=impl)
    after = both(
        crossent.cross_entropy, x + torch.randn(8, 1, dtype=torch.float64) * 100, y, label_smoothing=0.1, impl=impl
    )
    # the shifted logits are rounded to a unit of 100
    torch.testing.assert_close(before, after, rtol=1e-11, atol=1e-12)


@implementations
def test_sum_of_a_rows_gradient_is_zero(impl):
    # Σ_k (mass p_k - c_k t_k) = mass - mass
    x, t, c = (
        torch.randn(8, 5, dtype=torch.float64),
        torch.rand(8, 5, dtype=torch.float64),
        torch.rand(5, dtype=torch.float64),
    )
    _, grad = both(crossent.cross_entropy, x, t, c, label_smoothing=0.2, impl=impl)
    torch.testing.assert_close(grad.sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-15)


@implementations
def test_permuting_rows_and_classes_permutes_the_gradient(impl):
    x, y, c = torch.randn(8, 5), torch.randint(5, (8,)), torch.rand(5)
    rows, classes = torch.randperm(8), torch.randperm(5)
    loss, grad = both(crossent.cross_entropy, x, y, c, label_smoothing=0.1, impl=impl)
    where = torch.argsort(classes)
    moved = both(
        crossent.cross_entropy, x[rows][:, classes], where[y[rows]], c[classes], label_smoothing=0.1, impl=impl
    )
    torch.testing.assert_close(moved, (loss, grad[rows][:, classes]))


@implementations
def test_splitting_a_batch_and_combining_with_the_global_denominator(impl):
    x, y, c = torch.randn(12, 5, dtype=torch.float64), torch.randint(5, (12,)), torch.rand(5, dtype=torch.float64)
    y[[0, 1, 2, 7]] = -100
    whole = both(crossent.cross_entropy, x, y, c, impl=impl)
    count = c[y[y >= 0]].sum()
    parts = [
        both(crossent.cross_entropy, x[i : i + 4], y[i : i + 4], c, denominator=count, impl=impl) for i in (0, 4, 8)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole[0])
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), whole[1])
    means = [crossent.cross_entropy(x[i : i + 4], y[i : i + 4], c, impl=impl) for i in (0, 4, 8)]
    assert abs(sum(means) / 3 - whole[0]) > 1e-3, "a mean of means is not the mean"


@implementations
def test_padding_with_ignored_rows_changes_nothing(impl):
    x, y = torch.randn(8, 5), torch.randint(5, (8,))
    loss, grad = both(crossent.cross_entropy, x, y, label_smoothing=0.1, impl=impl)
    padded = torch.cat([x, torch.full((3, 5), torch.nan)])
    more = both(crossent.cross_entropy, padded, torch.cat([y, torch.full((3,), -100)]), label_smoothing=0.1, impl=impl)
    torch.testing.assert_close(more[0], loss)
    torch.testing.assert_close(more[1][:8], grad)
    assert (more[1][8:] == 0).all()


@implementations
@reductions
def test_one_hot_is_index(impl, reduction):
    x, y = torch.randn(8, 5, 3), torch.randint(5, (8, 3))
    t = F.one_hot(y, 5).movedim(-1, 1).float()
    for smoothing in (0.0, 0.1):
        a = both(crossent.cross_entropy, x, y, reduction=reduction, label_smoothing=smoothing, impl=impl)
        b = both(crossent.cross_entropy, x, t, reduction=reduction, label_smoothing=smoothing, impl=impl)
        torch.testing.assert_close(a, b)


@implementations
def test_a_sample_weight_is_a_repetition(impl):
    x, y, k = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,)), torch.tensor([1, 0, 3, 2, 1, 1])
    t, c = torch.rand(6, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    for target in (y, t):
        loss = crossent.cross_entropy(x, target, c, sample_weight=k, label_smoothing=0.1, impl=impl)
        repeated = torch.repeat_interleave(torch.arange(6), k)
        same = crossent.cross_entropy(x[repeated], target[repeated], c, label_smoothing=0.1, impl=impl)
        torch.testing.assert_close(loss, same)
    loss = crossent.binary_cross_entropy_with_logits(x, t, c, sample_weight=k, impl=impl)
    same = crossent.binary_cross_entropy_with_logits(x[repeated], t[repeated], c, impl=impl)
    torch.testing.assert_close(loss, same)


@implementations
def test_sigmoid_is_softmax_over_x_and_zero(impl):
    x, t = torch.randn(9, dtype=torch.float64) * 10, torch.rand(9, dtype=torch.float64)
    pair = torch.stack([x, torch.zeros_like(x)], 1)
    binary = crossent.binary_cross_entropy_with_logits(x, t, impl=impl)
    torch.testing.assert_close(crossent.cross_entropy(pair, torch.stack([t, 1 - t], 1), impl=impl), binary)


@implementations
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
)
def test_every_integer_dtype_is_an_index(impl, dtype):
    x, y = torch.randn(8, 5, 3), torch.randint(5, (8, 3))
    expected = both(F.cross_entropy, x, y, ignore_index=3)
    torch.testing.assert_close(both(crossent.cross_entropy, x, y.to(dtype), ignore_index=3, impl=impl), expected)
    if dtype is not torch.int64:
        with pytest.raises(RuntimeError):
            F.cross_entropy(x, y.to(dtype), ignore_index=3)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32]
OF_INDICES = {
    "plain": crossent.cross_entropy,
    "rows": lambda x, y: crossent.cross_entropy(x, y, reduction="none").sum(),
    "smoothed": lambda x, y: crossent.cross_entropy(x, y, label_smoothing=0.1, ignore_index=3),
    "focal": crossent.focal_loss,
    "stats": lambda x, y: crossent.cross_entropy_stats(x, y, reduction="mean").loss,
    "head": lambda x, y: crossent.linear_cross_entropy(x, torch.eye(5).to(x), y),
    "head in blocks": lambda x, y: crossent.linear_cross_entropy(x, torch.eye(5).to(x), y, max_bytes=64),
}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", OF_INDICES)
def test_every_integer_dtype_is_an_index_in_derivatives_of_any_order(name, dtype):
    x, y = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (8,))
    v = torch.randn(8, 5, dtype=torch.float64)
    results = []
    for labels in (y, y.to(dtype)):
        loss = OF_INDICES[name](x, labels)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad((grad * v).sum(), x)
        _, along = torch.func.jvp(lambda x, labels=labels: OF_INDICES[name](x, labels), (x.detach(),), (v,))
        results.append((loss, grad, second, along))
    torch.testing.assert_close(*results)


@implementations
@dtypes
def test_results_do_not_depend_on_the_number_of_threads(impl, dtype):
    calls = [
        (torch.randn(3, 70001).to(dtype), torch.tensor([5, 70000, 3])),
        (torch.randn(1, 200003).to(dtype), torch.tensor([5])),
        (torch.randn(150001, 3).to(dtype), torch.randint(3, (150001,))),
        (torch.randn(2, 3, 200, 201).to(dtype), torch.randint(3, (2, 200, 201))),
        (torch.randn(150001, 3).to(dtype), torch.rand(150001, 3).to(dtype)),
    ]

    def results():
        for x, t in calls:
            weight = torch.linspace(0.5, 1, x.shape[1]).to(dtype)
            yield from both(crossent.cross_entropy, x, t, weight, label_smoothing=0.1, impl=impl)
            if t.is_floating_point():
                yield from both(crossent.binary_cross_entropy_with_logits, x, t, impl=impl)

    try:
        one = list(results())
        torch.set_num_threads(2)
        two = list(results())
        torch.set_num_threads(5)
        five = list(results())
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, five, strict=True))


@implementations
def test_no_input_is_written(impl):
    x, y, t, c, u = torch.randn(8, 5), torch.randint(5, (8,)), torch.rand(8, 5), torch.rand(5), torch.rand(8)
    y[0] = -100
    given = [v.clone() for v in (x, y, t, c, u)]
    both(crossent.cross_entropy, x, y, c, label_smoothing=0.1, sample_weight=u, impl=impl)
    both(crossent.cross_entropy, x, t, c, label_smoothing=0.1, impl=impl)
    both(crossent.binary_cross_entropy_with_logits, x, t, c, pos_weight=c, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip((x, y, t, c, u), given, strict=True))


@implementations
def test_half_precision_means_over_many_rows(impl):
    # torch's divisor overflows from 65 520 rows on: loss 0, gradients 0, training stops in silence
    x, y = torch.randn(70000, 3).half(), torch.randint(3, (70000,))
    loss, grad = both(crossent.cross_entropy, x, y, impl=impl)
    expected = reference.cross_entropy(x.double().numpy(), y.numpy())
    assert_close(loss, expected.loss, torch.float16, terms=0)
    assert (grad != 0).float().mean() > 0.9
    assert_close(grad, expected.grad, torch.float16, terms=0)
    theirs, their_grad = both(F.cross_entropy, x, y)
    assert theirs == 0 or theirs.isnan(), "torch is mended: tell the README"
    assert (their_grad == 0).all()
    weighted = crossent.cross_entropy(x, y, torch.ones(3).half(), impl=impl)
    assert_close(weighted, expected.loss, torch.float16, terms=0)


@implementations
def test_out_dtype(impl):
    x, y = torch.randn(64, 5).bfloat16(), torch.randint(5, (64,))
    loss = crossent.cross_entropy(x, y, out_dtype=torch.float32, impl=impl)
    expected = reference.cross_entropy(x.double().numpy(), y.numpy()).loss
    assert loss.dtype == torch.float32
    assert_close(loss, expected, torch.float32, roundings=7, terms=0)
    _, grad = both(crossent.cross_entropy, x, y, out_dtype=torch.float32, impl=impl)
    assert grad.dtype == torch.bfloat16
    t = torch.rand(64, 5)
    assert crossent.binary_cross_entropy_with_logits(x, t, out_dtype=torch.float64, impl=impl).dtype == torch.float64


@implementations
def test_nothing_to_average(impl):
    x, y = torch.randn(3, 5), torch.full((3,), -100)
    loss, grad = both(crossent.cross_entropy, x, y, impl=impl)
    assert loss.isnan()
    assert (grad == 0).all()
    for call in (
        lambda x: crossent.cross_entropy(x, y, empty="zero", impl=impl),
        lambda x: crossent.cross_entropy(
            x, torch.zeros(3, dtype=torch.long), sample_weight=torch.zeros(3), empty="zero", impl=impl
        ),
        lambda x: crossent.cross_entropy(x, y, denominator=torch.tensor(0), empty="zero", impl=impl),
        lambda x: crossent.cross_entropy(x, y, denominator=0, empty="zero", impl=impl),
        lambda x: crossent.binary_cross_entropy_with_logits(x[:0], x[:0].detach(), empty="zero", impl=impl),
    ):
        loss, grad = both(call, x)
        assert loss == 0
        assert (grad == 0).all()


@implementations
def test_denominator_takes_part_in_autograd(impl):
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randint(5, (4,))
    count, u = (
        torch.tensor(7.0, dtype=torch.float64, requires_grad=True),
        torch.rand(4, dtype=torch.float64, requires_grad=True),
    )
    loss = crossent.cross_entropy(x, y, sample_weight=u, denominator=count, impl=impl)
    by_count, by_u = torch.autograd.grad(loss, (count, u))
    torch.testing.assert_close(by_count, -loss.detach() / 7)
    rows = crossent.cross_entropy(x, y, reduction="none", impl=impl)
    torch.testing.assert_close(by_u, rows / 7)
    assert torch.autograd.gradcheck(lambda u: crossent.cross_entropy(x, y, sample_weight=u, impl=impl), u)


@pytest.mark.slow
@pytest.mark.skipif(
    "native" not in IMPLEMENTATIONS, reason="eager stores what it computes, and this is 4 GiB of logits"
)
def test_more_than_two_billion_elements():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 0
    if memory < 12 * 2**30:
        pytest.skip("needs 12 GiB of free memory")
    rows, classes = 2**16 + 1, 2**15
    x = torch.zeros(rows, classes, dtype=torch.float16)
    x[-1] = torch.linspace(0, 5, classes).half()
    y = torch.zeros(rows, dtype=torch.long)
    y[-1] = classes - 1
    loss = crossent.cross_entropy(x.requires_grad_(), y, reduction="none", out_dtype=torch.float32, impl="native")
    expected = reference.cross_entropy(x[-1].detach().double().numpy(), classes - 1)
    assert_close(loss[[0, -1]], [np.log(classes), expected.loss], torch.float32, roundings=7, terms=0)
    (grad,) = torch.autograd.grad(loss, x, torch.eye(rows, 1)[:, 0].flip(0))
    np.testing.assert_allclose(grad[-1].double(), expected.grad, rtol=1e-3, atol=1e-7)
    assert (grad[0] == 0).all()
