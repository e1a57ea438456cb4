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
from crossent.tools.files.damage import refuse_other_start, refuse_other_than_numbers
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.store import Store


def open_npy(path: str) -> Store:
    """Open the one array of a ``.npy`` file."""
    refuse_other_start(path, npy.MAGIC_PREFIX, "a NumPy array")
    return Store(("",), lambda key: _mapped(path, 0, os.path.getsize(path)))


def open_npz(path: str) -> Store:
    """Open the arrays of a ``.npz`` archive."""
    refuse_other_start(path, b"PK", "a NumPy archive")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
    if not members:
        raise FileError(f"{path}: holds no arrays; a PyTorch file must end in .pt")

    def array(key: str) -> RowArray:
        info = members[key]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            start = _start_of_member(path, info)
            return _mapped(path, start, start + info.file_size)
        with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
            # compressed: its rows cannot be found without what comes before them
            shape, order, dtype = _header(path, stream, info.file_size)
            return row_array(np.frombuffer(stream.read(), dtype, math.prod(shape)).reshape(shape, order=order))

    return Store(tuple(members), array)


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
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    shape, fortran, dtype = read_header(stream)
    refuse_other_than_numbers(path, dtype)
    needed, there = dtype.itemsize * math.prod(shape), start + size - stream.tell()
    if min(shape, default=0) < 0 or needed > there:
        raise FileError(f"{path}: is cut short: {shape} {dtype} needs {needed} bytes, {max(there, 0)} are there")
    return shape, "F" if fortran else "C", dtype


def _start_of_member(path: str, info: zipfile.ZipInfo) -> int:
    """Find where a member's bytes begin: after its local header, whose length only that header tells."""
    with open(path, "rb") as stream:
        stream.seek(info.header_offset)
        header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise FileError(f"{path}: is damaged: {info.filename} is not where its directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + 30 + name + extra)
