"""What the rows of a file mean: the options of ``score``, and the layout they give to logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent.tools import shared_options
from crossent.tools.files import FileError, Table
from crossent.tools.shared_options import OptionError

INPUTS = ("logits", "probs", "logprobs")


@dataclass(frozen=True)
class Options:
    """How to read the numbers of a file, and what to show of them.

    Attributes:
        input: what the values are: ``"logits"``, ``"probs"`` or ``"logprobs"``. It is never guessed.
        task: ``"multiclass"``, one label a row; ``"multilabel"``, any number of labels a row,
            or ``"binary"``, the same; ``"lm"``, one label a token.
        shift: whether the logits of a token are about the next one: the first label and the last logits are dropped.
        class_dim: the axis of the classes; None is 1, and the last for language models.
        ignore_index: what has this label counts for nothing.
        weight: class weights of the training loss.
        label_smoothing: ``ε`` of the training loss.
        class_names: one for each class.
        top: how many of the worst examples, suspected label errors and, of many, classes to keep.
        bytes: of how many bytes of text the tokens are, for the loss per byte.
    """

    input: str = "logits"
    task: str = "multiclass"
    shift: bool = False
    class_dim: int | None = None
    ignore_index: int = shared_options.IGNORE_INDEX
    weight: NDArray[np.float64] | None = None
    label_smoothing: float = 0.0
    class_names: Sequence[str] | None = None
    top: int = 10
    bytes: int | None = None

    def __post_init__(self) -> None:
        shared_options.check_choice("input", self.input, INPUTS)
        shared_options.check_choice("task", self.task, shared_options.TASKS)
        if self.task == "binary":  # another word for it, as in check
            object.__setattr__(self, "task", "multilabel")
        shared_options.check_label_smoothing(self.label_smoothing)
        if self.weight is not None:
            shared_options.check_class_weights(self.weight)
        if self.weight is not None and self.task == "multilabel":
            raise OptionError("weight", "belongs to the softmax, one label a row; leave it out for task multilabel")
        if self.shift and self.task != "lm":
            raise OptionError("shift", "is for tokens: it needs task lm")
        if self.class_dim is not None and self.task == "multilabel":
            raise OptionError(
                "class_dim", "is for the softmax; task multilabel takes labels of the shape of the logits"
            )
        if self.top < 0:
            raise OptionError("top", f"must be 0 or more, got {self.top}")
        if self.bytes is not None and self.bytes < 1:
            raise OptionError("bytes", f"must be 1 or more, got {self.bytes}")


class Layout(NamedTuple):
    """How a row of a file becomes decisions, each one label among ``choices`` classes.

    A row of logits ``(C)`` is one decision, ``(C, H, W)`` is H·W and ``(T, V)`` is T of them. With several labels a row every
    class is a decision between no and yes.
    """

    axis: int | None  # of the classes; None where every element is a decision of its own
    choices: int  # C, or 2 for no and yes
    positions: tuple[int, ...]  # the shape of a row's decisions
    one_hot: bool  # whether the labels have the shape of the logits
    shift: bool

    @property
    def per_row(self) -> int:
        """Count the decisions of a row."""
        return prod(self.positions)


def layout_of(logits: Table, labels: Table, options: Options) -> Layout:
    """Find the classes and the decisions in the two shapes.

    Raises:
        FileError: the shapes do not belong together.
    """
    if options.task == "multilabel":
        return _multilabel(logits, labels)
    if len(labels.shape) > len(logits.shape):
        raise FileError(
            f"{labels.name}: has shape {labels.shape}, and {logits.name} only {logits.shape}: logits first, then labels"
        )
    if len(logits.shape) < 2 or logits.shape == (len(logits), 1):
        raise FileError(
            f"{logits.name}: has one logit a row, which is no softmax but a yes or no: --task binary scores it with a sigmoid"
        )
    axis = _class_axis(logits, options)
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
    return Layout(axis, logits.shape[axis], positions, one_hot, options.shift)


def class_axes(logits: Table, labels: Table) -> list[int]:
    """Find the axes of the logits that the labels do not have."""
    shape = logits.shape
    outside = [shape[:k] + shape[k + 1 :] for k in range(len(shape))]
    return [k for k, left in enumerate(outside) if _squeezed(labels.shape, left) == left]


def _advice(logits: Table, labels: Table) -> str:
    fits = class_axes(logits, labels)
    if 0 in fits:
        return ": the classes seem to come first, where the rows belong; save the logits transposed"
    return "".join(f": --class-dim {k} would fit" for k in fits[-1:])


def _multilabel(logits: Table, labels: Table) -> Layout:
    shape = logits.shape if len(logits.shape) > 1 else (len(logits), 1)
    one_class = labels.shape == (len(logits),) and shape == (len(logits), 1)
    if _squeezed(labels.shape, logits.shape) != logits.shape and labels.shape != shape and not one_class:
        raise FileError(
            f"{labels.name}: has shape {labels.shape}, but --task multilabel needs zeros and ones of shape {logits.shape}"
        )
    return Layout(None, 2, shape[1:], False, False)


def _class_axis(logits: Table, options: Options) -> int:
    usual = len(logits.shape) - 1 if options.task == "lm" else 1
    return shared_options.class_axis("class_dim", options.class_dim, logits.shape, usual, rows_first=True)


def _squeezed(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Drop a last axis of 1, as in labels of shape (N, 1)."""
    return shape[:-1] if len(shape) == len(wanted) + 1 and shape[-1] == 1 else shape
