"""The scores of a classifier, from its log-probabilities ``(N, C)`` and the labels ``(N)``, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent.reference import Array, Bools

Labels = NDArray[np.int64]

BINS = 15


def accuracy(log_p: Array, labels: Labels) -> float:
    """Count the share of rows whose most probable class is the label.

    >>> accuracy(np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    0.5
    """
    return float(np.mean(log_p.argmax(1) == labels))


def nll(log_p: Array, labels: Labels) -> float:
    """Compute the mean of ``-log p`` over the labels, in nats.

    >>> round(nll(np.log([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])), 4)
    0.4904
    """
    return float(-np.mean(log_p[np.arange(len(labels)), labels]))


def calibration_error(log_p: Array, labels: Labels, bins: int = BINS) -> float:
    """Compute the top-label expected calibration error ``Σ_b n_b/N |accuracy_b - confidence_b|`` over equal-width bins.

    The confidence of a row is its largest probability; bin b holds those in ``(b/bins, (b+1)/bins]``.

    >>> round(calibration_error(np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])), 4)
    0.35
    """
    confidence = np.exp(log_p.max(1))
    if not np.isfinite(confidence).all():
        return float("nan")
    surplus = confidence - (log_p.argmax(1) == labels)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(bin_of, surplus, bins)).sum() / len(labels))


def epochs_to(accuracies: tuple[float, ...], level: float) -> int | None:
    """Find the first epoch, counted from 1, that ends at this accuracy or better.

    >>> epochs_to((0.4, 0.92, 0.89), 0.9)
    2
    """
    return next((epoch for epoch, reached in enumerate(accuracies, 1) if reached >= level), None)


def recalls(predicted: Labels, labels: Labels, num_classes: int) -> Array:
    """Compute the share of each class's rows that are found; nan for a class without rows.

    >>> recalls(np.array([0, 1, 1]), np.array([0, 0, 1]), 3)
    array([0.5, 1. , nan])
    """
    rows = np.bincount(labels, minlength=num_classes)
    found = np.bincount(labels[predicted == labels], minlength=num_classes)
    return np.where(rows > 0, found / np.maximum(rows, 1), np.nan)


def balanced_shares(right: Bools, labels: Labels) -> Array:
    """Weigh rows so that their mean is the mean of the classes' recalls: the balanced accuracy.

    >>> balanced_shares(np.array([True, False, True]), np.array([0, 0, 1]))
    array([0.75, 0.  , 1.5 ])
    """
    present, rows = np.unique(labels, return_counts=True)
    weight = len(labels) / (len(present) * rows)
    return np.asarray(right * weight[np.searchsorted(present, labels)])


# --- several labels a row ---------------------------------------------------------------------------------------------


def exact(p: Array, hot: Bools, threshold: float) -> Bools:
    """Say of the rows whether the classes with at least this probability are exactly their labels.

    >>> exact(np.array([[0.6, 0.4], [0.6, 0.6]]), np.array([[True, False], [True, False]]), 0.5)
    array([ True, False])
    """
    return np.asarray(((p >= threshold) == hot).all(1))


def best_threshold(p: Array, hot: Bools) -> float:
    """Choose, of 0.01 to 0.99, the threshold with most exact rows; among equals the middle one.

    >>> best_threshold(np.array([[0.6, 0.3], [0.7, 0.9]]), np.array([[True, False], [True, True]]))
    0.45
    """
    thresholds = np.arange(1, 100) / 100
    rows = np.array([exact(p, hot, threshold).sum() for threshold in thresholds])
    best = np.flatnonzero(rows == rows.max())
    return float(thresholds[best[(len(best) - 1) // 2]])


def exact_if_told(p: Array, hot: Bools) -> Bools:
    """Say of the rows whether their M most probable classes are their M labels.

    >>> exact_if_told(np.array([[0.2, 0.1, 0.3], [0.2, 0.1, 0.3]]), np.array([[True, False, True], [True, False, False]]))
    array([ True, False])
    """
    rank = (-p).argsort(1, kind="stable").argsort(1)
    return np.asarray(((rank < hot.sum(1, keepdims=True)) == hot).all(1))


def average_precision(p: Array, truth: Bools) -> float:
    """Average the precision over the rows that are true, these sorted by probability, equal ones together.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])) == (1 + 2 / 3) / 2
    True
    """
    order = np.argsort(-p, kind="stable")
    hits, last_of_equals = np.cumsum(truth[order]), np.append(np.diff(p[order]) != 0, True)
    precision = hits[last_of_equals] / (np.flatnonzero(last_of_equals) + 1)
    return float((np.diff(hits[last_of_equals], prepend=0) * precision).sum() / truth.sum())


def mean_average_precision(p: Array, hot: Bools) -> float:
    """Average the average precision over the classes that occur."""
    return float(np.mean([average_precision(p[:, k], hot[:, k]) for k in range(p.shape[1]) if hot[:, k].any()]))


# --- a class a pixel --------------------------------------------------------------------------------------------------


def confusions(predicted: Labels, labels: Labels, num_classes: int, ignore: int) -> Labels:
    """Count for each canvas how many pixels of each class, the row, are given each class, the column.

    >>> confusions(np.array([[0, 1, 1, 1]]), np.array([[0, 0, 1, 255]]), 2, ignore=255)
    array([[[1, 1],
            [0, 1]]])
    """
    canvas = np.broadcast_to(np.arange(len(labels)).reshape(-1, *[1] * (labels.ndim - 1)), labels.shape)
    kept = labels != ignore
    cell = (canvas[kept] * num_classes + labels[kept]) * num_classes + predicted[kept]
    counts = np.bincount(cell, minlength=len(labels) * num_classes**2)
    return counts.reshape(len(labels), num_classes, num_classes)


class PixelScores(NamedTuple):
    """The scores of each class: what both call it over what either does, what is found of it, what is right of it."""

    iou: Array
    recall: Array
    precision: Array


def pixel_scores(confusion: Labels) -> PixelScores:
    """Score each class; nan where a class does not occur, a precision of 0 where it is never named.

    >>> [each.tolist() for each in pixel_scores(np.array([[2, 1], [0, 1]]))]
    [[0.6666666666666666, 0.5], [0.6666666666666666, 1.0], [1.0, 0.5]]
    """
    right, there, named = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        return PixelScores(
            right / np.where(there, there + named - right, 0), right / there, right / np.maximum(named, 1)
        )


# --- pieces of a test part --------------------------------------------------------------------------------------------


def block_means(value: Array | Bools, blocks: int) -> Array:
    """Average over the blocks in which the rows lie, as many rows in each.

    >>> block_means(np.array([1.0, 3.0, 5.0, 5.0]), 2)
    array([2., 5.])
    """
    return np.asarray(value.reshape(blocks, -1).mean(1))


def jackknife(score: Callable[[Bools], float], blocks: int, rows: int) -> Array:
    """Share a score among blocks of rows by leaving out each: ``B·score - (B - 1)·score without it``, a pseudo-value.

    For a mean over rows they are the blocks' means, and their mean is the score; for others, up to a bias of order 1/B.

    >>> values = np.array([1.0, 3.0, 5.0, 5.0])
    >>> jackknife(lambda keep: values[keep].mean(), blocks=2, rows=4)
    array([2., 5.])
    """
    block = np.arange(rows) * blocks // rows
    whole = score(block >= 0)
    return np.array([blocks * whole - (blocks - 1) * score(block != b) for b in range(blocks)])


# --- rows that are sorted by suspicion --------------------------------------------------------------------------------


def precision_and_recall(hits: Bools, k: int) -> tuple[float, float]:
    """Count, of rows sorted by suspicion, the share of hits in the first k, and the share of the hits that they hold.

    >>> precision_and_recall(np.array([True, False, True, False]), k=3)
    (0.6666666666666666, 1.0)
    """
    inside = int(hits[:k].sum())
    return inside / k, inside / int(hits.sum())
