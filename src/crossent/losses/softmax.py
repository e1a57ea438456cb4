"""Softmax cross entropy as a function: understand the arguments, choose an implementation, reduce."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from crossent.core import watch
from crossent.core.checks import Place, gradient_place
from crossent.core.modes import is_dtensor
from crossent.core.penalties import Penalty
from crossent.core.reduction import Reduction, compute_dtype, reduce_rows, result_dtype, weights_of_rows
from crossent.core.settings import documented
from crossent.core.shard import VocabShard, checked_shard
from crossent.core.target import SPECIAL, Target, describe
from crossent.impl import choose, wanted_loss
from crossent.ops import softmax as ops
from crossent.ops.small import short_way

_NAMES = SPECIAL["cross_entropy"]


@documented
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
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
    softcap_after_temperature: bool = False,
    inplace_backward: bool = False,
    inplace_forward: bool = False,
    shard: VocabShard | None = None,
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
        {options}

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
    # Every argument, in the order of the signature, as tests/losses/test_names.py checks: a dictionary would cost a small call more
    # than its kernel does.
    given = (
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing, sample_weight, denominator, empty,
        out_dtype, dim, penalty, temperature, softcap, logit_bias, margin, class_mask, z_loss, softcap_after_temperature,
        inplace_backward, inplace_forward, shard, impl,
    )  # fmt: skip
    if not is_dynamo_compiling() and (loss := _short(given)) is not None:
        return loss
    # This library's options, in the order of _NAMES.
    own = (penalty, temperature, softcap, logit_bias, margin, class_mask, z_loss, softcap_after_temperature)
    if has_torch_function_variadic(input, target, weight, logit_bias, class_mask):
        options: dict[str, Any] = dict(zip(_NAMES, own, strict=True))
        return handle_torch_function(
            cross_entropy, (input, target, weight, logit_bias, class_mask), input, target, weight, size_average,
            ignore_index, reduce, reduction, label_smoothing, sample_weight=sample_weight, denominator=denominator,
            empty=empty, out_dtype=out_dtype, dim=dim, inplace_backward=inplace_backward,
            inplace_forward=inplace_forward, shard=shard, impl=impl, **options,
        )  # fmt: skip
    arguments: dict[str, Any] = {
        **dict(zip(_NAMES, own, strict=True)), "ignore_index": ignore_index, "label_smoothing": label_smoothing, "dim": dim,
        "out_dtype": out_dtype, "impl": impl, "inplace_backward": inplace_backward, "inplace_forward": inplace_forward,
    }  # fmt: skip

    # Read later: with a shard, where an error reaches all processes.
    rows = partial(Reduction.of, reduction, sample_weight, denominator, empty, size_average=size_average, reduce=reduce)
    if shard is not None:
        from crossent.parallel.softmax import sharded_cross_entropy  # torch's collectives take 0.2 s to import

        return sharded_cross_entropy(input, target, weight, checked_shard(shard), arguments, rows)
    if is_dtensor(input, target, weight, sample_weight, denominator, logit_bias, class_mask):
        return _of_dtensors(input, target, weight, rows(), arguments)
    return _understood(input, target, weight, rows(), arguments)


_short = short_way(cross_entropy)


def _of_dtensors(
    input: Tensor, target: Tensor, weight: Tensor | None, rows: Reduction, arguments: dict[str, Any]
) -> Tensor:
    """Compute the loss of a process's part of DTensors, of some rows or of a shard of the classes, and put the parts together."""
    from crossent.parallel.placements import softmax_rows  # which imports DTensor
    from crossent.parallel.softmax import sharded_cross_entropy

    gradient_place(arguments["inplace_backward"], arguments["inplace_forward"], input)
    beside = {**arguments, "inplace_backward": False, "inplace_forward": False}
    placed, part = softmax_rows(input, target, weight, rows, arguments["dim"], beside)
    input, target, weight, of_part, beside = part
    with placed.tell_others(rows.how):
        if placed.shard is None:
            loss = _understood(input, target, weight, of_part, beside)
        else:
            loss = sharded_cross_entropy(input, target, weight, placed.shard, beside, lambda: of_part)
    return placed.result(loss, rows.how)


def _understood(
    input: Tensor, target: Tensor, weight: Tensor | None, rows: Reduction, arguments: dict[str, Any]
) -> Tensor:
    """Lay out what the caller gave, and compute the loss."""
    place = gradient_place(arguments["inplace_backward"], arguments["inplace_forward"], input)
    logits, described = describe(input, target, weight, arguments["dim"], arguments)
    dtype = result_dtype(input, (target, weight) if not described.indices else (), arguments["out_dtype"])
    return reduced_cross_entropy(input, logits, described, rows, dtype, place, arguments["impl"])


def reduced_cross_entropy(
    input: Tensor,
    logits: Tensor,
    target: Target,
    reduction: Reduction,
    dtype: torch.dtype,
    place: Place = "beside",
    impl: str | None = None,
) -> Tensor:
    """Choose an implementation for logits that are laid out and arguments that are understood, run it and reduce."""
    how, u, weights = reduction.how, reduction.sample_weight, None
    wanted = wanted_loss(logits, target, how, u is not None, place != "beside")
    name = choose(logits, impl, target.values, target, wanted)
    if how == "mean" and not (reduction.over_own_rows and reduction.empty == "nan"):
        how = "sum"
    if u is not None and how != "none":
        if input.dim() > 1 and isinstance(u, Tensor) and ops.weighs_samples(logits, target, u, name):
            rows = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=compute_dtype(logits, target.values))
            weights = weights_of_rows(u, rows, whole=True)
        else:
            how = "none"
    loss, row_weight = ops.cross_entropy(logits, target, how, name, place, weights)
    if how == "none":
        if input.dim() == 1:
            loss = loss.squeeze(0)
            row_weight = None if row_weight is None else row_weight.squeeze(0)
        loss = reduce_rows(loss, row_weight, reduction)
    elif how == "sum":
        loss = reduction.finish(loss, row_weight)
    loss = loss if loss.dtype == dtype else loss.to(dtype)
    if not is_compiling() and reduction.across is None and (watcher := watch.current()) is not None:
        watcher(input, logits, target, loss, reduction.as_torch)
    return loss
