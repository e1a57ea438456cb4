"""``linear_cross_entropy``: a linear head and its loss without the logits of all rows, the largest tensor of a language model.

Here is what people call, with heads that are shards or DTensors. head_call.py checks the arguments, and head_ways.py
computes in one of several ways. Below them, impl/head.py computes blocks, and ops/linear.py has the autograd Functions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_variadic
from typing_extensions import Unpack

from crossent.core.checks import along_classes_or_whole, check_mask, integer_of_64_bits
from crossent.core.modes import is_dtensor, readable
from crossent.core.reduction import ordered_sum, reduce_rows, weigh
from crossent.core.settings import LinearArguments, LinearOptions, documented
from crossent.core.shard import VocabShard, checked_shard
from crossent.core.target import Teacher
from crossent.impl import load
from crossent.impl.classes import classes_of_a_block
from crossent.impl.head import (
    block_size,
    counted,
)
from crossent.impl.protocol import RowStatistics
from crossent.losses.head_call import MAX_BYTES, HeadCall, check_head, laid_out_by_rows, understand
from crossent.losses.head_ways import (
    all_labelled,
    bounded,
    few_logits,
    forms_gradients,
    loss_of,
    must_be_formed,
    row_weights,
    statistics_at_once,
    statistics_in_blocks,
    wants_grad,
    why_at_once,
    without_garbage,
)
from crossent.losses.heads import head_of
from crossent.losses.softmax import cross_entropy
from crossent.losses.statistics import CrossEntropyStats, reduced_statistics

if TYPE_CHECKING:
    from crossent.parallel.agreement import Call as Request
    from crossent.parallel.heads import HeadPart
    from crossent.parallel.linear import ShardedHead
    from crossent.parallel.placements import Across


_Result = TypeVar("_Result")


class LinearPlan(NamedTuple):
    """How a call of :func:`linear_cross_entropy` is taken apart.

    Attributes:
        blocks: how many blocks of rows there are, or on a GPU, where few rows fit into one, of classes; 0 where the logits are
            formed at once, in operations that autograd knows.
        rows: of a block; all of them where it is one of classes.
        bytes: of a block's logits.
        impl: what computes the loss of a block.
        why: why the logits are formed at once, or "".
        moved: what of a head of DTensors goes over the mesh, ``"input"``, ``"weight"`` or both; "" for nothing.
    """

    blocks: int
    rows: int
    bytes: int
    impl: str
    why: str
    moved: str = ""


@documented
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor | nn.Module,
    target: Tensor | Teacher,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object = None,
    shift: int = 0,
    max_bytes: int | None = None,
    max_rows: int | None = None,
    **more: Unpack[LinearOptions],
) -> Tensor:
    r"""Compute the cross entropy of the logits ``h Wᵀ + b``, in nats, a block of rows at a time.

    The result and the gradients are those of :func:`torch.nn.functional.linear` and :func:`crossent.cross_entropy`, with all that
    the latter takes, but the logits of all rows never exist: neither forward, nor backward, nor in evaluation. With
    ``∂L/∂x = mass · p - w ∘ t`` of a block of logits::

        ∂L/∂h = ∂L/∂x W        ∂L/∂W = Σ_blocks (∂L/∂x)ᵀ h        ∂L/∂b = Σ_rows ∂L/∂x

    A sum or a mean forms the gradients together with the loss: three products. ``reduction="none"`` forms the logits of each
    block once more in backward: four. So do sums and means of float16, whose gradients are too small for it before backward
    brings the factor of a loss scaler.

    Args:
        input: hidden states ``h``, ``(..., D)``.
        linear_weight: ``W``, ``(C, D)``; or ``(C, d1, ..., D)``, for logits of ``(..., C, d1, ...)``. Or the module that is the
            head, such as ``model.lm_head``: an :class:`torch.nn.Linear`, whose bias counts too, a tied
            :class:`torch.nn.Embedding`, or either with PEFT's LoRA, whose adapters count too, and learn. A module whose
            call does more than ``h Wᵀ + b`` (hooks, a forward of its own, quantised weights) is refused.
        target: class indices ``(..., d1, ...)`` of any integer dtype, probabilities ``(..., C, d1, ...)``, or the
            :class:`crossent.Teacher` whose probabilities are to be learned, and who learns nothing.
        weight: class weights, ``(C)``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        ignore_index: rows with this index count for nothing, and on a CPU are left out of the products; by default -100. On a
            GPU ``max_rows`` leaves them out.
        {options}

    Returns:
        The loss, 0-d, or of the rows' shape with ``reduction="none"``; in the dtype of the input for indices, float32 under
        autocast. It is computed in float32 or wider, and so is the sum of ``∂L/∂W`` over blocks, whatever the inputs.

    Where the logits are needed as a whole they are formed: few of them, forward mode, ``torch.func``, ``create_graph``, and
    gradients for probabilities, their class weights or ``logit_bias``. :func:`linear_plan` says what a call does.

    Raises:
        ValueError: another ``reduction``; a batch size of the target that is not the input's; a ``shift`` that leaves nothing.
        IndexError: a class index outside ``[0, C)``.
        RuntimeError: other shapes and dtypes.
        TypeError: an argument of another type.

    >>> h, W = torch.eye(2, 3), torch.tensor([[2.0, 0.5, 0], [1.0, 2.5, 0], [0.1, 0.3, 0]])
    >>> linear_cross_entropy(h, W, torch.tensor([0, 1]))
    tensor(0.3185)
    >>> linear_cross_entropy(h, torch.nn.Embedding.from_pretrained(W), torch.tensor([0, 1]))
    tensor(0.3185)

    See also: :func:`linear_cross_entropy_stats`; :class:`crossent.LinearCrossEntropyLoss` for a module.

    Source: PyTorch 2.13, ``torch.nn.functional.linear_cross_entropy``; Wijmans et al., "Cut Your Losses in Large-Vocabulary
    Language Models", 2024.
    """
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, linear_bias = head_of(linear_weight, input, linear_bias)
    tensors = (input, linear_weight, target, linear_bias, weight)
    _refuse_gathered(linear_weight)
    if has_torch_function_variadic(*(t for t in tensors if not isinstance(t, Teacher))):
        return handle_torch_function(
            linear_cross_entropy, tensors, input, linear_weight, target, linear_bias=linear_bias, weight=weight,
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing, options=options, shift=shift,
            max_bytes=max_bytes, max_rows=max_rows, **more,
        )  # fmt: skip
    if (
        not more
        and weight is None
        and max_rows is None
        and type(shift) is int
        and shift == 0
        and not is_dtensor(*tensors)
        and _ordinary(input, linear_weight, target, linear_bias, max_bytes)
    ):
        assert isinstance(target, Tensor)
        ignored = -100 if ignore_index is None else integer_of_64_bits("ignore_index", ignore_index)
        if all_labelled(target, ignored):
            return cross_entropy(
                F.linear(input, linear_weight, linear_bias), target, ignore_index=ignored, reduction=reduction,
                label_smoothing=label_smoothing,
            )  # fmt: skip
    arguments: dict[str, Any] = {
        **more, "linear_bias": linear_bias, "weight": weight, "reduction": reduction, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "shift": shift, "max_bytes": max_bytes, "max_rows": max_rows,
    }  # fmt: skip
    if max_rows is not None and (more.get("shard") is not None or is_dtensor(*tensors, *more.values())):
        raise ValueError("max_rows is for a head on one device, got it with a shard or DTensors: leave it out")
    if more.get("shard") is not None:
        return _loss_of_shard(input, linear_weight, target, arguments)
    if is_dtensor(*tensors, *more.values()):
        return _loss_of_part(input, linear_weight, target, arguments)
    return _explained(loss_of, understand(input, linear_weight, target, arguments), target)


def linear_cross_entropy_stats(
    input: Tensor, linear_weight: Tensor | nn.Module, target: Tensor | Teacher, **arguments: Unpack[LinearArguments]
) -> CrossEntropyStats:
    """Compute the loss of a head with what else its logits can tell, a block of rows at a time.

    The arguments are those of :func:`linear_cross_entropy`, the result that of :func:`crossent.cross_entropy_stats`: loss, lse,
    log-probability of the target, entropy, whether the likeliest class is the target's, the counts to average by, and the
    likeliest class. The loss and the three numbers after it are differentiable.

    >>> h, W = torch.eye(2, 3), torch.tensor([[2.0, 0.5, 0], [1.0, 2.5, 0], [0.1, 0.3, 0]])
    >>> linear_cross_entropy_stats(h, W, torch.tensor([0, 1])).correct
    tensor([True, True])
    """
    if arguments.get("shard") is not None:
        return _statistics_of_shard(input, linear_weight, target, {"reduction": "none", **arguments})
    given: dict[str, Any] = {"reduction": "none", **arguments}
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, given["linear_bias"] = head_of(linear_weight, input, given.get("linear_bias"))
    _refuse_gathered(linear_weight)
    if not is_dtensor(input, linear_weight, target, *given.values()):
        return _explained(_stats, understand(input, linear_weight, target, given), target)
    return _statistics_of_part(input, linear_weight, target, given)


def _stats(call: HeadCall) -> CrossEntropyStats:
    call = without_garbage(call, statistics=True)
    row = statistics_at_once(call) if why_at_once(call) else statistics_in_blocks(call)
    row_weight = row_weights(call)
    valid = call.target.values != call.target.settings.ignore_index if call.target.indices else row_weight > 0
    row, reduction = row._replace(row_weight=row_weight, correct=row.correct.detach()), call.reduction
    if reduction.how == "none":
        row, valid, u = RowStatistics(*map(call.rows_back, row)), call.rows_back(valid), reduction.sample_weight
        reduction = reduction._replace(sample_weight=None if u is None else call.rows_back(u))
    return reduced_statistics(row, valid, reduction, call.dtype)


def linear_plan(
    input: Tensor, linear_weight: Tensor | nn.Module, target: Tensor | Teacher, **arguments: Unpack[LinearArguments]
) -> LinearPlan:
    """Say how :func:`linear_cross_entropy` takes a call with these arguments apart.

    >>> h, W = torch.zeros(4096, 8), torch.zeros(50257, 8)
    >>> linear_plan(h, W, torch.zeros(4096, dtype=torch.long), impl="eager", max_bytes=1 << 28)[:3]
    (7, 586, 117802408)
    """
    given: dict[str, Any] = dict(arguments)
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, given["linear_bias"] = head_of(linear_weight, input, given.get("linear_bias"))
    if (shard := given.pop("shard", None)) is not None:
        return _plan_of_shard(input, linear_weight, target, given, checked_shard(shard))
    if is_dtensor(input, linear_weight, target, *given.values()):
        part, _ = _part(input, linear_weight, target, given)
        call = understand(*part.tensors)._replace(moved=part.moved)
    else:
        call = understand(input, linear_weight, target, given)
    call, _ = bounded(call)
    return _plan(call, why_at_once(call))


def _plan(call: HeadCall, why: str) -> LinearPlan:
    keep = counted(call.head, call.target)
    size = call.head.input.shape[0] if keep is None else keep.shape[0]
    head, itemsize = call.head, call.head.input.dtype.itemsize
    classes = 0 if why or not forms_gradients(call) else classes_of_a_block(head, call.plan())
    if classes:
        all_rows = head.input.shape[0]
        bytes_of = all_rows * classes * itemsize
        return LinearPlan(ceil(head.shape[0] / classes), all_rows, bytes_of, call.impl, why, call.moved)
    rows = size if why else block_size(head, call.plan(), size)
    return LinearPlan(
        0 if why else ceil(size / rows), rows, rows * prod(head.shape) * itemsize, call.impl, why, call.moved
    )


# --- DTensors ---------------------------------------------------------------------------------------------------------


def _refuse_gathered(weight: object) -> None:
    """Let parallel/heads.py look at a matrix that came out of a DTensor."""
    if torch.compiler.is_compiling() or not isinstance(weight, Tensor):  # a compiler shows no grad_fn
        return
    if type(weight.grad_fn).__name__ == "_ToTorchTensorBackward":
        from crossent.parallel.heads import refuse_gathered  # which imports DTensor

        refuse_gathered(weight)


def _part(
    input: Tensor, weight: Tensor, target: Tensor | Teacher, arguments: dict[str, Any]
) -> tuple[HeadPart, HeadCall]:
    """Take this process's part of a call with DTensors; and the call as it is on all processes, without values."""
    from crossent.parallel.heads import head_part, refuse_mixed
    from crossent.parallel.placements import stand_in

    refuse_mixed(input, weight)
    whole = {name: stand_in(value) for name, value in arguments.items() if name != "impl"}
    alike = Teacher(*map(stand_in, target)) if isinstance(target, Teacher) else stand_in(target)
    whole_call = understand(stand_in(input), stand_in(weight), alike, whole)  # raises on all processes or on none
    return head_part(input, weight, target, arguments), whole_call


def _with_divisor(part: HeadPart, whole: HeadCall, weight: Tensor | None) -> dict[str, Any]:
    """Give a mean over several processes its divisor before the loss, which a process with few rows computes in another way."""
    from crossent.parallel.heads import own_weight

    input, _, target, given = part.tensors
    across, given = part.rows.across, dict(given)
    if across is None or whole.reduction.how != "mean" or whole.reduction.denominator is not None:
        return given
    if part.shard is None:
        call = understand(*part.tensors)
        weights, u = row_weights(call), call.reduction.sample_weight
        own_sum = ordered_sum(weights if u is None else weigh(weights, u))
    else:
        ignored, rows = whole.target.settings.ignore_index, input.shape[:-1] + whole.head.shape[1:]
        own_sum = own_weight(target, given, weight, ignored, rows, input.dim() - 1, part.shard)
    return {**given, "denominator": across.spread(across(own_sum)[0])}


def _loss_of_part(input: Tensor, weight: Tensor, target: Tensor | Teacher, arguments: dict[str, Any]) -> Tensor:
    """Compute the loss of a head of DTensors from this process's part."""
    part, whole = _part(input, weight, target, arguments)
    how = whole.reduction.how
    across = None if how == "none" else part.rows.across
    with part.rows.tell_others(how):
        given = _with_divisor(part, whole, arguments.get("weight"))
        input, weight, target, _ = part.tensors
        if across is not None:
            given = {**given, "out_dtype": torch.promote_types(input.dtype, torch.float32)}
        if part.shard is None:
            call = understand(input, weight, target, given)
            loss = _explained(loss_of, call._replace(reduction=call.reduction._replace(across=across)), target)
        else:
            loss = _loss_of_shard(input, weight, target, {**given, "shard": part.shard})
            loss = loss if across is None else across(loss)[0]
    return _cut(part.rows.result(loss.to(whole.dtype), how), arguments.get("shift", 0))


def _statistics_of_part(
    input: Tensor, weight: Tensor, target: Tensor | Teacher, arguments: dict[str, Any]
) -> CrossEntropyStats:
    """Compute the statistics of a head of DTensors from this process's part."""
    part, whole = _part(input, weight, target, arguments)
    (input, weight, target, given), how = part.tensors, whole.reduction.how
    across = None if how == "none" else part.rows.across
    with part.rows.tell_others(how):
        if part.shard is not None:
            stats = _statistics_of_shard(input, weight, target, {**given, "shard": part.shard}, across)
        else:
            call = understand(input, weight, target, given)
            stats = _explained(_stats, call._replace(reduction=call.reduction._replace(across=across)), target)
    shift = arguments.get("shift", 0)
    return CrossEntropyStats._make(_cut(part.rows.result(value, how), shift) for value in stats)


def _cut(rows: Tensor, shift: int) -> Tensor:
    """Leave out the last positions, which have no label after a shift."""
    return rows[..., : rows.shape[-1] - shift] if shift and rows.dim() else rows


def _explained(compute: Callable[[HeadCall], _Result], call: HeadCall, target: Tensor | Teacher) -> _Result:
    """Compute; where a class is out of range, say where it is in the caller's target."""
    try:
        return compute(call)
    except IndexError:
        _say_where(target, call)
        raise


def _say_where(target: Tensor | Teacher, call: HeadCall) -> None:
    """Raise the IndexError of a class out of range with its place in the caller's target, whose rows were laid side by side."""
    if isinstance(target, Tensor) and call.target.indices:
        values = target.long()
        if call.shift:
            values = values.clone()
            values[..., : call.shift] = call.target.settings.ignore_index  # labels of no row
        call.target._replace(values=values).raise_if_out_of_range(call.head.shape[0])


def _ordinary(input: Any, weight: Any, target: Any, bias: Any, max_bytes: int | None) -> bool:
    """Recognise a call of few logits with nothing unusual about it, where understanding it would take longer than the rest."""
    return (
        type(target) is Tensor
        and isinstance(input, Tensor)
        and isinstance(weight, Tensor)
        and input.dim() == weight.dim() == 2
        and input.shape[1] == weight.shape[1]
        and input.dtype == weight.dtype
        and input.layout is weight.layout is torch.strided
        and target.dim() == 1
        and input.device == weight.device
        and (
            bias is None
            or (isinstance(bias, Tensor) and bias.shape == weight.shape[:1] and bias.device == weight.device)
        )
        and (max_bytes is None or type(max_bytes) is int)
        and few_logits(input.shape[0] * weight.shape[0], input, MAX_BYTES if max_bytes is None else max_bytes)
    )


# --- shards of the classes --------------------------------------------------------------------------------------------


def _understand_shard(
    input: Tensor,
    linear_weight: Tensor | nn.Module,
    target: Tensor | Teacher,
    arguments: dict[str, Any],
    loss: str,
    request: Request,
) -> tuple[HeadCall, ShardedHead]:
    """Understand a call whose head is a shard of the classes; its hidden states are then where they are needed."""
    from crossent.parallel import linear as parallel  # torch's collectives take 0.2 s to import

    shard = arguments["shard"]
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, bias = head_of(linear_weight, input, arguments.get("linear_bias"))
        arguments = {**arguments, "linear_bias": bias}
    check_head(input, linear_weight, arguments.get("linear_bias"))
    given, target = _own_classes(arguments, target, len(input.shape) - 1, linear_weight.shape[0], shard)
    mask = given.pop("class_mask", None)
    call = understand(input, linear_weight, target, given)
    lead, classes = call.lead, call.head.shape
    if mask is not None:
        like = input.new_empty(()).expand(lead + classes)
        laid_out = along_classes_or_whole(check_mask(mask), "class_mask", like, len(lead))
        mask = laid_out_by_rows(laid_out, mask, prod(lead), classes)
    described = call.target._replace(class_mask=mask)
    if call.teacher is not None:  # its probabilities come with each block
        like = call.head.input.detach().new_empty((), dtype=call.target.values.dtype)
        described = described._replace(values=like.expand(prod(lead), *classes))
    if shard.sequence_parallel:
        parallel.check_sequence_parallel(described, call.shift)
    if described.indices and readable(described.values):
        described.raise_if_out_of_range(shard.classes)
    request.says(loss, (prod(lead), *classes[1:]), classes[0], input, shard)
    request.asks(
        described, call.reduction, shard.sequence_parallel, load(call.impl).workspace,
        input=call.head.input, linear_bias=call.head.bias,
        shift=call.shift, max_bytes=call.max_bytes, out_dtype=arguments.get("out_dtype"),
        teacher=None if call.teacher is None else call.teacher.temperature,
        probabilities=None if described.indices else described.values, wants_gradient=wants_grad(*call.head[:3]),
    )  # fmt: skip
    return parallel.laid_out(call, described, request.shard, arguments.get("impl"))


def _own_classes(
    arguments: dict[str, Any], target: Tensor | Teacher, axis: int, size: int, shard: VocabShard
) -> tuple[dict[str, Any], Tensor | Teacher]:
    """Take this shard's part of everything that has classes."""
    given = {name: value for name, value in arguments.items() if name != "shard"}
    for name in ("weight", "logit_bias", "class_mask"):
        if isinstance(value := given.get(name), Tensor):
            given[name] = shard.part(value, 0 if value.dim() == 1 else axis, size)
    if isinstance(target, Teacher):
        if isinstance(target.weight, nn.Module):
            with torch.no_grad():
                target = Teacher(*head_of(target.weight, target.input, target.bias), target.temperature)
        bias = target.bias if target.bias is None else shard.part(target.bias, 0, size)
        target = target._replace(weight=shard.part(target.weight, 0, size), bias=bias)
    elif isinstance(target, Tensor) and target.is_floating_point():
        target = shard.part(target, axis, size)
    return given, target


def _plan_of_shard(
    input: Tensor, weight: Tensor, target: Tensor | Teacher, arguments: dict[str, Any], shard: VocabShard
) -> LinearPlan:
    """Say how a head that is a shard of the classes is taken apart, which is the same on all processes."""
    from crossent.parallel.linear import bytes_of_block, rows_in_all
    from crossent.parallel.sequences import rows_of_span

    has_teacher = isinstance(target, Teacher)
    given, target = _own_classes(arguments, target, input.dim() - 1, weight.shape[0], shard)
    given.pop("class_mask", None)
    call = understand(input, weight, target, given)
    size = bytes_of_block(call.head.shape, shard, call.max_bytes, input.dtype, call.impl, has_teacher)
    call = call._replace(max_bytes=size, teacher=None)  # the size has room for a teacher's workspace already
    why = must_be_formed(call)
    plan = _plan(call, why)
    if not shard.sequence_parallel:
        return plan
    own, ranks = call.head.input.shape[0], rows_in_all(call.head.input, shard) // max(1, call.head.input.shape[0])
    step = own if why else rows_of_span(call.head, call.plan(), own, ranks)
    bytes_of = ranks * step * prod(call.head.shape) * input.dtype.itemsize
    return plan._replace(blocks=0 if why else ceil(own / step), rows=ranks * step, bytes=bytes_of)


def _loss_of_shard(
    input: Tensor, linear_weight: Tensor | nn.Module, target: Tensor | Teacher, arguments: dict[str, Any]
) -> Tensor:
    """Compute the loss of a head that is a shard of the classes."""
    from crossent.parallel.agreement import agreeing
    from crossent.parallel.linear import sharded_linear
    from crossent.parallel.sequences import own_rows

    with agreeing(checked_shard(arguments["shard"]), input) as request:
        call, sharded = _understand_shard(input, linear_weight, target, arguments, "linear_cross_entropy", request)
        loss, row_weight = sharded_linear(call.head, sharded, call.reduction, bool(must_be_formed(call)))
    if row_weight is not None:
        loss = reduce_rows(loss, row_weight, call.reduction)
    if call.reduction.how == "none":
        loss = call.rows_back(own_rows(loss, sharded.shard))
    return loss.to(call.dtype)


def _statistics_of_shard(
    input: Tensor,
    linear_weight: Tensor | nn.Module,
    target: Tensor | Teacher,
    arguments: dict[str, Any],
    across: Across | None = None,
) -> CrossEntropyStats:
    """Compute the statistics of a head that is a shard of the classes; ``across`` completes sums over other rows."""
    from crossent.parallel.agreement import agreeing
    from crossent.parallel.linear import sharded_linear_statistics
    from crossent.parallel.sequences import own_rows

    with agreeing(checked_shard(arguments["shard"]), input) as request:
        call, sharded = _understand_shard(
            input, linear_weight, target, arguments, "linear_cross_entropy_stats", request
        )
        row, counted = sharded_linear_statistics(call.head, sharded)
    reduction = call.reduction._replace(across=across)
    if reduction.how == "none":
        *row_tensors, counted = (call.rows_back(own_rows(t, sharded.shard)) for t in (*row, counted))
        row = RowStatistics._make(row_tensors)
        u = reduction.sample_weight
        reduction = reduction._replace(sample_weight=None if u is None else call.rows_back(own_rows(u, sharded.shard)))
    return reduced_statistics(row, counted, reduction, call.dtype)
