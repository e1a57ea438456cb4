"""The losses of a run, in the order of training: from numbers, or from what a logger wrote.

Loggers write one column for each thing they follow, and leave cells empty where one was not measured: Lightning's CSVLogger,
exports of TensorBoard and Weights & Biases, the log_history of a Trainer. The training loss is one of these columns, and all the
others are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.formats import FORMATS, open_table, suffix
from crossent.tools.files.roles import expand
from crossent.tools.files.table import Table, listed, split
from crossent.tools.files.values import read_numbers

HELD_OUT = re.compile(r"(^|[^a-z])(e?val|valid|validation|test|dev|eval)([^a-z]|$)", re.IGNORECASE)
LOSS = re.compile(r"(^|[^a-z])loss(es)?([^a-z]|$)", re.IGNORECASE)
PARTS = ("__min", "__max")  # what Weights & Biases writes beside a column


def read_losses(given: str) -> NDArray[Any]:
    """Read the losses of a run from a file, or numbers as they stand.

    Raises:
        FileError: it is not clear which numbers are the losses.
    """
    path, key = split(given)
    if suffix(path) not in FORMATS:
        return read_numbers(given).reshape(-1)
    table = open_table(path)
    column = expand(table, [key], "losses")[0] if key is not None else _choose(table)
    array = table.read((column,), (), (column,)).array((column,))
    values = np.asarray(array.rows(0, len(array)), np.float64)
    if values.ndim == 2 and values.shape[1] > 1:
        losses = [k for k in range(values.shape[1]) if not _counts_up(values[:, k])]
        values = values[:, losses[0]] if len(losses) == 1 else values
    if values.ndim > 1 and values.shape[1:] != (1,):
        raise FileError(
            f"{array.name or path}: holds {values.shape[1]} columns, and the losses are one of them: name it, as {path}::NAME"
        )
    values = values.reshape(-1)
    return values if table.columns[column].kind == "array" else values[~np.isnan(values)]


def _counts_up(column: NDArray[Any]) -> bool:
    """Whether a column without a name is no loss: steps, epochs, or the time that TensorBoard and MLflow write beside them."""
    return len(column) > 1 and bool(
        np.all(np.diff(column) > 0) and (column[0] > 1e9 or np.all(column == np.rint(column)))
    )


def _choose(table: Table) -> str:
    """Choose the column of the training loss by its name; of a file without names the only one."""
    names = table.names("number", "array")
    if "" in names and len(names) == 1:
        return ""
    exact = table.usual(("loss", "losses", "train_loss", "train/loss", "training_loss", "loss/train"), names)
    if exact is not None:
        return exact
    losses = [
        name
        for name in names
        if LOSS.search(name.replace("_", " "))
        and not HELD_OUT.search(name.replace("_", " "))
        and not name.lower().endswith(PARTS)
    ]
    steps = [name for name in losses if name.lower().endswith("step")]
    for found in (losses, steps):
        if len(found) == 1:
            return found[0]
    if not losses and {"step", "value"} <= {name.lower() for name in names}:
        return next(name for name in names if name.lower() == "value")
    if not losses and len(names) == 1:
        return names[0]
    return _refuse(table, losses or names)


def _refuse(table: Table, names: Sequence[str]) -> str:
    raise FileError(
        f"{table.path}: which column holds the losses? Name one of {listed(names or table.columns)}, as {table.path}::NAME"
    )
