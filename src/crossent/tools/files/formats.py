"""The kinds of files by the end of their name, and how a file of any kind is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from crossent.tools.errors import FileError
from crossent.tools.files.damage import reading
from crossent.tools.files.numpy_files import open_npy, open_npz
from crossent.tools.files.parquet import open_parquet
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.store import Store, listed
from crossent.tools.files.tensors import open_pt, open_safetensors
from crossent.tools.files.text_files import open_csv, open_jsonl, open_tsv

FORMATS: dict[str, Callable[[str], Store]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".jsonl": open_jsonl,
    ".safetensors": open_safetensors,
    ".pt": open_pt,
    ".pth": open_pt,
    ".parquet": open_parquet,
}


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
    return store._replace(array=lambda key: _opened(path, store, key))


def _opened(path: str, store: Store, key: str) -> RowArray:
    if key not in store.names + store.columns:
        raise FileError(f"{path}: has no array {key!r}, only {listed(store.names + store.columns)}")
    with reading(path):
        array = store.array(key)
    return replace(array, name=f"{path}::{key}" if key else path)
