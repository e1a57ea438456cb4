"""Logits and their labels, opened together."""

from __future__ import annotations

from typing import NamedTuple

from crossent.tools.errors import FileError
from crossent.tools.files.formats import open_store
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.store import LABELS, LOGITS, choose, listed, split


class Pair(NamedTuple):
    """Logits and their labels, with what was chosen and left out, one sentence each."""

    logits: RowArray
    labels: RowArray | None
    notes: list[str]


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
    first = store.array(key)
    second, notes = None, list(store.notes)
    if labels is not None:
        path, key = split(labels)
        other = open_store(path)
        second = other.array(choose(path, other, key, LABELS, "labels"))
        notes += [note for note in other.notes if note not in notes]
    elif name := store.usual(LABELS):
        second = store.array(name)
    elif others := [name for name in store.names if name != key]:
        notes.append(
            f"{path}: nothing is called labels; if {listed(others)} holds them, say {path}::{others[0]} as well"
        )
    _check(first, second)
    notes.insert(0, f"logits: {first}")
    if second is not None:
        notes.insert(1, f"labels: {second}")
    return Pair(first, second, notes)


def _check(logits: RowArray, labels: RowArray | None) -> None:
    """Refuse what has no rows, and labels that cannot belong to the logits."""
    for array in (logits, labels):
        if array is not None and not array.shape:
            raise FileError(f"{array.name}: holds a single number, not rows")
        if array is not None and not all(array.shape):
            raise FileError(f"{array.name}: has no values, its shape is {array.shape}")
    if labels is None or len(labels) == len(logits):
        return
    # classes first: labels of the shape that the logits have without their class axis
    if any(labels.shape == logits.shape[:k] + logits.shape[k + 1 :] for k in range(len(logits.shape))):
        return
    raise FileError(
        f"{labels.name}: has {len(labels)} rows, but {logits.name} has {len(logits)}; both need the same rows in the same order"
    )
