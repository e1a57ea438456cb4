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
gpu_variants = benchmark("gpu_variants")
kernels = pretended_gpu.kernels
KEPT = {row[:4]: row for row in gpu_static.stored()}

# What a main loop may cost an element of long rows, by the kernel and the dtype. An H200 has 13.8 instructions for each element in
# bfloat16 that is read or written, and in float32 twice that: these stay below what the memory takes. Those of the statistics do
# not, which are asked for more rarely.
MOST = {
    ("forward", "bf16"): 9.0, ("backward", "bf16"): 9.0, ("fused", "bf16"): 18.0, ("statistics", "bf16"): 34.0,
    ("forward", "f32"): 18.0, ("backward", "f32"): 16.0, ("fused", "f32"): 34.0, ("statistics", "f32"): 43.0,
}  # fmt: skip
APART_ON_AMD = {("statistics", "bf16"): 82.0}
MOST_ELSEWHERE = {  # of rows of 1000, of classes that lie apart, and of sigmoid losses
    ("forward", "bf16"): 23.0, ("backward", "bf16"): 16.0, ("fused", "bf16"): 39.0, ("statistics", "bf16"): 48.0,
    ("forward", "f32"): 20.0, ("backward", "f32"): 20.0, ("fused", "f32"): 39.0, ("statistics", "f32"): 51.0,
    ("binary", "bf16"): 54.0, ("binary", "f32"): 67.0,
}  # fmt: skip
SLACK = 0.3  # of an instruction: what another build of the same compiler may differ by


@pytest.mark.parametrize("target", pretended_gpu.TARGETS)
@pytest.mark.parametrize("shape", gpu_static.SHAPES)
def test_no_figure_grows(target, shape):
    rows = list(gpu_static.figures(target, {shape: gpu_static.SHAPES[shape]}))
    assert rows
    for row in rows:
        kept = KEPT[row[:4]]
        assert row.stack == row.spills == 0, row
        assert row.registers <= kept.registers, row
        assert row.narrow <= kept.narrow, row
        assert row.instructions <= kept.instructions + SLACK, row


def test_the_figures_that_are_kept_are_within_bounds():
    long_rows = ("rows of 128256", "rows of 50257")
    assert {row[:4] for row in KEPT.values()} == {
        (kernel, shape, dtype, target)
        for shape in gpu_static.SHAPES
        for kernel in (["binary"] if shape == "elements" else ["forward", "backward", "fused", "statistics"])
        for dtype in gpu_static.DTYPES
        for target in pretended_gpu.TARGETS
    }
    for row in KEPT.values():
        assert row.stack == row.spills == 0, row
        assert row.registers <= (168 if "×" in row.shape else 64), row
        assert row.narrow == 0, f"every access of a main loop is one of 16 bytes: {row}"
        bounds = MOST if row.shape in long_rows else MOST_ELSEWHERE
        if row.target == "gfx942" and row.shape not in long_rows:
            bounds = bounds | APART_ON_AMD
        assert row.instructions <= bounds[row[0], row[2]], row


def test_a_kernel_that_grows_is_found(monkeypatch):
    """A walk that needs more registers, and one that reads a number at a time."""
    usual = gpu_static.elements_a_thread
    monkeypatch.setattr(gpu_static, "elements_a_thread", lambda *args: usual(*args) / 1.2)
    with pytest.raises(AssertionError, match="instructions"):
        test_no_figure_grows("sm_90", "elements")
    monkeypatch.undo()
    arrange = kernels.to.arrange

    def unaligned(*args, **more):
        launch = arrange(*args, **more)
        return launch._replace(tile=launch.tile._replace(CHUNKS=kernels.to.constant(False)))

    monkeypatch.setattr(kernels.to, "arrange", unaligned)
    found = [*gpu_static.figures("sm_90", {"rows of 50257": gpu_static.SHAPES["rows of 50257"]})]
    assert any(row.narrow > KEPT[row[:4]].narrow for row in found)


@pytest.mark.parametrize("target", pretended_gpu.TARGETS)
def test_nothing_is_added_up_by_atomics(target):
    """Whose order would differ from run to run."""
    x, y, u = torch.zeros(4, 1000, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64), torch.ones(4)

    def call():
        kernels.cross_entropy_sum(x, Target(y, CLASSES["weight"]), True, torch.float32, 1.0, sample_weight=u)
        kernels.binary_cross_entropy_sum(x, BinaryTarget(x), 1.0, torch.float32, 1.0)
        kernels.cross_entropy_statistics(x, Target(y))

    for made in pretended_gpu.compiled(target, call).values():
        for kernel in made:
            text = " ".join(pretended_gpu.read(kernel).lines)
            assert not pretended_gpu.re.search(r"\b(ATOM|RED|ATOMG|REDG)\b|_atomic_", text)


def test_the_bits_are_rounded_by_hand_only_where_no_instruction_does_it(monkeypatch):
    monkeypatch.setitem(pretended_gpu.TARGETS, "gfx950", pretended_gpu.GPUTarget("hip", "gfx950", 64))
    for target in pretended_gpu.TARGETS:
        with pretended_gpu.pretended(target):
            tile = kernels.to.arrange(torch.zeros(4, 1000, dtype=torch.bfloat16)).tile
        by_hand = target == "gfx942"
        assert (tile.BITS.value, tile.UNREAD.value) == ((True, 0.0) if by_hand else (False, -torch.inf))


def test_the_page_has_the_figures_that_are_kept():
    page = (ROOT / "docs/gpu-kernels.md").read_text("utf-8")
    assert gpu_static.written(page, list(KEPT.values())) == page, "write it again: make gpu-figures"


# --- what the interpreter accepts and the compiler may refuse ---------------------------------------------------------

C = 1000
CLASSES = {"weight": torch.ones(C), "logit_bias": torch.zeros(C), "class_mask": torch.ones(C, dtype=torch.bool)}
MEMBERS = {
    "smoothed, weighted": {"label_smoothing": 0.1, "weight": CLASSES["weight"]},
    "rows that weigh": {"sample_weight": torch.ones(4), "valid": torch.ones(4, dtype=torch.bool)},
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
    tensors = [settings.pop(each, None) for each in ("weight", "logit_bias", "class_mask", "valid")]
    samples = settings.pop("sample_weight", None)
    if soft:
        settings.pop("margin", None)
    x = torch.zeros(4, C, dtype=torch.bfloat16)
    values = x if soft else torch.zeros(4, dtype=torch.int64)
    described = Target(values, *tensors, Settings.of(**settings))

    def call():
        kernels.cross_entropy_backward(torch.ones(4), x, described, torch.zeros(2, 4), (True, soft))
        kernels.cross_entropy_sum(
            x, described, True, torch.float32, torch.ones(()), False, torch.empty_like(x), samples
        )
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


@pytest.mark.parametrize("target", ["sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("variant", ["persistent", "cluster", "split"])
def test_every_variant_of_the_benchmark_compiles(variant, target):
    """And keeps its numbers in registers. Clusters need a later Triton; the benchmark says so and leaves them out."""
    x, y = torch.zeros(4, 50272, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64)

    def call():
        gpu_variants.VARIANTS[variant](x, y)

    with pretended_gpu.pretended(target):
        missing = gpu_variants.without_clusters()
    if variant == "cluster" and missing is not None:
        with pytest.raises(RuntimeError, match="clusters"):
            pretended_gpu.compiled(target, call, gpu_variants.KERNELS)
        return
    made = pretended_gpu.compiled(target, call, gpu_variants.KERNELS)
    assert {name.split(",")[0] for name in made} == {variant}
    for kernel in (kernel for each in made.values() for kernel in each):
        code = pretended_gpu.read(kernel)
        assert code.stack == code.spills == 0
        assert code.registers <= 80


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
