"""Softmax cross entropy of logits whose classes lie on several processes.

Each process reduces its classes to six numbers a row; those are gathered, once, and put together in the same way everywhere.
What backward needs beside the lse of all is how much mass a row has elsewhere, which the same numbers tell. So backward needs no
other process. A penalty on all classes needs a second look at the row, with the lse of all, and a second gather.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from crossent.core import checks
from crossent.core.modes import plain, readable
from crossent.core.penalties import NamedPenalty, Penalty
from crossent.core.reduction import Reduction, compute_dtype, reduce_rows, result_dtype, times
from crossent.core.settings import Settings
from crossent.core.shard import VocabShard
from crossent.core.target import ELSEWHERE, Target, describe, stand_in
from crossent.impl import choose, formulas, load
from crossent.impl.head import take
from crossent.impl.protocol import Partials
from crossent.ops.library import differentiated, for_each_input, like, tell_if_in_place
from crossent.ops.linear import transform_under_way
from crossent.parallel.agreement import agreeing
from crossent.parallel.collectives import (
    Failure,
    finish,
    gather,
    pack,
    rank_in,
    spread,
    start_gathering,
    unpack,
)

_NUMBERS = frozenset(
    {"ignore_index", "label_smoothing", "temperature", "softcap", "margin", "z_loss", "penalty", "all_classes"}
)  # those that are put together here, or in the logits of each shard; another is refused, and never ignored
_IGNORED = -100  # of a shard's own labels, whatever index the caller ignores
_EAGER = formulas.IMPLEMENTATION


class Columns(NamedTuple):
    """What a process tells of each row: its :class:`Partials`, and what the row weighs and may be there."""

    top: Tensor
    log_sum: Tensor
    loss: Tensor
    mass: Tensor
    row_weight: Tensor  # c[y] of a class index that is here, 1 with probabilities
    allowed: Tensor  # how many classes a mask allows here


NUMBERS = len(Columns._fields)


class Rows(NamedTuple):
    """Logits ``(N, C_s, d1, ...)``, what is asked of them, and what is known of each row without them."""

    logits: Tensor
    target: Target  # of this shard
    hard: Target  # the same before smoothing over the classes that masks allow was written out
    row_weight: Tensor
    allowed: Tensor
    wrong: Tensor | None  # rows whose label is out of range, where nobody waits to find out
    labels: Tensor | None  # class indices of all classes; a row's weight is that of its class, which one process has
    z_loss: float

    def some(self, rows: slice | Tensor | None) -> Rows:
        """Say what is asked of some rows, given as :func:`crossent.impl.head.take` wants them."""

        def of(target: Target) -> Target:
            per_class = [
                t if t is None or t.dim() == 1 else take(t, rows) for t in (target.logit_bias, target.class_mask)
            ]
            valid = None if target.valid is None else take(target.valid, rows)
            return target._replace(
                values=take(target.values, rows), logit_bias=per_class[0], class_mask=per_class[1], valid=valid
            )

        wrong, labels = (None if t is None else take(t, rows) for t in (self.wrong, self.labels))
        logits, row_weight, allowed = (take(t, rows) for t in (self.logits, self.row_weight, self.allowed))
        return Rows(logits, of(self.target), of(self.hard), row_weight, allowed, wrong, labels, self.z_loss)

    @property
    def described(self) -> Target:
        """What was asked of all classes, as other processes are asked, too."""
        settings = replace(self.target.settings, z_loss=self.z_loss)
        values = self.target.values if self.labels is None else self.labels
        return self.target._replace(values=values, settings=settings)

    @property
    def indexed(self) -> bool:
        """Whether the target holds class indices."""
        return self.labels is not None

    @property
    def penalised(self) -> bool:
        """Whether there is another penalty than ``-log p``."""
        return self.target.penalty is not None

    @property
    def penalises_all(self) -> bool:
        """Whether every class has a weight that a penalty multiplies, so that the lse of all must be known first."""
        soft = not self.target.indices or self.target.settings.label_smoothing != 0
        return self.penalised and soft

    @property
    def first_target(self) -> Target:
        """What the first look at the row is told: without penalty, which sees the probability among all classes."""
        target = self.target
        if not self.penalised:
            return target
        weight = target.weight if self.penalises_all else None  # c f(p), and not f of c times the cost
        return target._replace(settings=replace(target.settings, penalty=NamedPenalty()), weight=weight)


class Whole(NamedTuple):
    """The rows put together: their lse (top, log_sum), loss, weight, and the mass that each has elsewhere."""

    lse: Tensor
    loss: Tensor
    row_weight: Tensor
    elsewhere: Tensor


def shard_rows(
    input: Tensor, target: Tensor, weight: Tensor | None, dim: int | None, options: dict[str, Any], shard: VocabShard
) -> Rows:
    """Check what the caller gave, and lay it out as rows of this shard."""
    checks.check_tensors(input=input, target=target)
    axis = checks.class_axis(input, dim)
    size = input.shape[axis]
    if shard.start + size > shard.classes:
        raise ValueError(
            f"shard says that these are classes from {shard.start} on, of {shard.classes} in all, but input has {size}"
        )
    parts = dict(options)
    for name in ("logit_bias", "class_mask"):
        value = options.get(name)
        if isinstance(value, Tensor):
            parts[name] = shard.part(value, 0 if value.dim() == 1 else axis, size)
    if isinstance(weight, Tensor):
        weight = shard.part(weight, 0, size)
    if target.dim() == input.dim():
        target = shard.part(target, axis, size)
    mask = parts.pop("class_mask", None)
    logits, described = describe(input, target, weight, dim, parts)
    if mask is not None:
        mask = checks.along_classes_or_whole(checks.check_mask(mask), "class_mask", input, axis)
        mask = mask.unsqueeze(0) if input.dim() == 1 and mask.dim() > 1 else mask
    return rows_of(logits, described._replace(class_mask=mask), shard)


def rows_of(logits: Tensor, target: Target, shard: VocabShard) -> Rows:
    """Give a target of all classes this shard's part of it."""
    rows, settings, wrong = logits.shape[:1] + logits.shape[2:], target.settings, None
    unknown = settings.unknown_to(_NUMBERS)
    if unknown is not None:
        raise NotImplementedError(f"{unknown} does not work with a shard of the classes: leave one of the two out")
    labels = target.values if target.indices else None
    dtype = compute_dtype(logits, target.values)
    z_loss, size = settings.z_loss, logits.shape[1]
    if target.indices:
        if readable(target.values):
            target.raise_if_out_of_range(shard.classes)
        else:
            y, counted = target.values, target.values != settings.ignore_index
            wrong = counted & ((y < 0) | (y >= shard.classes))
        here = target.values - shard.start
        here = here.masked_fill((here < 0) | (here >= size), ELSEWHERE)
        target = target._replace(values=here.masked_fill(target.values == settings.ignore_index, _IGNORED))
    allowed = torch.ones(rows, dtype=dtype, device=logits.device)
    mask = target.class_mask
    if mask is not None:
        allowed = mask.sum(0 if mask.dim() == 1 else 1).to(dtype).expand(rows)
    settings = replace(settings, ignore_index=_IGNORED, z_loss=0.0, all_classes=shard.classes)
    target = target._replace(settings=settings)
    row_weight = target.row_weights(stand_in(logits, dtype)).squeeze(1) if size else allowed.new_zeros(rows)
    if size == 0 and not target.indices:
        row_weight = row_weight + 1
    return Rows(logits, target, target, row_weight, allowed, wrong, labels, z_loss)


def written_out(rows: Rows, shard: VocabShard, failure: Failure) -> Rows:
    """Write out a target that is smoothed over the classes which masks on several processes allow; all come here together."""
    target, settings, allowed = rows.target, rows.target.settings, rows.allowed
    if target.class_mask is None or not settings.label_smoothing:
        return rows
    all_allowed = finish(start_gathering(allowed, shard.group)).sum(0).clamp_min(1.0).unsqueeze(1)

    def written() -> Rows:
        x, mask = stand_in(rows.logits, allowed.dtype), target.class_mask
        assert mask is not None
        share = formulas.as_logits(mask.to(x.dtype), x) / all_allowed
        hard = Target(target.values, valid=target.valid, settings=Settings(_IGNORED, all_classes=shard.classes))
        before = formulas.smoothed_target(hard, x)
        t, ignored = (1 - settings.label_smoothing) * before + settings.label_smoothing * share, target.ignored_rows()
        if ignored is not None:
            t = t.masked_fill(ignored, 0.0)
        bias = target.logit_bias
        if settings.margin:  # which is of the target before smoothing
            bias = (0.0 if bias is None else formulas.as_logits(bias.to(x.dtype), x)) - settings.margin * before
        valid = None if ignored is None else ~ignored.squeeze(1)
        hardened = replace(settings, label_smoothing=0.0, margin=0.0)
        return rows._replace(target=target._replace(values=t, settings=hardened, valid=valid, logit_bias=bias))

    return failure.attempt(written, lambda: rows)


# --- putting together -------------------------------------------------------------------------------------------------


def columns_of(rows: Rows, partials: Partials) -> Tensor:
    """Write the columns of a process as ``(6, N, d1, ...)``."""
    dtype = rows.allowed.dtype
    each = Columns(partials.lse[0], partials.lse[1], partials.loss, partials.mass, rows.row_weight, rows.allowed)
    return torch.stack([column.to(dtype) for column in each])


def lse_above(each: Columns) -> tuple[Tensor, Tensor, Tensor]:
    """Compute top and log_sum of all shards, and ``lse - lse_s`` of each: infinite where a shard has nothing possible."""
    top, winner = each.top.max(0, keepdim=True)
    level = top.masked_fill(top == -torch.inf, 0.0)
    others = ((each.top - level) + each.log_sum).exp().scatter(0, winner, 0.0).sum(0)
    log_sum = (others + each.log_sum.gather(0, winner).squeeze(0).expm1()).log1p()
    return top.squeeze(0), log_sum, (level - each.top) + (log_sum - each.log_sum)


def together(rows: Rows, gathered: Tensor, rank: int) -> Whole:
    """Put the columns ``(P, 6, N, d1, ...)`` of all processes together."""
    each = Columns(*gathered.unbind(1))
    top, log_sum, up = lse_above(each)
    loss = (each.loss + times(each.mass, up)).sum(0)
    row_weight = each.row_weight.sum(0) if rows.indexed else each.row_weight[0]
    elsewhere = _without(each.mass, rank)
    if rows.penalised and not rows.penalises_all:
        log_p, penalty = -loss, rows.target.penalty
        assert penalty is not None
        loss = times(row_weight, _costs(log_p, penalty)).masked_fill(each.mass.sum(0) == 0, 0.0)
        elsewhere = times(_without(each.row_weight, rank), penalty.s(log_p))
    if rows.z_loss:
        lse = top + log_sum
        loss = loss + times(row_weight, rows.z_loss * lse.square())
        elsewhere = elsewhere + times(row_weight, 2 * rows.z_loss * lse)
    nothing = each.allowed.sum(0) == 0
    lse = torch.stack([top, log_sum])
    if rows.target.class_mask is not None:
        lse, row_weight, loss, elsewhere = (t.masked_fill(nothing, 0.0) for t in (lse, row_weight, loss, elsewhere))
    lost = top == -torch.inf  # no class is possible, though one is allowed
    loss = loss.masked_fill(lost & ~nothing & (row_weight != 0), torch.nan)
    if rows.wrong is not None:
        loss = loss.masked_fill(rows.wrong, torch.nan)
    return Whole(lse, loss, row_weight, elsewhere)


def _costs(log_p: Tensor, penalty: Penalty) -> Tensor:
    """Compute f(log p), whose derivative -s autograd finds also at a probability of 0, where that of the formula is nan."""
    impossible = log_p == -torch.inf
    nothing = torch.full_like(log_p, -torch.inf)
    most = penalty.f(nothing)
    there = times(penalty.s(nothing), -log_p) + most.masked_fill(most.isinf(), 0.0)
    return torch.where(impossible, there, penalty.f(log_p.masked_fill(impossible, -1.0)))


def put_together(rows: Rows, gathered: Tensor, shard: VocabShard, failure: Failure) -> Whole:
    """Put the columns of all processes together, or nothing where that fails."""
    nothing = torch.full_like(rows.row_weight, torch.nan)
    return failure.attempt(
        lambda: together(rows, gathered, rank_in(shard.group)),
        lambda: Whole(torch.stack([nothing, nothing]), nothing, nothing, nothing),
    )


def _without(column: Tensor, rank: int) -> Tensor:
    """Add up what the other processes tell, in their order."""
    mine = torch.arange(column.shape[0], device=column.device) == rank
    return column.masked_fill(mine.reshape(-1, *(1 for _ in column.shape[1:])), 0.0).sum(0)


def exchange(rows: Rows, count: int, compute: Callable[[], Tensor], shard: VocabShard, failure: Failure) -> Tensor:
    """Gather ``count`` columns of all processes; where something has failed on one, all raise, or have nan on a GPU."""
    columns = computed(rows, count, compute, failure)
    failed, gathered = unpack(gather(pack(columns, failure.error is not None), shard.group), columns.shape)
    failure.raise_if_told(failed, shard.group)
    return gathered


def computed(rows: Rows, count: int, compute: Callable[[], Tensor], failure: Failure) -> Tensor:
    """Compute the columns of rows, or what stands for them, since the other processes wait for some."""
    return failure.attempt(compute, lambda: rows.allowed.new_full((count, *rows.allowed.shape), torch.nan))


# --- autograd ---------------------------------------------------------------------------------------------------------


def _by_formula(rows: Rows, shard: VocabShard, failure: Failure) -> tuple[Tensor, Tensor]:
    """Compute losses and weights of rows in operations that autograd knows, which reach every process to any order."""

    def columns() -> Tensor:
        return columns_of(rows, formulas.partials(rows.logits, rows.first_target))

    whole = put_together(rows, exchange(rows, NUMBERS, columns, shard, failure), shard, failure)
    loss = penalised_loss(rows, whole, shard, failure) if rows.penalises_all else whole.loss
    failure.raise_own()
    return loss, whole.row_weight


def penalised_loss(rows: Rows, whole: Whole, shard: VocabShard, failure: Failure) -> Tensor:
    """Take a second look at rows of which a penalty sees every class, in operations that autograd knows."""
    lse = spread(whole.lse, shard.group)

    def costs() -> Tensor:
        return formulas.partial_costs(rows.logits, rows.target, lse).loss.unsqueeze(0)

    return _with_z_loss(rows, whole, exchange(rows, 1, costs, shard, failure).squeeze(1))


def looked_again(rows: Rows, whole: Whole, shard: VocabShard, failure: Failure) -> Whole:
    """Do the same without derivatives, where there is such a penalty, and find the mass that rows have elsewhere."""
    if not rows.penalises_all:
        return whole

    def costs() -> Tensor:
        return torch.stack(formulas.partial_costs(rows.logits, rows.target, whole.lse))

    losses, masses = exchange(rows, 2, costs, shard, failure).unbind(1)

    def seen() -> Whole:
        elsewhere = _without(masses, rank_in(shard.group))
        if rows.z_loss:
            elsewhere = elsewhere + times(whole.row_weight, 2 * rows.z_loss * whole.lse.sum(0))
        return whole._replace(loss=_with_z_loss(rows, whole, losses), elsewhere=elsewhere)

    return failure.attempt(seen, lambda: whole)


def _with_z_loss(rows: Rows, whole: Whole, costs: Tensor) -> Tensor:
    loss = costs.sum(0)
    if rows.z_loss:
        loss = loss + times(whole.row_weight, rows.z_loss * whole.lse.sum(0).square())
    return loss.masked_fill(whole.loss.isnan() & (whole.row_weight != 0), torch.nan)


class ShardedCrossEntropy(Function):
    """The losses of rows whose classes lie on several processes; public for its name, which autograd shows."""

    @staticmethod
    def forward(
        ctx, logits, values, weight, logit_bias, class_mask, valid, settings, others, shard, impl, inplace, failure
    ):
        target = Target(values, weight, logit_bias, class_mask, valid, settings)
        rows = Rows(logits, target, target, *others)
        compute = load(impl)

        def columns() -> Tensor:
            return columns_of(rows, compute.partials(logits, rows.first_target))

        gathered = exchange(rows, NUMBERS, columns, shard, failure)
        whole = looked_again(rows, put_together(rows, gathered, shard, failure), shard, failure)
        failure.raise_own()
        ctx.mark_non_differentiable(whole.row_weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, *target.tensors, whole.lse, whole.elsewhere)
        ctx.settings, ctx.others, ctx.shard, ctx.impl, ctx.inplace = settings, others, shard, impl, inplace
        return whole.loss, whole.row_weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:4]
        if grad is None:
            return for_each_input(ctx)
        logits, *tensors, lse, elsewhere = ctx.saved_tensors
        target = Target._make((*tensors, ctx.settings))
        if differentiated(grad, logits, *tensors):
            return for_each_input(ctx, *_at_once(grad, Rows(logits, target, target, *ctx.others), ctx.shard, needs))
        compute = _EAGER if needs[2] or needs[3] else load(ctx.impl)
        grads = compute.cross_entropy_backward(grad, logits, target, lse, needs, 1.0, ctx.inplace, elsewhere)
        if ctx.inplace and grads.logits is not None:
            tell_if_in_place(grads.logits, logits)
        on_logits, on_target, *others = grads
        on_logits = None if on_logits is None else like(on_logits, logits)
        on_target = None if on_target is None else like(on_target, target.values)
        return for_each_input(ctx, on_logits, on_target, *others)


def _at_once(grad: Tensor, rows: Rows, shard: VocabShard, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Compute gradients that can be differentiated."""
    target = rows.target
    given = {"logits": rows.logits, "values": target.values, "weight": target.weight, "logit_bias": target.logit_bias}
    wanted = [name for name, need in zip(given, needs, strict=True) if need]
    with torch.enable_grad():
        for name in wanted:
            tensor = given[name]
            assert tensor is not None
            given[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        logits, values, weight, bias = given.values()
        assert logits is not None
        assert values is not None
        target = target._replace(values=values, weight=weight, logit_bias=bias)
        loss, _ = _by_formula(rows._replace(logits=logits, target=target), shard, Failure())
        leaves = [t for t in (given[name] for name in wanted) if t is not None]
        gradients = iter(torch.autograd.grad(loss, leaves, grad, create_graph=True, materialize_grads=True))
    return tuple(next(gradients) if need else None for need in needs)


def row_losses(rows: Rows, shard: VocabShard, impl: str, inplace: bool, failure: Failure) -> tuple[Tensor, Tensor]:
    """Compute the loss and weight of each row, the same on all processes."""
    tensors = (rows.logits, *rows.target.tensors)
    if torch.compiler.is_compiling() or transform_under_way(*tensors):
        return _by_formula(rows, shard, failure)
    name = impl if plain(*tensors) else _EAGER.name  # whatever looks on would not see a kernel
    result: tuple[Tensor, Tensor] = ShardedCrossEntropy.apply(
        *tensors, rows.target.settings, rows[3:], shard, name, inplace, failure
    )
    return result


def sharded_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    shard: VocabShard,
    arguments: dict[str, Any],
    read_reduction: Callable[[], Reduction],
) -> Tensor:
    """Compute the loss of logits whose classes lie on several processes, with the options of ``cross_entropy`` by name."""
    dim, inplace = arguments["dim"], arguments["inplace_backward"] or arguments["inplace_forward"]
    with agreeing(shard, input) as call:
        reduction = read_reduction()
        rows = shard_rows(input, target, weight, dim, arguments, shard)
        dtype = result_dtype(input, () if rows.indexed else (target, weight), arguments["out_dtype"])
        choose(rows.logits, arguments["impl"], rows.target.values, rows.target)
        checks.gradient_place(arguments["inplace_backward"], arguments["inplace_forward"], input)
        call.says("cross_entropy", tuple(rows.row_weight.shape), rows.logits.shape[1], input, shard)
        call.asks(rows.described, reduction, False, out_dtype=arguments["out_dtype"])
        failure = Failure()
        rows = written_out(rows, call.shard, failure)
        name = choose(rows.logits, arguments["impl"], rows.target.values, rows.target)
        loss, row_weight = row_losses(rows, call.shard, name, inplace, failure)
    if reduction.how == "none" and input.dim() == 1:
        loss, row_weight = loss.squeeze(0), row_weight.squeeze(0)
    return reduce_rows(loss, row_weight, reduction).to(dtype)
