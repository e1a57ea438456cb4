"""The errors of readers of broken or hostile files, turned into one sentence about the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from crossent.tools.errors import FileError
from crossent.tools.optional_packages import needs, package_of


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever error a broken file causes in its reader into one sentence about that file."""
    try:
        yield
    except FileError:
        raise
    except ImportError as error:
        package = package_of(error.name or "a package")
        raise FileError(f"{path}: {needs(f'reading {Path(path).suffix}', [package])}") from None
    except MemoryError:
        raise FileError(f"{path}: does not fit into memory; saved uncompressed it would not need to") from None
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not text in UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {_first_line(error.strerror or error)}") from None
    except Exception as error:  # whatever a hostile file provokes in somebody else's reader
        raise FileError(f"{path}: is damaged or not a {Path(path).suffix} file: {_first_line(error)}") from None


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    sentence = lines[0].partition(". ")[0][:160].rstrip(".: ")
    return sentence if " " in sentence else type(error).__name__


def refuse_other_than_numbers(path: str, dtype: np.dtype[Any]) -> None:
    """Refuse an array of complex numbers, of records, or of Python objects; words may be labels."""
    if dtype.hasobject:
        raise FileError(
            f"{path}: holds Python objects, a pickle, which can run code and is not read: save plain numbers"
        )
    if dtype.kind not in "biufUS":
        raise FileError(f"{path}: holds {dtype}, not real numbers")


def refuse_other_start(path: str, magic: bytes, kind: str) -> None:
    """Refuse a file that does not begin with the bytes of its kind."""
    with open(path, "rb") as stream:
        head = stream.read(8)
    if not head.startswith(magic):
        is_pickle = head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"
        looks = "a pickle, which can run code and is not read" if is_pickle else f"it starts with {head!r}"
        raise FileError(f"{path}: is not {kind}: {looks}")
