"""Numbers to start from: class weights from class frequencies, and where a loss begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from math import e, expm1, inf, log
from typing import Literal

import torch
from torch import Tensor

from crossent.core.checks import integer, number
from crossent.core.messages import type_error


def class_weights(
    counts: Sequence[float] | Tensor, scheme: Literal["balanced", "effective"] = "balanced", beta: float = 0.999
) -> Tensor:
    """Weigh classes against their frequency.

    ``"balanced"`` is ``n / (C n_k)``, as in scikit-learn: every class weighs the same in total, and an example 1 on average.
    ``"effective"`` is one over the effective number of examples ``(1 - β^n_k) / (1 - β)``, scaled to sum to C; β = 0 weighs
    classes alike, β → 1 by ``1/n_k``.

    A class without examples gets weight 0 and C does not count it: ``1/0`` says nothing about how much it should matter, and only
    label smoothing or soft targets would ever use the number, to pull towards a class of which nothing is known.

    Args:
        counts: how many examples each class has, ``(C)``, such as ``torch.bincount(labels, minlength=C)``.
        scheme: ``"balanced"`` or ``"effective"``.
        beta: ``β`` in [0, 1), of the effective number.

    Returns:
        ``(C)`` in the default dtype, on the device of the counts: the ``weight`` of :func:`crossent.cross_entropy`.

    Raises:
        ValueError: another scheme, ``β`` outside [0, 1), counts that are negative or none.

    >>> class_weights([90, 10])
    tensor([0.5556, 5.0000])
    >>> class_weights([1000, 10, 0], "effective")
    tensor([0.0310, 1.9690, 0.0000])

    See also: ``logit_bias=(counts / counts.sum()).log()`` of :func:`crossent.cross_entropy`, which moves the decision instead.

    Source: King and Zeng, "Logistic Regression in Rare Events Data", 2001; Cui et al., "Class-Balanced Loss Based on Effective
    Number of Samples", 2019.
    """
    n = _counts(counts)
    present = sum(k > 0 for k in n)
    if not isinstance(scheme, str):
        type_error("scheme", "'balanced' or 'effective'", scheme)
    if scheme == "balanced":
        weights = [sum(n) / (present * k) if k else 0.0 for k in n]
    elif scheme == "effective":
        beta = number("beta", beta)
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1), got {beta}: near 1 it weighs by 1/n, at 0 all alike")
        each = [(1 - beta) / -expm1(k * (log(beta) if beta else -inf)) if k else 0.0 for k in n]
        weights = [w * present / sum(each) for w in each]
    else:
        raise ValueError(f"scheme must be 'balanced' or 'effective', got {scheme!r}")
    return torch.tensor(
        weights, dtype=torch.get_default_dtype(), device=counts.device if isinstance(counts, Tensor) else None
    )


def expected_initial_loss(num_classes: int) -> float:
    """Compute ``ln C``, the cross entropy of a model that finds all classes equally likely: where training should start.

    A first loss far above says that the first logits are large, or that the labels are not what they seem.

    Args:
        num_classes: ``C``, at least 1.

    Returns:
        The loss in nats.

    >>> round(expected_initial_loss(27), 4)
    3.2958

    See also: :func:`prior_entropy`, where a model arrives that learned the frequencies and nothing else.
    """
    return log(_num_classes(num_classes))


def prior_entropy(counts: Sequence[float] | Tensor) -> float:
    """Compute ``H(π) = -Σ π_k ln π_k`` of the class frequencies: the best that a model which does not look at its input can do.

    A loss that stays there has learned how frequent the classes are, and nothing else.

    Args:
        counts: how many examples each class has, ``(C)``.

    Returns:
        The loss in nats.

    >>> round(prior_entropy([90, 10]), 4)
    0.3251

    See also: :func:`expected_initial_loss`.
    """
    n = _counts(counts)
    return sum(-k / sum(n) * log(k / sum(n)) for k in n if k)


def double_softmax_floor(num_classes: int) -> float:
    """Compute ``ln(e + C - 1) - 1``, below which the loss cannot fall if probabilities are given as logits.

    A loss that comes to rest there has a softmax before it: leave it out, these losses take logits.

    Args:
        num_classes: ``C``, at least 1.

    Returns:
        The loss in nats.

    >>> round(double_softmax_floor(10), 4)
    1.4612

    See also: :func:`expected_initial_loss`.
    """
    return log(e + _num_classes(num_classes) - 1) - 1


def _num_classes(num_classes: int) -> int:
    num_classes = integer("num_classes", num_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    return num_classes


def _counts(counts: Sequence[float] | Tensor) -> list[float]:
    try:
        n = [float(k) for k in (counts.tolist() if isinstance(counts, Tensor) else counts)]
    except (TypeError, ValueError, NotImplementedError):  # no numbers, or those of a meta tensor
        type_error("counts", "a list or a tensor of numbers", counts)
    if not n or min(n) < 0 or not 0 < sum(n) < inf:
        raise ValueError(
            f"counts must hold how many examples each class has, none negative and not all zero, got {n!s:.60}: for labels "
            "pass torch.bincount(labels, minlength=C)"
        )
    return n
