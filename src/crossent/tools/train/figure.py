"""The picture of a job: panels that stand alone or together. Drawn without pyplot, which shares state."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossent.tools.train.candidates import push_curve
from crossent.tools.train.job import Results
from crossent.tools.train.panel import LIGHT, Panel, Theme
from crossent.tools.train.results import LossResult, SeedResult, Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_DASHES = (None, (1.5, 1.5), (4, 2), None, None, (6, 2, 1.5, 2))
TINTS = {
    "ce": 0, "plain": 0, "softmax": 0,
    "ce-smooth": 1, "softmax-na": 1,
    "bce": 2, "gce": 2, "weighted": 2,
    "sigmoid-difference": 3, "mae": 3, "focal": 3,
    "hinge": 4, "adjusted": 4,
    "ce-after-softmax": 5, "sce": 5,
}  # fmt: skip
"""Which tint and which dashes a loss has, the same in every picture."""
_WIDTH = 5.8


def png(results: Results, theme: Theme = LIGHT) -> bytes:
    """Draw all panels of a job."""
    return together(results.job.panels, results, theme)


def together(panels: Sequence[Panel], results: Any, theme: Theme = LIGHT) -> bytes:
    """Draw panels: two a row, a wide one alone."""
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


def svg(panel: Panel, results: Any, theme: Theme) -> bytes:
    """Draw one panel alone."""
    figure = _figure(2 * _WIDTH if panel.wide else _WIDTH, panel.height, theme)
    panel.draw(figure.subplots(), results, theme)
    return _written(figure, "svg")


# --- panels that several jobs share -----------------------------------------------------------------------------------


def push_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the push on the true logit as the true class loses probability, from left to right, to one other class."""
    over_probability(axes, results, theme)
    finish(axes, theme, "How hard the loss pushes the true class up", "push, as a multiple of the push at 50%")
    axes.set_xlabel("← sure and right        p(true)        sure and wrong →", color=theme.ink)


def over_probability(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the push on a class as it loses probability to one other."""
    logit = np.linspace(5, -7, 481)
    ends = []
    for loss in results.losses:
        push = push_curve(results.job.candidates[loss.name], logit)
        axes.plot(-logit, push, **line(loss, theme))
        ends.append((float(push[-1]), loss))
    ticks = np.array([0.99, 0.9, 0.5, 0.1, 0.01, 0.001])
    axes.set_xticks(-np.log(ticks / (1 - ticks)), [f"{100 * p:g}%" for p in ticks])
    axes.set_xlim(-5, 7)
    axes.set_ylim(-0.35, 2.6)
    axes.axhline(0, color=theme.ink, linewidth=0.8)
    label_ends(axes, ends, theme)


def epoch_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the validation score after each epoch: the seeds' mean, in a band from the lowest to the highest."""
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, results.settings.epochs + 1)
    ends = []
    for loss in results.losses:
        curves = 100 * np.array([run.validation for run in loss.runs])
        style = line(loss, theme)
        axes.plot(epochs, curves.mean(0), **style)
        axes.fill_between(epochs, curves.min(0), curves.max(0), color=style["color"], alpha=0.15, linewidth=0)
        ends.append((float(curves[:, -1].mean()), loss))
    axes.set_xlim(1 if len(epochs) > 1 else 0, len(epochs))
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, theme, "What the network learns", _validation(results))
    axes.set_xlabel("epoch", color=theme.ink)
    label_ends(axes, ends, theme)


def rate_panel(axes: Axes, results: Results, theme: Theme, top: float = 102) -> None:
    """Plot the validation score over the learning rate, a dot at the chosen one; without a sweep, over the epochs."""
    if not results.settings.swept:
        return epoch_panel(axes, results, theme)
    over_rates(axes, results, theme, lambda tried: tried.score if math.isfinite(tried.cost) else 0.0, top)
    finish(axes, theme, "What each learning rate leads to", f"{_validation(results)}; dot: the rate chosen")


def over_rates(axes: Axes, results: Results, theme: Theme, share: Callable[[Tried], float], top: float = 102) -> None:
    """Plot a share over the learning rate, a dot at the chosen one."""
    rates = results.settings.rates
    ends = []
    for loss in results.losses:
        shares = [100 * share(tried) for tried in loss.sweep]
        style = line(loss, theme)
        axes.plot(rates, shares, **style)
        axes.plot(loss.rate, 100 * share(loss.at(loss.rate)), "o", color=style["color"], markersize=8)
        ends.append((shares[-1], loss))
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1])
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.set_xlabel("learning rate", color=theme.ink)
    label_ends(axes, ends, theme)


def over_categories(
    axes: Axes,
    results: Results,
    theme: Theme,
    shares: Callable[[SeedResult], Sequence[float]],
    *,
    each_seed: bool = False,
    markersize: float | None = None,
) -> None:
    """Plot shares of a few categories in their order: the seeds' mean, and each seed in a thin line where that is asked."""
    ends = []
    for loss in results.losses:
        curves = 100 * np.array([shares(run) for run in loss.runs])
        style, places = line(loss, theme), range(curves.shape[1])
        axes.plot(places, curves.mean(0), marker="o", markersize=markersize, **style)
        if each_seed:
            axes.plot(places, curves.T, **{**style, "linewidth": 0.8}, alpha=0.5)
        ends.append((float(curves[:, -1].mean()), loss))
        axes.set_xlim(0, len(places) - 1)
    axes.set_ylim(0, 102)
    label_ends(axes, ends, theme)


def dots(axes: Axes, results: Results, theme: Theme, groups: dict[str, str]) -> None:
    """Plot test scores side by side, those of one name together: a dot a seed, a line at their mean."""
    count = len(results.losses)
    for i, loss in enumerate(results.losses):
        tint = colour(loss, theme)
        for j, key in enumerate(groups.values()):
            x = j + (i - (count - 1) / 2) * 0.8 / count
            scores = [100 * run.scores[key] for run in loss.runs]
            axes.plot([x] * len(scores), scores, "o", color=tint, markersize=6, alpha=0.55, markeredgewidth=0)
            axes.hlines(np.mean(scores), x - 0.3 / count, x + 0.3 / count, color=tint, linewidth=3)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 104)
    legend(axes, results, theme)


def legend(axes: Axes, results: Results, theme: Theme) -> None:
    """Name the losses beside the panel, where they cover nothing."""
    count = len(results.losses)
    for i, loss in enumerate(results.losses):
        y = 0.5 + 0.062 * ((count - 1) / 2 - i)
        axes.plot([1.03], [y], "o", color=colour(loss, theme), transform=axes.transAxes, clip_on=False)
        axes.text(1.06, y, loss.name, transform=axes.transAxes, va="center", color=theme.ink)


def _validation(results: Results) -> str:
    return f"{results.job.wording.measured} on the validation {results.job.wording.rows}, %"


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


def label_ends(axes: Axes, ends: Sequence[tuple[float, LossResult]], theme: Theme) -> None:
    """Write each loss's name beside the right end of its curve."""
    label_values(axes, [(value, loss.name, colour(loss, theme)) for value, loss in ends], theme)


def label_values(axes: Axes, ends: Sequence[tuple[float, str, str]], theme: Theme) -> None:
    """Write names beside the right ends of curves, where they cover nothing; each is given as height, name and colour."""
    ends = sorted(ends, key=lambda end: end[0])
    low, high = axes.get_ylim()
    gap = 0.062
    heights = spread_apart([(value - low) / (high - low) for value, *_ in ends], gap)
    for i, ((value, name, tint), height) in enumerate(zip(ends, heights, strict=True)):
        axes.annotate(
            name,
            xy=(axes.get_xlim()[1], value),
            xytext=(1.06, min(height, 1 - gap * (len(ends) - 1 - i))),
            textcoords="axes fraction",
            va="center",
            color=theme.ink,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": tint, "linewidth": 1.4, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def colour(loss: LossResult, theme: Theme) -> str:
    """Look up a loss's colour."""
    return theme.tints[TINTS[loss.name]]


def line(loss: LossResult, theme: Theme) -> dict[str, Any]:
    """Describe a loss's line."""
    dashes = _DASHES[TINTS[loss.name]]
    style: Any = (0, dashes) if dashes else "solid"
    return {"color": colour(loss, theme), "linewidth": 2.0, "linestyle": style}


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
