"""THE SPECIFICATION: every loss of the family in NumPy float64, with its analytic gradient.

For logits ``x``, probabilities ``p = softmax(x)``, target weights ``t`` and class weights ``c``,

    L = Σ_k c_k t_k (-log p_k)        mass = Σ_k c_k t_k        ∂L/∂x = mass · p - c ∘ t

Every member is a choice of ``t``, of ``c``, or of what stands in the place of ``p``. The functions here are written to be
read, not to be fast: they store everything, loop over nothing and never round below float64. What they return is what
every implementation of this library is held to.

Two conventions hold throughout: ``0 · inf = 0`` (a class without weight costs nothing, however impossible it is), and a
row whose largest logit is not finite has no softmax, so its loss is nan.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class LossAndGradient(NamedTuple):
    """A loss and the derivatives of its sum.

    ``loss`` is a scalar, or one number a row for ``reduction="none"``. ``grad`` has the shape of the logits. ``target_grad``
    has the shape of a probability target and is None for class indices.
    """

    loss: Array
    grad: Array
    target_grad: Array | None = None


# --- p ----------------------------------------------------------------------------------------------------------------


def surprisal(x: ArrayLike, axis: int = -1) -> Array:
    """Compute ``-log softmax(x)`` without cancellation.

    ``-log p_k = (max - x_k) + log1p(Σ_{j≠max} e^{x_j - max})``. Leaving the maximum out of the sum keeps the relative
    accuracy of a confident row, where the textbook ``log Σ e^{x_j - max}`` rounds to zero.

    >>> print(surprisal([50.0, 0.0, 0.0])[0])
    3.8574996959278356e-22
    """
    x = np.asarray(x, np.float64)
    if x.shape[axis] == 0:
        return x
    with np.errstate(invalid="ignore"):
        top = x.max(axis, keepdims=True)
        below = x - top
        others = np.exp(below)
        np.put_along_axis(others, x.argmax(axis, keepdims=True), 0.0, axis)
        return np.asarray(-below + np.log1p(others.sum(axis, keepdims=True)) + (top - top))


def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """Compute ``p = e^{x_k} / Σ_j e^{x_j}``.

    >>> softmax([0.0, 1.0, 2.0]).round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    return np.exp(-surprisal(x, axis))


def sigmoid(x: ArrayLike) -> Array:
    """Compute ``σ(x) = 1 / (1 + e^{-x})``, which is ``softmax([x, 0])[0]``.

    >>> sigmoid([-1000.0, 0.0, 1000.0])
    array([0. , 0.5, 1. ])
    """
    return np.exp(-softplus(-np.asarray(x, np.float64)))


def softplus(x: ArrayLike) -> Array:
    """Compute ``log(1 + e^x)``, so that ``-log σ(x) = softplus(-x)``."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.logaddexp(0.0, np.asarray(x, np.float64)))


# --- t ----------------------------------------------------------------------------------------------------------------


def index_target(target: ArrayLike, num_classes: int, ignore_index: int = -100) -> Array:
    """Write class indices of shape ``(...)`` as ``t`` of shape ``(..., C)``: one-hot rows, zero where ignored.

    >>> index_target([2, -100], 3)
    array([[0., 0., 1.],
           [0., 0., 0.]])
    """
    target = np.asarray(target)
    valid = target != ignore_index
    if np.any(valid & ((target < 0) | (target >= num_classes))):
        raise IndexError(f"target must lie in [0, {num_classes}) or equal ignore_index={ignore_index}")
    return np.asarray((target[..., None] == np.arange(num_classes)) * valid[..., None], np.float64)


def multilabel_target(labels: ArrayLike, axis: int = -1) -> Array:
    """Give each of a row's M labels ``t = 1/M``; real-valued labels are divided by their sum. A row without labels stays 0.

    The target of softmax cross entropy for images with several labels (Mahajan et al., "Exploring the Limits of Weakly
    Supervised Pretraining", 2018).

    >>> multilabel_target([[1, 0, 1, 0], [0, 0, 0, 0]])
    array([[0.5, 0. , 0.5, 0. ],
           [0. , 0. , 0. , 0. ]])
    """
    labels = np.asarray(labels, np.float64)
    total = labels.sum(axis, keepdims=True)
    return np.asarray(labels / np.where(total == 0, 1.0, total))


def smooth(t: ArrayLike, label_smoothing: float, axis: int = -1) -> Array:
    """Mix ``t`` with the uniform distribution: ``(1 - ε) t + ε/C``, whatever the mass of ``t``.

    >>> smooth([1.0, 0.0, 0.0], 0.03)
    array([0.98, 0.01, 0.01])
    """
    t = np.asarray(t, np.float64)
    return np.asarray((1 - label_smoothing) * t + label_smoothing / max(t.shape[axis], 1))


# --- the softmax family -----------------------------------------------------------------------------------------------


def softmax_cross_entropy(x: ArrayLike, t: ArrayLike, class_weight: ArrayLike | None = None) -> LossAndGradient:
    """The identity itself, over the last axis: ``L = Σ c t (-log p)`` and ``∂L/∂x = mass·p - c∘t``, one loss a row.

    >>> x = np.log([0.1, 0.7, 0.2])
    >>> loss, grad, _ = softmax_cross_entropy(x, [1, 0, 0])
    >>> loss.round(4), grad.round(4)
    (np.float64(2.3026), array([-0.9,  0.7,  0.2]))
    """
    t = np.asarray(t, np.float64)
    c = np.ones(t.shape[-1]) if class_weight is None else np.asarray(class_weight, np.float64)
    cost = surprisal(x)
    weighted = c * t
    mass = weighted.sum(-1, keepdims=True)
    # mass·p - c∘t, with p - 1 formed as expm1 where p is the larger part of the row.
    grad = np.where(cost < np.log(2), mass * np.expm1(-cost) + (mass - weighted), mass * np.exp(-cost) - weighted)
    return LossAndGradient(times(weighted, cost).sum(-1), grad, times(c, cost))


def times(weight: ArrayLike, value: ArrayLike) -> Array:
    """Multiply, with ``0 · inf = 0``."""
    weight, value = np.broadcast_arrays(np.asarray(weight, np.float64), np.asarray(value, np.float64))
    with np.errstate(invalid="ignore"):
        return np.where((weight == 0) & np.isinf(value), 0.0, weight * value)


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: ArrayLike | None = None,
    denominator: float | None = None,
    empty: str = "nan",
    dim: int | None = None,
) -> LossAndGradient:
    """Softmax cross entropy with everything ``crossent.cross_entropy`` takes.

    Args:
        logits: ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``; the class axis is ``dim``, or 0 for one axis and 1 for more.
        target: class indices, of the logits' shape without the class axis; or weights ``t`` of the logits' shape.
        weight: ``(C)``, the class weights ``c``.
        ignore_index: rows with this index count for nothing.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``. The mean divides by ``Σ c[y]`` over the rows not ignored (indices)
            or by the number of rows (probabilities), each row counted ``sample_weight`` times.
        label_smoothing: ``ε``.
        sample_weight: a factor on each row; ``k`` means the row k times.
        denominator: replaces what the mean divides by.
        empty: what a mean over nothing is, ``"nan"`` or ``"zero"``.
        dim: the class axis.

    Returns:
        The loss in nats, its gradient, and the gradient of a probability target.

    >>> cross_entropy(np.zeros(27), 5).loss.round(4)
    np.float64(3.2958)
    """
    logits = np.asarray(logits, np.float64)
    target = np.asarray(target)
    axis = dim if dim is not None else min(logits.ndim - 1, 1)
    x = np.moveaxis(logits, axis, -1)
    num_classes = x.shape[-1]
    indices = target.shape != logits.shape
    if indices:
        target = target.reshape(x.shape[:-1])
        t = index_target(target, num_classes, ignore_index)
        valid = target != ignore_index
    else:
        t = np.moveaxis(target.astype(np.float64), axis, -1)
        valid = np.full(x.shape[:-1], num_classes > 0)
    x = np.where(valid[..., None], x, 0.0)  # whatever an ignored row holds
    c = np.ones(num_classes) if weight is None else np.asarray(weight, np.float64).reshape(-1)

    row = softmax_cross_entropy(x, smooth(t, label_smoothing) * valid[..., None], c)
    assert row.target_grad is not None
    row_weight = (t @ c) if indices else valid * 1.0
    factor, loss = reduce_rows(row.loss, row_weight, sample_weight, reduction, denominator, empty)
    grad = times(factor[..., None] * valid[..., None], row.grad)
    target_grad = times((1 - label_smoothing) * factor[..., None], row.target_grad)
    return LossAndGradient(loss, np.moveaxis(grad, -1, axis), None if indices else np.moveaxis(target_grad, -1, axis))


def reduce_rows(
    loss: Array,
    row_weight: Array,
    sample_weight: ArrayLike | None,
    reduction: str,
    denominator: float | None,
    empty: str,
) -> tuple[Array, Array]:
    """Reduce one loss a row; return the factor with which each row enters, and the reduced loss."""
    u = np.broadcast_to(1.0 if sample_weight is None else np.asarray(sample_weight, np.float64), loss.shape)
    if reduction == "none":
        return u, loss * u
    if reduction == "sum":
        return u, np.sum(loss * u)
    divisor = np.sum(row_weight * u) if denominator is None else np.float64(denominator)
    if divisor == 0:
        nothing = np.float64(np.nan if empty == "nan" else 0.0)
        return np.zeros_like(loss), np.sum(loss * u) + nothing
    return u / divisor, np.sum(loss * u) / divisor


# --- the sigmoid family -----------------------------------------------------------------------------------------------


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    pos_weight: ArrayLike | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    denominator: float | None = None,
    empty: str = "nan",
) -> LossAndGradient:
    """Sigmoid cross entropy: ``L = -(π t log σ(x) + (1 - t) log σ(-x))``, the softmax loss over ``[x, 0]`` with ``t = [πt, 1-t]``.

    ``∂L/∂x = mass·σ(x) - πt`` with ``mass = πt + 1 - t``, written below as ``(1-t) σ(x) - πt σ(-x)``, which does not cancel.

    Args:
        logits: any shape.
        target: the same shape, usually in [0, 1].
        weight: broadcast to that shape; a factor on each element that the mean's divisor does not see.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``; the mean divides by the number of elements.
        pos_weight: ``π``, broadcast to that shape; the weight of the positive part.
        sample_weight: of the leading axes' shape; k means the row k times.
        denominator: replaces what the mean divides by.
        empty: what a mean over nothing is, ``"nan"`` or ``"zero"``.

    >>> loss, grad, _ = binary_cross_entropy_with_logits([-6.0], [1.0])
    >>> loss.round(4), grad.round(4)
    (np.float64(6.0025), array([-0.9975]))
    """
    x, t = np.asarray(logits, np.float64), np.asarray(target, np.float64)
    pi = np.float64(1.0) if pos_weight is None else np.asarray(pos_weight, np.float64)
    w = np.broadcast_to(1.0 if weight is None else np.asarray(weight, np.float64), x.shape)
    loss = w * (times(pi * t, softplus(-x)) + times(1 - t, softplus(x)))
    grad = w * ((1 - t) * sigmoid(x) - pi * t * sigmoid(-x))
    target_grad = w * (times(pi, softplus(-x)) - softplus(x))
    u = None
    if sample_weight is not None:
        u = np.asarray(sample_weight, np.float64)
        u = np.broadcast_to(u.reshape(u.shape + (1,) * (x.ndim - u.ndim)), x.shape)
    factor, reduced = reduce_rows(loss, np.ones_like(x), u, reduction, denominator, empty)
    return LossAndGradient(reduced, factor * grad, times(factor, target_grad))


# --- for comparison only ----------------------------------------------------------------------------------------------


def sigmoid_difference(logits: ArrayLike, target: ArrayLike, reduction: str = "mean") -> LossAndGradient:
    """The loss many people invent first: squash, and take the difference. ``1 - σ(x)`` where t = 1, ``σ(x)`` elsewhere.

    Its gradient is ``∓σ(x)(1 - σ(x))``: it vanishes exactly where the model is confidently wrong. It is the mean absolute
    error, whose ``s(p) = p`` switches a class off when its probability is small.

    >>> sigmoid_difference([-6.0], [1.0]).grad.round(4)
    array([-0.0025])
    """
    x, positive = np.asarray(logits, np.float64), np.asarray(target) == 1
    sign = np.where(positive, -1.0, 1.0)
    factor, loss = reduce_rows(sigmoid(sign * x), np.ones_like(x), None, reduction, None, "nan")
    return LossAndGradient(loss, factor * sign * sigmoid(x) * sigmoid(-x))


def multiclass_hinge(
    logits: ArrayLike, target: ArrayLike, reduction: str = "mean", margin: float = 1.0
) -> LossAndGradient:
    """The multi-class hinge, as ``torch.nn.MultiMarginLoss``: ``(1/C) Σ_{k≠y} max(0, margin - x_y + x_k)`` for ``(N, C)`` logits.

    Weston and Watkins, "Support vector machines for multi-class pattern recognition", 1999.

    >>> multiclass_hinge([[1.0, 2.0, -3.0]], [0])
    LossAndGradient(loss=np.float64(0.6666666666666666), grad=array([[-0.33333333,  0.33333333,  0.        ]]), target_grad=None)
    """
    x = np.asarray(logits, np.float64)
    t = index_target(target, x.shape[-1])
    excess = (margin - (x * t).sum(-1, keepdims=True) + x) * (1 - t)
    active = (excess > 0) / x.shape[-1]
    factor, loss = reduce_rows((excess * active).sum(-1), np.ones(x.shape[:-1]), None, reduction, None, "nan")
    return LossAndGradient(loss, factor[..., None] * (active - active.sum(-1, keepdims=True) * t))
