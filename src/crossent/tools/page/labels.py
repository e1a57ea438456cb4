"""Several labels, no label, soft labels: the cases of the scene, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from crossent.tools.html import element
from crossent.tools.page.numbers import amount
from crossent.tools.page.push import Push
from crossent.tools.page.words import WORDS

NAMES = ("cat", "dog", "fox", "owl")
LOGITS = (2.0, 1.0, 0.0, -1.0)


class Side(NamedTuple):
    """What one loss is given: logits and labels, or one weight a class."""

    loss: str
    labels: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    x: tuple[float, ...] = LOGITS
    names: tuple[str, ...] = NAMES


class Case(NamedTuple):
    """A kind of target, under a softmax and under a sigmoid."""

    name: str
    title: str
    about: str
    sides: tuple[Side, Side]


def _both(labels: tuple[int, ...] = (), weights: tuple[float, ...] | None = None) -> tuple[Side, Side]:
    return Side("ce", labels, weights), Side("bce", labels, weights)


CASES = (
    Case(
        "two", "a cat and a dog",
        "A cat and a dog, logits 2, 1, 0, −1. Softmax has one unit to share and gives each label ½. The cat has .64 of it "
        "already, so the cat is pushed down although it is true. Under the sigmoid both go up.",
        _both((0, 1)),
    ),
    Case("one", "a cat", "One label: both losses agree on who goes up.", _both((0,))),
    Case(
        "soft", "cat or dog, 70 to 30",
        "A soft label: 0.7 cat, 0.3 dog. Both push towards the chances; softmax cannot tell this from a picture with both.",
        _both(weights=(0.7, 0.3, 0.0, 0.0)),
    ),
    Case(
        "smoothed", "a cat, smoothed",
        "Label smoothing 0.1: the flag of the cat stands at 0.925 and every other at 0.025. Nothing is ever quite sure.",
        (Side("ce-smooth", (0,)), Side("bce", (), (0.95, 0.05, 0.05, 0.05))),
    ),
    Case(
        "none", "no animal",
        "No label. Softmax has t = 0, and nothing moves: the model learns nothing from this picture. The sigmoid pushes all down.",
        _both(()),
    ),
    Case(
        "extra", "no animal, with a class for it",
        "With one more class, none, whose logit is 0, softmax can say none of these. It still cannot say two of these.",
        (Side("ce", (4,), None, (*LOGITS, 0.0), (*NAMES, "none")), Side("bce", ())),
    ),
)  # fmt: skip


def summary(pushes: Mapping[str, Sequence[Push]]) -> str:
    """Tabulate what each class is told in every case: the sign says up or down, the number how hard."""
    head = element("tr", "".join(element("th", name, scope="col") for name in ("target", "loss", *NAMES)))
    rows = []
    for case in CASES:
        for push in pushes[case.name]:
            cells = "".join(element("td", _told(-g)) for g in push.gradient[: len(NAMES)])
            rows.append(
                element(
                    "tr", element("th", escape(case.title), scope="row") + element("td", WORDS[push.name].title) + cells
                )
            )
    table = element(
        "table", element("caption", "Every case") + element("thead", head) + element("tbody", "".join(rows))
    )
    inside = element("summary", "All the cases in numbers") + element("div", table, class_="scroll")
    return element("details", inside, class_="cases")


def _told(push: float) -> str:
    return f"{'▲' if push > 0 else '▼'} {amount(abs(push))}" if push else "–"
