"""The report for people and for programs: terminal, Markdown, comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossent.tools.score.scores import Scores
from crossent.tools.score.tables import Grid, heading, report_tables

LEAST, MOST = (
    80,
    100,
)  # columns; a table broken by a narrow terminal can still be read, one cut to fit it has lost its numbers


def show(report: Scores, console: Console | None = None) -> None:
    """Print a report in the terminal."""
    console = console or Console(highlight=False)
    console.width = min(console.width, MOST)
    console.print(Text(heading(report)))
    for grid in report_tables(report):
        console.print()
        console.print(Text(grid.title, style="bold"))
        if grid.rows:
            width, console.width = console.width, max(console.width, LEAST)
            console.print(_draw(grid))
            console.width = width
        for note in grid.notes:
            console.print(Text(note, style="dim"))


def text(report: Scores) -> str:
    """Write a report as it stands in a terminal of 80 columns without colour."""
    out = io.StringIO()
    show(report, Console(file=out, width=80, color_system=None, highlight=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _draw(grid: Grid) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), show_header=any(grid.columns)
    )
    for j, column in enumerate(grid.columns):
        left = j in grid.text
        table.add_column(Text(column), justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table


def markdown(report: Scores) -> str:
    """Write the tables of a report in Markdown."""
    lines = [f"**crossent score** {report.settings['logits']['name']}: {heading(report)}"]
    lines += [f"> {remark}" for remark in report.remarks]
    for grid in report_tables(report):
        rule = ["---" if j in grid.text else "---:" for j in range(len(grid.columns))]
        lines += ["", f"### {grid.title}", ""]
        if grid.rows:
            lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in (grid.columns, rule, *grid.rows)]
        lines += ["", *grid.notes] if grid.notes else []
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def separated(report: Scores) -> str:
    """Write every number on a line of comma-separated values: the table, the item in it, the measure and its value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "item", "measure", "value"])
    writer.writerows(_lines(report.to_dict()))
    return out.getvalue()


def _lines(document: dict[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    for key, value in document["numbers"].items():
        yield "numbers", "", key, value
    for table in ("classes", "calibration_bins", "worst", "suspected_label_errors"):
        for k, item in enumerate(document[table]):
            for key, value in item.items():
                yield table, k, key, value
