"""The GPU kernels compiled for GPUs that are not there: what they are made of does not grow, and every member compiles.

They run where Triton is installed and its interpreter is off: ``make test-gpu-static``.
"""

from pathlib import Path

import pytest
import torch
from benchmark import benchmark
from interpreter import INTERPRETED
from torch._subclasses.fake_tensor import FakeTensorMode

import crossent
from crossent import impl
from crossent.core.settings import Settings
from crossent.core.target import BinaryTarget, Target

if INTERPRETED or crossent.implementations()["triton"] is not None:
    pytest.skip("needs Triton, with its interpreter off", allow_module_level=True)

ROOT = Path(__file__).parents[2]
pretended_gpu = benchmark("pretended_gpu")
gpu_static = benchmark("gpu_static")
kernels = pretended_gpu.kernels
KEPT = {row[:4]: row for row in gpu_static.stored()}

# What a main loop may cost an element in bfloat16. A GPU has 13.8 instructions for each element that is read (an H200, in
# float32 twice that), so that these stay below what the memory takes.
MOST = {"forward": 9.0, "backward": 9.0, "fused": 18.0}
SLACK = 0.3  # of an instruction: what another build of the same compiler may differ by


@pytest.mark.parametrize("target", pretended_gpu.TARGETS)
@pytest.mark.parametrize("shape", gpu_static.SHAPES)
def test_no_figure_grows(target, shape):
    rows = list(gpu_static.figures(target, {shape: gpu_static.SHAPES[shape]}))
    assert rows
    for row in rows:
        kept = KEPT[row[:4]]
        assert row.stack == row.spills == 0, row
        assert row.registers <= (168 if "×" in shape else 64), row
        assert row.registers <= kept.registers, row
        assert row.narrow <= kept.narrow, row
        assert row.instructions <= kept.instructions + SLACK, row


def test_the_figures_that_are_kept_are_within_bounds():
    long_rows = [
        row for row in KEPT.values() if row.shape in ("rows of 128256", "rows of 50257") and row.target != "gfx942"
    ]
    assert len(long_rows) == 3 * 2 * 2 * 3
    for row in long_rows:
        assert row.narrow == 0, "every access of a main loop is one of 16 bytes"
        if row.dtype == "bf16":
            assert row.instructions <= MOST[row.kernel], row


def test_the_page_has_the_figures_that_are_kept():
    page = (ROOT / "docs/gpu-kernels.md").read_text("utf-8")
    assert gpu_static.written(page, list(KEPT.values())) == page, "write it again: make gpu-figures"


# --- what the interpreter accepts and the compiler may refuse ---------------------------------------------------------

C = 1000
CLASSES = {"weight": torch.ones(C), "logit_bias": torch.zeros(C), "class_mask": torch.ones(C, dtype=torch.bool)}
MEMBERS = {
    "smoothed, weighted": {"label_smoothing": 0.1, "weight": CLASSES["weight"]},
    "z-loss, margin, temperature": {"z_loss": 1e-4, "margin": 0.1, "temperature": 2.0},
    "all": {
        "label_smoothing": 0.1, "softcap": 30.0, "temperature": 2.0, "z_loss": 1e-4, "penalty": crossent.Focal(1.5), **CLASSES,
    },
    **{type(p).__name__: {"penalty": p} for p in (crossent.Poly1(), crossent.GCE(), crossent.SCE(), crossent.Taylor())},
}  # fmt: skip


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("name", "target"), [*((name, "sm_90") for name in MEMBERS), ("all", "gfx942"), ("smoothed, weighted", "gfx942")]
)
def test_every_member_compiles(name, soft, target):
    settings = dict(MEMBERS[name])
    tensors = [settings.pop(each, None) for each in ("weight", "logit_bias", "class_mask")]
    if soft:
        settings.pop("margin", None)
    x = torch.zeros(4, C, dtype=torch.bfloat16)
    values = x if soft else torch.zeros(4, dtype=torch.int64)
    described = Target(values, *tensors, None, Settings.of(**settings))

    def call():
        kernels.cross_entropy_backward(torch.ones(4), x, described, torch.zeros(2, 4), (True, soft))
        kernels.cross_entropy_sum(x, described, True, torch.float32, torch.ones(()), False, torch.empty_like(x))
        kernels.cross_entropy_statistics(x, described)

    made = pretended_gpu.compiled(target, call)
    assert len(made["backward"]) == len(made["fused"]) == 1
    for kernel in (*made["backward"], *made["fused"]):
        assert pretended_gpu.read(kernel).stack == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_every_dtype_compiles(dtype):
    x, y = torch.zeros(4, C, dtype=dtype), torch.zeros(4, dtype=torch.int64)

    def call():
        kernels.cross_entropy_sum(x, Target(y), True, dtype, 1.0)
        kernels.binary_cross_entropy_backward(torch.ones(()), x, BinaryTarget(x, CLASSES["weight"], x), (True, True))

    made = pretended_gpu.compiled("sm_90", call)
    assert len(made["fused"]) == len(made["binary"]) == 1


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_logits_on_a_gpu_take_these_kernels():
    with FakeTensorMode():
        x, y = torch.empty(4, 7, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        assert crossent.choose_implementation(x, target=y) == "triton"
        assert crossent.choose_implementation(x.bfloat16(), target=y, penalty=crossent.Focal()) == "triton"
        assert crossent.choose_implementation(x, target=x, loss="binary_cross_entropy_with_logits") == "triton"
        assert crossent.choose_implementation(x, target=y, logit_bias=x) == "eager"
    assert crossent.choose_implementation(torch.empty(4, 7)) != "triton"
    with pytest.raises(RuntimeError, match="run on a GPU, and the logits are on cpu"):
        crossent.choose_implementation(torch.empty(4, 7), "triton")


def test_a_call_without_a_name_launches_them(monkeypatch):
    """Tensors of the CPU stand for those of a GPU here, whose kernels the native ones then leave alone."""
    monkeypatch.setattr(impl, "_LOADED", {k: v for k, v in impl._LOADED.items() if k != "native"})
    y = torch.zeros(4, dtype=torch.int64)

    def mean(dtype):
        crossent.cross_entropy(torch.zeros(4, 300, dtype=dtype, requires_grad=True), y).backward()

    def rows():
        crossent.cross_entropy(torch.zeros(4, 300, requires_grad=True), y, reduction="none").sum().backward()

    def made(step, *arguments):
        found = pretended_gpu.compiled("sm_90", lambda: step(*arguments))
        return {name: len(kernels) for name, kernels in found.items() if kernels}

    assert made(mean, torch.float32) == {"fused": 1}
    assert made(mean, torch.bfloat16) == {
        "fused": 2
    }  # backward forms it anew for a factor other than 1, which it reads
    assert made(rows) == {"forward": 1, "backward": 1}
