"""Values in memory: tensors of torch, arrays, nested lists and numbers are read here, for ``explain``, ``check`` and ``score``.

No torch is imported: who hands over a tensor has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.row_array import RowArray, row_array


class NotNumbersError(FileError, TypeError):
    """An array of words, of complex numbers, or of Python objects."""


def to_numpy(value: Any) -> tuple[NDArray[Any], str]:
    """Take values as a NumPy array, with the name of the dtype that they have where they are."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        values = np.asarray(value)
        return values, values.dtype.name
    dtype = str(value.dtype).removeprefix("torch.")
    value = value.detach().cpu()
    return (value.float() if dtype.startswith(("bfloat", "float8")) else value).numpy(), dtype


def read_array(name: str, value: Any) -> NDArray[Any]:
    """Take real numbers of any shape as a NumPy array."""
    return _real_numbers(name, value)[0]


def read_rows(name: str, value: Any) -> RowArray:
    """Let values in memory be read like a file; a single number is one row, and what is a table already stays it."""
    if isinstance(value, RowArray):
        return value
    values, dtype = _real_numbers(name, value)
    return row_array(np.atleast_1d(values), name, dtype)


def to_lists(value: Any) -> Any:
    """Write arrays and tensors, wherever they lie and whatever they hold, as lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _real_numbers(name: str, value: Any) -> tuple[NDArray[Any], str]:
    values, dtype = to_numpy(value)
    if values.dtype.kind not in "biuf":
        raise NotNumbersError(f"{name}: holds {dtype}, not real numbers")
    return values, dtype
