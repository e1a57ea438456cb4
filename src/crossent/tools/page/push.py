"""Push, without a script: what the model says, what is true, and how hard a loss pushes each logit. ``push.js`` draws the same.

Places are percentages, so that a picture is as wide as there is room while its words keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from crossent.tools.html import element
from crossent.tools.page.numbers import amount, at, counted, fixed, logit, percent
from crossent.tools.page.words import WORDS

Row = Sequence[float]

MOST_CLASSES, OF_MANY = 12, 8
LEAST_ARROW = 0.05  # of the axis; a shorter arrow would be nothing but its head
MOST_STEPS = 100_000
LEAST_STRIP = 60  # strokes that fill the strip; fewer fill a part of it, so that none gets wider
_HEAD = "M0,0 L-14,-9 L-14,9 z"
_FLAG = "M0,-23 V8 M0,-23 L13,-17 L0,-11"


class Push(NamedTuple):
    """What a loss does to one row: one number a class, and the loss."""

    name: str  # of the loss
    names: Sequence[str]
    x: Row
    p: Row
    t: Row
    gradient: Row
    loss: float


@dataclass(frozen=True)
class Line:
    """A class of the picture, or all those together that are not shown."""

    index: int  # of the class; -1 for the rest
    name: str
    x: float
    p: float
    t: float
    gradient: float


def lines(push: Push) -> list[Line]:
    """Choose the classes that matter: of many the true ones, those with the largest logits, and the rest together."""
    every = [
        Line(k, *values) for k, values in enumerate(zip(push.names, push.x, push.p, push.t, push.gradient, strict=True))
    ]
    if len(every) <= MOST_CLASSES:
        return every
    wanted = sorted((line for line in every if line.t == max(push.t)), key=lambda line: line.index)[:OF_MANY]
    wanted = wanted if max(push.t) > 0 else []
    others = sorted((line for line in every if line not in wanted), key=lambda line: (-line.x, line.index))
    rest = others[OF_MANY:]
    name, x = f"{len(rest)} others", max(line.x for line in rest)
    together = (math.fsum(getattr(line, key) for line in rest) for key in ("p", "t", "gradient"))
    return [*wanted, *others[:OF_MANY], Line(-1, name, x, *together)]


# --- the picture ------------------------------------------------------------------------------------------------------


def panel(push: Push, tag: str = "") -> str:
    """Draw a loss: its name, a line for each class, what that comes to, and the numbers."""
    words = WORDS[push.name]
    rows = lines(push)
    title = element("span", escape(words.title), class_="title")
    parts = [
        element("h3", title + " " + element("span", f"∂L/∂x = {escape(words.gradient)}", class_="gradient")),
        element("div", "".join(map(_class, rows)) + _axis(), class_="push"),
        element("p", escape(_caption(push)), class_="caption"),
        element("p", escape(sentence(push)), class_="sentence"),
        element("p", remark(push), class_="remark"),
        element("p", escape(formula(push, rows[focus(rows)])), class_="formula"),
        _numbers(push, rows),
    ]
    return element("section", "".join(parts), class_="panel", data_panel=tag)


def direction(gradient: float) -> str:
    """Say which way descent moves a logit."""
    return "up" if gradient < 0 else "down" if gradient > 0 else "still"


def _class(line: Line) -> str:
    way = direction(line.gradient)
    true = element("small", " true") if line.t > 0 else ""
    return element(
        "div",
        element("div", escape(line.name) + true, class_="name") + _svg(line, way),
        class_="class",
        data_class=str(line.index),
    )


def _svg(line: Line, way: str) -> str:
    p, t, push = line.p, line.t, -line.gradient
    label = f"{line.name}: says {percent(p)}, true {percent(t)}, pushed {_push(push)}"
    shapes = [
        *(element("line", "", class_="tick", x1=at(x), x2=at(x), y1="0", y2="100%") for x in (0.0, 0.5, 1.0)),
        element("line", "", class_="mistake", x1=at(p), x2=at(t), y1="46", y2="46"),
        *_arrow(p, min(max(p + push, 0.0), 1.0), way),
        _mark(t, element("path", "", class_="flag", d=_FLAG)),
        element("circle", "", class_=f"says {way}", cx=at(p), cy="46", r="8"),
        _text(*_beside(p, push), "16", f"amount {way}", _push(push)),
        _text(*_near(p), "76", "said", f"says {percent(p)}"),
    ]
    return element("svg", "".join(shapes), role="img", aria_label=label, height="84", width="100%")


def _arrow(start: float, end: float, way: str) -> list[str]:
    if abs(end - start) < LEAST_ARROW:
        return []
    shift, turn = ("-8", "") if end > start else ("8", "rotate(180)")
    shaft = element(
        "line", "", class_=f"arrow {way}", x1=at(start), x2=at(end), y1="46", y2="46", transform=f"translate({shift} 0)"
    )
    return [shaft, _mark(end, element("path", "", class_=f"head {way}", d=_HEAD, transform=turn))]


def _mark(x: float, shape: str) -> str:
    return element("svg", shape, x=at(x), y="46", width="1", height="1", class_="mark")


def _text(x: float, anchor: str, y: str, class_: str, text: str) -> str:
    return element("text", escape(text), class_=class_, x=at(x), y=y, text_anchor=anchor)


def _push(push: float) -> str:
    if not push:
        return "– stays"
    return f"{'▲ up' if push > 0 else '▼ down'} {amount(abs(push))}"


def _beside(p: float, push: float) -> tuple[float, str]:
    """Place the words above the middle of an arrow, and of a short one beside what the model says."""
    end = min(max(p + push, 0.0), 1.0)
    if abs(end - p) >= 0.4:
        return (p + end) / 2, "middle"
    return _near(p)


def _near(p: float) -> tuple[float, str]:
    return p, "start" if p < 0.2 else "end" if p > 0.8 else "middle"


def _axis() -> str:
    marks = (
        _text(x, anchor, "14", "said", text)
        for x, anchor, text in ((0.0, "middle", "0"), (0.5, "middle", "½"), (1.0, "middle", "1"))
    )
    axis = element("svg", "".join(marks), height="18", width="100%", aria_hidden="true")
    return element("div", element("div", "", class_="name") + axis, class_="class axis")


def _caption(push: Push) -> str:
    if len(push.x) > 4:
        return "σ of each logit" if WORDS[push.name].sigmoid else "p = softmax of the logits"
    if WORDS[push.name].sigmoid:
        return ", ".join(f"σ({logit(x)})" for x in push.x)
    return f"p = softmax({', '.join(map(logit, push.x))})"


# --- what it comes to -------------------------------------------------------------------------------------------------


def focus(rows: Sequence[Line]) -> int:
    """Choose the class that is spoken of: the likeliest that is not true."""
    return max(range(len(rows)), key=lambda k: (rows[k].t == 0, rows[k].index >= 0, rows[k].p))


def true_class(push: Push) -> int | None:
    """Find the one class that is true, if it is one."""
    wanted = [k for k, t in enumerate(push.t) if t > 0]
    return wanted[0] if len(wanted) == 1 and push.t[wanted[0]] == 1 else None


def rival(push: Push) -> int:
    """Find the likeliest class that is not the true one."""
    label = true_class(push)
    return max((k for k in range(len(push.p)) if k != label), key=lambda k: (push.p[k], -k))


def sentence(push: Push) -> str:
    """Say what the pushes come to; what hits whom is a share, which no sum or mean changes."""
    total, label = math.fsum(map(abs, push.gradient)), true_class(push)
    if not total:
        return "Nothing moves: the gradient is 0 for every class."
    if push.name == "ce" and label is not None:
        return f"The push is the mistake: {push.names[label]} up by what it lacks, {push.names[rival(push)]} down by what it has."
    hit = max(range(len(push.gradient)), key=lambda k: (abs(push.gradient[k]), -k))
    share = fixed(100 * abs(push.gradient[hit]) / total, 0)
    return f"{WORDS[push.name].lead} {share} % of it hits {push.names[hit]}."


def remark(push: Push) -> str:
    """Say why, as HTML."""
    label, words = true_class(push), WORDS[push.name]
    if push.name != "ce" or label is None:
        return f"The loss is {amount(push.loss)}. {escape(words.remark)}"
    name = escape(push.names[label])
    power = [f"e{element('sup', escape(each))}" for each in push.names]
    below = " + ".join(power) if len(power) <= 3 else "Σ e" + element("sup", "x")
    return (
        f"Only p({name}) is in the formula, but p({name}) = {power[label]} / ({below}). "
        f"p({name}) rises if {name} goes up or {escape(push.names[rival(push)])} goes down; the gradient does both."
    )


def formula(push: Push, line: Line) -> str:
    """Fill the formula of the gradient in for one class."""
    gradient = f"{'+' if line.gradient > 0 else ''}{fixed(line.gradient, 4)}"
    if WORDS[push.name].gradient in ("p − t", "σ − t"):
        filled = f"{fixed(line.p, 4)} − {fixed(line.t, 4)} = {gradient}"
    else:
        filled = f"{gradient} with p = {fixed(line.p, 4)}, t = {fixed(line.t, 4)}"
    way = {"up": "goes up", "down": "goes down", "still": "stays"}[direction(line.gradient)]
    return f"∂L/∂x({line.name}) = {WORDS[push.name].gradient} = {filled}: {line.name} {way}."


def _numbers(push: Push, rows: Sequence[Line]) -> str:
    columns = ("class", "x", "p", "t", "∂L/∂x")
    head = element("tr", "".join(element("th", column, scope="col") for column in columns))
    body = "".join(
        element(
            "tr",
            element("th", escape(line.name), scope="row")
            + "".join(
                element("td", text) for text in (logit(line.x), *(fixed(v, 4) for v in (line.p, line.t, line.gradient)))
            ),
        )
        for line in rows
    )
    summed = f"Loss {fixed(push.loss, 4)}"
    table = element("table", element("caption", summed) + element("thead", head) + element("tbody", body))
    return element("details", element("summary", "The numbers") + element("div", table, class_="scroll"))


# --- the strip of steps -----------------------------------------------------------------------------------------------


def strip(name: str, counts: Sequence[tuple[str, int | None]], limit: int = MOST_STEPS) -> str:
    """Draw how many steps of gradient descent each loss needs until a class leads, one stroke each."""
    most = max([LEAST_STRIP, *(limit if count is None else count for _, count in counts)])
    rows = "".join(_strokes(loss, count, most, limit) for loss, count in counts)
    title = element("p", escape(f"Steps of gradient descent until {name} leads, one stroke each"), class_="caption")
    return element("section", title + rows, class_="panel strip")


def _strokes(loss: str, count: int | None, most: int, limit: int) -> str:
    of = limit if count is None else count
    stroke = element(
        "line", "", class_="strokes", x1="0%", x2=at(of / most), y1="9", y2="9",
        pathLength=str(of) if of else "", stroke_dasharray="0.6 0.4",
    )  # fmt: skip
    words = element("span", escape(WORDS[loss].title)) + element("b", counted(count, limit))
    picture = element("svg", stroke, height="18", width="100%", aria_hidden="true")
    return element("div", element("p", words) + picture, class_="steps")


# --- the headline -----------------------------------------------------------------------------------------------------


def headline(names: Sequence[str], p: Row, label: int) -> str:
    """Say what the model says, what is true, and ask."""
    first = max(range(len(p)), key=lambda k: (p[k], -k))
    truth = ", and so it is." if first == label else f". The truth is {names[label]}."
    return f"The model says {names[first]}, {percent(p[first])}{truth} Who gets pushed?"
