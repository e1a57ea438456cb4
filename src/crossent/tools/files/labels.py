"""Labels as they are written, turned into numbers of classes: names, numbers that are names, and labels that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crossent.tools.errors import FileError
from crossent.tools.files.roles import places
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.table import listed
from crossent.tools.files.text_files import MISSING, TRUTH


def encoded(name: str, words: Sequence[str], names: Sequence[str], notes: list[str]) -> RowArray:
    """Find the number of the class that each word names; nan where there is none."""
    known = list(dict.fromkeys(words))
    lacking = [word for word in known if word.lower() in MISSING and word not in names]
    there = [word for word in known if word not in lacking]
    at = places(there, names)
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


def numbered(labels: RowArray, names: Sequence[str]) -> RowArray:
    """Take labels for the names of classes, where these are numbers in another order than 0, 1, 2 ..."""
    numbers = [int(name) if name.strip().isdigit() else -1 for name in names]
    if (len(labels.shape) > 1 and labels.shape[1:] != (1,)) or not names or min(numbers) < 0:
        return labels
    if numbers == list(range(len(numbers))) or len(set(numbers)) < len(numbers):
        return labels
    place = np.full(max(numbers) + 1, -1, np.int64)
    place[numbers] = np.arange(len(numbers))
    values = labels.rows(0, len(labels))
    here = np.isfinite(values) & (values >= 0) & (values < len(place))
    index = np.where(here, values, 0).astype(np.int64)
    strange = here & (place[index] < 0)
    if strange.any():
        at = int(np.argwhere(strange)[0][0])
        raise FileError(
            f"{labels.name}: row {at} has the label {np.ravel(values)[at]:g}, and the classes are called {listed(names)}"
        )
    return replace(row_array(np.where(here, place[index], values), labels.name), dtype=labels.dtype)
