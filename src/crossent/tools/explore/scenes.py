"""The scenes: above each the question as it is asked, then a picture that answers it, then what a reader may change."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np

from crossent.tools.explain.catalogue import LOSSES
from crossent.tools.explain.descent import descent, steps_to_lead, strengths
from crossent.tools.explain.explanation import explain
from crossent.tools.explain.page import push_of
from crossent.tools.html import element
from crossent.tools.page import corner, labels
from crossent.tools.page.digits import digits_scene
from crossent.tools.page.own import own_scene
from crossent.tools.page.picture import png
from crossent.tools.page.push import Push, headline, panel, strip
from crossent.tools.page.scene import Scene, legend, page_of_scenes
from crossent.tools.page.words import OFFERED, words_of

ANIMALS = ("cat", "dog", "fox")
SURE_AND_WRONG = (-6.0, 6.0, 0.0)


def explore_page() -> str:
    """Write the whole page."""
    scenes = (push_scene(), corner_scene(), labels_scene(), digits_scene(recorded_digits()), own_scene())
    title = element("h1", "crossent: what a loss tells a model", class_="brand")
    return page_of_scenes("crossent explore", [title, *scenes], words_of(["ce", *OFFERED]))


def recorded_digits() -> Any:
    """Read the run of ``crossent train digits`` that comes with the page."""
    return json.loads((files("crossent.tools.page") / "digits.json").read_text(encoding="utf-8"))


def push_scene() -> Scene:
    """Show two losses push the logits of a model that is sure and wrong."""
    shown = ("ce", OFFERED[0])
    e = explain(list(SURE_AND_WRONG), 0, shown, class_names=ANIMALS)
    counts = [(name, steps_to_lead(LOSSES[name], SURE_AND_WRONG, 0)) for name in shown]
    body = [
        element("h2", escape(headline(ANIMALS, e["ce"].p, 0)), class_="headline"),
        legend(),
        element("div", "".join(panel(push_of(e, loss), loss.name) for loss in e.losses), class_="panels"),
        strip(ANIMALS[0], counts),
    ]
    ask = ("Which way does dog go under cross entropy?", ("up", "down", "stays"), "down")
    data = {"names": ANIMALS, "x": SURE_AND_WRONG, "label": 0, "losses": ("ce", *OFFERED), "ask": ask}
    asked = (
        "The loss only looks at the true class. How do the others go down? And why not just a sigmoid and a difference?"
    )
    return Scene("push", asked, "".join(body), data)


def corner_scene() -> Scene:
    """Show where two losses push, and where they are deaf."""
    shown, start = ("ce", OFFERED[0]), SURE_AND_WRONG[:2]
    title = element("h2", "Where does a loss hear the model?")
    explanation = element(
        "p",
        "Each point is what the model says of a cat: its logit for cat across, for dog up. The stronger the colour, the harder "
        "the loss pushes. Above the dashed line the model says dog.",
        class_="legend",
    )
    planes = "".join(_plane(name, colour, start) for name, colour in zip(shown, corner.COLOURS, strict=True))
    margins = [corner.REACH * (k / 40 - 1) for k in range(81)]
    rows = np.array([[margin, 0.0] for margin in margins])
    pushes = [(name, strengths_on_true(name, rows)) for name in shown]
    body = title + explanation + element("div", planes, class_="panels") + corner.curves(margins, pushes)
    data = {"start": start, "losses": ("ce", *OFFERED), "hears": corner.HEARS, "deaf": corner.DEAF}
    return Scene("corner", "The loss is large where the model is wrong. Is that not enough?", body, data)


def strengths_on_true(name: str, rows: Any) -> list[float]:
    """Compute the size of the push on the true logit, which comes first, for each row."""
    e = (explain(row.tolist(), 0, name)[name].gradient[0] for row in rows)
    return [abs(g) for g in e]


def _plane(name: str, colour: tuple[int, int, int], start: tuple[float, ...]) -> str:
    axis = np.array(corner.centres())
    across, up = np.meshgrid(axis, axis[::-1])
    grid = strengths(LOSSES[name], np.stack([across, up], -1).reshape(-1, 2), 0)
    steps = steps_to_lead(LOSSES[name], start, 0)
    trail = corner.thinned([(x[0], x[1]) for x in islice(descent(LOSSES[name], start, 0), (steps or 0) + 1)])
    return corner.plane(name, png(grid.reshape(across.shape).tolist(), colour), trail, steps)


def labels_scene() -> Scene:
    """Show what a softmax and a sigmoid make of several labels, of soft ones and of none."""
    pushes = {case.name: [_side(side) for side in case.sides] for case in labels.CASES}
    first = labels.CASES[0]
    body = [
        element("h2", "What if the picture has two animals, or none?", class_="headline"),
        element("p", escape(first.about), class_="legend"),
        element("div", "".join(panel(push, push.name) for push in pushes[first.name]), class_="panels"),
        labels.summary(pushes),
    ]
    cases = [
        {"name": case.name, "title": case.title, "about": case.about, "sides": [side._asdict() for side in case.sides]}
        for case in labels.CASES
    ]
    asked = "Can softmax say two animals, or none? If it is not one label a picture, is softmax wrong?"
    return Scene("labels", asked, "".join(body), {"cases": cases})


def _side(side: labels.Side) -> Push:
    target = set(side.labels) if side.weights is None else list(side.weights)
    e = explain(list(side.x), target, side.loss, class_names=side.names)
    return push_of(e, e.losses[0])
