"""``crossent.check``: arrays in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from crossent.core.names import only_its_keywords
from crossent.tools.arrays import read_pair
from crossent.tools.check.findings import Findings, apply_rules
from crossent.tools.check.options import read_options
from crossent.tools.check.rules import VALUE_RULES
from crossent.tools.check.survey import survey
from crossent.tools.kinds import argument_kinds


@only_its_keywords
@argument_kinds(
    input="a text", task="a text", dim="an int or None", label_smoothing="a number", ignore_index="a number or None",
    shift="True or False", micro_batch="an int or None", losses="a list of numbers or None",
    class_names="a list of names or None", loss_dtype="a text or None", live="True or False",
)  # fmt: skip
def check(
    logits: Any,
    target: Any = None,
    *,
    input: str = "logits",
    task: str = "multiclass",
    dim: int | None = None,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    shift: bool = False,
    inputs: ArrayLike | None = None,
    micro_batch: int | None = None,
    losses: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    loss_dtype: str | None = None,
    live: bool = False,
) -> Findings:
    """Find the usual mistakes around a cross entropy in the values that are given to it.

    Every rule looks at values only, so that what is found was seen. Finding nothing is no proof.

    Args:
        logits: ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``: an array, a torch tensor of any floating dtype, or nested lists.
        target: class indices, or probabilities of the logits' shape, as for :func:`crossent.cross_entropy`; None to look at
            the logits alone.
        input: what the values are: ``"logits"``, ``"probs"`` or ``"logprobs"``. It is never guessed.
        task: ``"multiclass"``, a softmax; ``"binary"`` or ``"multilabel"``, a sigmoid for every logit; ``"lm"``, a softmax over
            the last axis of ``(B, T, V)``, with token ids ``(B, T)``.
        dim: the class axis; by default torch's, 1, or 0 for one axis, and the last for language models.
        weight: class weights ``(C)`` of the loss.
        pos_weight: of the binary loss.
        label_smoothing: ``ε`` of the loss, in [0, 1].
        ignore_index: of the rows that count for nothing; by default -100 for a softmax and none for a sigmoid.
        shift: whether the loss pairs position t with the label of t + 1, for language models.
        inputs: the token ids that the model saw, of the labels' shape, for language models.
        micro_batch: the number of rows the loss is averaged over at a time.
        losses: values of the loss in the order of training.
        class_names: C names.
        loss_dtype: the dtype that the loss is computed in, such as ``"float32"``; by default that of the logits.
        live: whether the model may not have been trained yet, so that looking untrained is no mistake.

    Returns:
        A list of :class:`crossent.Finding`, errors first. Printed, it is text.

    Raises:
        TypeError: an argument that does not exist, or values that are no numbers.
        ValueError: an option that is not allowed, or logits without a value.

    >>> import crossent
    >>> crossent.check([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 0])[0].title
    'softmax before the loss'
    >>> crossent.check([[2.0, -1.0], [0.5, 1.5]], [0, 1])
    Nothing found. Finding nothing is no proof: a check sees values, not the code that made them.

    See also: :func:`crossent.check_loss` for a loss that you wrote; :func:`crossent.debug` for a training run; ``crossent rule``.
    """
    options = read_options(
        {
            "input": input, "task": task, "dim": dim, "weight": weight, "pos_weight": pos_weight,
            "label_smoothing": label_smoothing, "ignore_index": ignore_index, "shift": shift, "inputs": inputs,
            "micro_batch": micro_batch, "losses": losses,
            "class_names": class_names, "loss_dtype": loss_dtype, "live": live,
        }
    )  # fmt: skip
    facts = survey(*read_pair(("logits", "target"), logits, target, class_names), options)
    return apply_rules(VALUE_RULES.values(), facts)
