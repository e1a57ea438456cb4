"""``benchmarks/gpu.py`` runs from end to end at small sizes, in Triton's interpreter."""

import json

import pytest
from benchmark import benchmark
from interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="it needs a GPU, or Triton's interpreter")


def test_it_checks_times_and_writes(tmp_path):
    gpu = benchmark("gpu")
    arguments = ["--toy", "--rounds", "2", "--out", str(tmp_path), "--contenders", "torch", "crossent"]
    rows = gpu.main(arguments)
    measured = {(row.case, row.dtype, row.contender, row.part) for row in rows}
    for case in gpu.TOYS[0]:
        for dtype in gpu.DTYPES:
            parts = {(case, dtype, "crossent", part) for part in ("forward", "backward", "both")}
            assert parts <= measured
            assert (case, dtype, "copy", "both") in measured
    assert ("head", "bfloat16", "crossent", "both") in measured
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == len(rows)
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == len(rows) + 2


def test_a_wrong_kernel_is_found_before_anything_is_timed(tmp_path, monkeypatch):
    gpu = benchmark("gpu")
    right = gpu.crossent.cross_entropy
    monkeypatch.setattr(gpu.crossent, "cross_entropy", lambda *a, **k: right(*a, **k) * 1.0001)
    with pytest.raises(AssertionError, match="rows"):
        gpu.main(["--toy", "--out", str(tmp_path)])
