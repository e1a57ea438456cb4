"""What ``score`` returns: the scores of a file, which show themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossent.tools.optional_packages import needs
from crossent.tools.score.scores import Scores
from crossent.tools.shared_options import check_choice

if TYPE_CHECKING:
    from crossent.tools.score.plot import ReportDisplay
    from crossent.tools.score.row_blocks import Reader


SHOWN_AT_ONCE = 1 << 20
"""Logits, up to which a notebook shows the page without being asked: more take their time."""


@dataclass(frozen=True, repr=False)
class Report(Scores):
    """The scores of a file of logits; ``print`` shows its tables.

    Attributes:
        settings: where the numbers came from and how they were read.
        numbers: the scores, under the names of :data:`DEFINITIONS`; None where a number is not defined, inf where it is infinite.
        class_names: one for each class.
        classes: what is known of each class.
        bins: the reliability of the most probable class, by its probability.
        worst: the examples with the largest loss.
        suspects: the labels that are most likely wrong.
        confusion: how often each class is predicted where each is the label, a list a label; None for more than 100 classes.
        remarks: what a reader should know before believing a number.
        ids: the names of the rows that occur in the report.
        source: what was read, from which a page takes its rows; a pickle of the report has none, nor has a copy.
    """

    source: Reader | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None}

    def __str__(self) -> str:
        from crossent.tools.score.show import show
        from crossent.tools.terminal import plain_text

        return plain_text(partial(show, self))

    def _repr_html_(self) -> str:
        from crossent.tools.notebook import block, frame, prose, table_html
        from crossent.tools.score.tables import heading, report_tables

        parts = [prose(heading(self), bold=True), *map(prose, self.remarks)]
        for table in report_tables(self):
            parts += [table_html(table), *map(prose, table.notes)]
        if self.source is not None and prod(self.source.logits.shape) <= SHOWN_AT_ONCE:
            parts.append(frame(self.to_html(), 780))
        return block(parts)

    def to_html(self, path: str | PathLike[str] | None = None, *, images: Any = None) -> str:
        """Write a page: the findings of ``check``, the worst rows with what the loss tells them, reliability, confusion, classes.

        The page is one file that needs no network. Python computed its numbers. Its script computes only what a reader changes.

        Args:
            path: where to write it; None only returns it.
            images: one for each row of the logits, ``(H, W)`` or ``(H, W, channels)``, shown beside the worst rows.

        Returns:
            The page.
        """
        from crossent.tools.score.page import report_page

        text = report_page(self, self.source, images)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def plot(self, ax: Any = None) -> ReportDisplay:
        """Draw reliability and confusion, as scikit-learn's displays do.

        Args:
            ax: matplotlib axes for the reliability, or a pair for both; None makes a figure.

        Returns:
            The display, with ``axes_`` and ``figure_``.

        Raises:
            ImportError: matplotlib is missing.
        """
        from crossent.tools.score.plot import ReportDisplay

        return ReportDisplay(self).plot(ax)

    def to_frame(self, table: str = "classes") -> Any:
        """Return a table as a frame of pandas.

        Args:
            table: ``"classes"``, ``"worst"``, ``"suspected_label_errors"`` or ``"calibration_bins"``.

        Raises:
            ImportError: pandas is missing.
            ValueError: there is no such table.
        """
        tables = ("classes", "worst", "suspected_label_errors", "calibration_bins")
        check_choice("table", table, tables)
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(f"{needs('to_frame', ['pandas'])}; to_dict() has the same without") from error
        return pd.DataFrame(self.to_dict()[table])

    def __repr__(self) -> str:
        n = self.numbers
        return f"<Report: {n['decisions']} decisions, {n['nll_nats_mean']:.4f} nats, accuracy {n['accuracy']:.4f}>"
