"""What is measured, a class for each measure. Each is given blocks of decisions, and has its numbers when all were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from crossent import reference
from crossent.reference import Array
from crossent.tools.score.options import ScoreOptions
from crossent.tools.score.row_blocks import Decisions, Ints
from crossent.tools.shared_options import SUSPECTS

BINS = 15
SHOWN = 100  # up to so many classes the confusion matrix is part of the report
CONFUSED = 1000  # up to so many classes all confusions are counted
CANDIDATES = 10_000  # suspected label errors kept until the classes' mean probabilities are known


# --- means ------------------------------------------------------------------------------------------------------------


class ByRow:
    """Adds up what belongs to one row of the file, also where a row is spread over blocks.

    >>> sums = ByRow(1)
    >>> sums.add(np.array([0, 0, 1]), np.array([[1.0], [2.0], [3.0]])), sums.add(np.array([1]), np.array([[4.0]])), sums.open
    (array([[3.]]), array([], shape=(0, 1), dtype=float64), array([[7.]]))
    """

    def __init__(self, columns: int) -> None:
        self.row, self.open = -1, np.zeros((0, columns))  # the row that may not be complete yet

    def add(self, row: Ints, values: Array) -> Array:
        """Return the sums of the rows that are complete now; rows come in order."""
        if not len(row):
            return self.open[:0]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        sums = np.add.reduceat(values, starts, axis=0)
        if row[0] == self.row:
            sums[0] += self.open[0]
        else:
            sums = np.concatenate([self.open, sums])
        self.row, self.open = int(row[-1]), sums[-1:]
        return sums[:-1]


class Mean:
    """A mean ``Σ v / Σ w`` and its standard error, in which a row of the file is one draw, however many decisions it holds.

    For one decision a row it is the deviation over ``√n``; for more, those of a row may depend on each other (the ratio estimator
    over clusters: Cochran, "Sampling Techniques", 1977).

    >>> mean = Mean()
    >>> mean.add(np.arange(4), np.array([1.0, 2.0, 3.0, 6.0]))
    >>> mean.value, round(mean.standard_error, 4)
    (3.0, 1.0801)
    """

    def __init__(self) -> None:
        self._sums, self._rows = ByRow(2), 0
        self._total, self._squares = np.zeros(2), np.zeros((2, 2))
        self._near: float | None = (
            None  # values are taken as differences from the first, so that their squares do not cancel
        )

    def add(self, row: Ints, value: Array, weight: Array | None = None) -> None:
        """Add decisions: what each is worth, and as how many it counts, 1 by default."""
        if not len(row):
            return
        weight = np.ones(len(row)) if weight is None else weight
        if self._near is None:
            self._near = float(value[0]) if np.isfinite(value[0]) else 0.0
        self._take(self._sums.add(row, np.stack([value - self._near * weight, weight], 1)))

    def _take(self, sums: Array) -> None:
        with np.errstate(invalid="ignore"):
            self._rows += len(sums)
            self._total = self._total + sums.sum(0)
            self._squares = self._squares + sums.T @ sums

    def _finish(self) -> None:
        self._take(self._sums.open)
        self._sums = ByRow(2)

    @property
    def value(self) -> float:
        """The mean; nan of nothing."""
        self._finish()
        total, weight = self._total
        return float(total / weight + (self._near or 0.0)) if weight else float("nan")

    @property
    def standard_error(self) -> float:
        """Its standard error; nan for fewer than two rows."""
        self._finish()
        total, weight = self._total
        if self._rows < 2 or not weight:
            return float("nan")
        with np.errstate(invalid="ignore"):
            difference = np.array([1.0, -total / weight])
            square = difference @ self._squares @ difference
            return float(np.sqrt(np.maximum(square, 0) * self._rows / (self._rows - 1)) / weight)


# --- the loss ---------------------------------------------------------------------------------------------------------


class Loss:
    """Cross entropy: plain, and as it is trained with class weights and label smoothing."""

    def __init__(self, options: ScoreOptions) -> None:
        self._weight, self._smoothing = options.weight, options.label_smoothing
        self.plain, self.infinite, self.decisions = Mean(), 0, 0
        self.trained = Mean() if options.weight is not None or options.label_smoothing else None

    def add(self, block: Decisions) -> None:
        """Add decisions."""
        self.decisions += len(block)
        self.infinite += int(np.isinf(block.nll).sum())
        self.plain.add(block.row, block.nll)
        if self.trained is not None:
            c = np.ones(block.x.shape[1]) if self._weight is None else np.asarray(self._weight, np.float64)
            loss = reference.cross_entropy(
                block.x,
                block.y if block.t is None else block.t,
                c,
                reduction="none",
                ignore_index=-1,
                label_smoothing=self._smoothing,
            ).loss
            self.trained.add(block.row, loss, c[block.y] if block.t is None else None)


# --- decisions --------------------------------------------------------------------------------------------------------


class Accuracy:
    """How often the first of the most probable classes is right, or one of the first five."""

    def __init__(self) -> None:
        self.first, self.top5 = Mean(), Mean()

    def add(self, block: Decisions) -> None:
        """Add decisions; of equally probable classes the first comes first."""
        self.first.add(block.row, np.asarray(block.right, np.float64))
        cost, classes = block.nll[:, None], np.arange(block.x.shape[1])
        before = (block.cost < cost) | ((block.cost == cost) & (classes < block.y[:, None]))
        self.top5.add(block.row, np.asarray(before.sum(1) < 5, np.float64))


class ExactMatch:
    """How often every decision of a row is right."""

    def __init__(self) -> None:
        self._wrong, self._right, self._rows = ByRow(1), 0, 0

    def add(self, block: Decisions) -> None:
        """Add decisions."""
        self._count(self._wrong.add(block.row, np.asarray(~block.right[:, None], np.float64)))

    def _count(self, wrong: Array) -> None:
        self._right += int((wrong == 0).sum())
        self._rows += len(wrong)

    @property
    def share(self) -> float:
        """The share of the rows, when all have been seen."""
        self._count(self._wrong.open)
        self._wrong = ByRow(1)
        return self._right / self._rows


# --- probabilities ----------------------------------------------------------------------------------------------------


class Brier:
    """The Brier score: the mean of ``Σ_k (p_k - t_k)²``."""

    def __init__(self) -> None:
        self.mean = Mean()

    def add(self, block: Decisions) -> None:
        """Add decisions; ``1 - p`` of the right class is formed without cancellation."""
        if block.t is not None:
            self.mean.add(block.row, np.square(block.p - block.t).sum(1))
            return
        lack = block.p.copy()
        np.put_along_axis(lack, block.y[:, None], np.expm1(-block.nll)[:, None], 1)
        self.mean.add(block.row, np.square(lack).sum(1))


class Bin(NamedTuple):
    """The decisions whose largest probability lies in ``(low, high]``."""

    low: float
    high: float
    decisions: int
    confidence: float
    accuracy: float


class Calibration:
    """The expected calibration error ``Σ_b n_b/N |accuracy_b - confidence_b|`` of the most probable class, in equal-width bins.

    Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """

    def __init__(self) -> None:
        self._count, self._confidence, self._right = np.zeros((3, BINS))

    def add(self, block: Decisions) -> None:
        """Add decisions."""
        confidence = block.p_predicted
        bin_of = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        self._count += np.bincount(bin_of, minlength=BINS)
        self._confidence += np.bincount(bin_of, confidence, BINS)
        self._right += np.bincount(bin_of, block.right, BINS)

    @property
    def error(self) -> float:
        """The expected calibration error."""
        return float(np.abs(self._right - self._confidence).sum() / self._count.sum())

    def bins(self) -> list[Bin]:
        """The bins that are not empty."""
        each = zip(range(BINS), self._count, self._confidence, self._right, strict=True)
        return [Bin(b / BINS, (b + 1) / BINS, int(n), float(c / n), float(r / n)) for b, n, c, r in each if n]


# --- classes ----------------------------------------------------------------------------------------------------------


class ClassRow(NamedTuple):
    """What is known of a class."""

    label: int
    decisions: int  # that are this class
    named: int  # that are called this class
    recall: float
    precision: float
    f1: float
    nll_nats_mean: float  # of the decisions that are this class; with several labels a row, of all about it
    loss_share: float
    p_mean: float  # the probability it is given on average
    frequency: float
    taken_for: int | None


class Classes:
    """Counts for each class: how often it is right, is named, is both, what it costs, and what it is taken for.

    With several labels a row, ``class_of`` says which class a decision is a yes or no about, and what is counted are the yes.
    """

    def __init__(self, classes: int, class_of: Callable[[Ints], Ints] | None) -> None:
        self._columns, self._size, self._class_of = (
            class_of is not None,
            classes,
            class_of or (lambda position: position),
        )
        self._there, self._named, self._both, self._about = np.zeros((4, classes), np.int64)
        self._cost, self._p = np.zeros((2, classes))
        self._mass = np.zeros(classes)  # of the labels; of soft ones the sum of their weights
        self._usual = np.zeros((2, classes, 2 if class_of else 1))  # how often a label, and with how much probability
        small = not class_of and classes <= CONFUSED
        self._confused = np.zeros((classes, classes), np.int64) if small else None

    def add(self, block: Decisions) -> None:
        """Add decisions."""

        def count(at: Ints, weight: Array | None = None) -> Any:
            return np.bincount(at, weight, self._size)

        if self._columns:
            of, yes, named = self._class_of(block.position), block.y == 1, block.predicted == 1
            self._there += count(of[yes])
            self._named += count(of[named])
            self._p += count(of, block.p[:, 1])
        else:
            of, yes, named = block.y, np.ones(len(block), bool), block.right
            self._there += count(of)
            self._mass += count(of) if block.t is None else block.t.sum(0)
            self._named += count(block.predicted)
            self._p += block.p.sum(0)
        self._about += count(of)
        self._both += count(of[yes & named])
        self._cost += count(of, block.nll)
        width = self._usual.shape[2]
        cell = of * width + block.y if self._columns else block.y
        for total, weight in zip(self._usual, (None, block.p_true), strict=True):
            total += np.bincount(cell, weight, total.size).reshape(total.shape)
        if self._confused is not None:
            flat = np.bincount(block.y * self._size + block.predicted, minlength=self._size**2)
            self._confused += flat.reshape(self._size, self._size)

    def usual_p(self, example: Example) -> float:
        """Compute the mean probability of what an example is taken for where that is the label; nan where it never is."""
        k, at = (
            (int(self._class_of(np.asarray(example.position))), example.predicted)
            if self._columns
            else (example.predicted, 0)
        )
        count, total = self._usual[:, k, at]
        return float(total / count) if count else float("nan")

    @property
    def prior_entropy(self) -> float:
        """The entropy of the class frequencies, ``H(prior)``; of columns the mean of theirs."""
        if not self._columns:
            return reference.prior_entropy(self._mass)
        each = [
            reference.prior_entropy([yes, of - yes]) * of
            for yes, of in zip(self._there, self._about, strict=True)
            if of
        ]
        return float(sum(each) / self._about.sum())

    @property
    def missing(self) -> int:
        """How many classes are never a label."""
        return int((self._there == 0).sum())

    @property
    def confusion(self) -> list[list[int]] | None:
        """How often each class is predicted where each is the label, a list a label; None for more classes than people read."""
        if self._confused is None or self._size > SHOWN:
            return None
        counts: list[list[int]] = self._confused.tolist()
        return counts

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that occur or are named."""
        f1 = self._f1()
        return float(np.mean(f1[(self._there > 0) | (self._named > 0)])) if not self._columns else float(np.mean(f1))

    def _f1(self) -> Array:
        return np.asarray(2 * self._both / np.maximum(self._there + self._named, 1))

    def rows(self) -> list[ClassRow]:
        """Describe every class."""
        f1, total = self._f1(), self._cost.sum()
        with np.errstate(invalid="ignore"):
            recall, precision, nll = self._both / self._there, self._both / self._named, self._cost / self._about
            share = self._cost / total
            about = self._about if self._columns else np.full(self._size, self._about.sum())
            p, frequency = self._p / about, self._there / about
        return [
            ClassRow(
                k, int(self._there[k]), int(self._named[k]), float(recall[k]), float(precision[k]), float(f1[k]), float(nll[k]),
                float(share[k]), float(p[k]), float(frequency[k]), self._taken_for(k),
            )
            for k in range(self._size)
        ]  # fmt: skip

    def _taken_for(self, k: int) -> int | None:
        if self._confused is None:
            return None
        wrong = self._confused[k].copy()
        wrong[k] = 0
        return int(wrong.argmax()) if wrong.any() else None


# --- examples ---------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One decision."""

    row: int
    position: int
    true: int
    p_true: float
    predicted: int
    p_predicted: float
    loss_nats: float


class Largest:
    """Keeps the decisions with the largest of some number; among equals the first.

    >>> largest = Largest(1)
    >>> block = Decisions(np.array([0, 1]), np.array([0, 0]), np.log([[0.5, 0.5], [0.9, 0.1]]), np.array([0, 1]))
    >>> largest.add(block, block.nll)
    >>> largest.examples()[0].row
    1
    """

    def __init__(self, size: int) -> None:
        self._size, self._kept = size, np.zeros((0, 1 + len(Example._fields)))

    def add(self, block: Decisions, by: Array) -> None:
        """Add decisions and the number by which they are kept."""
        if not self._size:
            return
        least = self._kept[-1, 0] if len(self._kept) == self._size else -np.inf
        near = np.flatnonzero(by > least)
        if not len(near):
            return
        if len(near) > self._size:
            near = near[by[near] >= np.partition(by[near], -self._size)[-self._size]]
        columns = (block.row, block.position, block.y, block.p_true, block.predicted, block.p_predicted, block.nll)
        candidates = np.stack([by[near], *(column[near] for column in columns)], 1)
        both = np.concatenate([self._kept, candidates])
        self._kept = both[np.lexsort((both[:, 2], both[:, 1], -both[:, 0]))[: self._size]]

    def __len__(self) -> int:
        return len(self._kept)

    def examples(self) -> list[Example]:
        """Return them, the largest first."""
        return [
            Example(int(row), int(position), int(y), p, int(predicted), p_predicted, nll)
            for _, row, position, y, p, predicted, p_predicted, nll in self._kept.tolist()
        ]


class Suspects:
    """Suspected label errors among the decisions where another class has more probability than the label.

    How many there are is estimated by confident learning: the other class has at least as much as where it is the label, on average
    (Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021). Which they are is said by ``rule``:
    ``"self-confidence"``, the lowest probabilities of the label, or ``"confident-learning"``, those that were counted, sorted by
    how much more the other class has.
    """

    def __init__(self, rule: str) -> None:
        self._rule, self._counted, self._least_sure = rule, Largest(CANDIDATES), Largest(CANDIDATES)

    def add(self, block: Decisions) -> None:
        """Add decisions."""
        wrong = block.where(~block.right)
        if len(wrong):
            self._counted.add(wrong, wrong.p_predicted - wrong.p_true)
            self._least_sure.add(wrong, -wrong.p_true)

    @property
    def complete(self) -> bool:
        """Whether there was room for all candidates."""
        return len(self._counted) < CANDIDATES

    def examples(self, classes: Classes) -> list[Example]:
        """Return as many as are estimated, the likeliest first."""
        counted = [e for e in self._counted.examples() if e.p_predicted >= classes.usual_p(e)]
        return counted if self._rule == SUSPECTS[1] else self._least_sure.examples()[: len(counted)]
