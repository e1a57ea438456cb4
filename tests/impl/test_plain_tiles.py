"""Losses of class indices and nothing else, which have tiles, and rows together, of their own: every size of their parts,
every layout and instruction set, and rows that hold anything, against torch operations in float64."""

import pytest
import torch

import crossent
from crossent.ops.node import SameNumbers

native = pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")._native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLASSES = [
    *range(1, 14),
    20,
    21,
    32,
    33,
    44,
    45,
    47,
    48,
    55,
    56,
    64,
    65,
    104,
    105,
    112,
    113,
    256,
    257,
    512,
    513,
    1024,
    1025,
    2048,
    2049,
    4096,
    4097,
]
# A tile has 32 rows, and 128 of a batch of 8,192 or more. Classes that lie apart have panels of 32 neighbours or less.
LAYOUTS = {
    "rows": lambda classes: torch.empty(8193 if classes < 4 else 161, classes),
    "few rows": lambda classes: torch.empty(33, classes),
    "fewer rows": lambda classes: torch.empty(12, classes),
    "rows apart": lambda classes: torch.empty(70, classes + 3)[:, :classes],
    "whole panels": lambda classes: torch.empty(2, classes, 4096 if classes < 4 else 128),
    "panels of lines that are not whole": lambda classes: torch.empty(3, classes, 131)[..., 3:],
    "ragged panels": lambda classes: torch.empty(3, classes, 11, 9),
    "panels of short runs": lambda classes: torch.empty(21, classes, 16),
    "panels of pairs": lambda classes: torch.empty(37, classes, 2),
    "few rows apart": lambda classes: torch.empty(2, classes, 4),
    "channels_last": lambda classes: torch.empty(2, classes, 9, 9).to(memory_format=torch.channels_last),
    "columns": lambda classes: torch.empty(classes, 97).t(),
}


@pytest.fixture(params=native.isas())
def isa(request):
    used = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(used)


@pytest.fixture
def past_the_caches(request):
    before = native.stream_from(0 if request.param else 1 << 62)
    yield request.param
    native.stream_from(before)


def problem(layout, classes, dtype, seed):
    """Return logits of a layout, of which some rows hold what is no number, labels and weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = LAYOUTS[layout](classes).to(dtype)
    with torch.no_grad():
        logits.copy_(torch.randn(logits.shape, generator=generator) * 4)
    by_row = logits.movedim(1, -1)
    labels = torch.randint(classes, by_row.shape[:-1], generator=generator)
    odd = torch.rand(labels.shape, generator=generator)
    for number, share in [(torch.nan, 0.03), (torch.inf, 0.06), (-torch.inf, 0.12)]:
        place = (odd < share) & (odd >= share / 2)
        by_row[..., -1][place] = number
    by_row[..., 0][odd > 0.8] = by_row.amax(-1)[odd > 0.8]  # two classes at the top
    by_row[..., 0][odd > 0.9] = 60  # a class that is nearly certain
    by_row[(odd > 0.7) & (odd < 0.72)] = -torch.inf
    labels[(odd < 0.3) & (odd > 0.05)] = -100  # some of them with nan or infinite logits
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.rand(classes, generator=generator, dtype=wide) + 0.1
    weight[classes // 2] = 0
    sample_weight = (torch.rand(labels.shape, generator=generator, dtype=wide) - 0.2).clamp(min=0)
    return logits, labels, weight, sample_weight


def loss_and_slope(logits, labels, call, impl):
    # Copied by strides of its own, so that autograd sees a leaf of the same layout.
    leaf = torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype).copy_(logits).requires_grad_()
    with torch.no_grad():
        forward = crossent.cross_entropy(leaf, labels, impl=impl, **call)
    loss = crossent.cross_entropy(leaf, labels, impl=impl, **call)
    torch.testing.assert_close(forward, loss, rtol=0 if impl == "native" else 1e-13, atol=0, equal_nan=True)
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss, slope


def tolerance(dtype):
    return {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "past_the_caches"),
    [*((dtype, False) for dtype in DTYPES), (torch.float32, True), (torch.float64, True)],  # in half precision never
    ids=str,
    indirect=["past_the_caches"],
)
def test_plain_losses_are_those_of_torch_operations(isa, past_the_caches, layout, dtype):
    for seed, classes in enumerate(CLASSES[:: 1 if isa == native.isas()[-1] else 2]):
        logits, labels, weight, sample_weight = problem(layout, classes, dtype, seed)
        calls = [{"reduction": "sum"}, {"weight": weight, "sample_weight": sample_weight, "reduction": "sum"}]
        for call in calls[: 1 + (classes in (3, 10, 65))]:
            loss, slope = loss_and_slope(logits, labels, call, "native")
            wide = {name: each.double() if isinstance(each, torch.Tensor) else each for name, each in call.items()}
            expected, slopes = loss_and_slope(logits.double(), labels, wide, "eager")
            rtol = tolerance(dtype)
            torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=rtol, equal_nan=True)
            torch.testing.assert_close(slope.double(), slopes, rtol=4 * rtol, atol=1e-7 + rtol * rtol, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_losses_of_rows_and_their_slopes_are_those_of_torch_operations(isa, layout, dtype):
    for seed, classes in enumerate([*CLASSES[::3], 300]):
        logits, labels, weight, _ = problem(layout, classes, dtype, seed)
        for c in (None, weight) if dtype.itemsize >= 4 and classes in (7, 10, 300) else (None,):
            call = {"weight": c, "reduction": "none"}
            wide = {"weight": None if c is None else c.double(), "reduction": "none"}
            arriving = torch.randn(labels.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
            arriving.view(-1)[::5], arriving.view(-1)[-1], arriving.view(-1)[-7] = 0, 1e4, torch.inf
            leaf = torch.empty_strided(logits.shape, logits.stride(), dtype=dtype).copy_(logits).requires_grad_()
            losses = crossent.cross_entropy(leaf, labels, impl=None, **call)
            (slope,) = torch.autograd.grad(losses, leaf, arriving)
            exact = logits.double().requires_grad_()
            expected = crossent.cross_entropy(exact, labels, impl="eager", **wide)
            (slopes,) = torch.autograd.grad(expected, exact, arriving.double())
            smallest = 2.0**-24 if dtype == torch.float16 else 1e-30  # a smaller number has no place in float16
            rtol = tolerance(dtype)
            torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=smallest, equal_nan=True)
            torch.testing.assert_close(slope.double(), slopes, rtol=4 * rtol, atol=1e-7 + rtol * rtol, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_losses_and_their_gradients_stay_in_the_dtype_of_the_logits(isa, dtype):
    for shape in [(1,), (7, 9), (600, 3), (5, 1000)]:
        x = (torch.randn(shape) * 8).to(dtype).requires_grad_()
        t = torch.rand(shape).to(dtype)
        for arriving in (torch.randn(shape).to(dtype), torch.tensor(0.5, dtype=dtype).expand(shape)):
            losses = crossent.binary_cross_entropy_with_logits(x, t, reduction="none")
            (slope,) = torch.autograd.grad(losses, x, arriving)
            exact = x.detach().double().requires_grad_()
            expected = crossent.binary_cross_entropy_with_logits(exact, t.double(), reduction="none", impl="eager")
            (slopes,) = torch.autograd.grad(expected, exact, arriving.double())
            assert losses.dtype == slope.dtype == dtype
            rtol = tolerance(dtype)
            torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=2.0**-24)
            torch.testing.assert_close(slope.double(), slopes, rtol=2 * rtol, atol=2.0**-24)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "layout", ["rows apart", "columns", "channels_last", "ragged panels", "few rows apart", "stepped"]
)
def test_a_loss_has_the_same_bits_wherever_its_gradient_lies(isa, layout, dtype):
    for classes in (3, 10, 69, 200):
        torch.manual_seed(classes)
        logits = torch.empty(5, 3 * classes)[:, ::3] if layout == "stepped" else LAYOUTS[layout](classes)
        logits = torch.empty_strided(logits.shape, logits.stride(), dtype=dtype).copy_(torch.randn(logits.shape) * 3)
        labels = torch.randint(classes, logits.movedim(1, -1).shape[:-1])
        losses, slopes = [], []
        for how in ({}, {"inplace_backward": True}, {"inplace_forward": True}):
            leaf = torch.empty_strided(logits.shape, logits.stride(), dtype=dtype).copy_(logits).requires_grad_()
            loss = crossent.cross_entropy(SameNumbers.apply(leaf), labels, reduction="sum", **how)
            slopes.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        losses.append(crossent.cross_entropy(logits, labels, reduction="sum"))
        assert all(torch.equal(losses[0], loss) for loss in losses)
        assert all(torch.equal(slopes[0], slope) for slope in slopes)


@pytest.mark.parametrize("classes", [40, 130, 300, 2100])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_rows_that_overlap_have_one_loss_with_a_gradient_and_without(isa, classes, reduction):
    logits = (torch.randn(classes + 100, generator=torch.Generator().manual_seed(0)) * 4).unfold(0, classes, 1)
    labels = torch.arange(logits.shape[0]) % classes
    with torch.no_grad():
        alone = crossent.cross_entropy(logits, labels, reduction=reduction, impl="native")
    leaf = logits.detach().requires_grad_()
    loss = crossent.cross_entropy(leaf, labels, reduction=reduction, impl="native")
    assert torch.equal(loss, alone)
    (slope,) = torch.autograd.grad(loss, leaf)
    wide = logits.double().contiguous().requires_grad_()
    (exact,) = torch.autograd.grad(crossent.cross_entropy(wide, labels, reduction=reduction, impl="eager"), wide)
    torch.testing.assert_close(slope.double(), exact, rtol=3e-6, atol=1e-9)
