"""The page ``docs/performance.md``: calls that run what it says, constants of the kernels; and what all pages quote."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from benchmark import benchmark

import crossent
from crossent.losses import binary, softmax
from crossent.ops.fused import Fused
from crossent.ops.lean import Unreduced

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/performance.md").read_text("utf-8")
QUOTING = ["README.md", "docs/performance.md", "docs/linear.md", "docs/defer.md"]
RESULTS = json.loads((ROOT / "benchmarks/results/results.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def report():
    return benchmark("report")


def table(head: str) -> list[list[str]]:
    """Read the lines of the table that begins so."""
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUOTING)
def test_pages_quote_the_stored_measurements(name, report):
    page = (ROOT / name).read_text("utf-8")
    assert report.quote(page, report.fragments(RESULTS)) == page, "write them again: benchmarks/run.py --from-json"


def test_the_table_holds_the_stored_measurements(report):
    assert (ROOT / "benchmarks/results/table.md").read_text("utf-8") == report.make_markdown(RESULTS)
    assert not RESULTS["partial"]


def test_every_fragment_is_quoted_somewhere(report):
    quoted = re.findall(r"<!-- bench: (\w+) -->", "".join((ROOT / name).read_text("utf-8") for name in QUOTING))
    assert sorted(quoted) == sorted(report.fragments(RESULTS))


def test_a_page_that_asks_for_what_was_not_measured_is_refused(report):
    with pytest.raises(KeyError, match="wind"):
        report.quote("<!-- bench: wind -->\n<!-- end -->", report.fragments(RESULTS))


# --- what runs where --------------------------------------------------------------------------------------------------

native = pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")
CALLS, LAYOUTS = table("| call | forward |"), table("| logits | taken |")
NAMES = {name: getattr(crossent, name) for name in ("cross_entropy", "binary_cross_entropy_with_logits", "Focal")}


def code(cell: str) -> str:
    return re.match("`([^`]+)`", cell)[1]


def shown(prelude: str) -> dict:
    """Run the assignments that the page shows."""
    names = NAMES | {"torch": torch}
    (lines,) = re.findall(rf"((?:    {prelude}.*\n)(?:    .*\n)*)", PAGE)
    exec("\n".join(line.strip() for line in lines.splitlines()), names)
    return names


@pytest.mark.parametrize(("call", "forward", "backward"), CALLS, ids=[code(call) for call, _, _ in CALLS])
def test_calls_run_what_the_page_says(call, forward, backward, monkeypatch):
    launched = set()

    def watch(home, name, word, wrap=staticmethod):
        kernel = getattr(home, name)

        def counted(*a, **k):
            given = kernel(*a, **k)
            if given is not None:
                launched.add(word)
            return given

        monkeypatch.setattr(home, name, wrap(counted))

    for name in (f"{n}cross_entropy_{d}" for n in ("", "binary_") for d in ("forward", "backward", "sum")):
        watch(native.Native, name, name)
    for losses in (softmax, binary):
        watch(losses, "_short", "short way", lambda counted: counted)
    for kind in (Fused, Unreduced):
        watch(kind, "backward", "backward in Python")
    torch._dynamo.reset()
    loss = eval(code(call), shown("x, y = "))
    ran = launched - {"backward in Python"}
    assert any("backward" not in name for name in ran) == (forward == "kernels")
    if loss.requires_grad:
        loss.sum().backward()
    by_short_way = "short way" in launched and "backward in Python" not in launched
    # A sum is formed with its gradient, which the backward in Python may multiply, as another factor was expected.
    sums = any("sum" in name for name in launched) or ("short way" in launched and loss.dim() == 0)
    formed = sums and "create_graph" not in call
    assert (formed or by_short_way or any("_backward" in name for name in launched)) == (backward == "kernels")
    assert {forward, backward} <= {"kernels", "torch operations"}


@pytest.mark.parametrize(("logits", "taken"), LAYOUTS, ids=[code(logits) for logits, _ in LAYOUTS])
def test_layouts_are_taken_as_the_page_says(logits, taken, monkeypatch):
    x = eval(code(logits), {"torch": torch, "z": torch.randn(2, 5, 6, 4)})
    calls = []
    kernel = native._native.softmax_forward
    monkeypatch.setattr(softmax, "_short", lambda given: None)  # which is seen by nobody
    monkeypatch.setattr(native._native, "softmax_forward", lambda *a: (calls.append(a[0]), kernel(*a))[1])
    crossent.cross_entropy(x, torch.zeros(x.shape[:1] + x.shape[2:], dtype=torch.long), reduction="none")
    assert len(calls) == {"as they are": 1, "by a copy": 2}[taken]
    assert calls[0].data_ptr() == x.data_ptr()


def test_the_binary_loss_copies_what_has_gaps(monkeypatch):
    taken = []
    monkeypatch.setattr(binary, "_short", lambda given: None)
    for name in ("binary_sum", "binary_forward"):
        kernel = getattr(native._native, name)
        watched = lambda *a, kernel=kernel: (taken.append(a[0].data_ptr()), kernel(*a))[1]  # noqa: E731
        monkeypatch.setattr(native._native, name, watched)
    z = torch.randn(2, 5, 6, 4)
    for x in (z, z.transpose(2, 3), z.permute(3, 0, 2, 1), z[..., :3], z[..., ::2]):
        taken.clear()
        crossent.binary_cross_entropy_with_logits(x, torch.rand(x.shape))
        assert (taken[-1] == x.data_ptr()) == (x.numel() == z.numel())


# --- constants --------------------------------------------------------------------------------------------------------


def constant(name: str) -> int:
    """Read a constant of the kernels."""
    source = "".join(path.read_text() for path in sorted((ROOT / "csrc").glob("*.[hc]*")))
    (value,) = re.findall(rf"\b{name} = (\d+(?: << \d+)?)[,;]", source)
    return eval(value)


def few_classes(kind: int) -> str:
    """Read up to how many classes rows are taken as tiles in float32: all but plain ones (0), or plain ones (1)."""
    avx512, avx2 = bounds(kind)
    return f"up to {avx512} classes with AVX-512 and {avx2} with AVX2"


def bounds(kind: int) -> tuple[int, int]:
    """Read a bound for float32 of the kernels for AVX-512 and for AVX2."""
    source = (ROOT / "csrc/isa.cpp").read_text()
    avx512, avx2, _ = (int(found[kind]) for found in re.findall(r"#define FEW" + 3 * r" \{(\d+), [^}]*\},?", source))
    return avx512, avx2


def test_the_page_names_the_kernels_constants():
    text = " ".join(PAGE.split())
    lanes, block, rows = constant("LANES"), constant("BLOCK"), constant("ROWS")
    for claim in (
        f"New float32 gradients of at least {constant('STREAMED') >> 20} MB and at least a tenth of the last cache are",
        f"Below {constant('SERIAL'):,} elements, where a row of a softmax loss counts as eight more, one thread does all",
        f"in blocks of {block:,} numbers",
        f"Rows of up to {constant('FEW_CLASSES')} classes are taken {rows} at a time, {lanes} to a vector loop",
        f"and rows of more classes {lanes} at a time",
        f"float32 rows are taken so {few_classes(0)}",
        f"They take float32 rows {few_classes(1)}",
        f"several rows together, {constant('TOGETHER'):,} numbers at a time but at most {lanes} rows",
        f"up to {bounds(2)[1]:,} float32 classes with AVX2 and {bounds(2)[0]:,} with AVX-512",
        f"So the next {lanes} or {rows} pixels are copied",
        f"loops over {lanes} numbers",
        f"{lanes} lanes within a block",
        f"from {native._LARGE >> 20} MB on, in **huge pages** of {constant('PAGE') >> 20} MB",
        f"if it has at most {constant('HOT') >> 20} MB",
    ):
        assert claim in text, claim
    assert constant("EACH_ROW") == 8
    assert "last_cache() / 10" in (ROOT / "csrc/layout.h").read_text()
    assert lanes == 2**5
    assert constant("MOST") == 4
    assert "of the last four that were dropped" in text
    assert native.torch is torch


# --- the benchmarks themselves ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_every_contender_solves_every_problem():
    problems = benchmark("problems")
    for case in problems.CASES:
        case = dataclasses.replace(case, shape=(5, 7, *(3 for _ in case.shape[2:])), channels_last=False)
        torch.manual_seed(0)
        x, (target, options) = problems.logits(case), problems.arguments(case)
        peers = problems.contenders(case, target, options, crossent.choose_implementation(x, target=target))
        del peers["compile"]  # its code is made at the first call, and takes seconds for each
        losses = {name: f.loss(x.detach().clone().requires_grad_()) for name, f in peers.items()}
        for loss in losses.values():
            loss.backward()
            torch.testing.assert_close(loss, losses["eager"], rtol=2e-2, atol=0)
