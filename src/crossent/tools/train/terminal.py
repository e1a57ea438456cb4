"""The results on the standard output: prose as wide as the terminal, but no wider than is pleasant to read."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.text import Text

from crossent.tools.terminal import MOST, draw, print_table, readable
from crossent.tools.train.output import Output


def show(output: Output, console: Console | None = None) -> None:
    """Print the notices, the tables and what they show."""
    console = readable(console)
    for notice in output.notices:
        console.print(Text(notice, style="bold"))
    for table in output.tables:
        console.print(Text(table.title, style="bold"))
        print_table(table, console, partial(draw, show_edge=True), MOST)
        for note in table.notes:
            console.print(Text(note, style="dim"))
        console.print()
    for paragraph in output.paragraphs:
        console.print(Text(paragraph))
        console.print()
