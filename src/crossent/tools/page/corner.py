"""The deaf corner, without a script: where in the plane of two logits a loss pushes. ``scene_corner.js`` draws the same.

Two classes are enough for every loss to be shown as it is. A plane of three classes would not be: the losses of a sigmoid
change when all logits are shifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from crossent.tools.html import element
from crossent.tools.page.numbers import at, counted, fixed
from crossent.tools.page.push import MOST_STEPS
from crossent.tools.page.words import WORDS

REACH = 8.0  # of either axis, from -REACH to REACH
GRID = 48
NEAR = 0.12  # points of a path that are nearer to each other are drawn as one
COLOURS = ((36, 123, 214), (224, 98, 20))  # strong enough on paper and in the dark
HEARS = {
    "ce": "hears every mistake in full",
    "bce": "hears every mistake in full, class by class",
    "ce-smooth": "hears every mistake, and too much certainty",
    "hinge": "hears whatever is not right by 1, and nothing else",
    "focal": "hears mistakes in full, and hardly what is nearly right",
}
DEAF = "hears only the undecided; deaf in the corners"

Row = Sequence[float]


def place(x: float) -> float:
    """Place a logit on an axis."""
    return (x + REACH) / (2 * REACH)


def centres() -> list[float]:
    """List the logits at which the heat is known: the middles of the cells."""
    return [REACH * (2 * (k + 0.5) / GRID - 1) for k in range(GRID)]


def thinned(trail: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out points of a path that would lie on each other."""
    kept = [trail[0]]
    for point in trail:
        if max(abs(point[0] - kept[-1][0]), abs(point[1] - kept[-1][1])) >= NEAR:
            kept.append(point)
    return kept if kept[-1] == trail[-1] else [*kept, trail[-1]]


def plane(name: str, picture: str, trail: Sequence[tuple[float, float]], steps: int | None) -> str:
    """Draw a loss's plane: the heat, the line of even odds, and the path from a start."""
    title = element("h3", element("span", escape(WORDS[name].title), class_="title"))
    caption = element("p", escape(HEARS.get(name, DEAF)), class_="caption")
    image = element("img", "", src=picture, alt="").removesuffix("</img>")
    ways = f"right in {counted(steps, MOST_STEPS)}"
    drawn = element("div", image + _overlay(trail, ways, f"{WORDS[name].title}: {ways}"), class_="heat")
    axes = element("p", "across: logit of cat, which is true; up: logit of dog; both from −8 to 8", class_="caption")
    return element("section", title + caption + drawn + axes, class_="panel", data_panel=name)


def _overlay(trail: Sequence[tuple[float, float]], ways: str, label: str) -> str:
    def circle(x: float, y: float, class_: str, r: str) -> str:
        return element("circle", "", class_=class_, cx=at(place(x)), cy=at(1 - place(y)), r=r)

    x, y = trail[0]
    left = place(x) > 0.5
    shapes = [
        element("rect", "", class_="frame", width="100%", height="100%"),
        element("line", "", class_="diagonal", x1="0%", y1="100%", x2="100%", y2="0%"),
        *(circle(*point, "trail", "3.5") for point in trail),
        circle(x, y, "start", "9"),
        element(
            "text", escape(ways), class_="corner", x=at(place(x)), y=at(1 - place(y)),
            dx="-16" if left else "16", dy="3", text_anchor="end" if left else "start",
        ),
        element("text", "sure and wrong", class_="corner", x="2%", y="5%"),
        element("text", "sure and right", class_="corner", x="98%", y="97%", text_anchor="end"),
    ]  # fmt: skip
    return element("svg", "".join(shapes), role="img", aria_label=label, width="100%", height="100%")


def curves(margins: Row, pushes: Sequence[tuple[str, Row]]) -> str:
    """Draw the push on the true logit against p(true) as its margin decides it."""
    lines = "".join(
        element("path", "", class_=f"curve {side}", d=_path(margins, values), vector_effect="non-scaling-stroke")
        for side, (_, values) in zip(("left", "right"), pushes, strict=True)
    )
    summary = "; ".join(
        f"{WORDS[name].title} ({look}): {fixed(values[0], 3)} where sure and wrong, "
        f"{fixed(values[len(values) // 2], 3)} at even odds, {fixed(values[-1], 3)} where sure and right"
        for look, (name, values) in zip(("whole line", "dashed"), pushes, strict=True)
    )
    picture = element(
        "svg",
        lines,
        class_="lines",
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        width="100%",
        height="160",
        aria_hidden="true",
    )
    marks = "".join(
        element("text", text, class_="said", x=x, y="14", text_anchor=anchor)
        for x, anchor, text in (("0%", "start", "p(true) = 0.0003"), ("50%", "middle", "½"), ("100%", "end", "0.9997"))
    )
    axis = element("svg", marks, height="18", width="100%", aria_hidden="true")
    title = element("p", "The push on the true logit, by the margin x(true) − x(rival), from 0 to 1", class_="caption")
    return element(
        "section", title + picture + axis + element("p", escape(summary), class_="remark"), class_="panel curves"
    )


def _path(margins: Row, values: Row) -> str:
    points = zip(margins, values, strict=True)
    return "M" + " L".join(f"{fixed(100 * place(x), 1)},{fixed(98 - 96 * min(v, 1.0), 1)}" for x, v in points)
