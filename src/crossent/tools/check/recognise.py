"""Which member of the family a loss is, by its gradient: what it does on purpose is no mistake, and what it lacks has a name.

The gradient of a row is ``mass · p - w ∘ t``. A factor on the whole is a scale or class weights; a factor that depends on p of the
true class is a penalty; a target that is not one-hot is smoothed; what is proportional to p alone is a z-loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from crossent import reference
from crossent.reference import Array

CLOSE = 1e-6  # of gradients that a member explains
TINY = 1e-9  # a gradient that is 0, in float64
ROUGH = 1e-4  # of a factor that is measured


class Member(NamedTuple):
    """A member of the family.

    Attributes:
        kind: ``"scaled"``, ``"weighted"``, ``"penalty"``, ``"smoothed"``, ``"logits"`` (z-loss, cap, temperature) or ``"binary"``.
        text: what it is, in words.
        number: the scale, or the number in the name of the penalty or of the smoothing.
        shifts: whether adding a constant to the logits changes it on purpose.
        targets: of a smoothed one, the target of the true class and that of each other.
    """

    kind: str
    text: str
    number: float = 1.0
    shifts: bool = False
    targets: tuple[float, float] = (1.0, 0.0)


def recognise(x: Array, t: Array, gradient: Array, *, binary: bool, close: float) -> Member | None:
    """Find the member of the family that has these gradients of the rows' losses, for one-hot targets."""
    if binary:
        return _binary(x, t, gradient, close)
    for find in (_factor, _smoothed, _other_logits, _added_to_logits):
        member = find(x, t, gradient, close)
        if member is not None:
            return member
    return None


def proportional(gradient: Array, to: Array, close: float) -> bool:
    """Whether a gradient is another one but for a factor above 0."""
    scale = _scale(to, gradient)
    return scale > 0 and _near(scale * to, gradient, 10 * close)


def _near(a: Array, b: Array, close: float) -> bool:
    return bool(np.abs(a - b).max() <= close * max(np.abs(b).max(), 1e-12))


def _scale(form: Array, values: Array) -> float:
    """Find the factor with which a form comes nearest to values."""
    return float((form * values).sum() / max(float((form**2).sum()), 1e-30))


def _times(scale: float) -> str:
    return "" if abs(scale - 1) < 1e-4 else f"{scale:.4g} times "


def _factor(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A factor on every row: one number, a number a class, or a penalty of the true class's p."""
    lack = reference.softmax(x) - t
    s = (gradient * lack).sum(1) / (lack**2).sum(1)
    if not _near(s[:, None] * lack, gradient, close) or not np.abs(s).max():
        return None
    if np.ptp(s) <= close * np.abs(s).max():
        return _scaled(float(s.mean()), t.shape[1])
    p = (reference.softmax(x) * t).sum(1)
    penalty = _penalty(p, s, close)
    if penalty is not None:
        return penalty
    y = t.argmax(1)
    if all(np.ptp(s[y == k]) <= close * np.abs(s).max() for k in set(y.tolist())) and len(set(y.tolist())) < len(y):
        return Member("weighted", "cross entropy with class weights")
    order = np.argsort(p)
    if np.unique(np.round(p, 12)).size == len(p) and (s > 0).all() and (np.diff(s[order]) <= 0).all():
        return Member("penalty", "a penalty of p(true) that pulls less where the model is surer")
    return None


def _scaled(scale: float, num_classes: int) -> Member:
    if abs(scale - 1) < 1e-5:
        return Member("scaled", "cross entropy")
    named = {-1.0: "minus the cross entropy", 1 / num_classes: "the cross entropy divided by C, the number of classes"}
    named[-1 / num_classes] = "minus the cross entropy, divided by C"
    text = next((words for number, words in named.items() if abs(scale / number - 1) < 1e-4), "")
    return Member("scaled", text or f"{scale:.4g} times the cross entropy", scale)


# --- penalties --------------------------------------------------------------------------------------------------------


def _penalty(p: Array, s: Array, close: float) -> Member | None:
    """Fit the number and the scale of each penalty to the factors that it gives."""
    slope, level = (float(v) for v in np.polyfit(p, s, 1))
    if _near(level + slope * p, s, 10 * close):
        return _line_of_p(level, slope)

    def focal(gamma: float) -> Array:
        return np.asarray((1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * np.log(p))

    forms: dict[str, tuple[Callable[[float], Array], Any]] = {
        "focal loss, γ = {:.4g}": (focal, np.linspace(0.1, 8, 80)),
        "generalised cross entropy, q = {:.4g}": (lambda q: p**q, np.linspace(0.01, 1, 100)),
        "Taylor cross entropy of {:.0f} terms": (lambda k: 1 - (1 - p) ** round(k), np.arange(2.0, 31)),
        "focal loss whose factor has no gradient, γ = {:.4g}": (lambda g: (1 - p) ** g, np.linspace(0.1, 8, 80)),
    }
    for text, (form, grid) in forms.items():

        def miss(value: float, form: Callable[[float], Array] = form) -> float:
            shape = form(value)
            return float(np.abs(_scale(shape, s) * shape - s).max())

        number = _best(miss, grid)
        if miss(number) <= 10 * close * np.abs(s).max():
            scale = _scale(form(number), s)
            if "Taylor" in text:
                number = round(number)
            if text.startswith("generalised") and abs(scale / number - 1) < 1e-4:
                return Member("penalty", text.format(number) + ", without its 1/q", number)
            return Member("penalty", _times(scale) + text.format(number), number)
    return None


def _line_of_p(level: float, slope: float) -> Member:
    """A factor ``a + b p``: the mean absolute error, Poly-1, and the symmetric cross entropy, which is a Poly-1."""
    if abs(level) <= 1e-6 * abs(slope):
        return Member("penalty", f"{_times(slope)}1 − p, the mean absolute error", slope)
    epsilon = slope / level
    also = "" if abs(level - 1) < 1e-4 else f", a symmetric cross entropy of {level:.4g} · CE + {slope:.4g} · (1 − p)"
    return Member("penalty", f"{_times(level)}Poly-1, ε = {epsilon:.4g}{also}", epsilon)


# --- other targets ----------------------------------------------------------------------------------------------------


def _smoothed(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A target with one number for the true class and one for the others: ``mass · p - t`` with the mass that it has."""
    p = reference.softmax(x)
    lines = [np.polyfit(p[t == k], gradient[t == k], 1) for k in (1, 0)]
    fitted = np.where(t == 1, *(np.polyval(line, p) for line in lines))
    (mass, a), (same, b) = lines[0] * (1, -1), lines[1] * (1, -1)
    if not _near(fitted, gradient, 10 * close) or abs(mass - same) > 10 * close or abs(b) <= close:
        return None
    a, b, c = float(a), float(b), t.shape[1]
    total = a + b * (c - 1)
    usual_slips = (a - 1, a - b - 1, a + b - 1)  # t(1 − ε) + ε, t + ε, and ε for each of the others
    if abs(total - 1) > 10 * close and (total <= 0 or min(map(abs, usual_slips)) <= 10 * close):
        return Member("smoothed", f"cross entropy with targets of {a:.4g} and {b:.4g}", c * b, targets=(a, b))
    each = b / total
    text = f"{_times(total)}cross entropy with label smoothing {c * each:.4g} (ε/C for every class"
    return Member("smoothed", f"{text}; with ε/(C − 1) for the others it would be {(c - 1) * each:.4g})", c * each)


# --- other logits -----------------------------------------------------------------------------------------------------


def _other_logits(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A soft cap or a temperature on the logits, a z-loss beside, or both, and a scale on the whole."""

    def explained(cap: float, temperature: float) -> tuple[Array, float, float]:
        bent, slope = x / temperature, 1 / temperature
        factor: Any = slope
        if np.isfinite(cap):
            bent = cap * np.tanh(x / cap)
            factor = 1 - (bent / cap) ** 2
        p, lse = reference.softmax(bent), reference.log_sum_exp(bent)[:, None]
        parts = np.stack([(factor * (p - t)).ravel(), (factor * 2 * lse * p).ravel()], 1)
        scale, weight = np.linalg.lstsq(parts, gradient.ravel(), rcond=None)[0].tolist()
        return (parts @ [scale, weight]).reshape(x.shape), scale, weight

    def far(cap: float = np.inf, temperature: float = 1.0) -> float:
        return float(np.abs(explained(cap, temperature)[0] - gradient).max())

    cap = np.exp(_best(lambda v: far(cap=float(np.exp(v))), np.linspace(np.log(0.5), np.log(1000), 120)))
    temperature = np.exp(_best(lambda v: far(temperature=float(np.exp(v))), np.linspace(np.log(0.02), np.log(50), 120)))
    for text, arguments in (
        ("", (np.inf, 1.0)),
        (f"a soft cap of {cap:.4g}", (cap, 1.0)),
        (f"a temperature of {temperature:.4g}", (np.inf, temperature)),
    ):
        values, scale, weight = explained(*arguments)
        if not _near(values, gradient, 10 * close):
            continue
        if scale <= 0 or weight < -close:
            return None  # it pushes lse away from 0, which nobody wants
        z_loss = f"a z-loss of {weight / scale:.4g} · lse²" if weight > close else ""
        parts = " and ".join(filter(None, (text, z_loss)))
        if "temperature" in text and abs(scale / temperature**2 - 1) < 1e-4:
            scale, parts = 1.0, parts + ", times its square"
        return Member("logits", f"{_times(scale)}cross entropy with {parts}", scale, bool(z_loss) or "cap" in text)
    return None


def _added_to_logits(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A margin on the true class, or a bias a class: ``p`` of other logits is ``gradient / scale + t``."""

    def added(scale: float) -> tuple[float, float, float]:
        """Compute how far what was added is from a bias and from a margin, and the margin."""
        p = gradient / scale + t
        if not (p > 0).all():
            return np.inf, np.inf, 0.0
        bias = np.log(p) - x
        others = np.where(t == 1, np.nan, bias)
        margins = np.nanmean(others, 1) - bias[t == 1]
        uneven = float(np.nanmax(np.nanmax(others, 1) - np.nanmin(others, 1)))
        bias -= bias.mean(1, keepdims=True)
        return float(np.ptp(bias, axis=0).max()), max(uneven, float(np.ptp(margins))), float(margins.mean())

    least = float(-gradient[t == 1].min())  # with which p of a true class would be 0
    if least <= 0 or not _near(gradient.sum(1) + 1, np.ones(len(x)), 10 * close):
        return None
    found = _best(lambda v: min(added(float(np.exp(v)))[:2]), np.log(least) + np.linspace(1e-4, np.log(100), 200))
    for scale in (1.0, float(np.exp(found))):
        bias, margin, size = added(scale)
        if bias <= 1e3 * close:
            return Member("logits", f"{_times(scale)}cross entropy with a logit bias, a number for each class", scale)
        if margin <= 1e3 * close:
            return Member(
                "logits", f"{_times(scale)}cross entropy with a margin of {size:.4g} on the true class", scale
            )
    return None


def _binary(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A sigmoid for every logit, with a scale and with targets for yes and for no."""
    p = reference.sigmoid(x)
    lines = [np.polyfit(p[t == k], gradient[t == k], 1) for k in (1, 0)]
    fitted = np.where(t == 1, *(np.polyval(line, p) for line in lines))
    if not _near(fitted, gradient, 10 * close) or min(abs(line[0]) for line in lines) < 1e-12:
        return None
    yes, no = (float(-line[1] / line[0]) for line in lines)
    scale = float(lines[1][0])
    weight = float(lines[0][0] / scale)
    text = "binary cross entropy" + (f" with pos_weight {weight:.4g}" if abs(weight - 1) > 1e-4 else "")
    if abs(yes - 1) > 1e-4 or abs(no) > 1e-4:
        return Member("smoothed", f"{text} with targets of {yes:.4g} for yes and {no:.4g} for no", targets=(yes, no))
    return Member("binary", text, scale)


def _best(miss: Callable[[float], float], grid: Array) -> float:
    """Find where a function is least: on a grid, then by thirds around its best point."""
    at = int(np.argmin([miss(float(v)) for v in grid]))
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    for _ in range(80):
        third = (high - low) / 3
        if miss(low + third) <= miss(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2
