"""Names that an option gives, or the file it points at: of classes, and of the rows that a report mentions."""

from __future__ import annotations

import os
from collections.abc import Sequence

from crossent.tools.errors import FileError
from crossent.tools.files.damage import reading
from crossent.tools.files.formats import open_table
from crossent.tools.files.table import split


def read_names(given: str) -> tuple[str, ...]:
    """Read names from a file, one a line, or as they stand, with commas between.

    >>> read_names("cat, dog")
    ('cat', 'dog')
    """
    if os.path.isfile(given):
        return tuple(_lines(given))
    return tuple(name.strip() for name in given.split(","))


def read_ids(given: str, rows: int) -> Sequence[str]:
    """Read the names of all rows from a text, one a line, or from a named column of a table.

    Raises:
        FileError: it cannot be read, has no such column, or not as many names as there are rows.
    """
    path, column = split(given)
    names = _lines(path) if column is None else open_table(path).read((), (column,)).words[column]
    if len(names) != rows:
        raise FileError(f"{path}: names {len(names)} rows, but there are {rows}")
    return names


def _lines(path: str) -> list[str]:
    with reading(path), open(path, newline="", encoding="utf-8-sig") as stream:
        return [line.rstrip("\r\n") for line in stream if line.strip()]
