"""Sums and means form their gradient with the loss: whatever backward is given, and whatever happens in between."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import crossent
from crossent.impl import native
from crossent.impl.eager import blocks

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FACTORS = [1.0, 0.25, 1 / 3, -2.0, 65536.0, 3e-3, 0.0, float("nan"), float("inf")]
EPS = {torch.float32: 2e-6, torch.float64: 4e-15, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def problem(shape=(40, 70), dtype=torch.float32, std=3.0):
    torch.manual_seed(0)
    x = (torch.randn(shape) * std).to(dtype).requires_grad_()
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    y.view(-1)[::7] = -100
    return x, y


def softmax(x, y, **options):
    return crossent.cross_entropy(x, y, **options)


def binary(x, y, **options):
    t = (torch.arange(x.numel()) % 17 / 16).to(x.dtype).view(x.shape)  # the same numbers in every dtype
    return crossent.binary_cross_entropy_with_logits(x, t, **options)


LOSSES = pytest.mark.parametrize("loss", [softmax, binary])


def gradient(loss, x, factor=1.0, **more):
    grad = torch.tensor(factor, dtype=loss.dtype)
    return torch.autograd.grad(loss, x, grad, **more)[0]


@LOSSES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_gradient_is_that_of_the_loss_times_what_arrives(loss, dtype, factor, reduction, inplace):
    x, y = problem(dtype=dtype)
    wide = x.detach().double().requires_grad_()
    factor = torch.tensor(factor).to(dtype).item()  # as backward is given it
    expected = gradient(loss(wide, y, reduction=reduction, impl="eager"), wide, factor)
    logits = x * 1
    ours = gradient(loss(logits, y, reduction=reduction, inplace_backward=inplace), logits, factor)
    assert ours.dtype == dtype
    size = float(expected[expected.isfinite()].abs().max()) if expected.isfinite().any() else 0.0
    bound = {"rtol": EPS[dtype], "atol": EPS[dtype] * size / 8 + torch.finfo(dtype).smallest_normal}
    torch.testing.assert_close(ours.double(), expected.to(dtype).double(), **bound, equal_nan=True)
    assert (ours.data_ptr() == logits.data_ptr()) == inplace


def test_a_loss_scaler_saves_what_half_precision_would_lose():
    x, y = problem((512, 2000), torch.float16)
    loss = softmax(x, y, out_dtype=torch.float32)
    scaled = gradient(loss, x, 65536.0, retain_graph=True).float()
    assert (scaled[y != -100] == 0).float().mean() < 0.01 < (gradient(loss, x)[y != -100] == 0).float().mean()


@LOSSES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 1 / 3, -2.0])
def test_a_second_backward_pass_gives_the_same_bits(loss, dtype, factor):
    x, y = problem(dtype=dtype)
    value = loss(x, y)
    first = gradient(value, x, factor, retain_graph=True)
    kept = first.clone()
    assert torch.equal(gradient(value, x, factor, retain_graph=True), kept)
    assert torch.equal(first, kept)  # it belongs to whoever asked, and nobody writes to it again
    assert torch.equal(gradient(value, x, factor), kept)
    with pytest.raises(RuntimeError, match="second time"):
        gradient(value, x)


@LOSSES
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_came_before_changes_no_bit(loss, dtype):
    """What backward is given is guessed from the call before, and a wrong guess costs nothing but time."""
    x, y = problem(dtype=dtype)
    first = {}
    with torch.no_grad():
        x[::3] *= 25  # gradients down to the smallest numbers there are
    for factor in [
        *FACTORS,
        *reversed(FACTORS),
        4.0,
        4.0,
        2.0**-30,
        1.0,
        2.0**-60,
        2.0**20,
        1 / 3,
        1 / 3,
        1.0,
        1.0,
        65536.0,
        65536.0,
        1.0,
    ]:
        grad = gradient(loss(x, y), x, factor)
        assert torch.equal(grad.nan_to_num(nan=7), first.setdefault(str(factor), grad.clone()).nan_to_num(nan=7))


@LOSSES
@pytest.mark.parametrize("factor", [3.0, -26.5, 64.0, 150.3, -1e4])
def test_a_factor_brings_back_what_would_have_vanished_without_it(loss, factor):
    """Without it these numbers are below the smallest normal one, which the kernels make 0."""
    x = torch.linspace(-80, -87, 600).view(200, 3).requires_grad_()  # a mean over 200 rows, so that p / 200 vanishes
    y = torch.zeros(200, dtype=torch.long)
    if loss is softmax:
        x.data[:, 0] = 0
    gradient(loss(x, y), x)
    wide = x.detach().double().requires_grad_()
    expected = gradient(loss(wide, y), wide, factor)
    normal = expected.abs() > 2 * torch.finfo(torch.float32).tiny
    vanished = normal & (expected.abs() < abs(factor) * torch.finfo(torch.float32).tiny)
    assert vanished.any()
    for _ in range(2):  # formed with 1, then with what came the last time
        torch.testing.assert_close(
            gradient(loss(x, y), x, factor)[normal].double(), expected[normal], rtol=2e-5, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_factor_that_comes_again_is_formed_with(dtype, monkeypatch):
    x, y = problem((64, 300), dtype)
    gradient(softmax(x, y, out_dtype=torch.float32), x, 65536.0)
    passes = []
    compute = native.cross_entropy_sum
    counted = staticmethod(lambda *args: passes.append(args[4]) or compute(*args))
    monkeypatch.setattr(native.Native, "cross_entropy_sum", counted)
    for _ in range(3):
        gradient(softmax(x, y, out_dtype=torch.float32), x, 65536.0)
    assert passes == [65536.0] * 3


@LOSSES
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_gradient_is_laid_out_as_the_logits_are(loss, factor):
    """Gaps and all orders of the dimensions: what has gaps is dense in the same order."""
    base = torch.randn(4, 9, 2 * 3, 7, requires_grad=True)
    y = torch.zeros(4, 3, 7, dtype=torch.long)
    for logits in (base[:, :, ::2], base.permute(3, 1, 2, 0)[:4, :, :3].expand(4, 9, 3, 4)):
        y = torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.long)
        value = loss(logits, y)
        for _ in range(2):
            assert gradient(value, logits, factor, retain_graph=True).stride() == torch.empty_like(logits).stride()


@LOSSES
@pytest.mark.parametrize("hostile", [float("nan"), float("inf"), -float("inf")])
def test_there_is_one_nan(loss, hostile):
    x, y = problem((16, 70))
    with torch.no_grad():
        x[y == y[1]] = hostile
    logits = x * 1
    values = [
        loss(x, y),
        loss(x.detach(), y),
        loss(logits, y, inplace_backward=True),
        loss(logits, y, inplace_forward=True),
    ]
    assert len({value.detach().view(torch.int32).item() for value in values}) == 1


@LOSSES
def test_backward_under_autocast_hands_over_the_same(loss):
    x, y = problem((64, 300))
    expected = gradient(loss(x, y), x)
    logits = x * 1
    value = loss(logits, y, inplace_forward=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(value, logits), expected)


@LOSSES
def test_a_graph_that_was_freed_is_gone(loss):
    x, y = problem()
    value = loss(x, y)
    gradient(value, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="second time"):
        gradient(value, x)


@LOSSES
def test_a_leaf_takes_the_gradient_without_a_copy(loss):
    x, y = problem((300, 100))
    made = []
    x.register_hook(lambda grad: made.append(grad.data_ptr()))
    loss(x, y).backward()
    assert made == [x.grad.data_ptr()]


@LOSSES
def test_the_logits_may_change_where_only_the_gradient_is_needed(loss):
    x, y = problem()
    expected = gradient(loss(x, y), x)
    logits = x * 1
    value = loss(logits, y)
    with torch.no_grad():
        logits.zero_()
    assert torch.equal(gradient(value, logits, retain_graph=True), expected)
    for more in ({"retain_graph": True}, {"create_graph": True}):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradient(value, logits, **more)


@LOSSES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 0.25, 1 / 3])
@pytest.mark.parametrize("shape", [(40, 70), (40, 10), (3, 2100), (4, 21, 150)], ids=str)
def test_in_forward_the_gradient_takes_the_place_of_the_logits(loss, dtype, factor, shape):
    x, y = problem(shape, dtype)
    expected = gradient(loss(x, y), x, factor)
    logits = x * 1
    value = loss(logits, y, inplace_forward=True)
    assert torch.equal(value, loss(x, y))
    # float16 waits for the factor of a loss scaler before it writes the gradient.
    assert (logits._version == 0) == (dtype == torch.float16)
    ours = gradient(value, logits, factor, retain_graph=True)
    assert ours.data_ptr() == logits.data_ptr()
    exact = dtype.itemsize >= 4 or factor != 1 / 3 or dtype == torch.float16
    torch.testing.assert_close(ours, expected, rtol=0 if exact else 2 * EPS[dtype], atol=0)  # rounded twice
    for more in ({}, {"create_graph": True}):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradient(value, logits, retain_graph=True, **more)


@LOSSES
def test_in_forward_nothing_is_written_that_is_still_wanted(loss):
    x, y = problem()
    with pytest.raises(RuntimeError, match="inplace_forward=True would write the gradient over a leaf"):
        loss(x, y, inplace_forward=True)
    logits = x.tanh()
    kept = logits.detach().clone()
    with torch.no_grad():
        loss(logits, y, inplace_forward=True)
    assert torch.equal(logits, kept)
    value = loss(logits, y, inplace_forward=True, reduction="none").sum()
    assert torch.equal(logits, kept)
    assert gradient(value, logits).data_ptr() == logits.data_ptr()
    logits = x.tanh()  # whose output its backward reads
    value = loss(logits, y, inplace_forward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    logits = x * 1
    if loss is softmax:
        with pytest.raises(IndexError):
            softmax(logits, y.clone().fill_(70), inplace_forward=True)
        assert torch.equal(logits, x)


@LOSSES
@pytest.mark.parametrize("impl", ["eager", "native"])
@pytest.mark.parametrize("place", ["inplace_forward", "inplace_backward"])
def test_in_place_a_leaf_that_is_a_view_keeps_its_gradient(loss, impl, place):
    """Torch works out anew where a view comes from that was written to, and then finds the tensor behind the leaf."""
    x, y = problem((6, 5))
    expected = gradient(loss(x, y), x)
    wide = torch.zeros(6, 9)
    wide[:, :5] = x.detach()
    for leaf in (wide.clone()[:, :5], x.detach().clone().T.contiguous().T):
        leaf.requires_grad_()
        written = loss(leaf.view_as(leaf), y, impl=impl, **{place: True})
        torch.testing.assert_close(gradient(written, leaf), expected)


@LOSSES
def test_a_gradient_over_the_logits_that_was_changed_is_noticed(loss):
    x, y = problem()
    for change in (lambda z: z.mul_(100), lambda z: z.detach().zero_(), lambda z: z.relu_()):
        logits = x * 1
        value = loss(logits, y, inplace_forward=True)
        with torch.no_grad():
            change(logits)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("impl", [None, "eager"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(40, 70), (40, 10)], ids=str)
def test_a_label_out_of_range_is_found_before_anything_is_written(reduction, shape, impl, monkeypatch):
    # The label is wrong in the last block, when the gradients of those before it could be written already.
    monkeypatch.setattr(blocks, "_CACHED", 4 * shape[1])
    x, y = problem(shape)
    y[-1] = shape[1]
    logits = x * 1
    with pytest.raises(IndexError):
        softmax(logits, y, reduction=reduction, inplace_forward=True, impl=impl)
    assert torch.equal(logits, x)


@LOSSES
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_compiled_autograd_gives_no_gradient_away_twice(loss, factor):
    x, y = problem()
    expected = gradient(loss(x, y), x, factor)
    value = loss(x, y) * factor
    for _ in range(3):
        x.grad = None
        with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
            value.backward(retain_graph=True)
        torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-9)


def test_whoever_watches_is_shown_logits(monkeypatch):
    from crossent.core import watch

    x, y = problem()
    seen = []
    monkeypatch.setattr(watch, "watcher", lambda input, *_: seen.append(input.detach().clone()))
    for loss in (softmax, binary):
        logits = x * 1
        value = loss(logits, y, inplace_forward=True)
        assert torch.equal(seen.pop(), x)
        assert gradient(value, logits).data_ptr() == logits.data_ptr()


@LOSSES
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_second_derivatives_go_through_torch_operations(loss, scale):
    x, y = problem((5, 4), torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: scale * loss(x, y), x)
    eager = torch.autograd.functional.hessian(lambda x: loss(x, y, impl="eager"), x.detach())
    ours = torch.autograd.functional.hessian(lambda x: loss(x, y), x.detach())
    torch.testing.assert_close(ours, eager)
    assert ours.any()


@LOSSES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_and_hooks_of_saved_tensors_see_all_that_is_kept(loss, reentrant):
    x, y = problem((64, 300))
    expected = gradient(loss(x, y), x)
    checkpoint(loss, x, y, use_reentrant=reentrant).backward()
    torch.testing.assert_close(x.grad, expected, rtol=2e-5, atol=1e-9)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        value = loss(x, y)
    assert x.shape in packed
    torch.testing.assert_close(gradient(value, x), expected, rtol=2e-5, atol=1e-9)


@LOSSES
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_formed_where_nothing_is_differentiated(loss, context):
    x, y = problem((64, 300))
    made = []

    def counted(like):
        made.append(like.shape)
        return torch.empty_like(like)

    loss(x, y)  # makes one number of the dtype, like which others are made
    native._native.know_makers(**native.MAKERS | {"empty_like": counted})
    try:
        with context():
            value = loss(x, y)
        assert made == [()]
        assert torch.equal(value, loss(x, y).detach())
        assert sorted(made) == [(), (), x.shape]
    finally:
        native._native.know_makers(**native.MAKERS)


SHAPES = [
    (7, 33, 2), (40, 10, 3), (3, 2, 64), (5, 70, 31), (3, 300, 5), (2, 1100, 3), (2, 40, 129), (3, 21, 10, 20), (200, 65),
    (9, 3), (300, 146), (3, 2100), (130, 33), (2, 1, 200), (300, 1),
]  # fmt: skip
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"label_smoothing": 0.1, "weighted": True},
    "probabilities": {"soft": True},
    "probabilities, weights": {"soft": True, "weighted": True, "label_smoothing": 0.1},
    "logits": {"temperature": 0.7, "softcap": 5.0, "margin": 0.2, "z_loss": 0.01, "biased": True},
    "penalty": {"penalty": crossent.Focal(2.0)},
    "penalty of all": {"penalty": crossent.Focal(2.0), "label_smoothing": 0.2},
    "steep penalty of all, weights": {"penalty": crossent.Focal(0.5), "label_smoothing": 0.1, "weighted": True},
    "penalty of probabilities": {
        "penalty": crossent.Poly1(0.5),
        "soft": True,
        "weighted": True,
        "label_smoothing": 0.1,
    },
    "penalty and logits": {
        "penalty": crossent.GCE(0.7),
        "label_smoothing": 0.1,
        "softcap": 5.0,
        "margin": 0.2,
        "biased": True,
    },
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("std", [1.0, 30.0])
def test_rows_tiles_and_tiles_across_samples_agree_with_torch_operations(shape, name, dtype, std):
    x, y = problem(shape, dtype, std)
    options = dict(OPTIONS[name])
    c = torch.linspace(0.2, 2, shape[1])
    c[0] = 0 if shape[1] > 2 else 1
    if options.pop("weighted", False):
        options["weight"] = c.to(dtype)
    if options.pop("biased", False):
        options["logit_bias"], options["class_mask"] = c, torch.arange(shape[1]) != shape[1] - 2
    target = torch.rand(shape).to(dtype) if options.pop("soft", False) else y
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in options.items()}
    exact = x.detach().double().requires_grad_()
    t = target.double() if target is not y else y
    expected = crossent.cross_entropy(exact, t, **wide, impl="eager", empty="zero")
    (slope,) = torch.autograd.grad(expected, exact)
    bound = 4 * EPS[dtype] if dtype != torch.float64 else 1e-12
    layouts = [x, x.movedim(1, -1).contiguous().movedim(-1, 1), torch.stack([x, x], -1)[..., 0]]
    for logits in layouts:
        loss = crossent.cross_entropy(logits, target, **options, impl="native", empty="zero", out_dtype=expected.dtype)
        (grad,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss, expected, rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-30)
        torch.testing.assert_close(grad.double(), slope, rtol=bound, atol=float(bound * slope.abs().max() / 8))
        again = logits * 1
        loss = crossent.cross_entropy(again, target, **options, impl="native", empty="zero", inplace_backward=True)
        (over,) = torch.autograd.grad(loss, again)
        beside = logits * 1
        loss = crossent.cross_entropy(beside, target, **options, impl="native", empty="zero")
        assert torch.equal(over, torch.autograd.grad(loss, beside)[0])


# --- numbers too small to be normal ----------------------------------------------------------------------------------


@LOSSES
@pytest.mark.parametrize("isa", native._native.isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [1.0, 20.0, 60.0])
@pytest.mark.parametrize("shape", [(64, 10), (40, 300), (3, 2500), (4, 21, 50)], ids=str)
def test_small_gradients_are_0_or_the_nearest(loss, isa, dtype, std, shape):
    before = native._native.isa()
    native._native.use_isa(isa)
    try:
        x, y = problem(shape, dtype, std)
        wide = x.detach().double().requires_grad_()
        exact = gradient(loss(wide, y, reduction="sum", impl="eager"), wide)
        grad = gradient(loss(x, y, reduction="sum"), x)
    finally:
        native._native.use_isa(before)
    kind = torch.finfo(dtype)
    small = (exact.abs() < kind.smallest_normal) & (exact != 0)
    spacing = kind.smallest_normal * kind.eps
    near = (grad.double() - exact).abs() <= spacing
    assert (near | (grad == 0))[small].all()
    assert not (grad == 0)[exact.abs() > 2 * kind.smallest_normal].any()


def test_the_mode_of_every_thread_is_left_alone():
    """Denormals that torch computes with are there before and after, in the caller's thread and in the pool's."""
    x, y = problem((4096, 64), std=40.0)
    tiny = torch.full((1 << 20,), torch.finfo(torch.float32).smallest_normal)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for loss in (softmax, binary):
            value = loss(x, y)
            assert (tiny / 2 > 0).all()
            value.backward()
            assert (tiny / 2 > 0).all()
            loss(x, y, reduction="none").sum().backward()
            assert (tiny / 2 > 0).all()
    finally:
        torch.set_num_threads(threads)


@LOSSES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_gradient_of_0_makes_0_of_logits_that_are_no_numbers(loss, dtype, reduction):
    x, y = problem(dtype=dtype)
    with torch.no_grad():
        x[2] = torch.nan
    for before in (1.0, 3.0):
        gradient(loss(x, y, reduction=reduction), x, before)
        for create_graph in (False, True):
            value = loss(x, y, reduction=reduction)
            assert (gradient(value, x, 0.0, create_graph=create_graph) == 0).all()


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work, arguments):
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(work, arguments))


@LOSSES
@pytest.mark.parametrize("options", [{}, {"impl": "native"}])
def test_threads_that_go_backward_through_one_loss_all_get_its_gradient(loss, options, hasty):
    x, y = problem((8, 50))
    expected = gradient(loss(x, y, **options), x)
    for _ in range(150):
        value = loss(x, y, **options)
        for given in in_threads(lambda _, value=value: gradient(value, x, retain_graph=True), range(4)):
            torch.testing.assert_close(given, expected, rtol=2e-5, atol=1e-9)


def test_threads_with_other_numbers_of_rows_do_not_disturb_each_other(hasty):
    def calls(rows):
        x, y = torch.zeros(rows, 3), torch.zeros(rows, dtype=torch.long)
        return [crossent.cross_entropy(x, y, reduction="none").shape for _ in range(1500)]

    given = in_threads(calls, [2, 3, 4, 50])
    assert [{*shapes} for shapes in given] == [{(2,)}, {(3,)}, {(4,)}, {(50,)}]
    for rows in (2, 3, 4, 50):  # and nothing is left behind
        assert set(calls(rows)) == {(rows,)}
