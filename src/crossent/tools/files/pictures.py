"""Masks as pictures: a .png, or a folder of them in the order of their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.arrays_table import arrays_table
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.table import Table


def open_picture(path: str) -> Table:
    """Open a mask ``(1, H, W)``."""
    return arrays_table(path, {"": row_array(_mask(path)[None])})


def open_folder(path: str) -> Table:
    """Open the masks of a folder, ``(N, H, W)``, and their names."""
    files = sorted(entry for entry in os.listdir(path) if entry.lower().endswith(".png"))
    if not files:
        raise FileError(f"{path}: is a directory without .png files, not a file")
    first = _mask(os.path.join(path, files[0]))

    def read(start: int, stop: int) -> NDArray[Any]:
        masks = [_mask(os.path.join(path, name)) for name in files[start:stop]]
        for name, mask in zip(files[start:stop], masks, strict=True):
            if mask.shape != first.shape:
                raise FileError(
                    f"{path}: {name} has {mask.shape[0]} × {mask.shape[1]} pixels, {files[0]} {first.shape[0]} × {first.shape[1]}"
                )
        return np.stack(masks)

    masks = RowArray("", (len(files), *first.shape), first.dtype.name, read)
    return arrays_table(path, {"": masks, "id": row_array(np.array([Path(name).stem for name in files]))})


def _mask(path: str) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16"):
            raise FileError(
                f"{path}: is a picture of colours ({picture.mode}), and a mask holds a class a pixel: save it as L or P"
            )
        values = np.asarray(picture)
    return values.astype(np.int64)
