"""What stands in a cell of a text: a number, a truth value, a list of numbers, a word, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np

from crossent.tools.files.table import Kind

MISSING = ("", "na", "n/a", "nan", "null", "none")
TRUTH = {"true": 1.0, "false": 0.0}
LIST = re.compile(r"^\[[^\[\]'\"]*\]$")  # what pandas writes of a list, and NumPy of an array
# Where a semicolon separates cells, a comma may separate the decimals.
DECIMAL = re.compile(r"^\s*([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)\s*$")
THOUSANDS = re.compile(r"^\s*[+-]?[1-9]\d{0,2},\d{3}\s*$")  # or a decimal comma: 1,234
# As people write numbers for people: 1,234.5 or 1.234,5 or 12 % or € 3.
FOR_PEOPLE = re.compile(r"^[^\w\s\[{(\"']?\s*[+\-−]?\d{1,3}(?:[,.' ]?\d{3})*(?:[,.]\d+)?\s*[^\w\s\]})\"']?$")
MOSTLY = 0.8  # of the cells of a column that are numbers: the others are slips, and the column is one of numbers


def is_number(cell: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def mostly_numbers(are: Iterable[bool]) -> bool:
    """Whether a column holds numbers, except for a few slips. The column is kept, and a slip is an error where it is read."""
    there = list(are)
    return bool(there) and sum(there) >= MOSTLY * len(there)


def kind_of(cells: Sequence[str]) -> Kind:
    """Find out what a column holds."""
    there = [cell for cell in (cell.strip() for cell in cells) if cell.lower() not in MISSING]
    if all(map(is_number, there)):
        return "number"
    if all(map(LIST.match, there)):
        return "array"
    if all(cell.lower() in TRUTH for cell in there):
        return "bool"
    return (
        "number" if mostly_numbers(is_number(cell) or FOR_PEOPLE.match(cell) is not None for cell in there) else "word"
    )


def are_whole(cells: Sequence[str]) -> bool:
    """Whether the numbers of a column are whole."""
    return all(float(cell).is_integer() for cell in cells if is_number(cell) and cell.strip().lower() not in MISSING)


def as_number(cell: str) -> float:
    """Read a cell as a number; nan where it is missing."""
    cell = cell.strip().lower()
    return TRUTH[cell] if cell in TRUTH else np.nan if cell in MISSING else float(cell)


def how_to_write(cell: str) -> str:
    """Say how a cell that is no number should be written, if it is one for people."""
    cell = cell.strip()
    if not FOR_PEOPLE.match(cell) or is_number(cell):
        return ""
    return ": write numbers plainly, 1234.5 for 1,234.5 and 0.125 for 12.5 %"


def could_be_thousands(cells: Iterable[str]) -> str | None:
    """Find a cell whose comma may separate thousands as well as decimals, if all cells with a comma are like it."""
    with_comma = [cell for cell in cells if DECIMAL.match(cell)]
    return with_comma[0].strip() if with_comma and all(map(THOUSANDS.match, with_comma)) else None


def as_dates(words: Sequence[str]) -> list[str] | None:
    """Write dates and times alike, if all words are such.

    >>> as_dates(["2024-01-31 00:00:00", "2024-02-01"])
    ['2024-01-31T00:00:00', '2024-02-01T00:00:00']
    """
    try:
        return [datetime.fromisoformat(word).isoformat() for word in words]
    except ValueError:
        return None
