"""Whether labels suit the logits better in another order, of rows or of classes, or with another sign; and what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent import reference
from crossent.reference import Array
from crossent.tools.check.other_rows import CLASSES, Knowledge
from crossent.tools.check.row_block import Ints, RowBlock
from crossent.tools.check.running_mean import RunningMean

SMALL = 512  # classes, up to which every pair of label and prediction is counted
LABELS = 1 << 17  # labels, up to which other orders are tried
IMPOSSIBLE = 1e3  # what a class of probability 0 costs in a sum


def other_orders(labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Bring labels ``(N, ...)`` into the orders that they are usually in by mistake."""
    n = len(labels)
    as_text = np.array(sorted(range(n), key=str))
    orders = {
        f"{abs(k)} row{'s' * (abs(k) > 1)} {'up' if k > 0 else 'down'}": np.roll(np.arange(n), -k)
        for k in (1, -1, 2, -2)
    }
    orders["in reverse"] = np.arange(n)[::-1]
    orders["sorted as text, 0, 1, 10, 11, 2"] = as_text
    orders["sorted as numbers, out of the order of text"] = np.argsort(as_text)
    found = {name: labels[order] for name, order in orders.items()}
    if labels.ndim == 2 and labels.shape[0] == labels.shape[1]:
        found["transposed, labels.T"] = labels.T
    return found


@dataclass
class Match:
    """How well labels suit the logits."""

    loss: RunningMean = field(default_factory=RunningMean)
    right: int = 0

    def add(self, cost: Array, x: Array, y: Ints) -> None:
        """Look at rows with the labels that are tried."""
        self.loss.add(cost[np.arange(len(y)), y])
        self.right += int((x.argmax(1) == y).sum())


@dataclass
class MatchFacts:
    """What is predicted, and other labels that were tried.

    Attributes:
        num_classes: ``C``.
        predicted: how often each class has the largest logit; of a sigmoid how often it is yes.
        rows: how many rows were looked at.
        confused: how often a label is predicted as each class, where there are few classes.
        cost: the sums of what each class costs in the rows of a label.
        negated: with the logits of the opposite sign.
        elsewhere: with the labels in another order, by its name.
        knowledge: what the logits say about these other labels beyond their own, where there are few classes.
    """

    num_classes: int
    predicted: Array = field(init=False)
    rows: int = 0
    confused: Array | None = None
    cost: Array | None = None
    negated: Match = field(default_factory=Match)
    elsewhere: dict[str, Match] = field(default_factory=dict)
    knowledge: dict[str, Knowledge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.predicted = np.zeros(self.num_classes)
        if self.num_classes <= SMALL:
            self.confused, self.cost = np.zeros((2, self.num_classes, self.num_classes))

    def add(self, block: RowBlock, others: dict[str, Ints]) -> None:
        """Look at some rows, and at labels from other places."""
        good = block.counts & np.isfinite(block.x).any(1) & ~np.isnan(block.x).any(1)
        x, cost = block.x[good], block.cost[good]
        self.rows += len(x)
        if block.binary:
            self.predicted += (x > 0).sum(0)
            if block.raw is not None:
                self.negated.loss.add(reference.sigmoid_cross_entropy(-x, block.t[good]).loss)
                self.negated.right += int(((x <= 0) == (block.t[good] > 0.5)).sum())
            return
        predicted = x.argmax(1)
        self.predicted += np.bincount(predicted, minlength=self.num_classes)
        if not block.indices or self.confused is None or self.cost is None:
            return
        y = block.y[good]
        np.add.at(self.confused, (y, predicted), 1)
        np.add.at(self.cost, y, np.minimum(cost, IMPOSSIBLE))
        finite = np.isfinite(x).all(1)
        self.negated.add(reference.surprisal(-x[finite]), -x[finite], y[finite])
        for name, labels in others.items():
            there = labels[good]
            usable = there >= 0
            self.elsewhere.setdefault(name, Match()).add(cost[usable], x[usable], there[usable])
            usable &= finite
            if self.num_classes <= CLASSES:
                self.knowledge.setdefault(name, Knowledge(self.num_classes)).add(x[usable], y[usable], there[usable])

    def permutation(self) -> tuple[Ints, float, float] | None:
        """Find which class of the logits each label stands for, with the accuracy and the mean loss if the labels are read so.

        Pairs are taken by how often they occur. A label that does not occur keeps what is left.
        """
        if self.confused is None or self.cost is None or not self.confused.sum():
            return None
        order = np.full(self.num_classes, -1, np.int64)
        taken = np.zeros(self.num_classes, bool)
        for flat in np.argsort(-self.confused, axis=None, kind="stable"):
            label, predicted = map(int, np.divmod(flat, self.num_classes))
            if self.confused[label, predicted] == 0:
                break
            if order[label] < 0 and not taken[predicted]:
                order[label], taken[predicted] = predicted, True
        for left in np.flatnonzero(order < 0):
            order[left] = left if not taken[left] else np.flatnonzero(~taken)[0]
            taken[order[left]] = True
        total, labels = float(self.confused.sum()), np.arange(self.num_classes)
        return order, float(self.confused[labels, order].sum()) / total, float(self.cost[labels, order].sum()) / total


def named_permutation(order: Ints, occurs: NDArray[np.bool_], name: Callable[[int], str]) -> str:
    """Describe which class of the logits each label stands for."""
    classes = len(order)
    labels = np.flatnonzero(occurs)
    shifts = {int((order[k] - k) % classes) for k in labels}
    if len(shifts) == 1:
        shift = next(iter(shifts))
        shift = shift - classes if shift > classes // 2 else shift
        return f"label + {shift} modulo C" if shift > 0 else f"label − {-shift} modulo C"
    as_text = np.array(sorted(range(classes), key=str))
    if all(order[k] == as_text[k] for k in labels) or all(as_text[order[k]] == k for k in labels):
        return "the order of the numbers as text, 0, 1, 10, 11, 2"
    if all(order[k] == classes - 1 - k for k in labels):
        return "the reverse order, C − 1 − label"
    moved = [f"{name(int(k))} → {name(int(order[k]))}" for k in labels if order[k] != k]
    return ", ".join(moved[:12]) + (", …" if len(moved) > 12 else "")
