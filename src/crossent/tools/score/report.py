"""What ``score`` returns: the scores of a file, which show themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from crossent.tools.score.scores import Scores


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
        remarks: what a reader should know before believing a number.
        ids: the names of the rows that occur in the report.
    """

    def __str__(self) -> str:
        from crossent.tools.score.show import show
        from crossent.tools.terminal import plain_text

        return plain_text(partial(show, self))

    def __repr__(self) -> str:
        n = self.numbers
        return f"<Report: {n['decisions']} decisions, {n['nll_nats_mean']:.4f} nats, accuracy {n['accuracy']:.4f}>"
