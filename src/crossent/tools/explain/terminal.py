"""An explanation in the terminal: prose as wide as that is, tables never narrower than they need to be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from crossent.tools.explain import tables
from crossent.tools.explain.row_numbers import RowNumbers
from crossent.tools.table import Table
from crossent.tools.terminal import print_table, readable, widest

NAME = 14  # columns that the name of a class may take
COLOURS = {tables.UP: "cyan", tables.LITTLE_UP: "cyan", tables.DOWN: "red", tables.LITTLE_DOWN: "red"}


def show(e: RowNumbers, console: Console) -> None:
    """Print an explanation."""
    readable(console)
    for part in parts(e):
        if isinstance(part, Text):
            console.print(part)
        else:
            print_table(part.table, console, partial(draw, sums=part.sums))


class TablePart(NamedTuple):
    """A table of an explanation, and whether its last row holds sums."""

    table: Table
    sums: bool = False

    def __rich__(self) -> rich.table.Table:
        return draw(self.table, self.sums)


def parts(e: RowNumbers) -> Iterator[Text | TablePart]:
    """Show a table for each loss, the losses side by side, and what to compare with."""
    yield Text(tables.heading(e), style="bold")
    for said in (tables.legend(e), *e.notes):
        yield Text(said, style="dim")
    for loss in e.losses:
        table = tables.loss_table(e, loss)
        value, gradient = table.notes
        yield Text.assemble("\n", (table.title, "bold"), "\n", value)
        yield TablePart(table, sums=True)
        yield Text(gradient, style="dim")
    if len(e.losses) > 1:
        for table in tables.comparisons(e):
            yield Text(f"\n{table.title}", style="bold")
            yield TablePart(table)
    yield Text(f"\n{tables.references(e)}", style="dim")


def draw(table: Table, sums: bool = False) -> rich.table.Table:
    """Draw a table: what is marked is bold, pushes are coloured, and the last row may be sums below a line."""
    body, last = (table.rows[:-1], table.rows[-1]) if sums else (table.rows, ("",) * len(table.columns))
    drawn = rich.table.Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=sums)
    for j, (title, foot) in enumerate(zip(table.columns, last, strict=True)):
        drawn.add_column(
            Text(title),
            Text(foot),
            justify="left" if j in table.text_columns else "right",
            no_wrap=True,
            max_width=NAME if title == "class" else None,
            min_width=_least(table, j),
        )
    for i, row in enumerate(body):
        drawn.add_row(*(_cell(cell, (i, j) in table.marked) for j, cell in enumerate(row)))
    return drawn


def _least(table: Table, j: int) -> int:
    """Say how wide a column must be: a name may be cut, a number not, and bars have one scale in all tables."""
    title, found = table.columns[j], widest(row[j] for row in (table.columns, *table.rows))
    return {"class": min(found, NAME), "push": tables.BAR_WIDTH}.get(title, found)


def _cell(cell: str, marked: bool) -> Text:
    return Text(cell, style="bold" if marked else COLOURS.get(cell[:1], ""))
