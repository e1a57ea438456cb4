"""The GPU kernels in Triton's interpreter: layouts, sizes and rows that the laws do not reach, and promises beside numbers.

They run where Triton is installed and ``TRITON_INTERPRET=1``: ``make test-gpu-static``. The laws do too, for ``impl="triton"``.
"""

import numpy as np
import pytest
import torch
from cases import LEFT_TO_TORCH
from closeness import assert_close
from interpreter import INTERPRETED

import crossent
from crossent import impl as implementations
from crossent import reference
from crossent.core.settings import Settings
from crossent.core.target import Target
from crossent.impl import classes, formulas
from crossent.impl import head as heads
from crossent.impl.head import Head, Plan

if not INTERPRETED:
    pytest.skip("these kernels run on a GPU, or in Triton's interpreter", allow_module_level=True)
triton, tile_of_rows, numbers = (
    pytest.importorskip(f"crossent.impl.triton{part}") for part in ("", ".tile", ".numbers")
)
compiler, tl, rows_of = pytest.importorskip("triton"), pytest.importorskip("triton.language"), tile_of_rows.rows_of

EAGER = formulas.IMPLEMENTATION
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def problem(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 4).to(dtype)
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return x, y


def assert_right(x, y, dtype, **settings):
    """Hold the losses of rows and both ways to their gradient to the specification."""
    leaf = x.detach().requires_grad_()
    loss = crossent.cross_entropy(leaf, y, reduction="none", impl="triton", **settings)
    exact = reference.cross_entropy(x.double().numpy(), y.numpy(), reduction="none", **settings)
    assert_close(loss, exact.loss, dtype)
    assert_close(torch.autograd.grad(loss.sum(), leaf)[0], exact.grad, dtype)
    total = crossent.cross_entropy(leaf, y, reduction="sum", impl="triton", **settings)
    assert_close(torch.autograd.grad(total, leaf)[0], exact.grad, dtype)


# --- sizes and layouts ------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("classes", [1, 2, 8, 9, 127, 257, 1024, 4101])
def test_rows_of_any_length(classes, dtype):
    assert_right(*problem((2, classes), dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_rows_so_long_that_they_have_more_threads(dtype):
    x, y = problem((2, 40003), dtype)
    wide, usual = triton.to.arrange(x, again=True), triton.to.arrange(x)
    assert wide.warps > usual.warps
    assert wide.tile.KEEP.value > usual.tile.KEEP.value
    assert_right(x, y, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 21, 16, 17), (2, 1, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_classes_that_lie_apart(shape, layout, dtype):
    x, y = problem(shape, dtype)
    if layout is torch.channels_last:
        x = x.contiguous(memory_format=layout) if x.dim() == 4 else x.mT.contiguous().mT
    assert_right(x, y, dtype)


STRIDED = {
    "a padded vocabulary": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "padded to 16 bytes": lambda x: torch.nn.functional.pad(x, (0, -x.shape[1] % 16))[:, : x.shape[1]],
    "every second row": lambda x: torch.cat([x, x], 1).view(-1, x.shape[1])[::2],
    "an odd begin": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
    "transposed": lambda x: x.t().contiguous().t(),
    "one row in memory": lambda x: x[:1].expand(x.shape),
    "every second class": lambda x: torch.stack([x, x], -1).flatten(1)[:, ::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("classes", [10, 300])
def test_strides(layout, classes, dtype):
    x, y = problem((2, classes), dtype)
    assert_right(STRIDED[layout](x), y, dtype)


def test_nothing_is_copied_that_a_walk_takes(monkeypatch):
    x, _ = problem((2, 30, 4, 6))
    taken = [x, x.contiguous(memory_format=torch.channels_last), x.flatten(2).mT.contiguous().mT, x[:, :20]]
    taken += [each(x.flatten(1)) for name, each in STRIDED.items() if name != "every second class"]
    apart, repeated = x[..., ::2], x[..., :1].expand(x.shape)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    for logits in taken:
        assert triton.to.arrange(logits).logits is logits
    monkeypatch.undo()
    for logits in (apart, repeated):
        assert triton.to.arrange(logits).logits is not logits


@pytest.mark.parametrize("strides", [(2**31 + 8, 1), (1, 2**31 + 8)], ids=["rows", "classes"])
def test_offsets_beyond_two_billion(strides):
    rows, classes = (2, 9) if strides[1] == 1 else (9, 2)
    x = torch.empty_strided((rows, classes), strides, dtype=torch.float16)  # 4 GiB, of which two pages are touched
    values, y = problem((rows, classes), torch.float16)
    x.copy_(values)
    target = Target(y)
    launch = triton.to.arrange(x)
    assert launch.logits is x, "or nothing is tried here"
    loss, _, lse = triton.cross_entropy_forward(x, target, "none")
    gradient = triton.cross_entropy_backward(torch.ones(()), x, target, lse).logits
    exact = reference.cross_entropy(values.double().numpy(), y.numpy(), reduction="none")
    assert_close(loss, exact.loss, torch.float32)
    assert_close(gradient, exact.grad, torch.float16)


@compiler.jit
def _numbers(to, program, layout, tile):
    rows = rows_of(program + tl.program_id(0), layout, tile)
    at = tl.arange(0, tile.ROWS)
    tl.store(to + at, tl.where(rows.inside, rows.number, -1))
    tl.store(to + tile.ROWS + at, rows.at_x)


def test_rows_beyond_two_billion():
    """Where the last program of a tensor of one class and three billion rows finds its own, which nobody could launch here."""
    count = 3 * 2**30 + 5
    usual = triton.to.arrange(torch.zeros(3, 1))
    rows = usual.tile.ROWS.value
    programs = -(-count // rows)
    layout = tile_of_rows.Layout(1, count, programs, 0, 1, 1, 0, 1, 1)
    found = torch.zeros(2, rows, dtype=torch.int64)
    _numbers[(1,)](found, programs - 1, layout, usual.tile)
    expected = torch.arange(rows) + (programs - 1) * rows
    assert torch.equal(found[0], expected.masked_fill(expected >= count, -1))
    assert torch.equal(found[1], expected)


# --- rows that are unusual --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 300), (4, 5, 4)])
@pytest.mark.parametrize("wrong", ["classes", -(2**40)])
def test_a_label_that_is_no_class_makes_its_row_nan_and_no_other(shape, wrong):
    x, y = problem(shape)
    y[1] = shape[1] if wrong == "classes" else wrong
    y[2] = -100
    right = y.clone()
    right[1] = -100
    leaf = x.requires_grad_()
    for reduction in ("none", "sum", "mean"):
        loss = crossent.cross_entropy(leaf, y, reduction=reduction, impl="triton")
        expected = crossent.cross_entropy(leaf, right, reduction=reduction, impl="triton")
        grads = [torch.autograd.grad(each.sum(), leaf)[0] for each in (loss, expected)]
        assert torch.equal(*grads)
        assert (grads[0][1] == 0).all()
        if reduction == "none":
            assert loss[1].isnan().all()
            assert torch.equal(torch.cat([loss[:1], loss[2:]]), torch.cat([expected[:1], expected[2:]]))
        else:
            assert loss.isnan()


@pytest.mark.parametrize("classes", [5, 300])
def test_rows_of_infinities_and_nan_stay_in_their_row(classes):
    x, y = problem((6, classes))
    x[0], x[1], x[2, 3], x[3] = -torch.inf, torch.nan, torch.inf, -torch.inf
    x[3, 1], y[3], y[4] = 0.0, 1, -100
    x[4] = torch.nan
    x.requires_grad_()
    loss = crossent.cross_entropy(x, y, reduction="none", impl="triton")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert loss[:3].isnan().all()
    assert loss[3] == 0
    assert loss[4] == 0
    assert loss[5].isfinite()
    assert (grad[3:5] == 0).all()
    assert grad[5].isfinite().all()


@dtypes
@pytest.mark.parametrize("shape", [(4, 300), (4, 10), (2, 9, 5)])
def test_a_confident_row_keeps_its_digits(dtype, shape):
    x = torch.zeros(shape, dtype=dtype)
    y = torch.ones((shape[0], *shape[2:]), dtype=torch.int64)
    x[:, 1] = torch.linspace(8, 60, y.numel()).view(y.shape).to(dtype)
    loss, _, _ = triton.cross_entropy_forward(x, Target(y), "none")
    exact = reference.cross_entropy(x.double().numpy(), y.numpy(), reduction="none").loss
    # In half precision e^d has a rounding of d log2 e, which is off by half of 2^-18 for d = 60; else a few units are lost.
    rtol = 4e-6 if dtype.itemsize == 2 else 16 * torch.finfo(dtype).eps
    np.testing.assert_allclose(loss.double().numpy(), exact, rtol=rtol)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(5, 30), (2, 30, 3)])
def test_rows_left_out_beside_those_of_an_index(shape, soft):
    """As those are of which a mask allows no class, or which have no label of several."""
    x, y = problem(shape)
    t = x.softmax(1) if soft else y
    valid = torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    x.movedim(1, -1)[~valid] = torch.nan
    weight = torch.linspace(0.5, 2, shape[1])
    target = Target(t, weight, valid=valid, settings=Settings(z_loss=0.1, label_smoothing=0.2))
    ones = torch.ones(())
    u = torch.rand(y.shape, generator=torch.Generator().manual_seed(4))
    for mean in (False, True):
        for more in ({}, {"sample_weight": u}):
            ours, theirs = (
                impl.cross_entropy_sum(x, target, mean, torch.float32, 1.0, **more)
                for impl in (triton.IMPLEMENTATION, EAGER)
            )
            torch.testing.assert_close(ours.loss, theirs.loss)
            torch.testing.assert_close(float(ours.total), theirs.total)
            torch.testing.assert_close(ours.gradient, theirs.gradient)
            assert (ours.gradient.movedim(1, -1)[~valid] == 0).all()
    ours, theirs = (impl.cross_entropy_forward(x, target, "none") for impl in (triton.IMPLEMENTATION, EAGER))
    torch.testing.assert_close(ours[:2], theirs[:2])
    grads = [
        impl.cross_entropy_backward(ones, x, target, ours.lse, (True, soft, False, False))
        for impl in (triton.IMPLEMENTATION, EAGER)
    ]
    torch.testing.assert_close(grads[0].logits, grads[1].logits)
    told = [impl.statistics(x, target) for impl in (triton.IMPLEMENTATION, EAGER)]
    for name, a, b in zip(told[0]._fields, *told, strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-5, atol=1e-5)


def test_several_labels_take_the_kernels_too(launched):
    x, _ = problem((4, 30))
    x.requires_grad_()
    labels = (torch.rand(4, 30, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    labels[2] = 0
    results = []
    for impl in ("triton", "eager"):
        loss = crossent.multilabel_cross_entropy(x, labels, impl=impl)
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    torch.testing.assert_close(*results)
    assert launched == ["fused"]


def test_a_sign_that_is_yet_to_be_changed():
    """The imaginary part of a conjugate is a view whose memory holds the other sign."""
    x, y = problem((4, 30))
    t, c = x.softmax(1), torch.linspace(0.5, 2, 30)
    for call in CALLS.values():
        results = []
        for change in (lambda v: v, lambda v: (-v)._neg_view()):
            leaf = change(x).requires_grad_()
            loss = call(leaf, y, change(t))
            results.append((loss.detach(), torch.autograd.grad(loss, leaf, change(torch.tensor(3.0)))[0]))
        torch.testing.assert_close(*results)
    plain, changed = (
        crossent.cross_entropy(x, y, w, sample_weight=u, impl="triton")
        for w, u in ((c, c[:4]), ((-c)._neg_view(), (-c[:4])._neg_view()))
    )
    torch.testing.assert_close(plain, changed)


@pytest.mark.parametrize("place", ["inplace_backward", "inplace_forward"])
@pytest.mark.parametrize("what", ["target", "weight"])
def test_nothing_is_written_over_what_shares_the_memory_of_the_logits(what, place):
    x, y = problem((30, 30))
    x.requires_grad_()
    results = []
    for shared in (False, True):
        logits = x * 1
        view = logits.detach().t() if what == "target" else logits.detach()[0]
        view = view if shared else view.clone()
        arguments = (logits, view) if what == "target" else (logits, y, view)
        loss = crossent.cross_entropy(*arguments, reduction="sum", impl="triton", **{place: True})
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
        assert torch.equal(view, x.t() if what == "target" else x[0])
    torch.testing.assert_close(*results)


# --- rounding by the bits ---------------------------------------------------------------------------------------------


def of_bits(bits):
    """Make float32 of the numbers that have these bits, which are given as int64."""
    return torch.as_tensor(bits).to(torch.int32).view(torch.float32)


@compiler.jit
def _rounded(values, to, plain: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(to + at, numbers.rounded(numbers.plain_nan(tl.load(values + at), plain), tl.bfloat16, True))


def test_bits_are_rounded_as_torch_rounds():
    """Every upper half, with lower halves around those where something changes: denormals, infinities and nan are among them."""
    lower = torch.tensor([0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF])
    bits = (torch.arange(2**16)[:, None] << 16 | lower).flatten()
    values = of_bits(bits)
    expected, nan = values.bfloat16().view(torch.int16), values.isnan()
    for plain in (False, True):
        found = torch.zeros_like(expected).view(torch.bfloat16)
        _rounded[(8,)](values, found, plain, len(bits) // 8)
        assert torch.equal(found.view(torch.int16)[~nan], expected[~nan])
        stay = nan if plain else nan & ((bits & 0xFFFF) == 0)
        assert found[stay].isnan().all()
    assert nan.sum() == 2 * (2**7 * len(lower) - 1)


@pytest.fixture
def by_bits(monkeypatch):
    """Round as on a processor without an instruction for it, where a row that is not read is 0 as well."""

    def switch(on=True):
        for home in (triton.to, triton.binary, triton.sums):
            monkeypatch.setattr(home, "by_bits", lambda: on)

    switch()
    return switch


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("plain", (3, 1101)),
        ("plain", (3, 9, 6)),
        *((kind, (3, 70)) for kind in ("smoothed", "biased", "weighted", "sigmoid")),
    ],
)
def test_gradients_rounded_by_bits_are_the_same(kind, shape, by_bits):
    x, y = problem(shape, torch.bfloat16)
    y[1], x[1], x[2, 3] = -100, torch.nan, -torch.inf
    c = torch.linspace(0.5, 2, shape[1])
    options = {
        "plain": {},
        "smoothed": {"label_smoothing": 0.1},
        "biased": {"logit_bias": c},
        "weighted": {"weight": c},
    }
    results = []
    for on in (False, True):
        by_bits(on)
        leaf = x.detach().requires_grad_()
        for reduction in ("mean", "none"):
            if kind == "sigmoid":
                loss = crossent.binary_cross_entropy_with_logits(
                    leaf, x.sigmoid().nan_to_num(), reduction=reduction, impl="triton"
                )
            else:
                loss = crossent.cross_entropy(leaf, y, reduction=reduction, impl="triton", **options[kind])
            results.append(torch.autograd.grad(loss, leaf, torch.full_like(loss, 0.3))[0])
    assert triton.to.arrange(x).tile.BITS.value
    for usual, found in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(found, usual, rtol=0, atol=0, equal_nan=True)
        if kind != "sigmoid":
            assert (found[1] == 0).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF])
def test_no_nan_that_a_caller_brings_becomes_a_number(bits, by_bits):
    """In float32 a nan has any bits, on NVIDIA's processors 0x7FFFFFFF: in gradients, in weights, and in a bias."""
    nan = of_bits(bits)
    x, y = problem((3, 70), torch.bfloat16)
    t, leaf = x.sigmoid(), x.requires_grad_()
    c, u, ones = torch.ones(70), torch.ones(3), torch.ones(3, 70)
    c[y[1]] = u[1] = nan
    kinds = {"impl": "triton", "reduction": "none", "out_dtype": torch.float32}
    plain = crossent.cross_entropy(leaf, y, **kinds)
    (of_rows,) = torch.autograd.grad(plain, leaf, u)
    (weighted,) = torch.autograd.grad(crossent.cross_entropy(leaf, y, c, **kinds), leaf, torch.ones(3))
    (sampled,) = torch.autograd.grad(
        crossent.cross_entropy(leaf, y, impl="triton", sample_weight=u, reduction="sum"), leaf
    )
    for grad in (of_rows, weighted, sampled):
        assert grad[1].isnan().all()
        assert grad[0].isfinite().all()
    smoothed = crossent.cross_entropy(leaf, y, c, label_smoothing=0.1, **kinds)
    biased = crossent.cross_entropy(leaf, y, logit_bias=c, **kinds)
    for loss in (smoothed, biased):
        assert torch.autograd.grad(loss, leaf, torch.ones(3))[0].isnan().all()
    total = crossent.cross_entropy(leaf, y, impl="triton", out_dtype=torch.float32)
    assert torch.autograd.grad(total, leaf, nan.clone())[0].isnan().all()
    formed = torch.ones(70, dtype=torch.bfloat16)
    triton.scale(formed, nan)
    assert formed.isnan().all()
    ones[1] = nan
    sigmoid = crossent.binary_cross_entropy_with_logits
    for loss, grad in (
        (sigmoid(leaf, t, impl="triton", reduction="none", out_dtype=torch.float32), ones),
        (sigmoid(leaf, t, ones, impl="triton", reduction="sum"), None),
        (sigmoid(leaf, t, pos_weight=ones, impl="triton", reduction="sum"), None),
        (sigmoid(leaf, t.float() * ones, impl="triton", reduction="sum"), None),
    ):
        (found,) = torch.autograd.grad(loss, leaf, grad)
        assert found[1].isnan().all()
        assert found[0].isfinite().all()


# --- what is promised beside numbers ----------------------------------------------------------------------------------


CALLS = {
    "indices": lambda x, y, t, **options: crossent.cross_entropy(x, y, impl="triton", **options),
    "probabilities": lambda x, y, t, **options: crossent.cross_entropy(
        x, t, torch.linspace(0.5, 1, x.shape[1]), label_smoothing=0.1, impl="triton", **options
    ),
    "rows": lambda x, y, t, **options: (
        crossent.cross_entropy(x, y, reduction="none", impl="triton", **options).square().sum()
    ),
    "sigmoid": lambda x, y, t, **options: crossent.binary_cross_entropy_with_logits(x, t, impl="triton", **options),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each_call
@pytest.mark.parametrize("shape", [(3, 70), (2, 9, 6)])
def test_the_same_bits_each_time(call, shape):
    x, y = problem(shape)
    t, x = x.softmax(1), x.requires_grad_()
    once, twice = ((loss := call(x, y, t)).detach(), *torch.autograd.grad(loss, x)), call(x, y, t)
    assert torch.equal(once[0], twice)
    assert torch.equal(once[1], torch.autograd.grad(twice, x)[0])


@each_call
def test_nothing_waits_for_the_device(call, monkeypatch):
    """And nothing is copied there: then a CUDA graph can be captured of all of it."""
    x, y = problem((3, 70))
    t, x = x.softmax(1), x.requires_grad_()

    losses = [call(x, y, t), call(x * 1, y, t, inplace_backward=True)]
    nobody_waits(monkeypatch)
    losses += [call(x, y, t)]
    gradients = [torch.autograd.grad(loss, x, torch.full_like(loss, 3.0))[0] for loss in losses]
    monkeypatch.undo()
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[0])


def nobody_waits(monkeypatch):
    """Stop what reads a number off a device, and what copies one there from memory that may move."""

    def waited(*_, **__):
        raise AssertionError("the host waits for the device")

    for name in ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "nonzero", "new_tensor", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waited)
    for name in ("tensor", "as_tensor", "from_numpy", "nonzero", "masked_select", "unique"):
        monkeypatch.setattr(torch, name, waited)


MEMBERS = {
    "smoothed, weighted": {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, 30)},
    "masked, biased": {
        "class_mask": torch.arange(30) > 3,
        "logit_bias": torch.linspace(-1, 1, 30),
        "label_smoothing": 0.1,
    },
    "moved": {"temperature": 2.0, "softcap": 5.0, "z_loss": 0.1},
    "rows that weigh": {"sample_weight": torch.linspace(0, 1, 3)},
    **{type(p).__name__: {"penalty": p} for p in (crossent.Focal(), crossent.MAE(), crossent.SCE(), crossent.Taylor())},
}


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("member", MEMBERS)
def test_no_member_waits_for_the_device(member, soft, monkeypatch):
    """A call without a name takes the kernels, which are the only ones here."""
    x, y = problem((3, 30))
    t, x = x.softmax(1) if soft else y, x.requires_grad_()
    monkeypatch.setattr(implementations, "_LOADED", {k: v for k, v in implementations._LOADED.items() if k != "native"})
    monkeypatch.setattr("crossent.core.target.readable", lambda _: False)  # as nothing on a GPU is
    call = {"reduction": "mean", **MEMBERS[member]}
    warm = crossent.cross_entropy(x, t, **call)
    grad = torch.full_like(warm, 2.0)
    expected = torch.autograd.grad(warm, x, grad)[0]
    nobody_waits(monkeypatch)
    found = torch.autograd.grad(crossent.cross_entropy(x, t, **call), x, grad)[0]
    monkeypatch.undo()
    torch.testing.assert_close(found, expected)
    whole = {k: v for k, v in call.items() if k != "reduction"}
    torch.testing.assert_close(
        found, torch.autograd.grad(crossent.cross_entropy(x, t, impl="eager", **whole), x, grad)[0]
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, {"sample_weight": torch.linspace(0, 1, 5)}, {"label_smoothing": 0.1}], ids=str)
def test_no_head_waits_for_the_device(reduction, options, monkeypatch):
    h, w, b = (torch.randn(size, requires_grad=True) for size in ((5, 16), (40, 16), (40,)))
    y = torch.tensor([3, -100, 39, 0, 7])
    head = Head(h.detach(), w.detach(), b.detach(), (40,))
    monkeypatch.setattr("crossent.impl.head.counted", lambda *_: None)  # as on a GPU
    plan = Plan(Target(y, settings=Settings(label_smoothing=options.get("label_smoothing", 0.0))), None, 400, "triton")
    u, divisor = options.get("sample_weight"), torch.full((), 4.0)

    def run():
        if reduction == "mean":
            return heads.loss_and_gradients(head, plan, u, divisor, (True, True, True))
        return heads.row_losses(head, plan), heads.row_losses_backward(head, plan, torch.ones(5), (True, True, True))

    expected = run()
    nobody_waits(monkeypatch)
    found = run()
    monkeypatch.undo()
    torch.testing.assert_close(found, expected)


FACTORS = [1.0, 0.25, 1 / 3]


@dtypes
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_gradient_that_was_formed_becomes_that_for_any_factor_bit_for_bit(kind, factor, dtype):
    x, y = problem((2, 70), dtype)
    x.requires_grad_()
    t = x.detach().float().softmax(1).to(dtype)

    def gradient(**options):
        if kind == "softmax":
            loss = crossent.cross_entropy(logits := x * 1, y, reduction="sum", impl="triton", **options)
        else:
            logits = x * 1
            loss = crossent.binary_cross_entropy_with_logits(logits, t, reduction="sum", impl="triton", **options)
        return torch.autograd.grad(loss, logits, torch.tensor(factor, dtype=loss.dtype))[0]

    assert torch.equal(gradient(), gradient(inplace_backward=True))  # which is formed where the factor is known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_so_does_one_whose_logits_lie_in_another_order(kind, dtype):
    base = problem((3, 4, 5, 6), dtype)[0]
    orders = [
        base,
        base.permute(3, 1, 0, 2),
        base.permute(0, 1, 3, 2),
        base.transpose(0, 1),
        base[..., ::2],
        base[:, :3],
    ]
    for x in orders:
        y = torch.randint(x.shape[1], (x.shape[0], *x.shape[2:]))
        t = torch.rand(x.shape).to(dtype)
        results = []
        for impl in ("triton", "eager"):
            leaf = x.detach().requires_grad_()
            if kind == "softmax":
                loss = crossent.cross_entropy(leaf, y, reduction="sum", impl=impl)
            else:
                loss = crossent.binary_cross_entropy_with_logits(leaf, t, reduction="sum", impl=impl)
            results.append(torch.autograd.grad(loss, leaf, torch.full_like(loss, 3.0))[0])
        torch.testing.assert_close(*results)


@pytest.fixture
def launched(monkeypatch):
    """List the kernels that are launched."""
    names = []

    def listen(home, name):
        kernel = getattr(home, name)

        class Listening:
            def __getitem__(self, grid):
                names.append(name)
                return kernel[grid]

        monkeypatch.setattr(home, name, Listening())

    listen(triton, "forward"), listen(triton, "backward"), listen(triton, "fused"), listen(triton.binary, "binary")
    return names


def test_a_sum_forms_its_gradient_with_the_loss(launched):
    x, y = problem((4, 30), torch.bfloat16)
    x.requires_grad_()
    crossent.cross_entropy(x, y, impl="triton").backward()
    assert launched == ["fused", "fused"]  # the second one ends where it sees a factor of 1
    launched.clear()
    crossent.cross_entropy(x, y, reduction="none", impl="triton").sum().backward()
    assert launched == ["forward", "backward"]
    launched.clear()
    crossent.cross_entropy(x.half(), y, impl="triton").backward()  # whose factor, that of a loss scaler, is awaited
    assert launched == ["fused", "fused"]
    launched.clear()
    with torch.no_grad():
        crossent.cross_entropy(x, y, impl="triton")
    assert launched == ["forward"]


@each_call
@pytest.mark.parametrize("shape", [(3, 30), (2, 9, 3, 4)])
@pytest.mark.parametrize("place", ["inplace_backward", "inplace_forward"])
def test_in_place_the_gradient_is_the_same_and_lies_where_the_logits_lay(call, shape, place):
    x, y = problem(shape)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    t, x = x.softmax(1), x.requires_grad_()
    (usual,) = torch.autograd.grad(call(x, y, t), x)
    (grad,) = torch.autograd.grad(call(logits := x * 1, y, t, **{place: True}), logits)
    assert grad.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(grad, usual)


def test_no_gradient_beside_the_logits_where_they_have_gaps():
    x, y = problem((4, 60))
    x = x.requires_grad_()
    logits = (x * 1)[:, :30]
    (grad,) = torch.autograd.grad(crossent.cross_entropy(logits, y % 30, inplace_backward=True, impl="triton"), logits)
    expected = torch.autograd.grad(crossent.cross_entropy(x[:, :30], y % 30, impl="eager"), x)[0][:, :30]
    torch.testing.assert_close(grad, expected)


# --- statistics and heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (3, 300), (3, 9, 4)])
@pytest.mark.parametrize("soft", [False, True])
def test_statistics(shape, soft):
    x, y = problem(shape)
    x = x.round()  # with ties
    y[0] = x[0].argmax(0)
    y.view(-1)[1] = -100
    x[2, :2], x[1, 0] = -torch.inf, torch.nan
    target = y
    if soft:
        target = torch.rand(shape).sub(0.5).clamp_min(0).round(decimals=1)  # with ties, and classes of nothing
        target[0] = 0
    settings = {"temperature": 2.0, "z_loss": 0.1, "label_smoothing": 0.2}
    ours = crossent.cross_entropy_stats(x, target, impl="triton", **settings)
    usual = crossent.cross_entropy_stats(x, target, impl="eager", **settings)
    for name, a, b in zip(ours._fields, ours, usual, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"max_bytes": 400}, {"label_smoothing": 0.1}], ids=str)
def test_a_head_takes_each_block_in_one_pass(reduction, options, launched):
    torch.manual_seed(0)
    h, w, b = (torch.randn(size, requires_grad=True) for size in ((5, 16), (40, 16), (40,)))
    y = torch.tensor([3, -100, 39, 0, 7])
    results = []
    for impl in ("triton", "eager"):
        loss = crossent.linear_cross_entropy(h, w, y, linear_bias=b, reduction=reduction, impl=impl, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), (h, w, b))))
    torch.testing.assert_close(*results)
    assert set(launched) == ({"forward", "backward"} if reduction == "none" else {"fused"})


BY_CLASSES = {
    "plain": {},
    "weights": {"weight": torch.linspace(0.5, 2, 70), "label_smoothing": 0.1},
    "rows that weigh": {"sample_weight": torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0, 1.0, 1.0])},
    "a sum": {"reduction": "sum", "ignore_index": 4},
}


@pytest.mark.parametrize("options", BY_CLASSES.values(), ids=BY_CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_of_a_small_budget_goes_by_classes(bias, dtype, options, launched, monkeypatch):
    """All rows beside some of the classes: the gradient of the head is written once, in its own dtype."""
    monkeypatch.setattr(classes, "_FEWEST", 8), monkeypatch.setattr(classes, "_EVEN", 8)
    monkeypatch.setattr("crossent.losses.head_ways.FEW", 1)
    torch.manual_seed(0)
    h, w, b = (torch.randn(size).to(dtype) for size in ((7, 16), (70, 16), (70,)))
    y = torch.tensor([3, 4, 69, 0, 7, 24, 23])
    w[24] += h[5]
    if "ignore_index" in options or "sample_weight" in options:
        h[1 if "ignore_index" in options else 3] = torch.nan
    results = []
    # In bfloat16 the logits are rounded, and are held to those of one block of rows, which are rounded alike.
    whole = ("eager", torch.float64, 1 << 20) if dtype == torch.float32 else ("triton", dtype, 1 << 20)
    for impl, kind, max_bytes in (("triton", dtype, 7 * 16 * dtype.itemsize), whole):
        leaves = [each.to(kind).requires_grad_() for each in ((h, w, b) if bias else (h, w))]
        given = {k: v.to(kind) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        more = {"linear_bias": leaves[2]} if bias else {}
        plan = crossent.linear_plan(*leaves[:2], y, impl=impl, max_bytes=max_bytes, **more, **given)
        assert plan.blocks == (5 if not results else 1)
        loss = crossent.linear_cross_entropy(
            *leaves[:2], y, impl=impl, max_bytes=max_bytes, out_dtype=torch.float64, **more, **given
        )
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves, torch.tensor(3.0).double())))
        if not results[1:]:
            assert plan[:3] == (5, 7, max_bytes)
            assert set(launched) == {"forward", "backward"}
    ours, exact = results
    bound = 1e-5 if dtype == torch.float32 else 2**-6
    for a, e in zip(ours, exact, strict=True):
        size = float(e.abs().max())
        torch.testing.assert_close(a.double(), e.double(), rtol=bound, atol=bound * max(size, 1.0) / 4)
    if "sample_weight" in options:
        assert (ours[1][3] == 0).all()


def test_by_classes_a_label_that_is_no_class_and_a_row_that_is_sure(monkeypatch):
    monkeypatch.setattr(classes, "_FEWEST", 8), monkeypatch.setattr(classes, "_EVEN", 8)
    h, w = torch.eye(5, 5), torch.zeros(40, 5)
    w[torch.arange(5), torch.arange(5)] = torch.tensor([20.0, 30.0, 60.0, 5.0, 0.0])
    head = Head(h, w, None, (40,))
    y = torch.tensor([0, 1, 2, 40, -1])
    plan = Plan(Target(y), None, 5 * 4 * 8, "triton")
    assert classes.classes_of_a_block(head, plan) == 8
    one = torch.ones(())
    loss, grads = classes.loss_and_gradients(head, plan, None, one, (True, True, False))
    assert loss.isnan()
    assert grads[0][3:].eq(0).all()
    assert grads[1].isfinite().all()
    plan = plan._replace(target=Target(y.masked_fill((y < 0) | (y > 39), -100)))
    loss, grads = classes.loss_and_gradients(head, plan, None, one, (True, True, False))
    rest = (39 * torch.tensor([-20.0, -30.0, -60.0]).double().exp()).log1p()
    torch.testing.assert_close(loss.double(), rest.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(grads[1][2, 2].double(), rest[2].neg().expm1(), rtol=1e-5, atol=0)


def test_blocks_of_classes_are_for_small_budgets_of_the_kernels():
    head, y = Head(torch.empty(4096, 8), torch.empty(128256, 8), None, (128256,)), torch.zeros(4096, dtype=torch.long)

    def size(max_bytes, impl="triton", **options):
        return classes.classes_of_a_block(head, Plan(Target(y, settings=Settings(**options)), None, max_bytes, impl))

    assert size(1 << 30) == 0  # two blocks of rows
    assert size(1 << 28) == 16064  # of which eight hold all classes
    assert size(1 << 28, "eager") == size(1 << 28, z_loss=0.1) == size(1 << 20) == 0


def test_a_head_weighs_its_rows_in_that_pass(launched):
    torch.manual_seed(0)
    h, w = (torch.randn(size, requires_grad=True) for size in ((5, 16), (40, 16)))
    h.data[3] = torch.nan
    y, u = torch.tensor([3, -100, 39, 0, 7]), torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])
    results = []
    for impl in ("triton", "eager"):
        loss = crossent.linear_cross_entropy(h, w, y, sample_weight=u, impl=impl, max_bytes=400)
        results.append((loss.detach(), *torch.autograd.grad(loss, (h, w))))
    torch.testing.assert_close(*results)
    assert results[0][1].isfinite().all()
    assert set(launched) == {"fused"}


# --- shards of the classes --------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 300), (2, 5, 3)], ids=str)
def test_a_shard_of_the_classes_is_what_torch_operations_say(shape, soft, dtype):
    x, y = problem(shape, dtype)
    y.view(-1)[0] = -1  # of a class elsewhere
    y.view(-1)[1] = -100
    with torch.no_grad():
        x[-1] = -torch.inf if dtype != torch.float64 else x[-1]  # no class here is possible
    y[-1] = -1
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(dtype) if soft else y
    if soft:
        values[-1] = 0.0
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(2)).to(
        torch.promote_types(dtype, torch.float32)
    )
    for options in ({}, {"label_smoothing": 0.1}, {"temperature": 2.0, "softcap": 5.0}, {"margin": 0.5}):
        if (soft and "margin" in options) or ("label_smoothing" in options and dtype != torch.float64):
            continue  # smoothing wants what is impossible in the last row
        for c in (None, weight):
            target = Target(values, c, settings=Settings(all_classes=4 * shape[1], **options))
            ours, theirs = (impl.partials(x, target) for impl in (triton, formulas))
            if not soft:  # what a row that does not count holds is not told
                theirs = theirs._replace(lse=theirs.lse.masked_fill(y == -100, 0.0))
            for name, a, b in zip(ours._fields, ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5, msg=name)
            lse = torch.stack([theirs.lse[0].clamp_min(-5.0) + 1.0, theirs.lse[1] + 0.5])
            elsewhere = torch.rand_like(theirs.loss)
            grads = [
                impl.cross_entropy_backward(
                    torch.full((), 2.0), x, target, lse, (True, soft, False, False), 1.0, False, elsewhere
                )
                for impl in (triton, formulas.IMPLEMENTATION)
            ]
            for a, b in zip(grads[0][:2], grads[1][:2], strict=True):
                if a is not None:
                    bound = {torch.bfloat16: 2**-7, torch.float16: 2**-9}.get(dtype, 2e-5)
                    torch.testing.assert_close(a.double(), b.double(), rtol=bound, atol=bound, equal_nan=True)


# --- what is left to torch operations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LEFT_TO_TORCH, "probabilities in float64"])
def test_what_the_kernels_do_not_take_is_refused_with_the_reason(name):
    x, _ = problem((4, 3))
    settings = dict(LEFT_TO_TORCH.get(name, {}))
    target = x.softmax(1) if settings.pop("soft", False) else torch.tensor([0, 1, 0, -100])
    if name == "probabilities in float64":
        target = x.softmax(1).double()
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run here: the Triton kernels .*take"):
        crossent.cross_entropy(x, target, impl="triton", **settings)
    expected = crossent.cross_entropy(x, target, impl="eager", **settings)
    torch.testing.assert_close(crossent.cross_entropy(x, target, **settings), expected)


def test_a_settings_record_without_labels_in_range_is_left_alone():
    x, y = problem((4, 3))
    total = triton.cross_entropy_sum(x, Target(y, settings=Settings(0)), True, torch.float32, None)
    assert total.gradient is None
    assert total.total == (y != 0).sum()
