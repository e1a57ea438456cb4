"""Tables of strings, built once and shown in the terminal or in a report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from crossent.train.losses import CANDIDATES
from crossent.train.metrics import BINS
from crossent.train.results import LEVEL, LossResult, Results


@dataclass(frozen=True)
class Grid:
    """A table: names, and numbers from the second column on; ``marked`` are the (row, column) cells that stand out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    marked: frozenset[tuple[int, int]] = field(default_factory=frozenset)


def scores(results: Results) -> Grid:
    """Tabulate the test scores of each loss."""
    seeds = results.settings.seeds
    spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    rows = tuple(
        (
            loss.name,
            f"{loss.rate:g}",
            _with_spread(100 * loss.accuracy, loss.spread(lambda run: 100 * run.test.accuracy)),
            _number(loss.nll, 3),
            _number(loss.calibration_error, 3),
            _epochs(loss),
        )
        for loss in results.losses
    )
    columns = ("loss", "rate", "accuracy %", "NLL", "ECE", f"epochs to {LEVEL:.0%}")
    title = f"Scores on the {len(results.test_index)} test images{spread}"
    return Grid(title, columns, rows, definitions(results))


def definitions(results: Results) -> tuple[str, ...]:
    """Say what is scored, and how."""
    scored: dict[str, list[str]] = {}
    for loss in results.losses:
        scored.setdefault(CANDIDATES[loss.name].scored, []).append(loss.name)
    return (
        "Probabilities scored: " + "; ".join(f"{', '.join(names)}: {what}" for what, names in scored.items()) + ".",
        f"NLL: mean of −log p(true), in nats. ECE: top-label calibration error over {BINS} equal-width bins of "
        f"confidence. Epochs to {LEVEL:.0%}: the first epoch that ends with that validation accuracy, averaged over "
        "the seeds.",
    )


def rates(results: Results) -> Grid:
    """Tabulate the validation accuracy at each rate of the sweep, the chosen one marked."""
    tried = results.settings.rates
    rows = tuple(
        (loss.name, *(_number(100 * t.accuracy, 1) if math.isfinite(t.nll) else "–" for t in loss.sweep))
        for loss in results.losses
    )
    marked = frozenset((i, 1 + tried.index(loss.rate)) for i, loss in enumerate(results.losses))
    columns = ("learning rate", *(f"{rate:g}" for rate in tried))
    size = results.sizes["validation"]
    title = f"Accuracy in % on the {size} validation images, after {results.settings.epochs} epochs"
    return Grid(title, columns, rows, _rate_notes(results), marked)


def _rate_notes(results: Results) -> tuple[str, ...]:
    notes = [
        f"* chosen: the best validation accuracy, among equals the lowest validation NLL; seed "
        f"{results.settings.seed}, no test image seen. –: the weights overflowed."
    ]
    edge = [loss.name for loss in results.losses if loss.at_end_of_sweep]
    if edge:
        notes.append(f"Chosen at an end of the sweep, so that a better rate may lie outside it: {', '.join(edge)}.")
    return tuple(notes)


def gradients(results: Results) -> Grid:
    """Tabulate the gradient that each loss gives to a prediction that is sure and wrong."""
    rows = tuple(
        (loss.name, *(f"{g:+.4f}".replace("-", "−") for g in loss.push.grad), f"× {loss.push.against_undecided:.2g}")
        for loss in results.losses
    )
    columns = ("loss", "true, at −1", "wrong, at 6", "wrong, at −0.25", "against undecided")
    worst = max(
        (abs(a - b) for loss in results.losses for a, b in zip(loss.push.grad, loss.push.autograd, strict=True)),
        default=0.0,
    )
    notes = (
        "A negative gradient raises the logit, a positive one lowers it. Against undecided: the push down on the wrong "
        "class, as a multiple of the push on it when all three logits are 0; the learning rate scales every other "
        "number of a row, and leaves this one.",
        "Computed by crossent.reference, the definition, in float64. Autograd of the very losses that were trained "
        f"gives the same; the largest difference is {f'{worst:.0e}' if worst else 0}.",
    )
    return Grid("The gradient ∂L/∂x at logits (−1, 6, −0.25), the first class being true", columns, rows, notes)


def _with_spread(value: float, spread: float | None) -> str:
    return _number(value, 1) if spread is None else f"{_number(value, 1)} ± {spread:.1f}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _epochs(loss: LossResult) -> str:
    reached = [run.epochs_to_level for run in loss.runs if run.epochs_to_level is not None]
    if not reached:
        return "never"
    mean = f"{sum(reached) / len(reached):.1f}".removesuffix(".0")
    return mean if len(reached) == len(loss.runs) else f"{mean} ({len(reached)} of {len(loss.runs)})"
