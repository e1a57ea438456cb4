"""NumPy's files: ``.npy``, and ``.npz`` archives of them. All but compressed members are mapped."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy

from crossent.tools.errors import FileError
from crossent.tools.files.arrays_table import arrays_table
from crossent.tools.files.damage import refuse_other_start, refuse_other_than_numbers
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.spool import refuse_bomb
from crossent.tools.files.table import Table


def open_npy(path: str) -> Table:
    """Open the one array of a ``.npy`` file."""
    refuse_other_start(path, npy.MAGIC_PREFIX, "a NumPy array")
    return arrays_table(path, {"": _mapped(path, 0, os.path.getsize(path))})


def open_npz(path: str) -> Table:
    """Open the arrays of a ``.npz`` archive."""
    refuse_other_start(path, b"PK", "a NumPy archive")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
    if not members:
        raise FileError(f"{path}: holds no arrays; a PyTorch file must end in .pt")

    arrays = {name: _member(path, info) for name, info in members.items() if not _holds_objects(path, info)}
    if not arrays:
        refuse_other_than_numbers(path, np.dtype(object))
    return arrays_table(path, arrays)


def _holds_objects(path: str, info: zipfile.ZipInfo) -> bool:
    with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        return _described(stream)[2].hasobject


def _member(path: str, info: zipfile.ZipInfo) -> RowArray:
    """Open an array of an archive: mapped, or unpacked when it is asked for."""
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        start = _start_of_member(path, info)
        return _mapped(path, start, start + info.file_size)
    with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        shape, order, dtype = _header(path, stream, info.file_size)
    unpacked: list[np.ndarray[Any, Any]] = []

    def read(start: int, stop: int) -> np.ndarray[Any, Any]:
        if not unpacked:  # compressed: its rows cannot be found without what comes before them
            refuse_bomb(path, info.compress_size, info.file_size)
            with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
                _header(path, stream, info.file_size)
                unpacked.append(np.frombuffer(stream.read(), dtype, math.prod(shape)).reshape(shape, order=order))
        return unpacked[0][start:stop]

    return RowArray("", shape, dtype.name, read)


def _mapped(path: str, start: int, end: int) -> RowArray:
    """Map the array whose header and values lie between two offsets of a file."""
    with open(path, "rb") as stream:
        stream.seek(start)
        shape, order, dtype = _header(path, stream, end - start)
        offset = stream.tell()
    return row_array(np.memmap(path, dtype, "r", offset, shape, order) if math.prod(shape) else np.empty(shape, dtype))


def _header(path: str, stream: Any, size: int) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Read what comes before the values; it must not promise more than the bytes hold."""
    start = stream.tell()
    shape, fortran, dtype = _described(stream)
    refuse_other_than_numbers(path, dtype)
    needed, there = dtype.itemsize * math.prod(shape), start + size - stream.tell()
    if min(shape, default=0) < 0 or needed > there:
        raise FileError(f"{path}: is cut short: {shape} {dtype} needs {needed} bytes, {max(there, 0)} are there")
    return shape, "F" if fortran else "C", dtype


def _described(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    return read_header(stream)


def _start_of_member(path: str, info: zipfile.ZipInfo) -> int:
    """Find where a member's bytes begin: after its local header, whose length only that header tells."""
    with open(path, "rb") as stream:
        stream.seek(info.header_offset)
        header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise FileError(f"{path}: is damaged: {info.filename} is not where its directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + 30 + name + extra)
