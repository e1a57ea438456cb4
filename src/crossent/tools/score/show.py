"""The report for people and for programs: terminal, Markdown, comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from crossent.tools.printable import printable
from crossent.tools.score.scores import Scores
from crossent.tools.score.tables import heading, report_tables
from crossent.tools.table import Table
from crossent.tools.terminal import draw, print_table, readable


def show(report: Scores, console: Console | None = None) -> None:
    """Print a report in the terminal."""
    show_tables(
        "\n".join([heading(report), *(f"Warning: {each}" for each in report.remarks)]), report_tables(report), console
    )


def show_tables(title: str, tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables below a line or two."""
    console = readable(console)
    console.print(Text(printable(title)))
    for table in tables:
        console.print()
        console.print(Text(table.title, style="bold"))
        if table.rows:
            print_table(table, console, draw)
        for note in table.notes:
            console.print(Text(note, style="dim"))


def markdown(report: Scores) -> str:
    """Write the tables of a report in Markdown."""
    title = f"{report.settings['logits']['name']}: {heading(report)}"
    return markdown_tables(title, report_tables(report), report.remarks)


def markdown_tables(title: str, tables: Sequence[Table], remarks: Sequence[str] = ()) -> str:
    """Write tables in Markdown."""
    lines = [f"**crossent score** {printable(title)}", *(f"> {printable(remark)}" for remark in remarks)]
    for table in tables:
        rule = ["---" if j in table.text_columns else "---:" for j in range(len(table.columns))]
        lines += ["", f"### {table.title}", ""]
        if table.rows:
            lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in (table.columns, rule, *table.rows)]
        lines += ["", *table.notes] if table.notes else []
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    return printable(cell).replace("|", "\\|").replace("\n", " ")


def separated(report: Scores) -> str:
    """Write every number on a line of comma-separated values: the table, the item in it, the measure and its value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "item", "measure", "value"])
    writer.writerows(_lines(report.to_dict()))
    return out.getvalue()


def _no_formula(value: Any) -> Any:
    """Keep a spreadsheet from taking a name for a formula."""
    text = printable(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _lines(document: dict[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    for key, value in document["numbers"].items():
        yield "numbers", "", key, value
    for table in ("classes", "calibration_bins", "worst", "suspected_label_errors"):
        for k, item in enumerate(document[table]):
            for key, value in item.items():
                yield table, k, key, _no_formula(value)
