"""``linear_cross_entropy``: a linear head and its loss without the logits of all rows, the largest tensor of a language model.

This file checks the arguments and chooses how to compute. impl/head.py computes, and ops/linear.py has the autograd Functions.
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

from crossent.core import watch
from crossent.core.checks import (
    along_classes_or_whole,
    check_devices,
    check_logits_dtype,
    check_mask,
    check_tensor,
    check_tensors,
    integer,
    integer_from,
    optional,
    positive,
    under_autocast,
)
from crossent.core.messages import shape
from crossent.core.modes import is_dtensor, plain, readable
from crossent.core.reduction import Reduction, divide, ordered_sum, reduce_rows, result_dtype, weigh, weights_of_rows
from crossent.core.settings import LinearArguments, LinearOptions, check_names, documented
from crossent.core.shard import VocabShard, checked_shard
from crossent.core.target import Target, Teacher, describe
from crossent.impl import choose, load
from crossent.impl.head import (
    Head,
    Plan,
    block_size,
    block_target,
    counted,
    rows_that_count,
    take,
    teacher_probabilities,
)
from crossent.impl.protocol import RowStatistics
from crossent.losses.heads import head_of
from crossent.losses.softmax import cross_entropy, reduced_cross_entropy
from crossent.losses.statistics import CrossEntropyStats, reduced_statistics, statistics_of
from crossent.ops.linear import at_once, linear_statistics, rows_operator, sum_operator, transform_under_way

if TYPE_CHECKING:
    from crossent.parallel.agreement import Call as Request
    from crossent.parallel.heads import HeadPart
    from crossent.parallel.linear import ShardedHead
    from crossent.parallel.placements import Across

MAX_BYTES = 128 << 20  # of a block of logits on the CPU
MAX_BYTES_ELSEWHERE = 1 << 30  # on a GPU, whose products want many rows
SHOWN = 256  # rows whose logits are shown to crossent.debug
FEW = 1 << 20  # logits so few that they are formed at once: a block takes longer to set up than it saves

_Result = TypeVar("_Result")

_BYTES = integer_from(1, "a positive int, the bytes of a block of logits")
_SHIFT = integer_from(0, "an int of at least 0")
_TEACHERS_TEMPERATURE = positive("it divides the teacher's logits")


class LinearPlan(NamedTuple):
    """How a call of :func:`linear_cross_entropy` is taken apart.

    Attributes:
        blocks: how many blocks of rows there are; 0 where the logits are formed at once, in operations that autograd knows.
        rows: of a block.
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


class _Call(NamedTuple):
    """A call understood: the head with its rows side by side, and what is asked of them."""

    head: Head
    target: Target  # values are empty where there is a teacher
    teacher: Teacher | None
    reduction: Reduction  # with sample weights (N, d1, ...)
    lead: tuple[int, ...]  # the dimensions that were flattened into rows
    shift: int
    max_bytes: int
    impl: str
    named: bool  # whether the caller named impl
    dtype: torch.dtype
    moved: str = ""  # of DTensors, over the mesh

    def rows_back(self, rows: Tensor) -> Tensor:
        """Give the values of rows the dimensions that the caller's rows have."""
        rows = rows.reshape(self.lead + self.head.shape[1:])
        return rows if self.shift == 0 else rows[..., : self.lead[-1] - self.shift]

    def plan(self) -> Plan:
        """Return what the operators are told."""
        return Plan(self.target, self.teacher, self.max_bytes, self.impl)


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
        ignore_index: rows with this index count for nothing, and on a CPU are left out of the products; by default -100.
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
            max_bytes=max_bytes, **more,
        )  # fmt: skip
    if (
        not more
        and weight is None
        and type(shift) is int
        and shift == 0
        and not is_dtensor(*tensors)
        and _ordinary(input, linear_weight, target, linear_bias, max_bytes)
    ):
        assert isinstance(target, Tensor)
        ignored = -100 if ignore_index is None else ignore_index
        if _all_labelled(target, ignored):
            return cross_entropy(
                F.linear(input, linear_weight, linear_bias), target, ignore_index=ignored, reduction=reduction,
                label_smoothing=label_smoothing,
            )  # fmt: skip
    arguments: dict[str, Any] = {
        **more, "linear_bias": linear_bias, "weight": weight, "reduction": reduction, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "shift": shift, "max_bytes": max_bytes,
    }  # fmt: skip
    if more.get("shard") is not None:
        return _loss_of_shard(input, linear_weight, target, arguments)
    if is_dtensor(*tensors, *more.values()):
        return _loss_of_part(input, linear_weight, target, arguments)
    return _explained(_loss, _understand(input, linear_weight, target, arguments), target)


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
        return _explained(_stats, _understand(input, linear_weight, target, given), target)
    return _statistics_of_part(input, linear_weight, target, given)


def _stats(call: _Call) -> CrossEntropyStats:
    call = _without_garbage(call, statistics=True)
    row = _statistics_at_once(call) if _at_once(call) else _statistics(call)
    row_weight = _row_weights(call)
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
        call = _understand(*part.tensors)._replace(moved=part.moved)
    else:
        call = _understand(input, linear_weight, target, given)
    return _plan(call, _at_once(call))


def _plan(call: _Call, why: str) -> LinearPlan:
    keep = counted(call.head, call.target)
    size = call.head.input.shape[0] if keep is None else keep.shape[0]
    rows = size if why else block_size(call.head, call.plan(), size)
    bytes_of = rows * prod(call.head.shape) * call.head.input.dtype.itemsize
    return LinearPlan(0 if why else ceil(size / rows), rows, bytes_of, call.impl, why, call.moved)


# --- DTensors ---------------------------------------------------------------------------------------------------------


def _refuse_gathered(weight: object) -> None:
    """Let parallel/heads.py look at a matrix that came out of a DTensor."""
    if torch.compiler.is_compiling() or not isinstance(weight, Tensor):  # a compiler shows no grad_fn
        return
    if type(weight.grad_fn).__name__ == "_ToTorchTensorBackward":
        from crossent.parallel.heads import refuse_gathered  # which imports DTensor

        refuse_gathered(weight)


def _part(input: Tensor, weight: Tensor, target: Tensor | Teacher, arguments: dict[str, Any]) -> tuple[HeadPart, _Call]:
    """Take this process's part of a call with DTensors; and the call as it is on all processes, without values."""
    from crossent.parallel.heads import head_part, refuse_mixed
    from crossent.parallel.placements import stand_in

    refuse_mixed(input, weight)
    whole = {name: stand_in(value) for name, value in arguments.items() if name != "impl"}
    alike = Teacher(*map(stand_in, target)) if isinstance(target, Teacher) else stand_in(target)
    whole_call = _understand(stand_in(input), stand_in(weight), alike, whole)  # raises on all processes or on none
    return head_part(input, weight, target, arguments), whole_call


def _with_divisor(part: HeadPart, whole: _Call, weight: Tensor | None) -> dict[str, Any]:
    """Give a mean over several processes its divisor before the loss, which a process with few rows computes in another way."""
    from crossent.parallel.heads import own_weight

    input, _, target, given = part.tensors
    across, given = part.rows.across, dict(given)
    if across is None or whole.reduction.how != "mean" or whole.reduction.denominator is not None:
        return given
    if part.shard is None:
        call = _understand(*part.tensors)
        weights, u = _row_weights(call), call.reduction.sample_weight
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
            call = _understand(input, weight, target, given)
            loss = _explained(_loss, call._replace(reduction=call.reduction._replace(across=across)), target)
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
            call = _understand(input, weight, target, given)
            stats = _explained(_stats, call._replace(reduction=call.reduction._replace(across=across)), target)
    shift = arguments.get("shift", 0)
    return CrossEntropyStats._make(_cut(part.rows.result(value, how), shift) for value in stats)


def _cut(rows: Tensor, shift: int) -> Tensor:
    """Leave out the last positions, which have no label after a shift."""
    return rows[..., : rows.shape[-1] - shift] if shift and rows.dim() else rows


# --- understanding ----------------------------------------------------------------------------------------------------


def _understand(
    input: Tensor, linear_weight: Tensor | nn.Module, target: Tensor | Teacher, arguments: dict[str, Any]
) -> _Call:
    """Check the arguments, under the names that the caller gave them, and lay the rows out side by side."""
    check_names(arguments, LinearArguments, "linear_cross_entropy")
    rows = Reduction.among(arguments.get("reduction", "mean"), arguments)
    linear_bias, weight = arguments.get("linear_bias"), arguments.get("weight")
    ignore_index = optional(integer)("ignore_index", arguments.get("ignore_index"))
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, linear_bias = head_of(linear_weight, input, linear_bias)
    _check_head(input, linear_weight, linear_bias)
    max_bytes = _bytes_of_a_block(arguments.get("max_bytes"), input)
    shift = _SHIFT("shift", arguments.get("shift", 0))
    assert isinstance(linear_weight, Tensor)
    input, linear_weight, linear_bias = _autocast(input, linear_weight, linear_bias)
    assert isinstance(linear_weight, Tensor)
    lead, classes = tuple(input.shape[:-1]), tuple(linear_weight.shape[:-1])
    like = input.new_empty(()).expand(lead + classes)
    teacher = target if isinstance(target, Teacher) else None
    if teacher is not None:
        teacher = _teacher(teacher, input, classes)
        target = like.detach()
    elif (
        check_tensor("target", target, "a torch.Tensor or a crossent.Teacher").shape == like.shape
        and ignore_index is not None
    ):
        raise RuntimeError("ignore_index cannot be specified when target holds probabilities: leave it out")
    ignored = -100 if ignore_index is None else ignore_index
    assert isinstance(target, Tensor)
    target = _shifted(target, lead, shift, ignored)
    _, described = describe(like, target, weight, len(lead), {**arguments, "ignore_index": ignored})
    size = prod(lead)
    if teacher is not None:
        values = torch.empty(0, dtype=torch.promote_types(input.dtype, torch.float32), device=input.device)
    elif described.indices:
        values = described.values.reshape(size, *classes[1:])  # rows of which a mask allows no class are ignored here
    else:
        values = target.to(described.values.dtype).reshape(size, *classes)
    valid = described.valid
    described = described._replace(
        values=values,
        valid=None if valid is None else valid.reshape(size, *classes[1:]),
        logit_bias=_rows_of(described.logit_bias, arguments.get("logit_bias"), size, classes),
        class_mask=_rows_of(described.class_mask, arguments.get("class_mask"), size, classes),
    )
    rows = rows._replace(sample_weight=_row_factors(rows.sample_weight, like, lead, classes, shift))
    promoted = (described.values, weight) if not described.indices else ()
    dtype, impl = result_dtype(like, promoted, arguments.get("out_dtype")), arguments.get("impl")
    head = Head(*_side_by_side(input, linear_weight, linear_bias), classes)
    name = choose(like.reshape(size, *classes), impl, described.values, described)
    max_bytes = min(max_bytes, 1 << 62)  # an operator takes 64 bits
    return _Call(head, described, teacher, rows, lead, shift, max_bytes, name, impl is not None, dtype)


def _check_head(input: object, weight: object, bias: object) -> None:
    check_tensors(input=input, linear_weight=weight, **({} if bias is None else {"linear_bias": bias}))
    assert isinstance(input, Tensor)
    assert isinstance(weight, Tensor)
    check_devices(input, linear_weight=weight, linear_bias=bias)
    if input.dim() < 1 or weight.dim() < 2:
        raise RuntimeError(
            f"input must have shape (..., D) and linear_weight (C, D) or (C, d1, ..., D), got {shape(input)} and {shape(weight)}"
        )
    if input.shape[-1] != weight.shape[-1]:
        fix = (
            "transpose it with linear_weight.t()"
            if weight.dim() == 2 and weight.shape[0] == input.shape[-1]
            else "they are the features, D"
        )
        raise RuntimeError(
            f"input and linear_weight must have the same last dimension, got {shape(input)} and {shape(weight)}: {fix}"
        )
    if weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"linear_weight of shape {shape(weight)} needs a batch, (N, {input.shape[0]}), got {shape(input)}"
        )
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:-1]):
        got = shape(bias) if isinstance(bias, Tensor) else type(bias).__name__
        raise RuntimeError(
            f"linear_bias must have shape {tuple(weight.shape[:-1])} for such a linear_weight, got {got}"
        )
    check_logits_dtype(input)
    for name, value in (("linear_weight", weight), ("linear_bias", bias)):
        if isinstance(value, Tensor) and value.dtype != input.dtype and not under_autocast(input.device):
            raise RuntimeError(
                f"{name} must have the dtype of input, {input.dtype}, got {value.dtype}: convert one of them"
            )


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """Cast as autocast would for the product."""
    device = tensors[0].device if tensors[0] is not None else torch.device("cpu")
    if not under_autocast(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device.type)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _explained(compute: Callable[[_Call], _Result], call: _Call, target: Tensor | Teacher) -> _Result:
    """Compute; where a class is out of range, say where it is in the caller's target."""
    try:
        return compute(call)
    except IndexError:
        _say_where(target, call)
        raise


def _say_where(target: Tensor | Teacher, call: _Call) -> None:
    """Raise the IndexError of a class out of range with its place in the caller's target, whose rows were laid side by side."""
    if isinstance(target, Tensor) and call.target.indices:
        values = target.long()
        if call.shift:
            values = values.clone()
            values[..., : call.shift] = call.target.settings.ignore_index  # labels of no row
        call.target._replace(values=values).raise_if_out_of_range(call.head.shape[0])


def _side_by_side(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lay hidden states out as ``(N, D)``, and the matrix and bias of all classes as ``(C·d1·..., D)`` and one dimension."""
    rows, columns, features = prod(input.shape[:-1]), prod(weight.shape[:-1]), input.shape[-1]
    return input.reshape(rows, features), weight.reshape(columns, features), None if bias is None else bias.reshape(-1)


def _teacher(teacher: Teacher, input: Tensor, classes: tuple[int, ...]) -> Teacher:
    """Check a teacher and lay it out as the student's head; it is a constant, whatever it requires."""
    if isinstance(teacher.weight, nn.Module):
        with torch.no_grad():
            teacher = Teacher(*head_of(teacher.weight, teacher.input, teacher.bias), teacher.temperature)
    given = {f"the teacher's {name}": value for name, value in teacher._asdict().items() if name != "temperature"}
    check_tensors(**{name: value for name, value in given.items() if value is not None or name != "the teacher's bias"})
    check_devices(input, **given)
    if teacher.input.shape[:-1] != input.shape[:-1] or tuple(teacher.weight.shape[:-1]) != classes:
        raise RuntimeError(
            f"the teacher must have input of shape {(*input.shape[:-1], 'D')} and weight of shape {(*classes, 'D')}, got "
            f"{shape(teacher.input)} and {shape(teacher.weight)}"
        )
    if teacher.input.shape[-1] != teacher.weight.shape[-1]:
        raise RuntimeError(
            "the teacher's input and weight must have the same last dimension, got "
            f"{shape(teacher.input)} and {shape(teacher.weight)}"
        )
    temperature = _TEACHERS_TEMPERATURE("the teacher's temperature", teacher.temperature)
    if teacher.bias is not None and tuple(teacher.bias.shape) != classes:
        raise RuntimeError(f"the teacher's bias must have shape {classes}, got {shape(teacher.bias)}")
    head = _side_by_side(*_autocast(*(None if t is None else t.detach() for t in teacher[:3])))
    return Teacher(*head, temperature)


def _shifted(target: Tensor, lead: tuple[int, ...], shift: int, ignore_index: int) -> Tensor:
    """Move class indices ``shift`` positions to the front; what has no label any more is ignored."""
    if shift == 0:
        return target
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != torch.Size(lead) or not lead:
        raise RuntimeError(
            f"shift moves class indices of shape {lead} along their last dimension, got a target of shape "
            f"{shape(target)} and dtype {target.dtype}: leave shift out where the target belongs to each row already"
        )
    if shift >= lead[-1]:
        raise ValueError(f"shift must be less than the {lead[-1]} positions of input, got {shift}")
    return F.pad(target.long()[..., shift:], (0, shift), value=ignore_index)


def _rows_of(laid_out: Tensor | None, given: Tensor | None, size: int, classes: tuple[int, ...]) -> Tensor | None:
    """Lay a bias or mask of the logits' shape out by rows; one of ``(C)`` is that already."""
    if laid_out is None or given is None:
        return None
    return given if given.dim() == 1 and given.shape == classes[:1] else given.reshape(size, *classes)


def _row_factors(
    u: Tensor | None, like: Tensor, lead: tuple[int, ...], classes: tuple[int, ...], shift: int
) -> Tensor | None:
    if u is None:
        return None
    rows = like.new_empty(()).expand(lead + classes[1:])
    if shift:
        rows = rows[..., : lead[-1] - shift]
    u = weights_of_rows(u, rows.to(torch.promote_types(like.dtype, torch.float32)), whole=True)
    return (F.pad(u, (0, shift)) if shift else u).reshape(prod(lead), *classes[1:])


# --- ways -------------------------------------------------------------------------------------------------------------


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _at_once(call: _Call) -> str:
    """Say why the logits of all rows are formed at once, in operations that autograd knows; "" if they are not."""
    head = call.head
    few = _few(head.input.shape[0] * prod(head.shape), head.input, call.max_bytes)
    return _must_be_formed(call) or ("few logits" if few else "")


def _must_be_formed(call: _Call) -> str:
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
    if _wants_grad(target.values, target.weight, target.logit_bias, target.class_mask):
        return "probabilities, class weights or a logit_bias that require grad"
    return ""


def _few(logits: int, input: Tensor, max_bytes: int) -> bool:
    return logits <= FEW and logits * input.dtype.itemsize <= max_bytes


def _bytes_of_a_block(max_bytes: Any, input: Tensor) -> int:
    if max_bytes is None:
        return MAX_BYTES if input.device.type == "cpu" else MAX_BYTES_ELSEWHERE
    return _BYTES("max_bytes", max_bytes)


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
        and _few(input.shape[0] * weight.shape[0], input, MAX_BYTES if max_bytes is None else max_bytes)
    )


def _all_labelled(target: Tensor, ignore_index: object) -> bool:
    """Whether every row can be seen to count: the hidden states of others may be nan, which the products would spread."""
    return type(ignore_index) is int and readable(target) and not bool((target == ignore_index).any())


def _without_garbage(call: _Call, statistics: bool = False) -> _Call:
    """Leave out the rows that have no weight in the loss: their hidden states may hold anything, and it saves products.

    Where that weight has a derivative, or statistics are wanted of such rows too, only those that are not finite are left out.
    """
    head, target, u = call.head, call.target, call.reduction.sample_weight
    weightless = None if u is None else u == 0
    if target.indices:
        c = _row_weights(call) if target.settings.label_smoothing == 0 else None
        ignored = target.values == target.settings.ignore_index if c is None else c == 0
        weightless = ignored if weightless is None else weightless | ignored
    elif target.valid is not None:
        weightless = ~target.valid if weightless is None else weightless | ~target.valid
    if weightless is None:
        return call
    absent = weightless.flatten(1).all(1) if weightless.dim() > 1 else weightless
    if statistics or _wants_grad(u) or transform_under_way(u):
        absent = absent & ~head.input.detach().isfinite().all(1)
    if _at_once(call):
        if not readable(absent) or absent.any():
            head = head._replace(input=head.input.masked_fill(absent.unsqueeze(1), 0.0))
        return call._replace(head=head)
    rows = absent.reshape(-1, *(1 for _ in head.shape[1:])).expand(-1, *head.shape[1:])
    if target.indices:
        rows = rows & (target.values != target.settings.ignore_index)
    if readable(rows) and not rows.any():
        return call  # with the caller's own target, which autograd watches
    return call._replace(target=target.leaving_out(rows))


def _without_garbage_of_no_label(call: _Call) -> _Call:
    """Put 0 in the place of hidden states that are not finite where a row's probabilities weigh nothing.

    Such a row has a loss of 0 and counts in a mean, so it cannot be left out. The gradient of its logits is 0, of which the product
    with such hidden states would make nan. A gradient for its probabilities or their weights needs the softmax, and sees the nan.
    """
    head, target = call.head, call.target
    t, c, settings = target.values, target.weight, target.settings
    if target.indices or call.teacher is not None or target.is_shard or settings.label_smoothing or settings.z_loss:
        return call
    if _wants_grad(t, c) or transform_under_way(head.input, t, c) or is_dtensor(head.input, head.weight, t):
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
        rows = torch.zeros(head.input.shape[0], dtype=torch.bool).index_fill_(0, rows[unwanted], True)
    return call._replace(head=head._replace(input=head.input.masked_fill(rows.unsqueeze(1), 0.0)))


def _loss(call: _Call) -> Tensor:
    call = _without_garbage_of_no_label(_without_garbage(call))
    reduction = call.reduction
    if _at_once(call):
        loss = _loss_at_once(call)
        return call.rows_back(loss) if reduction.how == "none" else loss
    scaled_later = call.head.input.dtype == torch.float16 and _wants_grad(*call.head[:3])
    if reduction.how == "none" or scaled_later or _wants_grad(reduction.sample_weight):
        rows = rows_operator(call.head, call.plan())
        loss = reduce_rows(rows, _row_weights(call), reduction).to(call.dtype)
        loss = call.rows_back(loss) if reduction.how == "none" else loss
    else:
        loss = _reduced(call).to(call.dtype)
    if not torch.compiler.is_compiling() and reduction.across is None and (watcher := watch.current()) is not None:
        _show(call, loss, watcher)
    return loss


def _show(call: _Call, loss: Tensor, watcher: watch.Watcher) -> None:
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


def _loss_at_once(call: _Call) -> Tensor:
    logits, described = _logits(call.head, call.plan())
    impl = call.impl if call.named else None
    return reduced_cross_entropy(logits, logits, described, call.reduction, call.dtype, impl=impl)


def _statistics_at_once(call: _Call) -> RowStatistics:
    return statistics_of(*_logits(call.head, call.plan()), call.impl if call.named else None)


def _row_weights(call: _Call) -> Tensor:
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


def _statistics(call: _Call) -> RowStatistics:
    """Compute the statistics of rows in blocks."""
    return linear_statistics(call.head, call.plan(), _row_weights(call))


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


def _reduced(call: _Call) -> Tensor:
    """Compute a sum or a mean in blocks, with the gradients on the way."""
    how, factor, given, empty, _ = call.reduction
    wide = torch.promote_types(call.head.input.dtype, torch.float32)
    divisor = torch.ones((), dtype=wide, device=call.head.input.device)
    divided_later = isinstance(given, Tensor) and given.requires_grad
    if how == "mean" and not divided_later:
        if given is None:
            weights = _row_weights(call)
            divisor = ordered_sum(weights if factor is None else weights * factor)
        else:
            divisor = torch.as_tensor(given, dtype=wide, device=divisor.device)
    nothing = divisor == 0
    by = divisor.masked_fill(nothing, torch.inf)

    needs = tuple(_wants_grad(t) for t in call.head[:3])
    loss: Tensor = sum_operator(call.head, call.plan(), factor, by, needs)[0]
    if divided_later:
        assert given is not None
        loss = divide(loss, given, empty)
    elif how == "mean" and empty != "zero":
        loss = loss.masked_fill(nothing, torch.nan)
    return call.reduction.whole(loss)[0]


# --- shards of the classes --------------------------------------------------------------------------------------------


def _understand_shard(
    input: Tensor,
    linear_weight: Tensor | nn.Module,
    target: Tensor | Teacher,
    arguments: dict[str, Any],
    loss: str,
    request: Request,
) -> tuple[_Call, ShardedHead]:
    """Understand a call whose head is a shard of the classes; its hidden states are then where they are needed."""
    from crossent.parallel import linear as parallel  # torch's collectives take 0.2 s to import

    shard = arguments["shard"]
    if isinstance(linear_weight, nn.Module):
        input, linear_weight, bias = head_of(linear_weight, input, arguments.get("linear_bias"))
        arguments = {**arguments, "linear_bias": bias}
    _check_head(input, linear_weight, arguments.get("linear_bias"))
    given, target = _own_classes(arguments, target, len(input.shape) - 1, linear_weight.shape[0], shard)
    mask = given.pop("class_mask", None)
    call = _understand(input, linear_weight, target, given)
    lead, classes = call.lead, call.head.shape
    if mask is not None:
        like = input.new_empty(()).expand(lead + classes)
        laid_out = along_classes_or_whole(check_mask(mask), "class_mask", like, len(lead))
        mask = _rows_of(laid_out, mask, prod(lead), classes)
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
        probabilities=None if described.indices else described.values, wants_gradient=_wants_grad(*call.head[:3]),
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
    call = _understand(input, weight, target, given)
    size = bytes_of_block(call.head.shape, shard, call.max_bytes, input.dtype, call.impl, has_teacher)
    call = call._replace(max_bytes=size, teacher=None)  # the size has room for a teacher's workspace already
    why = _must_be_formed(call)
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
        loss, row_weight = sharded_linear(call.head, sharded, call.reduction, bool(_must_be_formed(call)))
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
