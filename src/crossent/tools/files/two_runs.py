"""Two tables that both hold predictions: two runs to compare, and not logits with their labels.

``crossent score before.csv after.csv`` looks like ``crossent score logits.csv labels.csv``. What the files hold tells them apart:
only the names of their columns are looked at, not their values.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from crossent.tools.errors import FileError
from crossent.tools.files.roles import IDS, LABELS, LOGITS, OTHERS, PREFIXES, TRUTH, Selection, candidates, label_of
from crossent.tools.files.table import Table

ARRAY = frozenset({"an array of logits"})  # stands for classes that have no names


class TwoRunsError(FileError):
    """Both tables hold predictions and labels of their own.

    Attributes:
        label: the column or array of the second that holds its labels.
    """

    def __init__(self, first: str, second: str, label: str) -> None:
        super().__init__(
            f"{first} and {second} both hold predictions and labels: name the labels that are meant, as {second}::{label}; "
            f"crossent score {first} {second} compares the two runs"
        )
        self.label = label


def refuse_two_runs(first: Table, second: Table, selection: Selection) -> None:
    """Refuse a table of labels that is a second run.

    Raises:
        TwoRunsError: both tables hold predictions and labels.
        FileError: the second holds predictions only, which could be soft labels as well.
    """
    own = label_of(first, selection)
    if own is None or not _same_classes(first, second, selection):
        return
    label = label_of(second, selection)
    if label is not None:
        raise TwoRunsError(first.path, second.path, label)
    # Columns of whole numbers are one-hot labels, which belong to the logits.
    if _predictions(second, selection) == ARRAY or not all(column.whole for column in second.columns.values()):
        raise FileError(
            f"{second.path}: holds predictions, and {first.path} predictions and labels: "
            f"to compare two runs, say crossent score {first.path} {second.path} --labels {first.path}::{own}; "
            f"to take these as soft labels, name them, as {second.path}::NAME or {second.path}::'p_*'"
        )


def _same_classes(first: Table, second: Table, selection: Selection) -> bool:
    """Whether both hold predictions of the same classes, as far as names tell."""
    here, there = _predictions(first, selection), _predictions(second, selection)
    if not here or not there:
        return False
    if ARRAY in (here, there):
        return True
    shared = here & there
    return shared == here or len(shared) > 1


def _predictions(table: Table, selection: Selection) -> frozenset[str]:
    """Name the classes that a table holds predictions of, in lower case and without a prefix; empty if it holds none."""
    arrays = [name for name in table.names("array") if name and name.lower() not in LABELS and not IDS.fullmatch(name)]
    if not selection.classes and table.usual(LOGITS, arrays) is not None:
        return ARRAY
    if not table.beside:
        return frozenset()
    columns = [name for name in candidates(table, selection) if name and name.lower() not in OTHERS]
    if selection.classes:
        columns = [name for name in columns if any(name == p or fnmatchcase(name, p) for p in selection.classes)]
    return frozenset(_bare(name) for name in columns if not _is_truth(name))


def _bare(name: str) -> str:
    return PREFIXES.sub("", name.strip(), count=1).casefold()


def _is_truth(name: str) -> bool:
    match = PREFIXES.match(name)
    return match is not None and match.group(1).lower() in TRUTH
