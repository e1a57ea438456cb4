"""``benchmarks/gpu.py`` runs from end to end at small sizes, in Triton's interpreter."""

import json
import math

import pytest
import torch
from benchmark import benchmark
from interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="it needs a GPU, or Triton's interpreter")


def test_it_checks_times_and_writes(tmp_path):
    gpu = benchmark("gpu")
    arguments = ["--toy", "--rounds", "1", "--out", str(tmp_path), "--contenders", "torch", "crossent"]
    rows = gpu.main(arguments)
    measured = {(row.case, row.dtype, row.contender, row.part) for row in rows}
    for case in gpu.TOYS[0] | gpu.TOYS[1]:
        for dtype in gpu.DTYPES:
            parts = {(case, dtype, "crossent", part) for part in ("forward", "backward", "both")}
            assert parts <= measured
            assert (case, dtype, "copy", "both") in measured
    assert ("head", "bfloat16", "crossent", "both") in measured
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert len(kept["rows"]) == len(rows)
    assert not any(row.contender.startswith(gpu.VARIANT) for row in rows), "nobody asked for them"
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == len(rows) + 2


def test_a_wrong_kernel_is_found_before_anything_is_timed(tmp_path, monkeypatch):
    gpu = benchmark("gpu")
    right = gpu.crossent.cross_entropy
    monkeypatch.setattr(gpu.crossent, "cross_entropy", lambda *a, **k: right(*a, **k) * 1.0001)
    with pytest.raises(AssertionError, match="rows"):
        gpu.main(["--toy", "--out", str(tmp_path)])


def test_each_variant_is_held_to_float64_and_timed():
    """A row of 1600 classes goes to several programs."""
    gpu = benchmark("gpu")
    machine = gpu.Machine(1)
    rows = [*gpu.time_losses(machine, gpu.TOYS[1], ["variants"])]
    timed = {(row.dtype, row.contender) for row in rows}
    assert {(dtype, gpu.VARIANT + name) for dtype in gpu.DTYPES for name in gpu.VARIANTS} < timed
    assert not machine.left_out
    assert [line.split(":")[0] for line in gpu.fastest(rows)] == [f"few rows, {dtype}" for dtype in gpu.DTYPES]


def test_a_variant_that_cannot_run_is_left_out_and_said():
    gpu = benchmark("gpu")
    machine = gpu.Machine(1)
    x, y = gpu.problem((2, 9), torch.float32, machine.device)
    assert not gpu.variants(machine, "short", "float32", x, y, ["variant: cluster", "variant: split"])
    reasons = ("cluster: loads are of 16 bytes", "split: rows of 9 classes are too short")
    assert len(machine.left_out) == len(reasons)
    for line, reason in zip(machine.left_out, reasons, strict=True):
        assert line.startswith(f"short, float32, variant: {reason}")


def test_a_variant_that_is_wrong_is_not_timed(monkeypatch):
    gpu = benchmark("gpu")
    right = gpu.VARIANTS["split"]
    monkeypatch.setitem(gpu.VARIANTS, "split", lambda x, y: (right(x, y)[0] * 1.0001, right(x, y)[1]))
    with pytest.raises(AssertionError, match="few rows, split"):
        [*gpu.time_losses(gpu.Machine(1), gpu.TOYS[1], ["variant: split"])]


@pytest.mark.parametrize("top", [0, 1600])
def test_rows_in_parts_keep_the_digits_of_a_confident_row(top):
    """The rest of the row is the sum of what all parts have beside the largest logit of all. The second row begins anywhere."""
    variants = benchmark("gpu_variants")
    x = torch.zeros(2, 1601)
    x[:, top] = 40.0
    loss, gradient = variants.split(x, torch.tensor([top, top]))
    exact = math.log1p(1600 * math.exp(-40))
    assert loss.item() == pytest.approx(exact, rel=1e-6)
    assert gradient[:, top].tolist() == pytest.approx([math.expm1(-exact) / 2] * 2, rel=1e-6)
    assert gradient.sum(1).abs().max() < 1e-6 * exact
