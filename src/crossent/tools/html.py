"""Parts of HTML pages. Everything that is written as text is escaped; ``page`` puts the parts together."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from crossent.tools.table import Table


def element(tag: str, content: str, **attributes: str) -> str:
    """Write an element around HTML; attributes that are empty are left out, except ``alt``.

    ``class_`` is ``class``, and any other ``_`` is ``-``.

    >>> element("p", "<b>x</b> &lt; 1", class_="note", style="", data_row="2")
    '<p class="note" data-row="2"><b>x</b> &lt; 1</p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value or name == "alt"
    )
    return f"<{tag}{written}>{content}</{tag}>"


def heading(text: str, level: int = 2) -> str:
    """Write a heading."""
    return element(f"h{level}", escape(text))


def paragraph(text: str, class_: str = "", style: str = "") -> str:
    """Write a paragraph."""
    return element("p", escape(text), class_=class_, style=style)


def preformatted(text: str) -> str:
    """Write a text with its own lines."""
    return element("pre", escape(text))


def definition_list(pairs: dict[str, str]) -> str:
    """List terms with what they are."""
    return element("dl", "".join(element("dt", escape(k)) + element("dd", escape(v)) for k, v in pairs.items()))


def table(
    content: Table, sortable: bool = False, first_row: int | None = None, pictures: Sequence[str] | None = None
) -> str:
    """Write a table with its notes; what is marked is bold and has a star.

    Args:
        content: the table.
        sortable: whether a script may let its columns be sorted.
        first_row: the number of its first row, where a script needs to know the rows by number.
        pictures: HTML that stands before each row's first cell.
    """
    heads = enumerate(content.columns)
    head = "".join(
        element(
            "th" if column else "td",
            escape(column),
            scope="col" if column else "",
            class_="text" if j in content.text_columns else "",
        )
        for j, column in heads
    )
    lines = []
    for i in range(len(content.rows)):
        cells = _cells(content, i, "" if pictures is None else pictures[i])
        lines.append(element("tr", cells, data_row="" if first_row is None else str(first_row + i)))
    rows = "\n".join(lines)
    notes = "\n".join(paragraph(note, "note") for note in content.notes)
    title = escape(content.title)
    if not content.rows:
        return element("figure", element("figcaption", title)) + notes
    written = element(
        "table", f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>", class_="sortable" if sortable else ""
    )
    # A table that may be wider than the screen is scrolled, and must be reached by the keyboard for it.
    scrolled = element(
        "div",
        written,
        class_="scroll" if first_row is None else "scroll rows",
        tabindex="0",
        role="region",
        aria_label=content.title,
    )
    return element("figure", element("figcaption", title) + scrolled) + "\n" + notes


def _cells(content: Table, i: int, before: str) -> str:
    return "".join(
        element(
            "td",
            before * (j == 0) + (element("b", f"{escape(cell)}*") if (i, j) in content.marked else escape(cell)),
            class_="text" if j in content.text_columns else "",
        )
        for j, cell in enumerate(content.rows[i])
    )


def pictures(*shown: tuple[bytes, bytes, str, bool]) -> str:
    """Show SVG pictures beside each other where there is room.

    Each is given as the picture for a light page, that for a dark page, its description in words, and whether it is wide.
    """
    parts = (
        f'<picture{" class=wide" * wide}><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
        f'<img src="{_uri(light)}" alt="{escape(alt_text)}"></picture>'
        for light, dark, alt_text, wide in shown
    )
    return element("div", "".join(parts), class_="pictures")


def _uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
