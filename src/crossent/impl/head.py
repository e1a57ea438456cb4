"""The loss of a linear head over blocks of rows, so that the logits ``h Wᵀ + b`` of all rows never exist together.

A block's logits are formed in one piece of memory of at most ``max_bytes``, the loss is read off them, the gradient is written
over them, and the products that bring it to ``h``, ``W`` and ``b`` are added to what other blocks gave. Losses and what
depends on them are float32 or wider; so is the sum of a head's gradient over several blocks. Rows that are ignored are left
out of the products. Nothing here knows autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, isqrt, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossent.core.reduction import dtype_of_sums, over, times
from crossent.core.target import Target, Teacher
from crossent.impl import formulas, load
from crossent.impl.protocol import NO_CLASS, Implementation, RowStatistics

# Tensors in float32, as large as a block of logits, that a teacher's probabilities take on their way.
TEACHERS_WORKSPACE = 6
_MANY = 64  # blocks from which on their shares of a head's gradient are added up in two steps
_PIECE = 4 << 20  # bytes of a piece of the head, or of its gradient, that is in float32 at a time


class Head(NamedTuple):
    """What makes logits ``(N, C, d1, ...)``: hidden states ``(N, D)``, a matrix ``(C·d1·..., D)`` and a bias as long, or None."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    shape: tuple[int, ...]  # (C, d1, ...)


class Plan(NamedTuple):
    """What a loss says about the logits of a head, and how they are taken apart."""

    target: Target  # of all rows; its values are empty where there is a teacher
    teacher: Teacher | None
    max_bytes: int
    impl: str


Part = tuple[slice | Tensor | None, Tensor]
"""Some rows: which (None is all), and their hidden states."""


class Block(NamedTuple):
    """Some rows: which (None is all), their hidden states, logits and target."""

    rows: slice | Tensor | None
    input: Tensor
    logits: Tensor
    target: Target


def take(x: Tensor, rows: slice | Tensor | None) -> Tensor:
    """Take rows, without a copy where they lie side by side."""
    if rows is None:
        return x
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def put(to: Tensor, rows: slice | Tensor | None, value: Tensor) -> None:
    """Write rows back to where they were taken."""
    if isinstance(rows, Tensor):
        to.index_copy_(0, rows, value.to(to.dtype))
    else:
        to[slice(None) if rows is None else rows] = value


def new(impl: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor, in memory that is used again where the implementation keeps some."""
    return load(impl).empty(shape, like, like.dtype if dtype is None else dtype)


def rows_that_count(target: Target) -> Tensor | None:
    """Mark the rows of hidden states of which some position counts, as ``(N)``; None for all."""
    valid = target.valid
    if target.indices:
        labelled = target.values != target.settings.ignore_index
        valid = labelled if valid is None else valid & labelled
    return valid if valid is None or valid.dim() == 1 else valid.flatten(1).any(1)


def counted(head: Head, target: Target) -> Tensor | None:
    """Find the rows that count, or None for all; a GPU would have to be waited for, and takes all."""
    valid = rows_that_count(target)
    if valid is None or head.input.device.type != "cpu" or head.input.is_meta or valid.all():
        return None
    return valid.nonzero().squeeze(1)


def most_rows(head: Head, plan: Plan) -> int:
    """Say how many rows fit into the memory of a block, one at least."""
    logits = head.input.dtype.itemsize + (plan.target.values.dtype.itemsize if plan.teacher is not None else 0)
    workspace = TEACHERS_WORKSPACE if plan.teacher is not None else load(plan.impl).workspace
    logits += 4 * workspace
    return max(1, plan.max_bytes // max(1, prod(head.shape) * logits))


def block_size(head: Head, plan: Plan, size: int) -> int:
    """Say how many of ``size`` rows are taken at a time, so that blocks are as even as they can be."""
    return ceil(size / ceil(size / most_rows(head, plan))) if size else 1


def blocks(head: Head, plan: Plan) -> Iterator[Block]:
    """Form the logits of the rows that count, block after block, in the same memory."""
    return formed(parts_that_count(head, plan), FormedInTurn(head, plan))


def formed(parts: Iterator[Part], form: FormedInTurn) -> Iterator[Block]:
    """Form the logits of one part after the other."""
    for rows, x in parts:
        yield form(rows, x)


def parts_that_count(head: Head, plan: Plan) -> Iterator[Part]:
    """Cut the rows that count into parts, of which no later one is larger than the first."""
    for rows in rows_of_parts(head, plan):
        yield rows, hidden_states(head, plan, rows)


def rows_of_parts(head: Head, plan: Plan) -> Iterator[slice | Tensor | None]:
    """Say which rows each part has."""
    keep = counted(head, plan.target)
    size = head.input.shape[0] if keep is None else keep.shape[0]
    step = block_size(head, plan, size)
    for start in range(0, size, step):
        if keep is not None:
            yield keep[start : start + step]
        else:
            yield None if step >= size else slice(start, min(start + step, size))


def hidden_states(head: Head, plan: Plan, rows: slice | Tensor | None) -> Tensor:
    """Take the hidden states of some rows."""
    x = take(head.input, rows)
    if x.is_cpu or isinstance(rows, Tensor):
        return x
    valid = rows_that_count(plan.target)  # or the products would spread a nan
    return x if valid is None else x.masked_fill(~take(valid, rows).unsqueeze(1), 0.0)


class FormedInTurn:
    """Forms the logits of parts, of which no later one is larger than the first, in so many pieces of memory in turn."""

    def __init__(self, head: Head, plan: Plan, at_a_time: int = 1) -> None:
        self.head, self.plan, self.at_a_time = head, plan, at_a_time
        self.memories: list[Tensor] = []
        self.pieces: WidePieces | None = None
        self.most = 0

    def __call__(self, rows: slice | Tensor | None, x: Tensor) -> Block:
        """Form a block of rows and their hidden states."""
        head, size = self.head, x.shape[0]
        if not self.most:
            self.most, self.pieces = size, wide_pieces(head.weight, max(1, size), self.plan.impl)
        if len(self.memories) < self.at_a_time:
            self.memories.append(new(self.plan.impl, (self.most, head.weight.shape[0]), head.input))
        else:
            self.memories.append(self.memories.pop(0))
        logits = self.memories[-1][:size]
        _form_logits(head, x, self.pieces, logits)
        return Block(rows, x, logits.view(size, *head.shape), block_target(self.plan, rows, head.shape))


class WidePieces:
    """Products with a head in half precision, in float32 and a piece of its matrix at a time.

    A processor without units for bfloat16 takes several times as long for torch's products in half precision, which also copy
    their whole operands to float32. The pieces are formed in the same memory: malloc would find new memory for each, and keep
    the old.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        step = max(1, _PIECE // (4 * max(1, weight.shape[1] + rows)))
        self.weight, self.step = weight, min(step, max(1, weight.shape[0]))
        self.matrix = weight.new_empty((self.step, weight.shape[1]), dtype=torch.float32)
        self.columns = weight.new_empty(rows * self.step, dtype=torch.float32)

    def _of(self, rows: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give each piece: its place, the matrix there in float32, and memory for as many columns of some rows."""
        for k in range(0, self.weight.shape[0], self.step):
            part = self.weight[k : k + self.step]
            columns = self.columns[: rows * part.shape[0]].view(rows, part.shape[0])
            yield slice(k, k + part.shape[0]), self.matrix[: part.shape[0]].copy_(part), columns

    def logits(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Write ``x Wᵀ + b``."""
        x = x.float()
        for place, matrix, columns in self._of(x.shape[0]):
            torch.mm(x, matrix.t(), out=columns)
            out[:, place] = columns if bias is None else columns.add_(bias[place])

    def back(self, g: Tensor) -> Tensor:
        """Compute ``g W`` in float32."""
        sums = g.new_zeros((g.shape[0], self.weight.shape[1]), dtype=torch.float32)
        for place, matrix, columns in self._of(g.shape[0]):
            sums.addmm_(columns.copy_(g[:, place]), matrix)
        return sums

    def accumulate(self, g: Tensor, x: Tensor, sums: Tensor, first: bool) -> None:
        """Add ``gᵀ x`` to sums in float32, or put it there; sums in half precision are those of one block and put there."""
        x = x.float()
        for k in range(0, self.weight.shape[0], self.step):
            part = g[:, k : k + self.step]
            columns = self.columns[: part.numel()].view(part.shape).copy_(part)
            if sums.dtype == torch.float32:
                sums[k : k + self.step].addmm_(columns.t(), x, beta=0.0 if first else 1.0)
            else:
                sums[k : k + self.step] = columns.t() @ x


_MULTIPLIES_TO_FLOAT32: dict[str, bool] = {}  # which devices have such products, as the first try showed


def accumulate_in_float32(g: Tensor, x: Tensor, sums: Tensor, first: bool) -> bool:
    """Add ``gᵀ x`` of half precision to sums in float32 by one product, or put it there; False on the CPU, which has none.

    Where another device has none that leaves its sums in float32, each block's product is rounded once, as torch rounds that of
    all rows: there are few blocks.
    """
    device = g.device.type
    if device == "cpu" or sums.dtype != torch.float32 or g.dtype.itemsize >= 4:
        return False
    if _MULTIPLIES_TO_FLOAT32.get(device, True):
        try:
            if first:
                torch.mm(g.t(), x, out_dtype=torch.float32, out=sums)
            else:
                torch.addmm(sums, g.t(), x, out_dtype=torch.float32, out=sums)
            return True
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError, TypeError):
            _MULTIPLIES_TO_FLOAT32[device] = False
    sums.copy_(g.t() @ x) if first else sums.add_(g.t() @ x)
    return True


def wide_pieces(weight: Tensor, rows: int, impl: str) -> WidePieces | None:
    """Return what multiplies in float32 where an implementation would rather not use torch's products of this dtype."""
    return None if load(impl).multiplies_in(weight.dtype) else WidePieces(weight, rows)


def _form_logits(head: Head, x: Tensor, pieces: WidePieces | None, out: Tensor) -> None:
    """Form ``x Wᵀ + b``."""
    if pieces is not None:
        pieces.logits(x, head.bias, out)
    elif head.bias is None:
        torch.mm(x, head.weight.t(), out=out)
    else:
        torch.addmm(head.bias, x, head.weight.t(), out=out)


def block_target(plan: Plan, rows: slice | Tensor | None, shape: tuple[int, ...]) -> Target:
    """Describe the target of some rows."""
    target = plan.target
    bias, mask = (
        None if x is None else x if x.dim() == 1 else take(x, rows) for x in (target.logit_bias, target.class_mask)
    )
    valid = target.valid
    if valid is not None:  # rows that are listed were chosen because they count, at some position
        valid = None if valid.dim() == 1 and isinstance(rows, Tensor) else take(valid, rows)
    if plan.teacher is None:
        values = take(target.values, rows)
    else:
        values = teacher_probabilities(plan.teacher, rows, shape, plan.impl, mask)
    return target._replace(values=values, logit_bias=bias, class_mask=mask, valid=valid)


def teacher_probabilities(
    teacher: Teacher, rows: slice | Tensor | None, shape: tuple[int, ...], impl: str, mask: Tensor | None
) -> Tensor:
    """Compute ``softmax(z / T)`` of the teacher's logits over the classes that these rows allow, in float32 or wider."""
    z = teacher_logits(teacher, rows, shape, impl, mask)
    return z.softmax(1, dtype=z.dtype)


def teacher_logits(
    teacher: Teacher, rows: slice | Tensor | None, shape: tuple[int, ...], impl: str, mask: Tensor | None
) -> Tensor:
    """Compute ``z / T`` of the teacher's logits, minus infinity where a mask forbids a class, in float32 or wider."""
    x, wide = take(teacher.input, rows), torch.promote_types(teacher.input.dtype, torch.float32)
    z = x.new_empty((x.shape[0], teacher.weight.shape[0]))
    head = Head(x, teacher.weight, teacher.bias, shape)
    _form_logits(head, x, wide_pieces(teacher.weight, max(1, x.shape[0]), impl), z)
    z = z.view(x.shape[0], *shape).to(wide).div_(teacher.temperature)
    if mask is not None:
        mask = mask.reshape([-1] + [1] * (z.dim() - 2)) if mask.dim() == 1 else mask
        z.masked_fill_(~mask, -torch.inf)
    return z


class Gradients:
    """The gradients of hidden states, matrix and bias, as far as they are needed, added up over ``count`` blocks.

    Each block's share of a head's gradient is rounded as it is added. Where there are so many that this would show, those of
    some blocks are added up first, in a second piece of memory.
    """

    def __init__(self, head: Head, needs: tuple[bool, ...], impl: str, count: int, skipping: bool) -> None:
        self.head, self.needs, self.impl = head, needs, impl
        self.pieces: WidePieces | None = None
        self.wide = torch.promote_types(head.weight.dtype, torch.float32) if count > 1 else head.weight.dtype
        self.group, self.added = isqrt(count) if count > _MANY and self.wide == head.weight.dtype else 0, 0
        self.sums: Tensor | None = None
        self.input = new(impl, tuple(head.input.shape), head.input) if needs[0] else None
        if self.input is not None and skipping:
            self.input.zero_()
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, block: Block, at_logits: Tensor) -> None:
        """Add what one block gives."""
        g = at_logits.flatten(1)
        if self.pieces is None and not load(self.impl).multiplies_in(g.dtype):
            self.pieces = WidePieces(self.head.weight, g.shape[0])
        if self.input is not None:
            self._add_input(g, block)
        if self.needs[1]:
            self._add_weight(g, block.input)
        if self.needs[2]:
            total = g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32))
            self.bias = total if self.bias is None else self.bias.add_(total)

    def _add_input(self, g: Tensor, block: Block) -> None:
        assert self.input is not None
        if self.pieces is not None:
            put(self.input, block.rows, self.pieces.back(g))
        elif isinstance(block.rows, Tensor):
            put(self.input, block.rows, g @ self.head.weight)
        else:
            torch.mm(g, self.head.weight, out=self.input if block.rows is None else self.input[block.rows])

    def _add_weight(self, g: Tensor, x: Tensor) -> None:
        first = self.weight is None
        if self.weight is None:
            self.weight = new(self.impl, tuple(self.head.weight.shape), self.head.weight, self.wide)
        elif self.group and self.added % self.group == 0:
            self.sums = self.weight.clone() if self.sums is None else self.sums.add_(self.weight)
            first = True
        self.added += 1
        if self.wide == g.dtype and self.pieces is None:
            if first:
                torch.mm(g.t(), x, out=self.weight)
            else:
                self.weight.addmm_(g.t(), x)
            return
        # The product of a block, rounded to half precision, would lose what the sum over blocks is to keep.
        if load(self.impl).accumulate(g, x, self.weight, first) or accumulate_in_float32(g, x, self.weight, first):
            return
        if self.pieces is None:
            self.pieces = WidePieces(self.head.weight, g.shape[0])
        self.pieces.accumulate(g, x, self.weight, first)

    def finish(self, divisor: float | Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients, over a divisor, in the dtype of what they belong to; zeros where no row counted."""
        head = self.head
        weight = self.weight
        if self.needs[1] and weight is None:
            weight = torch.zeros_like(head.weight, memory_format=torch.contiguous_format)
        if weight is not None and self.sums is not None:
            weight = self.sums.add_(weight)
        bias = self.bias
        if head.bias is not None and self.needs[2]:
            bias = torch.zeros_like(head.bias) if bias is None else bias
        return (
            self._finished(self.input, head.input, divisor),
            self._finished(weight, head.weight, divisor),
            (self._finished(bias, head.bias, divisor)),
        )

    @staticmethod
    def _finished(gradient: Tensor | None, of: Tensor | None, divisor: float | Tensor | None) -> Tensor | None:
        if gradient is None or of is None:
            return gradient
        return (gradient if divisor is None else over(gradient, divisor)).to(of.dtype)


def _gradients_for(head: Head, plan: Plan, needs: tuple[bool, ...]) -> Gradients:
    keep = counted(head, plan.target)
    size = head.input.shape[0] if keep is None else keep.shape[0]
    return Gradients(head, needs, plan.impl, ceil(size / block_size(head, plan, size)), keep is not None)


def loss_and_gradients(
    head: Head, plan: Plan, factor: Tensor | None, divisor: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Compute ``Σ_n factor_n loss_n / divisor`` and, as far as they are needed, its gradients, reading each block once."""
    compute = load(plan.impl)
    gradients = _gradients_for(head, plan, needs) if any(needs) else None
    totals, sums = list[Tensor](), dtype_of_sums(head.input.device)
    for block in blocks(head, plan):
        u = None if factor is None else take(factor, block.rows)
        if gradients is not None and not compute.waits and (u is None or compute.weighs_samples):
            loss, at_logits = _loss_and_slope(compute, block, divisor, u)
            totals.append(loss.to(sums))
            gradients.add(block, at_logits)
            continue
        loss, _, lse = compute.cross_entropy_forward(block.logits, block.target, "sum" if factor is None else "none")
        totals.append(loss.to(sums) if u is None else times(u, loss.to(sums)).sum())
        if gradients is not None:
            grad = torch.ones_like(loss) if u is None else u.to(loss.dtype)
            at_logits = _at_logits(
                compute, grad if u is None else grad / divisor, block, lse, divisor if u is None else 1.0
            )
            gradients.add(block, at_logits)
    wide = torch.promote_types(head.input.dtype, torch.float32)
    zero = torch.zeros((), dtype=sums, device=head.input.device)
    total = (torch.stack(totals).sum() if totals else zero) / divisor
    return total.to(wide), (None, None, None) if gradients is None else gradients.finish()


def _loss_and_slope(compute: Implementation, block: Block, divisor: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the sum of a block's losses, weighed by ``u``, and the gradient for its logits in their place, in one pass."""
    wide, factor = torch.promote_types(block.logits.dtype, torch.float32), over(torch.ones_like(divisor), divisor)
    one_pass: Any = compute.cross_entropy_sum  # which takes a number of the device where it does not wait for it
    weighed = {} if u is None else {"sample_weight": u.to(wide)}
    loss, _, gradient = one_pass(block.logits, block.target, False, wide, factor, True, **weighed)
    return loss, gradient


def _at_logits(
    compute: Implementation, grad: Tensor, block: Block, lse: Tensor | None, divisor: float | Tensor = 1.0
) -> Tensor:
    """Compute the gradient for a block's logits, in their place where the implementation can."""
    needs = (True, False, False, False)
    assert lse is not None
    at_logits = compute.cross_entropy_backward(grad, block.logits, block.target, lse, needs, divisor, True).logits
    assert at_logits is not None
    return at_logits


def row_losses(head: Head, plan: Plan) -> Tensor:
    """Compute the loss of every row, 0 where it is ignored."""
    compute, losses = load(plan.impl), _zero_rows(head)
    for block in blocks(head, plan):
        put(losses, block.rows, compute.cross_entropy_forward(block.logits, block.target, "none").loss)
    return losses


def statistics(head: Head, plan: Plan) -> RowStatistics:
    """Compute the statistics of every row; one that is ignored has 0, and no class."""
    compute, zeros = load(plan.impl), _zero_rows(head)
    of_rows = RowStatistics.made_by(lambda dtype: torch.zeros_like(zeros, dtype=dtype), zeros.dtype)
    of_rows.predicted.fill_(NO_CLASS)
    for block in blocks(head, plan):
        for to, value in zip(of_rows, compute.statistics(block.logits, block.target), strict=True):
            put(to, block.rows, value)
    return of_rows


def _zero_rows(head: Head) -> Tensor:
    wide = torch.promote_types(head.input.dtype, torch.float32)
    return torch.zeros((head.input.shape[0], *head.shape[1:]), dtype=wide, device=head.input.device)


HeadGradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def row_losses_backward(head: Head, plan: Plan, grad: Tensor, needs: tuple[bool, ...]) -> HeadGradients:
    """Compute the gradients from that of every row's loss; each block is formed once more."""
    compute, gradients = load(plan.impl), _gradients_for(head, plan, needs)
    for block in blocks(head, plan):
        lse = compute.cross_entropy_forward(block.logits, block.target, "none").lse
        gradients.add(block, _at_logits(compute, take(grad, block.rows), block, lse))
    return gradients.finish()


def statistics_backward(head: Head, plan: Plan, grads: list[Tensor], needs: tuple[bool, ...]) -> HeadGradients:
    """Compute the gradients from those of four statistics of every row; each block is formed once more."""
    loss, *others = grads
    if loss.device.type == "cpu" and not loss.is_meta and not any(grad.count_nonzero() for grad in others):
        return row_losses_backward(head, plan, loss, needs)
    plan = plan._replace(impl=formulas.IMPLEMENTATION.name)
    gradients, on_logits = _gradients_for(head, plan, needs), (True, False, False, False)
    for block in blocks(head, plan):
        of_block = tuple(take(grad, block.rows) for grad in grads)
        at_logits = formulas.statistics_backward(of_block, block.logits, block.target, on_logits).logits
        assert at_logits is not None
        gradients.add(block, at_logits)
    return gradients.finish()
