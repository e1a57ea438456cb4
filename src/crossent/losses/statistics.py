"""What a pass over the logits tells beside the loss: log-probabilities, entropy, accuracy, and the counts to average by."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossent.core.penalties import Penalty
from crossent.core.target import Target, describe
from crossent.impl import choose, eager
from crossent.losses.softmax import (
    Mean,
    Reduction,
    check_mean,
    read_reduction,
    reduce_rows,
    result_dtype,
    weights_of_rows,
)
from crossent.ops import softmax as ops


class CrossEntropyStats(NamedTuple):
    """What a row's logits say beside its loss. All of it is about ``x'`` and ``p = softmax(x')``, as the loss sees them.

    A row that is ignored has 0 and False everywhere.

    Attributes:
        loss: :func:`crossent.cross_entropy` with the same arguments.
        lse: ``log Σ_k e^{x'_k}``. Differentiable.
        target_log_prob: ``Σ_k t_k log p_k`` with the target before smoothing and without class weights; ``log p_y`` for indices.
            Differentiable.
        entropy: ``-Σ_k p_k log p_k``. Differentiable.
        correct: whether the first largest ``x'`` is the target's class; for probabilities, where the first largest ``t`` is, if
            it is positive. With a margin: whether it is correct by more than that.
        count: 1, or 0 if ignored.
        weight_sum: what the row adds to the mean's divisor: ``c[y]`` for indices or 1 for probabilities, times ``sample_weight``.
    """

    loss: Tensor
    lse: Tensor
    target_log_prob: Tensor
    entropy: Tensor
    correct: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is of no use here
    weight_sum: Tensor


def cross_entropy_stats(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "none",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    out_dtype: torch.dtype | None = None,
    dim: int | None = None,
    penalty: Penalty | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Tensor | None = None,
    margin: float = 0.0,
    class_mask: Tensor | None = None,
    z_loss: float = 0.0,
    impl: str | None = None,
) -> CrossEntropyStats:
    """Compute the loss with what else the logits can tell: lse, log-probability, entropy, accuracy and counts.

    ``"none"`` gives one of each a row. ``"sum"`` gives totals, of which ``loss / weight_sum`` is the mean loss, also after those
    of several batches or machines have been added (a mean of means is not the mean). ``"mean"`` gives the mean loss; ``lse``,
    ``target_log_prob``, ``entropy`` and ``correct`` (the accuracy) divided by ``count``; and the totals ``count`` and
    ``weight_sum``. ``sample_weight`` and ``denominator`` touch the loss and ``weight_sum`` only, since the others describe the
    model and not the loss.

    The loss and the three numbers after it are differentiable, to any order; ``correct``, ``count`` and ``weight_sum`` are not.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices or probabilities.
        weight: class weights ``c``, ``(C)``.
        ignore_index: as in :func:`crossent.cross_entropy`, as everything that follows.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        label_smoothing: ``ε``, of the loss.
        sample_weight: a factor for each row's loss.
        denominator: replaces what the mean loss is divided by.
        empty: what a mean over nothing is.
        out_dtype: dtype of the loss.
        dim: the class dimension.
        penalty: ``(f, s)``, of the loss.
        temperature: ``T``.
        softcap: ``cap``.
        logit_bias: ``(C)`` or of the logits' shape.
        margin: ``m``.
        class_mask: ``(C)`` or of the logits' shape.
        z_loss: ``λ``, of the loss.
        impl: the implementation that computes the loss.

    Returns:
        :class:`CrossEntropyStats`, of tensors of the rows' shape or 0-d. The loss has the dtype of
        :func:`crossent.cross_entropy`, ``correct`` is boolean for each row, ``count`` int64; the rest is float32 or wider.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]).log()
    >>> stats = cross_entropy_stats(logits, torch.tensor([1, 0]), reduction="sum")
    >>> stats.loss, stats.correct, stats.count
    (tensor(1.5606), tensor(1.), tensor(2))

    See also: :func:`crossent.cross_entropy` with ``denominator=`` for the count over all micro-batches.
    """
    reduction = read_reduction(reduction)
    special = {
        "penalty": penalty, "temperature": temperature, "softcap": softcap, "logit_bias": logit_bias, "margin": margin,
        "class_mask": class_mask, "z_loss": z_loss,
    }  # fmt: skip
    logits, described = describe(input, target, weight, ignore_index, label_smoothing, dim, special)
    dtype = result_dtype(input, (target, weight) if not described.indices else (), out_dtype)
    mean = Mean(sample_weight, denominator, empty)
    check_mean(reduction, mean)
    told, row_weights = statistics_of(logits, described, impl)
    parts = (told, row_weights[0], row_weights[1], eager.counted_rows(logits, described))
    if input.dim() == 1:
        parts = parts[0].squeeze(1), parts[1].squeeze(0), parts[2].squeeze(0), parts[3].squeeze(0)
    return reduced_statistics(*parts, reduction, mean, dtype)


def statistics_of(logits: Tensor, described: Target, impl: str | None) -> tuple[Tensor, Tensor]:
    """Compute of each row the stack of loss, lse, log-probability and entropy, and that of its weight and correctness."""
    name = choose(logits, impl, described.values, described)
    told, row_weights = ops.statistics(logits, described, name, impl is not None)
    assert row_weights is not None
    return told, row_weights.detach()


def reduced_statistics(
    told: Tensor,
    row_weight: Tensor,
    correct: Tensor,
    counted: Tensor,
    reduction: Reduction,
    mean: Mean,
    dtype: torch.dtype,
) -> CrossEntropyStats:
    """Reduce the statistics of rows."""
    sample_weight, by_count = mean.sample_weight, Mean(None, None, mean.empty)
    loss = reduce_rows(told[0], row_weight, reduction, mean).to(dtype)
    if sample_weight is not None:
        row_weight = row_weight * weights_of_rows(sample_weight, row_weight, whole=True).detach()
    if reduction == "none":
        return CrossEntropyStats(loss, told[1], told[2], told[3], correct.bool(), counted.long(), row_weight)
    of_model = [reduce_rows(rows, counted.to(rows.dtype), reduction, by_count) for rows in (*told[1:], correct)]
    return CrossEntropyStats._make((loss, *of_model, counted.long().sum(), eager.ordered_sum(row_weight)))
