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

from crossent.core.target import Target
from crossent.impl import load

_EAGER_COPIES = 6  # tensors in float32 as large as the logits that torch operations make on their way
_MANY = 64  # blocks from which on their shares of a head's gradient are added up in two steps
_PIECE = 8 << 20  # bytes of a piece of the head's gradient that is widened at a time


class Teacher(NamedTuple):
    """The target of a distillation: ``t = softmax((h Wᵀ + b) / T)`` of a teacher's hidden states and head, formed in blocks.

    Attributes:
        input: hidden states ``h``, ``(..., D)``, the same leading dimensions as the student's.
        weight: head ``W``, ``(C, D)`` or ``(C, d1, ..., D)``.
        bias: ``b``, of the shape of ``W`` without its last dimension.
        temperature: ``T``, positive.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0


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
        to.index_copy_(0, rows, value)
    else:
        to[slice(None) if rows is None else rows] = value


def new(impl: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor, in memory that is used again where the implementation keeps some."""
    dtype = like.dtype if dtype is None else dtype
    if impl == "native":
        empty: Tensor = load("native").new(shape, None, dtype)
        return empty
    return torch.empty(shape, dtype=dtype, device=like.device)


def counted(head: Head, target: Target) -> Tensor | None:
    """Find the rows that are not ignored, or None for all; a GPU would have to be waited for, and takes all."""
    if not target.indices or head.input.device.type != "cpu" or head.input.is_meta:
        return None
    valid = target.values != target.ignore_index
    if valid.dim() > 1:
        valid = valid.flatten(1).any(1)
    return None if valid.all() else valid.nonzero().squeeze(1)


def block_size(head: Head, plan: Plan, size: int) -> int:
    """Say how many of ``size`` rows are taken at a time, so that blocks are as even as they can be."""
    logits = head.input.dtype.itemsize + (plan.target.values.dtype.itemsize if plan.teacher is not None else 0)
    if plan.impl == "eager" or plan.teacher is not None:
        logits += 4 * _EAGER_COPIES
    most = max(1, plan.max_bytes // max(1, prod(head.shape) * logits))
    return ceil(size / ceil(size / most)) if size else 1


def blocks(head: Head, plan: Plan) -> Iterator[Block]:
    """Form the logits of the rows that count, block after block, in the same memory."""
    keep = counted(head, plan.target)
    size = head.input.shape[0] if keep is None else keep.shape[0]
    step = block_size(head, plan, size)
    columns = head.weight.shape[0]
    memory = new(plan.impl, (min(step, size), columns), head.input)
    for start in range(0, size, step):
        rows: slice | Tensor | None = (
            slice(start, min(start + step, size)) if keep is None else keep[start : start + step]
        )
        if step >= size and keep is None:
            rows = None
        x = take(head.input, rows)
        logits = memory[: x.shape[0]]
        if head.bias is None:
            torch.mm(x, head.weight.t(), out=logits)
        else:
            torch.addmm(head.bias, x, head.weight.t(), out=logits)
        yield Block(rows, x, logits.view(-1, *head.shape), block_target(plan, rows, head.shape))


def block_target(plan: Plan, rows: slice | Tensor | None, shape: tuple[int, ...]) -> Target:
    """Describe the target of some rows."""
    target = plan.target
    values = target.values if plan.teacher is None else teacher_probabilities(plan.teacher, rows, shape)
    values = take(values, rows) if plan.teacher is None else values
    bias, mask = (
        None if x is None else x if x.dim() == 1 else take(x, rows) for x in (target.logit_bias, target.class_mask)
    )
    return target._replace(values=values, logit_bias=bias, class_mask=mask)


def teacher_probabilities(teacher: Teacher, rows: slice | Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Compute ``softmax(z / T)`` of the teacher's logits, in float32 or wider."""
    z = torch.nn.functional.linear(take(teacher.input, rows), *teacher[1:3]).view(-1, *shape)
    wide = torch.promote_types(z.dtype, torch.float32)
    return z.to(wide).div_(teacher.temperature).softmax(1, dtype=wide)


class Gradients:
    """The gradients of hidden states, matrix and bias, as far as they are needed, added up over ``count`` blocks.

    Each block's share of a head's gradient is rounded as it is added. Where there are so many that this would show, those of
    some blocks are added up first, in a second piece of memory.
    """

    def __init__(self, head: Head, needs: tuple[bool, ...], impl: str, count: int, skipping: bool) -> None:
        self.head, self.needs, self.impl = head, needs, impl
        self.wide = torch.promote_types(head.weight.dtype, torch.float32) if count > 1 else head.weight.dtype
        self.group, self.added = isqrt(count) if count > _MANY and self.wide == head.weight.dtype else 0, 0
        self.sums: Tensor | None = None
        self.input = new(impl, tuple(head.input.shape), head.input) if needs[0] else None
        if self.input is not None and skipping:
            self.input.zero_()
        self.weight: Tensor | None = None
        self.piece: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, block: Block, at_logits: Tensor) -> None:
        """Add what one block gives."""
        g = at_logits.reshape(at_logits.shape[0], -1)
        if self.input is not None:
            if isinstance(block.rows, Tensor):
                put(self.input, block.rows, g @ self.head.weight)
            else:
                torch.mm(g, self.head.weight, out=self.input if block.rows is None else self.input[block.rows])
        if self.needs[1]:
            self._add_weight(g, block.input)
        if self.needs[2]:
            total = g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32))
            self.bias = total if self.bias is None else self.bias.add_(total)

    def _add_weight(self, g: Tensor, x: Tensor) -> None:
        first = self.weight is None
        if self.weight is None:
            self.weight = new(self.impl, tuple(self.head.weight.shape), self.head.weight, self.wide)
        elif self.group and self.added % self.group == 0:
            self.sums = self.weight.clone() if self.sums is None else self.sums.add_(self.weight)
            first = True
        self.added += 1
        if self.wide == g.dtype:
            if first:
                torch.mm(g.t(), x, out=self.weight)
            else:
                self.weight.addmm_(g.t(), x)
            return
        # The product of a block, rounded to half precision, would lose what the sum over blocks is to keep.
        if self.impl == "native" and load("native").accumulate(g, x, self.weight, first):
            return
        if self.piece is None:  # for all pieces: malloc would find new memory for each, and keep the old
            step = max(1, _PIECE // (self.wide.itemsize * max(1, g.shape[0])))
            self.piece = g.new_empty((g.shape[0], min(step, g.shape[1])), dtype=self.wide)
        x, step = x.to(self.wide), self.piece.shape[1]
        for k in range(0, g.shape[1], step):
            part = g[:, k : k + step]
            wide = self.piece[: part.shape[0], : part.shape[1]].copy_(part)
            self.weight[k : k + step].addmm_(wide.t(), x, beta=0.0 if first else 1.0)

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in the dtype of what they belong to; zeros where no row counted."""
        head = self.head
        weight = torch.zeros_like(head.weight) if self.needs[1] and self.weight is None else self.weight
        if weight is not None and self.sums is not None:
            weight = self.sums.add_(weight)
        bias = self.bias
        if head.bias is not None and self.needs[2]:
            bias = torch.zeros_like(head.bias) if bias is None else bias.to(head.bias.dtype)
        return self.input, None if weight is None else weight.to(head.weight.dtype), bias


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
    totals: list[Tensor] = []
    for block in blocks(head, plan):
        loss, _, lse = compute.cross_entropy_forward(block.logits, block.target, "sum" if factor is None else "none")
        u = None if factor is None else take(factor, block.rows)
        totals.append(loss.double() if u is None else (loss.double() * u).sum())
        if gradients is not None:
            grad = torch.ones_like(loss) if u is None else u.to(loss.dtype)
            at_logits = _at_logits(
                compute, grad if u is None else grad / divisor, block, lse, divisor if u is None else 1.0
            )
            gradients.add(block, at_logits)
    wide = torch.promote_types(head.input.dtype, torch.float32)
    zero = torch.zeros((), dtype=torch.float64, device=head.input.device)
    total = (torch.stack(totals).sum() if totals else zero) / divisor
    return total.to(wide), (None, None, None) if gradients is None else gradients.finish()


def _at_logits(compute: Any, grad: Tensor, block: Block, lse: Tensor | None, divisor: float | Tensor = 1.0) -> Tensor:
    """Compute the gradient for a block's logits, in their place where the implementation can."""
    needs = (True, False, False, False)
    at_logits: Tensor = compute.cross_entropy_backward(grad, block.logits, block.target, lse, needs, divisor, True)[0]
    return at_logits


def rows_of(head: Head, plan: Plan, statistics: bool) -> tuple[Tensor, Tensor]:
    """Compute the loss of every row, 0 where it is ignored; or the stacks of statistics, and whether rows are correct."""
    compute = load(plan.impl)
    rows = (head.input.shape[0], *head.shape[1:])
    wide = torch.promote_types(head.input.dtype, torch.float32)
    told = torch.zeros((4 if statistics else 1, *rows), dtype=wide, device=head.input.device)
    correct = torch.zeros(rows if statistics else (0,), dtype=wide, device=head.input.device)
    for block in blocks(head, plan):
        if statistics:
            of_rows, weights = _statistics(plan.impl, block)
            put(correct, block.rows, weights[1])
        else:
            of_rows = compute.cross_entropy_forward(block.logits, block.target, "none")[0].unsqueeze(0)
        for to, value in zip(told, of_rows, strict=True):
            put(to, block.rows, value)
    return told, correct


def _statistics(impl: str, block: Block) -> tuple[Tensor, Tensor]:
    compute = load(impl)
    if impl == "native":
        both: tuple[Tensor, Tensor] = compute.cross_entropy_statistics(block.logits, block.target)
        return both
    told, weights, _ = compute.cross_entropy_forward(block.logits, block.target, "statistics")
    return told, weights


def rows_backward(
    head: Head, plan: Plan, grads: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients from those of every row's loss, or of its four statistics; each block is formed once more."""
    if grads.device.type == "cpu" and not grads.is_meta and not grads[1:].count_nonzero():
        grads = grads[:1]  # of the loss alone
    statistics = grads.shape[0] > 1
    plan = plan._replace(impl="eager") if statistics else plan
    compute, gradients = load(plan.impl), _gradients_for(head, plan, needs)
    for block in blocks(head, plan):
        if statistics:
            grad, lse = torch.stack([take(g, block.rows) for g in grads]), None
        else:
            grad = take(grads[0], block.rows)
            lse = compute.cross_entropy_forward(block.logits, block.target, "none")[2]
        gradients.add(block, _at_logits(compute, grad, block, lse))
    return gradients.finish()
