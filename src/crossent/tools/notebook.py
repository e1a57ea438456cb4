"""What a notebook shows: static tables without script, style sheet or link, and below them a page in a frame of its own.

Everything that is not written here is escaped. The frame may run its own script and reach nothing else; where a notebook shows no
frames, the tables remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from crossent.tools.html import element, paragraph
from crossent.tools.table import Table

_TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;margin:1em 0 .4em"
_CAPTION = "caption-side:top;text-align:left;white-space:normal;color:inherit;padding:.2em 0"
_LINE = "border-top:1px solid #888;"  # a border of one colour, whatever colour its cell's text has
_PLAIN, _BOLD = "font-weight:normal;", "font-weight:bold;"

Colours = Mapping[str, str]  # of cells, by the sign that they begin with


def block(parts: list[str]) -> str:
    """Put paragraphs and tables together."""
    return element("div", f"\n{chr(10).join(parts)}\n", style="max-width:60em")


def frame(page: str, height: int) -> str:
    """Show a page in a sandbox."""
    style = f"width:100%;height:{height}px;border:1px solid #8888;border-radius:8px"
    return element("iframe", "", sandbox="allow-scripts", srcdoc=page, style=style, title="crossent", loading="lazy")


def prose(text: str, bold: bool = False) -> str:
    """Write a paragraph."""
    return paragraph(text, style=f"margin:.4em 0{';font-weight:bold' * bold}")


def table_html(table: Table, value: str = "", sums: bool = False, colours: Colours | None = None) -> str:
    """Write a table; its last row may be sums below a line."""
    title = element("b", escape(table.title.replace("  ", ": "))) + f"<br>{escape(value)}" * bool(value)
    head = (_cell("th", table, j, column, _BOLD, "col") for j, column in enumerate(table.columns))
    rows = [element("tr", "".join(head))] if any(table.columns) else []
    for i, row in enumerate(table.rows):
        line = _LINE if i == 0 or (sums and i == len(table.rows) - 1) else ""
        first = _cell("th", table, 0, row[0], line + (_BOLD if (i, 0) in table.marked else _PLAIN), "row")
        others = (_cell("td", table, j, cell, line, colours=colours) for j, cell in enumerate(row[1:], 1))
        rows.append(element("tr", first + "".join(others)))
    content = "\n".join(["", element("caption", title, style=_CAPTION), *rows, ""])
    return element("table", content, style=_TABLE)


def _cell(
    tag: str, table: Table, column: int, text: str, style: str, scope: str = "", colours: Colours | None = None
) -> str:
    side = "left" if column in table.text_columns else "right"
    written = escape(text)
    if text[:1] in (colours or {}):  # around the text alone: a border of the cell would take the colour of its text
        written = element("span", written, style=f"color:{(colours or {})[text[0]]}")
    return element(tag, written, scope=scope, style=f"{style}padding:.15em .7em;text-align:{side}")
