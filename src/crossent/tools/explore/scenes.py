"""The scenes: above each the question as it is asked, then a picture that answers it, then what a hand may change."""

from __future__ import annotations

from html import escape
from typing import Any, NamedTuple

from crossent.tools.explain.catalogue import LOSSES
from crossent.tools.explain.descent import steps_to_lead
from crossent.tools.explain.explanation import explain
from crossent.tools.explain.page import push_of, words_of
from crossent.tools.html import element
from crossent.tools.page.document import page
from crossent.tools.page.push import headline, panel, strip
from crossent.tools.page.words import OFFERED

ANIMALS = ("cat", "dog", "fox")
SURE_AND_WRONG = (-6.0, 6.0, 0.0)
LEGEND = (
    ("○", "what the model says"), ("⚑", "what is true"),
    ("➜", "how hard the loss pushes that logit, per unit of learning rate"), ("pale:", "the mistake"),
)  # fmt: skip


class Scene(NamedTuple):
    """A scene: its name, what it shows, and what its script starts from."""

    name: str
    asked: str
    body: str
    data: Any


def explore_page() -> str:
    """Write the whole page."""
    scenes = (push_scene(),)
    body = [element("h1", "crossent: what a loss tells a model"), "<main>", *map(_section, scenes), "</main>"]
    data = {scene.name: scene.data for scene in scenes} | {"words": words_of(["ce", *OFFERED])}
    return page("crossent explore", body, data)


def _section(scene: Scene) -> str:
    asked = element("p", escape(f"“{scene.asked}”"), class_="asked")
    controls = element("div", "", class_="controls", hidden="hidden")
    return element("section", asked + scene.body + controls, class_="scene", id=scene.name, data_scene=scene.name)


def legend() -> str:
    """Say how to read a push."""
    return element("p", "".join(element("span", escape(f"{sign} {what}")) for sign, what in LEGEND), class_="legend")


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
    data = {"names": ANIMALS, "x": SURE_AND_WRONG, "label": 0, "losses": ("ce", *OFFERED)}
    asked = "The loss only looks at the true class. How do the others go down? And why not just a sigmoid and a difference?"
    return Scene("push", asked, "".join(body), data)
