"""A mean of values that come a block at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np

from crossent.reference import Array


@dataclass
class RunningMean:
    """A mean that can be added to, with its standard error."""

    total: float = 0.0
    squares: float = 0.0
    n: int = 0

    def add(self, values: Array) -> None:
        """Add values; those that are not finite are left out."""
        values = values[np.isfinite(values)]
        self.total, self.squares, self.n = (
            self.total + float(values.sum()),
            self.squares + float((values**2).sum()),
            self.n + values.size,
        )

    @property
    def value(self) -> float:
        """The mean, nan of nothing."""
        return self.total / self.n if self.n else nan

    @property
    def variance(self) -> float:
        """The square of its standard error."""
        return max(self.squares / self.n - self.value**2, 0.0) / self.n if self.n else inf

    def above(self, other: RunningMean) -> float:
        """How many standard errors it lies above another."""
        return (self.value - other.value) / max(sqrt(self.variance + other.variance), 1e-12)
