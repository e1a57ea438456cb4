"""Words from files and options: class names, class weights, and the names of the rows that a report mentions."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np

from crossent.tools.files import FORMATS, FileError, choose, open_store, reading, split


def words(given: str) -> tuple[str, ...]:
    """Read words from a file, one a line, or as they stand, with commas between.

    >>> words("cat, dog")
    ('cat', 'dog')
    """
    if os.path.isfile(given):
        return tuple(word for _, word in _lines(given))
    return tuple(word.strip() for word in given.split(","))


def numbers(given: str) -> tuple[float, ...]:
    """Read numbers from a file of any kind, or as they stand, with commas between.

    >>> numbers("1, 0.5")
    (1.0, 0.5)
    """
    path, key = split(given)
    if Path(path).suffix.lower() in FORMATS:
        store = open_store(path)
        table = store.table(choose(path, store, key, ("weights", "weight"), "weights"))
        return tuple(float(value) for value in np.ravel(table.rows(0, len(table))))
    try:
        return tuple(float(word) for word in given.split(","))
    except ValueError:
        raise FileError(f"{given[:60]!r} is neither a file of numbers nor numbers with commas between") from None


def ids_of(given: str, wanted: Set[int], rows: int) -> dict[int, str]:
    """Find the names of some rows in a text, one a line, or in a named column of comma- or tab-separated values.

    Raises:
        FileError: it cannot be read, has no such column, or not as many names as there are rows.
    """
    path, column = split(given)
    found, count = {}, 0
    for row, word in _lines(path, column):
        count += 1
        if row in wanted:
            found[row] = word
    if count != rows:
        raise FileError(f"{path}: names {count} rows, but there are {rows}")
    return found


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
