"""Draw the pictures of ``why-cross-entropy.md``: ``python docs/figures.py [folder]`` writes them to ``docs/img``.

Every height, arrow and label is computed here from the losses, none is typed in. The colours are Okabe and Ito's, which
colour-blind readers can tell apart, and nothing is told by colour alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossent.reference import multilabel_target, softmax, softmax_cross_entropy

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"
_TEXT = {"fontsize": 10.5, "color": INK}
DPI = 200  # 7 inches wide: 1400 pixels, shown at 700

Row = Sequence[float]


# --- gradients of three logits whose first class is true, in plain floats because they are followed for many steps ------


def _softmax(x: Row) -> list[float]:
    top = max(x)
    e = [math.exp(v - top) for v in x]
    total = sum(e)
    return [v / total for v in e]


def cross_entropy(x: Row) -> list[float]:
    """Return ``p - t``."""
    p = _softmax(x)
    return [p[0] - 1, *p[1:]]


def binary_cross_entropy(x: Row) -> list[float]:
    """Return ``σ(x) - t`` for the sum over the classes."""
    p = [_softmax([v, 0.0])[0] for v in x]
    return [p[0] - 1, *p[1:]]


def sigmoid_difference(x: Row) -> list[float]:
    """Return ``∓σ(x)(1 - σ(x))`` for the sum over the classes."""
    slope = [math.prod(_softmax([v, 0.0])) for v in x]
    return [-slope[0], *slope[1:]]


def softmax_twice(x: Row) -> list[float]:
    """Return the gradient of cross entropy applied to ``softmax(x)``: ``p ∘ (g - Σ p g)`` with ``g = softmax(p) - t``."""
    p = _softmax(x)
    g = cross_entropy(p)
    mean = sum(a * b for a, b in zip(p, g, strict=True))
    return [a * (b - mean) for a, b in zip(p, g, strict=True)]


def steps_to_right(
    gradient: Callable[[Row], list[float]], x: Row, rate: float = 1.0, limit: int = 100_000
) -> int | None:
    """Count the steps of plain gradient descent until the first logit is the largest; None if ``limit`` do not do."""
    x = list(x)
    for step in range(limit + 1):
        if x[0] > max(x[1:]):
            return step
        x = [v - rate * g for v, g in zip(x, gradient(x), strict=True)]
    return None


# --- the pictures -----------------------------------------------------------------------------------------------------


def panels(height: float, rows: int = 1, columns: int = 1, **layout: object) -> tuple[Figure, np.ndarray]:
    """Make a figure 7 inches wide with a grid of plain axes."""
    figure = Figure(figsize=(7, height), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **layout)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(colors=INK, labelsize=9.5, length=0)
        ax.set_facecolor("white")
    return figure, axes


def push() -> Figure:
    """Draw p, where it should be, and the push ``t - p`` between the two; then p after one step."""
    t = np.array([1.0, 0.0, 0.0])
    x = np.log([0.1, 0.7, 0.2])
    before, gradient = softmax(x), softmax_cross_entropy(x, t).grad
    after = softmax(x - gradient)
    colours = [BLUE, ORANGE, ORANGE]
    figure, axes = panels(3.5, 1, 2, sharey=True, width_ratios=[1.25, 1])
    left, right = axes.flat
    arrow = {"arrowstyle": "-|>,head_width=0.3,head_length=0.5", "lw": 2.2, "color": INK, "shrinkA": 0, "shrinkB": 0}
    for k in range(3):
        left.bar(k - 0.17, before[k], 0.4, color=colours[k])
        left.plot([k - 0.37, k + 0.3], [t[k], t[k]], color=INK, lw=3, solid_capstyle="butt", zorder=4, clip_on=False)
        left.annotate("", (k + 0.16, t[k]), (k + 0.16, before[k]), arrowprops=arrow, zorder=5)
        number = f"{-gradient[k]:+.1f}".replace("-", "−")
        side = {"x": k + 0.08, "ha": "right"} if k == 0 else {"x": k + 0.25, "ha": "left"}
        left.text(y=(before[k] + t[k]) / 2, s=number, **side, va="center", fontsize=12, weight="bold", color=INK)
        right.bar(k, after[k], 0.5, color=colours[k])
        right.bar(k, before[k], 0.5, fill=False, edgecolor=INK, lw=1.3, linestyle=(0, (3, 2)))
        top = max(before[k], after[k])
        right.text(k, top + 0.03, f"{before[k]:.1f} → {after[k]:.3f}", ha="center", fontsize=10.5, color=INK)
    up, *down = (f"{abs(g):.1f}" for g in gradient)
    left.text(
        2.6,
        0.97,
        f"what the true logit gains,\nthe others lose:\n{up} = {' + '.join(down)}",
        **_TEXT,
        va="top",
        ha="right",
    )
    left.set_title("the push on each logit:\nfrom p (bar) to t (line)", fontsize=11, color=INK)
    right.set_title("p after one step\n(dashed: before)", fontsize=11, color=INK)
    left.set_ylim(0, 1.06)
    left.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    for ax in (left, right):
        ax.set_xticks(range(3), ["class 0\n(true)", "class 1", "class 2"])
        ax.set_xlim(-0.5, 2.65)
    return figure


def gradient() -> Figure:
    """Draw the push on the true logit against that logit, for four losses, and what it means for the steps."""
    start = (-6.0, 6.0, 0.0)
    curves = [
        ("cross entropy", cross_entropy, BLUE, "-", 0.87),
        ("binary cross entropy", binary_cross_entropy, GREEN, "--", 0.67),
        ("sigmoid and difference", sigmoid_difference, ORANGE, "-", 0.47),
        ("softmax twice", softmax_twice, INK, ":", 0.27),
    ]
    figure, axes = panels(4.0)
    ax: Axes = axes[0, 0]
    ax.axvspan(-7, 0, color="#F0F0F0", zorder=0, lw=0)
    ax.plot([start[0]] * 2, [0, 1], color=GREY, lw=1, zorder=1)
    xs = np.linspace(-7, 5, 481)
    for name, loss, colour, style, height in curves:
        ax.plot(xs, [-loss((x, -x, 0.0))[0] for x in xs], style, color=colour, lw=2.6)
        at_start = -loss(start)[0]
        ax.plot(start[0], at_start, "o", color=colour, ms=6, zorder=5)
        digits = 4 if at_start > 1e-4 else 6
        ax.plot([-5.75, -5.1], [height, height], style, color=colour, lw=2.6)
        says = f"{name}\npush {at_start:.{digits}f}\nright in {steps_to_right(loss, start):,} steps"
        ax.text(-4.95, height, says, **_TEXT, va="center", linespacing=1.1)
    ax.text(-6.1, 0.5, "start", **_TEXT, ha="right", va="center", rotation=90)
    ax.text(-0.1, 1.05, "wrong", **_TEXT, ha="right", va="center")
    ax.text(0.1, 1.05, "right", **_TEXT, va="center")
    ax.set_xlim(-7, 5)
    ax.set_ylim(-0.02, 1.1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_xticks(range(-6, 6, 2), [str(v).replace("-", "−") for v in range(-6, 6, 2)])
    ax.set_xlabel("true logit x, the logits being (x, −x, 0)", fontsize=10.5, color=INK)
    ax.set_ylabel("push on the true logit", fontsize=10.5, color=INK)
    return figure


def several_labels() -> Figure:
    """Draw the best p of softmax and of sigmoid for four kinds of pictures, as the average of the labels they get."""
    kinds = {
        "a cat": [[1, 0, 0]],
        "a cat and a dog": [[1, 1, 0]],
        "a cat or a dog,\ncannot be told": [[1, 0, 0], [0, 1, 0]],
        "none of them": [[0, 0, 0]],
    }
    figure, axes = panels(3.7, 2, 4, sharey=True, sharex=True)
    for column, (title, labels) in enumerate(kinds.items()):
        best_softmax = multilabel_target(labels).mean(0)
        best_sigmoid = np.mean(labels, 0)
        axes[0, column].set_title(title, fontsize=10, color=INK)
        for row, best, colour in ((0, best_softmax, ORANGE), (1, best_sigmoid, BLUE)):
            ax = axes[row, column]
            if row == 0 and not best.any():
                ax.text(1, 0.5, "no gradient:\nanything goes", ha="center", va="center", fontsize=10, color=INK)
            else:
                bars = ax.bar(range(3), best, 0.62, color=colour)
                ax.bar_label(
                    bars, [f"{v:.1f}".rstrip("0").rstrip(".") for v in best], fontsize=9.5, color=INK, padding=1
                )
            ax.set_ylim(0, 1.22)
            ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_xticks(range(3), ["cat", "dog", "cow"])
    axes[0, 2].text(1, 0.98, "the same as for both", ha="center", va="center", fontsize=9.5, color=INK)
    axes[0, 0].set_ylabel("softmax, t = 1/M\nbest p", fontsize=10, color=INK)
    axes[1, 0].set_ylabel("sigmoid\nbest p", fontsize=10, color=INK)
    return figure


PICTURES = {"push": push, "gradient": gradient, "several-labels": several_labels}


def main(folder: Path = Path(__file__).parent / "img") -> None:
    """Write every picture to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(folder / f"{name}.png", facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
