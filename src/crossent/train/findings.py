"""One paragraph on what a run shows: each sentence is made from its numbers, and left out where they do not bear it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from crossent import reference
from crossent.reference import Array
from crossent.train.results import LossResult, Results

LEARNT = 0.5
"""Below this test accuracy a loss has not learnt the task, and its other scores are not compared."""


class Difference(NamedTuple):
    """How much more of the test rows one loss gets right than another, and its standard error over rows and seeds."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Say whether it exceeds two standard errors."""
        return abs(self.mean) > 2 * self.error


def compare(results: Results, a: LossResult, b: LossResult) -> Difference:
    """Compare two losses on the same test rows: each row counts with the share of the seeds that get it right."""
    index = results.test_index

    def right(loss: LossResult) -> Array:
        return np.asarray(1 - np.mean([np.isin(index, run.wrong) for run in loss.runs], axis=0))

    difference = right(a) - right(b)
    over_rows = difference.var(ddof=1) / len(index)
    over_seeds = sum((loss.spread(lambda run: run.test.accuracy) or 0.0) ** 2 / len(loss.runs) for loss in (a, b))
    return Difference(float(difference.mean()), math.sqrt(over_rows + over_seeds))


def paragraph(results: Results) -> str:
    """Say what the run shows."""
    if not results.losses:
        return "No loss was finished, so there is nothing to say."
    if results.settings.quick:
        return (
            "This was a quick run, which only shows that everything works: its figures are not meant to be compared. "
            "Run it without --quick for figures that are."
        )
    sentences = (_ranking, _failures, _double_softmax, _smoothing, _probabilities, _rates)
    return " ".join(filter(None, (sentence(results) for sentence in sentences)))


# --- the sentences ----------------------------------------------------------------------------------------------------


def _ranking(results: Results) -> str:
    best = max(results.losses, key=lambda loss: loss.accuracy)
    images = f"{len(results.test_index)} test images"
    others = [loss for loss in results.losses if loss is not best]
    if not others:
        return f"{_named(best)} of the {images} right."
    level = [loss for loss in others if not compare(results, best, loss).clear]
    behind = [loss for loss in others if loss not in level]
    parts = [f"Of the {images}, {best.name} gets {_percent(best.accuracy)} right"]
    if level:
        parts.append(f"{_listed(level)} cannot be told from it (the difference is within two standard errors)")
    if behind:
        parts.append(f"{_listed(behind)} {'is' if len(behind) == 1 else 'are'} clearly behind")
    return "; ".join(parts) + "."


def _failures(results: Results) -> str:
    said = [_failure(results, loss) for loss in results.losses if loss.accuracy < LEARNT]
    return " ".join(said)


def _failure(results: Results, loss: LossResult) -> str:
    best = max((tried.accuracy for tried in loss.sweep), default=None)
    if best is None:
        start = f"At this rate {loss.name} does not learn"
    elif best < LEARNT:
        start = (
            f"None of the {len(loss.sweep)} rates makes {loss.name} learn (best validation accuracy {_percent(best)})"
        )
    else:
        start = f"{loss.name} learnt in the sweep and not with every seed"
    end = loss.final_train_loss
    if loss.name != "sigmoid-difference" or abs(end - 0.1) > 0.005:
        return f"{start}."
    return (
        f"{start}: its loss settles at {end:.4f}, and saying no to every class costs 1/10; "
        "there σ(1 − σ) is almost 0, and so is the gradient that would have to lead away."
    )


def _double_softmax(results: Results) -> str:
    if not {"ce", "ce-after-softmax"} <= {loss.name for loss in _learnt(results)}:
        return ""
    loss = results["ce-after-softmax"]
    difference = compare(results, loss, results["ce"])
    effect = f"changes accuracy by {_points(difference)} against ce"
    floor = float(reference.cross_entropy(np.eye(10)[0], 0).loss)
    return (
        f"The second softmax {effect}, and holds the training loss at {loss.final_train_loss:.2f}, "
        f"which cannot fall below ln(e+9) − 1 = {floor:.2f}."
    )


def _smoothing(results: Results) -> str:
    if not {"ce", "ce-smooth"} <= {loss.name for loss in _learnt(results)}:
        return ""
    smooth, ce = results["ce-smooth"], results["ce"]
    difference = compare(results, smooth, ce)
    return (
        f"Smoothing changes accuracy by {_points(difference)} against ce, "
        f"and the calibration error from {ce.calibration_error:.3f} to {smooth.calibration_error:.3f}."
    )


def _probabilities(results: Results) -> str:
    scored = [loss for loss in _learnt(results) if math.isfinite(loss.nll)]
    if len(scored) < 2:
        return ""
    best, worst = min(scored, key=lambda loss: loss.nll), max(scored, key=lambda loss: loss.nll)
    learnt = "" if len(scored) == len(results.losses) else " of those that learnt"
    return (
        f"As probabilities{learnt}, those of {best.name} are the best (NLL {best.nll:.3f}) "
        f"and those of {worst.name} the worst ({worst.nll:.3f})."
    )


def _rates(results: Results) -> str:
    if not results.settings.swept:
        if len(results.losses) < 2:
            return ""
        return (
            f"All were trained at the one rate {results.settings.rates[0]:g}, "
            "so the order may be the rate's and not the losses'."
        )
    learnt = _learnt(results)
    costs = [(_cost_of_rate(loss, other.rate), loss, other) for loss in learnt for other in learnt if loss is not other]
    cost, loss, other = max(costs, key=lambda item: item[0], default=(0.0, None, None))
    if loss is None or other is None or cost <= 0:
        return ""
    best = _validation(loss, loss.rate)
    return (
        f"One rate for all would have been no comparison: at {other.name}'s rate of {other.rate:g}, {loss.name} gets "
        f"{_percent(best - cost)} of the validation images right, and {_percent(best)} at its own, {loss.rate:g}."
    )


# --- their parts ------------------------------------------------------------------------------------------------------


def _learnt(results: Results) -> list[LossResult]:
    return [loss for loss in results.losses if loss.accuracy >= LEARNT]


def _validation(loss: LossResult, rate: float) -> float:
    return next(tried.accuracy for tried in loss.sweep if tried.rate == rate)


def _cost_of_rate(loss: LossResult, rate: float) -> float:
    return _validation(loss, loss.rate) - _validation(loss, rate)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _named(loss: LossResult) -> str:
    return f"{loss.name} gets {_percent(loss.accuracy)}"


def _listed(losses: Iterable[LossResult]) -> str:
    *most, last = [f"{loss.name} ({_percent(loss.accuracy)})" for loss in losses]
    return f"{', '.join(most)} and {last}" if most else last


def _points(difference: Difference) -> str:
    points = f"{100 * difference.mean:+.1f}".replace("-", "−")
    return f"{points} points (two standard errors: {200 * difference.error:.1f})"
