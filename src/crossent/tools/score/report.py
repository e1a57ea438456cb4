"""What ``score`` returns: the scores of a file, which show themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from crossent.tools.optional_packages import needs
from crossent.tools.score.scores import Scores
from crossent.tools.shared_options import check_choice

if TYPE_CHECKING:
    from crossent.tools.score.plot import ReportDisplay


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
    """

    def __str__(self) -> str:
        from crossent.tools.score.show import show
        from crossent.tools.terminal import plain_text

        return plain_text(partial(show, self))

    def _repr_html_(self) -> str:
        from crossent.tools.notebook import block, prose, table_html
        from crossent.tools.score.tables import heading, report_tables

        parts = [prose(heading(self), bold=True), *map(prose, self.remarks)]
        for table in report_tables(self):
            parts += [table_html(table), *map(prose, table.notes)]
        return block(parts)

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
