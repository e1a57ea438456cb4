"""The scores of a classifier, from its log-probabilities ``(N, C)`` and the labels ``(N)``, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.reference import Array

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
