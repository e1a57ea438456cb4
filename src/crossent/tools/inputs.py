"""How ``explain``, ``check`` and ``score`` read values as logits, probabilities or log-probabilities.

The user says which they are. It is never guessed.
"""

from __future__ import annotations

from math import inf

import numpy as np

from crossent.reference import Array, Bools

ROUNDED = 1e-2  # how far the sum of a row of probabilities may be from 1


def no_probabilities(x: Array) -> Bools:
    """Say which rows hold something outside of [0, 1]. A nan is another fault, which is found elsewhere."""
    with np.errstate(invalid="ignore"):
        return np.asarray(~((x >= 0) & (x <= 1 + 1e-3)).all(1) & ~np.isnan(x).any(1))


def percentages(x: Array) -> bool:
    """Whether rows sum to 100, as probabilities do in percent."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(len(x) and x.shape[-1] > 1 and (x >= 0).all() and (np.abs(x.sum(-1) - 100) <= 100 * ROUNDED).all())


IN_PERCENT = "the values are percentages, whose rows sum to 100: divide them by 100, and say --input probs"


def log_probabilities(x: Array, given: str) -> Array:
    """Take values for logits, of which log-probabilities are some: the softmax of log p is p."""
    if given != "probs":
        return x
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(x))


def log_of_no(log_p: Array) -> Array:
    """Compute ``log (1 - p)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(-np.expm1(np.minimum(log_p, 0))))


class ValueRange:
    """What values look like, to be compared with the ``input`` option. It only leads to warnings.

    Args:
        given: what they were said to be.
        alone: whether every value is a yes or no of its own.
    """

    def __init__(self, given: str, alone: bool) -> None:
        self.input, self.alone = given, alone
        self.low, self.high, self.off, self.columns = inf, -inf, -inf, 0
        self.percent = True

    def add(self, values: Array) -> None:
        """See the range of the values, and how far the sums of the rows are from 1."""
        if len(values):
            with np.errstate(over="ignore", invalid="ignore"):
                self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
                summed = np.exp(values) if self.input == "logprobs" else values
                self.off = max(self.off, np.abs(summed.sum(1) - 1).max())
                self.columns = values.shape[1]
                self.percent = self.percent and percentages(values)

    def warnings(self) -> list[str]:
        """Say where the values look like something else than what they were said to be."""
        single = self.columns == 1 and not self.alone
        if (
            self.input == "logits"
            and self.low >= 0
            and self.high <= 1
            and (self.alone or self.off < ROUNDED)
            and not single
        ):
            sums = "" if self.alone else " and every row sums to 1"
            return [f"All values lie in [0, 1]{sums}: if they are probabilities, say --input probs."]
        if self.input == "logits" and self.percent and self.columns > 1 and not self.alone:
            return [f"If {IN_PERCENT}."]
        if self.input != "logits" and not self.alone and self.off > ROUNDED:
            what = "probabilities" if self.input == "probs" else "exponentials of the log-probabilities"
            return [
                f"The sum of the {what} of a row is up to {self.off:.3g} away from 1; rows were divided by their sum."
            ]
        return []
