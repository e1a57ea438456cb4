"""The page ``docs/gpu.md``: the counts that it quotes, and what they promise; and the figures of ``docs/gpu-kernels.md``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark import benchmark

ROOT = Path(__file__).parents[2]
COUNTS = json.loads((ROOT / "benchmarks/results/counts.json").read_text("utf-8"))
FIGURES = json.loads((ROOT / "benchmarks/results/gpu_static.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def counts():
    return benchmark("counts")


def test_the_page_quotes_the_counts(counts):
    page = (ROOT / "docs/gpu.md").read_text("utf-8")
    quoted = page.partition("<!-- counts -->")[2].partition("<!-- end -->")[0].strip()
    assert quoted == counts.table(COUNTS["rows"])
    assert f"{COUNTS['shape'][0]}, {COUNTS['shape'][1]}" in page


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nobody_is_made_worse(counts, dtype):
    import torch

    members = counts.members()
    torchs, plain, *family = COUNTS["rows"]
    assert plain[dtype]["peak"] <= 1.1 * torchs[dtype]["peak"]
    assert plain[dtype]["bytes"] <= 1.1 * torchs[dtype]["bytes"]
    family = [row for row in family if not row["member"].startswith("torch")]
    assert len(family) > 20
    for row in family:
        assert row[dtype]["peak"] <= members[row["member"]].bound(getattr(torch, dtype)), row["member"]
    for row in family[:4]:  # torch's own arguments, which torch operations take in no more memory
        assert row[dtype]["peak"] <= 1.1 * torchs[dtype]["peak"], row["member"]


def make_smaller(counts, monkeypatch, num_rows: int, classes: int) -> None:
    """Let calls be small, in as many blocks as a large one has."""
    from crossent.impl.eager import blocks

    monkeypatch.setattr(blocks, "_LAUNCHED", num_rows * classes * blocks._LAUNCHED // (counts.N * counts.C))
    monkeypatch.setattr(counts, "N", num_rows), monkeypatch.setattr(counts, "C", classes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_no_member_takes_more_than_the_page_says(counts, dtype, monkeypatch):
    import torch

    make_smaller(counts, monkeypatch, 64, 1024)
    kind = getattr(torch, dtype)
    for name, member in counts.members().items():
        if "torch" not in name:
            assert counts.bytes_at_once(member.step(kind)) <= member.bound(kind) + 0.05, name  # numbers of rows


def test_a_count_is_what_is_counted(counts, monkeypatch):
    """On a small call, in as many blocks: the same launches and bytes an element as in the file, which is of a large one."""
    import torch

    make_smaller(counts, monkeypatch, 64, 4096)
    members = counts.members()
    assert [*members] == [row["member"] for row in COUNTS["rows"]]
    for at in (0, 2, 6, 13):  # torch, plain, weights of rows, a penalty
        member, stored = members[COUNTS["rows"][at]["member"]], COUNTS["rows"][at]["float32"]
        measured = counts.measure(member, torch.float32)
        assert measured["launches"] == pytest.approx(stored["launches"], rel=0.02)
        assert measured["bytes"] == pytest.approx(stored["bytes"], rel=0.05)  # rows are half as long here
        assert measured["peak"] == pytest.approx(stored["peak"], rel=0.05)


def test_the_figures_stand_on_a_page_of_their_own():
    """What `make test-gpu-static` holds to the times too, where Triton is installed."""
    page = (ROOT / "docs/gpu-kernels.md").read_text("utf-8")
    table = page.partition("<!-- gpu: figures -->")[2].partition("<!-- end -->")[0].strip().splitlines()[2:]
    written = [[cell.strip() for cell in line.strip("|").split("|")][:7] for line in table]
    names = ("kernel", "shape", "dtype", "target", "registers", "stack")
    assert written == [[*(str(row[name]) for name in names), f"{row['instructions']:.1f}"] for row in FIGURES]
    typed = (ROOT / "docs/gpu.md").read_text("utf-8")
    assert "gpu: figures" not in typed
    assert "(gpu-kernels.md)" in typed
