"""How ``score`` reads the numbers of a file, and what it shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.tools import shared_options
from crossent.tools.shared_options import OptionError


@dataclass(frozen=True)
class ScoreOptions:
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
        suspects: how suspected label errors are chosen, ``"self-confidence"`` or ``"confident-learning"``.
        bytes: how many bytes the text of the tokens has, for the loss per byte.
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
    suspects: str = shared_options.SUSPECTS[0]
    bytes: int | None = None

    def __post_init__(self) -> None:
        shared_options.check_choice("input", self.input, shared_options.INPUTS)
        shared_options.check_choice("task", self.task, shared_options.TASKS)
        shared_options.check_choice("suspects", self.suspects, shared_options.SUSPECTS)
        if self.task == "binary":  # another word for it, as in check
            object.__setattr__(self, "task", "multilabel")
        shared_options.check_label_smoothing(self.label_smoothing)
        if self.weight is not None:
            shared_options.check_class_weights(self.weight)
        if self.weight is not None and self.task == "multilabel":
            raise OptionError("weight", "belongs to the softmax, one label a row; leave it out for task multilabel")
        if self.shift and self.task != "lm":
            raise OptionError("shift", "is for tokens: it needs task lm")
        if self.top < 0:
            raise OptionError("top", f"must be 0 or more, got {self.top}")
        if self.bytes is not None and self.bytes < 1:
            raise OptionError("bytes", f"must be 1 or more, got {self.bytes}")
