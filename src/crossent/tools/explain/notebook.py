"""An explanation in a notebook: the tables of the terminal in static HTML, without script, style sheet or link.

Everything that is not written here is escaped; a class name may hold anything.
"""

from __future__ import annotations

from html import escape

from crossent.tools.explain import tables
from crossent.tools.explain.row_numbers import RowNumbers
from crossent.tools.html import element, paragraph
from crossent.tools.table import Table

COLOURS = {tables.UP: "#0a84c1", tables.LITTLE_UP: "#0a84c1", tables.DOWN: "#d5532b", tables.LITTLE_DOWN: "#d5532b"}
_TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;margin:1em 0 .4em"
_CAPTION = "caption-side:top;text-align:left;white-space:normal;color:inherit;padding:.2em 0"
_LINE = "border-top:1px solid #888;"  # of one colour, also over a bar
_PLAIN, _BOLD = "font-weight:normal;", "font-weight:bold;"


def fragment(e: RowNumbers) -> str:
    """Write an explanation as HTML that stands alone."""
    parts = [_prose(tables.heading(e), bold=True), *map(_prose, (tables.legend(e), *e.notes))]
    for loss in e.losses:
        table = tables.loss_table(e, loss)
        value, gradient = table.notes
        parts += [_table(table, value, sums=True), _prose(gradient)]
    if len(e.losses) > 1:
        parts.append(_table(tables.comparison(e)))
    parts.append(_prose(tables.references(e)))
    return element("div", f"\n{chr(10).join(parts)}\n", style="max-width:60em")


def _prose(text: str, bold: bool = False) -> str:
    return paragraph(text, style=f"margin:.4em 0{';font-weight:bold' * bold}")


def _table(table: Table, value: str = "", sums: bool = False) -> str:
    title = element("b", escape(table.title.replace("  ", ": "))) + f"<br>{escape(value)}" * bool(value)
    head = (_cell("th", table, j, column, _BOLD, "col") for j, column in enumerate(table.columns))
    rows = [element("tr", "".join(head))]
    for i, row in enumerate(table.rows):
        line = _LINE if i == 0 or (sums and i == len(table.rows) - 1) else ""
        first = _cell("th", table, 0, row[0], line + (_BOLD if (i, 0) in table.marked else _PLAIN), "row")
        others = (_cell("td", table, j, cell, line) for j, cell in enumerate(row[1:], 1))
        rows.append(element("tr", first + "".join(others)))
    content = "\n".join(["", element("caption", title, style=_CAPTION), *rows, ""])
    return element("table", content, style=_TABLE)


def _cell(tag: str, table: Table, column: int, text: str, style: str, scope: str = "") -> str:
    side = "left" if column in table.text_columns else "right"
    written = escape(text)
    if text[:1] in COLOURS:  # the sign alone: the cell may have a line of the colour of its text
        written = element("span", written, style=f"color:{COLOURS[text[0]]}")
    return element(tag, written, scope=scope, style=f"{style}padding:.15em .7em;text-align:{side}")
