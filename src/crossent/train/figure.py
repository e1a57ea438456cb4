"""The picture of a job: panels that stand alone or together. Drawn without pyplot, which shares state."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossent.train.losses import push_curve
from crossent.train.results import LossResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink, and of a job's losses in their order; dashes differ besides, for the colour-blind."""

    paper: str
    ink: str
    faint: str
    colours: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1b1f24", "#c9ced6", ("#0072b2", "#3aa0dc", "#009e73", "#d55e00", "#b0609a", "#d99600"))
DARK = Theme("#14171c", "#e6e9ee", "#3a414c", ("#4aa3f0", "#a5d8ff", "#2cc79b", "#ff8145", "#e79fd0", "#f4c542"))
THEMES = (LIGHT, DARK)

_DASHES = (None, (1.5, 1.5), (4, 2), None, None, (6, 2, 1.5, 2))
_WIDTH, _HEIGHT = 5.8, 4.9


class Panel(NamedTuple):
    """A part of the picture: how it is drawn, and what it shows for those who do not see it."""

    draw: Callable[[Axes, Results, Theme], None]
    words: str
    wide: bool = False
    height: float = _HEIGHT


def png(results: Results, theme: Theme = LIGHT) -> bytes:
    """Draw all panels: two a row, a wide one alone."""
    panels = results.job.panels
    places: list[tuple[int, slice]] = []
    row, column = 0, 0
    for panel in panels:
        if panel.wide and column:
            row, column = row + 1, 0
        places.append((row, slice(0, 2) if panel.wide else slice(column, column + 1)))
        row, column = (row, 1) if not panel.wide and not column else (row + 1, 0)
    rows = 1 + places[-1][0]
    heights = [max(panel.height for panel, (at, _) in zip(panels, places, strict=True) if at == i) for i in range(rows)]
    figure = _figure(2 * _WIDTH, sum(heights), theme)
    grid = figure.add_gridspec(rows, 2, height_ratios=heights)
    for panel, (at, columns) in zip(panels, places, strict=True):
        panel.draw(figure.add_subplot(grid[at, columns]), results, theme)
    return _written(figure, "png")


def svg(panel: Panel, results: Results, theme: Theme) -> bytes:
    """Draw one panel alone."""
    figure = _figure(2 * _WIDTH if panel.wide else _WIDTH, panel.height, theme)
    panel.draw(figure.subplots(), results, theme)
    return _written(figure, "svg")


# --- panels that several jobs share -----------------------------------------------------------------------------------


def push_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the push on the true logit as the true class loses probability, from left to right, to one other class."""
    logit = np.linspace(5, -7, 481)
    ends = []
    for loss in results.losses:
        push = push_curve(results.job.candidates[loss.name], logit)
        axes.plot(-logit, push, **line(results, loss, theme))
        ends.append((float(push[-1]), loss))
    ticks = np.array([0.99, 0.9, 0.5, 0.1, 0.01, 0.001])
    axes.set_xticks(-np.log(ticks / (1 - ticks)), [f"{100 * p:g}%" for p in ticks])
    axes.set_xlim(-5, 7)
    axes.set_ylim(-0.35, 2.6)
    axes.axhline(0, color=theme.ink, linewidth=0.8)
    finish(axes, theme, "How hard the loss pushes the true class up", "push, as a multiple of the push at 50%")
    axes.set_xlabel("← sure and right        p(true)        sure and wrong →", color=theme.ink)
    label_ends(axes, ends, results, theme)


def epoch_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the validation score after each epoch: the seeds' mean, in a band from the lowest to the highest."""
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, results.settings.epochs + 1)
    ends = []
    for loss in results.losses:
        curves = 100 * np.array([run.validation for run in loss.runs])
        style = line(results, loss, theme)
        axes.plot(epochs, curves.mean(0), **style)
        axes.fill_between(epochs, curves.min(0), curves.max(0), color=style["color"], alpha=0.15, linewidth=0)
        ends.append((float(curves[:, -1].mean()), loss))
    axes.set_xlim(1 if len(epochs) > 1 else 0, len(epochs))
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, theme, "What the network learns", f"validation {results.job.words.rows} right, %")
    axes.set_xlabel("epoch", color=theme.ink)
    label_ends(axes, ends, results, theme)


# --- their parts ------------------------------------------------------------------------------------------------------


def spread_apart(values: list[float], gap: float) -> list[float]:
    """Move ascending values as little as possible, so that neighbours are at least a gap apart.

    >>> spread_apart([0.0, 5.0, 5.0], 1.0)
    [0.0, 4.5, 5.5]
    """
    blocks: list[list[float]] = []
    for i, value in enumerate(values):
        blocks.append([value - gap * i])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    level = [float(np.mean(block)) for block in blocks for _ in block]
    return [start + gap * i for i, start in enumerate(level)]


def label_ends(axes: Axes, ends: Sequence[tuple[float, LossResult]], results: Results, theme: Theme) -> None:
    """Write each curve's name beside its right end, where it covers nothing."""
    ends = sorted(ends, key=lambda end: end[0])
    low, high = axes.get_ylim()
    gap = 0.062
    heights = spread_apart([(value - low) / (high - low) for value, _ in ends], gap)
    for i, ((value, loss), height) in enumerate(zip(ends, heights, strict=True)):
        axes.annotate(
            loss.name,
            xy=(axes.get_xlim()[1], value),
            xytext=(1.06, min(height, 1 - gap * (len(ends) - 1 - i))),
            textcoords="axes fraction",
            va="center",
            color=theme.ink,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour(results, loss, theme), "linewidth": 1.4, "shrinkA": 1, "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def place(results: Results, loss: LossResult) -> int:
    """Find a loss's place among those of its job, by which it has its colour, whichever others are shown."""
    return list(results.job.card.losses).index(loss.name)


def colour(results: Results, loss: LossResult, theme: Theme) -> str:
    """Look up a loss's colour."""
    return theme.colours[place(results, loss)]


def line(results: Results, loss: LossResult, theme: Theme) -> dict[str, Any]:
    """Describe a loss's line."""
    dashes = _DASHES[place(results, loss)]
    style: Any = (0, dashes) if dashes else "solid"
    return {"color": colour(results, loss, theme), "linewidth": 2.0, "linestyle": style}


def finish(axes: Axes, theme: Theme, title: str, measure: str) -> None:
    """Give a panel its title, and what its height measures."""
    axes.set_title(title, loc="left", color=theme.ink, fontsize=13, fontweight="bold", pad=24)
    axes.text(0, 1.03, measure, transform=axes.transAxes, color=theme.ink)
    axes.set_facecolor(theme.paper)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.ink)


def _figure(width: float, height: float, theme: Theme) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")


def _written(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "crossent", "font.family": "DejaVu Sans"}):
        figure.savefig(out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
