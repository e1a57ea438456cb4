"""A table of strings, built once and shown in the terminal, in a page or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        title: what it shows.
        columns: their heads, which may all be empty.
        rows: one string a column.
        notes: paragraphs below it.
        marked: the (row, column) cells that stand out.
        text_columns: those of words, which stand left; all others hold numbers and stand right.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()
    marked: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    text_columns: tuple[int, ...] = (0,)
