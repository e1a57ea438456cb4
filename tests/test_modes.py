"""Every way into the code takes the same door: under every mode of torch a loss has torch's value, or a clear refusal.

Modes × entry points × kinds of target: tracing, compiling, exporting, dispatch and function modes, hooks, transforms, defaults.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import onnx
import pytest
import torch
import torch.nn.functional as F
from contexts import CONTEXTS, flop_counter
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import crossent


class Entry(NamedTuple):
    """A loss of two tensors, with the same in torch's own words."""

    ours: Callable[[Tensor, Tensor], Tensor]
    torchs: Callable[[Tensor, Tensor], Tensor]
    target: str = "indices"


def _weights() -> Tensor:
    return torch.linspace(-1, 1, 5 * 8, device="cpu", dtype=torch.float32).sin().reshape(8, 5)


def _blocks(x: Tensor, y: Tensor) -> Tensor:
    return crossent.linear_cross_entropy(x, _weights(), y, max_bytes=64)


def _torch_head(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x @ _weights().T, y)


def _torch_contrast(a: Tensor, b: Tensor) -> Tensor:
    similarity, own = 3.0 * a @ b.T, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def _shares(x: Tensor, y: Tensor) -> Tensor:
    labels = (y > 0.2).to(x.dtype)
    return F.cross_entropy(x, labels / labels.sum(1, keepdim=True))


def _focal(x: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(x, 1).gather(1, y.unsqueeze(1)).squeeze(1)
    return ((1 - log_p.exp()) ** 2 * -log_p).mean()


ENTRIES = {
    "mean": Entry(crossent.cross_entropy, F.cross_entropy),
    "sum": Entry(lambda x, y: crossent.cross_entropy(x, y, reduction="sum"), lambda x, y: F.cross_entropy(x, y, reduction="sum")),
    "none": Entry(
        lambda x, y: crossent.cross_entropy(x, y, reduction="none").square().sum(),
        lambda x, y: F.cross_entropy(x, y, reduction="none").square().sum(),
    ),
    "smoothed": Entry(
        lambda x, y: crossent.cross_entropy(x, y, label_smoothing=0.1), lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1)
    ),
    "probabilities": Entry(crossent.cross_entropy, F.cross_entropy, "probabilities"),
    "temperature": Entry(lambda x, y: crossent.cross_entropy(x, y, temperature=2.0), lambda x, y: F.cross_entropy(x / 2, y)),
    "focal": Entry(crossent.focal_loss, _focal),
    "module": Entry(lambda x, y: crossent.CrossEntropyLoss()(x, y), F.cross_entropy),
    "stats": Entry(lambda x, y: crossent.cross_entropy_stats(x, y, reduction="mean").loss, F.cross_entropy),
    "binary": Entry(crossent.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, "probabilities"),
    "binary none": Entry(
        lambda x, y: crossent.binary_cross_entropy_with_logits(x, y, reduction="none").square().sum(),
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none").square().sum(),
        "probabilities",
    ),
    "eager": Entry(lambda x, y: crossent.cross_entropy(x, y, impl="eager"), F.cross_entropy),
    "eager probabilities": Entry(
        lambda x, y: crossent.cross_entropy(x, y, reduction="none", impl="eager").square().sum(),
        lambda x, y: F.cross_entropy(x, y, reduction="none").square().sum(),
        "probabilities",
    ),
    "eager binary": Entry(
        lambda x, y: crossent.binary_cross_entropy_with_logits(x, y, impl="eager"),
        F.binary_cross_entropy_with_logits,
        "probabilities",
    ),
    "eager head": Entry(lambda x, y: crossent.linear_cross_entropy(x, _weights(), y, impl="eager"), _torch_head),
    "head": Entry(lambda x, y: crossent.linear_cross_entropy(x, _weights(), y), _torch_head),
    "head in blocks": Entry(_blocks, _torch_head),
    "distillation": Entry(
        lambda x, y: crossent.distillation_loss(x, y.log()),
        lambda x, y: F.kl_div(F.log_softmax(x, 1), F.log_softmax(y.log(), 1), log_target=True, reduction="batchmean"),
        "probabilities",
    ),
    "head statistics": Entry(
        lambda x, y: crossent.linear_cross_entropy_stats(x, _weights(), y, reduction="mean", max_bytes=64).loss, _torch_head
    ),
    "multilabel": Entry(lambda x, y: crossent.multilabel_cross_entropy(x, y > 0.2), _shares, "probabilities"),
    "binary module": Entry(
        lambda x, y: crossent.BCEWithLogitsLoss()(x, y), F.binary_cross_entropy_with_logits, "probabilities"
    ),
    "contrastive": Entry(
        lambda x, y: crossent.contrastive_cross_entropy(x, y, 3.0), _torch_contrast, "probabilities"
    ),
}  # fmt: skip

LISTED = Entry(lambda x, y: crossent.multilabel_cross_entropy(x, [[int(label)] for label in y]), F.cross_entropy)
"""Labels in lists are numbers of the program: what captures the program captures them."""


def _arguments(entry: Entry) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=generator, device="cpu", dtype=torch.float32)
    if entry.target == "probabilities":
        return x, torch.rand(6, 5, generator=generator, device="cpu", dtype=torch.float32).softmax(1)
    return x, torch.randint(5, (6,), generator=generator, device="cpu")


# --- contexts: the call stands inside one ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ENTRIES)
def test_value_and_gradients_inside(name, context):
    if "module" in name and context == "flop counter":
        pytest.skip(
            "torch's counter follows modules by hooks that autograd.grad of a leaf refuses, torch's own losses too"
        )
    entry = ENTRIES[name]
    x, y = _arguments(entry)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = entry.torchs(theirs, y)
    (of_theirs,) = torch.autograd.grad(expected, theirs, create_graph=True)
    along = x.sin()
    (second_of_theirs,) = torch.autograd.grad((of_theirs * along).sum(), theirs)
    with CONTEXTS[context]():
        loss = entry.ours(ours, y)
        (grad,) = torch.autograd.grad(loss, ours, create_graph=True)
        (second,) = torch.autograd.grad((grad * along).sum(), ours)
        entry.ours(ours, y).backward()
    assert loss.device.type == "cpu"
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, of_theirs)
    torch.testing.assert_close(ours.grad, of_theirs)
    torch.testing.assert_close(second, second_of_theirs)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", [*ENTRIES, "labels in lists"])
def test_value_without_gradients(name, grad, context):
    """Where nothing is differentiated other code runs, which forms statistics and gives tensors of its own."""
    entry = ENTRIES.get(name, LISTED)
    x, y = _arguments(entry)
    expected = entry.torchs(x, y)
    with grad(), CONTEXTS[context]():
        loss = entry.ours(x, y)
    assert loss.device.type == "cpu"
    torch.testing.assert_close(loss, expected)


# --- captures: the call becomes a program, which runs on other numbers ---------------------------------------------------


def _traced(f: Callable[..., Tensor], x: Tensor, y: Tensor) -> Callable[..., Tensor]:
    traced: Callable[..., Tensor] = torch.jit.trace(f, (x, y))
    return traced


def _exported(f: Callable[..., Tensor], x: Tensor, y: Tensor) -> Callable[..., Tensor]:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return f(x, y)

    return torch.export.export(Loss(), (x, y)).module()


CAPTURES: dict[str, Callable[..., Callable[..., Tensor]]] = {
    "jit.trace": _traced,
    "make_fx": lambda f, x, y: make_fx(f)(x, y),
    "make_fx, symbolic": lambda f, x, y: make_fx(f, tracing_mode="symbolic")(x, y),
    "symbolic_trace": lambda f, x, y: torch.fx.symbolic_trace(f),
    "export": _exported,
    "compile, eager": lambda f, x, y: torch.compile(f, fullgraph=True, backend="eager"),
    "compile, aot_eager": lambda f, x, y: torch.compile(f, fullgraph=True, backend="aot_eager"),
    "functionalize": lambda f, x, y: torch.func.functionalize(f),
}


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("name", ENTRIES)
def test_captured(name, capture, grad):
    """A captured loss, with another term beside it, has torch's value and gradient on numbers that it was not captured with."""
    if capture == "symbolic_trace" and "module" in name:
        pytest.skip("a module made inside a function is no submodule, torch's own neither")
    torch._dynamo.reset()
    entry = ENTRIES[name]
    x, y = _arguments(entry)
    if capture == "symbolic_trace" and name in ("head statistics", "contrastive"):
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor.*, got torch\.fx\.proxy\.Proxy"):
            torch.fx.symbolic_trace(entry.ours)
        return
    entry.ours(x, y)  # so that whatever the first call makes is there
    other, labels = x.flip(0).clone() * 1.5, y.flip(0).clone()
    with contextlib.nullcontext() if grad else torch.no_grad():
        program = CAPTURES[capture](lambda x, y: entry.ours(x, y) + x.square().sum(), x.clone().requires_grad_(grad), y)
        ours, theirs = other.clone().requires_grad_(grad), other.clone().requires_grad_()
        loss = program(ours, labels)
    expected = entry.torchs(theirs, labels) + theirs.square().sum()
    torch.testing.assert_close(loss, expected)
    if grad:
        (right,) = torch.autograd.grad(expected, theirs, create_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, ours, retain_graph=True)[0], right)
        if capture != "compile, aot_eager":  # which refuses second derivatives of anything
            (grad_of_ours,) = torch.autograd.grad(loss, ours, create_graph=True)
            (second,) = torch.autograd.grad(grad_of_ours.square().sum(), ours)
            torch.testing.assert_close(second, torch.autograd.grad(right.square().sum(), theirs)[0])


# --- exports to ONNX ----------------------------------------------------------------------------------------------------

_EXPORTERS_WARN = pytest.mark.filterwarnings(  # of themselves
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
_NO_LEGACY_FORM = "focal"  # takes expm1, which torch's older exporter does not know


class _Model(torch.nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, y)


def _exported(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, dynamo: bool) -> Any:
    if dynamo:
        return torch.onnx.export(_Model(loss), (x, y), dynamo=True, verbose=False).model_proto
    file = io.BytesIO()
    torch.onnx.export(_Model(loss), (x, y), file, dynamo=False)
    return onnx.load_model_from_string(file.getvalue())


@_EXPORTERS_WARN
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("name", ENTRIES)
def test_exported_to_onnx(name, dynamo):
    """What ONNX's own evaluator makes of the exported loss, on numbers that it was not exported with, is torch's value."""
    entry = ENTRIES[name]
    x, y = _arguments(entry)
    if name == _NO_LEGACY_FORM and not dynamo:
        with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="expm1"):
            _exported(entry.ours, x, y, dynamo)
        return
    model = _exported(entry.ours, x, y, dynamo)
    other, labels = x.flip(0) * 1.5, y.flip(0)
    names = [each.name for each in model.graph.input]
    (loss,) = ReferenceEvaluator(model).run(None, dict(zip(names, (other.numpy(), labels.numpy()), strict=True)))
    torch.testing.assert_close(torch.as_tensor(loss), entry.torchs(other, labels))


@_EXPORTERS_WARN
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_onnx_runtimes_see_their_own_operator(reduction, dynamo):
    weight = torch.linspace(0.5, 1.5, 5)
    x, y = _arguments(ENTRIES["mean"])
    options = {"weight": weight, "ignore_index": 2, "reduction": reduction}
    kinds = []
    for loss in (crossent.cross_entropy, F.cross_entropy):
        model = _exported(lambda x, y, loss=loss: loss(x, y, **options), x, y, dynamo)
        kinds.append({node.op_type for node in model.graph.node} - {"Cast", "Constant"})
    assert kinds == [{"SoftmaxCrossEntropyLoss"}] * 2


# --- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:Attempted to insert a get_attr"
)  # torch's linearize, of any tensor that it closes over
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("name", ENTRIES)
def test_forward_mode(name, compiled):
    entry = ENTRIES[name]
    x, y = _arguments(entry)
    along = x.sin()

    def tangent(f: Callable[..., Tensor], x: Tensor, along: Tensor) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, along), y)).tangent

    torch._dynamo.reset()
    expected = tangent(entry.torchs, x, along)
    run = torch.compile(tangent, fullgraph=True, backend="eager") if compiled else tangent
    torch.testing.assert_close(run(entry.ours, x, along), expected)
    torch.testing.assert_close(torch.func.jvp(lambda x: entry.ours(x, y), (x,), (along,))[1], expected)
    _, linear = torch.func.linearize(lambda x: entry.ours(x, y), x)
    torch.testing.assert_close(linear(along), expected)


TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "gradient": lambda f, x, v: torch.func.grad(f)(x),
    "jacobian": lambda f, x, v: torch.func.jacrev(f)(x),
    "forward mode": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "forward over reverse": lambda f, x, v: torch.func.jvp(torch.func.grad(f), (x,), (v,))[1],
    "reverse over reverse": lambda f, x, v: torch.func.grad(lambda x: (torch.func.grad(f)(x) * v).sum())(x),
    "vmap of gradients": lambda f, x, v: torch.vmap(torch.func.grad(f))(torch.stack([x, v])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ENTRIES)
def test_compiled_transforms(name, transform):
    """A transform of ``torch.func`` inside of what is compiled."""
    entry = ENTRIES[name]
    x, y = _arguments(entry)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, v: TRANSFORMS[transform](lambda x: entry.ours(x, y), x, v), fullgraph=True, backend="eager"
    )
    expected = TRANSFORMS[transform](lambda x: entry.torchs(x, y), x, x.sin())
    torch.testing.assert_close(compiled(x, x.sin()), expected)


# --- the first call inside a mode ---------------------------------------------------------------------------------------

CALL = "crossent.cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))"
FIRST = {
    "meta": f"with torch.device('meta'): {CALL}",
    "default meta": f"torch.set_default_device('meta'); {CALL}\ntorch.set_default_device(None)",
    "fake": f"from torch._subclasses import FakeTensorMode\nwith FakeTensorMode(): {CALL}",
    "inference": f"with torch.inference_mode(): {CALL}",
    "float64": f"torch.set_default_dtype(torch.float64); {CALL}\ntorch.set_default_dtype(torch.float32)",
}


def _runs_alone(program: str) -> None:
    """Run a program in a process of its own, whose first call it makes."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", FIRST)
def test_the_first_call_may_stand_inside_a_mode(first):
    program = (
        f"import torch, crossent\n{FIRST[first]}\n"
        "x = torch.zeros(2, 3, requires_grad=True)\n"
        "loss = crossent.cross_entropy(x, torch.tensor([0, 1])); loss.backward()\n"
        "assert abs(loss.item() - 1.0986123) < 1e-6 and x.grad.device.type == 'cpu', (loss, x.grad)\n"
        "stats = crossent.cross_entropy_stats(x.detach(), torch.tensor([0, 1]))\n"
        "assert stats.loss.device.type == 'cpu' and stats.loss.dtype == torch.float32"
    )
    _runs_alone(program)


# Where the first use of a head stands: inside the counter, before it is entered, inside another one.
FIRST_HEAD = {
    "inside": ("", "head().backward()", 3),
    "before it is entered": ("head()\n", "head().backward()", 3),
    "inside another one": ("with FlopCounterMode(display=False):\n    head()\n", "head().backward()", 3),
    "before backward": ("loss = head()\n", "loss.backward()", 2),
}


@pytest.mark.parametrize("first", FIRST_HEAD)
def test_flops_are_counted_wherever_the_first_use_stands(first):
    before, counted, products = FIRST_HEAD[first]
    program = (
        "import torch, crossent\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "def head():\n"
        "    h, y = torch.ones(6, 5, requires_grad=True), torch.zeros(6, dtype=torch.long)\n"
        "    return crossent.linear_cross_entropy(h, torch.ones(8, 5), y, max_bytes=64, reduction='none').sum()\n"
        "counter = FlopCounterMode(display=False)\n"
        f"{before}"
        f"with counter:\n    {counted}\n"
        f"assert counter.get_total_flops() == {products} * 2 * 6 * 8 * 5, counter.get_flop_counts()"
    )
    _runs_alone(program)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_flops_of_a_head_are_counted(reduction):
    """Three products where the gradient is formed with the loss; rows form their logits once more."""
    h, W = torch.randn(6, 5, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    y = torch.zeros(6, dtype=torch.long)
    with flop_counter() as counter:
        crossent.linear_cross_entropy(h, W, y, max_bytes=64, reduction=reduction).sum().backward()
    assert counter.get_total_flops() == 2 * 6 * 8 * 5 * (3 if reduction == "mean" else 4)
    with flop_counter() as torchs:
        F.cross_entropy(F.linear(h, W), y).backward()
    with flop_counter() as counter:
        crossent.linear_cross_entropy(h, W, y).backward()
    assert counter.get_total_flops() == torchs.get_total_flops() == 2 * 6 * 8 * 5 * 3
    with flop_counter() as counter, torch.no_grad():
        crossent.linear_cross_entropy_stats(h, W, y, max_bytes=64)
    assert counter.get_total_flops() == 2 * 6 * 8 * 5


class _Logged(torch.Tensor):
    """A tensor subclass that writes down which functions it answers for."""

    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        cls.calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ENTRIES)
def test_a_subclass_is_asked_and_gets_the_value(name):
    x, y = _arguments(ENTRIES[name])
    expected = ENTRIES[name].torchs(x, y)
    logged = x.as_subclass(_Logged).requires_grad_()
    _Logged.calls.clear()
    loss = ENTRIES[name].ours(logged, y)
    if "stat" not in name:  # whose tuple a subclass of tensors could not convert
        assert any("entropy" in call or "focal" in call or "distillation" in call for call in _Logged.calls)
    torch.testing.assert_close(loss.as_subclass(Tensor), expected)
    (grad,) = torch.autograd.grad(loss, logged)
    z = x.clone().requires_grad_()
    torch.testing.assert_close(grad.as_subclass(Tensor), torch.autograd.grad(ENTRIES[name].torchs(z, y), z)[0])


@pytest.mark.parametrize("names", [("target",), ("weight",), ("logits",)])
def test_what_is_modified_between_forward_and_backward_is_refused_or_not_needed(names):
    """Small sums have their gradient already; a second backward and a second derivative need what was given."""
    for steps in ("twice", "create_graph"):
        x, y, c = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 3]), torch.rand(5) + 0.5
        logits = x * 1.0
        loss = crossent.cross_entropy(logits, y, c)
        if steps == "twice":
            loss.backward(retain_graph=True)
        changed = {"target": y, "weight": c, "logits": logits.detach()}[names[0]]
        changed.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, x, create_graph=steps == "create_graph", retain_graph=True)


@pytest.mark.parametrize("impl", [None, "eager"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0)])
def test_forward_mode_in_any_order_of_the_dimensions(order, impl):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([(2, 4, 3)[d] for d in order], generator=generator).permute([order.index(d) for d in range(3)])
    v, y = torch.randn(2, 4, 3, generator=generator), torch.tensor([[0, 1, 2], [3, 0, 1]])
    for f in (crossent.cross_entropy, lambda *a, **o: crossent.cross_entropy_stats(*a, **o).loss, crossent.focal_loss):
        with forward_ad.dual_level():
            rows = f(forward_ad.make_dual(x, v), y, reduction="none", impl=impl)
            tangent = forward_ad.unpack_dual(rows).tangent
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(f(leaf, y, reduction="sum"), leaf)
        torch.testing.assert_close(tangent.sum(), (grad * v).sum())
