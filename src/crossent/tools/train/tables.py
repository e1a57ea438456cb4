"""Tables of strings, built once and shown in the terminal or in a report."""

from __future__ import annotations

import math

from crossent.tools.table import Table
from crossent.tools.train.job import Measure, Results
from crossent.tools.train.results import LossResult


def scores(results: Results) -> Table:
    """Tabulate the test scores of each loss."""
    job = results.job
    rows = tuple(
        (
            loss.name,
            f"{loss.rate:g}",
            *(score(loss, measure) for measure in job.measures),
            *(cell(loss) for _, cell in job.columns),
        )
        for loss in results.losses
    )
    columns = ("loss", "rate", *(measure.column for measure in job.measures), *(title for title, _ in job.columns))
    title = f"Scores on the {results.sizes['test']} test {job.wording.rows}{over_seeds(results, spread=True)}"
    return Table(title, columns, rows, (_scored(results), *job.definitions(results)))


def over_seeds(results: Results, spread: bool = False) -> str:
    """Say over how many seeds the numbers of a table are averaged."""
    seeds = results.settings.seeds
    return f", mean{' ± standard deviation' * spread} over {seeds} seeds" if seeds > 1 else ", one seed"


def _scored(results: Results) -> str:
    scored: dict[str, list[str]] = {}
    for loss in results.losses:
        scored.setdefault(results.job.candidates[loss.name].scored, []).append(loss.name)
    return "Probabilities scored: " + "; ".join(f"{', '.join(names)}: {what}" for what, names in scored.items()) + "."


def rates(results: Results) -> Table:
    """Tabulate the validation score at each rate of the sweep, the chosen one marked."""
    tried, wording = results.settings.rates, results.job.wording
    scale = results.job.measures[0].scale
    rows = tuple(
        (loss.name, *(number(scale * t.score, 1) if math.isfinite(t.cost) else "–" for t in loss.sweep))
        for loss in results.losses
    )
    marked = frozenset((i, 1 + tried.index(loss.rate)) for i, loss in enumerate(results.losses))
    columns = ("learning rate", *(f"{rate:g}" for rate in tried))
    measured = wording.measured[0].upper() + wording.measured[1:]
    title = (
        f"{measured} in % on the {results.sizes['validation']} validation {wording.rows}, "
        f"after {results.settings.epochs} epochs"
    )
    return Table(title, columns, rows, _rate_notes(results), marked)


def _rate_notes(results: Results) -> tuple[str, ...]:
    wording = results.job.wording
    notes = [
        f"* chosen: the best validation {wording.measured}, among equals the lowest validation {wording.cost}; seed "
        f"{results.settings.seed}, no test {wording.row} seen. –: the weights overflowed."
    ]
    edge = [loss.name for loss in results.losses if loss.at_end_of_sweep]
    if edge:
        notes.append(f"Chosen at an end of the sweep, so that a better rate may lie outside it: {', '.join(edge)}.")
    return tuple(notes)


# --- cells ------------------------------------------------------------------------------------------------------------


def score(loss: LossResult, measure: Measure) -> str:
    """Write a test score's mean over the seeds, with its spread where the measure wants it."""
    spread = loss.spread(measure.key) if measure.spread else None
    mean = number(measure.scale * loss.mean(measure.key), measure.decimals)
    return mean if spread is None else f"{mean} ± {measure.scale * spread:.{measure.decimals}f}"


def number(value: float, digits: int) -> str:
    """Write a number, and a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
