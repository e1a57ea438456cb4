"""What values do not show: the task, the settings of the loss, and what the axes of two shapes mean.

Shapes that torch refuses are understood where only one reading is possible, and told. Nothing else is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent.tools import shared_options
from crossent.tools.files import Table


@dataclass(frozen=True, eq=False)
class Options:
    """How the loss is computed.

    Attributes:
        task: ``"multiclass"``, a softmax, with class indices or probabilities; ``"binary"`` or ``"multilabel"``, a sigmoid for
            every logit; ``"lm"``, a softmax over the last axis of ``(B, T, V)``, with token ids ``(B, T)``.
        dim: the class axis; None is torch's, 1, or 0 for one axis, and the last for language models.
        weight: class weights ``(C)``.
        pos_weight: of the binary loss.
        label_smoothing: ``ε``.
        ignore_index: of the rows that count for nothing; None is -100 for a softmax and none for a sigmoid.
        shift: whether the loss pairs the logits of position t with the label of t + 1 (language models).
        inputs: the token ids that the model was given, of the labels' shape.
        micro_batch: how many rows the loss is averaged over at a time.
        losses: values of the loss in the order of training.
        loss_dtype: the dtype in which the loss is computed, such as ``"float32"``; None is that of the logits.
        live: whether crossent is computing it right now, for a model that may not have been trained yet.
    """

    task: str = "multiclass"
    dim: int | None = None
    weight: NDArray[np.float64] | None = None
    pos_weight: NDArray[np.float64] | None = None
    label_smoothing: float = 0.0
    ignore_index: float | None = None
    shift: bool = False
    inputs: NDArray[Any] | None = None
    micro_batch: int | None = None
    losses: Sequence[float] = ()
    loss_dtype: str | None = None
    live: bool = False

    def __post_init__(self) -> None:
        shared_options.check_choice("task", self.task, shared_options.TASKS)
        shared_options.check_label_smoothing(self.label_smoothing)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1 row, got {self.micro_batch}")
        if (self.shift or self.inputs is not None) and self.task != "lm":
            raise ValueError(f"shift and inputs are about tokens: they need task='lm', got {self.task!r}")
        if self.weight is not None:  # a loss that is being computed with an infinite one has a mistake to be found
            shared_options.check_class_weights(self.weight, infinite=True)

    @property
    def binary(self) -> bool:
        """Whether the loss is a sigmoid's."""
        return self.task in ("binary", "multilabel")

    @property
    def ignored(self) -> float | None:
        """The label that counts for nothing."""
        return shared_options.IGNORE_INDEX if self.ignore_index is None and not self.binary else self.ignore_index

    @property
    def plain(self) -> bool:
        """Whether the loss is the plain mean of ``-log p``, whose usual values are known."""
        no_weights = self.weight is None and self.pos_weight is None
        return no_weights and self.label_smoothing == 0


NAMES = tuple(each.name for each in fields(Options))


@dataclass(frozen=True)
class Layout:
    """How an array of logits becomes rows of classes, and what a target has to do with them.

    Attributes:
        shape: of the logits.
        axis: of the classes; None where every logit is a row of its own.
        num_classes: ``C``.
        rows: the shape of the rows.
        kind: of the target: ``"indices"``, ``"weights"`` of the logits' shape, or ``""`` for none that can be used.
        misfit: what torch would refuse, and the fix.
        misread: the same, where the classes are on another axis than torch takes.
    """

    shape: tuple[int, ...]
    axis: int | None
    num_classes: int
    rows: tuple[int, ...]
    kind: Literal["", "indices", "weights"] = ""
    misfit: Misfit | None = None
    misread: Misfit | None = None

    @property
    def row_size(self) -> int:
        """How many rows one entry of the leading axis holds."""
        return prod(self.rows[1:])

    @property
    def square(self) -> bool:
        """Whether batch × time × classes and batch × classes × time cannot be told apart."""
        return len(self.shape) == 3 and self.axis == 1 and self.shape[1] == self.shape[2] > 1 and self.kind == "indices"


class Misfit(NamedTuple):
    """Shapes or dtypes that do not belong together, and the fix."""

    seen: str
    fix: str


def layout_of(logits: Table, target: Table | None, options: Options) -> Layout:
    """Find the classes and the rows in the two shapes.

    Raises:
        ValueError: there is nothing to look at.
    """
    if not logits.shape or 0 in logits.shape:
        raise ValueError(f"logits must have a value at least, got shape {logits.shape}")
    layout = _binary(logits, target, options) if options.binary else _softmax(logits, target, options)
    if options.weight is not None and not options.binary:
        shared_options.check_weight_count(options.weight, layout.num_classes, logits.name)
    if options.inputs is not None and target is not None and options.inputs.shape != target.shape:
        raise ValueError(f"inputs must have the shape of the labels {target.shape}, got {options.inputs.shape}")
    if options.shift and layout.kind == "weights":
        raise ValueError(f"shift=True is for token ids (B, T), got a target of the logits' shape {layout.shape}")
    if options.shift and layout.kind:
        return replace(layout, rows=(layout.rows[0], layout.rows[1] - 1))
    return layout


def _binary(logits: Table, target: Table | None, options: Options) -> Layout:
    """Lay out the logits of a sigmoid: targets have their shape."""
    shape = logits.shape
    if len(shape) == 1:
        layout = Layout(shape, None, 1, shape)
    else:
        axis = shared_options.class_axis("dim", options.dim, shape, 1)
        layout = Layout(shape, axis, shape[axis], shape[:axis] + shape[axis + 1 :])
    if target is None:
        return layout
    if target.shape == shape:
        misfit = None if _floating(target) else Misfit(f"a target of dtype {target.dtype}", "target.float()")
        return _with(layout, "weights", misfit)
    fix = "give every logit its own target; for one class index a row use cross_entropy"
    if prod(target.shape) == prod(shape):
        fix = f"target.reshape{shape}, or the logits with reshape{target.shape}"
    seen = f"a target of shape {target.shape} for logits of shape {shape}"
    return _with(layout, "weights" if prod(target.shape) == prod(shape) else "", Misfit(seen, fix))


def _softmax(logits: Table, target: Table | None, options: Options) -> Layout:
    """Lay out the logits of a softmax, as torch does where it can."""
    shape, lm = logits.shape, options.task == "lm"
    axis = shared_options.class_axis("dim", options.dim, shape, -1 if lm else min(len(shape) - 1, 1))
    layout = _at(shape, axis)
    if options.shift and not (len(shape) == 3 and axis == 2 and shape[1] > 1):
        raise ValueError(f"shift=True needs logits of shape (B, T, V) with T ≥ 2, got {shape}")
    if target is None:
        return layout
    outside, seen = layout.rows, f"a target of shape {target.shape} for logits of shape {shape}"
    if target.shape == shape:
        fix = "target.float(), for probabilities"
        if len(shape) == 1:
            fix = "one logit for each label is a yes or no: binary_cross_entropy_with_logits; check it with task binary"
        whole = Misfit(f"a target of dtype {target.dtype} that has the logits' shape", fix)
        return _with(layout, "weights", None if _floating(target) else whole)
    if target.shape == outside or (len(shape) == 1 and target.shape == (1,)):
        floating = Misfit(f"class indices of dtype {target.dtype}", "target.long()")
        return _with(layout, "indices", floating if _floating(target) else None)
    if 1 in target.shape and _without_ones(target.shape) == _without_ones(outside):
        return _with(layout, "indices", Misfit(seen, f"drop the dimension of size 1 with target.reshape{outside}"))
    if options.dim is None and len(shape) > 2 and target.shape == shape[:-1]:
        fix = "logits.movedim(-1, 1) for torch, or dim=-1 for crossent.cross_entropy"
        misread = Misfit(f"{seen}: the classes are on the last axis, and torch takes axis 1", fix)
        return _with(_at(shape, len(shape) - 1), "indices", misread=misread)
    fix = f"class indices need shape {outside}, probabilities {shape}; dim= names another class axis"
    return _with(layout, "", Misfit(seen, fix))


def _at(shape: tuple[int, ...], axis: int) -> Layout:
    return Layout(shape, axis, shape[axis], shape[:axis] + shape[axis + 1 :])


def _with(layout: Layout, kind: Any, misfit: Misfit | None = None, misread: Misfit | None = None) -> Layout:
    return replace(layout, kind=kind, misfit=misfit, misread=misread)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _floating(table: Table) -> bool:
    return "float" in table.dtype
