"""How an array of logits becomes rows of classes, and whether the shape of the target belongs to it.

A shape that torch refuses is understood where only one reading is possible, and it is reported. Nothing else is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple

from crossent.core.messages import layout_fix
from crossent.tools.check.options import CheckOptions
from crossent.tools.files import RowArray
from crossent.tools.shared_options import check_weight_count, class_axis


@dataclass(frozen=True)
class RowLayout:
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


def row_layout(logits: RowArray, target: RowArray | None, options: CheckOptions) -> RowLayout:
    """Find the classes and the rows in the two shapes.

    Raises:
        ValueError: there is nothing to look at.
    """
    if not logits.shape or 0 in logits.shape:
        raise ValueError(f"logits must hold at least one value, got shape {logits.shape}")
    layout = _binary(logits, target, options) if options.binary else _softmax(logits, target, options)
    if options.weight is not None and not options.binary:
        check_weight_count(options.weight, layout.num_classes, logits.name)
    if options.inputs is not None and target is not None and options.inputs.shape != target.shape:
        raise ValueError(f"inputs must have the shape of the labels {target.shape}, got {options.inputs.shape}")
    if options.shift and layout.kind == "weights":
        raise ValueError(f"shift=True is for token ids (B, T), got a target of the logits' shape {layout.shape}")
    if options.shift and layout.kind:
        return replace(layout, rows=(layout.rows[0], layout.rows[1] - 1))
    return layout


def _binary(logits: RowArray, target: RowArray | None, options: CheckOptions) -> RowLayout:
    """Lay out the logits of a sigmoid: targets have their shape."""
    shape = logits.shape
    if len(shape) == 1:
        layout = RowLayout(shape, None, 1, shape)
    else:
        axis = class_axis("dim", options.dim, shape, 1)
        layout = RowLayout(shape, axis, shape[axis], shape[:axis] + shape[axis + 1 :])
    if target is None:
        return layout
    if target.shape == shape:
        misfit = None if _floating(target) else Misfit(f"a target of dtype {target.dtype}", "target.float()")
        return _with(layout, "weights", misfit)
    fix = "give every logit its own target; for one class index a row use cross_entropy"
    if prod(target.shape) == prod(shape):
        fix = (
            layout_fix("target", target.shape, shape)
            or "the dimensions of the target must be in the order of those of the logits"
        )
    seen = f"a target of shape {target.shape} for logits of shape {shape}"
    in_order = _without_ones(target.shape) == _without_ones(shape)
    return _with(layout, "weights" if in_order else "", Misfit(seen, fix))


def _softmax(logits: RowArray, target: RowArray | None, options: CheckOptions) -> RowLayout:
    """Lay out the logits of a softmax, as torch does where it can."""
    shape, lm = logits.shape, options.task == "lm"
    axis = class_axis("dim", options.dim, shape, -1 if lm else min(len(shape) - 1, 1))
    layout = _at(shape, axis)
    if options.shift and not (len(shape) == 3 and axis == 2 and shape[1] > 1):
        raise ValueError(f"shift=True needs logits of shape (B, T, V) with T ≥ 2, got {shape}")
    if target is None:
        return layout
    outside, seen = layout.rows, f"a target of shape {target.shape} for logits of shape {shape}"
    if target.shape == shape:
        fix = "target.float(), for probabilities"
        if len(shape) == 1:
            fix = "for one logit a label use binary_cross_entropy_with_logits, and check it with task binary"
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
    if prod(target.shape) == prod(outside):
        fix = layout_fix("target", target.shape, outside) or fix
    return _with(layout, "", Misfit(seen, fix))


def _at(shape: tuple[int, ...], axis: int) -> RowLayout:
    return RowLayout(shape, axis, shape[axis], shape[:axis] + shape[axis + 1 :])


def _with(layout: RowLayout, kind: Any, misfit: Misfit | None = None, misread: Misfit | None = None) -> RowLayout:
    return replace(layout, kind=kind, misfit=misfit, misread=misread)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _floating(table: RowArray) -> bool:
    return "float" in table.dtype
