"""The progress of a job on the standard error: a live line where a person watches, and a line for each finished loss."""

from __future__ import annotations

import time

from rich.console import Console

from crossent.tools.progress import ProgressBar
from crossent.tools.train.fit import Epoch


class TrainingProgress(ProgressBar):
    """Shows the loss, rate, seed, epoch and validation score while a job runs."""

    def __init__(self, total_runs: int, epochs: int, console: Console | None = None) -> None:
        super().__init__(console, patience=0, counted=False)
        self._total, self._epochs, self._done = total_runs * epochs, epochs, 0
        self._name = ""
        self._started = time.perf_counter()

    def announce(self, losses: int, takes: str) -> None:
        """Say at the beginning how much is to be done, and how long that takes."""
        trainings = self._total // self._epochs
        counts = ((losses, "loss", "es"), (trainings, "training", "s"), (self._epochs, "epoch", "s"))
        loss, training, epoch = (f"{n} {what}{plural * (n != 1)}" for n, what, plural in counts)
        self.leave(f"{loss}, {training} of {epoch}. {takes}".rstrip())
        self.leave("The seconds at the end of a line are those of all trainings of its loss.")

    def start(self, name: str) -> None:
        """Begin a loss."""
        self._name = name
        self._started = time.perf_counter()

    def epoch(self, epoch: Epoch) -> None:
        """Show a run's latest epoch."""
        self._done += 1
        doing = (
            f"{self._name:<18}  rate {epoch.rate:<5g}  seed {epoch.seed}  epoch {epoch.number:>2}/{self._epochs}  "
            f"val. {100 * epoch.validation_score:5.1f}%"
        )
        self(doing, self._done, self._total)

    def finish(self, rate: float, tried: int, validation_score: float) -> None:
        """Leave a line about the loss that was finished."""
        seconds = time.perf_counter() - self._started
        chosen = f"best of {tried} learning rates: {rate:<5g}" if tried > 1 else f"learning rate {rate:<5g}"
        self.leave(f"{self._name:<18}  {chosen}  validation {100 * validation_score:.1f}%  {seconds:.1f} s")
