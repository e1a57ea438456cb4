"""A linear head whose classes lie on several processes, and its loss, a block of rows at a time.

Each process forms its own logits of a block, and one gather tells the block's losses and how much mass its rows have elsewhere,
while the logits of the next block are formed. A sum or a mean forms its gradients with the loss. Where rows are kept apart,
backward forms the logits once more, and needs no other process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from crossent.core.modes import plain
from crossent.core.reduction import Reduction, ordered_sum, over, reduce_rows, times
from crossent.core.shard import VocabShard
from crossent.core.target import Target, Teacher
from crossent.impl import choose, formulas, load
from crossent.impl.head import (
    TEACHERS_WORKSPACE,
    Block,
    FormedInTurn,
    Head,
    Part,
    Plan,
    block_size,
    counted,
    hidden_states,
    put,
    rows_of_parts,
    take,
)
from crossent.ops.library import differentiated, for_each_input
from crossent.ops.linear import scaled, transform_under_way
from crossent.parallel.collectives import (
    Coming,
    Failure,
    finish,
    gather,
    gather_rows,
    pack,
    processes,
    spread,
    start_gathering,
    unpack,
)
from crossent.parallel.sequences import (
    ScatteredGradients,
    Span,
    Together,
    added_up,
    gathered_parts,
    of_all_rows,
    sent_back,
    spans,
)
from crossent.parallel.softmax import (
    NUMBERS,
    Rows,
    Whole,
    columns_of,
    computed,
    looked_again,
    put_together,
    row_losses,
    rows_of,
    written_out,
)
from crossent.parallel.statistics import CountedStatistics, recomputed, statistics_tensors
from crossent.parallel.teachers import taught

_AT_A_TIME = 2  # blocks: the losses of one are told while the logits of the next are formed


@dataclass(frozen=True)
class ShardedHead:
    """What is asked of the rows of a head, ``rows`` without their logits, and how they are taken apart."""

    rows: Rows
    shape: tuple[int, ...]  # of a row's logits here, (C_s, d1, ...)
    shard: VocabShard
    max_bytes: int
    impl: str
    teacher: Teacher | None = None  # whose probabilities are formed with each block; rows.target has none then
    failure: Failure = field(default_factory=Failure)  # of a forward

    def plan(self, dtype: torch.dtype) -> Plan:
        """Say how many rows make a block, which is the same on all processes."""
        size = bytes_of_block(self.shape, self.shard, self.max_bytes, dtype, self.impl, self.teacher is not None)
        return Plan(self.rows.target, None, size, self.impl)

    def taught(self, asked: Rows, rows: slice | Tensor | None, failure: Failure) -> Rows:
        """Give some rows the probabilities of their teacher, if they have one, which takes a gather of its own."""
        if self.teacher is None:
            return asked
        return taught(asked, _some_rows(self.teacher, rows), self.shape, self.shard, self.impl, failure)

    def parts(self, head: Head, cut: list[Span] | None, failure: Failure) -> Iterator[Part]:
        """Give part after part of rows that are here, or that come from all processes as ``cut`` says."""
        plan = self.plan(head.input.dtype)
        if cut is not None:
            yield from gathered_parts(head, plan, cut, self.shard, failure)
            return
        for rows in rows_of_parts(head, plan):
            x = failure.attempt(partial(hidden_states, head, plan, rows), lambda: head.input[:0])
            yield rows, x

    def cut(self, head: Head) -> list[Span] | None:
        """Cut the rows into blocks, where each process has some of them."""
        return spans(head, self.plan(head.input.dtype), self.shard) if self.shard.sequence_parallel else None

    def some(self, some: slice | Tensor) -> ShardedHead:
        """Say what is asked of some rows."""
        teacher = None if self.teacher is None else _some_rows(self.teacher, some)
        return replace(self, rows=self.rows.some(some), teacher=teacher)


def _some_rows(teacher: Teacher, rows: slice | Tensor | None) -> Teacher:
    return teacher._replace(input=take(teacher.input, rows))


def share_of(shape: tuple[int, ...], shard: VocabShard) -> int:
    """Count the logits ``(C, d1, ...)`` of a row on one process, if the classes are cut evenly."""
    return ceil(shard.classes / processes(shard.group)) * prod(shape[1:])


def bytes_of_block(
    shape: tuple[int, ...], shard: VocabShard, max_bytes: int, dtype: torch.dtype, impl: str, teacher: bool = False
) -> int:
    """Say how many bytes a block has here: of as many rows, on all processes, as fit with an even share of the classes."""
    each = dtype.itemsize + 4 * load(impl).workspace
    rows = max(1, max_bytes // _AT_A_TIME // (share_of(shape, shard) * (each + 4 * TEACHERS_WORKSPACE * teacher)))
    return rows * max(1, prod(shape) * each)


# --- blocks -----------------------------------------------------------------------------------------------------------


def _wholes(head: Head, sharded: ShardedHead, cut: list[Span] | None) -> Iterator[tuple[Block | None, Whole]]:
    """Form block after block, and put what all processes tell of its rows together, one block behind.

    A process that has failed gives no block, and takes part in what the others wait for until they know.
    """
    form, compute = FormedInTurn(head, sharded.plan(head.input.dtype), _AT_A_TIME), load(sharded.impl)
    failure, waiting = sharded.failure, None
    for rows, x in sharded.parts(head, cut, failure):
        asked, block = sharded.taught(sharded.rows.some(rows), rows, failure), None

        def partials(rows: Any = rows, x: Tensor = x, asked: Rows = asked) -> Tensor:
            nonlocal block
            block = form(rows, x)
            block = block if sharded.teacher is None else block._replace(target=asked.target)
            asked = asked._replace(logits=block.logits, target=block.target)
            return columns_of(asked, compute.partials(block.logits, asked.first_target))

        columns = computed(asked, NUMBERS, partials, failure)
        gathered = start_gathering(pack(columns, failure.error is not None), sharded.shard.group)
        if waiting is not None:
            yield _whole(*waiting, sharded)
        waiting = (block, asked, gathered, columns.shape)
    if waiting is not None:
        yield _whole(*waiting, sharded)


def _whole(
    block: Block | None, asked: Rows, gathered: Coming, shape: torch.Size, sharded: ShardedHead
) -> tuple[Block | None, Whole]:
    failure, shard = sharded.failure, sharded.shard
    failed, columns = unpack(finish(gathered), shape)
    failure.raise_if_told(failed, shard.group)
    rows = asked if block is None else asked._replace(logits=block.logits, target=block.target)
    return block, looked_again(rows, put_together(rows, columns, shard, failure), shard, failure)


def _zeros(sharded: ShardedHead) -> Tensor:
    return torch.zeros_like(sharded.rows.row_weight)


def _slopes(sharded: ShardedHead, block: Block, whole: Whole, grad: Tensor) -> Tensor:
    """Compute the gradient for a block's logits, in their place."""
    needs = (True, False, False, False)
    compute = load(sharded.impl)
    at_logits = compute.cross_entropy_backward(
        grad.to(whole.lse.dtype), block.logits, block.target, whole.lse, needs, 1.0, True, whole.elsewhere
    ).logits
    assert at_logits is not None
    return at_logits


def _gradients(
    head: Head, sharded: ShardedHead, needs: tuple[bool, ...], cut: list[Span] | None, failure: Failure
) -> Together:
    if cut is not None:
        return ScatteredGradients(head, needs, sharded.impl, cut, sharded.shard, failure)
    plan = sharded.plan(head.input.dtype)
    keep = counted(head, plan.target)
    size = head.input.shape[0] if keep is None else keep.shape[0]
    count = ceil(size / block_size(head, plan, size))
    return Together(head, needs, sharded.impl, count, keep is not None, sharded.shard, failure)


def _nothing() -> None:
    """Stand for what a failed process does not do."""


# --- autograd ---------------------------------------------------------------------------------------------------------


class ShardedLinearSum(Function):
    """The sum or mean of the losses of a head's rows, with its gradients; public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, input, weight, bias, sharded, reduction):
        head, needs = Head(input, weight, bias, sharded.shape), ctx.needs_input_grad[:3]
        u, how, given = reduction.sample_weight, reduction.how, reduction.denominator
        losses, row_weight, failure = _zeros(sharded), _zeros(sharded), sharded.failure
        cut = sharded.cut(head)
        gradients = _gradients(head, sharded, needs, cut, failure) if any(needs) else None
        count = 0 if gradients is None else gradients.count

        def keep(block: Block | None, whole: Whole) -> None:
            assert block is not None
            put(losses, block.rows, whole.loss)
            put(row_weight, block.rows, whole.row_weight)
            if gradients is not None:
                grad = torch.ones_like(whole.loss) if u is None else take(u, block.rows)
                if count == 1 and how == "mean":  # one block's gradient is not rounded twice
                    grad = over(grad, _divisor(row_weight, u, given))
                gradients.add(block, _slopes(sharded, block, whole, grad))

        def divisor() -> Tensor | float | None:
            return _divisor(row_weight, u, given) if how == "mean" and count > 1 else None

        for block, whole in _wholes(head, sharded, cut):
            failure.attempt(partial(keep, block, whole), _nothing)
            if gradients is not None:
                gradients.send()
        of_head = (None, None, None) if gradients is None else gradients.brought_together(divisor)
        failure.raise_own()
        loss = reduce_rows(losses, row_weight, reduction)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, bias, *of_head)
        ctx.sharded, ctx.reduction = sharded, reduction
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        tensors, of_head, needs = ctx.saved_tensors[:3], ctx.saved_tensors[3:], ctx.needs_input_grad[:3]
        if differentiated(grad, *tensors):

            def loss(head: Head) -> Tensor:
                return reduce_rows(*_rows_at_once(head, ctx.sharded), ctx.reduction)

            return for_each_input(ctx, *_at_once(loss, grad, tensors, needs, ctx.sharded))
        gradients = iter(scaled(grad, [g for g in of_head if g is not None]))
        return for_each_input(ctx, *(None if g is None else next(gradients) for g in of_head))


def _divisor(row_weight: Tensor, u: Tensor | None, given: float | Tensor | None) -> Tensor | float:
    if given is not None:
        return given
    return ordered_sum(row_weight if u is None else times(u, row_weight))


class ShardedLinearRows(Function):
    """The losses of a head's rows, kept apart; public for its name, which autograd shows."""

    @staticmethod
    def forward(ctx, input, weight, bias, sharded):
        head, failure = Head(input, weight, bias, sharded.shape), sharded.failure
        losses, row_weight, elsewhere = (_zeros(sharded) for _ in range(3))
        lse = torch.stack([losses, losses])

        def keep(block: Block | None, whole: Whole) -> None:
            assert block is not None
            for to, value in ((losses, whole.loss), (row_weight, whole.row_weight), (elsewhere, whole.elsewhere)):
                put(to, block.rows, value)
            for to, value in zip(lse, whole.lse, strict=True):
                put(to, block.rows, value)

        for block, whole in _wholes(head, sharded, sharded.cut(head)):
            failure.attempt(partial(keep, block, whole), _nothing)
        if not any(ctx.needs_input_grad[:3]):
            failure.raise_own()
        if failure.error is not None:  # after the last gather: the others hear of it in backward
            losses.fill_(torch.nan)
        ctx.mark_non_differentiable(row_weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, bias, lse, elsewhere)
        ctx.sharded, ctx.failure = sharded, failure
        return losses, row_weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        *tensors, lse, elsewhere = ctx.saved_tensors
        sharded, needs = ctx.sharded, ctx.needs_input_grad[:3]
        if differentiated(grad, *tensors):
            at_once = _at_once(lambda head: _rows_at_once(head, sharded)[0], grad, tensors, needs, sharded)
            return for_each_input(ctx, *at_once)
        input, weight, bias = tensors
        head = Head(input, weight, bias, sharded.shape)
        cut, failure, form = sharded.cut(head), ctx.failure, FormedInTurn(head, sharded.plan(input.dtype))
        gradients = _gradients(head, sharded, needs, cut, failure)

        def add(rows: slice | Tensor | None, x: Tensor, target: Target) -> None:
            block = form(rows, x)
            block = block if sharded.teacher is None else block._replace(target=target)
            of_block = torch.stack([take(part, rows) for part in lse])
            whole = Whole(of_block, grad, grad, take(elsewhere, rows))
            gradients.add(block, _slopes(sharded, block, whole, take(grad, rows)))

        for rows, x in sharded.parts(head, cut, failure):
            target = sharded.rows.target
            if sharded.teacher is not None:
                target = sharded.taught(sharded.rows.some(rows), rows, failure).target
            failure.attempt(partial(add, rows, x, target), _nothing)
            gradients.send()
        return for_each_input(ctx, *gradients.brought_together())


def _at_once(loss: Any, grad: Tensor, tensors: Any, needs: tuple[bool, ...], sharded: ShardedHead) -> tuple[Any, ...]:
    """Compute gradients that can be differentiated."""
    with torch.enable_grad():
        leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in tensors]
        input, weight, bias = leaves
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
        total = loss(Head(input, weight, bias, sharded.shape))
        gradients = iter(torch.autograd.grad(total, wanted, grad, create_graph=True))
    return tuple(next(gradients) if need else None for need in needs)


def _logits(head: Head, sharded: ShardedHead) -> Rows:
    """Form all logits, where they are few or somebody differentiates what is done with them."""
    input = gather_rows(head.input, sharded.shard.group) if sharded.shard.sequence_parallel else head.input
    return _logits_of(head._replace(input=input), sharded)


def _logits_of(head: Head, sharded: ShardedHead) -> Rows:
    """Form the logits of all rows, which are here."""
    ignored = None if sharded.rows.labels is None else ~sharded.rows.hard.counted_rows(sharded.rows.logits)

    def formed() -> Tensor:
        x = head.input
        if ignored is not None:  # or the products would spread a nan
            absent = ignored.flatten(1).all(1) if ignored.dim() > 1 else ignored
            x = x.masked_fill(absent.unsqueeze(1), 0.0)
        return F.linear(x, head.weight, head.bias).view(x.shape[0], *sharded.shape)

    logits = sharded.failure.attempt(formed, lambda: sharded.rows.logits)
    return sharded.taught(sharded.rows, None, sharded.failure)._replace(logits=logits)


def _shared(head: Head, shard: VocabShard) -> Head:
    """Let each process use its hidden states in its own way, where the gradient is that of all processes."""
    own_way = shard.reduce_input_grad and not shard.sequence_parallel
    return head._replace(input=spread(head.input, shard.group)) if own_way else head


def _rows_at_once(head: Head, sharded: ShardedHead) -> tuple[Tensor, Tensor]:
    rows = _logits(_shared(head, sharded.shard), sharded)
    return row_losses(rows, sharded.shard, sharded.impl, False, sharded.failure)


class ShardedLinearAtOnce(Function):
    """The losses of rows whose logits are formed at once, since class weights, a bias of logits or probabilities want gradients.

    Autograd finds them in a graph of its own, so that what fails there reaches all processes. Public for its name.
    """

    @staticmethod
    def forward(ctx, input, weight, bias, values, class_weight, logit_bias, sharded):
        tensors, shard = (input, weight, bias, values, class_weight, logit_bias), sharded.shard
        here = input
        if shard.sequence_parallel:
            here = finish(start_gathering(input.detach(), shard.group)).flatten(0, 1)
        with torch.enable_grad():
            given = zip((here, *tensors[1:]), ctx.needs_input_grad[:6], strict=True)
            leaves = [None if t is None else t.detach().requires_grad_(need) for t, need in given]
            losses, row_weight = ShardedLinearAtOnce._losses(leaves, sharded, _logits_of)
        ctx.mark_non_differentiable(row_weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.graph, ctx.sharded = (losses, leaves), sharded
        return losses.detach(), row_weight.detach()

    @staticmethod
    def _losses(
        tensors: Sequence[Tensor | None], sharded: ShardedHead, form: Callable[..., Rows]
    ) -> tuple[Tensor, Tensor]:
        input, weight, bias, values, class_weight, logit_bias = tensors
        assert input is not None
        assert weight is not None
        assert values is not None
        target = sharded.rows.target._replace(values=values, weight=class_weight, logit_bias=logit_bias)
        asked = replace(sharded, rows=sharded.rows._replace(target=target))
        rows = form(Head(input, weight, bias, sharded.shape), asked)
        return row_losses(rows, sharded.shard, sharded.impl, False, sharded.failure)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return for_each_input(ctx)
        tensors, sharded, needs = ctx.saved_tensors, ctx.sharded, ctx.needs_input_grad[:6]
        shard, (losses, leaves) = sharded.shard, ctx.graph
        if differentiated(grad, *tensors):
            with torch.enable_grad():
                again = [t if t is None or t.requires_grad else t.detach() for t in tensors]
                losses = ShardedLinearAtOnce._losses(
                    again, sharded, lambda head, asked: _logits(_shared(head, shard), asked)
                )[0]
                wanted = [t for t, need in zip(again, needs, strict=True) if need]
                found = iter(torch.autograd.grad(losses, wanted, grad, create_graph=True, materialize_grads=True))
            return for_each_input(ctx, *(next(found) if need else None for need in needs))
        failure, wanted = Failure(), [t for t, need in zip(leaves, needs, strict=True) if need]

        def gradients() -> tuple[Tensor, ...]:
            return torch.autograd.grad(losses, wanted, grad, retain_graph=True, materialize_grads=True)

        found = iter(failure.attempt(gradients, lambda: ()))
        at_input, *others = (next(found, None) if need else None for need in needs)
        if shard.sequence_parallel and needs[0]:
            at_input = sent_back(at_input, tensors[0], shard, failure)
        else:
            at_input = added_up(at_input, tensors[0], needs[0], shard, failure)
        return for_each_input(ctx, at_input, *others)


# --- what losses call -------------------------------------------------------------------------------------------------


def check_sequence_parallel(target: Target, shift: int) -> None:
    """Refuse what cannot be told apart where each process has its own rows and its own classes."""
    if not target.indices:
        raise RuntimeError(
            "sequence_parallel takes class indices, got probabilities or a teacher: gather the hidden states and give each process "
            "its classes of all rows"
        )
    if any(t is not None and t.dim() > 1 for t in (target.logit_bias, target.class_mask)):
        raise RuntimeError(
            "sequence_parallel takes a logit_bias or class_mask of one value a class, got one for each row"
        )
    if shift:
        raise RuntimeError(
            "sequence_parallel takes no shift, for a row's label may be another process's: shift the labels before the "
            "sequence is cut"
        )


def laid_out(call: Any, target: Target, shard: VocabShard, impl: str | None) -> tuple[Any, ShardedHead]:
    """Bring hidden states, labels and sample weights to where each process needs them, and give the target its part."""
    input, reduction, classes = call.head.input, call.reduction, call.head.shape
    if shard.sequence_parallel:
        target = target._replace(values=of_all_rows(target.values, shard))
        u = reduction.sample_weight
        reduction = reduction._replace(sample_weight=None if u is None else gather(u, shard.group).flatten(0, 1))
    logits = input.new_empty(()).expand(rows_in_all(input, shard), *classes)
    rows, failure = rows_of(logits, target, shard), Failure()
    if call.teacher is None:  # else with each block
        rows = written_out(rows, shard, failure)
    name = choose(logits, impl, rows.target.values, rows.target)
    call = call._replace(reduction=reduction, target=target)
    return call, ShardedHead(rows, classes, shard, call.max_bytes, name, call.teacher, failure)


def rows_in_all(input: Tensor, shard: VocabShard) -> int:
    """Count the rows of all processes."""
    return input.shape[0] * (processes(shard.group) if shard.sequence_parallel else 1)


def sharded_linear(
    head: Head, sharded: ShardedHead, reduction: Reduction, at_once: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the losses of a head's rows and what they weigh, or their sum or mean, and None."""
    u, given = reduction.sample_weight, reduction.denominator
    learned = any(isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled() for t in (u, given))
    if torch.compiler.is_compiling() or transform_under_way(*head[:3], *sharded.rows.target.tensors):
        return _rows_at_once(head, sharded)
    if at_once:
        target = sharded.rows.target
        formed: tuple[Tensor, Tensor] = ShardedLinearAtOnce.apply(
            *head[:3], target.values, target.weight, target.logit_bias, sharded
        )
        return formed
    if not plain(*head[:3], *sharded.rows.target.tensors):  # whatever looks on would not see a kernel
        sharded = replace(sharded, impl=formulas.IMPLEMENTATION.name)
    later = head.input.dtype == torch.float16 and any(t is not None and t.requires_grad for t in head[:3])
    if reduction.how == "none" or learned or later:
        rows: tuple[Tensor, Tensor] = ShardedLinearRows.apply(*head[:3], sharded)
        return rows
    return ShardedLinearSum.apply(*head[:3], sharded, reduction), None


def sharded_linear_statistics(head: Head, sharded: ShardedHead) -> CountedStatistics:
    """Compute the statistics of a head's rows, some at a time; backward forms their logits, and gathers, once more."""
    size, shard, plan = head.input.shape[0], sharded.shard, sharded.plan(head.input.dtype)
    head = _shared(head, shard)
    ranks = processes(shard.group) if shard.sequence_parallel else 1
    step = ceil(block_size(head, plan, size * ranks) / ranks)
    parts = []
    for start in range(0, max(size, 1), step):
        some = slice(start, start + step)
        rows = torch.arange(size * ranks, device=head.input.device).view(ranks, -1)[:, some].flatten()

        def compute(
            input: Tensor, weight: Tensor, bias: Tensor | None, rows: slice | Tensor = some if ranks == 1 else rows
        ) -> tuple[Tensor, ...]:
            part, here = sharded.some(rows), Head(input, weight, bias, head.shape)
            return statistics_tensors(_logits(here, part), shard, part.failure)

        of_block = recomputed(compute, head.input[some], head.weight, head.bias)
        parts.append([values.unflatten(0, (ranks, -1)) for values in of_block])
    each = [torch.cat(values, 1).flatten(0, 1) for values in zip(*parts, strict=True)]
    return CountedStatistics.of(each)
