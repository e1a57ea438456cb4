"""What the tools share in a terminal: its width, text for where there is none, and how a table is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from crossent.tools.printable import printable, writable
from crossent.tools.table import Table

LEAST, MOST = 80, 100  # columns


def readable(console: Console | None = None) -> Console:
    """Give a console no wider than is pleasant to read."""
    console = console or Console(highlight=False)
    console.width = min(console.width, MOST)
    return console


def plain_text(show: Callable[[Console], None]) -> str:
    """Write what is shown as it stands in a terminal of 80 columns without colour."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=LEAST,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
        legacy_windows=False,
    )
    show(console)
    return writable("\n".join(line.rstrip() for line in out.getvalue().splitlines()))


def print_table(drawn: rich.table.Table, console: Console, least: int = LEAST) -> None:
    """Print a table: one broken by a narrow terminal can still be read, one cut to fit it has lost its numbers."""
    width, console.width = console.width, max(console.width, least)
    console.print(drawn)
    console.width = width


def draw(table: Table, show_edge: bool = False) -> rich.table.Table:
    """Draw a table; what is marked is bold, and has a star for those who see no bold."""
    drawn = rich.table.Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=show_edge,
        padding=(0, 1, 0, 0),
        show_header=any(table.columns),
    )
    for j, column in enumerate(table.columns):
        left = j in table.text_columns
        drawn.add_column(
            Text(printable(column)), justify="left" if left else "right", no_wrap=not left, overflow="fold"
        )
    for i, row in enumerate(table.rows):
        drawn.add_row(*(_cell(table, i, j) for j in range(len(row))))
    return drawn


def _cell(table: Table, i: int, j: int) -> Text:
    cell = printable(table.rows[i][j])
    if (i, j) in table.marked:
        return Text(cell + "*", style="bold")
    # Where a number of the column has a star, the others leave room for one, so that the digits stay in line.
    starred = any((k, j) in table.marked for k in range(len(table.rows)))
    return Text(cell + " " * starred)
