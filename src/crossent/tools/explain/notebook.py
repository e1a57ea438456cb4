"""An explanation in a notebook: the tables of the terminal, and its page below; a class name may hold anything."""

from __future__ import annotations

from crossent.tools.explain import tables
from crossent.tools.explain.page import explanation_page
from crossent.tools.explain.row_numbers import RowNumbers
from crossent.tools.notebook import block, frame, prose, table_html

HEIGHT = 780  # pixels
COLOURS = {tables.UP: "#0a84c1", tables.LITTLE_UP: "#0a84c1", tables.DOWN: "#d5532b", tables.LITTLE_DOWN: "#d5532b"}


def fragment(e: RowNumbers) -> str:
    """Write an explanation as HTML that stands alone: static tables, then the interactive page."""
    parts = [prose(tables.heading(e), bold=True), *map(prose, (tables.legend(e), *e.notes))]
    for loss in e.losses:
        table = tables.loss_table(e, loss)
        value, gradient = table.notes
        parts += [table_html(table, value, sums=True, colours=COLOURS), prose(gradient)]
    if len(e.losses) > 1:
        parts += [table_html(table, colours=COLOURS) for table in tables.comparisons(e)]
    parts += [prose(tables.references(e)), frame(explanation_page(e), HEIGHT)]
    return block(parts)
