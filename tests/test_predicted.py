"""The predicted class of the statistics: the first most probable one, and what ``correct`` says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import DTYPES, FAMILY, IMPLEMENTATIONS, SOFTMAX, law, rounded, tensors, to_reference

import crossent
from crossent import reference
from crossent.impl.eager.statistics import first_largest

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


@dtypes
@law([case for case in FAMILY + SOFTMAX if "denominator" not in case.settings])
def test_is_the_first_most_probable_class_and_agrees_with_correct(case, dtype):
    case = rounded(case, dtype)
    x, t, settings = tensors(case, dtype)
    stats = crossent.cross_entropy_stats(x, t, **settings)
    assert stats.predicted.dtype == torch.int64
    assert stats.predicted.shape == stats.correct.shape
    assert not stats.predicted.requires_grad
    wide = reference.cross_entropy_stats(case.logits, case.target, reduction="none", **to_reference(case.settings))
    if dtype == torch.float64:
        np.testing.assert_array_equal(stats.predicted.numpy(), wide.predicted)
    np.testing.assert_array_equal(stats.predicted.numpy() == -100, wide.predicted == -100)
    if t.is_floating_point():
        axis = case.settings.get("dim", min(t.dim() - 1, 1))
        largest, wanted = t.max(axis) if t.numel() else (torch.zeros(()), torch.full((), -1))
        agrees = (stats.predicted == wanted) & (largest > 0)
    else:
        agrees = (stats.predicted == t.reshape(stats.predicted.shape)) & (stats.predicted != -100)
    assert torch.equal(stats.correct, agrees)
    for reduction in ("sum", "mean"):
        total = crossent.cross_entropy_stats(x, t, reduction=reduction, **settings).predicted
        assert (total.shape, total.dtype, total.item()) == ((), torch.int64, -100)


@pytest.mark.parametrize("ignore_index", [-100, 0, 255])
@pytest.mark.parametrize("impl", [None, *IMPLEMENTATIONS])
def test_rows_that_do_not_count_have_none(ignore_index, impl):
    x = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 0.0], [torch.nan, 1.0, 2.0], [torch.inf, 0.0, 0.0], [-torch.inf] * 3])
    y = torch.tensor([1, ignore_index, 0, 0, 0])
    if ignore_index == 0:
        y[2:] = 1
    with torch.no_grad():
        stats = crossent.cross_entropy_stats(x, y, ignore_index=ignore_index, impl=impl)
    assert stats.predicted.tolist() == [1, -100, -100, -100, -100]
    assert stats.correct.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("target", [torch.full((2,), -100), torch.zeros(2, 0)], ids=["indices", "probabilities"])
def test_rows_without_classes_have_none(target):
    assert crossent.cross_entropy_stats(torch.zeros(2, 0), target).predicted.tolist() == [-100, -100]


def test_is_there_in_forward_mode():
    x, y = torch.tensor([[[0.0, 2.0, 1.0]], [[3.0, 1.0, 0.0]]]), torch.tensor([1])

    def stats(one):
        return torch.func.jvp(lambda z: crossent.cross_entropy_stats(z, y), (one,), (torch.ones_like(one),))[0]

    assert [stats(one).predicted.item() for one in x] == [1, 0]
    assert torch.vmap(stats)(x).predicted.tolist() == [[1], [0]]


def test_is_that_of_the_transformed_logits():
    x, y = torch.tensor([[5.0, 4.0, 0.0]]), torch.tensor([0])

    def predicted(**settings):
        return crossent.cross_entropy_stats(x, y, **settings).predicted.item()

    assert predicted() == 0
    assert predicted(margin=2.0) == 1
    assert predicted(logit_bias=torch.tensor([0.0, 0.0, 9.0])) == 2
    assert predicted(class_mask=torch.tensor([False, True, True])) == 1


@pytest.mark.parametrize("special", [{}, {"temperature": 3.0}, {"softcap": 2.0}])
def test_many_rows_with_a_setting_of_their_own(special):
    torch.manual_seed(0)
    x, y = torch.randn(600, 3001) * 3, torch.randint(3001, (600,))
    mask, bias = torch.rand(600, 3001) < 0.9, torch.randn(600, 3001)
    y[::7] = -100
    stats = crossent.cross_entropy_stats(x, y, class_mask=mask, logit_bias=bias, **special)
    z = x if "softcap" not in special else 2.0 * (x / 2.0).tanh()
    expected = ((z + bias) / special.get("temperature", 1.0)).masked_fill(~mask, -torch.inf).argmax(1)
    assert torch.equal(stats.predicted, expected.masked_fill(y == -100, -100))
    labels = torch.rand(600, 3001)
    stats = crossent.cross_entropy_stats(x, labels, class_mask=mask, logit_bias=bias, **special)
    assert torch.equal(stats.predicted, expected)
    assert torch.equal(stats.correct, expected == labels.argmax(1))


@pytest.mark.parametrize("classes", [1024, 1025, 4096 + 63, 5000])
@dtypes
def test_a_long_row_is_searched_as_a_short_one(classes, dtype):
    torch.manual_seed(0)
    x = torch.randint(-9, 9, (40, classes)).to(dtype)  # with many ties
    x[0], x[1] = -torch.inf, 3
    x[2, -1], x[3, 0], x[4, 700] = 99, 99, 99
    x[5, -1] = x[6, 30] = torch.nan
    top, at = first_largest(x)
    expected = x.max(1, keepdim=True)
    torch.testing.assert_close(top, expected.values, rtol=0, atol=0, equal_nan=True)
    finite = ~top.isnan()
    assert torch.equal(at[finite], x.argmax(1, keepdim=True)[finite])
    strided = torch.empty(classes, 40, dtype=dtype).t().copy_(x)
    assert torch.equal(first_largest(strided)[1][finite], at[finite])
    rows = torch.vmap(lambda v: first_largest(v)[1])(torch.stack([x, x.flip(1)]))
    assert torch.equal(rows[0][finite], at[finite])


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_beyond_two_to_the_24_classes(reduction):
    classes = (1 << 24) + 2  # float32 has no number for the last index, and rounds it to the one before
    x = torch.zeros(classes, 2).t()  # classes apart in memory
    x[:, classes - 1] = 1.0
    y = torch.tensor([classes - 1, classes - 2])
    with torch.no_grad():
        stats = crossent.cross_entropy_stats(x, y, reduction=reduction)
    if reduction == "sum":
        assert stats.correct == 1
    else:
        assert stats.predicted.tolist() == [classes - 1] * 2
        assert stats.correct.tolist() == [True, False]


@pytest.mark.parametrize("blocks", [False, True], ids=["at once", "blocks"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_of_a_head(blocks, soft, reduction):
    torch.manual_seed(0)
    h, W = torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    y = torch.randint(9, (2, 6))
    y[0, 2] = -100
    target = torch.rand(2, 6, 9, dtype=torch.float64) if soft else y
    mask, size = torch.arange(9) != 3, {"max_bytes": 9 * 8 * 4} if blocks else {}
    stats = crossent.linear_cross_entropy_stats(h, W, target, class_mask=mask, reduction=reduction, **size)
    expected = crossent.cross_entropy_stats(h @ W.T, target, class_mask=mask, dim=-1, reduction=reduction)
    assert stats.predicted.dtype == torch.int64
    torch.testing.assert_close(tuple(stats), tuple(expected))
    if not soft and reduction == "none":
        shifted = crossent.linear_cross_entropy_stats(h, W, y, shift=1, class_mask=mask, **size)
        assert torch.equal(shifted.predicted == -100, y[:, 1:] == -100)
        kept = shifted.predicted != -100
        assert torch.equal(shifted.predicted[kept], (h @ W.T)[:, :-1].masked_fill(~mask, -torch.inf).argmax(-1)[kept])


def test_compiled_and_transformed():
    def f(x, y):
        stats = crossent.cross_entropy_stats(x, y, temperature=2.0)
        return stats.predicted, stats.correct

    x, y = torch.randn(5, 2000), torch.tensor([0, 1, -100, 3, 4])
    torch._dynamo.reset()
    for g in (
        torch.compile(f, fullgraph=True, backend="aot_eager"),
        torch.compile(f, fullgraph=True, dynamic=True, backend="eager"),
    ):
        torch.testing.assert_close(g(x, y), f(x, y))
    many = torch.stack([x, -x])
    torch.testing.assert_close(
        torch.vmap(f, (0, None))(many, y), tuple(torch.stack(v) for v in zip(f(x, y), f(-x, y), strict=True))
    )
