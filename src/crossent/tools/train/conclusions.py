"""One paragraph on what a run shows: each sentence is made from its numbers, and left out where they do not support it.

What several jobs say is here; what one alone says is in its own file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from crossent.reference import Array
from crossent.tools.train.job import Results
from crossent.tools.train.results import LossResult

QUICK = (
    "This was a quick run, which only shows that everything works: its figures are not meant to be compared. "
    "Run it without --quick for figures that are."
)


class Difference(NamedTuple):
    """How much higher one loss scores than another, and its standard error over the test part and the seeds."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Say whether it exceeds two standard errors."""
        return abs(self.mean) > 2 * self.error


def compare(results: Results, a: LossResult, b: LossResult, key: str = "") -> Difference:
    """Compare two losses on the same pieces of the test part and with the same seeds, by the score that counts or another.

    The variance of the difference is the sum of two: over the pieces, and over the seeds; both losses share each of them.
    """
    key = key or results.job.measures[0].key

    def shares(loss: LossResult) -> Array:
        return np.asarray(np.mean([run.shares[key] for run in loss.runs], axis=0))

    difference = shares(a) - shares(b)
    over_pieces = difference.var(ddof=1) / len(difference)
    by_seed = [one.scores[key] - other.scores[key] for one, other in zip(a.runs, b.runs, strict=True)]
    over_seeds = np.var(by_seed, ddof=1) / len(by_seed) if len(by_seed) > 1 else 0.0
    return Difference(float(np.mean(by_seed)), math.sqrt(over_pieces + over_seeds))


def paragraph(results: Results) -> str:
    """Say what the run shows."""
    if not results.losses:
        return "No loss was finished, so there is nothing to say."
    if results.settings.quick:
        return QUICK
    return " ".join(filter(None, (sentence(results) for sentence in results.job.sentences)))


# --- what several jobs say --------------------------------------------------------------------------------------------


def ranking(results: Results) -> str:
    """Name the best, those that cannot be told from it, and those that can."""
    best = max(results.losses, key=results.score)
    achieves = results.job.wording.achieves.format(
        n=results.sizes["test"], name=best.name, score=percent(results.score(best))
    )
    others = [loss for loss in results.losses if loss is not best]
    level = [loss for loss in others if not compare(results, best, loss).clear]
    behind = [loss for loss in others if loss not in level]
    parts = [achieves]
    if level:
        parts.append(f"{listed(results, level)} cannot be told from it (the difference is within two standard errors)")
    if behind:
        parts.append(f"{listed(results, behind)} {'is' if len(behind) == 1 else 'are'} clearly behind")
    return "; ".join(parts) + "."


def failures(results: Results) -> str:
    """Name those that have not learnt the task."""
    failed = [loss for loss in results.losses if loss not in results.learnt]
    if not failed:
        return ""
    return f"{listed(results, failed)} did not learn the task, and nothing more is concluded from it."


def cost_of_one_rate(results: Results) -> str:
    """Say what a loss would have lost at the rate of another."""
    wording = results.job.wording
    if not results.settings.swept:
        if len(results.losses) < 2:
            return ""
        return (
            f"All were trained at the one rate {results.settings.rates[0]:g}, "
            "so the order may be the rate's and not the losses'."
        )
    learnt = results.learnt
    costs = [
        (loss.at(loss.rate).score - loss.at(other.rate).score, loss, other)
        for loss in learnt
        for other in learnt
        if loss is not other
    ]
    cost, loss, other = max(costs, key=lambda item: item[0], default=(0.0, None, None))
    if loss is None or other is None or cost <= 0:
        return ""
    best = loss.at(loss.rate).score
    there = wording.validates.format(name=loss.name, score=percent(best - cost))
    return (
        f"One rate for all would have been no comparison: at {other.name}'s rate of {other.rate:g}, {there}, "
        f"and {percent(best)} at its own, {loss.rate:g}."
    )


# --- their parts ------------------------------------------------------------------------------------------------------


def have_learnt(results: Results, *names: str) -> bool:
    """Say whether these losses were trained and have learnt the task."""
    return set(names) <= {loss.name for loss in results.learnt}


def percent(share: float) -> str:
    """Write a share.

    >>> percent(0.5)
    '50.0%'
    """
    return f"{100 * share:.1f}%"


def joined(parts: Iterable[str]) -> str:
    """Write a list as one speaks it.

    >>> joined(["ce", "bce", "mae"])
    'ce, bce and mae'
    """
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def listed(results: Results, losses: Iterable[LossResult]) -> str:
    """Name losses with their scores."""
    return joined(f"{loss.name} ({percent(results.score(loss))})" for loss in losses)


def points(difference: Difference) -> str:
    """Write a difference in percentage points, with its uncertainty.

    >>> points(Difference(-0.012, 0.004))
    '−1.2 points (two standard errors: 0.8)'
    """
    return f"{_signed(difference)} points (two standard errors: {200 * difference.error:.1f})"


def margin(difference: Difference) -> str:
    """Write the same shorter, where it is said that ± is two standard errors.

    >>> margin(Difference(-0.012, 0.004))
    '−1.2 ± 0.8 points'
    """
    return f"{_signed(difference)} ± {200 * difference.error:.1f} points"


def _signed(difference: Difference) -> str:
    return f"{100 * difference.mean:+.1f}".replace("-", "−")
