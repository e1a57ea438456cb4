"""Parquet: the columns of a table, read once a batch at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from crossent.tools.files.damage import refuse_other_start
from crossent.tools.files.json_files import Collected
from crossent.tools.files.row_array import BLOCK
from crossent.tools.files.spool import refuse_bomb
from crossent.tools.files.table import Column, Contents, Kind, Table


def open_parquet(path: str) -> Table:
    """Open the columns of a parquet file: numbers, words, and lists of numbers."""
    import pyarrow.parquet as pq

    refuse_other_start(path, b"PAR1", "a parquet file")
    schema = pq.read_schema(path)
    columns = {field.name: Column(_kind(field.type), whole=_whole(field.type)) for field in schema}
    count = pq.read_metadata(path).num_rows
    if (index := _range_index(schema, count)) is not None and "" not in columns:
        columns = {"": Column("number"), **columns}

    def read(wanted: Sequence[str], words: Sequence[str], optional: Sequence[str]) -> Contents:
        refuse_bomb(path, os.path.getsize(path), 8 * count * len({*wanted, *words}))
        arrays = [name for name in wanted if columns[name].kind == "array"]
        collected = Collected(path, [name for name in wanted if name not in arrays], arrays, words, optional, None)
        stored = [name for name in dict.fromkeys((*wanted, *words)) if name or index is None]
        for line, row in enumerate(_rows(path, stored)):
            collected.add(line + 1, row if index is None else {"": index[line], **row})
        return collected.contents()

    return Table(path, columns, read)


def _kind(dtype: Any) -> Kind:
    import pyarrow.types as kinds

    if kinds.is_dictionary(dtype):
        return _kind(dtype.value_type)
    if kinds.is_boolean(dtype):
        return "bool"
    if kinds.is_integer(dtype) or kinds.is_floating(dtype) or kinds.is_decimal(dtype):
        return "number"
    if kinds.is_string(dtype) or kinds.is_large_string(dtype):
        return "word"
    if kinds.is_list(dtype) or kinds.is_large_list(dtype) or kinds.is_fixed_size_list(dtype) or kinds.is_struct(dtype):
        return "array"
    if (
        kinds.is_temporal(dtype)
        or kinds.is_binary(dtype)
        or kinds.is_large_binary(dtype)
        or kinds.is_fixed_size_binary(dtype)
    ):
        return "key"
    return "other"


def _whole(dtype: Any) -> bool:
    return "int" in str(dtype) or ("decimal" in str(dtype) and dtype.scale == 0)


def _range_index(schema: Any, count: int) -> range | None:
    """Find the index that pandas does not store, because it is a range."""
    try:
        (described,) = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        numbered = range(described["start"], described["stop"], described["step"])
    except (KeyError, ValueError, TypeError):
        return None
    return numbered if len(numbered) == count else None


def _rows(path: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BLOCK // 16, columns=list(columns)):
            entries = [_entries(batch.column(name)) for name in columns]
            for row in zip(*entries, strict=True) if columns else iter([()] * batch.num_rows):
                yield dict(zip(columns, row, strict=True))


def _entries(column: Any) -> Any:
    """Write a column as Python's numbers and lists; plain numbers without a detour."""
    import pyarrow.types as kinds

    plain = kinds.is_floating(column.type) or kinds.is_integer(column.type)
    if plain and not column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False)).tolist()
    return column.to_pylist()
