"""Arrays by name as a table: each is a column, and numbers of one axis do not stand side by side as classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.files.row_array import RowArray
from crossent.tools.files.table import Column, Contents, Kind, Table


def arrays_table(path: str, arrays: Mapping[str, RowArray], notes: tuple[str, ...] = ()) -> Table:
    """Make a table of arrays."""
    columns = {
        name: Column(_kind(array), _shape(array), not array.dtype.startswith(("float", "bfloat")))
        for name, array in arrays.items()
    }

    def read(wanted: Sequence[str], words: Sequence[str], optional: Sequence[str]) -> Contents:
        text = {name: as_words(arrays[name].rows(0, len(arrays[name]))) for name in words}
        return Contents(None, text, {name: arrays[name] for name in wanted})

    return Table(path, columns, read, beside=False, notes=notes)


def as_words(values: NDArray[Any]) -> list[str]:
    """Write an array of one axis as words."""
    values = np.asarray(values).reshape(-1)
    text = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    return ["" if each is None or each != each else str(each).strip() for each in text.tolist()]


def _kind(array: RowArray) -> Kind:
    return "word" if array.dtype.startswith(("str", "bytes")) else "array"


def _shape(array: RowArray) -> str:
    return f"({', '.join(map(str, array.shape))}{',' * (len(array.shape) == 1)})"
