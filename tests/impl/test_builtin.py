"""Torch's own operators: what they take, where they are chosen, and that they are torch's in every mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.impl import load

SHAPES = [(13, 5), (3, 4, 6), (2, 3, 4, 5)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def problem(shape, dtype, soft=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    if soft:
        return x, torch.rand(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(2))
    y.view(-1)[::5] = -100
    return x, y


def with_gradient(loss, x, **options):
    value = loss(**options)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("soft", "options"), [(False, {}), (False, {"label_smoothing": 0.1}), (False, {"ignore_index": 2}), (True, {})]
)
def test_softmax_is_torchs(shape, dtype, reduction, soft, options):
    x, y = problem(shape, dtype, soft)
    y = y if soft else y.masked_fill(y == -100, options.get("ignore_index", -100))
    ours = with_gradient(lambda **o: crossent.cross_entropy(x, y, impl="torch", **o), x, reduction=reduction, **options)
    theirs = with_gradient(lambda **o: F.cross_entropy(x, y, **o), x, reduction=reduction, **options)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        # Rows are summed in float32 here.
        torch.testing.assert_close(
            a, b, **({"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-5} if dtype.itemsize < 4 else {})
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_is_torchs(dtype, reduction, weighted):
    x, t = problem((9, 4), dtype, soft=True)
    c = torch.rand(4).to(dtype) if weighted else None
    more = {"weight": c, "pos_weight": c, "reduction": reduction}
    ours = with_gradient(lambda **o: crossent.binary_cross_entropy_with_logits(x, t, impl="torch", **o), x, **more)
    theirs = with_gradient(lambda **o: F.binary_cross_entropy_with_logits(x, t, **o), x, **more)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", ["meta"])  # which stands for those without kernels
def test_they_are_chosen_for_plain_calls_where_there_are_no_kernels(device):
    x, y = torch.empty(6, 4, device=device), torch.empty(6, dtype=torch.int64, device=device)
    assert crossent.choose_implementation(x, target=y) == "torch"
    assert crossent.choose_implementation(x, target=torch.empty_like(x)) == "torch"
    assert crossent.choose_implementation(x, target=y, label_smoothing=0.1) == "torch"
    assert crossent.choose_implementation(x, target=x, loss="binary_cross_entropy_with_logits") == "torch"
    for more in ({"z_loss": 0.1}, {"temperature": 2.0}, {"penalty": crossent.Focal()}):
        assert crossent.choose_implementation(x, target=y, **more) == "eager"
    assert crossent.choose_implementation(x.bfloat16(), target=torch.empty_like(x)) == "eager"
    assert crossent.choose_implementation(torch.zeros(6, 4)) != "torch"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("more", [{}, {"sample_weight": True}, {"inplace_backward": True}, {"inplace_forward": True}])
@pytest.mark.parametrize("pos_weight", [False, True])
def test_what_is_said_to_be_chosen_is_what_runs(dtype, loss, reduction, more, pos_weight, monkeypatch):
    if pos_weight and loss == "cross_entropy":
        pytest.skip("a softmax loss has none")
    x = torch.empty(6, 4, device="meta", dtype=dtype, requires_grad=True).relu()
    t = torch.empty(6, dtype=torch.int64, device="meta") if loss == "cross_entropy" else torch.empty_like(x)
    options = {k: v if k != "sample_weight" else torch.empty(6, device="meta") for k, v in more.items()}
    options |= {"pos_weight": torch.empty(4, device="meta", dtype=dtype)} if pos_weight else {}
    ran = set()
    for name in ("torch", "eager"):
        implementation = load(name)
        for method in ("cross_entropy_forward", "binary_cross_entropy_forward"):
            original = getattr(implementation, method)

            def noted(*args, original=original, name=name, **kwargs):
                ran.add(name)
                return original(*args, **kwargs)

            monkeypatch.setattr(implementation, method, noted)
    getattr(crossent, loss)(x, t, reduction=reduction, **options)
    said = crossent.choose_implementation(x, target=t, loss=loss, reduction=reduction, **options)
    assert said == ("eager" if "torch" not in ran else "torch")
    widest = 2 if loss == "cross_entropy" else 0 if reduction == "none" or pos_weight else 4  # bytes of a logit
    heavy = dtype.itemsize > widest
    assert said == ("eager" if any(o.startswith("inplace") for o in more) or (more and heavy) else "torch")


def test_a_plain_call_keeps_what_torchs_operator_keeps():
    x = torch.empty(6, 4, device="meta", requires_grad=True)
    y = torch.empty(6, dtype=torch.int64, device="meta")

    def saved(loss):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss(x, y)
        return sum(t.numel() * t.itemsize for t in kept if t.numel() >= x.numel())

    assert saved(crossent.cross_entropy) == saved(F.cross_entropy)


def test_what_they_do_not_take_is_said():
    x, y = problem((6, 4), torch.float32)
    with pytest.raises(RuntimeError, match=r"impl='torch' cannot run here: torch's own operators do not take z_loss"):
        crossent.cross_entropy(x, y, z_loss=0.1, impl="torch")
    with pytest.raises(RuntimeError, match=r"take weight in torch\.bfloat16 for such logits, not in torch.float32"):
        crossent.cross_entropy(x.bfloat16(), y, torch.ones(4), impl="torch")
    for ask in (
        lambda: crossent.cross_entropy_stats(x, y, impl="torch"),
        lambda: crossent.linear_cross_entropy(x, torch.zeros(5, 4), y % 5, impl="torch"),
    ):
        with pytest.raises(RuntimeError, match=r"impl='torch' cannot run here: .* as a whole"):
            ask()


def test_a_mean_over_many_rows_in_half_precision_is_a_number():
    x = torch.zeros(70_000, 2, dtype=torch.float16, requires_grad=True)
    y = torch.zeros(70_000, dtype=torch.int64)
    loss = crossent.cross_entropy(x, y, impl="torch")
    torch.testing.assert_close(loss.item(), 0.6931, atol=1e-3, rtol=0)
    assert torch.autograd.grad(loss, x)[0].any()


def test_every_derivative_and_transform_is_torchs():
    x, y = problem((6, 4), torch.float64)

    def ours(x):
        return crossent.cross_entropy(x, y, impl="torch")

    def theirs(x):
        return F.cross_entropy(x, y)

    for take in (torch.func.hessian, torch.func.jacfwd, torch.func.grad):
        torch.testing.assert_close(take(ours)(x.detach()), take(theirs)(x.detach()))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), theirs(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_a_compiler_makes_a_few_kernels_of_a_plain_call(impl):
    """Forward and backward are traced, and not hidden in an operator, so that Inductor joins them: at most 8 kernels."""
    from torch._inductor.utils import run_and_get_code

    x, y = problem((64, 50), torch.float32)
    compiled = torch.compile(lambda x: crossent.cross_entropy(x, y, impl=impl), fullgraph=True)

    def step():
        (gradient,) = torch.autograd.grad(compiled(x), x)
        return gradient

    gradient, codes = run_and_get_code(step)
    kernels = sum(code.count("= async_compile.") for code in codes)
    assert 2 <= kernels <= 8
    assert not any("crossent" in line and "torch.ops" in line for code in codes for line in code.splitlines())
    torch.testing.assert_close(gradient, torch.autograd.grad(F.cross_entropy(x, y), x)[0])
