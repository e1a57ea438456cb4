"""What a file or a frame holds: columns with names, each with one entry a row; and the columns that were read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from crossent.tools.errors import FileError
from crossent.tools.files.damage import reading
from crossent.tools.files.row_array import RowArray

Kind = Literal["number", "bool", "word", "array", "key", "other"]  # a key, such as a date, can only name rows


class Column(NamedTuple):
    """What kind of entries a column has; of an array its shape, where the file tells it; of numbers whether they are whole."""

    kind: Kind
    described: str = ""
    whole: bool = True


@dataclass(frozen=True)
class Contents:
    """Columns that were read.

    Attributes:
        numbers: columns of one number a row, side by side as ``(N, K)``; their names are its ``columns``.
        words: columns as text, an entry that is missing as ``""``.
        arrays: columns with an array a row.
    """

    numbers: RowArray | None
    words: Mapping[str, Sequence[str]]
    arrays: Mapping[str, RowArray]

    def array(self, names: Sequence[str]) -> RowArray:
        """Take a column as it is, or columns of numbers side by side."""
        if len(names) == 1 and names[0] in self.arrays:
            return self.arrays[names[0]]
        numbers = self.numbers
        assert numbers is not None
        place = {name: j for j, name in enumerate(numbers.columns)}
        at = [place[name] for name in names]
        if len(at) == 1:
            read = numbers.read
            return replace(
                numbers, shape=numbers.shape[:1], read=lambda start, stop: read(start, stop)[:, at[0]], columns=()
            ).whole()
        if at == list(range(len(place))):
            return numbers.whole()
        whole = numbers.read
        return replace(
            numbers,
            shape=(len(numbers), len(at)),
            read=lambda start, stop: whole(start, stop)[:, at],
            columns=tuple(names),
        ).whole()


@dataclass(frozen=True)
class Table:
    """What a file or a frame holds.

    Attributes:
        path: of the file, or what an argument is called.
        columns: by name, in their order; the only array of a file that names none is ``""``.
        open: reads columns, given those wanted as numbers or arrays, those wanted as words, and those whose entries may be missing.
        beside: whether numbers of a row stand in columns side by side; in a file of arrays they do not.
        notes: what to tell the user, one sentence each.
    """

    path: str
    columns: Mapping[str, Column]
    open: Callable[[Sequence[str], Sequence[str], Sequence[str]], Contents]
    beside: bool = True
    notes: tuple[str, ...] = ()

    def names(self, *kinds: str) -> tuple[str, ...]:
        """Return the names of the columns of some kinds."""
        return tuple(name for name, column in self.columns.items() if column.kind in kinds)

    def usual(self, names: Sequence[str], among: Iterable[str] | None = None) -> str | None:
        """Find the first of some usual names, in upper or lower case; of what is nested the last part, if there is only one."""
        there = tuple(self.columns if among is None else among)
        by_lower = {name.lower(): name for name in reversed(there)}
        exact = next((by_lower[name] for name in names if name in by_lower), None)
        if exact is not None:
            return exact
        inner = [name for name in there if "." in name and last_part(name) in names]
        return inner[0] if len(inner) == 1 else None

    def read(self, wanted: Sequence[str], words: Sequence[str] = (), optional: Sequence[str] = ()) -> Contents:
        """Read columns. An error that a broken file causes, now or later, becomes one sentence.

        Raises:
            FileError: there is no such column, or the file is damaged.
        """
        for name in (*wanted, *words):
            if name not in self.columns:
                raise FileError(f"{self.path}: has no column {name!r}, only {listed(self.columns)}")
        with reading(self.path):
            contents = self.open(tuple(dict.fromkeys(wanted)), tuple(dict.fromkeys(words)), tuple(optional))
        return replace(
            contents,
            numbers=None if contents.numbers is None else self._guarded(contents.numbers),
            arrays={name: self._guarded(array) for name, array in contents.arrays.items()},
        )

    def _guarded(self, array: RowArray) -> RowArray:
        def read(start: int, stop: int) -> object:
            with reading(self.path):
                return array.read(start, stop)

        return replace(array, read=read)  # type: ignore[arg-type]

    def describe(self, names: Iterable[str]) -> str:
        """List columns with what is known of them."""
        return listed(" ".join(filter(None, (name or "(nameless)", self._described(name)))) for name in names)

    def _described(self, name: str) -> str:
        kind, described, _ = self.columns[name]
        return (
            described + " of words" * (bool(described) and kind == "word")
            if described
            else "(words)" * (kind == "word")
        )


def last_part(name: str) -> str:
    """Take the last part of what is called by where it is, in lower case.

    >>> last_part("output.Logits"), last_part("labels")
    ('logits', 'labels')
    """
    return name.rpartition(".")[2].lower()


def split(path: str) -> tuple[str, str | None]:
    """Take ``path::key`` apart.

    >>> split("preds.npz::logits"), split("preds.npz")
    (('preds.npz', 'logits'), ('preds.npz', None))
    """
    head, colons, key = path.rpartition("::")
    return (head, key) if colons else (path, None)


def listed(names: Iterable[str]) -> str:
    """Write names with commas between, the first dozen of many.

    >>> listed("abc"), listed(map(str, range(14)))
    ('a, b, c', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more')
    """
    names = [name or "(the nameless one)" for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
