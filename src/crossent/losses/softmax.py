"""The losses as functions of torch tensors: understand the arguments, choose an implementation, reduce."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from crossent.core.penalties import BinaryPenalty, Penalty
from crossent.core.target import (
    BinaryTarget,
    Target,
    binary_rule,
    check_logits_dtype,
    describe,
    shape,
    type_error,
    under_autocast,
)
from crossent.impl import choose
from crossent.impl.eager import ordered_sum, valid_elements
from crossent.ops import softmax as ops

Reduction = Literal["none", "sum", "mean"]

watcher: Callable[[Tensor, Tensor, Target | BinaryTarget, Tensor, bool], None] | None = None
"""``crossent.debug`` puts here what is shown every call: input, the same laid out, target, loss, and whether that is a mean."""


class CrossEntropyModuleOptions(TypedDict, total=False):
    """What :class:`crossent.CrossEntropyLoss` takes by keyword beside weight and penalty."""

    ignore_index: int
    reduction: str
    label_smoothing: float
    denominator: float | Tensor | None
    empty: Literal["nan", "zero"]
    out_dtype: torch.dtype | None
    dim: int | None
    temperature: float
    softcap: float | None
    logit_bias: Tensor | None
    margin: float
    class_mask: Tensor | None
    z_loss: float
    inplace_backward: bool
    impl: str | None


class CrossEntropyOptions(CrossEntropyModuleOptions, total=False):
    """What :func:`cross_entropy` takes by keyword beside weight and penalty."""

    sample_weight: Tensor | None


class BinaryModuleOptions(TypedDict, total=False):
    """What :class:`crossent.BCEWithLogitsLoss` takes by keyword beside penalty and reduction."""

    weight: Tensor | None
    pos_weight: Tensor | None
    denominator: float | Tensor | None
    empty: Literal["nan", "zero"]
    out_dtype: torch.dtype | None
    ignore_index: float | None
    label_smoothing: float
    dim: int | None
    inplace_backward: bool
    impl: str | None


class BinaryOptions(BinaryModuleOptions, total=False):
    """What :func:`binary_cross_entropy_with_logits` takes by keyword beside penalty and reduction."""

    sample_weight: Tensor | None
    mask: Tensor | None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
    out_dtype: torch.dtype | None = None,
    dim: int | None = None,
    penalty: Penalty | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Tensor | None = None,
    margin: float = 0.0,
    class_mask: Tensor | None = None,
    z_loss: float = 0.0,
    inplace_backward: bool = False,
    impl: str | None = None,
) -> Tensor:
    r"""Compute the softmax cross entropy between logits and class indices or probabilities, in nats.

    With ``p = softmax(input)``, target weights ``t`` (one-hot for indices, smoothed to ``(1-ε) t + ε/C``) and class weights ``c``::

        loss = Σ_k c_k t_k (-log p_k)        ∂loss/∂input = (Σ_k c_k t_k) p - c ∘ t

    With a penalty ``(f, s)`` in the place of ``(-log p, 1)``, a z-loss ``λ``, and the logits ``x`` transformed first::

        x' = (cap · tanh(x / cap) + bias - margin · t) / T, and -inf for masked classes        p = softmax(x')
        loss = Σ_k c_k t_k f(p_k) + λ lse²
        ∂loss/∂x' = mass · p - w ∘ t        w = c ∘ s(p)        mass = Σ_k w_k t_k + 2λ lse

    The positional arguments are those of :func:`torch.nn.functional.cross_entropy`, with its meaning; what follows the star
    is this library's. All of it combines.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``, float32, float64, bfloat16 or float16.
        target: class indices in [0, C) of any integer dtype and of the logits' shape without the class dimension; or
            probabilities, floating, of exactly the logits' shape, which need not sum to one.
        weight: class weights ``c``, ``(C)``; for indices in the dtype of the logits.
        size_average: deprecated, as in torch.
        ignore_index: rows with this index count for nothing: no loss, no gradient whatever their logits hold, no share in the mean.
        reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``. The mean divides by ``Σ c[y]`` over the rows not ignored for indices,
            by the number of rows for probabilities.
        label_smoothing: ``ε`` in [0, 1].
        sample_weight: a factor for each row, of the shape of the unreduced loss; ``k`` is the row ``k`` times, in the mean's
            divisor too, and 0 is the row left out. Differentiable.
        denominator: a number or 0-d tensor that replaces what the mean divides by, such as the count over all micro-batches
            or machines.
        empty: what the mean over nothing is: ``"nan"`` as in torch, or ``"zero"``, which stays connected to the graph.
        out_dtype: dtype of the result.
        dim: the class dimension; by default 0 for logits of one dimension and 1 for more.
        penalty: what a class costs by its probability, such as :class:`crossent.Focal`; by default ``-log p``. It sees the
            probability, not the weighted loss.
        temperature: ``T``, positive. The loss is not multiplied by it.
        softcap: ``cap``, positive. A logit of ``-inf`` becomes ``-cap`` and so possible: use ``class_mask``, which comes later.
        logit_bias: floating, ``(C)`` or of the logits' shape, such as the log of the classes' frequencies. Differentiable.
        margin: ``m``, subtracted from the logit of the target class; with probabilities, ``m t_k`` from each. It is the target
            before smoothing in either case.
        class_mask: boolean, ``(C)`` or of the logits' shape, True for the classes that are allowed. The others have probability 0
            and gradient 0 whatever their logits hold, and smoothing spreads over the allowed ones only. A row that wants a class
            it does not allow pays ``f(0)``, which is infinite for cross entropy; a row that allows nothing has a loss of nan.
        z_loss: ``λ``, at least 0, weighted like its row: by ``c[y]`` for indices, 1 for probabilities, and by ``sample_weight``.
        inplace_backward: allow the backward pass to write the gradient over the logits, which then takes no memory and the
            least time. Whatever uses the logits afterwards raises, as after any in-place operation. The kernels do so
            for plain tensors; where they do not run the gradient is new memory as ever. Not for leaves, whose values would be lost.
        impl: ``None`` to choose, or ``"eager"``, ``"native"``, ``"triton"``, which is obeyed or refused. Derivatives of
            derivatives and ``torch.func`` transforms are computed in torch operations whatever it says.

    Returns:
        The loss, 0-d, or of the shape of the rows for ``reduction="none"``. Its dtype is that of ``input`` for indices and
        promoted from input, target and weight for probabilities; float32 under autocast. Sums are float32 or wider inside.

    Raises:
        ValueError: bad ``reduction`` or ``empty``, batch sizes that differ, a temperature, cap, margin or z-loss out of range.
        IndexError: a class index out of range.
        RuntimeError: other shapes and dtypes; ``label_smoothing`` above 1; a non-negative ``ignore_index`` with probabilities;
            a ``weight`` that requires grad with indices.
        TypeError: an argument of another type.
        NotImplementedError: logits of another dtype.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2]]).log().requires_grad_()
    >>> loss = cross_entropy(logits, torch.tensor([0]))
    >>> loss.backward()
    >>> loss.item(), logits.grad.numpy().round(2)
    (2.3025851249694824, array([[-0.9,  0.7,  0.2]], dtype=float32))
    >>> cross_entropy(torch.zeros(27), torch.tensor(5), class_mask=torch.arange(27) < 10)
    tensor(2.3026)

    See also: :func:`binary_cross_entropy_with_logits` where classes do not exclude each other;
    :func:`crossent.cross_entropy_stats` for what else a pass over the logits can tell;
    :class:`crossent.CrossEntropyLoss` for a module.

    Source: PyTorch 2.13, ``torch.nn.CrossEntropyLoss``. Logit bias: Menon et al., "Long-tail learning via logit adjustment",
    2021; margin: Wang et al., "Additive Margin Softmax for Face Verification", 2018; z-loss: Chowdhery et al., "PaLM", 2022;
    soft cap: Gemma Team, "Gemma 2", 2024.
    """
    if has_torch_function_variadic(input, target, weight, logit_bias, class_mask):
        return handle_torch_function(
            cross_entropy, (input, target, weight, logit_bias, class_mask), input, target, weight, size_average,
            ignore_index, reduce, reduction, label_smoothing, sample_weight=sample_weight, denominator=denominator,
            empty=empty, out_dtype=out_dtype, dim=dim, penalty=penalty, temperature=temperature, softcap=softcap,
            logit_bias=logit_bias, margin=margin, class_mask=class_mask, z_loss=z_loss,
            inplace_backward=inplace_backward, impl=impl,
        )  # fmt: skip
    ordinary = (
        penalty is None
        and softcap is None
        and logit_bias is None
        and class_mask is None
        and temperature == 1.0
        and margin == 0.0
        and z_loss == 0.0
    )
    if (
        (reduction == "mean" or reduction == "sum")
        and type(ignore_index) is int
        and type(label_smoothing) is float
        and 0.0 <= label_smoothing <= 1.0
        and sample_weight is None
        and denominator is None
        and out_dtype is None
        and dim is None
        and ordinary
        and impl is None
        and size_average is None
        and reduce is None
        and empty == "nan"
        and not inplace_backward
        and watcher is None
        and not torch.compiler.is_compiling()
    ):
        quick = ops.quick_cross_entropy(input, target, weight, ignore_index, label_smoothing, reduction == "mean")
        if quick is not None:
            return quick
    reduction = read_reduction(reduction, size_average, reduce)
    special = None
    if not ordinary:
        special = {
            "penalty": penalty, "temperature": temperature, "softcap": softcap, "logit_bias": logit_bias, "margin": margin,
            "class_mask": class_mask, "z_loss": z_loss,
        }  # fmt: skip
    logits, described = describe(input, target, weight, ignore_index, label_smoothing, dim, special)
    dtype = result_dtype(input, (target, weight) if not described.indices else (), out_dtype)
    mean = Mean(sample_weight, denominator, empty)
    return reduced_cross_entropy(input, logits, described, reduction, mean, dtype, inplace_backward, impl)


class Mean(NamedTuple):
    """How rows are weighed and averaged."""

    sample_weight: Tensor | None = None
    denominator: float | Tensor | None = None
    empty: str = "nan"


def reduced_cross_entropy(
    input: Tensor,
    logits: Tensor,
    described: Target,
    reduction: Reduction,
    mean: Mean,
    dtype: torch.dtype,
    inplace_backward: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Choose an implementation for logits that are laid out and arguments that are understood, run it and reduce."""
    check_mean(reduction, mean)
    name = choose(logits, impl, described.values, described)
    _check_inplace(inplace_backward, input)
    how = reduction
    if mean.sample_weight is not None:
        how = "none"
    elif reduction == "mean" and not (mean.denominator is None and mean.empty == "nan"):
        how = "sum"
    loss, row_weight = ops.cross_entropy(logits, described, how, name, inplace_backward)
    if how == "none":
        if input.dim() == 1:
            loss = loss.squeeze(0)
            row_weight = None if row_weight is None else row_weight.squeeze(0)
        loss = reduce_rows(loss, row_weight, reduction, mean)
    elif row_weight is not None and reduction == "mean":
        loss = divide(loss, row_weight if mean.denominator is None else mean.denominator, mean.empty)
    loss = loss if loss.dtype == dtype else loss.to(dtype)
    if watcher is not None and not torch.compiler.is_compiling():
        averaged = reduction == "mean" and mean.sample_weight is None and mean.denominator is None
        watcher(input, logits, described, loss, averaged)
    return loss


def reduce_rows(loss: Tensor, row_weight: Tensor | None, reduction: Reduction, mean: Mean) -> Tensor:
    """Weigh a loss a row, and sum or average; ``row_weight`` is what each row adds to the divisor."""
    sample_weight, denominator, empty = mean
    if sample_weight is not None:
        u = weights_of_rows(sample_weight, loss, whole=True)
        loss, row_weight = loss * u, None if row_weight is None else row_weight * u
    if reduction == "none":
        return loss
    loss = ordered_sum(loss)
    if reduction == "sum":
        return loss
    assert row_weight is not None
    return divide(loss, ordered_sum(row_weight) if denominator is None else denominator, empty)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
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
        size_average: deprecated, as in torch.
        reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``; the mean divides by the number of elements that count.
        pos_weight: ``π``, broadcast to that shape from the last dimension, or ``(C)`` along ``dim``.
        sample_weight: a factor for each row, of the shape of the leading dimensions of ``input``; ``k`` is the row ``k`` times, in
            the mean's divisor too. Differentiable.
        denominator: a number or 0-d tensor that replaces what the mean divides by.
        empty: what the mean over nothing is: ``"nan"`` as in torch, or ``"zero"``, which stays connected to the graph.
        out_dtype: dtype of the result.
        ignore_index: elements with this target count for nothing: no loss, no gradient, no share in the mean.
        mask: boolean, broadcast to that shape; False is ignored in the same way, whatever its logits hold.
        label_smoothing: ``ε`` in [0, 1].
        dim: the class dimension, along which a ``pos_weight`` of shape ``(C)`` lies.
        penalty: what yes and no cost by their probability: a :class:`crossent.Penalty` for both or a pair of them, such as
            :class:`crossent.Asymmetric`; by default ``-log p``.
        inplace_backward: allow the backward pass to write the gradient over the logits, which then takes no memory and the
            least time. Whatever uses the logits afterwards raises, as after any in-place operation. The kernels do so
            for plain tensors; where they do not run the gradient is new memory as ever. Not for leaves, whose values would be lost.
        impl: ``None`` to choose, or ``"eager"``, ``"native"``, ``"triton"``, which is obeyed or refused. Derivatives of
            derivatives and ``torch.func`` transforms are computed in torch operations whatever it says.

    Returns:
        The loss, 0-d, or of the shape of ``input`` for ``reduction="none"``, in the dtype of the *target*, as in torch; float32
        or wider under autocast.

    Raises:
        ValueError: bad ``reduction`` or ``empty``, shapes of input and target that differ.
        RuntimeError: target not floating, weights that do not broadcast to the input, weights that require grad.
        TypeError: an argument of another type.
        NotImplementedError: logits of another dtype.

    >>> binary_cross_entropy_with_logits(torch.tensor([-6.0]), torch.tensor([1.0]))
    tensor(6.0025)
    >>> binary_cross_entropy_with_logits(torch.tensor([-6.0, 0.0]), torch.tensor([1.0, -1.0]), ignore_index=-1)
    tensor(6.0025)

    See also: :func:`cross_entropy` where exactly one class is true; :class:`crossent.BCEWithLogitsLoss` for a module.

    Source: PyTorch 2.13, ``torch.nn.BCEWithLogitsLoss``.
    """
    if has_torch_function_variadic(input, target, weight, pos_weight, mask):
        return handle_torch_function(
            binary_cross_entropy_with_logits, (input, target, weight, pos_weight, mask), input, target, weight,
            size_average, reduce, reduction, pos_weight, sample_weight=sample_weight, denominator=denominator,
            empty=empty, out_dtype=out_dtype, ignore_index=ignore_index, mask=mask, label_smoothing=label_smoothing,
            dim=dim, penalty=penalty, inplace_backward=inplace_backward, impl=impl,
        )  # fmt: skip
    reduction = read_reduction(reduction, size_average, reduce)
    if dim is not None:
        pos_weight = _pos_weight_along(dim, input, pos_weight)
    _check_binary(input, target, weight, pos_weight)
    described = BinaryTarget(target, weight, pos_weight)
    if not (ignore_index is None and mask is None and label_smoothing == 0.0 and penalty is None):
        rule = binary_rule(ignore_index, label_smoothing, penalty)
        described = BinaryTarget(target, weight, pos_weight, _mask(mask, input), rule)
    check_mean(reduction, Mean(sample_weight, denominator, empty))
    dtype = result_dtype(target, (), out_dtype)
    name = choose(input, impl, target, described)
    _check_inplace(inplace_backward, input)
    valid = valid_elements(described)
    total = reduction != "none" and sample_weight is None
    torchs_mean = total and reduction == "mean" and denominator is None and empty == "nan" and valid is None
    over = float(input.numel()) if torchs_mean else 1.0
    loss = ops.binary_cross_entropy(input, described, total, over, name, inplace_backward)
    divisor: float | Tensor = input.numel()
    if valid is not None:
        divisor = valid.expand_as(input).sum()
    if sample_weight is not None:
        u = weights_of_rows(sample_weight, loss, whole=False)
        loss = loss * u
        if reduction != "none":
            counted = u.expand_as(input) if valid is None else u * valid
            loss, divisor = ordered_sum(loss), ordered_sum(counted.expand_as(input))
    if reduction == "mean" and not torchs_mean:
        loss = divide(loss, divisor if denominator is None else denominator, empty)
    loss = loss if loss.dtype == dtype else loss.to(dtype)
    if watcher is not None and not torch.compiler.is_compiling():
        averaged = reduction == "mean" and sample_weight is None and denominator is None
        watcher(input, input, described, loss, averaged)
    return loss


def read_reduction(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> Reduction:
    """Read ``reduction``, or the two deprecated arguments that override it."""
    if size_average is not None or reduce is not None:
        averaged = size_average is None or size_average
        reduction = ("mean" if averaged else "sum") if reduce is None or reduce else "none"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead.",
            stacklevel=3,
        )
    if reduction == "mean" or reduction == "sum" or reduction == "none":
        return reduction  # type: ignore[return-value]
    if reduction == "elementwise_mean":
        warnings.warn("reduction='elementwise_mean' is deprecated, please use reduction='mean' instead.", stacklevel=3)
        return "mean"
    hint = "; to divide by the batch size, pass denominator=" if reduction == "batchmean" else ""
    raise ValueError(f"reduction must be 'none', 'sum' or 'mean', got {reduction!r}{hint}")


def check_mean(reduction: Reduction, mean: Mean) -> None:
    """Refuse arguments of a mean that make no sense."""
    _, denominator, empty = mean
    if empty not in ("nan", "zero"):
        raise ValueError(f"empty must be 'nan' or 'zero', got {empty!r}")
    if denominator is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"denominator replaces what reduction='mean' divides by, got it with reduction={reduction!r}: drop one"
        )
    if isinstance(denominator, Tensor):
        if denominator.dim() != 0:
            raise ValueError(
                f"denominator must be a number or a 0-d tensor, got shape {shape(denominator)}: sum it first"
            )
    elif isinstance(denominator, bool) or not isinstance(denominator, (int, float)):
        type_error("denominator", "a number or a 0-d tensor", denominator)


def _check_inplace(inplace_backward: bool, logits: Tensor) -> None:
    if inplace_backward and logits.is_leaf and logits.requires_grad:
        raise RuntimeError(
            "inplace_backward=True would write the gradient over a leaf, whose values would be lost: "
            "use it for logits that a model computed, or leave it out"
        )


def _check_binary(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None) -> None:
    for name, value in (("input", input), ("target", target), ("weight", weight), ("pos_weight", pos_weight)):
        if not isinstance(value, Tensor) and (value is not None or name in ("input", "target")):
            type_error(name, "a torch.Tensor", value)
    if target.shape != input.shape:
        fix = "give every logit its own target"
        if target.numel() == input.numel():
            fix = f"reshape with target.reshape{shape(input)} or the logits with input.reshape{shape(target)}"
        elif input.dim() == target.dim() + 1 and input.shape[:1] == target.shape[:1]:
            fix = "for one class index a row use cross_entropy, or one-hot rows"
        raise ValueError(f"target must have the shape of the logits {shape(input)}, got {shape(target)}: {fix}")
    check_logits_dtype(input)
    if not target.is_floating_point():
        raise RuntimeError(f"target must be floating, got {target.dtype}: convert with target.float()")
    for name, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is None:
            continue
        if value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} must not require grad, the loss is not differentiable in it: pass {name}.detach()"
            )
        behind = zip(reversed(value.shape), reversed(input.shape), strict=False)
        if value.dim() > input.dim() or any(a not in (1, b) for a, b in behind):
            fix = "reshape it so that its last dimensions meet the logits' last"
            if value.dim() == 1 and value.shape[0] in input.shape:
                axis = tuple(input.shape).index(value.shape[0])
                fix = f"to lay it along dimension {axis} use {name}.reshape{(-1,) + (1,) * (input.dim() - axis - 1)}"
            raise RuntimeError(f"{name} must broadcast to the logits' shape {shape(input)}, got {shape(value)}: {fix}")


def _pos_weight_along(dim: object, input: object, pos_weight: Tensor | None) -> Tensor | None:
    """Lay a pos_weight of shape ``(C)`` along the class dimension."""
    if not isinstance(dim, int) or isinstance(dim, bool):
        type_error("dim", "an int or None", dim)
    if not isinstance(input, Tensor) or not isinstance(pos_weight, Tensor):
        return pos_weight
    if not -input.dim() <= dim < input.dim():
        raise IndexError(
            f"dim must lie in [{-input.dim()}, {input.dim()}) for logits of shape {shape(input)}, got {dim}"
        )
    if pos_weight.dim() != 1:
        return pos_weight
    if len(pos_weight) not in (1, input.shape[dim]):
        raise RuntimeError(
            f"pos_weight must have {input.shape[dim]} values along dimension {dim} of logits of shape {shape(input)}, "
            f"got {shape(pos_weight)}: give one weight for every class"
        )
    return pos_weight.reshape([-1] + [1] * (input.dim() - 1 - dim % input.dim()))


def _mask(mask: object, input: Tensor) -> Tensor | None:
    """Hold a mask of elements to the logits' shape."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        type_error("mask", "a torch.Tensor that broadcasts to the logits' shape", mask)
    if mask.dtype != torch.bool:
        raise RuntimeError(
            f"mask must be boolean, True for the elements that count, got {mask.dtype}: pass mask.bool(), or the factors "
            "as weight"
        )
    behind = zip(reversed(mask.shape), reversed(input.shape), strict=False)
    if mask.dim() > input.dim() or any(a not in (1, b) for a, b in behind):
        fix = "add the missing dimensions with mask.unsqueeze" if mask.dim() < input.dim() else "reshape it"
        raise RuntimeError(f"mask must broadcast to the logits' shape {shape(input)}, got {shape(mask)}: {fix}")
    return mask


def weights_of_rows(sample_weight: Tensor, rows: Tensor, *, whole: bool) -> Tensor:
    """Check sample weights against the rows' shape, all of it or its leading part, and make them broadcast to it."""
    if not isinstance(sample_weight, Tensor):
        type_error("sample_weight", "a torch.Tensor of the rows' shape", sample_weight)
    k = sample_weight.dim()
    if sample_weight.shape != rows.shape[:k] or (whole and k != rows.dim()):
        rule = "must have the shape of the rows" if whole else "must have the shape of the leading dimensions of"
        raise ValueError(f"sample_weight {rule} {shape(rows)}, got {shape(sample_weight)}: give one number a row")
    return sample_weight.to(rows.dtype).reshape(sample_weight.shape + (1,) * (rows.dim() - k))


def result_dtype(like: Tensor, promoted: tuple[Tensor | None, ...], out_dtype: torch.dtype | None) -> torch.dtype:
    """Decide the loss's dtype: what is asked, float32 for half precision under autocast, or torch's promotion."""
    if out_dtype is not None:
        if not isinstance(out_dtype, torch.dtype) or not out_dtype.is_floating_point:
            type_error("out_dtype", "a floating torch.dtype", out_dtype)
        return out_dtype
    dtype = like.dtype
    for tensor in promoted:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    if dtype.itemsize < 4 and under_autocast(like.device):
        return torch.float32
    return dtype


def divide(total: Tensor, divisor: float | Tensor, empty: str) -> Tensor:
    """Divide a sum for the mean; over nothing it is nan, or a zero that keeps its graph, and the gradient is 0."""
    if isinstance(divisor, Tensor):
        divisor = divisor.to(total.dtype)
        nothing = divisor == 0
        loss = total / divisor.masked_fill(nothing, torch.inf)
        return loss if empty == "zero" else loss.masked_fill(nothing, torch.nan)
    if divisor == 0:
        loss = total / torch.inf
        return loss if empty == "zero" else loss + torch.nan
    return total / divisor


if os.environ.get("CROSSENT_DEBUG"):
    from crossent.tools.check.debug import from_environment

    from_environment()
