"""``explain`` and what it returns: the numbers of every loss for one row, and the ways to show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossent import reference
from crossent.core.names import only_its_keywords
from crossent.reference import Array
from crossent.tools.arrays import read_array, to_numpy
from crossent.tools.explain.catalogue import DEFAULT, LOSSES, LossDescription, find_losses
from crossent.tools.explain.loss_terms import add, compute, objection, probabilities
from crossent.tools.explain.row_numbers import LossExplanation, References, RowNumbers
from crossent.tools.explain.row_target import RowTarget, read_target
from crossent.tools.inputs import IN_PERCENT, ValueRange, log_probabilities, no_probabilities, percentages
from crossent.tools.kinds import argument_kinds
from crossent.tools.shared_options import IGNORE_INDEX, INPUTS, OptionError, check_choice, class_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType

    from crossent.tools.explain.plot import ExplanationDisplay


@dataclass(frozen=True, repr=False)
class Explanation(RowNumbers):
    """What each loss tells each class of one row, and what one gradient step makes of it.

    ``print`` it, end a notebook cell with it, ``plot`` it, or take its numbers: ``explanation["ce"].gradient``.

    Attributes:
        logits: ``x``.
        class_names: one for each class.
        labels: the classes that are true, or None if the target is weights.
        weights: the target as one weight a class, before a loss makes its ``t`` of it.
        step: the size of the gradient step.
        losses: one for each loss.
        references: losses to compare with.
        notes: what was left out, and why.
    """

    def __str__(self) -> str:
        from crossent.tools.explain.terminal import show
        from crossent.tools.terminal import plain_text

        return plain_text(partial(show, self))

    __repr__ = __str__

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from crossent.tools.explain.terminal import parts

        return Group(*parts(self))

    def _repr_html_(self) -> str:
        from crossent.tools.explain.notebook import fragment

        return fragment(self)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """Write an interactive page that shows the push of each loss: one file that needs no network.

        Args:
            path: where to write it; None only returns it.

        Returns:
            The page.
        """
        from crossent.tools.explain.page import explanation_page

        text = explanation_page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def plot(self, ax: Axes | None = None) -> ExplanationDisplay:
        """Draw the push of each loss on each class, as scikit-learn's displays do.

        Args:
            ax: matplotlib axes to draw on; None makes a figure.

        Returns:
            The display, with ``ax_`` and ``figure_``.

        Raises:
            ImportError: matplotlib is missing.
        """
        from crossent.tools.explain.plot import ExplanationDisplay

        return ExplanationDisplay(self).plot(ax)


@only_its_keywords
@argument_kinds(
    losses="a text or a list of texts or None", input="a text", dim="an int or None", ignore_index="an int",
    class_names="a name or a list of names or None", step="a number",
)  # fmt: skip
def explain(
    logits: Any,
    target: Any,
    losses: str | Iterable[str] | None = None,
    *,
    input: str = "logits",
    dim: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    class_names: Sequence[str] | None = None,
    step: float = 1.0,
    prior: Any = None,
) -> Explanation:
    """Explain what losses do to one row: ``p``, ``t``, each class's term and ``∂L/∂x``, and ``p`` after ``x - step · ∂L/∂x``.

    The losses are those of one row: sums over its classes, not means, except for the hinge, which has its ``1/C``.

    Args:
        logits: ``(C)``, a list, array or tensor; finite, or -inf for a class that is impossible.
        target: a class index or name; several of them in a set, or in a list whose length is not C; or C weights, a soft label
            or zeros and ones. Softmax losses give each of M labels ``t = 1/M``.
        losses: names, as in ``crossent.tools.explain.catalogue.LOSSES``; ``"all"`` or None, the losses of ``crossent train
            digits``, for those of them that can take the row.
        input: what the values are: ``"logits"``, ``"probs"`` or ``"logprobs"``. The softmax of log p is p again.
        dim: the class axis, which is the only one of a row: 0 or -1.
        ignore_index: the label of a row that counts for nothing, so that nothing can be explained.
        class_names: C names.
        step: the size of the gradient step.
        prior: ``(C)``, how many examples or what share each class has, for the reference ``H(prior)``.

    Returns:
        The numbers, as plain data that prints itself.

    Raises:
        TypeError: an argument that does not exist.
        ValueError: an argument that is not allowed, or a loss that cannot take the row.

    >>> e = explain(np.log([0.1, 0.7, 0.2]), 0)
    >>> [round(g, 4) for g in e["ce"].gradient], [round(p, 3) for p in e["ce"].p_after]
    ([-0.9, 0.7, 0.2], [0.325, 0.459, 0.216])
    >>> round(explain([-6.0, 6.0, 0.0], 0)["mnist"].gradient[0], 4)
    -0.0025

    See also: ``crossent explain`` on the command line.
    """
    x = _logits(logits, input)
    class_axis("dim", dim, x.shape, 0)
    names = _class_names(class_names, len(x))
    row_target = read_target(target, len(x), names, ignore_index)
    if not (isinstance(step, (int, float)) and 0 <= step < math.inf):
        raise ValueError(f"step must be a finite number, not negative, got {step!r}")
    chosen, notes = _choose(losses, x, row_target)
    notes = (*_doubts(logits, input), *notes)
    return Explanation(
        logits=tuple(x.tolist()),
        class_names=names,
        labels=row_target.labels,
        weights=tuple(row_target.weights.tolist()),
        step=float(step),
        losses=tuple(_explain_loss(description, x, row_target, step) for description in chosen),
        references=References(
            reference.expected_initial_loss(len(x)),
            None if prior is None else reference.prior_entropy(_prior(prior, len(x))),
            reference.double_softmax_floor(len(x)),
        ),
        notes=notes,
    )


def _explain_loss(description: LossDescription, x: Array, target: RowTarget, step: float) -> LossExplanation:
    with np.errstate(over="ignore", invalid="ignore"):  # of a step that leads out of float64
        t, terms, gradient = compute(description, x, target)
        after = x - step * gradient
        p, p_after = probabilities(description, x), probabilities(description, after)
    columns = {"p": p, "t": t, "terms": terms, "gradient": gradient, "logits_after": after, "p_after": p_after}
    return LossExplanation(
        name=description.name,
        loss=add(terms.tolist()),
        **{column: tuple(values.tolist()) for column, values in columns.items()},
    )


# --- the arguments ----------------------------------------------------------------------------------------------------


def _logits(logits: Any, given: str) -> Array:
    check_choice("input", given, INPUTS)
    try:
        x = np.asarray(to_numpy(logits)[0], np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"logits must be numbers, one a class, got {logits!r:.80}") from None
    if x.ndim != 1 or not len(x):
        raise ValueError(f"logits must be one row of shape (C,), got {x.shape}: pass logits[i] and target[i]")
    if given == "probs" and no_probabilities(x[None])[0]:
        if percentages(x):
            raise OptionError("input", f"is probs, and {IN_PERCENT}")
        raise OptionError("input", f"is probs, but the values go from {x.min():.4g} to {x.max():.4g}")
    x = log_probabilities(x, given)
    wrong = np.flatnonzero(np.isnan(x) | (x == np.inf))
    if len(wrong):
        raise ValueError(
            f"logits must be finite, or -inf for an impossible class, got {x[wrong[0]]} for class {wrong[0]}"
        )
    if not np.isfinite(x).any():
        raise ValueError("logits must be finite for at least one class, got -inf for all: such a row has no softmax")
    return x


def _doubts(logits: Any, given: str) -> list[str]:
    """Say where the values look like something else than what they were said to be."""
    value_range = ValueRange(given, alone=False)
    value_range.add(np.asarray(to_numpy(logits)[0], np.float64)[None])
    return value_range.warnings()


def _class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(num_classes)))
    listed = [names] if isinstance(names, str) else list(names)
    if len(listed) != num_classes:
        raise ValueError(f"class_names must hold one name for each of the {num_classes} classes, got {len(listed)}")
    return tuple(map(str, listed))


def _prior(prior: Any, num_classes: int) -> Array:
    counts = np.asarray(read_array("prior", prior), np.float64)
    if counts.shape != (num_classes,) or not np.isfinite(counts).all() or counts.min() < 0 or not counts.any():
        raise ValueError(
            f"prior must hold how many examples or what share each of the {num_classes} classes has, none negative and not "
            f"all zero, got {str(prior).strip():.60}"
        )
    return counts


def _choose(
    losses: str | Iterable[str] | None, x: Array, target: RowTarget
) -> tuple[list[LossDescription], tuple[str, ...]]:
    """Look the losses up. One asked for by name must be able to take the row; of the default ones, or all, those that can."""
    optional = {None: DEFAULT, "all": tuple(LOSSES)}.get(losses) if isinstance(losses, (str, type(None))) else None
    chosen, notes = [], []
    for description in find_losses(optional or losses or ()):
        why = objection(description, x, target)
        if why is None:
            chosen.append(description)
        elif optional:
            notes.append(f"Left out: {why}.")
        else:
            raise ValueError(why)
    return chosen, tuple(notes)
