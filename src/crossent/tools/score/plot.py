"""A report as a picture: reliability and confusion, in the manner of scikit-learn's displays. Only drawing needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crossent.tools.optional_packages import needs
from crossent.tools.printable import brief
from crossent.tools.score.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WIDEST_NAME, WRITTEN = 14, 12  # up to so many classes the counts are written into the matrix


class ReportDisplay:
    """Reliability, the accuracy of decisions by their confidence, and the confusion matrix, each label's row as shares.

    Args:
        report: what to draw.

    Attributes:
        axes_: one for each panel, once drawn.
        figure_: their figure.
    """

    axes_: list[Axes]
    figure_: Figure | SubFigure | None

    def __init__(self, report: Scores) -> None:
        self.report = report

    def plot(self, ax: Any = None) -> ReportDisplay:
        """Draw on these axes, one or two, or on a new figure.

        Args:
            ax: matplotlib axes for the reliability, or a pair for both; None makes a figure.

        Returns:
            The display itself.

        Raises:
            ImportError: matplotlib is missing.
        """
        panels = 2 if self.report.confusion is not None else 1
        axes = _new_axes(panels) if ax is None else np.ravel(ax).tolist()
        self._reliability(axes[0])
        if len(axes) > 1 and self.report.confusion is not None:
            self._confusion(axes[1])
        self.axes_, self.figure_ = axes, axes[0].get_figure()
        return self

    def _reliability(self, ax: Axes) -> None:
        bins = self.report.bins
        ax.bar(
            [b.low for b in bins],
            [b.accuracy for b in bins],
            [b.high - b.low for b in bins],
            align="edge",
            edgecolor="white",
        )
        ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="as sure as it is right")
        ax.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o", color="black", markersize=3)
        error = self.report.numbers["calibration_error"]
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the predicted class", ylabel="share that is right")
        ax.set_title(f"Reliability; calibration error {error:.4f}")
        ax.legend(loc="upper left", frameon=False)

    def _confusion(self, ax: Axes) -> None:
        counts = np.array(self.report.confusion, np.float64)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [brief(name, WIDEST_NAME) for name in self.report.class_names]
        places = range(len(names)) if len(names) <= 30 else range(0, len(names), 10)
        ax.set_xticks(places, [names[k] for k in places], rotation=90, parse_math=False)
        ax.set_yticks(places, [names[k] for k in places], parse_math=False)
        ax.set(xlabel="predicted", ylabel="label", title="Confusion, shares of a label")
        if len(names) <= WRITTEN:
            for (i, j), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[i, j] > 0.5 else "black"
                    ax.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _new_axes(panels: int) -> list[Axes]:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(needs("plot", ["matplotlib"])) from error
    axes: list[Axes] = np.ravel(pyplot.subplots(1, panels, figsize=(5 * panels, 4.6), layout="constrained")[1]).tolist()
    return axes
