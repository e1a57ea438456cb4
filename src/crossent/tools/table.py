"""A table of strings, built once and shown in the terminal or in a report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Grid:
    """A table: names, and numbers from the second column on; ``marked`` are the (row, column) cells that stand out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    marked: frozenset[tuple[int, int]] = field(default_factory=frozenset)
