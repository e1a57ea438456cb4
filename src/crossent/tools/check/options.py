"""What the values do not show: the options of ``check``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools import shared_options
from crossent.tools.arrays import read_array


@dataclass(frozen=True, eq=False)
class CheckOptions:
    """How the loss is computed.

    Attributes:
        input: what the values are: ``"logits"``, ``"probs"`` or ``"logprobs"``. It is never guessed.
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
        class_names: one for each class.
        loss_dtype: the dtype in which the loss is computed, such as ``"float32"``; None is that of the logits.
        empty: what the loss of nothing is, ``"nan"`` as the mean of torch or ``"zero"``.
        stored: whether the values come from a file, which may hold them in other dtypes than the loss is given.
        live: whether crossent is computing it right now, for a model that may not have been trained yet.
    """

    input: str = "logits"
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
    class_names: Sequence[str] = ()
    loss_dtype: str | None = None
    empty: str = "nan"
    stored: bool = False
    live: bool = False

    def __post_init__(self) -> None:
        shared_options.check_choice("input", self.input, shared_options.INPUTS)
        shared_options.check_choice("task", self.task, shared_options.TASKS)
        shared_options.check_label_smoothing(self.label_smoothing)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1 row, got {self.micro_batch}")
        if (self.shift or self.inputs is not None) and self.task != "lm":
            raise ValueError(f"shift and inputs are about tokens: they need task='lm', got {self.task!r}")
        if self.weight is not None:  # an infinite weight is let through: it is a mistake that the rules are to find
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


def read_options(settings: dict[str, Any]) -> CheckOptions:
    """Read the options of a call; None is the default."""
    options = {name: value for name, value in settings.items() if value is not None}
    if isinstance(options.get("inputs"), str):
        raise shared_options.OptionError(
            "inputs", f"must be token ids, got {options['inputs']!r}: use input= to say what the logits are"
        )
    for name in ("weight", "pos_weight", "inputs"):
        if name in options:
            options[name] = read_array(name, options[name])
    if "losses" in options:
        options["losses"] = [float(value) for value in options["losses"]]
    return CheckOptions(**options)
