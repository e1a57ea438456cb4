"""A scene of a page: the question as it is asked, a picture that answers it, and room for what a reader may change."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from crossent.tools.html import element
from crossent.tools.page.document import page

LEGEND = (
    ("○", "what the model says"), ("⚑", "what is true"),
    ("➜", "how hard the loss pushes that logit, per unit of learning rate"),
    ("pale bar:", "distance from what the model says to the truth"),
)  # fmt: skip


class Scene(NamedTuple):
    """A scene: its kind, which names its script, the question, what is shown, and what the script starts from."""

    kind: str
    asked: str
    body: str
    data: Any


def section(scene: Scene) -> str:
    """Lay out a scene; its controls come when a script runs."""
    asked = element("p", escape(f"“{scene.asked}”"), class_="asked") if scene.asked else ""
    controls = element("div", "", class_="controls", hidden="hidden")
    return element("section", asked + scene.body + controls, class_="scene", id=scene.kind, data_scene=scene.kind)


def page_of_scenes(title: str, parts: Sequence[Scene | str], words: Any) -> str:
    """Put scenes and what stands between them into a page."""
    scenes = [part for part in parts if isinstance(part, Scene)]
    data = {scene.kind: scene.data for scene in scenes} | {"words": words, "present": len(scenes) > 3}
    body = (section(part) if isinstance(part, Scene) else part for part in parts)
    return page(title, ["<main>", *body, "</main>"], data)


def legend() -> str:
    """Say how to read a push."""
    return element("p", "".join(element("span", escape(f"{sign} {what}")) for sign, what in LEGEND), class_="legend")
