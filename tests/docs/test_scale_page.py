"""docs/scale.md: what it shows of the command is what the command shows."""

import json
import re
import shlex
from pathlib import Path

from benchmark import benchmark
from click.testing import CliRunner

from crossent.tools.cli import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"


def _lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_command_shows_what_the_page_shows():
    (block,) = re.findall(r"```text\n\$ crossent (.*?)\n```", PAGE.read_text(), re.DOTALL)
    command, _, shown = block.partition("\n")
    result = CliRunner(env={"COLUMNS": "100"}).invoke(main, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert _lines(result.output) == _lines(shown)


def test_links_lead_somewhere():
    text = PAGE.read_text()
    heads = {
        re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link[1:] in heads if link.startswith("#") else (PAGE.parent / link.partition("#")[0]).exists(), link


def test_the_page_quotes_the_stored_measurements():
    shards = benchmark("shards")
    results = json.loads((ROOT / "benchmarks/results/shards.json").read_text("utf-8"))
    page = PAGE.read_text("utf-8")
    assert shards.quote(page, {"shards": shards.table(results)}) == page, "write it again: benchmarks/shards.py"
    assert all(row["collectives"]["crossent"] < row["collectives"]["loss_parallel"] for row in results["rows"][:2])
