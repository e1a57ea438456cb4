"""JSON: lines of objects, lists or numbers (.jsonl), and documents of lists or of columns (.json).

An object in a row that gives each class its number is an array whose columns have names; so is a list of labels with scores, as
pipelines return it. Samples of lm-evaluation-harness become the log-likelihoods of their choices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.cells import is_number, mostly_numbers
from crossent.tools.files.roles import LABELS
from crossent.tools.files.spool import Spool
from crossent.tools.files.table import Column, Contents, Kind, Table
from crossent.tools.files.text_files import opened_text

SAMPLE = 100
DEPTH = 3  # of objects in a row
MOST = 1 << 30  # bytes of a document that is read whole

Rows = Callable[[], Iterator[tuple[int, Any]]]


def open_jsonl(path: str) -> Table:
    """Open lines of JSON: objects with the same keys, or lists, or numbers."""
    return table_of_rows(path, lambda: _lines(path))


def open_json(path: str) -> Table:
    """Open a document: a list of rows, an object of columns, or what a Trainer writes about its state."""
    if os.path.getsize(path) > MOST:
        raise FileError(f"{path}: is too large to be read as one document: write one row a line, as .jsonl")
    with opened_text(path) as stream:
        try:
            document: Any = json.load(stream)
        except (ValueError, RecursionError):
            raise FileError(f"{path}: is not JSON; a file with one document a line must be called .jsonl") from None
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        document = document["log_history"]
    if isinstance(document, dict) and {"columns", "data"} <= set(document):  # a split frame of pandas, a table of wandb
        rows = [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]
        keys = document.get("index")
        document = [{"index": key, **row} for key, row in zip(keys, rows, strict=True)] if keys else rows
    if isinstance(document, dict) and {"schema", "data"} == set(document):  # a frame of pandas with its schema
        document = document["data"]
    if isinstance(document, dict):
        document = _rows_of_columns(path, document)
    if not isinstance(document, list) or not document:
        raise FileError(f"{path}: holds no rows: a list of them is wanted, or an object of columns")
    return table_of_rows(path, lambda: enumerate(document, 1))


def _rows_of_columns(path: str, document: dict[str, Any]) -> list[Any]:
    """Turn columns into rows: lists of one length, or objects with the same keys, as a frame of pandas writes itself."""
    columns = {name: entries for name, entries in document.items() if isinstance(entries, (list, dict)) and entries}
    if not columns:
        raise FileError(f"{path}: holds no columns of rows")
    lengths = {name: len(entries) for name, entries in columns.items()}
    if len(set(lengths.values())) > 1:
        raise FileError(f"{path}: its columns differ in length: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
    if all(isinstance(entries, dict) for entries in columns.values()):
        if _are_rows(columns):
            return [{"index": key, **dict(row)} for key, row in columns.items()]
        keys = list(next(iter(columns.values())))
        try:
            return [{"index": key, **{name: entries[key] for name, entries in columns.items()}} for key in keys]
        except KeyError as error:
            raise FileError(f"{path}: not every column has the key {error}") from None
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*(e.values() if isinstance(e, dict) else e for e in columns.values()), strict=True)
    ]


def _are_rows(document: dict[str, Any]) -> bool:
    """Whether objects in an object are rows by their keys, and not columns: such are called label, and hold things of one kind."""
    inner = next(iter(document.values()))
    called = [any(key.lower() in LABELS for key in keys) for keys in (document, inner)]
    if called[0] != called[1]:
        return called[1]
    mixed = [len({isinstance(entry, str) for entry in entries.values()}) > 1 for entries in document.values()]
    numbers = [all(map(is_number, keys)) for keys in (document, inner)]
    if numbers[0] != numbers[1]:
        return numbers[0]
    return all(mixed) or len(document) > len(inner)


def _lines(path: str) -> Iterator[tuple[int, Any]]:
    with opened_text(path) as stream:
        for line, text in enumerate(stream, 1):
            if text.strip():
                try:
                    yield line, json.loads(text)
                except (ValueError, RecursionError):
                    raise FileError(f"{path}: line {line} is not JSON: {text.strip()[:40]!r}") from None


# --- rows of any kind -------------------------------------------------------------------------------------------------


def table_of_rows(path: str, rows: Rows) -> Table:
    """Make a table of rows that are objects, lists or numbers."""
    sample = [value for _, value in islice(rows(), SAMPLE)]
    if not sample:
        raise FileError(f"{path}: holds no rows")
    if all(isinstance(value, dict) and "filtered_resps" in value and "target" in value for value in sample):
        return _table(path, lambda: _harness(path, rows()), fill=-np.inf)
    if not all(isinstance(value, dict) for value in sample):
        return _table(path, lambda: ((line, _nameless(path, line, value)) for line, value in rows()))
    if any(_nested(entry) for value in sample for entry in value.values()):
        return _table(path, lambda: ((line, dict(_flat("", value))) for line, value in rows()))
    return _table(path, rows)


def _nested(entry: Any) -> bool:
    if not isinstance(entry, dict) or not entry:
        return False
    numbered = any(key.lower() in LABELS and isinstance(each, int) for key, each in entry.items())
    return _array(entry) is None or len(entry) == 1 or numbered


def _flat(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Find what objects in a row hold, three levels deep, called by where it is: ``output.logits``."""
    if not isinstance(value, dict) or (name and not _nested(value)) or depth > DEPTH:
        yield name, value
        return
    for key, each in value.items():
        yield from _flat(f"{name}.{key}" if name else str(key), each, depth + 1)


def _nameless(path: str, line: int, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        raise FileError(f"{path}: line {line} is an object, and the lines before it are not")
    return {"": value}


def _harness(path: str, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Read samples of lm-evaluation-harness: the log-likelihood of every choice, and the number of the right one."""
    for line, value in rows:
        choices = value["filtered_resps"]
        if not all(isinstance(each, list) and len(each) == 2 and not isinstance(each[0], str) for each in choices):
            raise FileError(
                f"{path}: line {line} holds no log-likelihoods of choices: only multiple-choice samples can be scored"
            )
        target = value["target"]
        if isinstance(target, str) and not target.strip().isdigit():
            options = (value.get("doc") or {}).get("choices")
            texts = options.get("text") if isinstance(options, dict) else options
            if not isinstance(texts, list) or target not in texts:
                raise FileError(f"{path}: line {line}: the target {target[:40]!r} is not the number of a choice")
            target = texts.index(target)
        yield (
            line,
            {"doc_id": value.get("doc_id", line), "logits": [each[0] for each in choices], "target": int(target)},
        )


def _table(path: str, rows: Rows, fill: float | None = None) -> Table:
    sample = [value for _, value in islice(rows(), SAMPLE)]
    names = dict.fromkeys(chain.from_iterable(sample))
    entries = {name: [value.get(name) for value in sample] for name in names}
    columns = {
        name: Column(_kind(each), whole=not any(isinstance(v, float) and v % 1 for v in each))
        for name, each in entries.items()
    }

    def read(wanted: Sequence[str], words: Sequence[str], optional: Sequence[str]) -> Contents:
        arrays = [name for name in wanted if columns[name].kind == "array"]
        numbers = [name for name in wanted if name not in arrays]
        collected = Collected(path, numbers, arrays, words, optional, fill)
        for line, value in rows():
            collected.add(line, value)
        return collected.contents()

    harness = f"{path}: samples of lm-evaluation-harness: the logits are the log-likelihoods of the choices"
    return Table(path, columns, read, notes=() if fill is None else (harness,))


def _kind(values: Sequence[Any]) -> Kind:
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there) and there:
        return "bool"
    if all(isinstance(value, (int, float)) for value in there):
        return "number"
    if mostly_numbers(isinstance(value, (int, float)) for value in there):
        return "number"
    if all(isinstance(value, str) or _names(value) for value in there) and any(there):
        return "word"  # a list of names is read as one is written in a text
    return "array" if all(_array(value) is not None for value in there) else "other"


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _array(value: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Take an array, or numbers with names, apart into numbers and names; None if it is neither."""
    if isinstance(value, dict) and value and all(isinstance(each, (int, float)) for each in value.values()):
        return list(value.values()), tuple(value)
    if not isinstance(value, (list, tuple)):
        return None
    if value and all(isinstance(each, dict) and {"label", "score"} <= set(each) for each in value):
        return [each["score"] for each in value], tuple(str(each["label"]) for each in value)
    inner = value
    while isinstance(inner, (list, tuple)) and inner:
        inner = inner[0]
    return (value, ()) if isinstance(inner, (int, float)) or inner in ([], ()) else None


class Collected:
    """Entries of columns, row by row."""

    def __init__(
        self,
        path: str,
        numbers: Sequence[str],
        arrays: Sequence[str],
        words: Sequence[str],
        optional: Sequence[str],
        fill: float | None,
    ) -> None:
        self.path, self.numbers, self.optional, self.fill = path, tuple(numbers), set(optional), fill
        self.flat = Spool(path)
        self.arrays: dict[str, Spool | None] = dict.fromkeys(arrays)
        self.names: dict[str, tuple[str, ...]] = {}
        self.unordered: set[str] = set()
        self.words: dict[str, list[str]] = {name: [] for name in words}

    def add(self, line: int, row: Any) -> None:
        """Add a row."""
        if not isinstance(row, dict):
            raise FileError(f"{self.path}: line {line} is no object, but the first line is one")
        for name, entries in self.words.items():
            value = row.get(name)
            entries.append("" if value is None else str(value).strip())
        if self.numbers:
            self.flat.add(line, np.array([self._number(line, row, name) for name in self.numbers]))
        for name in self.arrays:
            self._add_array(line, row, name)

    def _number(self, line: int, row: dict[str, Any], name: str) -> float:
        value = row.get(name)
        if value is None and name in self.optional:
            return float("nan")
        if name not in row:
            raise FileError(f"{self.path}: line {line} has no {name!r}, the first line has")
        if not isinstance(value, (int, float, Decimal)):
            raise FileError(f"{self.path}: line {line}: {name!r} is {str(value)[:40]!r}, which is not a number")
        return float(value)

    def _add_array(self, line: int, row: dict[str, Any], name: str) -> None:
        if name not in row:
            raise FileError(f"{self.path}: line {line} has no {name!r}, the first line has")
        apart = _array(row[name])
        values, names = apart or (row[name], ())
        first = self.names.setdefault(name, names)
        if names != first:
            if sorted(names) != sorted(first):
                raise FileError(
                    f"{self.path}: line {line} has the classes {', '.join(names)[:80]}, the first line {', '.join(first)[:80]}"
                )
            self.unordered.add(name)
            place = {each: j for j, each in enumerate(names)}
            values = [values[place[each]] for each in first]
        try:
            array: NDArray[np.float64] = np.array(values, np.float64)
        except (ValueError, TypeError):
            raise FileError(f"{self.path}: line {line} does not hold numbers, or lists of one length of them") from None
        spool = self.arrays[name]
        if spool is None:
            # Labels of short texts are filled up with what counts for nothing, and their logits with anything.
            fill = -100.0 if name in self.optional else 0.0 if array.ndim > 1 else self.fill
            spool = self.arrays[name] = Spool(self.path, fill)
        spool.add(line, array)

    def contents(self) -> Contents:
        """Return what was collected."""
        arrays = {}
        for name, spool in self.arrays.items():
            if spool is None:
                raise FileError(f"{self.path}: holds no rows")
            arrays[name] = replace(spool.array(), columns=self.names[name], ordered=name not in self.unordered).whole()
        return Contents(self.flat.array(self.numbers) if self.numbers else None, self.words, arrays)
