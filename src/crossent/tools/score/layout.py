"""How a row of a file becomes decisions: where the classes are, and how logits and labels belong together."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files import RowArray
from crossent.tools.score.options import ScoreOptions
from crossent.tools.shared_options import class_axis


class DecisionLayout(NamedTuple):
    """How a row of a file becomes decisions, each one label among ``choices`` classes.

    A row of logits ``(C)`` is one decision, ``(C, H, W)`` is H·W and ``(T, V)`` is T of them. With several labels a row every
    class is a decision between no and yes.
    """

    axis: int | None  # of the classes; None where every element is a decision of its own
    choices: int  # C, or 2 for no and yes
    positions: tuple[int, ...]  # the shape of a row's decisions
    one_hot: bool  # whether the labels have the shape of the logits
    shift: bool
    of_class: int | None = None  # the axis of the classes where each of them is a decision of its own

    def class_of(self, position: NDArray[Any]) -> NDArray[Any]:
        """Find the class that a decision of several labels is about: of an image (C, H, W) the channel of the pixel."""
        if self.of_class is None or len(self.positions) == 1:
            return position
        return np.asarray(np.unravel_index(position, self.positions)[self.of_class - 1])

    @property
    def classes(self) -> int:
        """Count the classes: the choices of a decision, or what there is a yes or no about."""
        return self.choices if self.of_class is None else self.positions[self.of_class - 1]

    @property
    def per_row(self) -> int:
        """Count the decisions of a row."""
        return prod(self.positions)


def decision_layout(logits: RowArray, labels: RowArray, options: ScoreOptions) -> DecisionLayout:
    """Find the classes and the decisions in the two shapes.

    Raises:
        FileError: the shapes do not belong together.
    """
    if options.task == "multilabel":
        return _multilabel(logits, labels, options.class_dim)
    if len(labels.shape) > len(logits.shape):
        raise FileError(
            f"{labels.name}: has shape {labels.shape}, and {logits.name} only {logits.shape}: logits first, then labels"
        )
    if len(logits.shape) < 2 or logits.shape == (len(logits), 1):
        raise FileError(
            f"{logits.name}: has one logit a row, which is no softmax but a yes or no: --task binary scores it with a sigmoid"
        )
    axis = class_axis("class_dim", options.class_dim, logits.shape, -1 if options.task == "lm" else 1, rows_first=True)
    outside = logits.shape[:axis] + logits.shape[axis + 1 :]
    one_hot = labels.shape == logits.shape
    if not one_hot and _squeezed(labels.shape, outside) != outside:
        raise FileError(
            f"{labels.name}: has shape {labels.shape}, but logits of shape {logits.shape} with the classes in axis {axis} need "
            f"labels of shape {outside}{_advice(logits, labels)}"
        )
    positions = outside[1:]
    if options.shift:
        if len(positions) != 1 or positions[0] < 2:
            raise FileError(f"{logits.name}: --shift needs logits of shape (N, T, V) with T ≥ 2, got {logits.shape}")
        positions = (positions[0] - 1,)
    return DecisionLayout(axis, logits.shape[axis], positions, one_hot, options.shift)


def class_axes(logits: RowArray, labels: RowArray) -> list[int]:
    """Find the axes of the logits that the labels do not have."""
    shape = logits.shape
    outside = [shape[:k] + shape[k + 1 :] for k in range(len(shape))]
    return [k for k, left in enumerate(outside) if _squeezed(labels.shape, left) == left]


def _advice(logits: RowArray, labels: RowArray) -> str:
    fits = class_axes(logits, labels)
    if 0 in fits:
        return ": the classes seem to come first, where the rows belong; save the logits transposed"
    return "".join(f": --class-dim {k} would fit" for k in fits[-1:])


def _multilabel(logits: RowArray, labels: RowArray, dim: int | None) -> DecisionLayout:
    shape = logits.shape if len(logits.shape) > 1 else (len(logits), 1)
    of_class = class_axis("class_dim", dim, shape, 1, rows_first=True)
    one_class = labels.shape == (len(logits),) and shape == (len(logits), 1)
    one_channel = len(shape) > 2 and shape[1] == 1 and labels.shape == shape[:1] + shape[2:]
    if not (_squeezed(labels.shape, logits.shape) == logits.shape or labels.shape == shape or one_class or one_channel):
        raise FileError(
            f"{labels.name}: has shape {labels.shape}, but --task multilabel needs zeros and ones of shape {logits.shape}"
        )
    return DecisionLayout(None, 2, shape[1:], False, False, of_class)


def _squeezed(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Drop a last axis of 1, as in labels of shape (N, 1)."""
    return shape[:-1] if len(shape) == len(wanted) + 1 and shape[-1] == 1 else shape
