"""Which member of the family a loss is, by its gradient: what it does on purpose is no mistake, and what it lacks has a name.

The gradient of a row is ``mass · p - w ∘ t``. A factor on the whole is a scale or class weights; a factor that depends on p of the
true class is a penalty; a target that is not one-hot is smoothed; what is proportional to p alone is a z-loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from crossent import reference
from crossent.reference import Array

CLOSE = 1e-6  # of gradients that a member explains
COARSE = 1e-3  # the same in float32


class Member(NamedTuple):
    """A member of the family.

    Attributes:
        kind: ``"scaled"``, ``"weighted"``, ``"penalty"``, ``"smoothed"``, ``"logits"`` (z-loss, cap, temperature) or ``"binary"``.
        text: what it is, in words.
        number: the scale, or ε.
        shifts: whether adding a constant to the logits changes it on purpose.
        targets: of a smoothed one what it asks for the true class and for the others.
    """

    kind: str
    text: str
    number: float = 1.0
    shifts: bool = False
    targets: tuple[float, float] = (1.0, 0.0)


class Audited(Protocol):
    """What is asked of a loss under audit; ``AuditedLoss`` says what each is."""

    x: Array
    classes: int
    reduction: str
    binary: bool
    eps: float

    def labels(self, y: Any) -> Any:
        """Write class indices as the loss takes them."""

    def derivatives(self, x: Any, target: Any) -> Any:
        """Compute the loss and its gradient."""


def recognise(loss: Audited) -> Member | None:
    """Find the member of the family that has the gradient of a loss."""
    if not loss.reduction:
        return None
    y = np.arange(len(loss.x)) % loss.classes
    gradient = loss.derivatives(loss.x, loss.labels(y)).grad * (len(y) if loss.reduction == "mean" else 1)
    close = CLOSE if loss.eps < 1e-12 else COARSE
    t = np.eye(loss.classes)[y]
    if loss.binary:
        return _binary(loss.x, t, gradient, close)
    for find in (_factor, _smoothed, _other_logits):
        member = find(loss.x, t, gradient, close)
        if member is not None:
            return member
    return None


def _near(a: Array, b: Array, close: float) -> bool:
    return bool(np.abs(a - b).max() <= close * max(np.abs(b).max(), 1e-12))


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


def _penalty(p: Array, s: Array, close: float) -> Member | None:
    """Fit the number of each penalty to the factors that it gives."""

    def focal(gamma: float) -> Array:
        return np.asarray((1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * np.log(p))

    forms: dict[str, tuple[Callable[[float], Array], Any]] = {
        "focal loss, γ = {:.4g}": (focal, np.linspace(0.1, 8, 80)),
        "generalised cross entropy, q = {:.4g}": (lambda q: p**q, np.linspace(0.01, 1, 100)),
        "Poly-1, ε = {:.4g}": (lambda e: 1 + e * p, np.linspace(-1, 10, 111)),
        "focal loss whose factor has no gradient, γ = {:.4g}": (lambda g: (1 - p) ** g, np.linspace(0.1, 8, 80)),
    }
    for text, (form, grid) in forms.items():
        number = _best(lambda v, form=form: float(np.abs(form(v) - s).max()), grid)  # type: ignore[misc]
        if _near(form(number), s, 10 * close):
            if text.startswith("generalised") and abs(number - 1) < 1e-4:
                return Member("penalty", "1 − p, the mean absolute error", number)
            return Member("penalty", text.format(number), number)
    return None


def _smoothed(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A target with one number for the true class and one for the others: ``mass · p - t`` with the mass that it has."""
    p = reference.softmax(x)
    lines = [np.polyfit(p[t == k], gradient[t == k], 1) for k in (1, 0)]
    fitted = np.where(t == 1, *(np.polyval(line, p) for line in lines))
    (mass, a), (same, b) = lines[0] * (1, -1), lines[1] * (1, -1)
    if not _near(fitted, gradient, 10 * close) or abs(mass - same) > 10 * close or abs(b) <= close:
        return None
    a, b, c = float(a), float(b), t.shape[1]
    if abs(a + b * (c - 1) - 1) > 10 * close:
        return Member("smoothed", f"cross entropy with targets of {a:.4g} and {b:.4g}", c * b, targets=(a, b))
    text = f"cross entropy with label smoothing {c * b:.4g} (ε/C for every class"
    return Member("smoothed", f"{text}; with ε/(C − 1) for the others it would be {(c - 1) * b:.4g})", c * b)


def _other_logits(x: Array, t: Array, gradient: Array, close: float) -> Member | None:
    """A soft cap or a temperature on the logits, a z-loss beside, or both."""

    def explained(cap: float, temperature: float) -> tuple[Array, float]:
        bent, slope = x / temperature, 1 / temperature
        factor: Any = slope
        if np.isfinite(cap):
            bent = cap * np.tanh(x / cap)
            factor = 1 - (bent / cap) ** 2
        p, lse = reference.softmax(bent), reference.log_sum_exp(bent)[:, None]
        plain, extra = factor * (p - t), factor * 2 * lse * p
        weight = float(((gradient - plain) * extra).sum() / max((extra**2).sum(), 1e-30))
        return plain + weight * extra, weight

    def far(cap: float = np.inf, temperature: float = 1.0) -> float:
        return float(np.abs(explained(cap, temperature)[0] - gradient).max())

    cap = np.exp(_best(lambda v: far(cap=float(np.exp(v))), np.linspace(np.log(0.5), np.log(1000), 120)))
    temperature = np.exp(_best(lambda v: far(temperature=float(np.exp(v))), np.linspace(np.log(0.02), np.log(50), 120)))
    for text, arguments in (
        ("", (np.inf, 1.0)),
        (f"a soft cap of {cap:.4g}", (cap, 1.0)),
        (f"a temperature of {temperature:.4g}", (np.inf, temperature)),
    ):
        values, weight = explained(*arguments)
        if not _near(values, gradient, 10 * close):
            continue
        z_loss = f"a z-loss of {weight:.4g} · lse²" if abs(weight) > close else ""
        parts = " and ".join(filter(None, (text, z_loss)))
        if weight < -close:
            return None  # it pushes lse away from 0, which nobody wants
        return Member("logits", f"cross entropy with {parts}", shifts=bool(z_loss) or "cap" in text)
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
