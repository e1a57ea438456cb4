"""The compiled kernels: every instruction set, which implementation runs when, and a package without them."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import short
import torch

import crossent
from crossent.core.settings import Settings
from crossent.core.target import BinaryTarget, Target
from crossent.losses import binary, softmax
from crossent.ops.fused import EXPECTED, Fused
from crossent.ops.lean import Unreduced

native = pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")
_native = native._native

ROOT = Path(__file__).parents[2]


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("isa", _native.isas())
def test_every_instruction_set_keeps_the_laws(isa):
    laws = ["tests/test_laws.py", "tests/test_properties.py", "-k", "native and not billion"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *laws]
    environment = os.environ | {"CROSSENT_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        python("from crossent.impl import native; print(native._native.isa())", CROSSENT_ISA=isa).stdout.strip() == isa
    )


def test_an_unknown_instruction_set_is_refused():
    done = python("import crossent; crossent.implementations()", CROSSENT_ISA="mmx")
    assert "offer the instruction sets" in done.stderr
    assert "not mmx" in done.stderr


def test_the_command_says_in_one_sentence_that_there_is_no_such_instruction_set():
    done = python("from crossent.tools.cli import main; main(['info'])", CROSSENT_ISA="nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: CROSSENT_ISA=nonsense cannot be obeyed: this processor and build offer")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_extension_everything_is_eager():
    code = (
        "import sys; sys.modules['crossent._native'] = None\n"
        "import torch, crossent\n"
        "x = torch.zeros(2, 3)\n"
        "print(crossent.choose_implementation(x), crossent.cross_entropy(x, torch.tensor([0, 1])).item())\n"
        "print(crossent.implementations()['native'])\n"
        "crossent.cross_entropy(x, torch.tensor([0, 1]), impl='native')"
    )
    done = python(code)
    chosen, reason = done.stdout.splitlines()
    assert chosen == "eager 1.0986123085021973"
    assert "the compiled CPU kernels are not installed" in reason
    assert f"RuntimeError: impl='native' cannot run here: {reason}" in done.stderr


@pytest.fixture
def launched(monkeypatch):
    """Count the launches of the kernels."""
    counts = {}

    def count(name):
        home = native.Native if hasattr(native.Native, name) else native
        kernel = getattr(home, name)

        def counted(*args):
            counts[name] = counts.get(name, 0) + 1
            return kernel(*args)

        monkeypatch.setattr(home, name, counted if home is native else staticmethod(counted))

    for loss in ("cross_entropy", "binary_cross_entropy"):
        count(f"{loss}_forward"), count(f"{loss}_backward")
        count(f"{loss}_sum")
    for losses in (softmax, binary):

        def taken(given, way=losses._short):
            loss = way(given)
            if loss is not None:
                counts["short way"] = counts.get("short way", 0) + 1
            return loss

        monkeypatch.setattr(losses, "_short", taken)
    for kind in (Fused, Unreduced):

        def in_python(ctx, grad, backward=kind.backward):
            counts["backward in Python"] = counts.get("backward in Python", 0) + 1
            return backward(ctx, grad)

        monkeypatch.setattr(kind, "backward", staticmethod(in_python))
    return counts


X, Y = torch.linspace(-2, 2, 12).view(4, 3), torch.tensor([0, 2, -100, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_calls_run_the_kernels(dtype, launched, monkeypatch):
    assert crossent.choose_implementation(X.to(dtype)) == "native"
    for each in EXPECTED:
        monkeypatch.setitem(EXPECTED, each, None if each == torch.float16 else 1.0)
    x = X.clone().to(dtype).requires_grad_()
    crossent.cross_entropy(x, Y, label_smoothing=0.1).backward()
    crossent.cross_entropy(x, x.detach().softmax(1)).backward()
    crossent.cross_entropy(x, Y, reduction="none").sum().backward()
    crossent.binary_cross_entropy_with_logits(x, x.detach().sigmoid()).backward()
    assert launched == {
        "short way": 4,
        # Loss and gradient at once, but in float16 only once it is known what backward brings.
        **({"backward in Python": 1, "cross_entropy_sum": 1} if dtype == torch.float16 else {}),
    }


def test_a_gradient_is_formed_once(launched):
    x, y = torch.randn(200, 100, requires_grad=True), torch.randint(100, (200,))
    loss = crossent.cross_entropy(x, y)
    (loss / 4).backward()
    assert launched == {"short way": 1, "backward in Python": 1}  # which multiplies what was formed
    with torch.no_grad():
        crossent.cross_entropy(x, y)
    assert launched == {"short way": 2, "backward in Python": 1}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # which see nothing but the logits
        crossent.cross_entropy(x, y).backward()
    kernels = {"cross_entropy_forward": 1, "cross_entropy_backward": 1}
    assert launched == {"short way": 2, "backward in Python": 1, **kernels}


def test_compiled_calls_run_the_kernels(launched):
    torch._dynamo.reset()
    x = X.clone().requires_grad_()
    torch.compile(crossent.cross_entropy, fullgraph=True, backend="aot_eager")(x, Y).backward()
    assert launched == {"cross_entropy_forward": 1, "cross_entropy_backward": 1}


def test_transforms_run_torch_operations(launched):
    torch.func.grad(crossent.cross_entropy)(X, Y)
    torch.vmap(crossent.cross_entropy)(X.expand(2, 4, 3), Y.expand(2, 4))
    torch.func.jvp(lambda x: crossent.cross_entropy(x, Y), (X,), (X,))
    assert launched == {}
    x = X.clone().requires_grad_()
    torch.autograd.grad(crossent.cross_entropy(x, Y), x, create_graph=True)
    torch.autograd.grad(crossent.cross_entropy(x, Y, impl="native"), x, create_graph=True)
    once = {"short way": 1, "cross_entropy_sum": 1, "backward in Python": 1}
    assert launched == once
    crossent.cross_entropy(X, Y, impl="eager")
    assert launched == once


def test_what_the_kernels_refuse_goes_to_torch_operations(launched):
    soft = X.softmax(1).double()
    assert crossent.choose_implementation(X, target=soft) == "eager"
    crossent.cross_entropy(X, soft)
    assert launched == {}
    with pytest.raises(RuntimeError, match=r"take probabilities in torch.float32"):
        crossent.cross_entropy(X, soft, impl="native")


def test_tensors_without_memory_are_refused():
    meta = torch.empty(4, 3, device="meta")
    assert "meta" in native.refuses(meta)
    numbers = torch.empty(())
    rows = torch.empty(2, 4)
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        _native.softmax_forward(meta, Y, None, -100, 0.0, 1, numbers, None, rows)
    assert short.cross_entropy(meta, Y, reduction="none") is None


def test_strides_that_do_not_collapse_are_copied():
    x = torch.randn(2, 5, 8, 6)[..., ::2, :3].requires_grad_()
    y = torch.randint(5, (2, 4, 3))
    ours, theirs = (f(x, y) for f in (crossent.cross_entropy, torch.nn.functional.cross_entropy))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)))


# --- small calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 10), (32, 10), (7, 33), (5, 100), (2, 3, 4, 5), (3, 70, 2)])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_small_calls_are_the_general_ones(dtype, shape, mean, smoothing):
    torch.manual_seed(0)
    x, c = torch.randn(shape, dtype=dtype) * 5, torch.rand(shape[1], dtype=dtype)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    y[0] = -100
    reduction = "mean" if mean else "sum"
    for target, weight in ((y, None), (y.int(), c), (x.softmax(1), None)):
        followed = x.clone().requires_grad_()
        loss = short.cross_entropy(followed, target, weight, label_smoothing=smoothing, reduction=reduction)
        gradient = torch.autograd.grad(loss, followed)[0]
        described = Target(target, weight, settings=Settings(-100, smoothing))
        general, divisor, lse = native.cross_entropy_forward(x, described, reduction)
        one = torch.ones((), dtype=dtype)
        torch.testing.assert_close(loss, general, equal_nan=True)
        by, *_ = native.cross_entropy_backward(one, x, described, lse, divisor=divisor if mean else 1.0)
        torch.testing.assert_close(gradient, by)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 10), (32, 10), (7, 33), (600, 9), (9000, 3), (2, 3, 4, 5), (3, 70, 2), (9, 300)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_small_losses_of_rows_are_the_general_ones(dtype, shape, smoothing, monkeypatch):
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, c = (torch.randn(shape, dtype=wide) * 5).to(dtype), torch.rand(shape[1], dtype=wide)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    y[0] = -100
    weighed = [(y.int(), c)] if dtype == wide else []
    for target, weight in ((y, None), *weighed, (x.softmax(1), None)):
        described = Target(target, weight, settings=Settings(-100, smoothing))
        followed = x.clone().requires_grad_()
        losses = short.cross_entropy(followed, target, weight, label_smoothing=smoothing, reduction="none")
        assert losses.dtype == dtype
        kept = losses.grad_fn.kept if losses.grad_fn.saved_tensors[-1] is None else losses.grad_fn.saved_tensors[-1]
        general, _, general_lse = native.cross_entropy_forward(x, described, "none")
        assert torch.equal(losses, general.to(dtype))
        lse = native.IMPLEMENTATION.kept_lse(kept, x)
        assert torch.equal(lse, general_lse)
        one = torch.tensor(0.3, dtype=dtype).expand(general.shape)
        for grad in (torch.rand_like(general), torch.rand_like(general).to(dtype), one):
            ours = short.gradient_formed_by_kernels(losses, grad, monkeypatch)
            if ours is None:  # many numbers in half precision, which torch converts
                assert grad.dtype.itemsize < 4
                assert grad.numel() > 8192
                continue
            assert torch.equal(ours, native.cross_entropy_backward(grad, x, described, lse).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 10), (), (7, 33), (600, 9), (2, 3, 4, 5)])
def test_small_binary_losses_are_the_general_ones(dtype, shape, monkeypatch):
    torch.manual_seed(0)
    x, t = (torch.randn(shape) * 5).to(dtype), torch.rand(shape).to(dtype)
    described = BinaryTarget(t)
    followed = x.clone().requires_grad_()
    losses = short.binary_cross_entropy(followed, t, reduction="none")
    assert torch.equal(losses, native.binary_cross_entropy_forward(x, described, False).to(dtype))
    one = torch.tensor(0.3, dtype=dtype).expand(shape)
    for grad in (torch.rand(shape, dtype=native._wide(x)), torch.rand(shape).to(dtype), one):
        ours = short.gradient_formed_by_kernels(losses, grad, monkeypatch)
        if ours is None:
            assert grad.dtype.itemsize < 4
            assert grad.numel() > 8192
            continue
        assert torch.equal(ours, native.binary_cross_entropy_backward(grad, x, described)[0])
    monkeypatch.setitem(EXPECTED, dtype, 2.0)
    for reduction, divisor in (("mean", max(x.numel(), 1)), ("sum", 1)):
        loss = short.binary_cross_entropy(followed, t, reduction=reduction)
        general = native.binary_cross_entropy_sum(x, described, divisor, dtype, 2.0)
        assert loss.grad_fn.call.divided == divisor
        assert torch.equal(loss, general.loss)
        assert torch.equal(loss.grad_fn.gradients[0], general.gradient)


PATTERNS = {
    "one": lambda shape: (1,),
    "of classes": lambda shape: (shape[1],) + (1,) * (len(shape) - 2),
    "of rows": lambda shape: (shape[0],) + (1,) * (len(shape) - 1),
    "of the last axis": lambda shape: (shape[-1],),
    "of each": lambda shape: shape,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(700, 2), (3000, 1), (130, 10), (50, 33), (9, 255), (9, 256), (5, 1500), (3, 7, 5, 11)]
)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_binary_weights_that_repeat_after_any_length(pattern, shape, dtype):
    """Rows shorter than a block share it, and their weights are laid out in it."""
    torch.manual_seed(0)
    x, t = torch.randn(shape).to(dtype).requires_grad_(), torch.rand(shape).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    weight, pos_weight = (torch.rand(PATTERNS[pattern](shape), dtype=wide) for _ in range(2))
    for given in ({"weight": weight}, {"pos_weight": pos_weight}, {"weight": weight, "pos_weight": pos_weight[:1]}):
        for reduction in ("sum", "none"):
            options = {**given, "reduction": reduction, "out_dtype": wide}
            ours, right = (
                crossent.binary_cross_entropy_with_logits(x, t, impl=i, **options) for i in ("native", "eager")
            )
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
            grads = [torch.autograd.grad(loss, x, torch.ones_like(loss))[0] for loss in (ours, right)]
            torch.testing.assert_close(*grads)


def test_a_small_gradient_is_given_away_once_and_formed_again():
    x = X.clone().requires_grad_()
    loss = crossent.cross_entropy(x, Y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(second, 3 * first, rtol=1e-6, atol=0)
    (third,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, third)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def test_a_small_target_that_changed_is_noticed_where_it_matters():
    x, y = X.clone().requires_grad_(), Y.clone()
    (expected,) = torch.autograd.grad(crossent.cross_entropy(x, y), x)
    loss = crossent.cross_entropy(x, y)
    y[0] = 1
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("target", [Y, X.softmax(1)])
def test_what_looks_on_or_is_unusual_is_no_quick_call(target):
    x = X.clone()

    def takes(*given):
        rows, mean = (short.cross_entropy(*given, reduction=reduction) for reduction in ("none", "mean"))
        assert (rows is None) == (mean is None)
        return rows is not None

    assert takes(x, target)
    for odd in (x.to(torch.complex64), x.bool(), x.to_sparse(), x.to("meta"), x[0], x[:0], x.numpy(), None):
        assert not takes(odd, target)
    assert not takes(x, target[:3])
    assert not takes(x, target, torch.rand(3, requires_grad=True))
    assert not takes(x, target, torch.rand(4))
    assert not takes(x, target, torch.rand(3).double())
    assert takes(x.half(), target if target is Y else target.half())

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            Mode.seen += "crossent" in str(op)
            return op(*args, **(kwargs or {}))

    with Mode():
        crossent.cross_entropy(x, target)
    assert Mode.seen == 1


# --- memory -----------------------------------------------------------------------------------------------------------


def losses_of(logits, y, t, **settings):
    yield crossent.cross_entropy(logits(), y, **settings)
    yield crossent.cross_entropy(logits(), y, label_smoothing=0.1, reduction="none", **settings).square().sum()
    yield crossent.cross_entropy(logits(), t, weight=torch.rand(t.shape[1]), **settings)
    yield crossent.binary_cross_entropy_with_logits(logits(), t, **settings)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("classes", [3, 40, 200, 2100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_place_the_gradient_is_the_same_and_takes_the_logits_memory(layout, classes, dtype):
    torch.manual_seed(0)
    x = torch.randn(3, classes, 7, 5).to(dtype)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    x = x.transpose(2, 3).contiguous().transpose(2, 3) if layout == "transposed" else x
    y, t = torch.randint(classes, (3, 7, 5)), torch.rand(x.shape).to(dtype)
    leaf, made = x.clone().requires_grad_(), []

    def computed():
        made.append(leaf * 1)
        return made[-1]

    torch.manual_seed(1)
    usual = [torch.autograd.grad(loss, made.pop())[0] for loss in losses_of(computed, y, t)]
    torch.manual_seed(1)
    for i, loss in enumerate(losses_of(computed, y, t, inplace_backward=True)):
        logits = made.pop()
        (grad,) = torch.autograd.grad(loss, logits)
        assert torch.equal(grad, usual[i])
        assert grad.stride() == logits.stride()
        copied = i < 3 and layout == "transposed"  # what softmax takes in no other way
        assert (grad.data_ptr() == logits.data_ptr()) != copied


def test_in_place_a_later_use_of_the_logits_raises():
    x = torch.randn(300, 100, requires_grad=True)
    y = torch.randint(100, (300,))
    logits = x * 1
    loss, other = crossent.cross_entropy(logits, y, inplace_backward=True), logits.exp().sum()
    loss.backward(retain_graph=True)
    assert logits._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    logits = x * 1
    loss, other = crossent.cross_entropy(logits, y, inplace_backward=True), logits.square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def test_in_place_is_refused_for_leaves_and_given_up_where_it_cannot_be():
    x, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    for f, target in ((crossent.cross_entropy, y), (crossent.binary_cross_entropy_with_logits, torch.rand(4, 3))):
        with pytest.raises(RuntimeError, match="inplace_backward=True would write the gradient over a leaf"):
            f(x, target, inplace_backward=True)
        for view in (x[:], x.view_as(x), x.reshape(x.shape), x.T.T, x.narrow(0, 0, len(x))):
            with pytest.raises(RuntimeError, match="inplace_backward=True would write the gradient over a leaf"):
                f(view, target, inplace_backward=True)
        logits = (x[:1] * 1).expand(4, 3)  # one row in memory for all four
        (grad,) = torch.autograd.grad(f(logits, target, inplace_backward=True), x)
        torch.testing.assert_close(grad, torch.autograd.grad(f((x[:1] * 1).expand(4, 3), target), x)[0])
        logits = x * 1
        (grad,) = torch.autograd.grad(f(logits, target, inplace_backward=True), logits, create_graph=True)
        assert grad.data_ptr() != logits.data_ptr()
        torch.testing.assert_close(logits, x)


def test_large_gradients_come_in_memory_that_is_used_again():
    x, y = torch.randn(600, 1000, requires_grad=True), torch.randint(1000, (600,))
    crossent.cross_entropy(x, y).backward()
    place, expected = x.grad.data_ptr(), x.grad.clone()
    x.grad = None
    x.grad = torch.autograd.grad(crossent.cross_entropy(x, y), x)[0]
    assert x.grad.data_ptr() == place
    assert torch.equal(x.grad, expected)
    held = [torch.autograd.grad(crossent.cross_entropy(x, y), x)[0] for _ in range(6)]
    assert len({grad.data_ptr() for grad in [x.grad, *held]}) == 7
    assert all(torch.equal(grad, expected) for grad in held)
    small = python(
        "import torch, crossent; from crossent.impl import native; print(native._RECYCLES)\n"
        "x = torch.randn(600, 1000, requires_grad=True); crossent.cross_entropy(x, x.argmax(1)).backward()\n"
        "print(bool(x.grad.isfinite().all()))",
        CROSSENT_RECYCLE="0",
    )
    assert small.stdout.split() == ["False", "True"]


def test_recycled_memory_is_an_ordinary_tensor():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        new = native.new((1024, 1100), (1, 1024), dtype)
        assert (new.shape, new.stride(), new.dtype, new.device.type) == ((1024, 1100), (1, 1024), dtype, "cpu")
        new.fill_(1)
        assert new.sum(dtype=torch.float64) == 1024 * 1100
        view = new[:3]
        del new
        assert view.sum() == 3 * 1100  # the view keeps it


def _saved(tensor):
    torch.save(tensor, buffer := io.BytesIO())
    size = len(buffer.getvalue())
    buffer.seek(0)
    return size, torch.load(buffer)


def _through_a_queue(tensor):
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    queue.put(tensor)
    return queue.get()


# What is done with tensors and their storages: a result and the tensor afterwards.
AS_ANY_TENSOR = {
    "size of the storage": lambda g: g.untyped_storage().nbytes(),
    "copy of the storage": lambda g: g.untyped_storage().clone().nbytes(),
    "a smaller shape": lambda g: g.resize_(10, 10),
    "another storage": lambda g: g.set_(torch.zeros(4)),
    "another's storage": lambda g: torch.empty(0).set_(g),
    "other data": lambda g: setattr(g, "data", torch.zeros(3)),
    "shared memory": lambda g: (g.share_memory_(), g.is_shared()),
    "through a queue": _through_a_queue,
    "pickled": lambda g: (len(pickle.dumps(g)), pickle.loads(pickle.dumps(g))),
    "saved": _saved,
    "copied": copy.deepcopy,
    "numpy": lambda g: (g.numpy().flags.writeable, torch.from_numpy(g.numpy())),
    "dlpack": torch.from_dlpack,
    "out": lambda g: torch.add(g, 1, out=g),
    "version": lambda g: (g._version, g.mul_(2)._version),
    "a copy resized": lambda g: g.clone().resize_(700, 1000).shape,
    "collated": lambda g: torch.utils.data.default_collate([g, g]),
}
RESIZED = {
    "a larger shape": lambda g: g.resize_(700, 1000),
    "a larger result": lambda g: torch.add(torch.ones(700, 1000), 1, out=g),
    "freed storage": lambda g: g.untyped_storage().resize_(0),
}


def _gradients():
    """Return a gradient in recycled memory, and a tensor of torch's own with the same numbers."""
    x = torch.randn(600, 1000, requires_grad=True)
    ours = torch.autograd.grad(crossent.cross_entropy(x, x.detach().argmax(1)), x)[0]
    return ours, ours.clone()


@pytest.mark.parametrize("name", AS_ANY_TENSOR)
def test_recycled_memory_is_used_as_any_other(name):
    ours, theirs = _gradients()
    assert not ours.untyped_storage().resizable()
    results = [(AS_ANY_TENSOR[name](g), g) for g in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("name", RESIZED)
def test_recycled_memory_cannot_be_resized(name, monkeypatch):
    """As docs/performance.md says. Torch refuses, and leaves a shape behind for which there is no memory: it is not read."""
    ours, theirs = _gradients()
    with pytest.raises(RuntimeError, match="Trying to resize storage that is not resizable"):
        RESIZED[name](ours)
    assert ours.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
    monkeypatch.setattr(native, "_RECYCLES", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it makes a result larger
        RESIZED[name](_gradients()[0])


@pytest.mark.parametrize(
    ("rows", "columns", "features"), [(1, 1, 1), (2, 33, 48), (5, 100, 50), (64, 40, 770), (2049, 40, 49)]
)
def test_the_product_of_a_block_is_added_in_float32(rows, columns, features):
    torch.manual_seed(0)
    g, x = torch.randn(rows, columns).bfloat16(), torch.randn(rows, features).bfloat16()
    exact, sums = g.double().t() @ x.double(), torch.randn(columns, features)
    before = sums.double()
    if not native.accumulate(g, x, sums, False):
        assert native._native.isa() != "avx512bf16"
        pytest.skip("this instruction set has no product of bfloat16")
    # Eight units of float32 of the largest, whatever the number of rows; sums in bfloat16 would be off by ten thousands of them.
    close = {"rtol": 0, "atol": 1e-6 * float(exact.abs().max() + before.abs().max())}
    torch.testing.assert_close(sums.double(), before + exact, **close)
    native.accumulate(g, x.t().contiguous().t(), sums, True)
    torch.testing.assert_close(sums.double(), exact, **close)
    assert not native.accumulate(g.float(), x, sums, True)
    assert not native.accumulate(g.t().contiguous().t(), x, sums, True) or columns == 1 or rows == 1


def _written(sum_of, like, offset, streamed):
    """Return a gradient that lies ``offset`` numbers behind the beginning of a line of memory, and what lies round it."""
    memory = torch.full((like.numel() + 64 + offset,), 7.0, dtype=like.dtype)
    begin = -memory.data_ptr() % 64 // memory.element_size() + offset
    grad = memory[begin : begin + like.numel()].view_as(like)
    before = native._native.stream_from(0 if streamed else 1 << 62)
    try:
        sum_of(grad)
    finally:
        native._native.stream_from(before)
    return grad, torch.cat([memory[:begin], memory[begin + like.numel() :]])


@pytest.mark.parametrize("isa", native._native.isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize(
    "shape", [(3, 1000), (70, 21), (33, 150), (2, 4097), (5, 193), (4, 20, 35), (1, 64), (40, 3)], ids=str
)
def test_a_gradient_that_goes_past_the_caches_is_the_same(isa, dtype, offset, shape):
    logits, loss = torch.randn(shape).mul_(5).to(dtype), torch.empty((), dtype=dtype)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]))
    weight = torch.rand(shape[1]).to(torch.float64 if dtype == torch.float64 else torch.float32)
    shares = torch.rand(shape).to(dtype)

    def indices(grad):
        native._native.softmax_sum(logits, labels, None, -100, 0.0, True, loss, grad)

    def smoothed(grad):
        native._native.softmax_sum(logits, labels, weight, -100, 0.1, True, loss, grad)

    def probabilities(grad):
        native._native.softmax_sum(logits, shares, None, -100, 0.0, True, loss, grad)

    def binary(grad):
        assert native._native.binary_sum(logits, shares, None, None, 2.0, loss, grad)

    used = native._native.isa()
    native._native.use_isa(isa)
    try:
        for sum_of in (indices, smoothed, probabilities, binary):
            expected, _ = _written(sum_of, logits, 0, False)
            grad, beside = _written(sum_of, logits, offset, True)
            assert torch.equal(grad, expected), sum_of.__name__
            assert bool((beside == 7).all())
    finally:
        native._native.use_isa(used)
