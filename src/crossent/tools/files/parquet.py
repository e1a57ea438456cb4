"""Parquet: the columns of a table, read once a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from crossent.tools.files.damage import refuse_other_start
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.spool import BLOCK, spooled
from crossent.tools.files.store import Store, listed, roles


def open_parquet(path: str) -> Store:
    """Open the columns of a parquet file: lists, labels, and all other numbers together as one array."""
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    refuse_other_start(path, b"PAR1", "a parquet file")
    schema = pq.read_schema(path)
    lists = tuple(field.name for field in schema if kinds.is_list(field.type) or kinds.is_fixed_size_list(field.type))
    plain = tuple(
        f.name for f in schema if kinds.is_integer(f.type) or kinds.is_floating(f.type) or kinds.is_boolean(f.type)
    )
    names, rest, notes = roles(path, plain)
    ignored = tuple(field.name for field in schema if field.name not in lists + plain)
    if ignored:
        notes += (f"{path}: left out what holds no numbers: {listed(ignored)}",)
    if lists and rest:  # numbers beside lists are something else than a class each
        names, notes = names[1:], (*notes, f"{path}: left out the column {listed(rest)}")

    def array(key: str) -> RowArray:
        chosen = (key,) if key else rest
        return spooled(path, _rows(path, chosen), chosen if len(chosen) > 1 else ())

    return Store(lists + names, array, plain, notes)


def _rows(path: str, columns: Sequence[str]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    import pyarrow.parquet as pq

    line = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BLOCK // 16, columns=list(columns)):
            block = [np.array(batch.column(name).to_pylist(), np.float64) for name in columns]
            for row in block[0] if len(block) == 1 else np.stack(block, -1):
                line += 1
                yield line, np.asarray(row)
