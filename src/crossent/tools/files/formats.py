"""The kinds of files by the end of their name, and how a file of any kind is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from crossent.tools.errors import FileError
from crossent.tools.files.damage import reading
from crossent.tools.files.json_files import open_json, open_jsonl
from crossent.tools.files.numpy_files import open_npy, open_npz
from crossent.tools.files.parquet import open_parquet
from crossent.tools.files.pictures import open_folder, open_picture
from crossent.tools.files.table import Table
from crossent.tools.files.tensors import open_pt, open_safetensors
from crossent.tools.files.text_files import open_csv, open_tsv, open_txt

FORMATS: dict[str, Callable[[str], Table]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".txt": open_txt,
    ".jsonl": open_jsonl,
    ".json": open_json,
    ".safetensors": open_safetensors,
    ".pt": open_pt,
    ".pth": open_pt,
    ".parquet": open_parquet,
    ".png": open_picture,
}
PACKED = {".gz", ".zip"}  # after the name of a text
TEXTS = (".csv", ".tsv", ".txt", ".jsonl", ".json")


def suffix(path: str) -> str:
    """Find the kind of a file by its name.

    >>> suffix("preds.csv.gz"), suffix("preds.NPZ")
    ('.csv', '.npz')
    """
    ends = [end.lower() for end in Path(path).suffixes]
    if ends and ends[-1] in PACKED:
        return ends[-2] if len(ends) > 1 and ends[-2] in TEXTS else ".csv" if ends[-1] == ".zip" else ends[-1]
    return ends[-1] if ends else ""


def open_table(path: str) -> Table:
    """Find out which columns a file holds.

    Raises:
        FileError: it is not there, not of a known kind, not what its name says, or damaged.
    """
    kind = suffix(path)
    with reading(path):
        if os.path.isdir(path):
            return open_folder(path)
        if not os.path.exists(path):
            raise FileError(f"{path}: no such file")
        if kind in (".pkl", ".pickle", ".joblib"):
            raise FileError(
                f"{path}: is a pickle, which can run code and is not read: save it by to_parquet, to_csv or np.savez"
            )
        if kind not in FORMATS:
            raise FileError(
                f"{path}: what kind of file is {kind or 'this'}? The name must end in one of {' '.join(FORMATS)}; "
                "texts may be packed as .gz or .zip"
            )
        if os.path.getsize(path) == 0:
            raise FileError(f"{path}: the file is empty")
        return FORMATS[kind](path)
