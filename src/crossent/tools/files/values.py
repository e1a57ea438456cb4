"""Numbers that an option gives, or the file it points at: class weights, counts, losses of a run, token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.formats import FORMATS, open_store
from crossent.tools.files.store import choose, split

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
    if Path(path).suffix.lower() in FORMATS:
        store = open_store(path)
        array = store.array(choose(path, store, key, usual, usual[0] if usual else "numbers"))
        return array.rows(0, len(array))
    try:
        return np.array([float(number) for number in given.split(",")])
    except ValueError:
        raise FileError(f"{given[:60]!r} is neither a file of numbers nor numbers with commas between") from None
