"""Names that an option gives, or the file it points at: of classes, and of the rows that a report mentions."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Set

from crossent.tools.errors import FileError
from crossent.tools.files.damage import reading
from crossent.tools.files.store import split


def read_names(given: str) -> tuple[str, ...]:
    """Read names from a file, one a line, or as they stand, with commas between.

    >>> read_names("cat, dog")
    ('cat', 'dog')
    """
    if os.path.isfile(given):
        return tuple(name for _, name in _lines(given))
    return tuple(name.strip() for name in given.split(","))


def read_ids(given: str, wanted: Set[int], rows: int) -> dict[int, str]:
    """Find the names of some rows in a text, one a line, or in a named column of comma- or tab-separated values.

    Raises:
        FileError: it cannot be read, has no such column, or not as many names as there are rows.
    """
    path, column = split(given)
    ids, count = {}, 0
    for row, name in _lines(path, column):
        count += 1
        if row in wanted:
            ids[row] = name
    if count != rows:
        raise FileError(f"{path}: names {count} rows, but there are {rows}")
    return ids


def _lines(path: str, column: str | None = None) -> Iterator[tuple[int, str]]:
    """Read the lines of a text, or the cells of a column under their heading."""
    with reading(path), open(path, newline="", encoding="utf-8-sig") as stream:
        if column is None:
            yield from enumerate(line.rstrip("\r\n") for line in stream if line.strip())
            return
        table = csv.DictReader(stream, delimiter="\t" if path.endswith(".tsv") else ",")
        if column not in (table.fieldnames or ()):
            raise FileError(f"{path}: has no column {column!r}, only {', '.join(table.fieldnames or ())}")
        yield from enumerate(line[column] or "" for line in table)
