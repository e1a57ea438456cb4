"""What a job is: the rows, the network, the losses, the scores, and what is said and shown of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from crossent.tools.train.catalogue import Card
from crossent.tools.train.data import Split
from crossent.tools.train.fit import Fitted, Judge
from crossent.tools.train.losses import Candidate
from crossent.tools.train.results import LossResult, Results, SeedResult, Settings
from crossent.tools.train.tables import Grid

if TYPE_CHECKING:
    from crossent.tools.train.figure import Panel


class Measure(NamedTuple):
    """A score of the test part: its key among the records, its column in the table, and how it is written there."""

    key: str
    column: str
    scale: float = 100
    decimals: int = 1
    spread: bool = True
    unit: str = ""


class Words(NamedTuple):
    """The words in which a job speaks of its rows and of the score that counts."""

    row: str
    rows: str
    measured: str
    achieves: str
    validates: str
    cost: str
    data: str
    split: str
    seeded: str


def no_record(loss: LossResult) -> dict[str, Any]:
    """Record nothing beside what every job records."""
    return {}


def no_notes(candidate: Candidate, fitted: Fitted, split: Split) -> dict[str, float]:
    """Note nothing of a model of the sweep."""
    return {}


@dataclass(frozen=True)
class Job:
    """Everything that one job has of its own. Its first measure counts: rates are chosen and losses compared by it.

    ``load`` takes the settings and a run's seed, on which the training and validation part may depend, and the test part not.
    ``examine`` scores a trained model on the test part. A loss whose score is below ``learnt`` has not learnt the task.
    ``note`` looks at every model of the sweep, and not at the test part. ``reasons`` are tables that come before the scores in
    the report, ``details`` come after them. ``record`` adds to the JSON of a loss.
    """

    card: Card
    candidates: Mapping[str, Candidate]
    network: Callable[[], nn.Module]
    load: Callable[[Settings, int], Split]
    judge: Judge
    examine: Callable[[Candidate, Fitted, Split], SeedResult]
    measures: tuple[Measure, ...]
    cost: str
    rates: tuple[float, ...]
    quick_rates: tuple[float, ...]
    words: Words
    title: str
    opening: Callable[[Results], str]
    sentences: tuple[Callable[[Results], str], ...]
    definitions: Callable[[Results], tuple[str, ...]]
    panels: tuple[Panel, ...]
    caption: str
    columns: tuple[tuple[str, Callable[[LossResult], str]], ...] = ()
    reasons: tuple[Callable[[Results], Grid], ...] = ()
    details: tuple[Callable[[Results], Grid], ...] = ()
    record: Callable[[LossResult], dict[str, Any]] = no_record
    note: Callable[[Candidate, Fitted, Split], dict[str, float]] = no_notes
    learnt: float = 0.5
    batch_size: int = 64
