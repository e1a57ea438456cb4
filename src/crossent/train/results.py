"""What a job found: frozen records, and their form as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossent.train.losses import Push
from crossent.train.metrics import Scores, epochs_to

LEVEL = 0.9
"""The validation accuracy whose first epoch is reported."""


@dataclass(frozen=True)
class Tried:
    """A learning rate of the sweep, scored on the validation part; ``nll`` is nan if training diverged."""

    rate: float
    accuracy: float
    nll: float


@dataclass(frozen=True)
class SeedResult:
    """One run at the chosen rate. ``wrong`` holds the data set's positions of the test rows it gets wrong."""

    seed: int
    test: Scores
    wrong: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]

    @property
    def epochs_to_level(self) -> int | None:
        """Find the first epoch that ends at ``LEVEL`` on the validation part."""
        return epochs_to(self.validation_accuracy, LEVEL)


@dataclass(frozen=True)
class LossResult:
    """Everything about one loss; ``sweep`` is empty where the rate was given."""

    name: str
    rate: float
    sweep: tuple[Tried, ...]
    runs: tuple[SeedResult, ...]
    push: Push

    def mean(self, measure: Callable[[SeedResult], float]) -> float:
        """Average over the seeds."""
        return float(np.mean([measure(run) for run in self.runs]))

    def spread(self, measure: Callable[[SeedResult], float]) -> float | None:
        """Compute the standard deviation over the seeds, if there are several."""
        return float(np.std([measure(run) for run in self.runs], ddof=1)) if len(self.runs) > 1 else None

    @property
    def accuracy(self) -> float:
        """Average the test accuracy over the seeds."""
        return self.mean(lambda run: run.test.accuracy)

    @property
    def nll(self) -> float:
        """Average the test NLL over the seeds."""
        return self.mean(lambda run: run.test.nll)

    @property
    def calibration_error(self) -> float:
        """Average the test calibration error over the seeds."""
        return self.mean(lambda run: run.test.calibration_error)

    @property
    def final_train_loss(self) -> float:
        """Average the last epoch's training loss over the seeds."""
        return self.mean(lambda run: run.train_loss[-1])

    @property
    def at_end_of_sweep(self) -> bool:
        """Say whether a better rate may lie outside the sweep."""
        rates = [tried.rate for tried in self.sweep]
        return len(rates) > 2 and self.rate in (min(rates), max(rates))


@dataclass(frozen=True)
class Settings:
    """What was asked: enough to run it again."""

    losses: tuple[str, ...]
    epochs: int
    seeds: int
    seed: int
    rates: tuple[float, ...]
    quick: bool

    @property
    def swept(self) -> bool:
        """Say whether rates were chosen and not given."""
        return len(self.rates) > 1


@dataclass(frozen=True)
class Results:
    """A whole job; ``complete`` is false if it was interrupted, and then only the finished losses are here."""

    settings: Settings
    sizes: dict[str, int]
    test_index: tuple[int, ...]
    losses: tuple[LossResult, ...]
    complete: bool
    seconds: float
    versions: dict[str, str]

    def __getitem__(self, name: str) -> LossResult:
        return next(loss for loss in self.losses if loss.name == name)

    def __contains__(self, name: object) -> bool:
        return any(loss.name == name for loss in self.losses)


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


def as_json(loss: LossResult) -> dict[str, Any]:
    """Write one loss for JSON, with the means and spreads of its runs."""
    runs = [
        {**plain(run.test), "epochs_to_90_percent": run.epochs_to_level, **_record(run, leave="test")}
        for run in loss.runs
    ]
    summary = {
        "test_accuracy": loss.accuracy,
        "test_accuracy_sd": loss.spread(lambda run: run.test.accuracy),
        "test_nll_nats": loss.nll,
        "test_nll_nats_sd": loss.spread(lambda run: run.test.nll),
        "test_calibration_error": loss.calibration_error,
        "test_calibration_error_sd": loss.spread(lambda run: run.test.calibration_error),
    }
    head = {"name": loss.name, "rate": loss.rate, "rate_at_end_of_sweep": loss.at_end_of_sweep}
    return {
        **head,
        **plain(summary),
        "sweep": [_record(tried) for tried in loss.sweep],
        "runs": runs,
        "gradient": plain(loss.push),
    }


def _record(value: Any, leave: str = "") -> dict[str, Any]:
    return {key: plain(item) for key, item in asdict(value).items() if key != leave}
