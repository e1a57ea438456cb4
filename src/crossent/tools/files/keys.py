"""Rows of two tables that both name them are paired by these names, and not by their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.cells import as_dates
from crossent.tools.files.roles import INDEX
from crossent.tools.files.table import listed

Ints = NDArray[np.int64]


def common_keys(first: Sequence[str], second: Sequence[str]) -> tuple[str, str] | None:
    """Choose a column of each table that names its rows: one that is called the same in both comes first."""
    lower = {name.lower(): name for name in reversed(second)}
    for name in first:
        if name.lower() in lower:
            return name, lower[name.lower()]
    indices = [[name for name in names if name.lower() in INDEX] for names in (first, second)]
    if all(indices):
        return indices[0][0], indices[1][0]
    return (first[0], second[0]) if first and second else None


def counts_rows(words: Sequence[str]) -> bool:
    """Whether names only count rows, from 0 or 1 on, and so say no more than their order."""
    return bool(words) and words[0] in ("0", "1") and all(word == str(k) for k, word in enumerate(words, int(words[0])))


def paired(first: Sequence[str], second: Sequence[str], names: tuple[str, str], keys: tuple[str, str]) -> Ints | None:
    """Find the row of the second table for each row of the first; None where they stand in the same order.

    Raises:
        FileError: a row is missing, or there twice.
    """
    here, there = _alike(first, second)
    if here == there:
        return None
    for words, name in ((here, names[0]), (there, names[1])):
        if len(set(words)) < len(words):
            twice = next(word for word in words if words.count(word) > 1)
            raise FileError(
                f"{name}: the row {twice!r} is there twice: rows are paired by {_by(keys)}, which must name each once"
            )
    place = {word: k for k, word in enumerate(there)}
    for words, others, name, other in ((here, place, names[0], names[1]), (there, set(here), names[1], names[0])):
        missing = [word for word in words if word not in others]
        if missing:
            many = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileError(
                f"{other}: has no row {listed(missing[:1])!r}{many}, which {name} has: rows are paired by {_by(keys)}"
            )
    return np.array([place[word] for word in here], np.int64)


def _by(keys: tuple[str, str]) -> str:
    here, there = (key or "index" for key in keys)
    return repr(here) if here == there else f"{here!r} and {there!r}"


def _alike(first: Sequence[str], second: Sequence[str]) -> tuple[list[str], list[str]]:
    """Write names alike: numbers as numbers, dates as dates, if all of both are."""
    here, there = [word.strip() for word in first], [word.strip() for word in second]
    try:
        return [f"{float(word):.17g}" for word in here], [f"{float(word):.17g}" for word in there]
    except ValueError:
        dates = as_dates(here), as_dates(there)
        return (here, there) if dates[0] is None or dates[1] is None else (dates[0], dates[1])
