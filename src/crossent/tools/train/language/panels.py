"""The picture of a language model's training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from crossent.tools.train.figure import finish, label_values
from crossent.tools.train.language.heads import CALLS
from crossent.tools.train.language.run import LanguageResults
from crossent.tools.train.panel import Panel, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED = 20  # steps
LABELS = [call.replace(", ", ",\n") for call in CALLS.values()]


def curve_panel(axes: Axes, results: LanguageResults, theme: Theme) -> None:
    """Plot bits per byte over the time of training, above what others need."""
    model, reference_colour = theme.tints[0], theme.tints[3]
    losses = np.array([step.bits for step in results.steps])
    seconds = np.cumsum([step.seconds for step in results.steps])
    width = min(SMOOTHED, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(seconds[width - 1 :], smooth, color=theme.tints[1], linewidth=1.2)
    times, bits = [point.seconds for point in results.curve], [point.bits for point in results.curve]
    axes.plot(times, bits, "o-", color=model, linewidth=2, clip_on=False, zorder=3)
    frequencies = results.frequencies
    lines = [(each.after, f"{each.name} {each.after:.2f}") for each in results.compressed]
    lines += [
        (frequencies.bigram, f"pairs of bytes {frequencies.bigram:.2f}"),
        (frequencies.unigram, f"bytes {frequencies.unigram:.2f}"),
    ]
    for height, _ in lines:
        axes.axhline(height, color=reference_colour, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xlim(0, max(seconds[-1], times[-1]))
    heights = [results.bits, *(height for height, _ in lines)]
    axes.set_ylim(0.9 * min(*heights, smooth.min()), max(frequencies.unigram, results.bits) + 0.4)
    finish(axes, theme, "What a byte costs", "bits per byte; dots: held-out text; thin: training batches")
    axes.set_xlabel("seconds of training", color=theme.ink)
    ends = [(height, name, reference_colour) for height, name in lines]
    label_values(axes, [*ends, (results.bits, f"the model {results.bits:.2f}", model)], theme)


def time_panel(axes: Axes, results: LanguageResults, theme: Theme) -> None:
    """Show what head and loss take of a step."""
    for i, way in enumerate(results.ways):
        whole, head = 1000 * way.median("seconds"), 1000 * way.median("head_seconds")
        axes.bar(i, head, 0.55, color=theme.tints[0])
        axes.bar(i, whole - head, 0.55, bottom=head, color=theme.faint)
        axes.text(i, whole, f"{whole:.0f}, of it {head:.1f}", ha="center", va="bottom", color=theme.ink)
    finish(axes, theme, "The time of a step", "ms; coloured: head and loss, forward and backward")
    _name(axes)


def memory_panel(axes: Axes, results: LanguageResults, theme: Theme) -> None:
    """Show how far head and loss raise the peak memory."""
    for i, way in enumerate(results.ways):
        peak = 0.0 if way.peak is None else way.peak / 1e6
        axes.bar(i, peak, 0.55, color=theme.tints[0])
        text = "not measured here" if way.peak is None else f"{peak:.1f}"
        axes.text(i, peak, text, ha="center", va="bottom", color=theme.ink)
    finish(axes, theme, "The memory of head and loss", "MB above the hidden states and the head, forward and backward")
    _name(axes)


def _name(axes: Axes) -> None:
    axes.set_xticks(range(len(LABELS)), LABELS)
    axes.set_xlim(-0.6, len(LABELS) - 0.4)
    axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], 1e-3))


PANELS = (
    Panel(
        curve_panel,
        "Bits per byte over the seconds of training, with lines for the compressors and frequencies; the table has numbers.",
        wide=True,
    ),
    Panel(time_panel, "The time of a step and of head and loss in it, both ways; the table has numbers."),
    Panel(memory_panel, "The peak memory of head and loss, both ways; the table has numbers."),
)
