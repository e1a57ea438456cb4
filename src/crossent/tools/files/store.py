"""The arrays of a file by name, and the choice of one: by a name that is given, by a usual one, or because there is no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from crossent.tools.errors import FileError
from crossent.tools.files.row_array import RowArray

LOGITS = ("logits", "predictions", "preds", "scores", "outputs", "probs")
LABELS = ("labels", "targets", "label_ids", "label", "target", "y")
IDS = ("id", "ids", "index", "")  # columns that are no class; pandas writes its index without a name


class Store(NamedTuple):
    """The arrays of a file and how to open one; a nameless array is called ``""``.

    ``columns`` are what may be named beside, and ``notes`` say what was left out.
    """

    names: tuple[str, ...]
    array: Callable[[str], RowArray]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def usual(self, names: Sequence[str]) -> str | None:
        """Find the first of some usual names, in upper or lower case."""
        by_lower = {name.lower(): name for name in reversed(self.names)}
        return next((by_lower[name] for name in names if name in by_lower), None)


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
    name = store.usual(usual)
    if name is not None:
        return name
    if role == "logits" and "" in store.names:
        return ""
    if len(store.names) == 1:
        return store.names[0]
    raise FileError(f"{path}: which array holds the {role}? Name one of {listed(store.names)}, as {path}::NAME")


def listed(names: Iterable[str]) -> str:
    """Write names with commas between, the first dozen of many."""
    names = [name or "(the nameless one)" for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def roles(path: str, header: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Say of columns which are labels, which together are the nameless array, and which are left out."""
    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        raise FileError(f"{path}: has several columns called {', '.join(map(repr, twice))}")
    labels = tuple(name for name in header if name.lower() in LABELS)
    left = tuple(name for name in header if name.lower() in IDS)
    rest = tuple(name for name in header if name not in labels and name not in left)
    notes = (f"{path}: left out the column {', '.join(repr(name) for name in left)}",) if left else ()
    return (("",) if rest else ()) + labels, rest, notes
