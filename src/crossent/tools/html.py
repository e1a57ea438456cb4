"""HTML pages and their parts: self-contained, without script or request, readable in the dark and on a telephone.

Everything that is written as text is escaped.
"""

from __future__ import annotations

import base64
from html import escape

from crossent.tools.table import Table

_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d5dae1; --mark: #fff0c2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a3adba; --paper: #14171c; --line: #39404a; --mark: #4d3f12; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .8rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; }
p, dl { max-width: 44rem; }
.lead { font-size: 1.1rem; }
.notice { border-left: 4px solid #d55e00; padding-left: .8rem; }
figure { margin: 1rem 0 .5rem; }
figcaption { font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
@media (max-width: 32rem) { table { font-size: .84rem; } th, td { padding-right: .5rem; } th { white-space: normal; } }
td b { background: var(--mark); padding: .1rem .25rem; margin-right: -.25rem; border-radius: .2rem; }
.note, footer { color: var(--soft); font-size: .88rem; max-width: 48rem; margin: .4rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.pictures picture { flex: 1 1 19rem; min-width: 0; }
.pictures picture.wide { flex-basis: 100%; }
img { width: 100%; height: auto; display: block; }
pre { padding: .6rem .8rem; border: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere; }
dt { color: var(--soft); font-size: .88rem; margin-top: .5rem; }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
"""


def page(title: str, body: list[str]) -> str:
    """Put the parts of a page together."""
    return f"""<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CSP}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{chr(10).join(body)}
</body>
</html>
"""


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
