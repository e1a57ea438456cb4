"""A progress bar on the standard error, where a person watches and it takes longer than a second."""

from __future__ import annotations

from threading import Timer
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
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("reading", total=None)
        self._timer = Timer(PATIENCE, self._progress.start) if console.is_terminal else None

    def __enter__(self) -> Bar:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._progress.stop()

    def __call__(self, doing: str, done: int, of: int) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=doing, completed=done, total=of or None)
