"""The numbers of ``docs/imbalance.md``, ``docs/multilabel.md`` and ``docs/segmentation.md`` are those that the examples print."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]
APART = 0.05  # what another processor may change, after hundreds of steps

PAGES = {"imbalance": "image_classifier", "multilabel": "multilabel", "segmentation": "segmentation"}


def shares(text: str) -> list[float]:
    """Read shares, which are written with three digits."""
    return [float(number) for number in re.findall(r"\b[01]\.\d{3}\b", text)]


def on_the_page(page: str) -> list[float]:
    """Read the shares that a page says its example prints."""
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return shares(text.partition(f"(../examples/{PAGES[page]}.py)")[2])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_its_example_prints(page, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{PAGES[page]}.py"])
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "examples" / f"{PAGES[page]}.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("step")]
    assert on_the_page(page) == pytest.approx(shares("\n".join(lines)), abs=APART)
