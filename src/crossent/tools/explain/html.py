"""An explanation in a notebook: the tables of the terminal in static HTML, without script, style sheet or link.

Everything that is not written here is escaped; a class name may hold anything.
"""

from __future__ import annotations

from html import escape

from crossent.tools.explain import tables
from crossent.tools.explain.row_numbers import RowNumbers
from crossent.tools.table import Grid

COLOURS = {tables.UP: "#0a84c1", tables.LITTLE_UP: "#0a84c1", tables.DOWN: "#d5532b", tables.LITTLE_DOWN: "#d5532b"}
_TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;margin:1em 0 .4em"
_CAPTION = "caption-side:top;text-align:left;white-space:normal;color:inherit;padding:.2em 0"
_LINE = "border-top:1px solid #888;"  # of one colour, also over a bar
_PLAIN, _BOLD = "font-weight:normal;", "font-weight:bold;"


def page(e: RowNumbers) -> str:
    """Write an explanation as HTML that stands alone."""
    parts = [_said(tables.heading(e), bold=True), *map(_said, (tables.legend(e), *e.notes))]
    for loss in e.losses:
        grid = tables.loss_table(e, loss)
        value, gradient = grid.notes
        parts += [_table(grid, value, sums=True), _said(gradient)]
    if len(e.losses) > 1:
        parts.append(_table(tables.comparison(e)))
    parts.append(_said(tables.references(e)))
    return f'<div style="max-width:60em">\n{chr(10).join(parts)}\n</div>'


def _said(text: str, bold: bool = False) -> str:
    return f'<p style="margin:.4em 0{";font-weight:bold" * bold}">{escape(text)}</p>'


def _table(grid: Grid, value: str = "", sums: bool = False) -> str:
    caption = f"<b>{escape(grid.title.replace('  ', ': '))}</b>" + f"<br>{escape(value)}" * bool(value)
    head = "".join(_cell("th", column, column, _BOLD, "col") for column in grid.columns)
    rows = [f"<tr>{head}</tr>"]
    for i, row in enumerate(grid.rows):
        line = _LINE if i == 0 or (sums and i == len(grid.rows) - 1) else ""
        first = _cell("th", grid.columns[0], row[0], line + (_BOLD if (i, 0) in grid.marked else _PLAIN), "row")
        others = (_cell("td", *cell, line) for cell in zip(grid.columns[1:], row[1:], strict=True))
        rows.append(f"<tr>{first}{''.join(others)}</tr>")
    return "\n".join(
        [f'<table style="{_TABLE}">', f'<caption style="{_CAPTION}">{caption}</caption>', *rows, "</table>"]
    )


def _cell(tag: str, column: str, text: str, style: str = "", scope: str = "") -> str:
    side = "left" if column in ("class", "loss", "push") else "right"
    written = escape(text)
    if text[:1] in COLOURS:  # the sign alone: the cell may have a line of the colour of its text
        written = f'<span style="color:{COLOURS[text[0]]}">{written}</span>'
    scope = f' scope="{scope}"' if scope else ""
    return f'<{tag}{scope} style="{style}padding:.15em .7em;text-align:{side}">{written}</{tag}>'
