"""An explanation in the terminal: prose as wide as that is, tables never narrower than they need to be."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossent.tools.explain import tables
from crossent.tools.explain.row_numbers import RowNumbers
from crossent.tools.table import Grid

MOST = 100
LEAST = 80
COLOURS = {tables.UP: "cyan", tables.LITTLE_UP: "cyan", tables.DOWN: "red", tables.LITTLE_DOWN: "red"}


def text(e: RowNumbers) -> str:
    """Write an explanation in 80 columns, without colour."""
    out = io.StringIO()
    show(e, Console(file=out, width=LEAST, color_system=None, force_terminal=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def show(e: RowNumbers, console: Console) -> None:
    """Print an explanation."""
    width = console.width
    for part in parts(e):
        # A table broken by a narrow terminal can still be read; one cut to fit it has lost its numbers.
        console.width = max(width, LEAST) if isinstance(part, Table) else min(width, MOST)
        console.print(part)
    console.width = width


def parts(e: RowNumbers) -> Iterator[Text | Table]:
    """Show a table for each loss, the losses side by side, and what to compare with."""
    yield Text(tables.heading(e), style="bold")
    for said in (tables.legend(e), *e.notes):
        yield Text(said, style="dim")
    for loss in e.losses:
        grid = tables.loss_table(e, loss)
        value, gradient = grid.notes
        yield Text.assemble("\n", (grid.title, "bold"), "\n", value)
        yield draw(grid, sums=True)
        yield Text(gradient, style="dim")
    if len(e.losses) > 1:
        grid = tables.comparison(e)
        yield Text(f"\n{grid.title}", style="bold")
        yield draw(grid)
    yield Text(f"\n{tables.references(e)}", style="dim")


def draw(grid: Grid, sums: bool = False) -> Table:
    """Draw a grid: what is marked is bold, pushes are coloured, and the last row may be sums below a line."""
    body, last = (grid.rows[:-1], grid.rows[-1]) if sums else (grid.rows, ("",) * len(grid.columns))
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=sums)
    for title, foot in zip(grid.columns, last, strict=True):
        table.add_column(
            Text(title),
            Text(foot),
            justify="left" if title in ("class", "loss", "push") else "right",
            no_wrap=True,
            max_width=14 if title == "class" else None,
            min_width=tables.BAR_WIDTH if title == "push" else None,
        )
    for i, row in enumerate(body):
        table.add_row(*(_cell(cell, (i, j) in grid.marked) for j, cell in enumerate(row)))
    return table


def _cell(cell: str, marked: bool) -> Text:
    return Text(cell, style="bold" if marked else COLOURS.get(cell[:1], ""))
