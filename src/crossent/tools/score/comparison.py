"""Two runs on the same rows: how they differ, with the standard errors of paired differences, and where they disagree."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.arrays import read_pair
from crossent.tools.errors import FileError
from crossent.tools.files.keys import paired
from crossent.tools.files.pair import Pair
from crossent.tools.files.roles import places
from crossent.tools.files.row_array import RowArray
from crossent.tools.printable import printable_json
from crossent.tools.score.layout import decision_layout
from crossent.tools.score.measures import Largest, Mean
from crossent.tools.score.options import ScoreOptions
from crossent.tools.score.row_blocks import Decisions, Reader
from crossent.tools.table import Table

SCHEMA = "crossent.comparison/1"
MEANS = ("nll_nats", "accuracy", "brier")
NUMBERS = (
    "rows",
    "decisions",
    *(f"{key}_{which}" for key in MEANS for which in ("first", "second", "difference", "difference_standard_error")),
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """How a second run differs from a first on the same rows; ``print`` shows its tables.

    Attributes:
        names: of the two.
        numbers: means of both, and of their differences, second minus first, with standard errors over rows.
        disagreements: how many decisions only the first, only the second, both or neither have right.
        better, worse: the decisions in which the second gains and loses most, with the true class, both predictions and losses.
        class_names: one for each class.
    """

    names: tuple[str, str]
    numbers: dict[str, float | int]
    disagreements: dict[str, int]
    better: list[dict[str, Any]]
    worse: list[dict[str, Any]]
    class_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with None for what is not finite."""
        numbers = {key: value if math.isfinite(value) else None for key, value in self.numbers.items()}
        return {
            "schema": SCHEMA,
            "runs": list(self.names),
            "numbers": numbers,
            "disagreements": self.disagreements,
            "second_better": self.better,
            "second_worse": self.worse,
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON."""
        return printable_json(json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))

    def __str__(self) -> str:
        from crossent.tools.score.show import show_tables
        from crossent.tools.terminal import plain_text

        return plain_text(partial(show_tables, self.heading, self.tables()))

    __repr__ = __str__

    @property
    def heading(self) -> str:
        """Say what was compared."""
        return f"1: {self.names[0]}\n2: {self.names[1]}\n{self.numbers['decisions']:,} decisions in {self.numbers['rows']:,} rows"

    def tables(self) -> list[Table]:
        """Tabulate the differences, the most important first."""
        from crossent.tools.score.tables import number

        n, d = self.numbers, self.disagreements
        rows = []
        for title, key in (("cross entropy, nats", "nll_nats"), ("accuracy", "accuracy"), ("Brier score", "brier")):
            difference, error = n[f"{key}_difference"], n[f"{key}_difference_standard_error"]
            spread = f"{difference:+.4f} ± {number(error, 4)}".replace("-", "−")
            rows.append(
                (
                    title,
                    number(n[f"{key}_first"], 4),
                    number(n[f"{key}_second"], 4),
                    spread,
                    _verdict(difference, error),
                )
            )
        notes = ("2 − 1: the mean of the differences row by row, ± its standard error.",)
        tables = [Table("Differences", ("", "1", "2", "2 − 1", ""), rows, notes, text_columns=(0, 4))]
        counts = [(key, f"{d[name]:,}") for key, name in (
            ("both right", "both"), ("only 1 right", "only_first"), ("only 2 right", "only_second"), ("both wrong", "neither"),
        )]  # fmt: skip
        tables.append(Table("Decisions", ("", ""), counts))
        for title, examples in (("Where 2 gains most", self.better), ("Where 2 loses most", self.worse)):
            if examples:
                tables.append(self._examples(title, examples))
        return tables

    def _examples(self, title: str, examples: Sequence[dict[str, Any]]) -> Table:
        from crossent.tools.printable import brief
        from crossent.tools.score.tables import WIDEST_ID, number, short_name

        ids = any(each["id"] for each in examples)

        def name(k: int) -> str:
            return short_name(self.class_names, k)

        rows = [
            (str(e["row"]), *([brief(e["id"] or "", WIDEST_ID)] if ids else []), name(e["true"]), name(e["predicted_first"]),
             name(e["predicted_second"]), number(e["loss_first"], 4), number(e["loss_second"], 4))
            for e in examples
        ]  # fmt: skip
        columns = ("row", *(["id"] if ids else []), "true", "1 says", "2 says", "loss 1", "loss 2")
        return Table(
            title,
            columns,
            rows,
            text_columns=tuple(k for k, c in enumerate(columns) if c in ("id", "true", "1 says", "2 says")),
        )


def _verdict(difference: float, error: float) -> str:
    if not math.isfinite(error) or error == 0:
        return "the same" if difference == 0 else ""
    apart = abs(difference) / error
    return f"{apart:.1f} standard errors" + (", may be chance" if apart < 2 else "")


def compare(
    first: Any, second: Any, labels: Any, *, names: tuple[str, str] = ("first", "second"), **options: Any
) -> Comparison:
    """Compare two runs on the same rows.

    Args:
        first: logits of the first run, as for :func:`crossent.score`.
        second: those of the second run; classes that have names are matched by them.
        labels: of the rows.
        names: what the runs are called.
        options: those of :func:`crossent.score` that say how values are read.

    Raises:
        FileError: the two do not have the same rows and classes.
    """
    class_names = options.get("class_names")
    one, truth = read_pair(("first", "labels"), first, labels, class_names)
    two, _ = read_pair(("second", "labels"), second, labels, class_names)
    assert truth is not None
    two = _same_classes(one, two)
    if one.shape != two.shape:
        raise FileError(
            f"{two.name}: has shape {two.shape}, and {one.name} {one.shape}: two runs need the same rows and classes"
        )
    settings = ScoreOptions(**options)
    layout = decision_layout(one, truth, settings)
    measured = _Differences(settings, layout.axis is None)
    readers = [Reader(each, truth, layout, settings) for each in (one, two)]
    for a, b in zip(*(reader.blocks(lambda done: None) for reader in readers), strict=True):
        measured.add(a, b)
    size = layout.per_row if layout.axis is None else layout.choices
    shown = one.columns if len(one.columns) == size else tuple(class_names or map(str, range(size)))
    return measured.comparison(names, shown if layout.axis is not None else ("no", "yes"), one.ids, len(one))


def one_truth(first: Pair, second: Pair) -> tuple[RowArray, RowArray, RowArray]:
    """Bring the rows of a second run into the order of the first, and hold the labels of both to one another.

    Returns:
        The logits of both, and the labels.

    Raises:
        FileError: the labels differ, so that the rows are not the same.
    """
    one, two, truth, given = first.logits, second.logits, first.labels, second.labels
    assert truth is not None
    assert given is not None
    if len(one.ids) and len(two.ids):
        order = paired(list(one.ids), list(two.ids), (one.name, two.name), ("id", "id"))
        if order is not None:
            two, given = two.in_order(order), given.in_order(order)
    own = truth.name != given.name
    here = truth.rows(0, len(truth))
    there = given.rows(0, len(given))
    if _alike(here, there):
        return one, two, truth
    if one.columns and two.columns and one.columns != two.columns:  # numbers of classes that lie in another order
        at = places(two.columns, one.columns)
        if not own or (at is not None and there.ndim == 1 and _alike(here, _renumbered(there, at))):
            return one, two, truth
    if not own:
        raise FileError(f"{two.name}: its rows are not those of {one.name}: give both a column of ids")
    differ = "have different shapes" if here.shape != there.shape else f"differ in {_first_apart(here, there)}"
    raise FileError(
        f"{truth.name} and {given.name} {differ}: two runs are compared on the same rows; give both a column of ids if these are "
        f"in another order, name the labels that are right with --labels FILE::NAME, or score {one.name.partition('::')[0]} alone "
        f"with the labels of the other, as {given.name if '::' in given.name else given.name + '::NAME'}"
    )


def _alike(here: NDArray[Any], there: NDArray[Any]) -> bool:
    return here.shape == there.shape and np.array_equal(
        here, there, equal_nan=here.dtype.kind == there.dtype.kind == "f"
    )


def _renumbered(labels: NDArray[Any], at: Sequence[int]) -> NDArray[Any]:
    """Give classes the numbers that they have in another order; what is no class stays."""
    classes = (labels >= 0) & (labels < len(at))
    return np.where(classes, np.asarray(at)[np.where(classes, labels, 0).astype(np.int64)], labels)


def _first_apart(here: NDArray[Any], there: NDArray[Any]) -> str:
    apart = (here != there).reshape(len(here), -1).any(1)
    row = int(apart.argmax())
    values = f" ({here[row]:g} and {there[row]:g})" if here.ndim == 1 else ""
    return f"row {row}{values}" + (f" and {int(apart.sum()) - 1:,} more rows" if apart.sum() > 1 else "")


def _same_classes(first: RowArray, second: RowArray) -> RowArray:
    if not first.columns or not second.columns or first.columns == second.columns:
        return second
    at = places(first.columns, second.columns)
    if at is None or len(first.columns) != len(second.columns):
        raise FileError(
            f"{second.name}: has the classes {', '.join(second.columns)[:80]}, and {first.name} {', '.join(first.columns)[:80]}"
        )
    from dataclasses import replace

    read = second.read
    return replace(second, columns=first.columns, read=lambda start, stop: read(start, stop)[:, at])


class _Differences:
    """Adds up what two runs have in common and where they differ."""

    def __init__(self, options: ScoreOptions, several_labels: bool) -> None:
        self.top = options.top
        self.brier_scale = 0.5 if several_labels else 1.0  # the two classes of a yes or no give the same square twice
        self.means = {key: (Mean(), Mean(), Mean()) for key in MEANS}
        self.counts = np.zeros((2, 2), np.int64)
        self.examples: dict[bool, list[tuple[float, dict[str, Any]]]] = {True: [], False: []}
        self.decisions = 0

    def add(self, a: Decisions, b: Decisions) -> None:
        """Add the same decisions of both."""
        values = {
            "nll_nats": (a.nll, b.nll),
            "accuracy": (a.right.astype(np.float64), b.right.astype(np.float64)),
            "brier": tuple(self.brier_scale * np.square(each.p - _target(each)).sum(1) for each in (a, b)),
        }
        for key, (x, y) in values.items():
            with np.errstate(invalid="ignore"):
                for mean, value in zip(self.means[key], (x, y, y - x), strict=True):
                    mean.add(a.row, value)
        np.add.at(self.counts, (a.right.astype(int), b.right.astype(int)), 1)
        self.decisions += len(a)
        for gains in (True, False):
            largest = Largest(self.top)
            with np.errstate(invalid="ignore"):
                largest.add(a, (a.nll - b.nll) if gains else (b.nll - a.nll))
            self._keep(gains, largest, a, b)

    def _keep(self, gains: bool, largest: Largest, a: Decisions, b: Decisions) -> None:
        place = {(int(row), int(position)): k for k, (row, position) in enumerate(zip(a.row, a.position, strict=True))}
        for each in largest.examples():
            k = place[each.row, each.position]
            by = float(a.nll[k] - b.nll[k]) * (1 if gains else -1)
            if by > 0:
                self.examples[gains].append((by, {
                    "row": each.row, "position": each.position, "id": None, "true": each.true,
                    "predicted_first": int(a.predicted[k]), "predicted_second": int(b.predicted[k]),
                    "loss_first": float(a.nll[k]), "loss_second": float(b.nll[k]),
                }))  # fmt: skip
        self.examples[gains] = sorted(self.examples[gains], key=lambda pair: -pair[0])[: self.top]

    def comparison(
        self, names: tuple[str, str], class_names: Sequence[str], ids: Sequence[str], rows: int
    ) -> Comparison:
        """Return what was added up."""
        numbers: dict[str, float | int] = {"rows": rows, "decisions": self.decisions}
        for key, (first, second, difference) in self.means.items():
            numbers[f"{key}_first"], numbers[f"{key}_second"] = first.value, second.value
            numbers[f"{key}_difference"] = difference.value
            numbers[f"{key}_difference_standard_error"] = difference.standard_error
        (neither, only_second), (only_first, both) = self.counts.tolist()
        examples = {
            gains: [{**each, "id": ids[each["row"]] if len(ids) else None} for _, each in kept]
            for gains, kept in self.examples.items()
        }
        counts = {"both": both, "only_first": only_first, "only_second": only_second, "neither": neither}
        return Comparison(names, numbers, counts, examples[True], examples[False], tuple(class_names))


def _target(block: Decisions) -> Any:
    return np.eye(block.x.shape[1])[block.y] if block.t is None else block.t
