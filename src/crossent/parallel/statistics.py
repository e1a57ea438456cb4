"""The statistics of rows whose classes lie on several processes, by the gather that tells their loss.

    Σ t log p = -Σ_s [T_s + m_s (lse - lse_s)]        H = Σ_s e^{lse_s - lse} [H_s + (lse - lse_s)]

with ``T_s = Σ_k t_k (lse_s - x_k)``, ``m_s = Σ_k t_k`` and the entropy ``H_s`` among the classes of a shard. Backward looks at the
rows once more, and gathers once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crossent.core.reduction import times
from crossent.core.shard import VocabShard
from crossent.impl import formulas
from crossent.impl.protocol import NO_CLASS, RowStatistics
from crossent.parallel.collectives import Failure
from crossent.parallel.softmax import (
    NUMBERS,
    Columns,
    Rows,
    columns_of,
    exchange,
    lse_above,
    penalised_loss,
    put_together,
    written_out,
)


class CountedStatistics(NamedTuple):
    """The statistics of rows, and which of them count."""

    row: RowStatistics
    counted: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> CountedStatistics:
        """Take tensors that stand one after the other."""
        *row, counted = tensors
        return cls(RowStatistics._make(row), counted)


def statistics_columns(dtype: torch.dtype) -> int:
    """Say how many numbers a row takes: its columns, four more, and two positions as bits."""
    return NUMBERS + 4 + 2 * 8 // dtype.itemsize


def recomputed(compute: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """Compute something from tensors, and once more in backward, so that nothing is kept for that."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not wanted or torch.compiler.is_compiling():
        return compute(*tensors)
    return checkpoint(compute, *tensors, use_reentrant=False, preserve_rng_state=False)


def row_statistics(rows: Rows, shard: VocabShard) -> CountedStatistics:
    """Compute the statistics of rows, the same on all processes."""
    failure = Failure()
    rows = written_out(rows, shard, failure)

    def compute(logits: Tensor) -> tuple[Tensor, ...]:
        return statistics_tensors(rows._replace(logits=logits), shard, failure)

    return CountedStatistics.of(recomputed(compute, rows.logits))


def statistics_tensors(rows: Rows, shard: VocabShard, failure: Failure) -> tuple[Tensor, ...]:
    """Compute the tensors of :class:`CountedStatistics` in operations that autograd knows."""

    def compute() -> Tensor:
        partials = formulas.partials(rows.logits, rows.first_target)
        part = formulas.partial_statistics(rows.logits, rows.target, rows.hard, partials)
        columns = columns_of(rows, partials)
        numbers = torch.stack([t.to(columns.dtype) for t in (part.cost, part.mass, part.entropy, part.most)])
        positions = torch.stack([part.predicted, part.wanted]) + shard.start
        return torch.cat([columns, numbers, _as_bits(positions, columns.dtype)])

    count = statistics_columns(rows.allowed.dtype)
    gathered = exchange(rows, count, compute, shard, failure)
    columns, numbers, bits = gathered.split([NUMBERS, 4, count - NUMBERS - 4], 1)

    whole = put_together(rows, columns, shard, failure)
    loss = penalised_loss(rows, whole, shard, failure) if rows.penalises_all else whole.loss
    failure.raise_own()
    each = Columns(*columns.unbind(1))
    cost, mass, entropy, most = numbers.unbind(1)
    predicted, wanted = _from_bits(bits).unbind(1)
    top, _, up = lse_above(each)
    log_prob = -(cost + times(mass, up)).sum(0)
    share = (-up).exp()  # the part of the whole probability that a shard has
    row_entropy = times(share, (entropy + up).masked_fill(share == 0, 0.0)).sum(0)
    counted = rows.hard.counted_rows(rows.logits) & (each.allowed.sum(0) > 0)
    classes = _first(predicted, each.top == top).masked_fill(~top.isfinite() | ~counted, NO_CLASS)
    if rows.labels is None:
        largest = most.amax(0)
        hit = (classes == _first(wanted, most == largest)) & (largest > 0)
    else:
        hit = classes == rows.labels
    lse, log_prob, row_entropy = (t.masked_fill(~counted, 0.0) for t in (whole.lse.sum(0), log_prob, row_entropy))
    correct = (hit & (classes != NO_CLASS)).to(loss.dtype)
    return loss, lse, log_prob, row_entropy, whole.row_weight.detach(), correct, classes, counted


def _first(positions: Tensor, where: Tensor) -> Tensor:
    """Find the first of some positions among those of all shards."""
    return positions.masked_fill(~where, torch.iinfo(torch.int64).max).amin(0)


def _as_bits(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Write the bits of integers ``(2, ...)`` as floating numbers, which are only passed on."""
    return positions.unsqueeze(-1).view(dtype).movedim(-1, 0).flatten(0, 1)


def _from_bits(bits: Tensor) -> Tensor:
    """Read the integers again, as ``(P, 2, ...)``."""
    words = bits.detach().unflatten(1, (-1, 2)).movedim(1, -1).clone(memory_format=torch.contiguous_format)
    positions: Tensor = words.view(torch.int64).squeeze(-1)
    return positions
