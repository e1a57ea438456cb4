"""What the columns of a table are: keys of the rows, labels, classes, or none of these.

Numbers alone make no column a class. Columns are classes that were asked for, that have the names of the classes, that are
numbered, or that share a prefix such as ``p_``; or all that are left, once keys, labels and usual columns of other kinds are out,
if their values are of one kind. Where that is doubtful, the table is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from crossent.tools.errors import FileError
from crossent.tools.files.row_array import BLOCK, RowArray
from crossent.tools.files.table import Table, last_part, listed

LOGITS = ("logits", "predictions", "preds", "scores", "outputs", "probs", "probabilities", "logprobs")
LABELS = (
    "labels", "targets", "label_ids", "label", "target", "y", "gold", "y_true", "truth", "true", "ground_truth", "class",
    "category", "true_label", "true_labels", "true_class", "gold_label", "gold_labels", "actual", "y_test", "gt", "label_id",
    "label_idx", "class_id", "label_name", "class_name",
)  # fmt: skip
# What rows are called. pandas writes its index without a name, which it reads as "Unnamed: 0".
IDS = re.compile(
    r"|unnamed: \d+(_level_\d+)?|__index_level_\d+__|level_\d+"
    r"|(.*[_ .\-/])?(ids?|idx|index|guid|uuid|uid|key|file_?name|image_?name|path)"
    r"|image|img|file|row|name|sample|(?-i:[a-z]+(Id|ID))",
    re.IGNORECASE,
)
INDEX = ("", "unnamed: 0", "__index_level_0__", "level_0", "index")  # keys that only count rows
# What stands beside classes and is none, whatever numbers it holds.
OTHERS = frozenset(
    {
        "pred", "prediction", "predicted", "predicted_label", "prediction_label", "pred_label", "y_pred", "yhat", "y_hat", "argmax",
        "correct", "confidence", "margin", "entropy", "loss", "nll", "weight", "weights", "sample_weight", "fold", "split", "usage",
        "predicted_class", "pred_class", "max_logit", "max_prob", "uncertainty",
        "epoch", "step", "global_step", "time", "timestamp", "date", "rank", "batch", "seed", "accuracy", "acc",
    }
)  # fmt: skip
PREFIXES = re.compile(
    r"(p|prob|probs|proba|probability|logit|logits|logprob|score|scores|class|pred|y|label|target|true)[_ .:/\-]+(?=.)",
    re.I,
)
TRUTH = ("y", "label", "target", "true")  # prefixes of what is true, not of what is predicted
NUMBER = re.compile(r"(-?\d+)(?:\.0+)?")  # as what a class is called
MANGLED = re.compile(r"(.+)\.(\d+)")  # what pandas calls a second column of the same name
PREDICTED = re.compile(r"pred|output|model|response|result|logit|prob")  # where what is predicted is nested
FAR = 10  # a column with values so many times as large as those of every other is no class


@dataclass(frozen=True)
class Selection:
    """What was said about the columns of tables.

    Attributes:
        classes: names of the class columns, or patterns such as ``"p_*"``; their order is that of the classes.
        drop: names or patterns of columns that are neither.
        id: the column that names the rows; or two with a comma between, where it is called otherwise beside the labels.
        class_names: what the classes are called.
    """

    classes: Sequence[str] = ()
    drop: Sequence[str] = ()
    id: str | None = None
    class_names: Sequence[str] = ()


def expand(table: Table, patterns: Sequence[str], role: str) -> tuple[str, ...]:
    """Find the columns that names and patterns mean, in the order of these."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if pattern in table.columns else [n for n in table.columns if fnmatchcase(n, pattern)]
        if not names:
            raise FileError(f"{table.path}: has no column {pattern!r} for {role}, only {listed(table.columns)}")
        found |= dict.fromkeys(names)
    return tuple(found)


def keys_of(table: Table, selection: Selection) -> tuple[str, ...]:
    """Find the columns that name rows, those that do more than count them first."""
    named = tuple(name.strip() for name in selection.id.split(",")) if selection.id is not None else ()
    if selection.id is not None:
        return tuple(name for name in (selection.id, *named) if name in table.columns)[:1]
    dropped = _dropped(table, selection)
    if table.beside:
        one_a_row = table.names("number", "word", "key")
    else:  # one axis, and a name
        one_a_row = tuple(name for name, column in table.columns.items() if name and column.described.endswith(",)"))
    keys = [
        name
        for name in one_a_row
        if IDS.fullmatch(name.strip()) and name not in dropped and not _is_label(table, name) and _whole(table, name)
    ]
    return tuple(sorted(keys, key=lambda name: name.lower() in INDEX))


def label_of(table: Table, selection: Selection, besides: Iterable[str] = ()) -> str | None:
    """Find the column with a usual name for labels."""
    out = {*besides, *_dropped(table, selection), *keys_of(table, selection)}
    return table.usual(LABELS, [name for name in table.columns if name not in out and _is_label(table, name)])


def label_of_part(logits: str, among: Iterable[str]) -> str | None:
    """Find the labels of a part of the data by the name of its logits: ``val_labels`` of ``val_logits``."""
    lower = {name.lower(): name for name in among}
    for word in LOGITS:
        head, found, tail = logits.lower().partition(word)
        for label in LABELS if found and (head or tail) else ():
            if head + label + tail in lower and not PREDICTED.search(head):
                return lower[head + label + tail]
    return None


def candidates(table: Table, selection: Selection, label: str | None = None) -> tuple[str, ...]:
    """Find the columns of numbers that are no key, no label and not dropped."""
    out = {*keys_of(table, selection), *_dropped(table, selection), label}
    return tuple(n for n in table.names("number", "bool") if n not in out and not _is_label(table, n))


def _whole(table: Table, name: str) -> bool:
    kind, _, whole = table.columns[name]
    return whole or kind != "number"


def _is_label(table: Table, name: str) -> bool:
    """Whether a column is called as labels are; a class may be called true as well, and has fractions then."""
    head, _, _ = name.lower().rpartition(".")
    if head and PREDICTED.search(head):  # {"prediction": {"label": ...}} is not what is true
        return False
    return last_part(name) in LABELS and (name.lower() not in ("true", "class", "y") or _whole(table, name))


def _dropped(table: Table, selection: Selection) -> set[str]:
    return {name for name in table.columns if any(name == p or fnmatchcase(name, p) for p in selection.drop)}


# --- classes ----------------------------------------------------------------------------------------------------------


def bare(names: Sequence[str]) -> tuple[str, ...]:
    """Take off a prefix that all names share, if it is a usual one.

    >>> bare(["p_cat", "p_dog"]), bare(["p_cat", "dog"])
    (('cat', 'dog'), ('p_cat', 'dog'))
    """
    heads = {match.group() if (match := PREFIXES.match(name)) else "" for name in names}
    if len(names) < 2 or len(heads) > 1:
        return tuple(names)
    return tuple(name[len(next(iter(heads))) :] for name in names)


def places(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Find each name among others, by its letters or else in upper or lower case; None if one is missing.

    >>> places(["dog", "Cat"], ["cat", "dog"]), places(["cow"], ["cat", "dog"])
    ([1, 0], None)
    """
    for form in (str.strip, lambda name: name.strip().casefold()):
        place = {form(name): k for k, name in enumerate(among)}
        if len(place) == len(among) and all(form(name) in place for name in names):
            return [place[form(name)] for name in names]
    return None


def clear_classes(
    table: Table, among: Sequence[str], words: Iterable[str], selection: Selection
) -> tuple[str, ...] | None:
    """Choose the columns that are classes by their names; None if only their values can tell.

    Args:
        table: the table.
        among: columns of numbers.
        words: the labels, where they are words.
        selection: what was said.
    """
    if selection.classes:
        return expand(table, selection.classes, "classes")
    names = selection.class_names
    if names:
        for taken in groups(among):
            at = places(names, bare(taken))
            if at is not None:
                return tuple(taken[k] for k in at)
    for taken in groups(among):
        if len(taken) > 1 and (_numbered(bare(taken)) or bare(taken) != tuple(taken)):
            return tuple(taken)
    return None


def groups(names: Sequence[str], *, truth: bool = False) -> list[list[str]]:
    """Sort names by prefix: first all together, then those of predictions, or of the truth, the largest group first."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = PREFIXES.match(name)
        found.setdefault(match.group().lower() if match else "digits" if NUMBER.fullmatch(name) else "", []).append(
            name
        )
    order = sorted(found, key=lambda prefix: ((prefix.rstrip("_ .:/-") in TRUTH) != truth, -len(found[prefix])))
    return [list(names), *(found[prefix] for prefix in order)]


def _numbered(names: Sequence[str]) -> bool:
    return all(map(NUMBER.fullmatch, names)) and class_numbers(names) is not None


def _shared(names: Sequence[str]) -> str:
    """Find what all names begin with."""
    first, last = min(names), max(names)  # in the order of the alphabet these differ soonest
    alike = (k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(alike, min(len(first), len(last)))]


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """Read the numbers of classes in their names; None where they have none.

    Names that are nothing but numbers are those of classes, whichever they are. Where something stands around them, alike in all
    names, they must count from 0 or from 1: ``resnet50`` and ``resnet101`` are names.

    >>> class_numbers(["3", "7", "0.0"]), class_numbers(["tok0", "tok10", "tok1"]), class_numbers(["resnet50", "resnet101"])
    ([3, 7, 0], None, None)
    >>> class_numbers([f"p({k})" for k in (1, 3, 2)])
    [1, 3, 2]
    """
    if not names:
        return None
    plain = [NUMBER.fullmatch(name.strip()) for name in names]
    if all(plain):
        numbers = [int(match[1]) for match in plain if match]
        return numbers if len(set(numbers)) == len(numbers) else None
    head = _shared(names).rstrip("0123456789")
    rest = [name[len(head) :] for name in names]
    tail = _shared([name[::-1] for name in rest]).rstrip("0123456789")
    cores = [name[: len(name) - len(tail)] for name in rest]
    if len(names) < 2 or not all(core.isdecimal() for core in cores):
        return None
    numbers = list(map(int, cores))
    return numbers if sorted(numbers) in (list(range(len(names))), list(range(1, len(names) + 1))) else None


def classes_by_value(table: Table, array: RowArray, words: Iterable[str]) -> tuple[str, ...]:
    """Choose the columns that are classes among columns of numbers, which must be of one kind.

    Raises:
        FileError: some are not like the others.
    """
    names = [name for name in array.columns if name.lower() not in OTHERS]
    if not names:
        raise FileError(
            f"{table.path}: are {listed(array.columns)} classes? Such names are those of predictions and of scores. Say which "
            f"column holds the logits, as {table.path}::NAME, or --classes with the names of the classes"
        )
    odd, why = _odd(array, names)
    if not odd:
        return tuple(names)
    left = [name for name in names if name not in odd]
    words = sorted(set(words))
    if words and len(words) == len(left) and places(words, left) is not None:
        return tuple(left)
    raise FileError(
        f"{table.path}: is the column {odd[0]!r} a class? {why}. Say --drop {odd[0]}, or --classes with the names of the classes"
    )


def _odd(array: RowArray, names: Sequence[str]) -> tuple[list[str], str]:
    """Find the columns that are not like the others, and say why."""
    at = [array.columns.index(name) for name in names] if len(names) < len(array.columns) else slice(None)
    twice = [name for name in names if (match := MANGLED.fullmatch(name)) and match[1] in names]
    if twice:
        return twice, f"pandas gives this name to a second {twice[0].rpartition('.')[0]!r}"
    values = array.rows(0, BLOCK)[:, at].astype(np.float64)
    if values.shape[1] < 2:
        return [], ""
    with np.errstate(invalid="ignore", over="ignore"):
        whole = (np.rint(values) == values).all(0) & (np.abs(values) > 1).any(0)
        if whole.any() and not (whole | (np.rint(values) == values).all(0)).all():
            return [
                name for name, odd in zip(names, whole, strict=True) if odd
            ], "It holds whole numbers, and others do not"
        total = values.sum(1)
        if values.shape[1] > 2 and np.abs(total - 1).max() > 1e-2:
            without = np.abs(total[:, None] - values - 1).max(0) < 1e-3
            if without.any():
                return [names[int(without.argmax())]], "The others of a row sum to 1 without it"
        size = np.where(np.isfinite(values), np.abs(values), 0).max(0)
        order = np.argsort(size)
        if values.shape[1] > 2 and len(values) > 1 and size[order[-1]] > FAR * max(size[order[-2]], 1e-30):
            return [
                names[order[-1]]
            ], f"Its values reach {size[order[-1]]:.4g}, those of the others {size[order[-2]]:.4g}"
    return [], ""
