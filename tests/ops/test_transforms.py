"""Autograd citizenship: what can be differentiated is right to second order, what cannot raises, nothing is silently zero."""

import io
import subprocess
import sys

import pytest
import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as F
from cases import NUMBER_VALUES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import crossent
from crossent.core.settings import BinarySettings, Settings
from crossent.core.target import BinaryTarget, Target
from crossent.ops.library import BINARY_TARGET, TARGET

N, C = 4, 3
DOUBLE = {"dtype": torch.float64}


def softmax_calls():
    """List functions of differentiable tensors, with those tensors."""
    x, t = torch.randn(N, C, **DOUBLE), torch.rand(N, C, **DOUBLE)
    image, c, u = torch.randn(2, C, 2, 1, **DOUBLE), torch.rand(C, **DOUBLE), torch.rand(N, **DOUBLE)
    y = torch.tensor([0, 2, -100, 1])
    pixels = torch.tensor([[[0], [2]], [[-100], [1]]])
    garbage = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]], **DOUBLE)
    ce = crossent.cross_entropy
    return {
        "indices": (lambda x: ce(x, y), x),
        "indices, none": (lambda x: ce(x, y, reduction="none"), x),
        "indices, weighted": (lambda x: ce(x, y, c), x),
        "indices, smoothed": (lambda x: ce(x, y, c, label_smoothing=0.1, reduction="sum"), x),
        "unbatched": (lambda x: ce(x, y[0]), x[0]),
        "pixels": (lambda x: ce(x, pixels, c, label_smoothing=0.1), image),
        "last dimension": (lambda x: ce(x, y[:2, None].expand(2, 2), dim=-1), torch.randn(2, 2, C, **DOUBLE)),
        "probabilities": (lambda x, t: ce(x, t), x, t),
        "probabilities, none": (lambda x, t: ce(x, t, reduction="none", label_smoothing=0.1), x, t),
        "probabilities, weighted": (lambda x, t, c: ce(x, t, c, label_smoothing=0.1), x, t, c),
        "probabilities without mass": (lambda x, t: ce(x, t), x, torch.zeros(N, C, **DOUBLE)),
        "sample weights": (lambda x, u: ce(x, y, sample_weight=u), x, u),
        "denominator": (lambda x, d: ce(x, y, denominator=d), x, torch.tensor(3.0, **DOUBLE)),
        "zero for nothing": (lambda x: ce(x, torch.full((2,), -100), empty="zero"), garbage),
        "confident": (lambda x: ce(x, torch.tensor([1, 2])), garbage * 6),
    }


def sigmoid_calls():
    """List functions of differentiable tensors, with those tensors."""
    x, t = torch.randn(N, C, **DOUBLE), torch.rand(N, C, **DOUBLE)
    w, pi, u = torch.rand(C, **DOUBLE), torch.rand(N, 1, **DOUBLE), torch.rand(N, **DOUBLE)
    bce = crossent.binary_cross_entropy_with_logits
    return {
        "plain": (lambda x, t: bce(x, t), x, t),
        "none": (lambda x, t: bce(x, t, reduction="none"), x, t),
        "weighted": (lambda x, t: bce(x, t, w, pos_weight=pi), x, t),
        "sample weights": (lambda x, t, u: bce(x, t, sample_weight=u), x, t, u),
        "hard": (lambda x: bce(x * 20, t.round(), reduction="sum"), x),
    }


CALLS = softmax_calls() | {f"sigmoid, {name}": call for name, call in sigmoid_calls().items()}
calls = pytest.mark.parametrize(("f", "inputs"), [(c[0], c[1:]) for c in CALLS.values()], ids=CALLS)


def leaves(inputs):
    return tuple(v.clone().requires_grad_() for v in inputs)


@calls
def test_first_derivatives(f, inputs):
    assert gradcheck(f, leaves(inputs), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


@calls
def test_second_derivatives(f, inputs):
    assert gradgradcheck(f, leaves(inputs), check_fwd_over_rev=True, check_batched_grad=True)


@calls
def test_functional_transforms(f, inputs):
    def scalar(*v):
        return f(*v).sum()

    every = tuple(range(len(inputs)))
    here = leaves(inputs)
    by_autograd = torch.autograd.grad(scalar(*here), here, create_graph=True)
    torch.testing.assert_close(torch.func.grad(scalar, every)(*inputs), by_autograd)
    tangents = tuple(torch.randn_like(v) for v in inputs)
    value, tangent = torch.func.jvp(scalar, inputs, tangents)
    torch.testing.assert_close(value, scalar(*inputs))
    torch.testing.assert_close(tangent, sum((g * v).sum() for g, v in zip(by_autograd, tangents, strict=True)))
    hessian = torch.func.hessian(scalar)(*inputs)  # forward over reverse
    reverse = torch.func.jacrev(torch.func.jacrev(scalar))(*inputs)
    forward = torch.func.jacfwd(torch.func.jacfwd(scalar))(*inputs)
    torch.testing.assert_close(hessian, reverse)
    torch.testing.assert_close(hessian, forward)


@calls
def test_vmap_is_a_loop(f, inputs):
    many = tuple(torch.stack([v, v + 0.5, v * 2]) for v in inputs)

    def loop(g):
        return torch.utils._pytree.tree_map(lambda *v: torch.stack(v), *[g(*(v[i] for v in many)) for i in range(3)])

    torch.testing.assert_close(torch.vmap(f)(*many), loop(f))
    slope = torch.func.grad(lambda *v: f(*v).sum(), tuple(range(len(inputs))))
    torch.testing.assert_close(torch.vmap(slope)(*many), loop(slope))
    at = (0, *[None] * (len(many) - 1))
    torch.testing.assert_close(
        torch.vmap(slope, at)(many[0], *(v[0] for v in many[1:]))[0],
        torch.stack([slope(many[0][i], *(v[0] for v in many[1:]))[0] for i in range(3)]),
    )
    outside = torch.func.grad(lambda x: torch.vmap(f)(x, *many[1:]).sum())(many[0])
    torch.testing.assert_close(outside, torch.vmap(slope)(*many)[0])
    _, tangent = torch.func.jvp(lambda x: torch.vmap(f)(x, *many[1:]).sum(), (many[0],), (torch.ones_like(many[0]),))
    torch.testing.assert_close(tangent, outside.sum())


def test_vmap_over_class_weights_and_targets():
    x, c = torch.randn(6, N, C), torch.rand(6, C)
    y = torch.randint(C, (6, N))
    ours = torch.vmap(lambda *v: crossent.cross_entropy(*v, label_smoothing=0.1))(x, y, c)  # torch raises here
    torch.testing.assert_close(
        ours, torch.stack([F.cross_entropy(*v, label_smoothing=0.1) for v in zip(x, y, c, strict=True)])
    )
    ours = torch.vmap(crossent.cross_entropy, (None, 0))(x[0], y)
    torch.testing.assert_close(ours, torch.stack([F.cross_entropy(x[0], v) for v in y]))


def test_per_sample_gradients():
    x, y = torch.randn(N, C), torch.tensor([0, 2, 1, 1])
    ours = torch.vmap(torch.func.grad(crossent.cross_entropy))(x, y)
    torch.testing.assert_close(ours, x.softmax(1) - F.one_hot(y, C))


def test_second_derivative_of_a_batch_with_ignored_garbage():
    x, y = torch.randn(3, C, **DOUBLE), torch.tensor([0, -100, 2])
    x[1] = torch.nan
    x.requires_grad_()
    (grad,) = torch.autograd.grad(crossent.cross_entropy(x, y), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.pow(2).sum(), x)
    assert second[[0, 2]].abs().min() > 0
    assert (second[1] == 0).all()


def test_forward_over_reverse_without_create_graph():
    x, y, along = torch.randn(N, C, **DOUBLE), torch.tensor([0, 2, -100, 1]), torch.randn(N, C, **DOUBLE)
    tangents = []
    for loss in (crossent.cross_entropy, F.cross_entropy):
        with fwd.dual_level():
            dual = fwd.make_dual(x.clone().requires_grad_(), along)
            (grad,) = torch.autograd.grad(loss(dual, y), dual)
            tangents.append(fwd.unpack_dual(grad).tangent)
    torch.testing.assert_close(*tangents)
    assert tangents[0].abs().max() > 0


UNDIFFERENTIABLE = {
    "weight, indices": lambda x, t, y, c: crossent.cross_entropy(x, y, c),
    "weight, smoothed": lambda x, t, y, c: crossent.cross_entropy(x, y, c, label_smoothing=0.1),
    "weight, binary": lambda x, t, y, c: crossent.binary_cross_entropy_with_logits(x, t, c),
    "pos_weight": lambda x, t, y, c: crossent.binary_cross_entropy_with_logits(x, t, t, pos_weight=c),
}


@pytest.mark.parametrize("name", UNDIFFERENTIABLE)
def test_what_has_no_derivative_raises(name):
    x, t, y, c = (
        torch.randn(N, C, **DOUBLE),
        torch.rand(N, C, **DOUBLE),
        torch.tensor([0, 2, -100, 1]),
        torch.rand(C, **DOUBLE),
    )

    def f(c):
        return UNDIFFERENTIABLE[name](x, t, y, c)

    with pytest.raises(RuntimeError, match="weight"):
        f(c.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="weight"):
        torch.func.grad(f)(c)
    with fwd.dual_level(), pytest.raises(RuntimeError, match="weight"):
        f(fwd.make_dual(c, c))
    with torch.no_grad():
        f(c.clone().requires_grad_())
    # torch.func tells no constant from a variable in forward mode, so there the derivative is computed, and right
    along = torch.rand(C, **DOUBLE)
    _, tangent = torch.func.jvp(f, (c,), (along,))
    torch.testing.assert_close(tangent, (f(c + 1e-6 * along) - f(c - 1e-6 * along)) / 2e-6, rtol=1e-6, atol=1e-8)


def test_backward_twice_and_retained():
    x, y = torch.randn(N, C, requires_grad=True), torch.tensor([0, 2, 1, 1])
    loss = crossent.cross_entropy(x, y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)
    torch.testing.assert_close(scaled, 3 * first)
    rows = crossent.cross_entropy(x, y, reduction="none")
    (grad,) = torch.autograd.grad(rows, x, torch.arange(4.0))
    torch.testing.assert_close(grad, (x.softmax(1) - F.one_hot(y, C)) * torch.arange(4.0)[:, None])


def test_only_what_is_asked_for_is_computed():
    x, t = torch.randn(N, C), torch.rand(N, C, requires_grad=True)
    (grad,) = torch.autograd.grad(crossent.cross_entropy(x, t), t)
    torch.testing.assert_close(grad, -x.log_softmax(1) / N)
    assert crossent.cross_entropy(x, t.detach()).grad_fn is None
    with torch.no_grad():
        assert not crossent.cross_entropy(x, t).requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    x, y = torch.randn(N, C, requires_grad=True), torch.tensor([0, 2, 1, 1])
    loss = checkpoint(lambda x: crossent.cross_entropy(x, y), x, use_reentrant=reentrant)
    (expected,) = torch.autograd.grad(F.cross_entropy(x, y), x)
    loss.backward()
    torch.testing.assert_close(x.grad, expected)


def test_fake_and_meta_tensors_keep_shapes_dtypes_and_strides():
    settings = [{}, {"reduction": "none"}, {"label_smoothing": 0.1, "out_dtype": torch.float64}]
    for more in settings:
        real_x = torch.randn(2, C, 4, 5).to(torch.bfloat16, memory_format=torch.channels_last)
        for target in (torch.zeros(2, 4, 5, dtype=torch.long), torch.rand(2, C, 4, 5)):
            x = real_x.clone().requires_grad_()
            loss = crossent.cross_entropy(x, target, **more)
            (grad,) = torch.autograd.grad(loss.sum(), x)
            with FakeTensorMode() as mode:
                fake = mode.from_tensor(real_x).requires_grad_()
                fake_loss = crossent.cross_entropy(fake, mode.from_tensor(target), **more)
                (fake_grad,) = torch.autograd.grad(fake_loss.sum(), fake)
            for a, b in ((loss, fake_loss), (grad, fake_grad)):
                assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            meta = crossent.cross_entropy(real_x.to("meta"), target.to("meta"), **more)
            assert (meta.shape, meta.dtype) == (loss.shape, loss.dtype)
    meta = crossent.binary_cross_entropy_with_logits(real_x.to("meta"), target.to("meta"))
    assert meta.dtype == torch.float32


def test_operators_pass_opcheck():
    x, t, y, c = torch.randn(N, C, requires_grad=True), torch.rand(N, C), torch.tensor([0, 2, -100, 1]), torch.rand(C)
    forward, backward = torch.ops.crossent.cross_entropy_forward, torch.ops.crossent.cross_entropy_backward
    for target in (y, t):
        rule = TARGET.write(Target(target, c, settings=Settings.of(label_smoothing=0.1)))
        for impl in ("eager", crossent.choose_implementation(x)):
            for reduction in ("none", "sum", "mean"):
                torch.library.opcheck(forward, (x.detach(), *rule, reduction, impl))
            _, total, lse = forward(x.detach(), *rule, "mean", impl)
            needs = [True, target is t]
            for grad, divisor in ((torch.ones(N), None), (torch.ones(()), total)):
                torch.library.opcheck(backward, (grad, divisor, x.detach(), *rule, lse, needs, impl))
        bias, mask, valid = torch.rand(C), torch.rand(N, C) < 0.8, torch.rand(N) < 0.8
        everything = Settings.of(label_smoothing=0.1, penalty=crossent.Focal(2.0), **NUMBER_VALUES)
        rule = TARGET.write(Target(target, c, bias, mask, valid, everything))
        torch.library.opcheck(forward, (x.detach(), *rule, "none", "eager"))
        lse = forward(x.detach(), *rule, "none", "eager")[2]
        torch.library.opcheck(backward, (torch.ones(N), None, x.detach(), *rule, lse, [True, False], "eager"))
    forward = torch.ops.crossent.binary_cross_entropy_forward
    backward = torch.ops.crossent.binary_cross_entropy_backward
    ones = torch.ones(N, C)
    everything = BinarySettings.of(ignore_index=-1.0, label_smoothing=0.1, penalty=crossent.Asymmetric())
    assert {*everything.unusual()} == {*BinarySettings.names}, "this test needs a value for a new number"
    for binary_target in (BinaryTarget(t, c), BinaryTarget(t, c, c, t > 0.5, everything)):
        rule = BINARY_TARGET.write(binary_target)
        torch.library.opcheck(forward, (x.detach(), *rule, True, 2.0, "eager"))
        torch.library.opcheck(backward, (ones, 1.0, x.detach(), *rule, [True, True], "eager"))


COMPILED = {
    "indices": lambda x, y, t, c: crossent.cross_entropy(x, y),
    "smoothed": lambda x, y, t, c: crossent.cross_entropy(x, y, c, label_smoothing=0.1, reduction="none"),
    "probabilities": lambda x, y, t, c: crossent.cross_entropy(x, t, c, label_smoothing=0.1),
    "sample weights": lambda x, y, t, c: crossent.cross_entropy(
        x, y, sample_weight=t[:, 0], denominator=t.sum(), empty="zero"
    ),
    "last dimension": lambda x, y, t, c: crossent.cross_entropy(x[:, None], y[:, None], dim=-1),
    "binary": lambda x, y, t, c: crossent.binary_cross_entropy_with_logits(x, t, pos_weight=c),
    "module": lambda x, y, t, c: crossent.CrossEntropyLoss(label_smoothing=0.2)(x, y),
    "vmap": lambda x, y, t, c: torch.vmap(crossent.cross_entropy)(x, y),
    "bfloat16": lambda x, y, t, c: crossent.cross_entropy(x.bfloat16(), y, out_dtype=torch.float32),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_to_one_graph(name):
    f = COMPILED[name]
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (N, N + 3):
        x, t, c = torch.randn(n, C, requires_grad=True), torch.rand(n, C), torch.rand(C)
        y = torch.randint(C, (n,))
        ours, theirs = compiled(x, y, t, c), f(x, y, t, c)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (ours, theirs)))


def test_compiled_differentiation_of_the_functional_kind():
    x, y = torch.randn(3, N, C), torch.randint(C, (3, N))
    per_sample = torch.vmap(torch.func.grad(crossent.cross_entropy))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(per_sample, fullgraph=True, backend="aot_eager")(x, y), per_sample(x, y))


FIRST_CALL = """
import torch, crossent
x, y = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
f = torch.compile(crossent.cross_entropy, fullgraph=True)
loss = f(x, y, label_smoothing=0.1)
loss.backward()
import torch.nn.functional as F
torch.testing.assert_close(loss, F.cross_entropy(x, y, label_smoothing=0.1))
torch.testing.assert_close(x.grad, torch.autograd.grad(F.cross_entropy(x, y, label_smoothing=0.1), x)[0])
print("one graph")
"""


def test_compiles_as_the_first_call_of_a_process():
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False)
    assert done.stdout == "one graph\n", done.stderr


def test_export():
    class Model(torch.nn.Module):
        def forward(self, x, y):
            return crossent.cross_entropy(x, y, label_smoothing=0.1)

    x, y = torch.randn(N, C), torch.tensor([0, 2, 1, 1])
    batch = torch.export.Dim("batch")
    program = torch.export.export(Model(), (x, y), dynamic_shapes=({0: batch}, {0: batch}))
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    again = torch.export.load(saved).module()
    x, y = torch.randn(9, C, requires_grad=True), torch.randint(C, (9,))
    ours, theirs = again(x, y), F.cross_entropy(x, y, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)))  # what is loaded trains


def test_tensor_subclasses_and_modes():
    seen = []

    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x, y = torch.randn(N, C), torch.tensor([0, 2, 1, 1])
    loss = crossent.cross_entropy(x.as_subclass(Named), y, label_smoothing=0.1)
    assert crossent.cross_entropy in seen
    assert isinstance(loss, Named)
    torch.testing.assert_close(loss.as_subclass(torch.Tensor), F.cross_entropy(x, y, label_smoothing=0.1))
    crossent.binary_cross_entropy_with_logits(x, x.sigmoid().as_subclass(Named))
    assert crossent.binary_cross_entropy_with_logits in seen
    with torch.device("cpu"):
        torch.testing.assert_close(crossent.cross_entropy(x, y), F.cross_entropy(x, y))
    parameter = torch.nn.Parameter(x)
    crossent.cross_entropy(parameter, y).backward()
    torch.testing.assert_close(parameter.grad, (x.softmax(1) - F.one_hot(y, C)) / N)


def test_traced_by_make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, y = torch.randn(N, C), torch.tensor([0, 2, 1, 1])
    graph = make_fx(lambda x, y: crossent.cross_entropy(x, y))(x, y)
    other = torch.randn(N, C)
    torch.testing.assert_close(graph(other, y), F.cross_entropy(other, y))
    assert any("crossent" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("impl", [None, "eager"])
def test_tangents_of_binary_losses_of_permuted_logits(impl):
    x = torch.randn(3, 2, 2, 2).permute(1, 0, 2, 3)
    t, weight, along = torch.rand(x.shape), torch.tensor([2.0, 3.0]), torch.randn(x.shape)
    with fwd.dual_level():
        z = fwd.make_dual(x, along)
        loss = crossent.binary_cross_entropy_with_logits(z, t, pos_weight=weight, reduction="none", impl=impl)
        right = torch.nn.functional.binary_cross_entropy_with_logits(z, t, pos_weight=weight, reduction="none")
        torch.testing.assert_close(fwd.unpack_dual(loss).tangent, fwd.unpack_dual(right).tangent)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_of_no_rows_can_be_differentiated_as_torchs(reduction, soft):
    y = torch.zeros(0, 4) if soft else torch.zeros(0, dtype=torch.long)
    for function in (torch.nn.functional.cross_entropy, crossent.cross_entropy):
        x = torch.zeros(0, 4, requires_grad=True)
        loss = function(x, y, weight=torch.rand(4), reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum() * 1.5, x, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), x)
        assert second.shape == (0, 4)
