"""Text: comma- and tab-separated values, and lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.spool import spooled
from crossent.tools.files.store import LABELS, Store, roles

# --- separated values -------------------------------------------------------------------------------------------------


def open_csv(path: str) -> Store:
    """Open comma-separated values."""
    return _open_separated(path, ",")


def open_tsv(path: str) -> Store:
    """Open tab-separated values."""
    return _open_separated(path, "\t")


def _open_separated(path: str, delimiter: str) -> Store:
    """Open lines of numbers, with or without a first line of names."""
    first = next((cells for _, cells in _lines(path, delimiter)), None)
    if first is None:
        raise FileError(f"{path}: holds no rows")
    header = None if all(_is_number(cell) for cell in first) else tuple(cell.strip() for cell in first)
    if header is None:
        return Store(("",), lambda key: _columns(path, delimiter, None, len(first)))
    names, rest, notes = roles(path, header)

    def array(key: str) -> RowArray:
        chosen = (key,) if key else rest
        return _columns(path, delimiter, [header.index(name) for name in chosen], len(header), chosen)

    return Store(names, array, header, notes)


def _lines(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, delimiter=delimiter)
        for cells in reader:
            if cells:
                yield reader.line_num, cells


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _columns(
    path: str, delimiter: str, columns: Sequence[int] | None, width: int, names: Sequence[str] = ()
) -> RowArray:
    """Read columns of a text, all if None, as an array; one column as an array of one axis. Names mean a first line to skip."""

    def rows() -> Iterator[tuple[int, NDArray[np.float64]]]:
        lines = _lines(path, delimiter)
        if columns is not None:
            next(lines)
        for line, cells in lines:
            if len(cells) != width:
                raise FileError(f"{path}: line {line} has {len(cells)} columns, the first line {width}")
            wanted = cells if columns is None else [cells[j] for j in columns]
            try:
                row = np.array([float(cell) for cell in wanted])
            except ValueError:
                wrong = next(cell for cell in wanted if not _is_number(cell))
                hint = f"; cells are separated by {delimiter!r}" if set(wrong) & set(";,\t") else ""
                if len(names) == 1 and names[0].lower() in LABELS and wrong:
                    hint = f", but the column {names[0]!r} needs class numbers, from 0 on"
                raise FileError(f"{path}: line {line}: {wrong[:40]!r} is not a number{hint}") from None
            yield line, row[0] if len(row) == 1 else row

    return spooled(path, rows(), names if len(names) > 1 else ())


# --- lines of JSON ----------------------------------------------------------------------------------------------------


def open_jsonl(path: str) -> Store:
    """Open lines of JSON: objects with the same keys, or lists, or numbers."""
    first = next((value for _, value in _documents(path)), None)
    if first is None:
        raise FileError(f"{path}: holds no rows")
    names = tuple(key for key, value in first.items() if _holds_numbers(value)) if isinstance(first, dict) else ("",)

    def rows(key: str) -> Iterator[tuple[int, NDArray[np.float64]]]:
        for line, value in _documents(path):
            if isinstance(value, dict) != isinstance(first, dict) or (key and key not in value):
                raise FileError(f"{path}: line {line} has no {key!r}, the first line has")
            try:
                yield line, np.array(value[key] if key else value, np.float64)
            except (ValueError, TypeError):
                raise FileError(f"{path}: line {line} does not hold numbers, or lists of one length of them") from None

    return Store(names, lambda key: spooled(path, rows(key)))


def _documents(path: str) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, 1):
            if text.strip():
                try:
                    yield line, json.loads(text)
                except (ValueError, RecursionError):
                    raise FileError(f"{path}: line {line} is not JSON: {text.strip()[:40]!r}") from None


def _holds_numbers(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, (int, float))
