"""Labels as they are written, turned into numbers of classes: names, numbers that are names, and labels that are missing."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.cells import MISSING, TRUTH
from crossent.tools.files.roles import NUMBER, class_numbers, places
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.table import listed


def encoded(name: str, words: Sequence[str], names: Sequence[str], notes: list[str]) -> RowArray:
    """Find the number of the class that each word names; nan where there is none."""
    known = list(dict.fromkeys(words))
    lacking = [word for word in known if word.lower() in MISSING and word not in names]
    there = [word for word in known if word not in lacking]
    at = places(there, names)
    if at is None and names and (several := several_labels(name, words, names)) is not None:
        return row_array(several, name)
    if at is None and all(word.lower() in TRUTH for word in there):
        at = [int(TRUTH[word.lower()]) for word in there]
    if at is None and not names:
        raise FileError(
            f"{name}: the labels are names, {listed(sorted(there))}, and the logits have none: "
            "say --class-names in the order of their classes"
        )
    if at is None:
        strange = next(word for word in there if places([word], names) is None)
        raise FileError(
            f"{name}: row {list(words).index(strange)} has the label {strange[:40]!r}, and the classes are {listed(names)}"
        )
    number = {**dict(zip(there, map(float, at), strict=True)), **dict.fromkeys(lacking, np.nan)}
    return replace(row_array(np.array([number[word] for word in words]), name), dtype="float64").whole()


def several_labels(name: str, words: Sequence[str], names: Sequence[str]) -> NDArray[np.float64] | None:
    """Read cells that name several classes, such as ``cat|dog`` or ``['cat', 'dog']``, as zeros and ones; None if they do not.

    An empty cell names no class.
    """
    known = [word for word in dict.fromkeys(words) if word.lower() not in MISSING]
    parts = {word: split for word in known if (split := _listed_names(word)) is not None}
    if len(parts) < len(known):
        parts = next(filter(None, (_apart(known, separator, names) for separator in "|;, ")), {})
    if not parts:
        return None
    there = np.zeros((len(words), len(names)))
    for row, word in enumerate(words):
        at = places(parts.get(word, ()), names)
        if at is None:
            strange = next(part for part in parts[word] if places([part], names) is None)
            raise FileError(f"{name}: row {row} has the label {strange[:40]!r}, and the classes are {listed(names)}")
        there[row, at] = 1
        if word and word not in parts:
            there[row] = np.nan  # nobody knows
    return there


def _listed_names(word: str) -> list[str] | None:
    """Read a list of names, as Python or JSON writes it."""
    if not (word.startswith("[") and word.endswith("]")):
        return None
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(each) for each in value] if all(isinstance(each, (str, int)) for each in value) else None


def _apart(words: Sequence[str], separator: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Take words apart, if every part of each is a class, and there is more than one in some."""
    parts = {word: [part.strip() for part in word.split(separator) if part.strip()] for word in words}
    if not any(len(each) > 1 for each in parts.values()):
        return {}
    return parts if all(places(each, names) is not None for each in parts.values()) else {}


def numbered(labels: RowArray, names: Sequence[str]) -> RowArray:
    """Take labels for the names of classes, where these are numbers in another order than 0, 1, 2 ..."""
    numbers = class_numbers(names)
    if (len(labels.shape) > 1 and labels.shape[1:] != (1,)) or numbers is None:
        return labels
    if numbers == list(range(len(numbers))):
        return labels
    order = np.argsort(numbers)
    known = np.array(numbers)[order]
    values = labels.rows(0, len(labels))
    if not all(NUMBER.fullmatch(name.strip()) for name in names) and known[0] == 1 and (values == 0).any():
        known = known - 1  # a class is called tok1, and the labels count from 0
    here = np.isfinite(values) & (values >= min(0, known[0])) & (values <= known[-1])
    index = np.minimum(np.searchsorted(known, np.where(here, values, known[0])), len(known) - 1)
    strange = here & (known[index] != values)
    if strange.any():
        at = int(np.argwhere(strange)[0][0])
        raise FileError(
            f"{labels.name}: row {at} has the label {np.ravel(values)[at]:g}, and the classes are called {listed(names)}"
            + (
                "; if 0 is the first of them, add 1 to the labels"
                if np.ravel(values)[at] == 0 and known[0] == 1
                else ""
            )
        )
    return replace(row_array(np.where(here, order[index], values), labels.name), dtype=labels.dtype)
