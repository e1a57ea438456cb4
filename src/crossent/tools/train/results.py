"""What is kept of each loss: frozen records, and their form as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Shares = tuple[float, ...]


@dataclass(frozen=True)
class Tried:
    """A learning rate of the sweep, judged on the validation part; ``cost`` is nan if training diverged.

    ``noted`` is what this job alone notes of the trained model, of the training or the validation part.
    """

    rate: float
    score: float
    cost: float
    noted: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedResult:
    """One run at the chosen rate, scored on the test part.

    ``shares`` says of a score how much of it each independent piece of the test part gives, a row or a block of rows, so that
    their mean is the score; two losses are compared by them. ``details`` is what this job alone records.
    """

    seed: int
    scores: dict[str, float]
    shares: dict[str, Shares]
    train_loss: tuple[float, ...]
    validation: tuple[float, ...]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LossResult:
    """Everything about one loss; ``sweep`` is empty where the rate was given."""

    name: str
    rate: float
    sweep: tuple[Tried, ...]
    runs: tuple[SeedResult, ...]

    def mean_of(self, measure: Callable[[SeedResult], float]) -> float:
        """Average over the seeds."""
        return float(np.mean([measure(run) for run in self.runs]))

    def mean(self, key: str) -> float:
        """Average a test score over the seeds."""
        return self.mean_of(lambda run: run.scores[key])

    def spread(self, key: str) -> float | None:
        """Compute a test score's standard deviation over the seeds, if there are several."""
        return float(np.std([run.scores[key] for run in self.runs], ddof=1)) if len(self.runs) > 1 else None

    @property
    def at_end_of_sweep(self) -> bool:
        """Say whether a better rate may lie outside the sweep."""
        rates = [tried.rate for tried in self.sweep]
        return len(rates) > 2 and self.rate in (min(rates), max(rates))

    def at(self, rate: float) -> Tried:
        """Look up a rate of the sweep."""
        return next(tried for tried in self.sweep if tried.rate == rate)


@dataclass(frozen=True)
class TrainSettings:
    """What was asked: enough to run it again. ``options`` are those that one job alone takes."""

    losses: tuple[str, ...]
    epochs: int
    seeds: int
    seed: int
    rates: tuple[float, ...]
    quick: bool
    options: dict[str, float] = field(default_factory=dict)

    @property
    def swept(self) -> bool:
        """Say whether rates were chosen and not given."""
        return len(self.rates) > 1


def plain(value: Any) -> Any:
    """Make a value of records, tuples and numbers fit for JSON; what is not finite becomes None.

    >>> plain({"nll": float("nan"), "wrong": (1, 2)})
    {'nll': None, 'wrong': [1, 2]}
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def settings_as_json(settings: TrainSettings) -> dict[str, Any]:
    """Write the settings for JSON, those of one job among those of all."""
    written = asdict(settings)
    own = written.pop("options")
    return {**written, **own}
