"""Rows that can only be read one after the other, written into temporary files that are then mapped."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.row_array import RowArray, row_array

MOST, RATIO = 1 << 28, 200  # a file may unpack to so many bytes, or to so many times its size if that is more


def refuse_bomb(path: str, packed: int, unpacked: int) -> None:
    """Refuse what grows out of all proportion when it is unpacked."""
    if unpacked > max(MOST, RATIO * packed):
        raise FileError(
            f"{path}: would unpack {packed:,} bytes to {unpacked:,} or more, which no honest file does: save it uncompressed"
        )


class Spool:
    """Arrays of a row, one after the other, in an unnamed temporary file.

    Args:
        path: of the file that is read, for messages.
        fill: what rows that are shorter than others are filled with; None refuses them.
    """

    def __init__(self, path: str, fill: float | None = None) -> None:
        self.path, self.fill = path, fill
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has been mapped, or with this object)
        weakref.finalize(self, self.file.close)
        self.shapes: list[tuple[int, ...]] = []

    def add(self, line: int, row: NDArray[np.float64]) -> None:
        """Add a row, which comes with its line."""
        first = self.shapes[0] if self.shapes else row.shape
        if row.shape != first and (self.fill is None or row.ndim != len(first)):
            raise FileError(f"{self.path}: line {line} has shape {row.shape}, the lines before it {first}")
        self.shapes.append(first if row.shape == first else row.shape)
        self.file.write(row.tobytes())

    def add_block(self, rows: NDArray[np.float64]) -> None:
        """Add rows of one shape."""
        shape = self.shapes[0] if self.shapes else rows.shape[1:]
        self.shapes.extend([shape] * len(rows))
        self.file.write(rows.tobytes())

    @property
    def ragged(self) -> bool:
        """Whether rows differ in shape."""
        return any(shape != self.shapes[0] for shape in self.shapes)

    def array(self, columns: Sequence[str] = ()) -> RowArray:
        """Map what was written."""
        longest = tuple(map(max, zip(*self.shapes, strict=True))) if self.shapes else (0,)
        if not self.shapes or not math.prod(longest):
            raise FileError(f"{self.path}: holds no rows")
        self.file.flush()
        count = len(self.shapes)
        if not self.ragged:
            mapped = np.memmap(self.file, np.float64, "r", shape=(count, *longest))
            return replace(row_array(mapped), columns=tuple(columns))
        filled: NDArray[Any] = np.full((count, *longest), self.fill)
        self.file.seek(0)
        for row, shape in enumerate(self.shapes):
            values = np.frombuffer(self.file.read(8 * math.prod(shape)), np.float64).reshape(shape)
            filled[row][tuple(map(slice, shape))] = values
        return row_array(filled)
