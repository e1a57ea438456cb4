"""Sigmoid (binary) cross entropy as a function: understand the arguments, choose an implementation, reduce."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from crossent.core import watch
from crossent.core.checks import Place, check_binary, element_mask, gradient_place, pos_weight_along
from crossent.core.modes import is_dtensor, plain
from crossent.core.penalties import BinaryPenalty, Penalty
from crossent.core.reduction import (
    Reduction,
    compute_dtype,
    ordered_sum,
    result_dtype,
    sums_of_rows,
    times,
    weights_of_rows,
)
from crossent.core.settings import BinarySettings, documented
from crossent.core.target import BinaryTarget, stand_in
from crossent.impl import choose, wanted_loss
from crossent.ops import binary as ops
from crossent.ops.elements import element_losses
from crossent.ops.rows import takes_blocks
from crossent.ops.small import short_way


@documented
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    pos_weight: Tensor | None = None,
    *,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    out_dtype: torch.dtype | None = None,
    ignore_index: float | None = None,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    dim: int | None = None,
    penalty: Penalty | BinaryPenalty | None = None,
    inplace_backward: bool = False,
    inplace_forward: bool = False,
    impl: str | None = None,
) -> Tensor:
    r"""Compute the sigmoid (binary) cross entropy of every logit, in nats.

    With ``p = σ(input)`` and ``π`` the positive weight::

        loss = weight · (π t (-log p) + (1-t) (-log (1-p)))        ∂loss/∂input = weight · ((1-t) p - π t (1-p))

    It is the softmax cross entropy over the two logits ``[x, 0]``, exactly, with a penalty ``f`` in the place of ``-log p`` too.

    Smoothing moves the target towards one half, ``t → (1-ε) t + ε/2``, as Keras and TensorFlow do. segmentation-models-pytorch
    writes ``(1-2ε') t + ε'``, which is ``ε = 2ε'``. timm moves it towards ``1/C``, which is no ``ε`` of this convention for C > 2.

    The positional arguments are those of :func:`torch.nn.functional.binary_cross_entropy_with_logits`, with its meaning.

    Args:
        input: logits of any shape, float32, float64, bfloat16 or float16.
        target: the probability of "yes" for each, floating, of exactly the same shape. Differentiable.
        weight: a factor on each element, broadcast to that shape; the mean's divisor does not see it.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``; the mean divides by the number of elements that count.
        pos_weight: ``π``, broadcast to that shape from the last dimension, or ``(C)`` along ``dim``.
        sample_weight: a factor for each row, of the shape of the leading dimensions of ``input``; ``k`` is the row ``k`` times, in
            the mean's divisor too. Differentiable.
        ignore_index: elements with this target count for nothing: no loss, no gradient, no share in the mean.
        mask: boolean, broadcast to that shape; False is ignored in the same way, whatever its logits hold.
        dim: the class dimension, along which a ``pos_weight`` of shape ``(C)`` lies.
        penalty: what yes and no cost by their probability: a :class:`crossent.Penalty` for both or a pair of them, such as
            :class:`crossent.Asymmetric`; by default ``-log p``.
        {options}

    Returns:
        The loss, 0-d, or of the shape of ``input`` for ``reduction="none"``, in the dtype of the *target*, as in torch; float32
        or wider under autocast.

    Raises:
        ValueError: bad ``reduction`` or ``empty``, shapes of input and target that differ.
        RuntimeError: target not floating (for a bool one NotImplementedError from torch 2.14 on), weights that do not
            broadcast to the input, weights that require grad.
        TypeError: an argument of another type.
        NotImplementedError: logits of another dtype.

    >>> binary_cross_entropy_with_logits(torch.tensor([-6.0]), torch.tensor([1.0]))
    tensor(6.0025)
    >>> binary_cross_entropy_with_logits(torch.tensor([-6.0, 0.0]), torch.tensor([1.0, -1.0]), ignore_index=-1)
    tensor(6.0025)

    See also: :func:`cross_entropy` where exactly one class is true; :class:`crossent.BCEWithLogitsLoss` for a module.

    Source: PyTorch 2.13, ``torch.nn.BCEWithLogitsLoss``.
    """
    # Every argument, in the order of the signature, as tests/losses/test_names.py checks.
    given = (
        input, target, weight, size_average, reduce, reduction, pos_weight, sample_weight, denominator, empty, out_dtype,
        ignore_index, mask, label_smoothing, dim, penalty, inplace_backward, inplace_forward, impl,
    )  # fmt: skip
    if not is_dynamo_compiling() and (loss := _short(given)) is not None:
        return loss
    # The options of this library, in the order of BinarySettings.
    own = (ignore_index, label_smoothing, penalty)
    if has_torch_function_variadic(input, target, weight, pos_weight, mask):
        options: dict[str, Any] = dict(zip(BinarySettings.names, own, strict=True))
        return handle_torch_function(
            binary_cross_entropy_with_logits, (input, target, weight, pos_weight, mask), input, target, weight,
            size_average, reduce, reduction, pos_weight, sample_weight=sample_weight, denominator=denominator,
            empty=empty, out_dtype=out_dtype, mask=mask, dim=dim, inplace_backward=inplace_backward,
            inplace_forward=inplace_forward, impl=impl, **options,
        )  # fmt: skip
    rows = Reduction.of(reduction, sample_weight, denominator, empty, size_average=size_average, reduce=reduce)
    if dim is not None:
        pos_weight = pos_weight_along(dim, input, pos_weight)
    settings = BinarySettings.of(**dict(zip(BinarySettings.names, own, strict=True)))
    place = gradient_place(inplace_backward, inplace_forward, input)
    if is_dtensor(input, target, weight, pos_weight, mask, sample_weight, denominator):
        from crossent.parallel.placements import binary_rows  # which imports DTensor

        placed, (input, target, weight, pos_weight, mask, rows) = binary_rows(
            input, target, weight, pos_weight, mask, rows
        )
        loss = _understood(input, target, weight, pos_weight, mask, rows, settings, out_dtype, "beside", impl)
        return placed.result(loss, rows.how)
    return _understood(input, target, weight, pos_weight, mask, rows, settings, out_dtype, place, impl)


_short = short_way(binary_cross_entropy_with_logits)


def _understood(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    rows: Reduction,
    settings: BinarySettings,
    out_dtype: torch.dtype | None,
    place: Place,
    impl: str | None,
) -> Tensor:
    """Check the tensors against each other, and compute the loss."""
    check_binary(input, target, weight, pos_weight)
    described = BinaryTarget(target, weight, pos_weight, element_mask(mask, input), settings)
    dtype = result_dtype(target, (), out_dtype)
    wanted = wanted_loss(input, described, rows.how, rows.sample_weight is not None, place != "beside")
    name = choose(input, impl, target, described, wanted)
    if rows.how == "none":
        loss = _of_elements(input, described, rows.sample_weight, dtype, name, place)
    else:
        loss = _reduced(input, described, rows, name, place)
    loss = loss if loss.dtype == dtype else loss.to(dtype)
    if not is_compiling() and rows.across is None and (watcher := watch.current()) is not None:
        watcher(input, input, described, loss, rows.as_torch)
    return loss


def _of_elements(
    input: Tensor, target: BinaryTarget, sample_weight: Tensor | None, dtype: torch.dtype, impl: str, place: Place
) -> Tensor:
    """Compute the loss of every element, and weigh it by its row."""
    u, rows = None, stand_in(input, compute_dtype(input, target.values))
    if sample_weight is not None:
        u = weights_of_rows(sample_weight, rows, whole=False)
    if takes_blocks(impl, input, target) and plain(u):
        return element_losses(input, target, u, dtype, place != "beside")
    loss = ops.binary_cross_entropy(input, target, False, 1.0, impl, place)
    return loss if u is None else times(u.to(loss.dtype), loss)


def _reduced(input: Tensor, target: BinaryTarget, reduction: Reduction, impl: str, place: Place) -> Tensor:
    """Sum or average the losses of all elements."""
    valid, sample_weight = target.valid_elements(), reduction.sample_weight
    total = sample_weight is None
    over_all = total and reduction.as_torch and reduction.empty == "nan" and valid is None
    divided_by = float(input.numel()) if over_all else 1.0
    loss = ops.binary_cross_entropy(input, target, total, divided_by, impl, place)
    divisor: float | Tensor = input.numel()
    if reduction.across is not None:
        divisor = torch.full((), input.numel(), dtype=torch.int64, device=input.device)
    if sample_weight is not None:
        u = weights_of_rows(sample_weight, loss, whole=False)
        u, counted = u.reshape(sample_weight.shape), loss.new_ones(()) if valid is None else valid.to(loss.dtype)
        loss = ordered_sum(times(u, sums_of_rows(loss, u.dim())))
        divisor = ordered_sum(u * sums_of_rows(counted.expand_as(input), u.dim()))
    elif valid is not None and reduction.how == "mean":
        divisor = torch.count_nonzero(valid.expand_as(input))
    return loss if over_all else reduction.finish(loss, divisor)
