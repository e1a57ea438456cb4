"""A progress bar on the standard error, where a person watches and it takes longer than a second."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PATIENCE = 1.0  # seconds


class Bar:
    """Shows what is being done; used with ``with``, and called with what, how much of it is done, and of how much (0: unknown)."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("")
        self._since, self._shown = time.perf_counter(), False

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._progress.stop()

    def __call__(self, doing: str, done: int, of: int) -> None:
        """Show the progress, if it has taken long enough."""
        if not self._shown and time.perf_counter() - self._since > PATIENCE:
            self._progress.start()
            self._shown = True
        if self._shown:
            self._progress.update(self._task, description=doing, completed=done, total=of or None)
