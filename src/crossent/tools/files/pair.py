"""Logits and their labels, opened together: which columns hold them, which class is which, and which row belongs to which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from crossent.tools.errors import FileError
from crossent.tools.files.cells import MISSING
from crossent.tools.files.formats import open_table
from crossent.tools.files.keys import common_keys, counts_rows, paired
from crossent.tools.files.labels import encoded, numbered
from crossent.tools.files.roles import (
    IDS,
    INDEX,
    LABELS,
    LOGITS,
    OTHERS,
    PREDICTED,
    Selection,
    bare,
    candidates,
    class_numbers,
    classes_by_value,
    clear_classes,
    expand,
    groups,
    keys_of,
    label_of,
    label_of_part,
    places,
)
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.table import Table, last_part, listed, split
from crossent.tools.files.two_runs import refuse_two_runs

A_CLASS = 5  # labels for each class on average; with so many, a class without a label is odd
FEW = 16  # columns of words that are looked through for labels


class Pair(NamedTuple):
    """Logits and their labels, with what was chosen and left out, one sentence each."""

    logits: RowArray
    labels: RowArray | None
    notes: list[str]


def open_pair(
    logits: str, labels: str | None = None, selection: Selection | None = None, *, labels_only: bool = False
) -> Pair:
    """Open the logits and the labels, which may lie in one file.

    Args:
        logits: a path, or ``path::key`` for one array of several.
        labels: the same; None looks for labels beside the logits.
        selection: what was said about columns.
        labels_only: whether the user said that the second file is there for its labels; else one that holds predictions as well is
            refused, since it may be a second run.

    Returns:
        Both, and what to tell the user. The labels are None if there are none.

    Raises:
        FileError: whatever is wrong with a file, or unclear.
    """
    path, key = split(logits)
    first = open_table(path)
    if labels is None:
        return pair_tables(first, key, None, None, selection)
    other, label = split(labels)
    same = os.path.realpath(other) == os.path.realpath(path)
    second = first if same else open_table(other)
    return pair_tables(first, key, second, label, selection, labels_only=labels_only)


def pair_tables(
    first: Table,
    key: str | None,
    second: Table | None,
    label: str | None,
    selection: Selection | None = None,
    *,
    labels_only: bool = False,
) -> Pair:
    """Pair the logits of a table with the labels of the same or another one; what ``open_pair`` does after opening."""
    if second is not None and second is not first and key is None and label is None and not labels_only:
        refuse_two_runs(first, second, selection or Selection())
    return _Pairing(first, second or first, selection or Selection()).pair(key, label, second is not None)


class _Pairing:
    """One pairing.

    Args:
        first: the table of the logits.
        second: the table of the labels, which may be the same.
        selection: what was said about columns.
    """

    def __init__(self, first: Table, second: Table, selection: Selection) -> None:
        self.first, self.second, self.selection = first, second, selection
        self.notes = [*first.notes, *(note for note in second.notes if note not in first.notes)]
        self.own, self._found = first is second, tuple[str, ...]()
        self._ordered, self._key, self._by_value = True, "", False
        self._chosen: Sequence[str] | None = None  # the columns of numbers that are classes
        self._digits = tuple[str, ...]()  # what the columns are called, where they have been given other names

    def pair(self, key: str | None, label: str | None, wanted: bool) -> Pair:
        """Find both, and pair their rows."""
        self._refuse_unknown()
        asked = expand(self.second, [label], "labels") if label is not None else ()
        columns = self._logits_columns(key, asked)
        label_columns = self._found = asked or self._label_columns(columns, wanted)
        self._refuse_both(columns, label_columns)
        words = self._words(label_columns)
        logits = self._logits(columns, words or ())
        names = logits.columns or tuple(self.selection.class_names)
        self._ordered = logits.ordered
        labels = self._labels(label_columns, words, names, wanted)
        logits, labels = self._paired(logits, labels, label_columns)
        self._refuse_classes_without_labels(logits, labels)
        if self._chosen is not None:
            self._say_left_out(self._chosen)
        _check(logits, labels)
        taken = f": {listed(logits.columns)}" if self.first.beside and logits.columns else ""
        chosen = [f"logits: {logits}{taken}"] + ([] if labels is None else [f"labels: {labels}"])
        return Pair(logits, labels, [*chosen, *self.notes])

    def _refuse_unknown(self) -> None:
        """Refuse columns to be dropped, or to name the rows, that neither table has: a slip would go unnoticed."""
        there = list(dict.fromkeys((*self.first.columns, *self.second.columns)))
        for pattern in self.selection.drop:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in there):
                raise FileError(f"{self.first.path}: has no column {pattern!r} to drop, only {listed(there)}")
        named = self.selection.id
        if named is not None and not {named, *(name.strip() for name in named.split(","))} & set(there):
            raise FileError(f"{self.first.path}: has no column {named!r}, which --id says, only {listed(there)}")

    def _refuse_both(self, columns: Sequence[str], labels: Sequence[str]) -> None:
        both = [name for name in columns if name in labels] if self.own else []
        if both:
            where = f"{self.first.path}::{both[0]}" if both[0] else self.first.path
            raise FileError(f"{where}: is taken for the logits and for their labels: name both, as FILE::NAME")

    def _refuse_classes_without_labels(self, logits: RowArray, labels: RowArray | None) -> None:
        """Refuse columns that were taken for classes because nothing else was left, if no label is one of them."""
        if not self._by_value or labels is None or len(labels.shape) > 1 or len(logits) != len(labels):
            return
        values = np.asarray(labels.rows(0, len(labels)), np.float64)
        there = values[np.isfinite(values) & (values >= 0)]
        count = len(logits.columns)
        occur = len(np.unique(there[there < count]))
        if occur < count and len(there) >= A_CLASS * count:
            raise FileError(
                f"{self.first.path}: which of the columns {listed(logits.columns)} are classes? The labels of {len(there)} rows "
                f"name {occur} classes, and these are {count}. Say --classes with the names of the classes, also of those "
                "without a label, or --drop the others"
            )

    # --- logits -------------------------------------------------------------------------------------------------------

    def _logits_columns(self, key: str | None, asked: Sequence[str]) -> tuple[str, ...]:
        """Find an array, or the columns of numbers that may be classes."""
        table = self.first
        if key is not None:
            return expand(table, [key], "logits")
        besides = set(asked) if self.own else set()
        arrays = [
            name
            for name in table.names("array")
            if name not in besides and name.lower() not in LABELS and (not name or not IDS.fullmatch(name))
        ]
        if not self.selection.classes:
            if (name := table.usual(LOGITS, arrays)) is not None:
                return (name,)
            if len(arrays) == 1:
                return (arrays[0],)
            if arrays:
                raise FileError(
                    f"{table.path}: which array holds the logits? Name one of {table.describe(arrays)}, as {table.path}::NAME"
                )
        numbers = (
            tuple(name for name in candidates(table, self.selection) if name not in besides) if table.beside else ()
        )
        if not numbers and besides:
            return self._logits_columns(None, ())  # the only one, which cannot be its own labels
        if not numbers and not self.selection.classes:
            fractions = [
                name for name in table.names("number") if not table.columns[name].whole and name not in besides
            ]
            hint = f"; if {fractions[0]} holds them, say {table.path}::{fractions[0]}" if len(fractions) == 1 else ""
            raise FileError(f"{table.path}: holds no logits, only {table.describe(table.columns)}{hint}")
        return numbers

    def _logits(self, columns: Sequence[str], words: Sequence[str]) -> RowArray:
        """Read the logits, and choose among columns of numbers those that are classes."""
        table, selection = self.first, self.selection
        if len(columns) == 1 and table.columns[columns[0]].kind in ("array", "word", "key", "other"):
            if table.columns[columns[0]].kind != "array":
                raise FileError(f"{table.path}::{columns[0]}: holds words, not logits")
            array = table.read(columns).array(columns)
            name = f"{table.path}::{columns[0]}" if columns[0] else table.path
            return self._renamed(replace(array, name=name))
        clear = clear_classes(table, columns, words, selection)
        contents = table.read(clear or columns)
        chosen = clear or columns
        if clear is None and len(columns) > 1:
            array = contents.array(columns)
            self._by_value = True
            chosen = classes_by_value(table, array if array.columns else replace(array, columns=tuple(columns)), words)
        self._chosen = chosen
        name = f"{table.path}::{chosen[0]}" if len(chosen) == 1 and chosen[0] else table.path
        array = replace(contents.array(chosen), name=name)
        return self._renamed(replace(array, columns=self._class_names(chosen) if len(chosen) > 1 else ()))

    def _class_names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Call classes by their columns, without what stands before the star of a pattern or a usual prefix."""
        patterns = self.selection.classes
        if len(patterns) == 1 and patterns[0].endswith("*") and patterns[0].count("*") == 1:
            return tuple(name.removeprefix(patterns[0][:-1]) or name for name in columns)
        return bare(columns)

    def _say_left_out(self, chosen: Sequence[str]) -> None:
        keys = (self._key,) if self._key else keys_of(self.first, self.selection)[:1]
        out = {*chosen, *self._found[: self.own], *keys}
        left = [name for name in self.first.columns if name not in out]
        if left:
            self.notes.append(f"{self.first.path}: left out {listed(repr(name) for name in left)}")

    def _renamed(self, array: RowArray) -> RowArray:
        """Hold the names that were said to those in the file: the same in any order, or names for numbers."""
        names, there = tuple(self.selection.class_names), array.columns
        if len(array.shape) < 2:
            return array
        if not names:
            return self._by_number(array)
        if not there:
            return replace(array, columns=names) if len(names) in array.shape[1:] else array
        at = places(names, there)
        if at is not None and len(at) == len(there):
            if at == list(range(len(there))):
                return replace(array, ordered=True)
            read = array.read
            self.notes.append(f"{array.name}: its classes are taken in the order of --class-names")
            return replace(array, columns=names, ordered=True, read=lambda start, stop: read(start, stop)[:, at])
        numbers = class_numbers(there)
        if len(names) == len(there) and numbers is not None:
            order = sorted(range(len(there)), key=numbers.__getitem__)  # the names are those of 0, 1, 2 ...
            self._digits = tuple(there[k] for k in order)
            read = array.read
            return replace(array, columns=names, ordered=True, read=lambda start, stop: read(start, stop)[:, order])
        raise FileError(
            f"{array.name}: has the classes {listed(there)}, and --class-names says {listed(names)}: which is which?"
        )

    def _by_number(self, array: RowArray) -> RowArray:
        """Take classes that are called by numbers in the order of these, not in that of their columns."""
        numbers = class_numbers(array.columns)
        if numbers is None or numbers == sorted(numbers):
            return array
        order, read, there = np.argsort(numbers), array.read, array.columns
        self.notes.append(f"{array.name}: its classes are taken in the order of their numbers")
        return replace(
            array,
            columns=tuple(there[k] for k in order),
            ordered=True,
            read=lambda start, stop: read(start, stop)[:, order],
        )

    # --- labels -------------------------------------------------------------------------------------------------------

    def _label_columns(self, logits: Sequence[str], wanted: bool) -> tuple[str, ...]:
        """Find the column of labels by its name, or because there is no other; nothing where the classes' own columns may be it."""
        table = self.second
        besides = logits if self.own else ()
        label = None
        if self.own and not table.beside and len(logits) == 1:
            label = label_of_part(logits[0], table.columns)
        label = label or label_of(table, self.selection, besides)
        if label is not None:
            return (label,)
        if self.own:
            arrays = [name for name in table.names("array", "word") if name not in logits]
            others = arrays if not table.beside or arrays else []
            others = [name for name in others if not IDS.fullmatch(name)]
            if wanted and set(table.columns) <= {*logits, ""}:
                return tuple(logits)
            if wanted:
                raise FileError(f"{table.path}: nothing is called labels: name them, as {table.path}::NAME")
            if not table.beside:
                others = [name for name in others if table.columns[name].whole and last_part(name) not in LOGITS]
            others = [name for name in others if name.lower() not in OTHERS and not PREDICTED.search(name.lower())]
            if others:
                self.notes.append(
                    f"{table.path}: nothing is called labels; if {' or '.join(others[:3])} holds them, say "
                    f"{table.path}::{others[0] if len(others) == 1 else 'NAME'} as well"
                )
            return ()
        out = {*keys_of(table, self.selection), *self.selection.drop}
        left = [
            name for name, column in table.columns.items() if name not in out and column.kind not in ("key", "other")
        ]
        if not left and len(table.columns) == 1:
            left = list(table.columns)
        if len(left) > 1 and table.beside:
            left = self._of_classes(left, logits) or left
        if len(left) == 1:
            return (left[0],)
        if not table.beside:
            raise FileError(
                f"{table.path}: which array holds the labels? Name one of "
                f"{table.describe(left or table.columns)}, as {table.path}::NAME"
            )
        return ()

    def _of_classes(self, columns: Sequence[str], logits: Sequence[str]) -> list[str]:
        """Find the columns of words all of which are classes."""
        classes = {name.strip().casefold() for group in groups(logits) for name in bare(group)}
        classes |= {name.casefold() for name in self.selection.class_names}
        words = [name for name in columns if self.second.columns[name].kind == "word"][:FEW]
        read = self.second.read((), words).words if words else {}
        return [name for name in words if {w.casefold() for w in read[name] if w.lower() not in MISSING} <= classes]

    def _words(self, columns: Sequence[str]) -> Sequence[str] | None:
        """Read labels that are words; of truth values they are either."""
        if len(columns) != 1 or self.second.columns[columns[0]].kind not in ("word", "bool"):
            return None
        return self.second.read((), columns).words[columns[0]]

    def _labels(
        self, columns: Sequence[str], words: Sequence[str] | None, names: Sequence[str], wanted: bool
    ) -> RowArray | None:
        """Read the labels as numbers of classes, or as one number for each class."""
        table = self.second
        if words is not None:
            return encoded(f"{table.path}::{columns[0]}" if columns[0] else table.path, words, names, self.notes)
        if len(columns) == 1:
            contents = table.read(columns, (), columns)
            name = f"{table.path}::{columns[0]}" if columns[0] else table.path
            array = replace(contents.array(columns), name=name)
            if len(array.columns) > 1 and names:
                return self._in_order_of(array, names)
            if not self._ordered:
                raise FileError(
                    f"{self.first.path}: its classes, {listed(names)}, come in a different order in each row, and the labels are "
                    "numbers: say --class-names in the order of the labels"
                )
            return numbered(array, self._digits or names)
        if not columns and self.own and not wanted:
            return None
        among = columns or candidates(table, self.selection)
        at = places(names, bare(among)) if names else None
        if at is None:
            for group in groups(among, truth=True):
                at = places(names, bare(group)) if names else None
                if at is not None:
                    among = group
                    break
        if at is None:
            self._refuse_labels(among, names)
        chosen = [among[k] for k in at or range(len(among))]
        contents = table.read(chosen, (), chosen)
        return replace(contents.array(chosen), name=table.path)

    def _in_order_of(self, array: RowArray, names: Sequence[str]) -> RowArray:
        """Take an array whose columns have names in the order of the classes."""
        at = places(names, array.columns)
        if at is None or len(at) != len(array.columns):
            raise FileError(f"{array.name}: has the classes {listed(array.columns)}, and the logits {listed(names)}")
        read = array.read
        return replace(array, columns=tuple(names), read=lambda start, stop: read(start, stop)[:, at])

    def _refuse_labels(self, among: Sequence[str], names: Sequence[str]) -> None:
        table = self.second
        columns = [name for name in table.columns if name not in keys_of(table, self.selection)]
        if names and among:
            raise FileError(
                f"{table.path}: has the columns {listed(columns)}, and {self.first.path} the classes {listed(names)}: "
                f"name the column of labels, as {table.path}::NAME, or call the classes alike"
            )
        if names or len(among) < 2 or len(among) < len(columns):
            raise FileError(
                f"{table.path}: which column holds the labels? "
                f"Name one of {listed(columns or table.columns)}, as {table.path}::NAME"
            )
        self.notes.append(f"{table.path}: the classes are taken in the order of its columns, {listed(among)}")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _paired(
        self, logits: RowArray, labels: RowArray | None, label_columns: Sequence[str]
    ) -> tuple[RowArray, RowArray | None]:
        """Give the rows of the logits their names, and bring the labels into their order."""
        here = list(keys_of(self.first, self.selection))
        if self.own or labels is None:
            return (replace(logits, ids=_Words(self.first, here[0], len(logits))) if here else logits), labels
        there = [name for name in keys_of(self.second, self.selection) if name not in label_columns]
        if self.selection.id is not None and not (here and there):
            lacking = self.second.path if here else self.first.path
            raise FileError(f"{lacking}: has no column {self.selection.id!r}, which --id says")
        shared = [
            name
            for name in self.first.names("word", "key")
            if name in self.second.names("word", "key")
            and name not in label_columns
            and name not in self.selection.drop
        ]
        keys = common_keys(here, there)
        if keys is None and shared:
            keys = (shared[0], shared[0])
        if keys is None:
            named = [(here, self.second), (there, self.first)]
            self.notes += [
                f"{other.path}: has no column that names its rows, which are paired by their order"
                for own, other in named
                if own and own[0].lower() not in INDEX
            ]
            return (replace(logits, ids=_Words(self.first, here[0], len(logits))) if here else logits), labels
        return self._joined(logits, labels, keys)

    def _joined(self, logits: RowArray, labels: RowArray, keys: tuple[str, str]) -> tuple[RowArray, RowArray]:
        self._key = keys[0]
        first = self.first.read((), keys[:1]).words[keys[0]]
        second = self.second.read((), keys[1:]).words[keys[1]]
        if len(first) != len(logits) or len(second) != len(labels):
            return logits, labels  # names of something else than rows
        names = (self.first.path, self.second.path)
        logits = replace(logits, ids=first)
        alike = keys[0].lower() == keys[1].lower()
        if not alike and sorted(first) != sorted(second):
            if counts_rows(first) or counts_rows(second):
                self.notes.append(
                    f"{names[1]}: rows are paired by their order, since {keys[0] or 'index'!r} and {keys[1] or 'index'!r} differ"
                )
                return (
                    replace(logits, ids=second) if counts_rows(first) and len(first) == len(second) else logits
                ), labels
            raise FileError(
                f"{names[1]}: its rows are called by {keys[1]!r} and those of {names[0]} by {keys[0]!r}, which differ: "
                "say --id with the two, or --drop one to pair rows by their order"
            )
        order = paired(first, second, names, keys)
        if order is None:
            return logits, labels
        self.notes.append(f"{names[1]}: its rows are in another order, and were paired by {keys[1] or 'index'!r}")
        return logits, labels.in_order(order)


class _Words(Sequence[str]):
    """A column of words that is read when one of them is wanted."""

    def __init__(self, table: Table, name: str, length: int) -> None:
        self.table, self.name, self.length = table, name, length
        self.words: Sequence[str] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        if self.words is None:
            self.words = self.table.read((), (self.name,)).words[self.name]
        if not -self.length <= row < self.length:
            raise IndexError(row)  # which ends a loop over a sequence
        row %= self.length
        return self.words[row] if row < len(self.words) else ""


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
    heading = ""
    if len(labels) == len(logits) + 1 and float(np.ravel(labels.rows(0, 1))[0]) == 0:
        heading = "; if its first line, 0, is the name of the column, give that a name, or save it without a heading"
    raise FileError(
        f"{labels.name}: has {len(labels)} rows, but {logits.name} has {len(logits)}; "
        f"both need the same rows in the same order{heading}"
    )
