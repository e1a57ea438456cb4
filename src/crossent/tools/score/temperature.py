"""The temperature that suits the logits best, fitted on one half of the rows and tried on the other.

Dividing the logits by one number changes no decision, only how sure the model says it is. Guo et al., "On Calibration of Modern
Neural Networks", 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from math import inf, sqrt

import numpy as np

from crossent.reference import Bools
from crossent.tools.score.measures import Calibration, Mean
from crossent.tools.score.row_blocks import Decisions, Ints, Reader

LIMITS = (1 / 100, 100.0)
SAMPLE = 1 << 26  # numbers that the fit looks at, evenly spread, of a file that holds more
FIRST = 1 << 20  # numbers, kept in memory, on which a file that holds many more is fitted before it is gone through
STEPS, EXACT = 40, 1e-7


def even(row: Ints, position: Ints) -> Bools:
    """Choose the half on which the temperature is fitted."""
    return np.asarray(row % 2 == 0)


def fit(reader: Reader, watch: Callable[[int], None]) -> float | None:
    """Find the temperature with the lowest loss on the even rows.

    The loss is convex in ``β = 1/T``, with the slope ``Σ_k p_k x_k - x_y`` and the curvature ``Var_p(x)`` at ``p = softmax(βx)``:
    Newton's steps, kept between what is known to be too small and too large, find its minimum.

    Returns:
        ``T``, at a limit of :data:`LIMITS` if the best lies beyond it; None if there is nothing to fit, or no temperature helps
        since the right class of some decision has probability 0.
    """
    per_row = reader.layout.per_row
    stride = 1 + len(reader.logits) * per_row * reader.layout.choices // (2 * SAMPLE)

    def chosen(row: Ints, position: Ints) -> Bools:
        return np.asarray(even(row, position) & ((row // 2 * per_row + position) % stride == 0))

    numbers, first = len(reader.logits) * per_row * reader.layout.choices, 1.0
    steps = count_up(watch)
    if numbers > 8 * FIRST:
        sparse = numbers // (2 * FIRST * stride)

        def few(row: Ints, position: Ints) -> Bools:
            return np.asarray(chosen(row, position) & ((row // 2 * per_row + position) // stride % sparse == 0))

        found = _newton(list(reader.sample(few)), 1.0, steps, confirm=False)
        first = 1.0 if found is None else found
    beta = _newton(_Passes(reader, chosen), first, steps, confirm=first != 1.0)
    return None if beta is None else 1 / beta


def count_up(watch: Callable[[int], None]) -> Callable[[], None]:
    """Tell how many steps have been made."""
    steps = count(1)
    return lambda: watch(next(steps))


class _Passes:
    """Decisions of a file that are read anew each time they are gone through."""

    def __init__(self, reader: Reader, chosen: Callable[[Ints, Ints], Bools]) -> None:
        self.reader, self.chosen = reader, chosen

    def __iter__(self) -> Iterator[Decisions]:
        return self.reader.sample(self.chosen)


def _newton(blocks: Iterable[Decisions], beta: float, step: Callable[[], None], *, confirm: bool) -> float | None:
    """Find the ``β`` with the lowest loss by Newton's steps.

    Where a good ``β`` is only to be confirmed, a step that is small enough is believed: the next would be its square.
    """
    limits = 1 / LIMITS[1], 1 / LIMITS[0]
    (low, high), last = limits, inf
    for _ in range(STEPS):
        slope, curvature, count = _slope(blocks, beta)
        step()
        if not count or not np.isfinite(slope):
            return None
        if slope == 0 and beta == 1:
            return 1.0  # no temperature changes anything
        if beta == limits[slope <= 0]:
            return beta  # the best lies beyond it
        low, high = (beta, high) if slope <= 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else inf
        # Newton's steps do not shrink where the slope decays like an exponential, as it does if no decision is wrong
        shrinks = abs(newton - beta) < last / 2
        direct = low < newton < high and shrinks
        beyond = (
            high if slope <= 0 else low
        )  # a limit that was not tried yet often is the answer, and halving would creep there
        following = newton if direct else beyond if beyond in limits else sqrt(low * high)
        last = abs(following - beta)
        if last <= EXACT * beta:
            break
        beta = following
        if confirm and direct and last <= sqrt(EXACT) * beta:
            break
    return beta


def _slope(blocks: Iterable[Decisions], beta: float) -> tuple[float, float, int]:
    """Sum the slope and the curvature of the loss over decisions."""
    slope = curvature = 0.0
    count = 0
    for block in blocks:
        with np.errstate(invalid="ignore", over="ignore"):
            p = block.tempered(1 / beta).p
            above = np.where(p > 0, block.x - block.x_true[:, None], 0.0)  # inf where p_y = 0
            mean = (p * above).sum(1)
            slope += float(mean.sum())
            curvature += float((p * np.square(above - mean[:, None])).sum())
        count += len(block)
    return slope, curvature, count


class BeforeAndAfter:
    """The loss and the calibration error of the odd rows, as they are and at a temperature."""

    def __init__(self, temperature: float) -> None:
        self.temperature, self.decisions = temperature, 0
        self.nll, self.calibration = (Mean(), Mean()), (Calibration(), Calibration())

    def add(self, block: Decisions) -> None:
        """Add decisions."""
        odd = block.where(~even(block.row, block.position))
        self.decisions += len(odd)
        for at, each in enumerate((odd, odd.tempered(self.temperature))):
            if len(each):
                self.nll[at].add(each.row, each.nll)
                self.calibration[at].add(each)
