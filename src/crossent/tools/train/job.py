"""What a job is: the rows, the network, the losses, the scores, what is said and shown of them; and its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from crossent.reference import Array, Bools
from crossent.tools.page.scene import Scene
from crossent.tools.table import Table
from crossent.tools.train.candidates import Candidate
from crossent.tools.train.catalogue import JobEntry
from crossent.tools.train.data import Split
from crossent.tools.train.fit import Fitted, Judge
from crossent.tools.train.panel import Panel
from crossent.tools.train.results import LossResult, SeedResult, TrainSettings, plain


class Measure(NamedTuple):
    """A score of the test part: its key among the records, its column in the table, and how it is written there."""

    key: str
    column: str
    scale: float = 100
    decimals: int = 1
    spread: bool = True
    unit: str = ""


class Wording(NamedTuple):
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
    the report, ``details`` come after them. ``record`` adds to the JSON of a loss. ``scene`` is the
    interactive part of the page.
    """

    entry: JobEntry
    candidates: Mapping[str, Candidate]
    network: Callable[[], nn.Module]
    load: Callable[[TrainSettings, int], Split]
    judge: Judge
    examine: Callable[[Candidate, Fitted, Split], SeedResult]
    measures: tuple[Measure, ...]
    cost: str
    rates: tuple[float, ...]
    quick_rates: tuple[float, ...]
    wording: Wording
    title: str
    opening: Callable[[Results], str]
    sentences: tuple[Callable[[Results], str], ...]
    definitions: Callable[[Results], tuple[str, ...]]
    panels: tuple[Panel, ...]
    caption: str
    columns: tuple[tuple[str, Callable[[LossResult], str]], ...] = ()
    reasons: tuple[Callable[[Results], Table], ...] = ()
    details: tuple[Callable[[Results], Table], ...] = ()
    record: Callable[[LossResult], dict[str, Any]] = no_record
    note: Callable[[Candidate, Fitted, Split], dict[str, float]] = no_notes
    learnt: float = 0.5
    scene: Callable[[Results], Scene] | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Results:
    """A whole job; ``complete`` is false if it was interrupted, and then only the finished losses are here."""

    job: Job
    settings: TrainSettings
    sizes: dict[str, int]
    test_index: tuple[Any, ...]
    losses: tuple[LossResult, ...]
    complete: bool
    seconds: float
    versions: dict[str, str]

    def __getitem__(self, name: str) -> LossResult:
        return next(loss for loss in self.losses if loss.name == name)

    def __contains__(self, name: object) -> bool:
        return any(loss.name == name for loss in self.losses)

    def score(self, loss: LossResult) -> float:
        """Average the score that counts over the seeds."""
        return loss.mean(self.job.measures[0].key)

    @property
    def learnt(self) -> tuple[LossResult, ...]:
        """List the losses that have learnt the task; the other scores of those that have not are not compared."""
        return tuple(loss for loss in self.losses if self.score(loss) >= self.job.learnt)


def seed_result(
    fitted: Fitted,
    shares: Mapping[str, Array | Bools],
    details: dict[str, Any],
    scores: Mapping[str, float] | None = None,
) -> SeedResult:
    """Record a run at the chosen rate: a score is the mean of its shares, unless it is given."""
    means = {key: float(share.mean()) for key, share in shares.items()}
    return SeedResult(
        seed=fitted.seed,
        scores={**means, **(scores or {})},
        shares={key: tuple(share.astype(float).tolist()) for key, share in shares.items()},
        train_loss=fitted.train_loss,
        validation=fitted.validation_score,
        details=details,
    )


def as_json(job: Job, loss: LossResult) -> dict[str, Any]:
    """Write one loss for JSON, with the means and spreads of its runs."""
    headline = job.measures[0].key
    summary: dict[str, Any] = {}
    for measure in job.measures:
        name = f"test_{measure.key}{measure.unit}"
        summary |= {name: loss.mean(measure.key), f"{name}_sd": loss.spread(measure.key)}
    runs = [
        {
            **run.scores,
            **run.details,
            "seed": run.seed,
            "train_loss": run.train_loss,
            f"validation_{headline}": run.validation,
        }
        for run in loss.runs
    ]
    head = {"name": loss.name, "rate": loss.rate, "rate_at_end_of_sweep": loss.at_end_of_sweep}
    sweep = [{"rate": tried.rate, headline: tried.score, job.cost: tried.cost, **tried.noted} for tried in loss.sweep]
    written: dict[str, Any] = plain({**head, **summary, "sweep": sweep, "runs": runs, **job.record(loss)})
    return written
