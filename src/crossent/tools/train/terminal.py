"""The results on the standard output: prose as wide as the terminal, unless that is wider than is pleasant to read."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossent.tools.table import Grid
from crossent.tools.train.output import Output

MOST = 100


def show(output: Output, console: Console | None = None) -> None:
    """Print the notices, the tables and what they show."""
    console = console or Console(highlight=False)
    width = console.width = min(console.width, MOST)
    for notice in output.notices:
        console.print(Text(notice, style="bold"))
    for grid in output.grids:
        console.print(Text(grid.title, style="bold"))
        # A table broken by a narrow terminal can still be read; one cut to fit it has lost its numbers.
        console.width = MOST
        console.print(draw(grid))
        console.width = width
        for note in grid.notes:
            console.print(Text(note, style="dim"))
        console.print()
    for paragraph in output.paragraphs:
        console.print(Text(paragraph))
        console.print()


def draw(grid: Grid) -> Table:
    """Draw a grid; what is marked is bold, and has a star for those who see no bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for j, column in enumerate(grid.columns):
        table.add_column(Text(column), justify="right" if j else "left", no_wrap=True)
    for i, row in enumerate(grid.rows):
        table.add_row(*(_cell(grid, i, j) for j in range(len(row))))
    return table


def _cell(grid: Grid, i: int, j: int) -> Text:
    if (i, j) in grid.marked:
        return Text(grid.rows[i][j] + "*", style="bold")
    # Where a number of the column has a star, the others leave room for one, so that the digits stay in line.
    starred = any((k, j) in grid.marked for k in range(len(grid.rows)))
    return Text(grid.rows[i][j] + " " * starred)
