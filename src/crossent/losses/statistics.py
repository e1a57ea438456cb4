"""What a pass over the logits gives beside the loss: log-probabilities, entropy, accuracy, and the counts to average by."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from crossent.core.modes import is_dtensor
from crossent.core.overrides import overridable_by_others
from crossent.core.reduction import Reduction, divide, ordered_sum, reduce_rows, result_dtype, weigh, weights_of_rows
from crossent.core.settings import StatisticsOptions, check_names, documented
from crossent.core.shard import VocabShard, checked_shard
from crossent.core.target import Target, describe
from crossent.impl import choose
from crossent.impl.protocol import NO_CLASS, RowStatistics
from crossent.ops import softmax as ops


class CrossEntropyStats(NamedTuple):
    """What a row's logits say beside its loss. All of it is about ``x'`` and ``p = softmax(x')``, as the loss sees them.

    A row that is ignored has 0 and False everywhere, and no predicted class.

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
        predicted: the class of the first largest ``x'``; -100, whatever ``ignore_index`` is, for a row that is ignored or has no
            softmax (nan, infinity, no class allowed), and where rows are reduced, since a total has no class.
    """

    loss: Tensor
    lse: Tensor
    target_log_prob: Tensor
    entropy: Tensor
    correct: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is of no use here
    weight_sum: Tensor
    predicted: Tensor


@overridable_by_others
@documented
def cross_entropy_stats(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["none", "mean", "sum"] = "none",
    label_smoothing: float = 0.0,
    **options: Unpack[StatisticsOptions],
) -> CrossEntropyStats:
    """Compute the loss with what else the logits can tell: lse, log-probability, entropy, accuracy and counts.

    ``"none"`` gives one of each a row. ``"sum"`` gives totals, of which ``loss / weight_sum`` is the mean loss, also after those
    of several batches or machines have been added (a mean of means is not the mean). ``"mean"`` gives the mean loss; ``lse``,
    ``target_log_prob``, ``entropy`` and ``correct`` (the accuracy) divided by ``count``; and the totals ``count`` and
    ``weight_sum``. ``sample_weight`` and ``denominator`` touch the loss and ``weight_sum`` only, since the others describe the
    model and not the loss.

    The loss and the three numbers after it are differentiable, to any order; ``correct``, ``count``, ``weight_sum`` and
    ``predicted`` are not.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices or probabilities.
        weight: class weights ``c``, ``(C)``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        sample_weight: a factor for each row's loss.
        denominator: replaces what the mean loss is divided by.
        out_dtype: dtype of the loss.
        impl: the implementation that computes the loss.
        {options}

    Returns:
        :class:`CrossEntropyStats`, of tensors of the rows' shape or 0-d. The loss has the dtype of
        :func:`crossent.cross_entropy`, ``correct`` is boolean for each row, ``count`` and ``predicted`` int64; the rest is float32
        or wider.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]).log()
    >>> stats = cross_entropy_stats(logits, torch.tensor([1, 0]), reduction="sum")
    >>> stats.loss, stats.correct, stats.count
    (tensor(1.5606), tensor(1.), tensor(2))
    >>> cross_entropy_stats(logits, torch.tensor([1, -100])).predicted
    tensor([   1, -100])

    See also: :func:`crossent.cross_entropy` with ``denominator=`` for the count over all micro-batches.
    """
    check_names(options, StatisticsOptions, "cross_entropy_stats")
    if options.get("shard") is not None:
        named = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        return _of_shard(checked_shard(options["shard"]), input, target, weight, None, {**options, **named})
    rows = Reduction.among(reduction, options)
    numbers = {**options, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    tensors = (rows.sample_weight, rows.denominator, options.get("logit_bias"), options.get("class_mask"))
    if not is_dtensor(input, target, weight, *tensors):
        return _understood(input, target, weight, rows, numbers)
    from crossent.parallel.placements import softmax_rows  # which imports DTensor

    placed, local = softmax_rows(input, target, weight, rows, options.get("dim"), numbers)
    shard = placed.shard
    with placed.tell_others(rows.how):
        stats = _understood(*local) if shard is None else _of_shard(shard, *local)
    return CrossEntropyStats._make(placed.result(value, rows.how) for value in stats)


def _understood(
    input: Tensor, target: Tensor, weight: Tensor | None, rows: Reduction, numbers: dict[str, Any]
) -> CrossEntropyStats:
    """Lay out what the caller gave, and compute the statistics."""
    logits, described = describe(input, target, weight, numbers.get("dim"), numbers)
    dtype = result_dtype(input, (target, weight) if not described.indices else (), numbers.get("out_dtype"))
    row, counted = statistics_of(logits, described, numbers.get("impl")), described.counted_rows(logits)
    if input.dim() == 1:
        row, counted = RowStatistics(*(t.squeeze(0) for t in row)), counted.squeeze(0)
    return reduced_statistics(row, counted, rows, dtype)


def _of_shard(
    shard: VocabShard,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: Reduction | None,
    options: dict[str, Any],
) -> CrossEntropyStats:
    """Compute the statistics of logits whose classes lie on several processes; a reduction may have been read already."""
    from crossent.parallel.agreement import agreeing  # torch's collectives take 0.2 s to import
    from crossent.parallel.softmax import shard_rows
    from crossent.parallel.statistics import row_statistics

    dim = options.get("dim")
    with agreeing(shard, input) as call:
        reduction = reduction or Reduction.among(options["reduction"], options)
        rows = shard_rows(input, target, weight, dim, options, shard)
        dtype = result_dtype(input, () if rows.indexed else (target, weight), options.get("out_dtype"))
        choose(rows.logits, options.get("impl"), rows.target.values, rows.target)
        call.says("cross_entropy_stats", tuple(rows.row_weight.shape), rows.logits.shape[1], input, shard)
        call.asks(rows.described, reduction, False, out_dtype=options.get("out_dtype"))
        row, counted = row_statistics(rows, call.shard)
    if input.dim() == 1:
        row, counted = RowStatistics(*(t.squeeze(0) for t in row)), counted.squeeze(0)
    return reduced_statistics(row, counted, reduction, dtype)


def statistics_of(logits: Tensor, target: Target, impl: str | None) -> RowStatistics:
    """Compute the statistics of each row."""
    return ops.statistics(logits, target, choose(logits, impl, target.values, target), impl is not None)


def reduced_statistics(
    row: RowStatistics, counted: Tensor, reduction: Reduction, dtype: torch.dtype
) -> CrossEntropyStats:
    """Reduce the statistics of rows; ``counted`` marks those that are not ignored."""
    row_weight, u = row.row_weight, reduction.sample_weight
    loss = reduce_rows(row.loss, None, Reduction("none", u))
    if u is not None:
        row_weight = weigh(row_weight, weights_of_rows(u, row_weight, whole=True))
    of_model = (row.lse, row.target_log_prob, row.entropy, row.correct)
    if reduction.how == "none":
        undifferentiable = (row.correct.bool(), counted.long(), row_weight.detach(), row.predicted)
        return CrossEntropyStats(loss.to(dtype), *of_model[:3], *undifferentiable)
    sums = (*map(ordered_sum, (loss, *of_model, row_weight)), counted.long().sum())
    loss, *averages, weight_sum, count = reduction.whole(*sums)
    if reduction.how == "mean":
        loss = divide(loss, weight_sum if reduction.denominator is None else reduction.denominator, reduction.empty)
        averages = [divide(total, count, reduction.empty) for total in averages]
    none = torch.full((), NO_CLASS, device=row_weight.device)
    return CrossEntropyStats._make((loss.to(dtype), *averages, count, weight_sum.detach(), none))
