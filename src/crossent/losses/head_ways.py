"""How the loss of a head is computed: with all logits at once, or in blocks with the gradients of rows or of a sum.

Rows that do not count are left out first.
"""

from __future__ import annotations

from math import ceil, prod

import torch
from torch import Tensor
from torch.nn import functional as F

from crossent.core import watch
from crossent.core.modes import is_dtensor, plain, readable
from crossent.core.reduction import Reduction, divide, ordered_sum, reduce_rows
from crossent.core.target import Target
from crossent.impl.head import (
    Head,
    Plan,
    block_target,
    counted,
    rows_that_count,
    take,
    teacher_probabilities,
)
from crossent.impl.protocol import RowStatistics
from crossent.losses.head_call import HeadCall
from crossent.losses.softmax import reduced_cross_entropy
from crossent.losses.statistics import statistics_of
from crossent.ops.linear import at_once, linear_statistics, rows_operator, sum_operator, transform_under_way

SHOWN = 256  # rows whose logits are shown to crossent.debug
FEW = 1 << 20  # logits so few that they are formed at once: a block takes longer to set up than it saves


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd follows any of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def why_at_once(call: HeadCall) -> str:
    """Say why the logits of all rows are formed at once, in operations that autograd knows; "" if they are not."""
    head = call.head
    few = few_logits(head.input.shape[0] * prod(head.shape), head.input, call.max_bytes)
    return must_be_formed(call) or ("few logits" if few else "")


def must_be_formed(call: HeadCall) -> str:
    """Say who needs the logits of all rows as a whole; "" for nobody."""
    head, target, denominator = call.head, call.target, call.reduction.denominator
    given = (
        *head[:3],
        *target.tensors,
        call.reduction.sample_weight,
        denominator if isinstance(denominator, Tensor) else None,
    )
    if why := transform_under_way(*given):
        return why
    if wants_grad(target.values, target.weight, target.logit_bias, target.class_mask):
        return "probabilities, class weights or a logit_bias that require grad"
    return ""


def few_logits(logits: int, input: Tensor, max_bytes: int) -> bool:
    """Whether so many logits are formed at once, and fit into a block."""
    return logits <= FEW and logits * input.dtype.itemsize <= max_bytes


def all_labelled(target: Tensor, ignore_index: object) -> bool:
    """Whether every row can be seen to count: the hidden states of others may be nan, which the products would spread."""
    return type(ignore_index) is int and readable(target) and not bool((target == ignore_index).any())


def without_garbage(call: HeadCall, statistics: bool = False) -> HeadCall:
    """Leave out the rows that have no weight in the loss: their hidden states may hold anything, and it saves products.

    Where that weight has a derivative, or statistics are wanted of such rows too, only those that are not finite are left out.
    """
    head, target, u = call.head, call.target, call.reduction.sample_weight
    weightless = None if u is None else u == 0
    if target.indices:
        c = row_weights(call) if target.settings.label_smoothing == 0 else None
        ignored = target.values == target.settings.ignore_index if c is None else c == 0
        weightless = ignored if weightless is None else weightless | ignored
    elif target.valid is not None:
        weightless = ~target.valid if weightless is None else weightless | ~target.valid
    if weightless is None:
        return call
    absent = weightless.flatten(1).all(1) if weightless.dim() > 1 else weightless
    if statistics or wants_grad(u) or transform_under_way(u):
        absent = absent & ~head.input.detach().isfinite().all(1)
    if why_at_once(call):
        if not readable(absent) or absent.any():
            head = head._replace(input=head.input.masked_fill(absent.unsqueeze(1), 0.0))
        return call._replace(head=head)
    rows = absent.reshape(-1, *(1 for _ in head.shape[1:])).expand(-1, *head.shape[1:])
    if target.indices:
        rows = rows & (target.values != target.settings.ignore_index)
    if readable(rows) and not rows.any():
        return call  # with the caller's own target, which autograd watches
    return call._replace(target=target.leaving_out(rows))


def _without_garbage_of_weightless_rows(call: HeadCall) -> HeadCall:
    """Put 0 in the place of hidden states that are not finite where a row's probabilities weigh nothing.

    Such a row has a loss of 0 and counts in a mean, so it cannot be left out. The gradient of its logits is 0, of which the product
    with such hidden states would make nan. A gradient for its probabilities or their weights needs the softmax, and sees the nan.
    """
    head, target = call.head, call.target
    t, c, settings = target.values, target.weight, target.settings
    if target.indices or call.teacher is not None or target.is_shard or settings.label_smoothing or settings.z_loss:
        return call
    if wants_grad(t, c) or transform_under_way(head.input, t, c) or is_dtensor(head.input, head.weight, t):
        return call
    if not torch.compiler.is_compiling() and not plain(head.input, t, c):
        return call
    rows = ~head.input.detach().isfinite().all(1)
    if readable(rows):
        rows = rows.nonzero().squeeze(1)
        if not rows.shape[0]:
            return call
        t = t[rows]
    if c is not None:
        t = t.masked_fill((c == 0).view(-1, *(1 for _ in head.shape[1:])), 0.0)
    unwanted = torch.linalg.vector_norm(t.flatten(1), torch.inf, 1) == 0
    if rows.dtype == torch.bool:
        rows = rows & unwanted
    else:
        rows = rows.new_zeros(head.input.shape[0], dtype=torch.bool).index_fill_(0, rows[unwanted], True)
    return call._replace(head=head._replace(input=head.input.masked_fill(rows.unsqueeze(1), 0.0)))


def _differentiates_rows(call: HeadCall) -> bool:
    """Whether the loss of each row is what has a gradient, and not their sum."""
    scaled_later = call.head.input.dtype == torch.float16 and wants_grad(*call.head[:3])
    return call.reduction.how == "none" or scaled_later or wants_grad(call.reduction.sample_weight)


def forms_gradients(call: HeadCall) -> bool:
    """Whether the gradient of the head is formed with the loss."""
    return wants_grad(call.head.weight) and not _differentiates_rows(call)


def bounded(call: HeadCall) -> tuple[HeadCall, Tensor | None]:
    """Take as many rows as may count, those that do before others, and tell whether there are more; None where that is known."""
    head, target, reduction = call.head, call.target, call.reduction
    valid = None if call.max_rows is None or reduction.how == "none" else rows_that_count(target)
    if valid is None or call.max_rows is None or call.max_rows >= valid.shape[0]:
        return call, None
    too_many = valid.sum() > call.max_rows
    if readable(valid):
        if too_many:
            raise ValueError(f"max_rows must be at least the rows that count, {int(valid.sum())}, got {call.max_rows}")
        return call, None
    rows = valid.to(torch.uint8).argsort(descending=True, stable=True)[: call.max_rows]

    bias, mask = (t if t is None or t.dim() == 1 else take(t, rows) for t in (target.logit_bias, target.class_mask))
    described = target._replace(
        values=target.values if call.teacher is not None else take(target.values, rows),
        valid=None if target.valid is None else take(target.valid, rows), logit_bias=bias, class_mask=mask,
    )  # fmt: skip
    teacher = call.teacher if call.teacher is None else call.teacher._replace(input=take(call.teacher.input, rows))
    u = reduction.sample_weight
    call = call._replace(
        head=head._replace(input=take(head.input, rows)), target=described, teacher=teacher,
        reduction=reduction if u is None else reduction._replace(sample_weight=take(u, rows)),
    )  # fmt: skip
    return call, too_many


def loss_of(call: HeadCall) -> Tensor:
    """Compute the loss, reduced as the call says."""
    call, too_many = bounded(_without_garbage_of_weightless_rows(without_garbage(call)))
    loss = _loss_of_rows(call)
    return loss if too_many is None else loss.masked_fill(too_many, torch.nan)


def _loss_of_rows(call: HeadCall) -> Tensor:
    reduction = call.reduction
    if why_at_once(call):
        loss = _loss_at_once(call)
        return call.rows_back(loss) if reduction.how == "none" else loss
    if _differentiates_rows(call):
        rows = rows_operator(call.head, call.plan())
        loss = reduce_rows(rows, row_weights(call), reduction).to(call.dtype)
        loss = call.rows_back(loss) if reduction.how == "none" else loss
    else:
        loss = _reduced(call).to(call.dtype)
    if not torch.compiler.is_compiling() and reduction.across is None and (watcher := watch.current()) is not None:
        _show(call, loss, watcher)
    return loss


def _show(call: HeadCall, loss: Tensor, watcher: watch.Watcher) -> None:
    """Show a watcher the loss of all rows and the logits of some, evenly spread over those that count."""
    head, target = call.head, call.target
    rows = counted(head, target)
    if rows is None or len(rows) == 0:
        rows = torch.arange(head.input.shape[0], device=head.input.device)
    rows = rows[:: ceil(len(rows) / SHOWN) or 1]
    with torch.no_grad():
        logits = F.linear(take(head.input, rows), head.weight, head.bias).view(-1, *head.shape)
    described = block_target(call.plan(), rows, head.shape)
    watcher(logits, logits, described, loss, call.reduction.as_torch)


def _logits(head: Head, plan: Plan) -> tuple[Tensor, Target]:
    """Form all logits, and a target for them."""
    logits = F.linear(*head[:3]).view(-1, *head.shape)
    if plan.teacher is None:
        return logits, plan.target
    q = teacher_probabilities(plan.teacher, None, head.shape, plan.impl, plan.target.class_mask)
    return logits, plan.target._replace(values=q)


def _loss_at_once(call: HeadCall) -> Tensor:
    logits, described = _logits(call.head, call.plan())
    impl = call.impl if call.named else None
    return reduced_cross_entropy(logits, logits, described, call.reduction, call.dtype, impl=impl)


def statistics_at_once(call: HeadCall) -> RowStatistics:
    """Compute the statistics of rows with the logits of all of them at once."""
    return statistics_of(*_logits(call.head, call.plan()), call.impl if call.named else None)


def row_weights(call: HeadCall) -> Tensor:
    """Compute what each row adds to the divisor of a mean."""
    target, dtype = call.target, torch.promote_types(call.head.input.dtype, torch.float32)
    if not target.indices:
        ones = torch.ones((call.head.input.shape[0], *call.head.shape[1:]), dtype=dtype, device=call.head.input.device)
        return ones if target.valid is None else ones * target.valid
    valid = target.values != target.settings.ignore_index
    if target.weight is None:
        return valid.to(dtype)
    y = target.values.clamp(0, call.head.shape[0] - 1)
    return target.weight.to(dtype)[y].masked_fill(~valid, 0.0)


def statistics_in_blocks(call: HeadCall) -> RowStatistics:
    """Compute the statistics of rows in blocks."""
    return linear_statistics(call.head, call.plan(), row_weights(call))


@at_once("rows")
def _rows_at_once(head: Head, plan: Plan) -> Tensor:
    return _reduced_at_once(head, plan, Reduction("none"))


@at_once("sum")
def _sum_at_once(head: Head, plan: Plan, factor: Tensor | None, divisor: Tensor) -> Tensor:
    return _reduced_at_once(head, plan, Reduction("sum", factor)) / divisor


def _of_rows_that_count(head: Head, plan: Plan) -> tuple[Tensor, Target]:
    valid = rows_that_count(plan.target)
    if valid is not None:
        head = head._replace(input=head.input.masked_fill(~valid.unsqueeze(1), 0.0))
    return _logits(head, plan)


def _reduced_at_once(head: Head, plan: Plan, reduction: Reduction) -> Tensor:
    logits, described = _of_rows_that_count(head, plan)
    return reduced_cross_entropy(logits, logits, described, reduction, torch.promote_types(logits.dtype, torch.float32))


@at_once("statistics")
def _differentiable_statistics_at_once(head: Head, plan: Plan) -> tuple[Tensor, ...]:
    return statistics_of(*_of_rows_that_count(head, plan), None)[:4]


def _reduced(call: HeadCall) -> Tensor:
    """Compute a sum or a mean in blocks, with the gradients on the way."""
    how, factor, given, empty, _ = call.reduction
    wide = torch.promote_types(call.head.input.dtype, torch.float32)
    divisor = torch.ones((), dtype=wide, device=call.head.input.device)
    divided_later = isinstance(given, Tensor) and given.requires_grad
    if how == "mean" and not divided_later:
        if given is None:
            weights = row_weights(call)
            divisor = ordered_sum(weights if factor is None else weights * factor)
        else:
            divisor = given.to(wide) if isinstance(given, Tensor) else torch.full_like(divisor, given)
    nothing = divisor == 0
    by = divisor.masked_fill(nothing, torch.inf)

    needs = tuple(wants_grad(t) for t in call.head[:3])
    loss: Tensor = sum_operator(call.head, call.plan(), factor, by, needs)[0]
    if divided_later:
        assert given is not None
        loss = divide(loss, given, empty)
    elif how == "mean" and empty != "zero":
        loss = loss.masked_fill(nothing, torch.nan)
    return call.reduction.whole(loss)[0]
