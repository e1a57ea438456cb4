"""Rows that can only be read one after the other, written into a temporary file that is then mapped."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.row_array import RowArray, row_array

BLOCK = 1 << 16  # rows that are looked at together


def spooled(path: str, rows: Iterable[tuple[int, NDArray[np.float64]]], columns: Sequence[str] = ()) -> RowArray:
    """Write rows of one shape into an unnamed temporary file and map it; each comes with its line, to be named if it differs."""
    shape, count = None, 0
    with tempfile.TemporaryFile() as spool:
        for line, row in rows:
            if shape is None:
                shape = row.shape
            elif row.shape != shape:
                raise FileError(f"{path}: line {line} has shape {row.shape}, the lines before it {shape}")
            spool.write(row.tobytes())
            count += 1
        spool.flush()
        if shape is None or not (count and math.prod(shape)):
            raise FileError(f"{path}: holds no rows")
        values = np.memmap(spool, np.float64, "r", shape=(count, *shape))
    array = replace(row_array(values), columns=tuple(columns))
    if all(_whole(values[start : start + BLOCK]) for start in range(0, count, BLOCK)):
        return replace(array, dtype="int64", read=lambda start, stop: values[start:stop].astype(np.int64))
    return array


def _whole(values: NDArray[np.float64]) -> bool:
    return bool(np.all((np.rint(values) == values) & (np.abs(values) < 2**53)))
