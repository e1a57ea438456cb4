"""Values in memory: tensors of torch, arrays, nested lists and numbers are read here, for ``explain``, ``check`` and ``score``.

torch is not imported: a caller that has a tensor has imported it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.arrays_table import arrays_table
from crossent.tools.files.frames import frame_table, is_frame
from crossent.tools.files.pair import pair_tables
from crossent.tools.files.roles import Selection
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.two_runs import TwoRunsError


class NotNumbersError(FileError, TypeError):
    """An array of words, of complex numbers, or of Python objects."""


def to_numpy(value: Any) -> tuple[NDArray[Any], str]:
    """Return values as a NumPy array, and the name of their own dtype, such as ``"bfloat16"``."""
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        try:
            values = np.asarray(value)
        except ValueError:  # lists of different lengths
            raise NotNumbersError(
                "holds lists of different lengths, which are no array: fill up the shorter ones"
            ) from None
        return values, values.dtype.name
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_meta:
        raise NotNumbersError("is a meta tensor, which has a shape and no numbers: give one on a device")
    value = value.detach().cpu()
    return (value.float() if dtype.startswith(("bfloat", "float8")) else value).numpy(), dtype


def read_array(name: str, value: Any) -> NDArray[Any]:
    """Take real numbers of any shape as a NumPy array."""
    return _real_numbers(name, value)[0]


def read_rows(name: str, value: Any) -> RowArray:
    """Let values in memory be read like a file. A single number is one row, and a ``RowArray`` is returned as it is."""
    if isinstance(value, RowArray):
        return value
    values, dtype = _real_numbers(name, value)
    return row_array(np.atleast_1d(values), name, dtype)


def read_pair(
    names: tuple[str, str], logits: Any, labels: Any, class_names: Sequence[str] | None = None
) -> tuple[RowArray, RowArray | None]:
    """Let logits and labels in memory be read like files: frames are paired by their index and columns, and labels may be words."""
    frames = [isinstance(each, RowArray) is False and is_frame(each) for each in (logits, labels)]
    words = labels is not None and not frames[1] and not hasattr(labels, "detach") and _words(labels)
    if not (any(frames) or words):
        return read_rows(names[0], logits), None if labels is None else read_rows(names[1], labels)
    first = frame_table(names[0], logits) if frames[0] else arrays_table(names[0], {"": read_rows(names[0], logits)})
    if frames[1]:
        second = frame_table(names[1], labels)
    else:
        rows = row_array(np.asarray(labels)) if words else read_rows(names[1], labels)
        second = arrays_table(names[1], {"": rows})
    selection = Selection(class_names=tuple(class_names or ()))
    try:
        pair = pair_tables(first, None, None if labels is None else second, None, selection)
    except TwoRunsError as error:
        raise FileError(
            f"{names[0]} and {names[1]} both hold predictions and labels: give the labels that are meant, "
            f"as {names[1]}[{error.label!r}]"
        ) from None
    for note in pair.notes[2:]:
        warnings.warn(note, stacklevel=4)
    return pair.logits, pair.labels


def _words(labels: Any) -> bool:
    try:
        return not isinstance(labels, RowArray) and np.asarray(labels).dtype.kind in "US"
    except ValueError:  # lists of different lengths, which are refused where they are read
        return False


def to_lists(value: Any) -> Any:
    """Write arrays and tensors, wherever they lie and whatever they hold, as lists and numbers."""
    if getattr(value, "is_meta", False):
        raise NotNumbersError(
            "a target must have numbers, got a meta tensor, which has only a shape: give one on a device"
        )
    return value.tolist() if hasattr(value, "tolist") else value


def _real_numbers(name: str, value: Any) -> tuple[NDArray[Any], str]:
    try:
        values, dtype = to_numpy(value)
    except NotNumbersError as error:
        raise NotNumbersError(f"{name}: {error}") from None
    if values.dtype.kind not in "biuf":
        raise NotNumbersError(f"{name}: holds {dtype}, not real numbers")
    return values, dtype
