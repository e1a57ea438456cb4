"""An explanation as the page shows it: a push for each loss, and the data that the page starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from crossent import reference
from crossent.tools import html
from crossent.tools.explain import tables
from crossent.tools.explain.catalogue import LOSSES
from crossent.tools.explain.descent import steps_to_lead
from crossent.tools.explain.row_numbers import LossExplanation, RowNumbers
from crossent.tools.html import element
from crossent.tools.page.push import MOST_STEPS, Push, headline, panel, strip
from crossent.tools.page.scene import Scene, legend, page_of_scenes
from crossent.tools.page.words import words_of

FEW = 12  # classes


def push_of(e: RowNumbers, loss: LossExplanation) -> Push:
    """Take from an explanation what a picture shows."""
    return Push(loss.name, class_names(e), e.logits, loss.p, loss.t, loss.gradient, loss.loss)


def plain_logits(x: Sequence[float]) -> list[float | None]:
    """Write logits for JSON, in which an impossible class has none."""
    return [value if math.isfinite(value) else None for value in x]


def explanation_page(e: RowNumbers) -> str:
    """Write the page of an explanation: two of its losses in Push, all of them in tables."""
    parts: list[Scene | str] = [html.heading("crossent explain", 1), *_notes(e), push_scene(e), *_tables(e)]
    return page_of_scenes("crossent explain", parts, words_of(names(e)))


def class_names(e: RowNumbers) -> list[str]:
    """Write the names of the classes without signs that steer what is shown."""
    return [tables.name(e, k) for k in range(len(e.class_names))]


def names(e: RowNumbers) -> list[str]:
    """Name the losses of an explanation."""
    return [loss.name for loss in e.losses]


def push_scene(e: RowNumbers) -> Scene:
    """Show the first two losses; the script may show the others."""
    label = e.labels[0] if e.labels is not None and len(e.labels) == 1 else None
    title = (
        tables.heading(e) if label is None else headline(class_names(e), reference.softmax(e.logits).tolist(), label)
    )
    body = [
        element("h2", escape(title), class_="headline"),
        legend(),
        element("div", "".join(panel(push_of(e, loss), loss.name) for loss in e.losses[:2]), class_="panels"),
        *_strip(e, label),
    ]
    target = {"label": label} if label is not None else {"weights": e.weights, "hard": e.labels is not None}
    data = {"names": class_names(e), "x": plain_logits(e.logits), "losses": names(e), **target}
    return Scene("push", "", "".join(body), data)


def _strip(e: RowNumbers, label: int | None) -> list[str]:
    """Count the steps where there are few classes. With many it takes long and says little."""
    if label is None or not 1 < len(e.logits) <= FEW or not all(map(math.isfinite, e.logits)):
        return []
    limit = MOST_STEPS // 10
    counts = [(loss.name, steps_to_lead(LOSSES[loss.name], e.logits, label, limit)) for loss in e.losses[:2]]
    return [strip(class_names(e)[label], counts, limit)]


def _notes(e: RowNumbers) -> list[str]:
    return [html.paragraph(note, "notice") for note in e.notes]


def _tables(e: RowNumbers) -> list[str]:
    shown = [html.table(tables.loss_table(e, loss)) for loss in e.losses]
    return [
        html.heading("Every loss in numbers"),
        html.paragraph(tables.legend(e), "note"),
        *shown,
        html.paragraph(tables.references(e), "note"),
    ]
