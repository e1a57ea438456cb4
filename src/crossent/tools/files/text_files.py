"""Comma- and tab-separated values: a table with or without a heading, plain, in .gz or alone in a .zip."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import IO

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.cells import (
    DECIMAL,
    TRUTH,
    are_whole,
    as_number,
    could_be_thousands,
    how_to_write,
    is_number,
    kind_of,
)
from crossent.tools.files.spool import Spool, refuse_bomb
from crossent.tools.files.table import Column, Contents, Kind, Table

SAMPLE = 200  # rows that tell what is in a column
LINES = 1 << 12  # read at a time

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


@contextmanager
def opened_text(path: str) -> Iterator[IO[str]]:
    """Open a text as it is, compressed by gzip, or as the only file in a .zip archive."""
    size = os.path.getsize(path)
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
            if len(members) != 1:
                raise FileError(f"{path}: holds {len(members)} files, and one is wanted: unpack it, and name the one")
            refuse_bomb(path, size, members[0].file_size)
            with archive.open(members[0]) as stream:
                yield _decoded(path, io.BufferedReader(stream))  # type: ignore[arg-type]
    elif path.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            yield _decoded(path, io.BufferedReader(_Bounded(path, size, stream)))
    else:
        with open(path, "rb") as stream:
            yield _decoded(path, stream)


def _decoded(path: str, stream: io.BufferedReader) -> IO[str]:
    """Read bytes as UTF-8, or as the UTF-16 that spreadsheets call Unicode and begin with its mark."""
    head = stream.peek(1 << 12)[: 1 << 12]
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in head:
        raise FileError(f"{path}: is not text in UTF-8: save it as UTF-8")
    return io.TextIOWrapper(stream, encoding=encoding, newline="")


class _Bounded(io.RawIOBase):
    """A stream that is refused when it grows out of all proportion to its file."""

    def __init__(self, path: str, size: int, stream: IO[bytes] | gzip.GzipFile) -> None:
        self.path, self.size, self.stream, self.count = path, size, stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self.stream.read(len(view))
        view[: len(part)] = part
        self.count += len(part)
        refuse_bomb(self.path, self.size, self.count)
        return len(part)


def open_csv(path: str) -> Table:
    """Open comma-separated values."""
    return _open_separated(path, ",")


def open_tsv(path: str) -> Table:
    """Open tab-separated values."""
    return _open_separated(path, "\t")


def open_txt(path: str) -> Table:
    """Open a text whose cells are separated by whatever the first line has, or by blanks, as NumPy writes it."""
    return _open_separated(path, "")


def _open_separated(path: str, delimiter: str) -> Table:
    """Open lines of cells, with or without a first line of names."""
    delimiter = _delimiter(path, delimiter)
    sample = [cells for _, cells in islice(_lines(path, delimiter), SAMPLE + 1)]
    if not sample:
        raise FileError(f"{path}: holds no rows")
    if delimiter == ";":
        _refuse_thousands(path)
    if _is_heading(sample):
        header = [cell.strip() for cell in sample[0]]
        if all(len(name) > 1 and name[0] == name[-1] == "'" for name in header):
            header = [name[1:-1] for name in header]
        if all(len(row) == len(header) + 1 for row in sample[1:]) and any(row[-1].strip() for row in sample[1:]):
            header = ["", *header]  # R writes the names of rows without a heading
        twice = sorted({name for name in header if name and header.count(name) > 1}) if _repeats(header) else ()
        if twice:
            raise FileError(f"{path}: has several columns called {', '.join(map(repr, twice))}")
        kinds: list[Kind] = [kind_of([row[j] for row in sample[1:] if j < len(row)]) for j in range(len(header))]
        columns = {
            name: Column(kind, whole=kind != "number" or are_whole([row[j] for row in sample[1:] if j < len(row)]))
            for j, (name, kind) in enumerate(zip(header, kinds, strict=True))
        }
        lists = [name for name, column in columns.items() if column.kind == "array"]
        return Table(path, columns, _Separated(path, delimiter, header, True, lists).read)
    width = len(sample[0])
    kind: Kind = "array" if width > 1 or kind_of([row[0] for row in sample]) == "number" else "word"
    reader = _Separated(path, delimiter, [str(j) for j in range(width)], False)
    return Table(path, {"": Column(kind)}, reader.read_nameless)


def _refuse_thousands(path: str) -> None:
    """Refuse numbers of which nobody can say whether a comma separates thousands or decimals."""
    with opened_text(path) as stream:
        lines = list(islice(csv.reader(stream, delimiter=";"), SAMPLE + 1))
    doubtful = could_be_thousands(cell for cells in lines for cell in cells)
    if doubtful is not None:
        plain = doubtful.replace(",", "")
        raise FileError(
            f"{path}: {doubtful!r} may be {plain} or {doubtful.replace(',', '.')}: write numbers without thousands separators and "
            "with a decimal point"
        )


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _delimiter(path: str, usual: str) -> str:
    """Find what separates cells: the usual, unless the first line has none of it and another one."""
    with opened_text(path) as stream:
        first = next((line for line in stream if line.strip() and not line.startswith("#")), "")
        below = list(islice((line for line in stream if line.strip()), 3))
    if first.lower().startswith("sep=") and len(first.strip()) == 5:  # for spreadsheets
        return first.strip()[4]
    others = "\t;" if usual else ",\t; "
    if usual and usual in first:
        return usual
    if first.count("|") and all(line.count("|") == first.count("|") for line in below):  # names of classes may hold one
        return "|"
    return next((other for other in others if other in first.strip()), usual or ",")


def _lines(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    with opened_text(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=delimiter == " ")
        remark: list[str] = []
        begun = False
        for cells in reader:
            if not begun and cells and cells[0].startswith("#") and not any(cell.startswith("#") for cell in cells[1:]):
                remark = [cells[0].lstrip("# "), *cells[1:]]
                continue
            if not begun and len(cells) == 2 and cells[0].lower() == "sep=" and not cells[1]:
                continue
            if cells and not begun:
                begun = True
                if len(remark) == len(cells) and (len(cells) > 1 or _names_a_column(remark[0])):
                    yield reader.line_num - 1, remark  # NumPy writes its heading like this
            if cells and delimiter == ";":  # where it separates cells, a comma may separate the decimals
                cells = [DECIMAL.sub(r"\1.\2", cell) for cell in cells]
            if cells:
                yield reader.line_num, cells


def _is_heading(sample: Sequence[Sequence[str]]) -> bool:
    """Whether the first line names columns: it holds words, or counts from 0 or 1 where the lines below do something else."""
    first, rest = sample[0], sample[1:]
    if rest and any(
        cell.strip() and not is_number(cell) and all(row[j : j + 1] == [cell] for row in rest)
        for j, cell in enumerate(first)
    ):
        return False  # no name is all that its column holds: these are the words of a log
    if not all(map(is_number, first)):
        # One column of words is a list of labels, unless its first word is what such a column is called.
        return (
            len(first) > 1
            or not rest
            or kind_of([row[0] for row in rest if row]) != "word"
            or _names_a_column(first[0])
        )
    counts = first[0] in ("0", "1") and list(first) == [str(k + int(first[0])) for k in range(len(first))]
    if not (counts and rest):
        return False
    below = [cell for row in rest for cell in row]
    if not all(map(is_number, below)):
        return False
    if not all(cell.strip().lstrip("+-").isdigit() for cell in below):
        return True
    return len(first) > 2 and all(cell.strip() in ("0", "1") for cell in below)


def _names_a_column(cell: str) -> bool:
    from crossent.tools.files.roles import IDS, LABELS

    return cell.strip().lower() in LABELS or bool(IDS.fullmatch(cell.strip()))


# --- reading ----------------------------------------------------------------------------------------------------------


class _Separated:
    """Reads columns of one file."""

    def __init__(
        self, path: str, delimiter: str, header: Sequence[str], headed: bool, lists: Sequence[str] = ()
    ) -> None:
        self.path, self.delimiter, self.header, self.headed, self.lists = path, delimiter, header, headed, lists
        self.place = {name: j for j, name in enumerate(header)}

    def read_nameless(self, wanted: Sequence[str], words: Sequence[str], optional: Sequence[str]) -> Contents:
        """Read the one array of a file without a heading."""
        if words:
            return Contents(None, {"": self.read((), self.header, ()).words["0"]}, {})
        read = self.read(self.header, (), self.header if optional else ())
        assert read.numbers is not None
        array = read.array(self.header)
        return Contents(None, {}, {"": replace(array, columns=())})

    def read(self, wanted: Sequence[str], words: Sequence[str], optional: Sequence[str]) -> Contents:
        """Read columns as numbers, and columns as words."""
        arrays = {name: Spool(self.path) for name in wanted if name in self.lists}
        wanted = [name for name in wanted if name not in arrays]
        numbers, text = Spool(self.path), {name: list[str]() for name in words}
        at = [self.place[name] for name in wanted]
        strict = np.array([name not in optional for name in wanted])
        lines = _lines(self.path, self.delimiter)
        if self.headed:
            next(lines)
        while block := list(islice(lines, max(1, LINES // max(len(at) // 64, 1)))):
            for line, cells in block:
                if len(cells) != len(self.header):
                    raise FileError(
                        f"{self.path}: line {line} has {len(cells)} columns, the first line {len(self.header)}"
                    )
            if at:
                numbers.add_block(self._numbers(block, at, strict))
            for name, spool in arrays.items():
                for line, cells in block:
                    spool.add(line, self._list(line, cells[self.place[name]]))
            for name, entries in text.items():
                j = self.place[name]
                entries += [cells[j].strip() for _, cells in block]
        if words and not next(iter(text.values())):
            raise FileError(f"{self.path}: holds no rows")
        read = {name: spool.array() for name, spool in arrays.items()}
        return Contents(numbers.array(wanted) if at else None, text, read)

    def _list(self, line: int, cell: str) -> NDArray[np.float64]:
        """Read the numbers of a list, with commas or blanks between."""
        try:
            return np.array([float(number) for number in cell.strip().strip("[]").replace(",", " ").split()])
        except ValueError:
            cut = ": NumPy left numbers out where it printed them, save the array itself" if "..." in cell else ""
            raise FileError(f"{self.path}: line {line}: {cell[:40]!r} is no list of numbers{cut}") from None

    def _numbers(
        self, block: list[tuple[int, list[str]]], at: list[int], strict: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        try:
            return np.array([[cells[j] for j in at] for _, cells in block], np.float64)
        except ValueError:
            pass
        rows = np.empty((len(block), len(at)))
        for i, (line, cells) in enumerate(block):
            for k, j in enumerate(at):
                cell = cells[j]
                try:
                    rows[i, k] = float(cell) if strict[k] and cell.strip().lower() not in TRUTH else as_number(cell)
                except ValueError:
                    hint = f"; cells are separated by {self.delimiter!r}" if set(cell) & set(";,\t") else ""
                    where = f" in the column {self.header[j]!r}" if self.headed else ""
                    hint = how_to_write(cell) or hint
                    if self.headed and cell.strip() and not hint:
                        hint = f": correct that line, or say --drop {self.header[j]} if the column is no class"
                    raise FileError(f"{self.path}: line {line}: {cell[:40]!r}{where} is not a number{hint}") from None
        return rows
