"""A progress bar on the standard error, where a person watches and it takes longer than a second."""

from __future__ import annotations

from threading import Timer
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 1.0  # seconds


class ProgressBar:
    """Shows what is being done and how much of it, and leaves lines that stay; used with ``with``.

    Args:
        console: where to write.
        patience: the seconds before it is shown, by default :data:`PATIENCE`.
        counted: whether steps are counted, so that their number says something.
    """

    def __init__(self, console: Console | None = None, *, patience: float | None = None, counted: bool = True) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)]
        columns += [MofNCompleteColumn()] * counted + [TimeElapsedColumn()]
        watched = self.console.is_terminal
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not watched)
        self._task = self._progress.add_task("", total=None)
        self._timer = Timer(PATIENCE if patience is None else patience, self._progress.start) if watched else None

    def __enter__(self) -> Self:
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

    def __call__(self, doing: str, done: float, of: float) -> None:
        """Say what is being done now, how much of it is done, and of how much; 0 where that is unknown."""
        self._progress.update(self._task, description=doing, completed=done, total=of or None)

    def leave(self, line: str) -> None:
        """Leave a line."""
        self.console.print(line, markup=False)
