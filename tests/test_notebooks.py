"""The notebooks of examples/ run in a real kernel, say what their words say, and are kept small with what they print."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts" / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(book: Any) -> list[str]:
    """Take what each cell of code prints, as text."""
    found = []
    for cell in book.cells:
        if cell.cell_type == "code":
            outputs = (o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)
            found.append("\n".join(outputs))
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+|\d+", text)]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_what_it_prints_and_small(name):
    path = EXAMPLES / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < 150_000
    assert book == script().tidy(nbformat.read(path, as_version=4))
    # what a cell shows may be HTML alone, which is not kept; most print something
    assert sum(map(bool, printed(book))) >= len(printed(book)) - 1
    assert f"[{name}.ipynb]({name}.ipynb)" in (EXAMPLES / "README.md").read_text("utf-8")
    for cell in book.cells:
        for target in re.findall(r"\]\(([^)#]+)", cell.source) if cell.cell_type == "markdown" else ():
            assert (EXAMPLES / target).exists(), target


def test_what_a_loss_does():
    book = script().run(EXAMPLES / "what_a_loss_does.ipynb")
    assert "text/html" in book.cells[2].outputs[0].data
    _, trained, report, picture, temperature, check = printed(book)
    good, flat = (numbers(line)[-1] for line in trained.strip().splitlines())
    assert good > 80 > 40 > flat
    assert "cross entropy" in report
    assert "Figure" in picture
    t, (before, after) = numbers(temperature)[0], numbers(temperature.splitlines()[1])
    assert t > 1
    assert after < before
    assert "CE127" in check


def test_a_head_without_logits():
    losses, plan, memory, shifted, deferred = printed(script().run(EXAMPLES / "a_head_without_logits.ipynb"))
    first, second = numbers(losses)[:2]
    assert first == pytest.approx(second, abs=2e-6)
    assert numbers(losses)[2] < 10
    assert "e-0" in losses.splitlines()[1]
    assert plan.startswith("16 blocks of 64 rows")
    if sys.platform == "linux":
        usual, blocks = map(float, re.findall(r"(\d+) MB", memory))
        assert blocks < usual / 4
    assert numbers(shifted)[0] == pytest.approx(numbers(shifted)[1], abs=2e-6)
    assert numbers(deferred)[0] == pytest.approx(numbers(deferred)[1], abs=2e-6)
    assert "logits formed 0 times" in deferred
