"""An explanation as a picture, in the manner of scikit-learn's displays. Needs matplotlib, which is imported only here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossent.tools.explain import tables
from crossent.tools.explain.row_numbers import RowNumbers
from crossent.tools.optional_packages import needs
from crossent.tools.printable import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure, SubFigure

WIDEST_NAME = 14


class ExplanationDisplay:
    """The push of each loss on each class, minus the gradient: bars upwards raise a logit, bars downwards lower it.

    Args:
        explanation: what to draw.

    Attributes:
        ax_: the axes, once drawn.
        figure_: their figure.
        bars_: one container of bars for each loss.
    """

    ax_: Axes
    figure_: Figure | SubFigure | None
    bars_: list[BarContainer]

    def __init__(self, explanation: RowNumbers) -> None:
        self.explanation = explanation

    def plot(self, ax: Axes | None = None) -> ExplanationDisplay:
        """Draw on these axes, or on a new figure.

        Args:
            ax: matplotlib axes; None makes a figure.

        Returns:
            The display itself.

        Raises:
            ImportError: matplotlib is missing.
        """
        e, classes = self.explanation, tables.shown(self.explanation)
        ax = _new_axes(len(classes), len(e.losses)) if ax is None else ax
        width = 0.84 / len(e.losses)
        self.bars_ = []
        for i, loss in enumerate(e.losses):
            places = [j + (i - (len(e.losses) - 1) / 2) * width for j in range(len(classes))]
            push = [-loss.gradient[k] for k in classes]
            self.bars_.append(ax.bar(places, push, width, label=loss.name))
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(classes)), [self._name(k) for k in classes], parse_math=False)
        ax.set_ylabel("push on the logit, −∂L/∂x\n▼ lowered        raised ▲")
        left_out = len(e.logits) - len(classes)
        ax.set_title(tables.heading(e) + f"; {left_out} not shown" * bool(left_out), parse_math=False)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        self.ax_, self.figure_ = ax, ax.get_figure()
        return self

    def _name(self, k: int) -> str:
        e = self.explanation
        return f"{brief(tables.name(e, k), WIDEST_NAME)}\nx = {tables.general(e.logits[k])}"


def _new_axes(classes: int, losses: int) -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(needs("plot", ["matplotlib"])) from error
    size = (min(3.5 + 0.18 * classes * (losses + 2), 14), 4.2)
    ax: Axes = pyplot.subplots(figsize=size, layout="constrained")[1]
    return ax
