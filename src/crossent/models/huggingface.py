"""The loss functions of ``transformers``, with its signatures: ``model.loss_function = causal_lm_loss`` is all there is to do.

Values, dtypes and gradients are those of ``transformers.loss.loss_utils``, where each has the name that :data:`LOSS_MAPPING` gives.
What theirs copies is not copied here: the logits of a language model are not written out in float32. Nothing here imports
transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crossent.core.reduction import compute_dtype, result_dtype
from crossent.losses.binary import binary_cross_entropy_with_logits
from crossent.losses.softmax import cross_entropy

__all__ = [
    "LOSS_MAPPING",
    "causal_lm_loss",
    "masked_lm_loss",
    "question_answering_loss",
    "semantic_segmentation_loss",
    "sequence_classification_loss",
    "token_classification_loss",
]


def _fixed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    /,
    num_items_in_batch: Tensor | float | None = None,
    ignore_index: int = -100,
    out_dtype: torch.dtype | None = None,
    **_: Any,
) -> Tensor:
    """Compute the mean over the labels that count, or the sum over the number that a trainer has counted."""
    if num_items_in_batch is None:
        return cross_entropy(logits, target, ignore_index=ignore_index, out_dtype=out_dtype)
    wide = compute_dtype(logits)  # a sum over many rows may be too large for float16
    loss = cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum", out_dtype=wide)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return (loss / num_items_in_batch).to(result_dtype(logits, (), out_dtype))


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute the loss of a language model that predicts the next token, as ``transformers``' ``ForCausalLMLoss``.

    Args:
        logits: ``(..., T, V)``.
        labels: ``(..., T)``, the tokens themselves: the logits at ``t`` are to predict the label at ``t + 1``.
        vocab_size: ``V``.
        num_items_in_batch: what the sum is divided by, such as the count over all micro-batches; by default the labels that count.
        ignore_index: labels that count for nothing.
        shift_labels: ``(..., T)``, labels that are shifted already, in the place of ``labels``.
        kwargs: ignored, as there.

    Returns:
        The loss, float32.

    >>> logits = torch.zeros(2, 4, 27, requires_grad=True)
    >>> causal_lm_loss(logits, torch.tensor([[1, 5, 9, 26], [3, 7, -100, -100]]), vocab_size=27)
    tensor(3.2958, grad_fn=<CrossEntropyBackward>)
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return masked_lm_loss(logits, shift_labels, vocab_size, num_items_in_batch, ignore_index)


def masked_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> Tensor:
    """Compute the loss of a model that fills in tokens, each where it stands, as ``transformers``' ``ForMaskedLMLoss``."""
    labels = labels.reshape(-1).to(logits.device)
    return _fixed_cross_entropy(
        logits.reshape(-1, vocab_size), labels, num_items_in_batch, ignore_index, out_dtype=torch.float32
    )


def sequence_classification_loss(labels: Tensor, pooled_logits: Tensor, config: Any, **kwargs: Any) -> Tensor:
    """Compute the loss that ``config.problem_type`` names, as ``transformers``' ``ForSequenceClassificationLoss``.

    Where it is None it is found by the labels' dtype and ``config.num_labels``, and written down there, as theirs does.
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif config.num_labels > 1 and labels.dtype in (torch.int64, torch.int32):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    labels = labels.to(pooled_logits.device)
    if config.problem_type == "regression":
        if config.num_labels == 1:
            return F.mse_loss(pooled_logits.squeeze(), labels.squeeze())
        return F.mse_loss(pooled_logits, labels)
    if config.problem_type == "single_label_classification":
        return _fixed_cross_entropy(pooled_logits.reshape(-1, config.num_labels), labels.reshape(-1), **kwargs)
    if config.problem_type == "multi_label_classification":
        return binary_cross_entropy_with_logits(pooled_logits, labels)
    raise RuntimeError(
        "config.problem_type must be 'regression', 'single_label_classification', 'multi_label_classification' or None, "
        f"got {config.problem_type!r}"
    )


def token_classification_loss(logits: Tensor, labels: Tensor, config: Any, **kwargs: Any) -> Tensor:
    """Compute the loss of a label for every token, as ``transformers``' ``ForTokenClassification``."""
    labels = labels.reshape(-1).to(logits.device)
    kwargs["out_dtype"] = torch.float32
    return _fixed_cross_entropy(logits.reshape(-1, config.num_labels), labels, **kwargs)


def question_answering_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor | None,
    end_positions: Tensor | None,
    **kwargs: Any,
) -> Tensor | None:
    """Compute the mean loss of where an answer begins and ends, as ``transformers``' ``ForQuestionAnsweringLoss``.

    Positions behind the text count for nothing; without positions there is no loss.
    """
    if start_positions is None or end_positions is None:
        return None
    length, losses = start_logits.size(1), []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        at = positions.squeeze(-1) if positions.dim() > 1 else positions
        at = at.to(logits.device).clamp(0, length)
        losses.append(_fixed_cross_entropy(logits, at, **{**kwargs, "ignore_index": length}))
    return (losses[0] + losses[1]) / 2


def semantic_segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    num_items_in_batch: Tensor | int | None = None,
    auxiliary_logits: Tensor | None = None,
    auxiliary_loss_weight: float = 0.4,
    **kwargs: Any,
) -> Tensor:
    """Compute the loss of a class for every pixel of a larger picture, as ``transformers``' ``ForSemanticSegmentationLoss``."""

    def of(logits: Tensor) -> Tensor:
        large = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return _fixed_cross_entropy(large, labels, num_items_in_batch, ignore_index)

    loss = of(logits)
    return loss if auxiliary_logits is None else loss + auxiliary_loss_weight * of(auxiliary_logits)


LOSS_MAPPING: dict[str, Callable[..., Tensor | None]] = {
    "ForSemanticSegmentation": semantic_segmentation_loss,
    "ForCausalLM": causal_lm_loss,
    "ForMaskedLM": masked_lm_loss,
    "ForQuestionAnswering": question_answering_loss,
    "ForSequenceClassification": sequence_classification_loss,
    "ForImageClassification": sequence_classification_loss,
    "ForVideoClassification": sequence_classification_loss,
    "ForAudioClassification": sequence_classification_loss,
    "ForTokenClassification": token_classification_loss,
    "ForConditionalGeneration": causal_lm_loss,
    "CsmForConditionalGeneration": causal_lm_loss,
}
"""Each under the names that ``transformers.loss.loss_utils.LOSS_MAPPING`` has for it: ``LOSS_MAPPING[model.loss_type]``."""
