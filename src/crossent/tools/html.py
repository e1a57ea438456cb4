"""Parts of HTML pages. Everything that is written as text is escaped; ``page`` puts the parts together."""

from __future__ import annotations

import base64
from html import escape

from crossent.tools.table import Table


def element(tag: str, content: str, **attributes: str) -> str:
    """Write an element around HTML; attributes that are empty are left out, ``class_`` is ``class``, and ``_`` is ``-``.

    >>> element("p", "<b>x</b> &lt; 1", class_="note", style="", data_row="2")
    '<p class="note" data-row="2"><b>x</b> &lt; 1</p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items() if value
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


def table(content: Table) -> str:
    """Write a table with its notes; what is marked is bold and has a star."""
    head = element("tr", "".join(element("th", escape(column), scope="col") for column in content.columns))
    rows = "\n".join(element("tr", _cells(content, i)) for i in range(len(content.rows)))
    notes = "\n".join(paragraph(note, "note") for note in content.notes)
    return (
        f'<figure><figcaption>{escape(content.title)}</figcaption><div class="scroll"><table>\n'
        f"<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div></figure>\n{notes}"
    )


def _cells(content: Table, i: int) -> str:
    return "".join(
        element("td", element("b", f"{escape(cell)}*") if (i, j) in content.marked else escape(cell))
        for j, cell in enumerate(content.rows[i])
    )


def pictures(*shown: tuple[bytes, bytes, str, bool]) -> str:
    """Show SVG pictures beside each other where there is room.

    Each is given for light, for dark, in words, and whether it is wide.
    """
    parts = (
        f'<picture{" class=wide" * wide}><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
        f'<img src="{_uri(light)}" alt="{escape(alt_text)}"></picture>'
        for light, dark, alt_text, wide in shown
    )
    return element("div", "".join(parts), class_="pictures")


def _uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
