"""THE SPECIFICATION: every loss of the family in NumPy float64, with its analytic gradient.

For logits ``x``, probabilities ``p = softmax(x)``, target weights ``t``, class weights ``c`` and a penalty ``f`` for the
probability given to a class, with ``s(p) = -f'(p) p``,

    L = Σ_k c_k t_k f(p_k)        w_k = c_k s(p_k)        mass = Σ_k w_k t_k        ∂L/∂x = mass · p - w ∘ t

Cross entropy is ``f = -log p`` and ``s = 1``. Every member is a choice of ``t``, of ``c``, of ``(f, s)``, or of what stands in
the place of ``x``. The functions here are written to be read, not to be fast: they store everything, loop over nothing and
never round below float64. What they return is what every implementation of this library is held to.

Two conventions hold throughout. First, ``0 · x = 0`` also where x is infinite or nan. So a class without weight costs nothing,
however impossible it is, and a row without weight adds nothing, whatever it holds. Where two weights are multiplied, as ``c``
and ``t`` are, a 0 in either of them is enough. Second, a row whose largest logit is not finite has no softmax, and its loss is
nan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


class LossAndGradient(NamedTuple):
    """A loss and the derivatives of its sum.

    ``loss`` is a scalar, or one number a row for ``reduction="none"``. ``grad`` has the shape of the logits. ``target_grad``
    has the shape of a probability target and is None for class indices.
    """

    loss: Array
    grad: Array
    target_grad: Array | None = None


def times(weight: ArrayLike, value: ArrayLike) -> Array:
    """Multiply, with ``0 · x = 0`` for whatever x; the weight comes first.

    >>> times([0.0, 0.0, 2.0], [np.inf, np.nan, 3.0])
    array([0., 0., 6.])
    """
    weight, value = np.broadcast_arrays(np.asarray(weight, np.float64), np.asarray(value, np.float64))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(weight == 0, 0.0, weight * value)


def weigh(weight: ArrayLike, by: ArrayLike) -> Array:
    """Multiply two weights, where a 0 in either of them is enough: ``0 · x = x · 0 = 0`` for whatever x.

    The weight of a class that no target wants may be infinite, as one over its count is.

    >>> weigh([0.0, np.inf, 2.0], [np.nan, 0.0, 3.0])
    array([0., 0., 6.])
    """
    return np.where(np.asarray(by) == 0, 0.0, times(weight, by))


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


def log_sum_exp(x: ArrayLike) -> Array:
    """Compute ``lse = log Σ_k e^{x_k}`` over the last axis, which is ``x_k - log p_k`` for whichever k, here the largest.

    >>> log_sum_exp([1000.0, 1000.0]).round(4)
    np.float64(1000.6931)
    """
    x = np.asarray(x, np.float64)
    if x.shape[-1] == 0:
        return np.full(x.shape[:-1], -np.inf)
    return np.asarray(x.max(-1) + surprisal(x).min(-1))


def first_largest(x: Array) -> Bools:
    """Mark the first of each row's largest entries.

    >>> first_largest(np.array([1.0, 3.0, 3.0]))
    array([False,  True, False])
    """
    if x.shape[-1] == 0:
        return np.zeros(x.shape, bool)
    return np.asarray(np.arange(x.shape[-1]) == x.argmax(-1, keepdims=True))


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


def multi_hot(labels: Iterable[Iterable[int]], num_classes: int) -> Array:
    """Write one list of class indices a row, of any length, as a row of zeros and ones.

    >>> multi_hot([[0, 2], [], [1]], 3)
    array([[1., 0., 1.],
           [0., 0., 0.],
           [0., 1., 0.]])
    """
    rows = [index_target(np.array(list(row), np.int64), num_classes).max(0, initial=0.0) for row in labels]
    return np.array(rows).reshape(len(rows), num_classes)


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


def smooth(t: ArrayLike, label_smoothing: float, axis: int = -1, allowed: ArrayLike | None = None) -> Array:
    """Mix ``t`` with the uniform distribution: ``(1 - ε) t + ε/C``, whatever the mass of ``t``.

    With a mask of allowed classes the uniform distribution is that over them: ``ε/|allowed|`` each, nothing elsewhere.

    >>> smooth([1.0, 0.0, 0.0], 0.03)
    array([0.98, 0.01, 0.01])
    >>> smooth([1.0, 0.0, 0.0], 0.03, allowed=[True, True, False])
    array([0.985, 0.015, 0.   ])
    """
    t = np.asarray(t, np.float64)
    allowed = np.broadcast_to(True if allowed is None else np.asarray(allowed, bool), t.shape)
    size = np.maximum(allowed.sum(axis, keepdims=True), 1)
    return np.asarray(times(1 - label_smoothing, t) + allowed * label_smoothing / size)


# --- (f, s) -----------------------------------------------------------------------------------------------------------


class Penalty(NamedTuple):
    """What a class with probability ``p`` costs, ``f(p)``, and how hard it is pulled, ``s(p) = -f'(p) p``.

    Both are functions of ``log p``, since ``p`` itself rounds to 0 for a hopeless class and to 1 for a confident one. ``1 - p`` is
    ``-expm1(log p)``, and ``s`` is minus the slope of ``f`` with respect to ``log p``. They must hold for every ``log p`` from
    -inf to 0.
    """

    f: Callable[[Array], Array]
    s: Callable[[Array], Array]


def complement(log_p: Array) -> Array:
    """Compute ``1 - p`` as exactly as ``log p`` is given."""
    return np.asarray(0.0 - np.expm1(log_p))


CROSS_ENTROPY = Penalty(np.negative, np.ones_like)


def focal(gamma: float = 2.0) -> Penalty:
    """Care less about what is known already: ``f = -(1-p)^γ log p`` and ``s = (1-p)^γ - γ p (1-p)^(γ-1) log p``, for ``γ ≥ 0``.

    ``s`` is written ``(1-p)^γ (1 + γ p r)`` with ``r = -log p / (1-p)``, which tends to 1 as p tends to 1. So it tends to 0 there
    for every γ > 0, though for γ < 1 the power in the formula alone is infinite.

    Lin et al., "Focal Loss for Dense Object Detection", 2017.

    >>> focal(2.0).f(np.log([0.1, 0.5])).round(4), focal(0.5).s(np.array([-50.0, 0.0]))
    (array([1.8651, 0.1733]), array([1., 0.]))
    """

    def f(log_p: Array) -> Array:
        return np.asarray(complement(log_p) ** gamma * (0.0 - log_p))

    def s(log_p: Array) -> Array:
        lack = complement(log_p)
        ratio = np.where(lack > 0, -log_p / np.where(lack > 0, lack, 1.0), 1.0)
        return np.asarray(lack**gamma * (1 + gamma * times(np.exp(log_p), ratio)))

    return Penalty(f, s)


def poly1(epsilon: float = 1.0) -> Penalty:
    """Change the first coefficient of the expansion of ``-log p`` in ``1 - p``: ``f = -log p + ε (1-p)`` and ``s = 1 + ε p``.

    Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", 2022.

    >>> poly1(2.0).s(np.log([0.1, 0.9])).round(4)
    array([1.2, 2.8])
    """
    return Penalty(lambda log_p: -log_p + epsilon * complement(log_p), lambda log_p: 1 + epsilon * np.exp(log_p))


def gce(q: float = 0.7) -> Penalty:
    """Generalise cross entropy: ``f = (1 - p^q) / q`` and ``s = p^q``; cross entropy at ``q = 0`` (the limit), MAE at ``q = 1``.

    A class that the model finds impossible is hardly pulled. So wrong labels are not learned, and neither are hard ones.

    Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", 2018.

    >>> gce(0.5).f(np.log([0.25, 1.0])), gce(0.5).s(np.log([0.25, 1.0]))
    (array([1., 0.]), array([0.5, 1. ]))
    """
    if q == 0:
        return CROSS_ENTROPY
    return Penalty(lambda log_p: complement(q * log_p) / q, lambda log_p: np.exp(q * log_p))


def mae() -> Penalty:
    """Take the mean absolute error, ``f = 1 - p`` and ``s = p``: half of ``Σ_k |t_k - p_k|`` for a one-hot target.

    Ghosh et al., "Robust Loss Functions under Label Noise for Deep Neural Networks", 2017.

    >>> mae().f(np.log([0.1, 0.9])).round(4)
    array([0.9, 0.1])
    """
    return gce(1.0)


def sce(alpha: float = 0.1, beta: float = 1.0, A: float = -4.0) -> Penalty:
    """Make cross entropy symmetric: ``f = -α log p - βA (1-p)`` and ``s = α - βA p``, ``α`` times Poly-1 with ``ε = -βA/α``.

    The second term is the reverse cross entropy ``-Σ_k p_k log t_k`` of a one-hot target with ``log 0 := A``; for any other
    target the penalty stays this ``f``, weighted by ``t``. The authors' code clips the target at 1e-4, which is ``A = -9.21``.

    Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019.

    >>> sce(0.1, 1.0).f(np.log([0.5])).round(4)
    array([2.0693])
    """
    return Penalty(
        lambda log_p: times(alpha, -log_p) - beta * A * complement(log_p),
        lambda log_p: alpha - beta * A * np.exp(log_p),
    )


def taylor(order: int = 2) -> Penalty:
    """Stop the expansion of ``-log p`` after n terms: ``f = Σ_{k=1..n} (1-p)^k / k`` and ``s = p Σ_{k=1..n} (1-p)^(k-1)``.

    The sum in ``s`` is geometric: ``s = 1 - (1-p)^n``. MAE for one term, cross entropy for infinitely many.

    Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", 2020.

    >>> taylor(2).f(np.log([0.5])), taylor(2).s(np.log([0.5]))
    (array([0.625]), array([0.75]))
    """

    def f(log_p: Array) -> Array:
        lack = complement(log_p)
        return np.asarray(sum(lack**k / k for k in range(1, order + 1)))

    def s(log_p: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(-np.expm1(order * np.log1p(-np.exp(log_p))))

    return Penalty(f, s)


# --- x → x' -----------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """Everything ``cross_entropy`` takes beside the logits and the target, under the names it has there."""

    weight: ArrayLike | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    sample_weight: ArrayLike | None = None
    denominator: float | None = None
    empty: str = "nan"
    dim: int | None = None
    penalty: Penalty | None = None
    temperature: float = 1.0
    softcap: float | None = None
    logit_bias: ArrayLike | None = None
    margin: float = 0.0
    class_mask: ArrayLike | None = None
    z_loss: float = 0.0
    softcap_after_temperature: bool = False


def soft_cap(x: Array, cap: float) -> tuple[Array, Array]:
    """Compute ``cap · tanh(x / cap)``, which never leaves ``[-cap, cap]``, and its slope ``1 - tanh² = 1 / cosh²(x / cap)``.

    >>> soft_cap(np.array([0.0, 30.0, -1e9]), 30.0)
    (array([  0.        ,  22.84782468, -30.        ]), array([1.        , 0.41997434, 0.        ]))
    """
    with np.errstate(over="ignore"):
        return cap * np.tanh(x / cap), np.cosh(x / cap) ** -2.0


def transform(x: Array, t: Array, bias: ArrayLike, settings: Settings) -> tuple[Array, Array]:
    """Compute ``x' = (cap · tanh(x / cap) + bias - margin · t) / T`` and ``∂x'/∂x``.

    T divides last, so it is the temperature of all of it; ``∂x'/∂bias = 1/T`` and ``∂x'/∂t = -margin/T``.

    With ``softcap_after_temperature`` the cap is that of ``x / T``: ``x' = cap · tanh(x / (T · cap)) + (bias - margin · t) / T``.

    >>> transform(np.array([3.0, 1.0]), np.array([1.0, 0.0]), [0.0, 1.0], Settings(margin=2.0, temperature=2.0))
    (array([0.5, 1. ]), array([0.5, 0.5]))
    """
    T, cap = settings.temperature, settings.softcap
    shift = (np.asarray(bias) - times(settings.margin, t)) / T
    if cap is None:
        scaled, slope = x / T, np.ones_like(x)
    elif settings.softcap_after_temperature:
        scaled, slope = soft_cap(x / T, cap)
    else:
        capped, slope = soft_cap(x, cap)
        scaled = capped / T
    return scaled + shift, slope / T


class Rows(NamedTuple):
    """The arguments of ``cross_entropy`` understood: rows of classes, the class axis last."""

    x: Array  # x', with -inf for masked classes, and 0 in the rows that do not count, whatever they hold
    slope: Array  # ∂x'/∂x
    live: Bools  # the logits that have a gradient: not masked, of rows that count
    t: Array  # before smoothing
    allowed: Bools
    c: Array
    valid: Bools  # the rows that count
    weight: Array  # how much each row counts in a mean: c[y] for indices, 1 for probabilities
    indices: bool
    axis: int


def understand(logits: ArrayLike, target: ArrayLike, settings: Settings, keep: Bools | None = None) -> Rows:
    """Bring the arguments of ``cross_entropy`` into one form; rows outside ``keep`` count as little as ignored ones."""
    logits, target = np.asarray(logits, np.float64), np.asarray(target)
    shape, axis = logits.shape, settings.dim if settings.dim is not None else min(logits.ndim - 1, 1)
    x = np.moveaxis(logits, axis, -1)
    num_classes = x.shape[-1]

    def class_last(value: ArrayLike) -> NDArray[Any]:
        value = np.asarray(value)
        return np.moveaxis(value, axis, -1) if value.shape == shape else value  # shape (C) has its classes last already

    c = np.ones(num_classes) if settings.weight is None else np.asarray(settings.weight, np.float64).reshape(-1)
    indices = target.shape != shape
    if indices:
        target = target.reshape(x.shape[:-1])
        t = index_target(target, num_classes, settings.ignore_index)
        valid = np.asarray(target != settings.ignore_index)
    else:
        t = np.moveaxis(target.astype(np.float64), axis, -1)
        valid = np.full(x.shape[:-1], num_classes > 0)
    mask = True if settings.class_mask is None else class_last(settings.class_mask)
    allowed = np.broadcast_to(np.asarray(mask, bool), x.shape)
    valid = valid & allowed.any(-1) if num_classes else valid
    valid = valid if keep is None else valid & keep
    bias = 0.0 if settings.logit_bias is None else class_last(settings.logit_bias)

    with np.errstate(invalid="ignore"):
        x, slope = transform(x, t, bias, settings)
    x = np.where(valid[..., None], np.where(allowed, x, -np.inf), 0.0)
    weight = np.asarray(valid * (weigh(c, t).sum(-1) if indices else 1.0), np.float64)
    return Rows(x, slope, allowed & valid[..., None], t, allowed, c, valid, weight, indices, axis)


# --- the softmax family -----------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    x: ArrayLike,
    t: ArrayLike,
    class_weight: ArrayLike | None = None,
    penalty: Penalty | None = None,
    z_loss: ArrayLike = 0.0,
) -> LossAndGradient:
    """The identity itself, over the last axis: ``L = Σ c t f(p) + λ lse²`` and ``∂L/∂x = mass·p - w∘t``, one loss a row.

    ``w = c∘s(p)`` and ``mass = Σ w t + 2λ lse``. The second term keeps ``lse = log Σ e^x``, on which the first does not depend,
    near 0 (z-loss: Chowdhery et al., "PaLM", 2022); ``λ`` may be one number a row.

    >>> x = np.log([0.1, 0.7, 0.2])
    >>> loss, grad, _ = softmax_cross_entropy(x, [1, 0, 0])
    >>> loss.round(4), grad.round(4)
    (np.float64(2.3026), array([-0.9,  0.7,  0.2]))
    >>> softmax_cross_entropy(x, [1, 0, 0], penalty=mae()).grad.round(4)
    array([-0.09,  0.07,  0.02])
    """
    x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)
    c = np.ones(t.shape[-1]) if class_weight is None else np.asarray(class_weight, np.float64)
    f, s = CROSS_ENTROPY if penalty is None else penalty
    log_p, lse, weights = -surprisal(x), log_sum_exp(x), weigh(c, t)
    cost, pull = f(log_p), times(weights, s(log_p))
    # mass·p - w∘t without cancellation: for the class with more than half of p, which may be next to 1, it is
    # rest·p - pull·(1 - p), where the rest of the mass is summed, not subtracted.
    top, z = log_p > -np.log(2), times(z_loss, lse)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        rest = np.where(top, 0.0, pull).sum(-1) + 2 * z
        mass = pull.sum(-1) + 2 * z
        grad = np.where(top, times(rest[..., None], p) + times(pull, np.expm1(log_p)), times(mass[..., None], p) - pull)
        return LossAndGradient(times(weights, cost).sum(-1) + times(z, lse), grad, times(c, cost))


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
    penalty: Penalty | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: ArrayLike | None = None,
    margin: float = 0.0,
    class_mask: ArrayLike | None = None,
    z_loss: float = 0.0,
    softcap_after_temperature: bool = False,
) -> LossAndGradient:
    """Softmax cross entropy with everything ``crossent.cross_entropy`` takes.

    The softmax is that of ``x' = (cap · tanh(x / cap) + bias - margin · t) / T``, with ``-inf`` for masked classes, in this order.

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
        penalty: ``(f, s)`` in the place of ``(-log p, 1)``. It sees the probability, not the weighted loss.
        temperature: ``T``. The loss is not multiplied by it.
        softcap: ``cap``. A logit of ``-inf`` becomes ``-cap`` and so possible: use ``class_mask``, which comes later.
        logit_bias: ``(C)`` or of the logits' shape, such as a log prior. A class may have ``-inf``. Its gradient is
            ``∂L/∂x' / T``, summed where it was broadcast: without a cap, that of the logits.
        margin: ``m``, subtracted from the logit of the target class; with weights ``t`` as target, ``m t_k`` from each. It is the
            target before smoothing in either case.
        class_mask: ``(C)`` or of the logits' shape, True for the classes that are allowed. The others have probability 0 and no
            gradient, and smoothing spreads over the allowed classes only. A row that wants a class it does not allow
            pays ``f(0)``, which is infinite for cross entropy; a row that allows nothing counts for nothing.
        z_loss: ``λ`` of the additional ``λ lse²`` of ``x'``, weighted like its row: by ``c[y]`` for indices, 1 for probabilities,
            and by ``sample_weight``.
        softcap_after_temperature: the cap bounds ``x / T`` in the place of ``x``. Bias and margin are divided by T as ever.

    Returns:
        The loss in nats, its gradient, and the gradient of a probability target.

    >>> cross_entropy(np.zeros(27), 5).loss.round(4)
    np.float64(3.2958)
    >>> cross_entropy(np.zeros(27), 5, class_mask=np.arange(27) < 10).loss.round(4)
    np.float64(2.3026)
    """
    settings = Settings(
        weight, ignore_index, reduction, label_smoothing, sample_weight, denominator, empty, dim, penalty, temperature,
        softcap, logit_bias, margin, class_mask, z_loss, softcap_after_temperature,
    )  # fmt: skip
    return cross_entropy_of_rows(understand(logits, target, settings), settings)


def cross_entropy_of_rows(rows: Rows, settings: Settings) -> LossAndGradient:
    """Apply the identity to every row, reduce, and go back to the logits by the chain rule."""
    t = smooth(rows.t, settings.label_smoothing, allowed=rows.allowed) * rows.valid[..., None]
    row = softmax_cross_entropy(rows.x, t, rows.c, settings.penalty, settings.z_loss * rows.weight)
    factor, loss = reduce_rows(row.loss, rows.weight, settings)
    at_x = times(factor[..., None], row.grad)
    grad = np.moveaxis(np.where(rows.live, times(at_x, rows.slope), 0.0), -1, rows.axis)
    if rows.indices:
        return LossAndGradient(loss, grad)
    assert row.target_grad is not None
    target_grad = times((1 - settings.label_smoothing) * factor[..., None], row.target_grad)
    target_grad = np.where(
        rows.valid[..., None], target_grad - times(settings.margin / settings.temperature, at_x), 0.0
    )
    return LossAndGradient(loss, grad, np.moveaxis(target_grad, -1, rows.axis))


def reduce_rows(loss: Array, row_weight: Array, settings: Settings) -> tuple[Array, Array]:
    """Reduce one loss a row; return the factor with which each row enters, and the reduced loss."""
    u = sample_weights(loss, settings)
    if settings.reduction == "none":
        return u, times(u, loss)
    total: Any = np.sum(times(u, loss))
    if settings.reduction == "sum":
        return u, total
    divisor: Any = np.sum(weigh(row_weight, u)) if settings.denominator is None else np.float64(settings.denominator)
    if divisor == 0:
        return np.zeros_like(loss), mean_of_nothing(settings)
    return u / divisor, total / divisor


def mean_of_nothing(settings: Settings) -> Any:
    """Read ``empty``."""
    return np.float64(np.nan if settings.empty == "nan" else 0.0)


def sample_weights(loss: Array, settings: Settings) -> Array:
    """Write ``sample_weight``, of the shape of the leading axes, as one factor for each loss."""
    u = np.asarray(1.0 if settings.sample_weight is None else settings.sample_weight, np.float64)
    return np.broadcast_to(u.reshape(u.shape + (1,) * (loss.ndim - u.ndim)), loss.shape)


# --- the sigmoid family -----------------------------------------------------------------------------------------------


class BinaryPenalty(NamedTuple):
    """A penalty for the probability ``σ(x)`` of yes, and one for the probability ``σ(-x)`` of no."""

    positive: Penalty
    negative: Penalty


def scaled(penalty: Penalty, factor: float) -> Penalty:
    """Multiply ``f``, and with it ``s``."""
    return Penalty(lambda log_p: times(factor, penalty.f(log_p)), lambda log_p: times(factor, penalty.s(log_p)))


def shifted(penalty: Penalty, clip: float) -> Penalty:
    """Give a class ``clip`` more probability than it has: ``f(p')`` and ``s(p') p / p'`` with ``p' = min(p + clip, 1)``.

    Where ``p'`` has reached 1 nothing pulls.

    >>> shifted(focal(1.0), 0.05).s(np.log([0.5, 0.9, 0.97])).round(4)
    array([0.708 , 0.0935, 0.    ])
    """

    def log_shifted(log_p: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(np.minimum(np.logaddexp(log_p, np.log(clip)), 0.0))

    def s(log_p: Array) -> Array:
        log_q = log_shifted(log_p)
        return np.where(log_q < 0, penalty.s(log_q) * np.exp(log_p - log_q), 0.0)

    return Penalty(lambda log_p: penalty.f(log_shifted(log_p)), s) if clip else penalty


def asymmetric(gamma_pos: float = 1.0, gamma_neg: float = 4.0, clip: float = 0.05) -> BinaryPenalty:
    """Focus on the negatives more than on the positives, and leave the easiest negatives out.

    With ``p = σ(x)``: yes costs ``-(1-p)^γ+ log p`` and no costs ``-p_m^γ- log(1-p_m)``, where ``p_m = max(p - clip, 0)``.

    The gradient is that of this loss. The authors' code can hold ``(1-p)^γ+`` and ``p_m^γ-`` constant in it
    (``disable_torch_grad_focal_loss``), which is the gradient of another loss, the one with ``s = (1-p)^γ``.

    Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021.

    >>> yes, no = asymmetric()
    >>> yes.f(np.log([0.9])).round(4), no.f(np.log([0.99, 0.5])).round(4)
    (array([0.0105]), array([0.    , 0.0245]))
    """
    return BinaryPenalty(focal(gamma_pos), shifted(focal(gamma_neg), clip))


def sigmoid_cross_entropy(
    x: ArrayLike, t: ArrayLike, pos_weight: ArrayLike = 1.0, penalty: BinaryPenalty | None = None
) -> LossAndGradient:
    """The identity over ``[x, 0]`` with ``t = [πt, 1-t]``, one loss an element: ``L = πt f₊(σ(x)) + (1-t) f₋(σ(-x))``.

    ``∂L/∂x = mass·σ(x) - w₊πt = (1-t) s₋(σ(-x)) σ(x) - πt s₊(σ(x)) σ(-x)``, of which the second form does not cancel.

    A part without weight is left out: ``π = 0`` leaves out the part of yes, and so all of an element whose t is 1, whatever its
    logit. The part of no is left out only where ``t = 1``. The target's gradient ``π f₊ - f₋`` contains it for every t.

    >>> loss, grad, _ = sigmoid_cross_entropy([-6.0], [1.0])
    >>> loss.round(4), grad.round(4)
    (array([6.0025]), array([-0.9975]))
    """
    x, t, pi = np.asarray(x, np.float64), np.asarray(t, np.float64), np.asarray(pos_weight, np.float64)
    yes, no = BinaryPenalty(CROSS_ENTROPY, CROSS_ENTROPY) if penalty is None else penalty
    log_p, log_not_p = -softplus(-x), -softplus(x)
    on_yes, on_no = weigh(pi, t), 1 - t
    loss = times(on_yes, yes.f(log_p)) + times(on_no, no.f(log_not_p))
    grad = times(times(on_no, no.s(log_not_p)), sigmoid(x)) - times(times(on_yes, yes.s(log_p)), sigmoid(-x))
    with np.errstate(invalid="ignore"):
        return LossAndGradient(loss, grad, times(pi, yes.f(log_p)) - no.f(log_not_p))


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
    ignore_index: float | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    dim: int | None = None,
    penalty: Penalty | BinaryPenalty | None = None,
) -> LossAndGradient:
    """Sigmoid cross entropy: ``L = -(π t log σ(x) + (1 - t) log σ(-x))``, the softmax loss over ``[x, 0]`` with ``t = [πt, 1-t]``.

    ``∂L/∂x = mass·σ(x) - πt`` with ``mass = πt + 1 - t``.

    Smoothing moves the target towards one half, ``t → (1-ε) t + ε/2``, as Keras, TensorFlow and the softmax over ``[x, 0]`` do.
    segmentation-models-pytorch writes ``(1-2ε') t + ε'``, which is ``ε = 2ε'``. timm moves it towards ``1/C``, which is no
    ``ε`` of this convention for C > 2: give ``smooth(t, ε)`` as the target.

    Args:
        logits: any shape.
        target: the same shape, usually in [0, 1].
        weight: broadcast to that shape; a factor on each element that the mean's divisor does not see.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``; the mean divides by the number of elements that count.
        pos_weight: ``π``, broadcast to that shape from the last axis, or ``(C)`` along ``dim``; the weight of the positive part.
        sample_weight: of the leading axes' shape; k means the row k times.
        denominator: replaces what the mean divides by.
        empty: what a mean over nothing is, ``"nan"`` or ``"zero"``.
        ignore_index: elements with this target count for nothing, whatever their logits are.
        mask: broadcast to that shape, True for the elements that count; the others are treated like ignored ones.
        label_smoothing: ``ε``.
        dim: the class axis, along which a ``pos_weight`` of shape ``(C)`` lies.
        penalty: ``(f, s)`` for both classes, or a pair of them such as ``asymmetric()``.

    >>> loss, grad, _ = binary_cross_entropy_with_logits([-6.0], [1.0])
    >>> loss.round(4), grad.round(4)
    (np.float64(6.0025), array([-0.9975]))
    >>> binary_cross_entropy_with_logits([-6.0, 0.0], [1.0, -1.0], ignore_index=-1).loss.round(4)
    np.float64(6.0025)
    """
    x, t = np.asarray(logits, np.float64), np.asarray(target, np.float64)
    pi = np.float64(1.0) if pos_weight is None else np.asarray(pos_weight, np.float64)
    if dim is not None and pi.ndim == 1:
        pi = np.moveaxis(pi.reshape((1,) * (x.ndim - 1) + (-1,)), -1, dim)
    w = np.broadcast_to(1.0 if weight is None else np.asarray(weight, np.float64), x.shape)
    valid = np.broadcast_to(True if mask is None else np.asarray(mask, bool), x.shape)
    valid = valid if ignore_index is None else valid & (t != ignore_index)
    t = times(1 - label_smoothing, t) + label_smoothing / 2
    both = BinaryPenalty(penalty, penalty) if isinstance(penalty, Penalty) else penalty

    each = sigmoid_cross_entropy(x, t, pi, both)
    assert each.target_grad is not None
    settings = Settings(reduction=reduction, sample_weight=sample_weight, denominator=denominator, empty=empty)
    factor, loss = reduce_rows(np.where(valid, times(w, each.loss), 0.0), np.asarray(valid, np.float64), settings)
    grad = np.where(valid, times(factor * w, each.grad), 0.0)
    target_grad = np.where(valid, times((1 - label_smoothing) * factor * w, each.target_grad), 0.0)
    return LossAndGradient(loss, grad, target_grad)


# --- named members ----------------------------------------------------------------------------------------------------


def focal_loss(
    logits: ArrayLike, target: ArrayLike, gamma: float = 2.0, weight: ArrayLike | None = None, **options: Any
) -> LossAndGradient:
    """The softmax focal loss: ``cross_entropy`` with ``penalty=focal(γ)``. ``weight`` is the paper's ``α``, one number a class.

    >>> focal_loss(np.log([0.1, 0.7, 0.2]), 1).loss.round(4)
    np.float64(0.0321)
    """
    return cross_entropy(logits, target, weight, penalty=focal(gamma), **options)


def sigmoid_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    **options: Any,
) -> LossAndGradient:
    """The focal loss of object detection: ``α t f(σ(x)) + (1-α) (1-t) f(σ(-x))`` with ``f = -(1-p)^γ log p``.

    The arguments are torchvision's, with its default of no reduction; None, or as there a negative number, is no ``α``. It is
    also ``weight=1-α`` with ``pos_weight=α/(1-α)``. For targets strictly between 0 and 1, where torchvision mixes the
    probabilities before it takes the power, this is the mixture of the losses.

    Lin et al., "Focal Loss for Dense Object Detection", 2017.

    >>> sigmoid_focal_loss([0.0, 2.0], [1.0, 0.0]).loss.round(4)
    array([0.0433, 1.2376])
    """
    f = focal(gamma)
    both = BinaryPenalty(f, f) if alpha is None or alpha < 0 else BinaryPenalty(scaled(f, alpha), scaled(f, 1 - alpha))
    return binary_cross_entropy_with_logits(logits, target, reduction=reduction, penalty=both, **options)


def multilabel_cross_entropy(logits: ArrayLike, labels: ArrayLike, **options: Any) -> LossAndGradient:
    """Softmax cross entropy with ``t = 1/M`` on each of a row's M labels; rows without a label are ignored.

    Args:
        logits: as in ``cross_entropy``.
        labels: of the logits' shape: zeros and ones, or any amounts, which are divided by their sum. ``multi_hot`` makes such rows
            of lists.
        options: whatever ``cross_entropy`` takes beside its target. The mean is over the rows that have labels.

    Returns:
        The loss, its gradient, and the gradient of the labels.

    >>> x = np.log([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])
    >>> loss, grad, _ = multilabel_cross_entropy(x, [[1, 0, 1], [0, 0, 0]])
    >>> loss.round(4), grad.round(4)
    (np.float64(1.956), array([[-0.4,  0.7, -0.3],
                               [ 0. ,  0. ,  0. ]]))
    """
    settings = Settings(**options)
    labels = np.asarray(labels, np.float64)
    axis = settings.dim if settings.dim is not None else min(labels.ndim - 1, 1)
    t = multilabel_target(labels, axis)
    rows = understand(logits, t, settings, keep=np.asarray(labels.any(axis)))
    loss, grad, t_grad = cross_entropy_of_rows(rows, settings)
    assert t_grad is not None
    total = np.where(labels.any(axis, keepdims=True), labels.sum(axis, keepdims=True), 1.0)
    return LossAndGradient(loss, grad, (t_grad - times(t, t_grad).sum(axis, keepdims=True)) / total)


def kl_divergence(x: ArrayLike, z: ArrayLike) -> LossAndGradient:
    """Compute ``KL(q‖p) = Σ q (log q - log p)`` of ``q = softmax(z)`` and ``p = softmax(x)``, one number a row.

    ``∂/∂x = p - q`` and, in the place of the target's gradient, ``∂/∂z = q (log q - log p - KL)``.

    >>> kl, grad, _ = kl_divergence(np.log([0.5, 0.5]), np.log([0.1, 0.9]))
    >>> kl.round(4), grad.round(4)
    (np.float64(0.3681), array([ 0.4, -0.4]))
    """
    cost_p, cost_q = surprisal(x), surprisal(z)
    p, q = np.exp(-cost_p), np.exp(-cost_q)
    with np.errstate(invalid="ignore"):
        gap = np.where(q == 0, -np.inf, cost_p - cost_q)  # log q - log p
        kl = times(q, gap).sum(-1)
        z_grad = times(q, gap - kl[..., None])
    # p - q, where the larger of the two is taken out of the difference
    grad = np.where(gap > 0, q * np.expm1(np.minimum(-gap, 0)), -p * np.expm1(np.minimum(gap, 0)))
    return LossAndGradient(kl, grad, z_grad)


def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    target: ArrayLike | None = None,
    alpha: float = 0.5,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: ArrayLike | None = None,
    denominator: float | None = None,
    empty: str = "nan",
    dim: int | None = None,
    reverse: bool = False,
    penalty: Penalty | None = None,
    class_mask: ArrayLike | None = None,
    z_loss: float = 0.0,
) -> LossAndGradient:
    """Learn from a teacher's probabilities: ``T² KL(q‖p)`` with ``q = softmax(teacher / T)`` and ``p = softmax(student / T)``.

    The gradient is ``T (p - q)``: the factor ``T²`` keeps its size while T is tuned. A row is summed over its classes and the mean
    is over rows (``"batchmean"`` of ``torch.nn.KLDivLoss``, whose ``"mean"`` divides by the number of classes as well).

    ``reverse`` is ``T² KL(p‖q)``, with the gradient ``T p (log p - log q - KL(p‖q))``: the student may leave out what the teacher
    finds possible, and pays for what the teacher finds impossible.

    With a target it is ``α`` times that plus ``1 - α`` times the cross entropy of the student with the target, at temperature 1.

    Args:
        student_logits: as in ``cross_entropy``.
        teacher_logits: of the same shape.
        temperature: ``T``, of the first part.
        target: class indices or probabilities, of the second part.
        alpha: ``α``, the share of the first part if there is a second.
        weight: class weights of the second part, whose mean they divide.
        ignore_index: rows with this index count for nothing, in both parts.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, of both parts. The first part's mean is over the rows that count.
        label_smoothing: ``ε`` of the second part.
        sample_weight: a factor on each row, in both parts.
        denominator: replaces what both means divide by.
        empty: what a mean over nothing is, ``"nan"`` or ``"zero"``.
        dim: the class axis.
        reverse: exchange p and q.
        penalty: ``(f, s)`` of the second part. The first part takes none: a distance is smallest at ``p = q``, and for another
            ``f`` than ``-log p`` the smallest ``Σ q f(p)`` may lie elsewhere.
        class_mask: ``(C)`` or of the logits' shape, True for the classes that are allowed. Student and teacher, in both parts, are
            what they would be without the others.
        z_loss: ``λ`` of ``λ lse²`` of the student's logits at temperature 1, whatever ``α`` is. It is reduced as the first part.

    Returns:
        The loss, its gradient, and in the place of the target's gradient that of the teacher's logits, for those who train it too.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; reverse: Gu et al., "MiniLLM: Knowledge Distillation of
    Large Language Models", 2024.

    >>> distillation_loss(np.log([[0.5, 0.5]]), np.log([[0.1, 0.9]])).loss.round(4)
    np.float64(0.3681)
    """
    if target is None and penalty is not None:
        raise ValueError("penalty belongs to the target's part, and there is no target")
    settings = Settings(
        weight, ignore_index, reduction, label_smoothing, sample_weight, denominator, empty, dim, penalty, class_mask=class_mask
    )  # fmt: skip
    rows = understand(student_logits, np.zeros(np.shape(student_logits)) if target is None else target, settings)
    counts = np.asarray(rows.valid, np.float64)
    z = np.moveaxis(np.asarray(teacher_logits, np.float64), rows.axis, -1)
    z = np.where(rows.valid[..., None], np.where(rows.allowed, z, -np.inf), 0.0)
    of_target, predicted = (rows.x, z) if reverse else (z, rows.x)
    kl = kl_divergence(predicted / temperature, of_target / temperature)
    assert kl.target_grad is not None
    factor, loss = reduce_rows(temperature**2 * kl.loss, counts, settings)
    grad, teacher_grad = (kl.target_grad, kl.grad) if reverse else (kl.grad, kl.target_grad)
    grad, teacher_grad = (times(temperature * factor[..., None], g) for g in (grad, teacher_grad))
    if target is not None:
        hard = cross_entropy_of_rows(rows, settings)
        loss = alpha * loss + (1 - alpha) * hard.loss
        grad = alpha * grad + (1 - alpha) * np.moveaxis(hard.grad, rows.axis, -1)
        teacher_grad = alpha * teacher_grad
    if z_loss:
        small = softmax_cross_entropy(rows.x, np.zeros(rows.x.shape), z_loss=z_loss * counts)
        loss = loss + reduce_rows(small.loss, counts, settings)[1]
        grad = grad + times(factor[..., None], small.grad)
    return LossAndGradient(loss, np.moveaxis(grad, -1, rows.axis), np.moveaxis(teacher_grad, -1, rows.axis))


class ContrastiveLoss(NamedTuple):
    """A contrastive loss and its gradients with respect to both sets of vectors and the scale."""

    loss: Array
    a_grad: Array
    b_grad: Array
    scale_grad: Array


def contrastive_cross_entropy(
    a: ArrayLike,
    b: ArrayLike,
    scale: float = 1.0,
    offset: int = 0,
    *,
    symmetric: bool | None = None,
    label_smoothing: float = 0.0,
) -> ContrastiveLoss:
    """Find every vector's partner: cross entropy of the logits ``scale · a bᵀ``, where row i belongs to column ``i + offset``.

    With as many ``a`` as ``b`` the loss is the mean of that and of the same with a and b exchanged, as in CLIP. With more ``b``
    than ``a`` (one machine's vectors against everybody's, ``offset`` vectors before its own) it is that of the rows only;
    exchange the two sets yourself.

    Args:
        a: ``(N, D)``, usually of length 1.
        b: ``(M, D)``.
        scale: one over the temperature.
        offset: the column of the first row's partner.
        symmetric: whether a and b are exchanged as well; by default where there are as many of both. False is InfoNCE.
        label_smoothing: ``ε``.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; the rows only: van den Oord et
    al., "Representation Learning with Contrastive Predictive Coding", 2018.

    >>> contrastive_cross_entropy(np.eye(3), np.eye(3), scale=10.0).loss.round(6)
    np.float64(9.1e-05)
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    similarity = a @ b.T
    partner = np.arange(len(a)) + offset
    loss, grad, _ = cross_entropy(scale * similarity, partner, label_smoothing=label_smoothing)
    if len(a) == len(b) if symmetric is None else symmetric:
        back = cross_entropy(scale * similarity.T, partner, label_smoothing=label_smoothing)
        loss, grad = (loss + back.loss) / 2, (grad + back.grad.T) / 2
    return ContrastiveLoss(loss, scale * grad @ b, scale * grad.T @ a, np.sum(grad * similarity))


# --- statistics -------------------------------------------------------------------------------------------------------


class CrossEntropyStats(NamedTuple):
    """What a row's logits say beside its loss. All of it is about ``x'`` and ``p = softmax(x')``, as the loss sees them.

    A row that is ignored has 0 and False everywhere, and no predicted class.

    Attributes:
        loss: ``cross_entropy`` with the same arguments.
        lse: ``log Σ_k e^{x'_k}``.
        target_log_prob: ``Σ_k t_k log p_k`` with the target before smoothing and without class weights; ``log p_y`` for indices.
        entropy: ``-Σ_k p_k log p_k``.
        correct: whether the first largest ``x'`` is the target's class; for probabilities, where the first largest ``t`` is, if
            it is positive. With a margin: whether it is correct by more than that.
        count: 1, or 0 if ignored.
        weight_sum: what the row adds to the mean's divisor: ``c[y]`` for indices or 1 for probabilities, times ``sample_weight``.
        predicted: the class of the first largest ``x'``; -100 for a row that is ignored or has no softmax, and where rows are
            reduced, since a total has no class.
    """

    loss: Array
    lse: Array
    target_log_prob: Array
    entropy: Array
    correct: NDArray[Any]
    count: NDArray[Any]  # type: ignore[assignment]  # tuple.count is of no use here
    weight_sum: Array
    predicted: NDArray[Any]


NO_CLASS = -100


def cross_entropy_stats(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "none",
    label_smoothing: float = 0.0,
    **options: Any,
) -> CrossEntropyStats:
    """Compute the loss with what else one pass over the logits can tell.

    ``"none"`` gives one of each a row. ``"sum"`` gives totals, of which ``loss / weight_sum`` is the mean loss, also after those
    of several batches or machines have been added. ``"mean"`` gives the mean loss; ``lse``, ``target_log_prob``, ``entropy`` and
    ``correct`` (the accuracy) divided by ``count``; and the totals ``count`` and ``weight_sum``. ``sample_weight`` and
    ``denominator`` touch the loss and ``weight_sum`` only, since the others describe the model and not the loss.

    The arguments are those of ``cross_entropy``; ``options`` are its keyword-only ones.

    >>> stats = cross_entropy_stats(np.log([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]), [1, 0], reduction="sum")
    >>> stats.loss.round(4), stats.correct, stats.count
    (np.float64(1.5606), np.float64(1.0), np.int64(2))
    """
    settings = Settings(weight, ignore_index, reduction, label_smoothing, **options)
    rows = understand(logits, target, settings)
    cost, valid = surprisal(rows.x), rows.valid
    hit = (first_largest(rows.x) & first_largest(rows.t) & (rows.t > 0)).any(-1)
    u = sample_weights(rows.weight, settings)
    loss = cross_entropy_of_rows(rows, settings).loss
    lse = np.where(valid, log_sum_exp(rows.x), 0.0)
    target_log_prob = np.where(valid, -times(rows.t, cost).sum(-1), 0.0)
    entropy = np.where(valid, times(np.exp(-cost), cost).sum(-1), 0.0)
    correct = hit & ~np.isnan(lse)
    if reduction == "none":
        classes = first_largest(rows.x) @ np.arange(rows.x.shape[-1])
        predicted = np.where(valid & ~np.isnan(lse), classes, NO_CLASS)
        return CrossEntropyStats(
            loss, lse, target_log_prob, entropy, correct, valid.astype(int), weigh(rows.weight, u), predicted
        )
    count: Any = valid.sum()
    divisor = count if reduction == "mean" else 1

    def reduced(value: NDArray[Any]) -> Any:
        return np.sum(value) / divisor if divisor else mean_of_nothing(settings)

    weight_sum: Any = np.sum(weigh(rows.weight, u))
    return CrossEntropyStats(
        loss, reduced(lse), reduced(target_log_prob), reduced(entropy), reduced(correct), count, weight_sum, np.int64(NO_CLASS)
    )  # fmt: skip


class StatsGradients(NamedTuple):
    """The gradients with respect to the logits of each row's ``lse``, ``target_log_prob`` and ``entropy``."""

    lse: Array
    target_log_prob: Array
    entropy: Array


def cross_entropy_stats_gradients(
    logits: ArrayLike, target: ArrayLike, ignore_index: int = -100, **options: Any
) -> StatsGradients:
    """Differentiate the sums of three statistics: ``∂lse/∂x' = p``, ``∂ Σ t log p/∂x' = t - mass·p``, ``∂H/∂x' = -p (log p + H)``.

    >>> cross_entropy_stats_gradients(np.log([0.25, 0.75]), 1).entropy.round(4)
    array([ 0.206, -0.206])
    """
    rows = understand(logits, target, Settings(ignore_index=ignore_index, **options))
    cost = surprisal(rows.x)
    p = np.exp(-cost)
    entropy = times(p, cost).sum(-1, keepdims=True)
    at_x = (p, -softmax_cross_entropy(rows.x, rows.t).grad, times(p, cost - entropy))
    return StatsGradients(*(np.moveaxis(np.where(rows.live, rows.slope * g, 0.0), -1, rows.axis) for g in at_x))


# --- a head and its loss ----------------------------------------------------------------------------------------------


class LinearLoss(NamedTuple):
    """A loss with its gradients for hidden states, matrix and bias."""

    loss: Array
    input_grad: Array
    weight_grad: Array
    bias_grad: Array


def linear_cross_entropy(
    input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, linear_bias: ArrayLike = 0.0, **options: Any
) -> LinearLoss:
    """Compute ``cross_entropy`` of the logits ``x = h Wᵀ + b``: ``∂L/∂h = ∂L/∂x W``, ``∂L/∂W = (∂L/∂x)ᵀ h``, ``∂L/∂b = Σ ∂L/∂x``.

    Args:
        input: ``h``, ``(..., D)``.
        linear_weight: ``W``, ``(C, D)``.
        target: class indices ``(...)`` or weights ``(..., C)``.
        linear_bias: ``b``, ``(C)``.
        options: those of ``cross_entropy``. With ``reduction="none"`` the gradients are those of the rows' sum.

    >>> linear_cross_entropy(np.eye(2), np.zeros((27, 2)), [5, 6]).loss.round(4)
    np.float64(3.2958)
    """
    h, W = np.asarray(input, np.float64), np.asarray(linear_weight, np.float64)
    rows = h.reshape(-1, h.shape[-1])
    x = rows @ W.T + np.asarray(linear_bias, np.float64)
    target = np.asarray(target)
    soft = target.shape == (*h.shape[:-1], len(W))
    loss, grad, _ = cross_entropy(x, target.reshape(x.shape if soft else -1), dim=1, **options)
    loss = loss.reshape(h.shape[:-1]) if loss.ndim else loss
    # A row without a gradient adds nothing, whatever it holds.
    seen = np.where((grad != 0).any(-1, keepdims=True), rows, 0.0)
    return LinearLoss(loss, (grad @ W).reshape(h.shape), grad.T @ seen, grad.sum(0))


# --- shards of the classes --------------------------------------------------------------------------------------------


class Partial(NamedTuple):
    """What one shard tells of each row: ``lse_s`` of its classes, ``L_s = Σ_k w_k (lse_s - x_k)`` and ``M_s = Σ_k w_k``.

    ``lse_s`` is ``top + log_sum``, kept apart, since their sum would round the small part of a confident row away. A shard that
    has no class, or none that is possible, tells (-inf, 0).
    """

    top: Array
    log_sum: Array
    loss: Array
    mass: Array


def partial(x: ArrayLike, w: ArrayLike) -> Partial:
    """Compute what some of the classes tell, with ``w = c ∘ t``.

    >>> partial([[0.0, 0.0]], [[1.0, 0.0]])
    Partial(top=array([0.]), log_sum=array([0.69314718]), loss=array([0.69314718]), mass=array([1.]))
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    top = x.max(-1, initial=-np.inf)
    nothing = top == -np.inf
    cost = np.where(nothing[..., None], np.inf, surprisal(np.where(nothing[..., None], 0.0, x)))
    log_sum = np.where(nothing, 0.0, cost.min(-1, initial=np.inf))
    return Partial(top, log_sum, times(w, cost).sum(-1), w.sum(-1))


def combine(partials: Iterable[Partial]) -> Partial:
    """Put shards together: ``lse = log Σ_s e^{lse_s}`` and ``L = Σ_s [L_s + M_s (lse - lse_s)]``, of which every term is ≥ 0.

    >>> halves = partial([[0.0]], [[1.0]]), partial([[0.0]], [[0.0]])
    >>> combine(halves) == partial([[0.0, 0.0]], [[1.0, 0.0]])
    True
    """
    parts = list(partials)
    tops, log_sums = (np.stack([getattr(part, name) for part in parts], -1) for name in ("top", "log_sum"))
    top, first = tops.max(-1), first_largest(tops)
    below = tops - np.where(top == -np.inf, 0.0, top)[..., None]
    log_sum = np.log1p(np.where(first, np.expm1(log_sums), np.exp(below + log_sums)).sum(-1))
    up = log_sum[..., None] - log_sums - below  # lse - lse_s, infinite where a shard has nothing possible
    losses, masses = (np.stack([getattr(part, name) for part in parts], -1) for name in ("loss", "mass"))
    return Partial(top, log_sum, (losses + times(masses, up)).sum(-1), masses.sum(-1))


def shard_gradient(x: ArrayLike, w: ArrayLike, whole: Partial) -> Array:
    """Compute ``∂L/∂x = mass · p - w`` of a shard, where ``log p = x - lse``, from the lse and the mass of all.

    >>> shard_gradient([[0.0]], [[1.0]], partial([[0.0, 0.0]], [[1.0, 0.0]])).round(4)
    array([[-0.5]])
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    log_p, mass = (x - whole.top[..., None]) - whole.log_sum[..., None], whole.mass[..., None]
    near_one = mass * np.expm1(log_p) + (mass - w)  # mass (p - 1) + what lies on other classes
    return np.asarray(np.where(log_p > -np.log(2), near_one, mass * np.exp(log_p) - w))


# --- helpers ----------------------------------------------------------------------------------------------------------


def class_weights(counts: ArrayLike, scheme: str = "balanced", beta: float = 0.999) -> Array:
    """Weigh classes against their frequency.

    ``"balanced"`` is ``n / (C n_k)``, as in scikit-learn: every class weighs the same in total, and an example 1 on average.
    ``"effective"`` is one over the effective number of examples ``(1 - β^n_k) / (1 - β)``, scaled to sum to C (Cui et al.,
    "Class-Balanced Loss Based on Effective Number of Samples", 2019); β = 0 weighs classes alike, β → 1 by ``1/n_k``.

    A class without examples gets weight 0 and C does not count it: ``1/0`` says nothing about how much it should matter, and only
    label smoothing or soft targets would ever use the number, to pull towards a class of which nothing is known.

    >>> class_weights([90, 10])
    array([0.55555556, 5.        ])
    >>> class_weights([1000, 10, 0], "effective").round(4)
    array([0.031, 1.969, 0.   ])
    """
    n = np.asarray(counts, np.float64)
    present = n > 0
    if scheme == "balanced":
        return np.where(present, n.sum() / (present.sum() * np.where(present, n, 1.0)), 0.0)
    if scheme == "effective":
        with np.errstate(divide="ignore"):
            number = -np.expm1(np.where(present, n, 1.0) * np.log(beta)) / (1 - beta)
        return np.asarray(present / number * present.sum() / np.sum(present / number))
    raise ValueError(f"scheme must be 'balanced' or 'effective', got {scheme!r}")


def expected_initial_loss(num_classes: int) -> float:
    """Compute ``ln C``, the cross entropy of a model that finds all classes equally likely: where training should start.

    >>> round(expected_initial_loss(27), 4)
    3.2958
    """
    return float(np.log(num_classes))


def prior_entropy(counts: ArrayLike) -> float:
    """Compute ``H(π)`` of the class frequencies: the best that a model which does not look at its input can do.

    >>> round(prior_entropy([90, 10]), 4)
    0.3251
    """
    n = np.asarray(counts, np.float64)
    return float(times(n / n.sum(), -np.log(np.where(n > 0, n / n.sum(), 1.0))).sum())


def double_softmax_floor(num_classes: int) -> float:
    """Compute ``ln(e + C - 1) - 1``, below which the loss cannot fall if probabilities are given as logits.

    >>> round(double_softmax_floor(10), 4)
    1.4612
    """
    return float(np.log(np.e + num_classes - 1) - 1)


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
    factor, loss = reduce_rows(sigmoid(sign * x), np.ones_like(x), Settings(reduction=reduction))
    return LossAndGradient(loss, factor * sign * sigmoid(x) * sigmoid(-x))


def hinge_terms(logits: ArrayLike, target: ArrayLike, margin: float = 1.0) -> Array:
    """What each class adds to the hinge: ``(1/C) max(0, margin - x_y + x_k)`` for ``k ≠ y``, and nothing for ``y``.

    >>> hinge_terms([1.0, 2.0, -3.0], 0).round(4)
    array([0.    , 0.6667, 0.    ])
    """
    x = np.asarray(logits, np.float64)
    t = index_target(target, x.shape[-1])
    return np.asarray(np.maximum(margin - (x * t).sum(-1, keepdims=True) + x, 0.0) * (1 - t) / x.shape[-1])


def multiclass_hinge(
    logits: ArrayLike, target: ArrayLike, reduction: str = "mean", margin: float = 1.0
) -> LossAndGradient:
    """The multi-class hinge, as ``torch.nn.MultiMarginLoss``: ``(1/C) Σ_{k≠y} max(0, margin - x_y + x_k)`` for ``(N, C)`` logits.

    Weston and Watkins, "Support vector machines for multi-class pattern recognition", 1999.

    >>> multiclass_hinge([[1.0, 2.0, -3.0]], [0])
    LossAndGradient(loss=np.float64(0.6666666666666666), grad=array([[-0.33333333,  0.33333333,  0.        ]]), target_grad=None)
    """
    terms = hinge_terms(logits, target, margin)
    active = (terms > 0) / terms.shape[-1]
    factor, loss = reduce_rows(terms.sum(-1), np.ones(terms.shape[:-1]), Settings(reduction=reduction))
    t = index_target(target, terms.shape[-1])
    return LossAndGradient(loss, factor[..., None] * (active - active.sum(-1, keepdims=True) * t))


def cross_entropy_after_softmax(logits: ArrayLike, target: ArrayLike, reduction: str = "mean") -> LossAndGradient:
    """The classic mistake: probabilities given to a loss that takes logits, ``-log softmax(softmax(x))_y``.

    ``∂L/∂x = p ∘ (g - Σ p g)`` with ``p = softmax(x)`` and ``g = softmax(p) - t``. The factor p switches off a class that the
    model finds impossible, and ``p ≤ 1`` keeps the loss above :func:`double_softmax_floor`. The classes are the last axis.

    >>> loss, grad, _ = cross_entropy_after_softmax([[0.0, 1000.0]], [1])
    >>> loss.round(4), grad
    (np.float64(0.3133), array([[0., 0.]]))
    """
    p = softmax(logits)
    loss, g, cost = cross_entropy(p, target, reduction=reduction, dim=-1)
    return LossAndGradient(loss, p * (g - (p * g).sum(-1, keepdims=True)), cost)
