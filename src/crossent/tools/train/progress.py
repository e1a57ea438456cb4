"""Progress on the standard error: a live line where a person watches, a line for each finished loss in any case."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from crossent.tools.train.fit import Epoch

if TYPE_CHECKING:
    from typing_extensions import Self


class Bar:
    """A live line with a bar where a person watches, and lines that stay; used with ``with``."""

    def __init__(self, total: float, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, said: str) -> None:
        """Go on by one, and say where it stands."""
        self._progress.update(self._task, advance=1, description=said)

    def reach(self, done: float, said: str) -> None:
        """Come so far, and say where it stands."""
        self._progress.update(self._task, completed=done, description=said)

    def leave(self, line: str) -> None:
        """Leave a line."""
        self._progress.console.print(line, markup=False)


class Watch(Bar):
    """Shows the loss, rate, seed, epoch and validation score while a job runs."""

    def __init__(self, total_runs: int, epochs: int, console: Console | None = None) -> None:
        super().__init__(total_runs * epochs, console)
        self._epochs = epochs
        self._name = ""
        self._started = time.perf_counter()

    def start(self, name: str) -> None:
        """Begin a loss."""
        self._name = name
        self._started = time.perf_counter()

    def epoch(self, epoch: Epoch) -> None:
        """Show a run's latest epoch."""
        self.advance(
            f"{self._name:<18}  rate {epoch.rate:<5g}  seed {epoch.seed}  epoch {epoch.number:>2}/{self._epochs}  "
            f"val. {100 * epoch.validation_score:5.1f}%"
        )

    def finish(self, rate: float, tried: int, validation_score: float) -> None:
        """Leave a line about the loss that was finished."""
        seconds = time.perf_counter() - self._started
        chosen = f" of {tried}" if tried > 1 else ""
        found = f"rate {f'{rate:g}{chosen}':<10}  validation {100 * validation_score:5.1f}%"
        self.leave(f"{self._name:<18}  {found}  {seconds:5.1f} s")
