"""Hidden states of which each process has rows of its own, as with sequence parallelism: all processes work on a block together.

A block takes as many rows of each process. They are gathered while the logits of the block before are formed, and the gradient
of the block is reduced and scattered to where the rows came from while the next is worked on. So no process ever holds the
hidden states of all rows, nor their gradient. Every process knows which rows count, and leaves the others out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossent.core.modes import readable
from crossent.core.shard import VocabShard
from crossent.impl.head import Block, Gradients, Head, HeadGradients, Part, Plan, most_rows, rows_that_count, take
from crossent.parallel.collectives import (
    Coming,
    Failure,
    add_up_unless,
    finish,
    processes,
    rank_in,
    rows_of_process,
    start_gathering,
    start_scattering,
)


class Span(NamedTuple):
    """The rows of a block: which of its own rows each process gives."""

    own: tuple[Tensor, ...]

    @property
    def width(self) -> int:
        """The rows that each process sends, of which the last ones of some may be padding."""
        return max(len(rows) for rows in self.own)

    @property
    def sizes(self) -> list[int]:
        """How many rows each process gives."""
        return [len(rows) for rows in self.own]

    def rows(self, each: int) -> Tensor:
        """Say which of all rows these are, of which every process has ``each``."""
        return torch.cat([rank * each + rows for rank, rows in enumerate(self.own)])

    def padded(self, own: Tensor) -> Tensor:
        """Pad the rows of a process to the width."""
        missing = self.width - own.shape[0]
        return torch.cat([own, own.new_zeros(missing, *own.shape[1:])]) if missing else own

    def joined(self, gathered: Tensor) -> Tensor:
        """Lay what was gathered, ``(P, width, ...)``, out as rows without padding."""
        if min(self.sizes) == self.width:
            return gathered.flatten(0, 1)
        return torch.cat([of_rank[:size] for of_rank, size in zip(gathered, self.sizes, strict=True)])

    def parted(self, rows: Tensor) -> Tensor:
        """Lay rows out as ``(P · width, ...)`` again, with padding."""
        if min(self.sizes) == self.width:
            return rows
        return torch.cat([self.padded(of_rank) for of_rank in rows.split(self.sizes)])


def rows_of_span(head: Head, plan: Plan, longest: int, size: int) -> int:
    """Say how many rows each of ``size`` processes gives to a block; the one with most has ``longest`` of them."""
    return ceil(longest / ceil(longest / max(1, most_rows(head, plan) // size))) if longest else 1


def spans(head: Head, plan: Plan, shard: VocabShard) -> list[Span]:
    """Cut the rows of all processes into blocks; the head has this process's rows, and the plan the labels of all."""
    size, each = processes(shard.group), head.input.shape[0]
    valid = rows_that_count(plan.target) if head.input.device.type == "cpu" and not head.input.is_meta else None
    if valid is None:
        whole = torch.arange(each, device=head.input.device)
        keep = [whole] * size
    else:
        keep = [of_rank.nonzero().squeeze(1) for of_rank in valid.view(size, each)]
    longest = max(len(rows) for rows in keep)
    step = rows_of_span(head, plan, longest, size)
    return [Span(tuple(rows[start : start + step] for rows in keep)) for start in range(0, longest, step)]


def gathered_parts(head: Head, plan: Plan, cut: list[Span], shard: VocabShard, failure: Failure) -> Iterator[Part]:
    """Give the rows of all processes part after part, each of which is gathered while the one before is worked on."""
    each, rank, valid = head.input.shape[0], rank_in(shard.group), rows_that_count(plan.target)

    def send(span: Span) -> Coming:
        own = failure.attempt(
            lambda: span.padded(take(head.input, span.own[rank])),
            lambda: head.input.new_zeros(span.width, head.input.shape[1]),
        )
        return start_gathering(own, shard.group)

    coming = send(cut[0]) if cut else None
    for at, span in enumerate(cut):
        assert coming is not None
        arrived, coming = coming, send(cut[at + 1]) if at + 1 < len(cut) else None
        rows, gathered = span.rows(each), finish(arrived)

        def joined(span: Span = span, rows: Tensor = rows, gathered: Tensor = gathered) -> Tensor:
            x = span.joined(gathered)
            if valid is not None and not x.is_cpu:  # or the products would spread a nan
                x = x.masked_fill(~take(valid, rows).unsqueeze(1), 0.0)
            return x

        yield rows, failure.attempt(joined, lambda: head.input[:0])


class Together(Gradients):
    """The gradients of a head of which each process has some classes: those of hidden states are added up over the processes.

    A process that has failed takes part with nothing, and all of them raise at the end.
    """

    def __init__(
        self,
        head: Head,
        needs: tuple[bool, ...],
        impl: str,
        count: int,
        skipping: bool,
        shard: VocabShard,
        failure: Failure,
    ) -> None:
        self.count, self.shard, self.failure, self.head, self.needs = count, shard, failure, head, needs
        failure.attempt(lambda: super(Together, self).__init__(head, needs, impl, count, skipping), lambda: None)

    def send(self) -> None:
        """Begin to bring together what the last block gave, where that is done by block."""

    def brought_together(self, divisor: Callable[[], Tensor | float | None] = lambda: None) -> HeadGradients:
        """Return the gradients over a divisor when all processes have theirs."""
        nothing: HeadGradients = (None, None, None)
        input, weight, bias = self.failure.attempt(lambda: self.finish(divisor()), lambda: nothing)
        return added_up(input, self.head.input, self.needs[0], self.shard, self.failure), weight, bias


def added_up(own: Tensor | None, like: Tensor, needed: bool, shard: VocabShard, failure: Failure) -> Tensor | None:
    """Add up the gradient of hidden states over the processes, where it is wanted; None stands for that of a failed one."""
    if needed and shard.reduce_input_grad:
        own = like.detach() if own is None else own
        return add_up_unless(own, failure, shard.group).to(own.dtype)
    all_is_well(failure, like, shard)
    failure.raise_own()
    return own


def sent_back(at_rows: Tensor | None, like: Tensor, shard: VocabShard, failure: Failure) -> Tensor:
    """Scatter the gradient of all rows, whole or None of a failed process, to the processes that have them, ``like`` theirs."""
    size, beside = processes(shard.group), int(readable(like))

    def laid_out() -> Tensor:
        assert at_rows is not None
        return F.pad(at_rows.view(size, *like.shape), (0, 0, 0, beside)).flatten(0, 1)

    def nothing() -> Tensor:
        return like.new_full((size * (len(like) + beside), like.shape[1]), 1.0 if beside else torch.nan)

    came = finish(start_scattering(failure.attempt(laid_out, nothing), shard.group)).to(like.dtype)
    if beside:
        failure.raise_if_told(came[-1:], shard.group)
    failure.raise_own()
    return came[: len(like)]


def all_is_well(failure: Failure, like: Tensor, shard: VocabShard) -> None:
    """Raise on all processes what has failed on one, where nothing else is told and nobody has to wait for a device."""
    if readable(like):
        add_up_unless(like.new_empty(0, dtype=torch.float32), failure, shard.group)


class ScatteredGradients(Together):
    """The gradients of a head whose blocks were gathered: those of hidden states go back to the process that has the rows."""

    def __init__(
        self, head: Head, needs: tuple[bool, ...], impl: str, cut: list[Span], shard: VocabShard, failure: Failure
    ) -> None:
        super().__init__(head, needs, impl, len(cut), True, shard, failure)
        self.cut = cut
        self.at_rows: Tensor | None = None
        self.waiting: tuple[Tensor, Coming] | None = None

    def _add_input(self, g: Tensor, block: Block) -> None:
        self.at_rows = g @ self.head.weight if self.pieces is None else self.pieces.back(g)

    def send(self) -> None:
        """Begin to scatter the gradient of the last block to its rows."""
        if not self.needs[0]:
            return
        span, self.cut = self.cut[0], self.cut[1:]
        size, failure = processes(self.shard.group), self.failure
        wide = torch.promote_types(self.head.input.dtype, torch.float32)
        beside = int(not self.cut and readable(self.head.input))  # a row more to the last, which says who has failed

        def laid_out() -> Tensor:
            assert self.at_rows is not None
            rows = span.parted(self.at_rows).to(wide)
            return F.pad(rows.view(size, span.width, -1), (0, 0, 0, beside)).flatten(0, 1) if beside else rows

        def nothing() -> Tensor:
            rows = self.head.input.new_zeros(size * (span.width + beside), self.head.input.shape[1], dtype=wide)
            return rows.fill_(1.0 if beside else torch.nan)

        coming = start_scattering(failure.attempt(laid_out, nothing), self.shard.group)
        self._arrive()
        self.at_rows, self.waiting = None, (span.own[rank_in(self.shard.group)], coming)

    def _arrive(self) -> Tensor | None:
        """Put the block before, which was scattered meanwhile, to its rows, and return what came."""
        if self.waiting is None:
            return None
        own, coming = self.waiting
        self.waiting, came = None, finish(coming)

        def put() -> None:
            assert self.input is not None
            self.input.index_copy_(0, own, came[: len(own)].to(self.input.dtype))

        self.failure.attempt(put, lambda: None)
        return came

    def brought_together(self, divisor: Callable[[], Tensor | float | None] = lambda: None) -> HeadGradients:
        """Return the gradients over a divisor, when the last block has arrived."""
        last = self._arrive()
        if last is None:
            all_is_well(self.failure, self.head.input, self.shard)
        else:
            self.failure.raise_if_told(last[-1:], self.shard.group)
        self.failure.raise_own()
        return self.finish(divisor())


def own_rows(x: Tensor, shard: VocabShard) -> Tensor:
    """Take what belongs to this process's rows; the gradients of all processes are those of all rows."""
    return rows_of_process(x, shard.group) if shard.sequence_parallel else x


def of_all_rows(x: Any, shard: VocabShard) -> Any:
    """Gather what each process says of its own rows, which is not differentiated."""
    return x if x is None else finish(start_gathering(x, shard.group)).flatten(0, 1)
