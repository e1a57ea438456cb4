"""``crossent.check``: arrays in, findings out."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.check.cards import Findings, look
from crossent.tools.check.facts import survey
from crossent.tools.check.options import NAMES, Options
from crossent.tools.check.rules import VALUES
from crossent.tools.files import Table

ARRAYS = ("weight", "pos_weight", "inputs")


def check(logits: Any, target: Any = None, **settings: Any) -> Findings:
    """Find the usual mistakes around a cross entropy in the values that are given to it.

    Every rule looks at values only, so that what is found was seen. No finding is not proof.

    Args:
        logits: ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``: an array, a torch tensor of any floating dtype, or nested lists.
        target: class indices, or probabilities of the logits' shape, as for :func:`crossent.cross_entropy`; None to look at
            the logits alone.
        settings: how the loss is computed, :class:`crossent.tools.check.options.Options`. ``task`` is ``"multiclass"``,
            ``"binary"`` (or ``"multilabel"``) or ``"lm"``, logits ``(B, T, V)`` of tokens. ``weight``, ``pos_weight``,
            ``label_smoothing``, ``ignore_index`` and ``dim`` are those of the loss. ``shift`` says that the loss pairs position
            t with the label of t + 1, ``inputs`` are the token ids that the model saw. ``micro_batch`` is the number of rows
            the loss is averaged over at a time, ``losses`` are values of the loss in the order of training, ``loss_dtype`` is
            the dtype it is computed in.

    Returns:
        A list of :class:`crossent.Finding`, errors first. Printed, it is text.

    Raises:
        TypeError: an unknown setting, or values that are no numbers.
        ValueError: a setting that cannot be, or logits without a value.

    >>> import crossent
    >>> crossent.check([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 0])[0].title
    'softmax before the loss'
    >>> crossent.check([[2.0, -1.0], [0.5, 1.5]], [0, 1])
    Nothing found. No finding is not proof: a check sees values, not the code that made them.

    See also: :func:`crossent.check_loss` for a loss that you wrote; :func:`crossent.debug` for a training run; ``crossent rule``.
    """
    facts = survey(table("logits", logits), None if target is None else table("target", target), read(settings))
    return look(VALUES.values(), facts)


def read(settings: dict[str, Any]) -> Options:
    """Read the settings of a call."""
    for name in settings:
        if name not in NAMES:
            near = get_close_matches(name, NAMES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
            raise TypeError(f"check has no setting {name!r}: {hint}")
    given = {name: value for name, value in settings.items() if value is not None}
    for name in ARRAYS:
        if name in given:
            given[name] = array(name, given[name])[0]
    if "losses" in given:
        given["losses"] = [float(value) for value in given["losses"]]
    return Options(**given)


def table(name: str, value: Any) -> Table:
    """Let values in memory be read like a file."""
    values, dtype = array(name, value)
    values = values.reshape(1) if values.ndim == 0 else values
    return Table(name, values.shape, dtype, lambda start, stop: values[start:stop])


def array(name: str, value: Any) -> tuple[NDArray[Any], str]:
    """Take values as a NumPy array, with the name of their own dtype. No torch is needed for torch's tensors."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        dtype = str(value.dtype).removeprefix("torch.")
        value = value.detach().cpu()
        value = (value.float() if dtype.startswith(("bfloat", "float8")) else value).numpy()
    else:
        value = np.asarray(value)
        dtype = value.dtype.name
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {dtype}")
    return value, dtype
