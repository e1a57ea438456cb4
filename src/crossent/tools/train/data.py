"""The digits: a stratified split into training, validation and test, fixed by a seed."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FRACTIONS = (0.6, 0.2, 0.2)


class Subset(NamedTuple):
    """Some rows of a data set: their positions in it, their inputs and their labels."""

    position: Tensor
    inputs: Tensor
    labels: Tensor


class Split(NamedTuple):
    """Three parts without a common row: to train on, to choose by, and to report."""

    train: Subset
    validation: Subset
    test: Subset


def stratified_split(
    labels: NDArray[np.int64], seed: int, fractions: tuple[float, ...] = FRACTIONS
) -> list[NDArray[np.int64]]:
    """Deal the rows of each class at random to parts of the given fractions; the same seed deals the same way.

    >>> [part.tolist() for part in stratified_split(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), seed=0)]
    [[2, 3, 4, 6, 7, 9], [0, 5], [1, 8]]
    """
    rng = np.random.default_rng(seed)
    cuts = np.cumsum(fractions)[:-1]
    dealt: list[list[NDArray[np.int64]]] = [[] for _ in fractions]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(dealt, np.split(rows, np.rint(cuts * len(rows)).astype(int)), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(pieces)) for pieces in dealt]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Load scikit-learn's 1 797 handwritten digits: images ``(N, 8, 8)`` of ink from 0 to 16, and their labels."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32), torch.tensor(bunch.target, dtype=torch.int64)


def load_digits(seed: int) -> Split:
    """Split the digits, centred and scaled by the training part's statistics."""
    images, labels = digits()
    images = images.unsqueeze(1)
    parts = [torch.from_numpy(index) for index in stratified_split(labels.numpy(), seed)]
    training = images[parts[0]]
    images = (images - training.mean()) / training.std()
    return Split(*(Subset(index, images[index], labels[index]) for index in parts))
