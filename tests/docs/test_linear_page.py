"""The page ``docs/linear.md``: its code runs as doctests; its stored measurements are held in test_performance_page.py.

Here the calls that it gives for other libraries' are run beside the logits formed at once, what it says about the way a call
takes is tried, and the picture is held to the measurement that it is drawn from.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import crossent
from crossent.losses import head_call, head_ways

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "linear.md").read_text("utf-8")
ORIGINS = {
    page: (DOCS / "migration" / f"{page}.md").read_text("utf-8") for page in ("pytorch", "liger", "cut-cross-entropy")
}
TEXT = " ".join(PAGE.split())


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    pytest.importorskip("matplotlib")
    return importlib.import_module("figures_linear")


def table(head: str, page: str = PAGE) -> list[list[str]]:
    """Read the lines of the table that begins so."""
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- coming from somewhere else ---------------------------------------------------------------------------------------

CALLS = sorted({
    call for head, page in (("| Liger | here |", "liger"), ("| CCE | here |", "cut-cross-entropy"))
    for _, cell in table(head, ORIGINS[page]) for call in re.findall(r"`([^`]+)`", cell)
    if "crossent." in call
})  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_calls_for_other_libraries(call):
    """Each is the same call on logits."""
    h, W, b = torch.randn(40, 8, requires_grad=True), torch.randn(30, 8), torch.randn(30)
    y, c = torch.randint(30, (40,)), torch.rand(30)
    y[5:9] = 0 if "ignore_index=0" in call else -100
    names = {"crossent": crossent, "torch": torch, "h": h, "W": W, "b": b, "c": c, "y": y, "p": torch.rand(40)}
    on_logits = call.replace("linear_cross", "cross").replace("h, W, y, linear_bias=b", "h @ W.T + b, y")
    on_logits = on_logits.replace("h, W, y, shift=1", "h[:-1] @ W.T, y[1:]").replace("h, W, y", "h @ W.T, y")
    assert call.count("linear_cross_entropy") == on_logits.count("cross_entropy") == 1
    assert call != on_logits
    found, expected = eval(call, names), eval(on_logits, names)
    torch.testing.assert_close(found, expected)
    if found.requires_grad:
        seed = torch.rand(found.shape)
        torch.testing.assert_close(*(torch.autograd.grad(x, h, seed.to(x.dtype)) for x in (found, expected)))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", CALLS)
def test_calls_for_other_libraries_give_their_dtype(call, half):
    """Liger and CCE make a loss in float32 of inputs in half precision."""
    h, W, b, c = torch.randn(40, 8).to(half), torch.randn(30, 8).to(half), torch.randn(30).to(half), torch.rand(30)
    names = {"crossent": crossent, "torch": torch, "h": h, "W": W, "b": b, "c": c, "p": torch.rand(40)}
    assert eval(call, names | {"y": torch.randint(30, (40,))}).dtype == torch.float32


def test_calls_are_read_off_the_page():
    assert len(CALLS) == 15


def test_every_option_of_torchs_is_named():
    named = set(
        re.findall(
            r"\w+", " ".join(row[0] for row in table("| `LinearCrossEntropyOptions` | here |", ORIGINS["pytorch"]))
        )
    )
    assert {field.name for field in dataclasses.fields(nn.LinearCrossEntropyOptions)} <= named


# --- which way a call takes -------------------------------------------------------------------------------------------


def test_constants():
    assert head_call.MAX_BYTES == 2**27
    assert head_call.MAX_BYTES == 128 << 20
    for claim in (
        f"N · V is at most {head_ways.FEW:,}",
        "by default 128 MB (2²⁷ bytes)",
    ):
        assert claim in TEXT, claim


def test_reasons_are_those_of_the_table():
    h, W, y = torch.randn(1100, 8), torch.randn(1000, 8), torch.randint(1000, (1100,))
    t = torch.rand(1100, 1000, requires_grad=True)

    def why(*arguments: torch.Tensor, **settings: object) -> str:
        return crossent.linear_plan(*arguments, **settings).why

    found = {why(h[:10], W, y[:10]), why(h, W, t)}
    torch.func.jvp(lambda h: (found.add(why(h, W, y)), h)[1], (h,), (h,))
    with torch.autograd.forward_ad.dual_level():
        found.add(why(torch.autograd.forward_ad.make_dual(h, h), W, y))
    assert why(h, W, y) == ""
    told = {reason for row in table("| `why` | when |") for reason in re.findall("`([^`]+)`", row[0])}
    assert found == told


# --- the picture ------------------------------------------------------------------------------------------------------


def test_picture_is_drawn_and_shown(figures, tmp_path):
    shown = re.findall(r"!\[([^\]]+)\]\(img/([^)]+)\)", PAGE)
    assert [name for _, name in shown] == ["linear.png"]
    assert len(shown[0][0]) > 80
    figures.main(tmp_path)
    drawn, kept = (folder / "linear.png" for folder in (tmp_path, DOCS / "img"))
    assert drawn.read_bytes()[16:24] == kept.read_bytes()[16:24]  # width and height
    assert kept.stat().st_size < 100_000


@pytest.mark.parametrize("backward", [True, False])
def test_named_parts_explain_the_peaks(figures, backward):
    """The bars end where the measurement does, and of torch's eager and ours next to nothing is left unexplained.

    On some processors a matrix product takes memory of its own: of (1024, 768) and (768, 50257) 32 MB with AVX-512.
    """
    (row,) = figures.rows(backward)
    for name in figures.CONTENDERS:
        pieces = figures.parts(row, name)
        total = sum(size for _, size in pieces)
        inputs = row["states"] + row["head"]
        assert total == pytest.approx(inputs * (1 + backward) + row["above"][name], rel=0.03)
        assert {part for part, _ in pieces} <= figures.PARTS.keys()
        if name != "tuned":
            assert pieces[-1][0] == "everything else"
            assert pieces[-1][1] < 0.05 * total + 32


def test_blank_line_ends_each_session():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert block.startswith(">>> ")
        assert block.endswith("\n\n")
