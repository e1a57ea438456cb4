"""Frames and series of pandas and polars as tables, known by what they can do: none of them is imported."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from crossent.tools.errors import FileError
from crossent.tools.files.cells import MISSING, mostly_numbers
from crossent.tools.files.json_files import table_of_rows
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.spool import Spool
from crossent.tools.files.table import Column, Contents, Kind, Table


def is_frame(value: Any) -> bool:
    """Whether a value is a frame, or a series that becomes one."""
    return type(value).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(value, "to_numpy")


def frame_table(name: str, frame: Any) -> Table:
    """Make a table of a frame; the index of pandas names its rows."""
    if hasattr(frame, "to_frame"):  # a series
        frame = frame.to_frame(frame.name if frame.name not in (None, "") else "label")
    columns = {str(column): frame[column] for column in frame.columns}
    if hasattr(frame, "index") and "" not in columns:
        columns = {"": frame.index, **columns}
    kinds = {key: _kind(series) for key, series in columns.items()}
    if (
        hasattr(frame, "index")
        and columns[""] is frame.index
        and not str(frame.index.dtype).lower().startswith(("int", "uint"))
    ):
        kinds[""] = "key"  # whatever it is, fractions or pairs too, it names rows

    def read(wanted: Sequence[str], words: Sequence[str], optional: Sequence[str]) -> Contents:
        numbers = Spool(name)
        flat = [key for key in wanted if kinds[key] != "array"]
        if flat:
            numbers.add_block(np.stack([_numbers(name, columns[key]) for key in flat], 1))
        text = {key: ["" if _missing(each) else str(each).strip() for each in columns[key].to_list()] for key in words}
        arrays: dict[str, RowArray] = {}
        for key in wanted:
            if kinds[key] == "array":
                entries = columns[key].to_list()
                rows = list(enumerate({key: entry} for entry in entries))
                arrays |= table_of_rows(name, rows.__iter__).open((key,), (), optional).arrays
        return Contents(numbers.array(flat) if flat else None, text, arrays)

    return Table(name, {key: Column(kind, whole=not _fractional(columns[key])) for key, kind in kinds.items()}, read)


def _fractional(series: Any) -> bool:
    if not str(series.dtype).lower().startswith(("float", "double")):
        return False
    values = _numbers("", series)
    values = values[np.isfinite(values)]
    return bool((values != np.rint(values)).any())


def _missing(value: Any) -> bool:
    return value is None or value != value or str(value).lower() in MISSING


def _kind(series: Any) -> Kind:
    dtype = str(series.dtype).lower()
    if dtype.startswith("bool"):
        return "bool"
    if dtype.startswith(("int", "uint", "float", "double", "decimal")):
        return "number"
    if dtype.startswith(("list", "array", "struct")):
        return "array"
    if dtype.startswith(("date", "time", "duration", "period")):
        return "key"
    lists = (list, tuple, np.ndarray, dict)
    there = [each for each in series.to_list() if isinstance(each, lists) or not _missing(each)]
    if there and isinstance(there[0], lists):
        return "array"
    if dtype.startswith("object") and mostly_numbers(isinstance(each, (int, float, Decimal)) for each in there):
        return "number"
    return "key" if there and isinstance(there[0], (bytes, date, time, timedelta)) else "word"


def _numbers(name: str, series: Any) -> Any:
    try:
        return np.asarray(series.to_numpy(), np.float64)
    except (TypeError, ValueError):  # an entry is missing, or a word
        entries = series.to_list()
    numbers = np.full(len(entries), np.nan)
    for row, each in enumerate(entries):
        try:
            numbers[row] = np.nan if _missing(each) else float(each)
        except (TypeError, ValueError):
            raise FileError(
                f"{name}: row {row}: {str(each)[:40]!r} in the column {series.name!r} is not a number"
            ) from None
    return numbers
