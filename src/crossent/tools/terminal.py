"""What the tools share in a terminal: its width, text for where there is none, and how a table is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import rich.table
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
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


def print_table(
    table: Table, console: Console, drawing: Callable[[Table], rich.table.Table], least: int = LEAST
) -> None:
    """Print a table. In a terminal that is too narrow for it, columns go on below, each time behind the first.

    A table of words is broken into lines, but a number never: cut, it would be another number.
    """
    if console.width >= least:
        console.print(drawing(table))
        return
    for part in side_by_side(table, console, drawing):
        console.print(drawing(part))


def side_by_side(table: Table, console: Console, drawing: Callable[[Table], rich.table.Table]) -> Iterator[Table]:
    """Divide the columns of a table into as few tables as fit into a width, all with its first column."""
    taken: list[int] = []
    for j in range(1, len(table.columns)):
        if taken and not _fits(_columns(table, [0, *taken, j]), console, drawing):
            yield _columns(table, [0, *taken])
            taken = []
        taken.append(j)
    yield _columns(table, [0, *taken])


def _columns(table: Table, chosen: list[int]) -> Table:
    """Take some columns of a table."""
    at = {column: place for place, column in enumerate(chosen)}
    return replace(
        table,
        columns=tuple(table.columns[j] for j in chosen),
        rows=[tuple(row[j] for j in chosen) for row in table.rows],
        marked=frozenset((i, at[j]) for i, j in table.marked if j in at),
        text_columns=tuple(at[j] for j in table.text_columns if j in at),
    )


def _fits(table: Table, console: Console, drawing: Callable[[Table], rich.table.Table]) -> bool:
    """Whether a table can be drawn without a cut number, or a word that is broken."""
    endless = console.options.update(width=10_000)
    return Measurement.get(console, endless, drawing(table)).minimum <= console.width


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
        least = None if left else widest(printable(row[j]) for row in (table.columns, *table.rows))
        drawn.add_column(
            Text(printable(column)),
            justify="left" if left else "right",
            no_wrap=not left,
            overflow="fold",
            min_width=least,
        )
    for i, row in enumerate(table.rows):
        drawn.add_row(*(_cell(table, i, j) for j in range(len(row))))
    return drawn


def widest(cells: Iterable[str]) -> int:
    """Count the columns of a terminal that the widest cell takes."""
    return max(map(cell_len, cells), default=0)


def _cell(table: Table, i: int, j: int) -> Text:
    cell = printable(table.rows[i][j])
    if (i, j) in table.marked:
        return Text(cell + "*", style="bold")
    # Where a number of the column has a star, the others leave room for one, so that the digits stay in line.
    starred = any((k, j) in table.marked for k in range(len(table.rows)))
    return Text(cell + " " * starred)
