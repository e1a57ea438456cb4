"""Text made safe to show: without signs that control a terminal, short enough, and in letters that an output can write."""

from __future__ import annotations

import codecs
import json
import sys
import unicodedata

# What stands for a sign where an encoding does not have it.
ASCII = {
    "▲": "^", "▼": "v", "△": "^", "▽": "v", "−": "-", "–": "-", "─": "-", "━": "-", "∂": "d", "Σ": "S", "σ": "s", "ε": "e",
    "γ": "g", "β": "b", "λ": "l", "π": "p", "η": "h", "±": "+-", "×": "x", "·": "*", "…": "...", "→": "->", "≥": ">=", "≤": "<=",
    "≠": "!=", "✗": "x", "∞": "inf", "²": "^2", "√": "sqrt", "∘": "*", "∓": "-+", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
HANDLER = "crossent.ascii"


def printable(text: str) -> str:
    r"""Write control and direction signs, which could do harm in a terminal, as their codes. Newlines stay.

    >>> printable("cat\x1b[2J")
    'cat\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def printable_json(text: str) -> str:
    r"""Write the same signs in a JSON document by the escapes of JSON, of two halves where 16 bits do not hold a sign.

    >>> printable_json('"\u200f\U000e0001"')
    '"\\u200f\\udb40\\udc01"'
    """
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def brief(text: str, most: int) -> str:
    """Cut what is too long.

    >>> brief("hippopotamus", 6)
    'hippo…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def in_ascii(text: str) -> str:
    """Write signs that ASCII does not have with those that it has.

    >>> in_ascii("▲ −0.5 é")
    '^ -0.5 e'
    """
    plain = "".join(ASCII.get(c, c) for c in text)
    return unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode() if plain != "" else plain


def writable(text: str) -> str:
    """Write a text with the signs that the standard output has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, HANDLER).decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(in_ascii(c) or "?" for c in lost), error.end


codecs.register_error(HANDLER, _replace)
