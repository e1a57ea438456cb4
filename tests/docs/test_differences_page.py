"""The page of what other libraries' tests would see: the numbers and errors in it, on both sides where the other one is there."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import crossent

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
LONG = {"dtype": torch.long}


def gradient(loss, x):
    return torch.autograd.grad(loss(x), x)[0]


def test_every_library_has_its_lines():
    rows = [line.split("|")[1:4] for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows if row[0].strip() != "whose tests"]
    assert all(len(row) == 3 and all(row) for row in rows)
    whose = {name for row in rows for name in row[0].split(", ")}
    assert whose >= {
        "PyTorch", "Liger", "Cut Cross-Entropy", "optax", "Keras", "torchvision", "MONAI", "Caffe", "scikit-learn", "ONNX",
    }  # fmt: skip


def test_results_where_torch_has_none():
    assert F.cross_entropy(torch.tensor([[20.0, 0.0]]), torch.tensor([0])) == 0
    assert 2e-9 < crossent.cross_entropy(torch.tensor([[20.0, 0.0]]), torch.tensor([0])) < 2.1e-9
    half = torch.zeros(65_520, 2, dtype=torch.float16)
    y = torch.zeros(65_520, **LONG)
    assert not 0.6 < F.cross_entropy(half, y) < 0.8
    assert 0.69 < crossent.cross_entropy(half, y) < 0.7
    x, y = torch.tensor([[1.0, 2.0], [nan, 0.0]], requires_grad=True), torch.tensor([0, -100])
    assert gradient(lambda x: F.cross_entropy(x, y), x).isnan().any()
    assert gradient(lambda x: crossent.cross_entropy(x, y), x).isfinite().all()
    masked, t = torch.tensor([[0.0, 1.0, -inf]]), torch.tensor([[0.5, 0.5, 0.0]])
    assert F.cross_entropy(masked, t).isnan()
    assert crossent.cross_entropy(masked, t).isfinite()
    assert F.binary_cross_entropy_with_logits(torch.tensor([-inf]), torch.zeros(1)).isnan()
    assert crossent.binary_cross_entropy_with_logits(torch.tensor([-inf]), torch.zeros(1)) == 0


def test_a_mean_over_nothing_has_no_gradient():
    x, y, c = torch.randn(4, 3, requires_grad=True), torch.full((4,), 2), torch.tensor([1.0, 1.0, 0.0])
    for f, spoilt in ((F.cross_entropy, True), (crossent.cross_entropy, False)):
        assert f(x, y, c, label_smoothing=0.1).isnan()
        assert gradient(lambda x, f=f: f(x, y, c, label_smoothing=0.1), x).isnan().any() == spoilt


def test_a_small_result_is_0():
    if crossent.implementations()["native"] is None:
        assert crossent.cross_entropy(torch.tensor([[88.0, 0.0]]), torch.tensor([0]), impl="native") == 0
    assert crossent.cross_entropy(torch.tensor([[86.0, 0.0]]), torch.tensor([0])) > 0


def test_a_head_has_the_dtype_of_its_inputs():
    h, W, y = torch.randn(4, 3).bfloat16(), torch.randn(5, 3).bfloat16(), torch.zeros(4, **LONG)
    assert crossent.linear_cross_entropy(h, W, y).dtype == torch.bfloat16
    assert crossent.linear_cross_entropy(h, W, y, out_dtype=torch.float32).dtype == torch.float32


def test_an_index_of_a_masked_class_is_infinite():
    mask = torch.tensor([False, True, True])
    assert crossent.cross_entropy(torch.zeros(1, 3), torch.tensor([0]), class_mask=mask) == inf


def test_probabilities_are_not_clipped():
    p = torch.tensor([[1e-9, 1 - 1e-9]], dtype=torch.float64)
    assert crossent.cross_entropy(p.log(), torch.tensor([0])) > 16.12
    assert crossent.cross_entropy(torch.tensor([[-100.0, 0.0]]), torch.tensor([0])) > 87.34
    apart = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert crossent.cross_entropy(apart.log(), torch.tensor([0])) == inf
    metrics = pytest.importorskip("sklearn.metrics")
    assert round(float(metrics.log_loss([0], apart.numpy(), labels=[0, 1])), 2) == 36.04
    short = torch.tensor([[0.2, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(crossent.cross_entropy(short.log(), torch.tensor([0])).exp().item(), 2.0)


def test_errors_and_names():
    x = torch.randn(4, 5, requires_grad=True)
    for dtype in (torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        y = torch.tensor([0, 1, 2, 3], dtype=dtype)
        with pytest.raises(RuntimeError):
            F.cross_entropy(x, y)
        assert crossent.cross_entropy(x, y).isfinite()
    y, c = torch.tensor([0, 1, 2, 3]), torch.ones(5)
    with pytest.raises(RuntimeError):
        F.cross_entropy(x.bfloat16(), y, c)
    assert crossent.cross_entropy(x.bfloat16(), y, c).isfinite()
    assert crossent.cross_entropy(x, y).grad_fn.name() == "CrossEntropyBackward"
    assert F.cross_entropy(x, y).grad_fn.name() == "NllLossBackward0"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_functions_are_not_scripted():
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="keyword-only"):
        torch.jit.script(crossent.cross_entropy)
