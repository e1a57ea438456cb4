"""One array of a file, or of memory, read a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowArray:
    """One array of a file.

    Attributes:
        name: file and key, ``"preds.npz::logits"``.
        shape: the rows come first.
        dtype: as stored, such as ``"float16"``, ``"bfloat16"`` or ``"int64"``.
        read: rows ``start`` to ``stop``.
        columns: the names of the columns, where the file has such.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], NDArray[Any]]
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read a block of rows as they are stored; bfloat16 as float32."""
        return self.read(start, min(stop, len(self)))

    def __str__(self) -> str:
        return f"{self.name}, {' × '.join(map(str, self.shape))} {self.dtype}"


def row_array(array: NDArray[Any], name: str = "", dtype: str | None = None) -> RowArray:
    """Let an array be read like a file; ``dtype`` is what it was stored as, if not its own."""
    return RowArray(name, array.shape, dtype or array.dtype.name, lambda start, stop: np.asarray(array[start:stop]))
