"""The picture of a job: how hard each loss pushes, beside what it learns. Drawn without pyplot, which shares state."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossent.train.losses import CANDIDATES, push_curve
from crossent.train.results import LossResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink, and of each loss; the colour-blind can tell them apart, and dashes differ besides."""

    paper: str
    ink: str
    faint: str
    colours: dict[str, str]


LIGHT = Theme(
    "#ffffff", "#1b1f24", "#c9ced6",
    {
        "ce": "#0072b2", "ce-smooth": "#3aa0dc", "bce": "#009e73", "sigmoid-difference": "#d55e00", "hinge": "#b0609a",
        "ce-after-softmax": "#d99600",
    },
)  # fmt: skip
DARK = Theme(
    "#14171c", "#e6e9ee", "#3a414c",
    {
        "ce": "#4aa3f0", "ce-smooth": "#a5d8ff", "bce": "#2cc79b", "sigmoid-difference": "#ff8145", "hinge": "#e79fd0",
        "ce-after-softmax": "#f4c542",
    },
)  # fmt: skip

THEMES = (LIGHT, DARK)

_DASHES = {"bce": (4, 2), "ce-smooth": (1.5, 1.5), "ce-after-softmax": (6, 2, 1.5, 2)}


def png(results: Results, theme: Theme = LIGHT) -> bytes:
    """Draw both panels side by side."""
    figure = _figure(11.6, 4.9, theme)
    left, right = figure.subplots(1, 2)
    push_panel(left, results, theme)
    accuracy_panel(right, results, theme)
    return _written(figure, "png")


def push_svg(results: Results, theme: Theme) -> bytes:
    """Draw the push alone."""
    figure = _figure(5.8, 4.9, theme)
    push_panel(figure.subplots(), results, theme)
    return _written(figure, "svg")


def accuracy_svg(results: Results, theme: Theme) -> bytes:
    """Draw the accuracy alone."""
    figure = _figure(5.8, 4.9, theme)
    accuracy_panel(figure.subplots(), results, theme)
    return _written(figure, "svg")


# --- the panels -------------------------------------------------------------------------------------------------------


def push_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the push on the true logit as the true class loses probability, from left to right, to one other class."""
    logit = np.linspace(5, -7, 481)
    ends = []
    for loss in results.losses:
        push = push_curve(CANDIDATES[loss.name], logit)
        axes.plot(-logit, push, **_line(loss, theme))
        ends.append((float(push[-1]), loss))
    ticks = np.array([0.99, 0.9, 0.5, 0.1, 0.01, 0.001])
    axes.set_xticks(-np.log(ticks / (1 - ticks)), [f"{100 * p:g}%" for p in ticks])
    axes.set_xlim(-5, 7)
    axes.set_ylim(-0.35, 2.6)
    axes.axhline(0, color=theme.ink, linewidth=0.8)
    _finish(axes, theme, "How hard the loss pushes the true class up", "push, as a multiple of the push at 50%")
    axes.set_xlabel("← sure and right        p(true)        sure and wrong →", color=theme.ink)
    _label_ends(axes, ends, theme)


def accuracy_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the validation accuracy after each epoch: the seeds' mean, in a band from the lowest to the highest."""
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, results.settings.epochs + 1)
    ends = []
    for loss in results.losses:
        curves = 100 * np.array([run.validation_accuracy for run in loss.runs])
        line = _line(loss, theme)
        axes.plot(epochs, curves.mean(0), **line)
        axes.fill_between(epochs, curves.min(0), curves.max(0), color=line["color"], alpha=0.15, linewidth=0)
        ends.append((float(curves[:, -1].mean()), loss))
    axes.set_xlim(1 if len(epochs) > 1 else 0, len(epochs))
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, theme, "What the network learns", "validation images right, %")
    axes.set_xlabel("epoch", color=theme.ink)
    _label_ends(axes, ends, theme)


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


def _label_ends(axes: Axes, ends: list[tuple[float, LossResult]], theme: Theme) -> None:
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
                "arrowstyle": "-", "color": theme.colours[loss.name], "linewidth": 1.4, "shrinkA": 1, "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _line(loss: LossResult, theme: Theme) -> dict[str, Any]:
    dashes = _DASHES.get(loss.name)
    style: Any = (0, dashes) if dashes else "solid"
    return {"color": theme.colours[loss.name], "linewidth": 2.0, "linestyle": style}


def _figure(width: float, height: float, theme: Theme) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")


def _finish(axes: Axes, theme: Theme, title: str, measure: str) -> None:
    axes.set_title(title, loc="left", color=theme.ink, fontsize=13, fontweight="bold", pad=24)
    axes.text(0, 1.03, measure, transform=axes.transAxes, color=theme.ink)
    axes.set_facecolor(theme.paper)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.ink)


def _written(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "crossent", "font.family": "DejaVu Sans"}):
        figure.savefig(out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
