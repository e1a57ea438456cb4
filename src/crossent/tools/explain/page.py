"""An explanation as the page shows it: a push for each loss, and the data that the page starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crossent.tools.explain.row_numbers import LossExplanation, RowNumbers
from crossent.tools.page.push import Push
from crossent.tools.page.words import WORDS


def push_of(e: RowNumbers, loss: LossExplanation) -> Push:
    """Take from an explanation what a picture shows."""
    return Push(loss.name, e.class_names, e.logits, loss.p, loss.t, loss.gradient, loss.loss)


def plain_logits(x: Sequence[float]) -> list[float | None]:
    """Write logits for JSON, in which an impossible class has none."""
    return [value if math.isfinite(value) else None for value in x]


def words_of(losses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give the script the words of some losses."""
    return {name: WORDS[name]._asdict() for name in losses}
