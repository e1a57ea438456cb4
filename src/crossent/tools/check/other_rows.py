"""What logits say about the labels of other rows, beyond what the labels of their own rows explain.

A model that is trained on labels of other rows learns them one by one, and they fit. It tells its inputs apart all the same: rows
of one true class have logits of their own kind. The test for it is that of a second factor in a multivariate analysis of variance,
Pillai's trace: the logits are explained by the labels as given, then by the labels in another order as well. The mean of the
squared canonical correlations of that second step is 0 where nothing is known of other rows, and 1 where everything is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from crossent.reference import Array
from crossent.tools.check.row_block import Ints

CLASSES = 64  # up to which it is computed
ROWS = 200  # the fewest for which it is told; and there must be twenty for each class
SINGULAR = 1e-9  # of the largest eigenvalue: directions that the logits do not have


@dataclass
class Knowledge:
    """Sums over rows with a label as given, ``y``, and one in another order, ``z``. A row's logits have a mean of 0.

    Attributes:
        num_classes: ``C``.
        pairs: how often each y meets each z.
        by_given: the sums of the logits of each y.
        by_other: the sums of the logits of each z.
        products: the sum of the rows' products of two logits.
    """

    num_classes: int
    pairs: Array = field(init=False)
    by_given: Array = field(init=False)
    by_other: Array = field(init=False)
    products: Array = field(init=False)

    def __post_init__(self) -> None:
        self.pairs, self.by_given, self.by_other, self.products = np.zeros((4, self.num_classes, self.num_classes))

    def add(self, x: Array, y: Ints, z: Ints) -> None:
        """Look at rows of logits with both labels."""
        x = x - x.mean(1, keepdims=True)
        given, other = (np.eye(self.num_classes)[labels] for labels in (y, z))
        self.pairs += given.T @ other
        self.by_given += given.T @ x
        self.by_other += other.T @ x
        self.products += x.T @ x

    @property
    def n(self) -> int:
        """The number of rows."""
        return int(self.pairs.sum())

    def explained(self) -> float:
        """Compute the mean of the squared canonical correlations of logits and z, given y."""
        mean = self.by_given / np.maximum(self.pairs.sum(1, keepdims=True), 1)
        within = self.products - self.by_given.T @ mean
        of_other = self.by_other - self.pairs.T @ mean
        share = self.pairs / np.maximum(self.pairs.sum(1, keepdims=True), 1)
        free = np.diag(self.pairs.sum(0)) - self.pairs.T @ share  # of z's indicators what y does not explain
        second = of_other.T @ _inverse(free) @ of_other
        return float(np.trace(_inverse(within) @ second)) / max(self.num_classes - 1, 1)

    def dependence(self) -> float:
        """Compute the mean of the squared canonical correlations of y and z, which is 0 where rows have no order of their own."""
        expected = np.outer(self.pairs.sum(1), self.pairs.sum(0)) / max(self.n, 1)
        used = expected > 0
        return float(((self.pairs[used] - expected[used]) ** 2 / expected[used]).sum()) / max(self.n, 1) / (
            self.num_classes - 1
        )  # fmt: skip

    def beyond_chance(self, correlation: float, independent: int) -> float:
        """Say by how many standard deviations a mean of squared correlations lies above that of as many independent rows."""
        freedom = (self.num_classes - 1) ** 2
        return (independent * correlation * (self.num_classes - 1) - freedom) / sqrt(2 * freedom)


def _inverse(matrix: Array) -> Array:
    """Invert a matrix of sums of products on the directions that it has."""
    return np.asarray(np.linalg.pinv(matrix, rcond=SINGULAR, hermitian=True))


def opposite(name: str) -> str:
    """Name the order in the other direction, or the same where there is none.

    >>> opposite("2 rows up")
    '2 rows down'
    """
    there: Any = {"up": "down", "down": "up"}
    *rest, last = name.split()
    return " ".join((*rest, there.get(last, last)))
