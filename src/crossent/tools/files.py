"""Arrays in files, read a block of rows at a time: what ``explain``, ``check`` and ``score`` are given.

NumPy, safetensors and PyTorch files are mapped into memory and never read whole, unless they are compressed. Text and parquet are
read once from beginning to end into a temporary file, which is then mapped, so that their size does not matter either.

Refused: pickles, which can run code; arrays of anything but numbers; and to guess which of several arrays is meant.
"""

from __future__ import annotations

import csv
import json
import math
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LOGITS = ("logits", "predictions", "preds", "scores", "outputs", "probs")
LABELS = ("labels", "targets", "label_ids", "label", "target", "y")
IDS = ("id", "ids", "index", "")  # columns that are no class; pandas writes its index without a name
BLOCK = 1 << 16


class FileError(ValueError):
    """A file that cannot be read as asked, in one sentence; a command ends with exit code 2."""


@dataclass(frozen=True)
class Table:
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


class Pair(NamedTuple):
    """Logits and their labels, with what was chosen and left out, one sentence each."""

    logits: Table
    labels: Table | None
    notes: list[str]


class Store(NamedTuple):
    """The arrays of a file and how to open one; a nameless array is called ``""``.

    ``columns`` are what may be named beside, and ``notes`` say what was left out.
    """

    names: tuple[str, ...]
    table: Callable[[str], Table]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# --- the choice -------------------------------------------------------------------------------------------------------


def open_pair(logits: str, labels: str | None = None) -> Pair:
    """Open the logits and the labels, which may lie in one file.

    Args:
        logits: a path, or ``path::key`` for one array of several.
        labels: the same; None looks for labels beside the logits.

    Returns:
        Both, and what to tell the user. The labels are None if there are none.

    Raises:
        FileError: whatever is wrong with a file, or unclear.
    """
    path, key = split(logits)
    store = open_store(path)
    key = choose(path, store, key, LOGITS, "logits")
    first = store.table(key)
    second, notes = None, list(store.notes)
    if labels is not None:
        path, key = split(labels)
        other = open_store(path)
        second = other.table(choose(path, other, key, LABELS, "labels"))
        notes += [note for note in other.notes if note not in notes]
    elif found := _known(store, LABELS):
        second = store.table(found)
    elif others := [name for name in store.names if name != key]:
        notes.append(
            f"{path}: nothing is called labels; if {_listed(others)} holds them, say {path}::{others[0]} as well"
        )
    _check(first, second)
    notes.insert(0, f"logits: {first}")
    if second is not None:
        notes.insert(1, f"labels: {second}")
    return Pair(first, second, notes)


def split(path: str) -> tuple[str, str | None]:
    """Take ``path::key`` apart.

    >>> split("preds.npz::logits"), split("preds.npz")
    (('preds.npz', 'logits'), ('preds.npz', None))
    """
    head, colons, key = path.rpartition("::")
    return (head, key) if colons else (path, None)


def choose(path: str, store: Store, key: str | None, usual: Sequence[str], role: str) -> str:
    """Choose the array that was asked for, or has a usual name, or is the only one."""
    if key is not None:
        return key
    found = _known(store, usual)
    if found is not None:
        return found
    if role == "logits" and "" in store.names:
        return ""
    if len(store.names) == 1:
        return store.names[0]
    raise FileError(f"{path}: which array holds the {role}? Name one of {_listed(store.names)}, as {path}::NAME")


def _known(store: Store, usual: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(store.names)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _listed(names: Iterable[str]) -> str:
    names = [name or "(the nameless one)" for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _check(logits: Table, labels: Table | None) -> None:
    """Refuse what has no rows, and labels that cannot belong to the logits."""
    for table in (logits, labels):
        if table is not None and not table.shape:
            raise FileError(f"{table.name}: holds a single number, not rows")
        if table is not None and not all(table.shape):
            raise FileError(f"{table.name}: has no values, its shape is {table.shape}")
    if labels is None or len(labels) == len(logits):
        return
    # classes first: labels of the shape that the logits have without their class axis
    if any(labels.shape == logits.shape[:k] + logits.shape[k + 1 :] for k in range(len(logits.shape))):
        return
    raise FileError(
        f"{labels.name}: has {len(labels)} rows, but {logits.name} has {len(logits)}; both need the same rows in the same order"
    )


# --- formats ----------------------------------------------------------------------------------------------------------


def open_store(path: str) -> Store:
    """Find out which arrays a file holds.

    Raises:
        FileError: it is not there, not of a known kind, not what its name says, or damaged.
    """
    suffix = Path(path).suffix.lower()
    with reading(path):
        if os.path.isdir(path):
            raise FileError(f"{path}: is a directory, not a file")
        if not os.path.exists(path):
            raise FileError(f"{path}: no such file")
        if suffix not in FORMATS:
            raise FileError(
                f"{path}: what kind of file is {suffix or 'this'}? The name must end in one of {' '.join(FORMATS)}"
            )
        if os.path.getsize(path) == 0:
            raise FileError(f"{path}: the file is empty")
        store = FORMATS[suffix](path)
    return store._replace(table=lambda key: _opened(path, store, key))


def _opened(path: str, store: Store, key: str) -> Table:
    if key not in store.names + store.columns:
        raise FileError(f"{path}: has no array {key!r}, only {_listed(store.names + store.columns)}")
    with reading(path):
        table = store.table(key)
    return replace(table, name=f"{path}::{key}" if key else path)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever a broken file makes its reader say into one sentence about that file."""
    try:
        yield
    except FileError:
        raise
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        raise FileError(f"{path}: reading {Path(path).suffix} needs {package}: pip install 'crossent[files]'") from None
    except MemoryError:
        raise FileError(f"{path}: does not fit into memory; saved uncompressed it would not need to") from None
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not text in UTF-8") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {_first_line(error.strerror or error)}") from None
    except Exception as error:  # whatever a hostile file provokes in somebody else's reader
        raise FileError(f"{path}: is damaged or not a {Path(path).suffix} file: {_first_line(error)}") from None


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0].partition(". ")[0][:160].rstrip(".: ")
    return said if " " in said else type(error).__name__


def _numeric(path: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise FileError(
            f"{path}: holds Python objects, a pickle, which can run code and is not read: save plain numbers"
        )
    if dtype.kind not in "biuf":
        raise FileError(f"{path}: holds {dtype}, not real numbers")


def _starts_with(path: str, magic: bytes, kind: str) -> None:
    with open(path, "rb") as stream:
        head = stream.read(8)
    if not head.startswith(magic):
        is_pickle = head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"
        looks = "a pickle, which can run code and is not read" if is_pickle else f"it starts with {head!r}"
        raise FileError(f"{path}: is not {kind}: {looks}")


# --- .npy, .npz -------------------------------------------------------------------------------------------------------


def _npy(path: str) -> Store:
    _starts_with(path, npy.MAGIC_PREFIX, "a NumPy array")
    return Store(("",), lambda key: _mapped_npy(path, 0, os.path.getsize(path)))


def _mapped_npy(path: str, start: int, end: int) -> Table:
    """Map the array whose header and values lie between two offsets of a file."""
    with open(path, "rb") as stream:
        stream.seek(start)
        shape, order, dtype = _npy_header(path, stream, end - start)
        offset = stream.tell()
    return _table(np.memmap(path, dtype, "r", offset, shape, order) if math.prod(shape) else np.empty(shape, dtype))


def _npy_header(path: str, stream: Any, size: int) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Read what comes before the values; it must not promise more than the bytes hold."""
    start = stream.tell()
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    shape, fortran, dtype = read_header(stream)
    _numeric(path, dtype)
    needed, there = dtype.itemsize * math.prod(shape), start + size - stream.tell()
    if min(shape, default=0) < 0 or needed > there:
        raise FileError(f"{path}: is cut short: {shape} {dtype} needs {needed} bytes, {max(there, 0)} are there")
    return shape, "F" if fortran else "C", dtype


def _table(array: NDArray[Any]) -> Table:
    return Table("", array.shape, array.dtype.name, lambda start, stop: np.asarray(array[start:stop]))


def _npz(path: str) -> Store:
    _starts_with(path, b"PK", "a NumPy archive")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
    if not members:
        raise FileError(f"{path}: holds no arrays; a PyTorch file must end in .pt")

    def table(key: str) -> Table:
        info = members[key]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            start = _start_of_member(path, info)
            return _mapped_npy(path, start, start + info.file_size)
        with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
            # compressed: its rows cannot be found without what comes before them
            shape, order, dtype = _npy_header(path, stream, info.file_size)
            return _table(np.frombuffer(stream.read(), dtype, math.prod(shape)).reshape(shape, order=order))

    return Store(tuple(members), table)


def _start_of_member(path: str, info: zipfile.ZipInfo) -> int:
    """Find where a member's bytes begin: after its local header, whose length only that header tells."""
    with open(path, "rb") as stream:
        stream.seek(info.header_offset)
        header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise FileError(f"{path}: is damaged: {info.filename} is not where its directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + 30 + name + extra)


# --- text and parquet: read once into a temporary file ----------------------------------------------------------------


def _spooled(path: str, rows: Iterable[tuple[int, NDArray[np.float64]]], columns: Sequence[str] = ()) -> Table:
    """Write rows of one shape into an unnamed temporary file and map it; each comes with its line, to be named if it differs."""
    shape, count = None, 0
    with tempfile.TemporaryFile() as spool:
        for line, row in rows:
            if shape is None:
                shape = row.shape
            elif row.shape != shape:
                raise FileError(f"{path}: line {line} has shape {row.shape}, the lines before it {shape}")
            spool.write(row.tobytes())
            count += 1
        spool.flush()
        if shape is None or not (count and math.prod(shape)):
            raise FileError(f"{path}: holds no rows")
        values = np.memmap(spool, np.float64, "r", shape=(count, *shape))
    if all(_whole(values[start : start + BLOCK]) for start in range(0, count, BLOCK)):
        whole = Table("", values.shape, "int64", lambda start, stop: values[start:stop].astype(np.int64))
        return replace(whole, columns=tuple(columns))
    return replace(_table(values), columns=tuple(columns))


def _whole(values: NDArray[np.float64]) -> bool:
    return bool(np.all((np.rint(values) == values) & (np.abs(values) < 2**53)))


def _separated(path: str, delimiter: str) -> Store:
    """Open lines of numbers, with or without a first line of names."""
    first = next((cells for _, cells in _lines(path, delimiter)), None)
    if first is None:
        raise FileError(f"{path}: holds no rows")
    header = None if all(_is_number(cell) for cell in first) else tuple(cell.strip() for cell in first)
    if header is None:
        return Store(("",), lambda key: _numbers(path, delimiter, None, len(first)))
    names, rest, notes = _roles(path, header)

    def table(key: str) -> Table:
        chosen = (key,) if key else rest
        return _numbers(path, delimiter, [header.index(name) for name in chosen], len(header), chosen)

    return Store(names, table, header, notes)


def _roles(path: str, header: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Say of columns which are labels, which together are the nameless array, and which are left out."""
    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        raise FileError(f"{path}: has several columns called {', '.join(map(repr, twice))}")
    labels = tuple(name for name in header if name.lower() in LABELS)
    left = tuple(name for name in header if name.lower() in IDS)
    rest = tuple(name for name in header if name not in labels and name not in left)
    notes = (f"{path}: left out the column {', '.join(repr(name) for name in left)}",) if left else ()
    return (("",) if rest else ()) + labels, rest, notes


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


def _numbers(path: str, delimiter: str, columns: Sequence[int] | None, width: int, names: Sequence[str] = ()) -> Table:
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

    return _spooled(path, rows(), names if len(names) > 1 else ())


def _jsonl(path: str) -> Store:
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

    return Store(names, lambda key: _spooled(path, rows(key)))


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


def _parquet(path: str) -> Store:
    """Open the columns of a parquet file: lists, labels, and all other numbers together as one array."""
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    _starts_with(path, b"PAR1", "a parquet file")
    schema = pq.read_schema(path)
    lists = tuple(field.name for field in schema if kinds.is_list(field.type) or kinds.is_fixed_size_list(field.type))
    plain = tuple(
        f.name for f in schema if kinds.is_integer(f.type) or kinds.is_floating(f.type) or kinds.is_boolean(f.type)
    )
    names, rest, notes = _roles(path, plain)
    ignored = tuple(field.name for field in schema if field.name not in lists + plain)
    if ignored:
        notes += (f"{path}: left out what holds no numbers: {_listed(ignored)}",)
    if lists and rest:  # numbers beside lists are something else than a class each
        names, notes = names[1:], (*notes, f"{path}: left out the column {_listed(rest)}")

    def table(key: str) -> Table:
        chosen = (key,) if key else rest
        return _spooled(path, _batches(path, chosen), chosen if len(chosen) > 1 else ())

    return Store(lists + names, table, plain, notes)


def _batches(path: str, columns: Sequence[str]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    import pyarrow.parquet as pq

    line = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BLOCK // 16, columns=list(columns)):
            block = [np.array(batch.column(name).to_pylist(), np.float64) for name in columns]
            for row in block[0] if len(block) == 1 else np.stack(block, -1):
                line += 1
                yield line, np.asarray(row)


# --- .safetensors, .pt ------------------------------------------------------------------------------------------------


def _safetensors(path: str) -> Store:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dict)

    def table(key: str) -> Table:
        kind = kinds[key]
        narrow = kind == "BF16" or kind.startswith("F8")  # NumPy has none of them, and only there is torch needed
        part = safe_open(path, "pt" if narrow else "np").__enter__().get_slice(key)
        if narrow:
            dtype = "bfloat16" if kind == "BF16" else kind.lower()
            return Table("", tuple(part.get_shape()), dtype, lambda start, stop: part[start:stop].float().numpy())
        none = part[:0]
        _numeric(path, none.dtype)
        return Table("", tuple(part.get_shape()), none.dtype.name, lambda start, stop: part[start:stop])

    return Store(tuple(kinds), table)


def _pt(path: str) -> Store:
    """Open a tensor, or a dict or list of tensors, that ``torch.save`` wrote."""
    import pickle

    import torch

    try:
        with open(path, "rb") as stream:
            zipped = stream.read(2) == b"PK"
        # only the archives that torch writes since 1.6 can be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise FileError(
            f"{path}: is damaged, or holds more than tensors: other Python objects can run code and are not read"
        ) from None
    if isinstance(loaded, (list, tuple)):
        loaded = {str(k): value for k, value in enumerate(loaded)}
    named = loaded if isinstance(loaded, dict) else {"": loaded}
    tensors = {str(key): value.detach() for key, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        hint = f", only {_listed(map(str, named))}: save the logits as a tensor of its own" if named else ""
        raise FileError(f"{path}: holds no tensors at its top level{hint}")

    def table(key: str) -> Table:
        tensor = tensors[key]
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise FileError(f"{path}: holds a tensor of {tensor.dtype} and {tensor.layout}, not plain real numbers")
        narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)

        def read(start: int, stop: int) -> NDArray[Any]:
            part = tensor[start:stop]
            return np.asarray((part.float() if narrow else part).numpy())

        return Table("", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)

    return Store(tuple(tensors), table)


FORMATS: dict[str, Callable[[str], Store]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".jsonl": _jsonl,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".pth": _pt,
    ".parquet": _parquet,
}
