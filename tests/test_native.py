"""The compiled kernels: every instruction set, which implementation runs when, and a package without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import crossent

native = pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")
_native = native._native

HERE = Path(__file__).parent


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("isa", _native.isas())
def test_every_instruction_set_keeps_the_laws(isa):
    laws = ["tests/test_laws.py", "tests/test_properties.py", "-k", "native and not billion"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *laws]
    environment = os.environ | {"CROSSENT_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        python("from crossent.impl import native; print(native._native.isa())", CROSSENT_ISA=isa).stdout.strip() == isa
    )


def test_an_unknown_instruction_set_is_refused():
    done = python("import crossent; crossent.implementations()", CROSSENT_ISA="mmx")
    assert "offer the instruction sets" in done.stderr
    assert "not mmx" in done.stderr


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
        kernel = getattr(native, name)

        def counted(*args):
            counts[name] = counts.get(name, 0) + 1
            return kernel(*args)

        monkeypatch.setattr(native, name, counted)

    for loss in ("cross_entropy", "binary_cross_entropy"):
        count(f"{loss}_forward"), count(f"{loss}_backward")
    count("small_cross_entropy")
    return counts


X, Y = torch.linspace(-2, 2, 12).view(4, 3), torch.tensor([0, 2, -100, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_calls_run_the_kernels(dtype, launched):
    assert crossent.choose_implementation(X.to(dtype)) == "native"
    x = X.clone().to(dtype).requires_grad_()
    crossent.cross_entropy(x, Y, label_smoothing=0.1).backward()
    crossent.cross_entropy(x, x.detach().softmax(1)).backward()
    crossent.cross_entropy(x, Y, reduction="none").sum().backward()
    crossent.binary_cross_entropy_with_logits(x, x.detach().sigmoid()).backward()
    small = 2 if dtype.itemsize >= 4 else 0  # loss and gradient at once
    assert launched == ({"small_cross_entropy": small} if small else {}) | {
        "cross_entropy_forward": 3 - small,
        "cross_entropy_backward": 3 - small,
        "binary_cross_entropy_forward": 1,
        "binary_cross_entropy_backward": 1,
    }


def test_what_is_not_small_runs_forward_and_backward(launched):
    x = torch.randn(200, 100, requires_grad=True)
    crossent.cross_entropy(x, torch.randint(100, (200,))).backward()
    assert launched == {"cross_entropy_forward": 1, "cross_entropy_backward": 1}
    with torch.no_grad():
        crossent.cross_entropy(x[:5], torch.randint(100, (5,)))
    assert launched.pop("small_cross_entropy") == 1


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
    once = {"small_cross_entropy": 1, "cross_entropy_forward": 1}
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
    assert native.kind_of(meta, Y, None, -100) == 0


def test_strides_that_do_not_collapse_are_copied():
    x = torch.randn(2, 5, 8, 6)[..., ::2, :3].requires_grad_()
    y = torch.randint(5, (2, 4, 3))
    ours, theirs = (f(x, y) for f in (crossent.cross_entropy, torch.nn.functional.cross_entropy))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)))
