"""Reliability, without a script: how often the model is right where it is so sure. ``scene_reliability.js`` draws the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from crossent.tools.html import element
from crossent.tools.page.numbers import at, fixed


class Tempered(NamedTuple):
    """A temperature: the cross entropy and calibration error at it, and (confidence, accuracy, decisions) of each bin."""

    temperature: float
    nll: float
    error: float
    bins: Sequence[tuple[float, float, int]]


def reliability(at_one: Tempered) -> str:
    """Draw the bins as points, the larger the more decisions, above or below the line of honest confidence."""
    title = element("h3", "Reliability: how often it is right where it is so sure")
    picture = element("div", diagram(at_one), class_="heat reliability")
    axes = element(
        "p",
        "across: how sure the model is; up: how often it is right; below the dashed line it is too sure",
        class_="caption",
    )
    return title + element(
        "section", picture + axes + element("p", escape(told(at_one)), class_="sentence"), class_="panel"
    )


def diagram(tempered: Tempered) -> str:
    """Draw one temperature."""
    most = max((n for _, _, n in tempered.bins), default=1)
    points = "".join(
        element(
            "circle", "", class_="bin", cx=at(confidence), cy=at(1 - accuracy), r=fixed(3 + 11 * (n / most) ** 0.5, 1)
        )
        for confidence, accuracy, n in tempered.bins
    )
    frame = element("rect", "", class_="frame", width="100%", height="100%")
    line = element("line", "", class_="diagonal", x1="0%", y1="100%", x2="100%", y2="0%")
    return element("svg", frame + line + points, role="img", aria_label=told(tempered), width="100%", height="100%")


def told(tempered: Tempered) -> str:
    """Say the numbers of a temperature."""
    return (
        f"Temperature {fixed(tempered.temperature, 2)}: cross entropy {fixed(tempered.nll, 4)} nats, "
        f"calibration error {fixed(tempered.error, 4)}."
    )
