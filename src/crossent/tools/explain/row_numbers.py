"""The numbers of every loss for one row: plain data, without a way to show it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from crossent.tools.explain.catalogue import LOSSES, LossDescription, find_losses
from crossent.tools.explain.loss_terms import add

SCHEMA = "crossent.explanation/1"


@dataclass(frozen=True)
class LossExplanation:
    """One loss on one row; tuples have one number a class.

    Attributes:
        name: of the loss, as in ``crossent.tools.explain.catalogue``.
        p: what the loss takes as probabilities: softmax or sigmoid of the logits.
        t: the target, as this loss uses it.
        terms: what each class adds to the loss.
        gradient: ``∂L/∂x``. Descent raises a logit whose derivative is negative.
        logits_after: ``x - step · ∂L/∂x``.
        p_after: their probabilities.
        loss: the sum of the terms, in nats if the loss is a logarithm.
    """

    name: str
    p: tuple[float, ...]
    t: tuple[float, ...]
    terms: tuple[float, ...]
    gradient: tuple[float, ...]
    logits_after: tuple[float, ...]
    p_after: tuple[float, ...]
    loss: float

    @property
    def description(self) -> LossDescription:
        """The loss in words."""
        return LOSSES[self.name]

    @property
    def bits(self) -> float | None:
        """The loss in bits; None for a loss that is no logarithm."""
        return self.loss / math.log(2) if self.description.nats else None

    @property
    def gradient_sum(self) -> float:
        """``Σ ∂L/∂x``: 0 where what one class gains, the others lose."""
        return add(self.gradient)

    @property
    def gradient_formula(self) -> str:
        """The formula of the gradient; ``p - t`` is short for ``Σt · p - t``."""
        formula, whole = self.description.gradient, math.isclose(add(self.t), 1)
        return f"m · {formula} with m = Σ t" if formula == "p − t" and not whole else formula

    @property
    def push(self) -> tuple[str, ...]:
        """Which way descent moves each logit: ``"up"``, ``"down"`` or ``"none"``."""
        return tuple("up" if g < 0 else "down" if g > 0 else "none" for g in self.gradient)


@dataclass(frozen=True)
class References:
    """Losses to compare with, in nats.

    Attributes:
        ln_classes: ``ln C``, where all classes are equally likely.
        prior_entropy: ``H(π)`` of the class frequencies, if they were given: the best without looking at the input.
        double_softmax_floor: ``ln(e + C - 1) - 1``, below which cross entropy after a softmax cannot fall.
    """

    ln_classes: float
    prior_entropy: float | None
    double_softmax_floor: float


@dataclass(frozen=True, repr=False)
class RowNumbers:
    """The numbers of every loss for one row. ``Explanation`` says what each holds."""

    logits: tuple[float, ...]
    class_names: tuple[str, ...]
    labels: tuple[int, ...] | None
    weights: tuple[float, ...]
    step: float
    losses: tuple[LossExplanation, ...]
    references: References
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LossExplanation:
        (description,) = find_losses([name])
        for loss in self.losses:
            if loss.name == description.name:
                return loss
        raise KeyError(f"{name} was not explained, only {', '.join(loss.name for loss in self.losses)}")

    def to_dict(self) -> dict[str, Any]:
        """Write everything as plain data with a versioned schema; what is not finite is None."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "computed_by": "crossent.reference, float64",
            "classes": len(self.logits),
            "class_names": list(self.class_names),
            "logits": list(self.logits),
            "target": {"labels": None if self.labels is None else list(self.labels), "weights": list(self.weights)},
            "step": self.step,
            "references": asdict(self.references),
            "losses": [_loss_document(loss) for loss in self.losses],
            "notes": list(self.notes),
        }
        finite: dict[str, Any] = _finite(document)
        return finite

    def to_json(self, indent: int | None = 1) -> str:
        """Write ``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _loss_document(loss: LossExplanation) -> dict[str, Any]:
    description = loss.description
    return {
        "name": loss.name,
        "about": description.about,
        "formula": description.formula,
        "gradient_formula": loss.gradient_formula,
        "probabilities": description.link,
        "loss": loss.loss,
        "unit": "nats" if description.nats else None,
        "bits": loss.bits,
        "gradient_sum": loss.gradient_sum,
        **{key: list(getattr(loss, key)) for key in ("p", "t", "terms", "gradient", "push", "logits_after", "p_after")},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
