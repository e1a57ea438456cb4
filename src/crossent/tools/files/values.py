"""Numbers that an option gives, or the file it points at: class weights, counts, losses of a run, token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.formats import FORMATS, open_table, suffix
from crossent.tools.files.table import Table, split

WEIGHTS = ("weights", "weight")  # what an array of them is called


def read_numbers(given: str, usual: Sequence[str] = ()) -> NDArray[Any]:
    """Read numbers from a file of any kind, or as they stand, with commas between.

    Args:
        given: the path or the numbers.
        usual: what the array is called in a file that holds several.

    >>> read_numbers("1, 0.5")
    array([1. , 0.5])
    """
    path, key = split(given)
    if suffix(path) in FORMATS:
        table = open_table(path)
        array = table.read((key if key is not None else _choose(table, usual),)).array(
            (_choose(table, usual) if key is None else key,)
        )
        return array.rows(0, len(array))
    numbers = given.strip().strip("[]()").replace(",", " ").split()
    try:
        return np.array([float(number) for number in numbers or [""]])
    except ValueError:
        raise FileError(f"{given[:60]!r} is neither a file of numbers nor numbers with commas between") from None


def _choose(table: Table, usual: Sequence[str]) -> str:
    """Choose the column that has a usual name or is the only one."""
    numbers = table.names("number", "array")
    name = table.usual(usual, numbers)
    if name is None and len(numbers) == 1:
        return numbers[0]
    if name is None:
        what = usual[0] if usual else "numbers"
        raise FileError(
            f"{table.path}: which column holds the {what}? Name one of "
            f"{table.describe(numbers or table.columns)}, as {table.path}::NAME"
        )
    return name
