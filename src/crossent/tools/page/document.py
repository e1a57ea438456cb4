"""A page as one file: style, script and data inside, each allowed by its hash, and nothing else allowed.

The modules are written for an editor, with imports between them. In the file they stand one after the other without, for a browser
refuses to import what lies beside a file on a disk.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

MODULES = (
    "mathematics.js", "numbers.js", "dom.js", "hash.js", "copy.js", "guess.js", "push.js", "scene_push.js", "scene_corner.js",
    "scene_labels.js", "scene_digits.js", "scene_reliability.js", "scene_rows.js", "scene_own.js", "present.js", "main.js",
)  # fmt: skip
"""In an order in which each stands after what it imports."""


def page(title: str, body: Sequence[str], data: Any = None, modules: Sequence[str] = MODULES) -> str:
    """Put the parts of a page together; without data there is no script."""
    style, script = _read("page.css"), "" if data is None else bundle(tuple(modules))
    policy = f"default-src 'none'; style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    parts = [
        "<!doctype html>",
        '<html lang="en-GB">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}{_allowed(script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        *body,
    ]
    if script:
        parts.append(f'<script type="application/json" id="data">{as_json(data)}</script>')
        parts.append(f'<script type="module">{script}</script>')
    return "\n".join([*parts, "</body>", "</html>", ""])


def as_json(data: Any) -> str:
    r"""Write data so that no text in it can end the element that it stands in.

    >>> as_json({"name": "</script>"})
    '{"name":"\\u003c/script>"}'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")


@cache
def bundle(modules: tuple[str, ...]) -> str:
    """Put modules one after the other: what they import is there already, and nothing is exported."""
    text = "\n".join(_read(name) for name in modules)
    text = re.sub(r'^import [^;]*? from "\./[a-z_]+\.js";\n', "", text, flags=re.MULTILINE)
    return re.sub(r"^export (?=(async )?function|const|let|class)", "", text, flags=re.MULTILINE)


@cache
def _read(name: str) -> str:
    return (files("crossent.tools.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _allowed(script: str) -> str:
    return f"; script-src {_hash(script)}" if script else ""
