"""One array of a file, or of memory, read a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # rows that are looked at together


@dataclass(frozen=True)
class RowArray:
    """One array of a file.

    Attributes:
        name: file and key, ``"preds.npz::logits"``.
        shape: the rows come first.
        dtype: as stored, such as ``"float16"``, ``"bfloat16"`` or ``"int64"``.
        read: rows ``start`` to ``stop``.
        columns: the names of the columns, where the file has such.
        ordered: whether they have one order; they have none where rows name them in different orders.
        ids: what the rows are called, where the file says so.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], NDArray[Any]]
    columns: tuple[str, ...] = ()
    ordered: bool = True
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read a block of rows as they are stored; bfloat16 as float32."""
        return self.read(start, min(stop, len(self)))

    def in_order(self, order: NDArray[np.int64]) -> RowArray:
        """Take the rows in another order; they are read into memory for it."""
        values = self.rows(0, len(self))[order]
        ids = [self.ids[k] for k in order] if len(self.ids) else ()
        return replace(self, shape=values.shape, read=lambda start, stop: values[start:stop], ids=ids)

    def whole(self) -> RowArray:
        """Take numbers that came as float64 for int64 where all of them are whole."""
        if self.dtype != "float64":
            return self
        blocks = (self.rows(start, start + BLOCK) for start in range(0, len(self), BLOCK))
        if not all(bool(np.all((np.rint(block) == block) & (np.abs(block) < 2**53))) for block in blocks):
            return self
        read = self.read
        return replace(self, dtype="int64", read=lambda start, stop: read(start, stop).astype(np.int64))

    def __str__(self) -> str:
        return f"{self.name}, {' × '.join(map(str, self.shape))} {self.dtype}"


def row_array(array: NDArray[Any], name: str = "", dtype: str | None = None) -> RowArray:
    """Let an array be read like a file; ``dtype`` is what it was stored as, if not its own."""
    return RowArray(name, array.shape, dtype or array.dtype.name, lambda start, stop: np.asarray(array[start:stop]))
