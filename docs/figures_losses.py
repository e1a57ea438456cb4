"""Draw the pictures of ``losses.md``: ``python docs/figures_losses.py [folder]`` writes them to ``docs/img``.

Every curve and number comes from ``crossent.reference``. What is drawn is mostly the *push*: minus the gradient of the loss, the
way in which gradient descent moves a logit. Colours and line styles say the same, so that neither is needed.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from figures import BLUE, GREEN, GREY, INK, ORANGE, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from crossent import reference as ref

PURPLE, SKY = "#AA4499", "#56B4E9"
STYLES = [(BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":")]
PLAIN = {"color": GREY, "lw": 1.4}
P = np.linspace(0.002, 0.998, 499)
X = np.linspace(-8.0, 8.0, 401)


def _titled(ax: Axes, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=10.5, color=INK)
    ax.set_xlabel(x, fontsize=9.5, color=INK)
    ax.set_ylabel(y, fontsize=9.5, color=INK)


def _ticks(ax: Axes, x: Iterable[float] = (), y: Iterable[float] = ()) -> None:
    for ticks, put in ((list(x), ax.set_xticks), (list(y), ax.set_yticks)):
        if ticks:
            put(ticks, [f"{v:g}".replace("-", "−") for v in ticks])


def _curves(ax: Axes, xs: np.ndarray, curves: dict[str, np.ndarray], where: str = "best") -> None:
    """Draw one line a name, in the styles in turn, and say which is which."""
    for (name, ys), (colour, style) in zip(curves.items(), STYLES, strict=False):
        ax.plot(xs, ys, style, color=colour, lw=2, label=name)
    ax.legend(fontsize=8.5, frameon=False, labelcolor=INK, handlelength=2.2, borderpad=0.1, labelspacing=0.3, loc=where)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"


def _bars(ax: Axes, values: Iterable[float], names: list[str], colour: str = BLUE) -> None:
    values = list(values)
    bars = ax.bar(range(len(values)), values, 0.62, color=[colour if v >= 0 else ORANGE for v in values])
    says = [_signed(v) for v in values]
    ax.bar_label(bars, says, fontsize=8.5, color=INK, padding=2)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_xticks(range(len(values)), names)


# --- penalties --------------------------------------------------------------------------------------------------------

PENALTIES: dict[str, dict[str, ref.Penalty]] = {
    "focal": {"γ = 0.5": ref.focal(0.5), "γ = 2": ref.focal(2.0), "γ = 5": ref.focal(5.0)},
    "Poly-1": {"ε = −1": ref.poly1(-1.0), "ε = 1": ref.poly1(1.0), "ε = 2": ref.poly1(2.0)},
    "generalised CE": {"q = 0.3": ref.gce(0.3), "q = 0.5": ref.gce(0.5), "q = 0.7": ref.gce(0.7)},
    "MAE": {"1 − p": ref.mae()},
    "symmetric CE": {"α = 0.1, β = 1": ref.sce(0.1, 1.0), "α = 1, β = 0.25": ref.sce(1.0, 0.25)},
    "Taylor CE": {"1 term": ref.taylor(1), "2 terms": ref.taylor(2), "6 terms": ref.taylor(6)},
}


def push_on_true_logit(p: np.ndarray, penalty: ref.Penalty | None) -> np.ndarray:
    """Compute minus the gradient on the logit of the true class where it has probability ``p``."""
    logits = np.stack([np.log(p), np.log1p(-p)], -1)
    return -ref.softmax_cross_entropy(logits, [1.0, 0.0], penalty=penalty).grad[..., 0]


def _penalties(
    value: Callable[[np.ndarray, ref.Penalty | None], np.ndarray], says: str, top: float, where: str
) -> Figure:
    figure, axes = panels(4.9, 2, 3, sharex=True, sharey=True)
    for ax, (title, members) in zip(axes.flat, PENALTIES.items(), strict=True):
        ax.plot(P, value(P, None), **PLAIN)
        _curves(ax, P, {name: value(P, penalty) for name, penalty in members.items()}, where)
        _titled(ax, title)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, top)
        _ticks(ax, (0, 0.5, 1))
    for ax in axes[-1]:
        ax.set_xlabel("p of the true class", fontsize=9.5, color=INK)
    for ax in axes[:, 0]:
        ax.set_ylabel(says, fontsize=9.5, color=INK)
    return figure


def penalties_push() -> Figure:
    """Draw the push on the true class's logit against p, for every penalty; cross entropy's is 1 - p."""
    figure = _penalties(push_on_true_logit, "push on the true logit", 1.35, "upper right")
    figure.axes[3].annotate(
        "cross entropy",
        (0.22, 0.78),
        (0.32, 1.08),
        fontsize=8.5,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8},
    )
    return figure


def penalties_loss() -> Figure:
    """Draw what the true class costs against p, for every penalty; cross entropy's is -log p."""

    def cost(p: np.ndarray, penalty: ref.Penalty | None) -> np.ndarray:
        return (penalty or ref.CROSS_ENTROPY).f(np.log(p))

    figure = _penalties(cost, "loss", 5.0, "upper right")
    figure.axes[3].annotate(
        "cross entropy",
        (0.06, 2.8),
        (0.2, 3.4),
        fontsize=8.5,
        color=INK,
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8},
    )
    return figure


# --- targets ----------------------------------------------------------------------------------------------------------


def targets() -> Figure:
    """Draw the push ``w∘t - mass·p`` for one p and six targets."""
    x = np.log([0.1, 0.7, 0.2])
    kinds = {
        "class 0": ([1, 0, 0], None),
        "smoothed, ε = 0.3": (ref.smooth([1, 0, 0], 0.3), None),
        "a soft label": ([0.6, 0.4, 0], None),
        "two labels": (ref.multilabel_target([1, 0, 1]), None),
        "class weights c = (2, 1, 1)": ([1, 0, 0], [2, 1, 1]),
        "mass one half": ([0.5, 0, 0], None),
    }
    figure, axes = panels(4.6, 2, 3, sharey=True)
    names = [f"class {k}\np = {v:.1f}" for k, v in enumerate(ref.softmax(x))]
    for ax, (title, (t, c)) in zip(axes.flat, kinds.items(), strict=True):
        _bars(ax, -ref.softmax_cross_entropy(x, t, c).grad, names)
        _titled(ax, f"{title}\nt = ({', '.join(f'{v:.1f}'.rstrip('0').rstrip('.') for v in t)})")
        ax.set_ylim(-2, 2.2)
        _ticks(ax, y=(-1, 0, 1))
    for ax in axes[:, 0]:
        ax.set_ylabel("push on the logit", fontsize=9.5, color=INK)
    return figure


# --- logits -----------------------------------------------------------------------------------------------------------


def _push(logits: np.ndarray, target: int = 0, **options: object) -> np.ndarray:
    indices = np.full(len(logits), target)
    return -ref.cross_entropy(logits, indices, reduction="sum", **options).grad[:, target]


def logits() -> Figure:
    """Draw what temperature, soft cap, bias, margin, mask and z-loss do to the push."""
    figure, axes = panels(5.4, 2, 3)
    pair = np.stack([X, np.zeros_like(X)], -1)
    wide = np.linspace(-60, 60, 401)
    (a, b, c), (d, e, f) = axes

    _curves(a, X, {f"T = {t:g}": _push(pair, temperature=t) for t in (0.5, 1.0, 2.0)}, "upper right")
    _titled(a, "temperature", "true logit, other 0", "push on the true logit")
    a.set_ylim(0, 2.5)
    _ticks(a, (-8, 0, 8), (0, 1, 2))

    capped = {"no cap": {}, "cap = 30": {"softcap": 30.0}, "cap = 10": {"softcap": 10.0}}
    far = np.stack([wide, np.zeros_like(wide)], -1)
    _curves(b, wide, {name: _push(far, **options) for name, options in capped.items()}, "upper right")
    _titled(b, "soft cap", "true logit, other 0")
    b.set_ylim(0, 1.6)
    _ticks(b, (-60, 0, 60), (0, 1))

    prior = np.log([0.01, 0.99])
    bias = {"no bias": _push(pair), "true class\nfrequent, 0.99": _push(pair[:, ::-1], 1, logit_bias=prior)}
    bias["true class\nrare, 0.01"] = _push(pair, logit_bias=prior)
    _curves(c, X, bias, "upper right")
    _titled(c, "bias log π", "true logit, other 0")
    c.set_ylim(0, 2.1)
    _ticks(c, (-8, 0, 8), (0, 1))

    _curves(d, X, {f"m = {m:g}": _push(pair, margin=m) for m in (0.0, 2.0, 4.0)}, "upper right")
    _titled(d, "margin", "true logit, other 0", "push on the true logit")
    d.set_ylim(0, 1.8)
    _ticks(d, (-8, 0, 8), (0, 1))

    x, allowed = np.log([0.1, 0.7, 0.2]), np.array([True, False, True])
    share = ref.softmax(np.where(allowed, x, -np.inf))
    names = [f"class {k}\n" + (f"p = {share[k]:.2f}" if allowed[k] else "masked") for k in range(3)]
    _bars(e, -ref.cross_entropy(x, 0, class_mask=allowed).grad, names)
    _titled(e, "class mask", "", "push on the logit")
    e.set_ylim(-0.9, 1.0)
    _ticks(e, y=(0,))

    shift = np.linspace(-20, 20, 201)
    shifted = x + shift[:, None]
    zero = np.zeros(len(shift), int)
    pulls = {
        f"λ = {v:g}": -ref.cross_entropy(shifted, zero, reduction="sum", z_loss=v).grad.sum(-1)
        for v in (0.0, 1e-3, 1e-2)
    }
    _curves(f, shift, pulls, "upper right")
    _titled(f, "z-loss", "lse of the logits", "push on all logits")
    f.set_ylim(-0.45, 0.75)
    _ticks(f, (-20, 0, 20), (-0.4, 0, 0.4))
    return figure


# --- binary -----------------------------------------------------------------------------------------------------------


def binary() -> Figure:
    """Draw the push on a logit for the members of the sigmoid family."""

    def push(y: float, penalty: object = None, **options: object) -> np.ndarray:
        t = np.full_like(X, y)
        return -ref.binary_cross_entropy_with_logits(X, t, reduction="sum", penalty=penalty, **options).grad

    def focal(y: float, alpha: float | None) -> np.ndarray:
        return -ref.sigmoid_focal_loss(X, np.full_like(X, y), alpha, 2.0, "sum").grad

    figure, axes = panels(5.0, 2, 2, sharex=True)
    (a, b), (c, d) = axes
    _curves(a, X, {"yes, t = 1": push(1), "no, t = 0": push(0), "t = 0.3": push(0.3)}, "upper right")
    _titled(a, "binary cross entropy", y="push on the logit")
    a.set_ylim(-1.1, 1.5)
    _curves(
        b,
        X,
        {"yes, π = 3": push(1, pos_weight=3.0), "no": push(0, pos_weight=3.0), "yes, π = 1": push(1)},
        "upper right",
    )
    _titled(b, "positive weight")
    b.set_ylim(-1.3, 4.0)
    _curves(
        c,
        X,
        {"yes": focal(1, None), "no": focal(0, None), "yes, α = 0.25": focal(1, 0.25), "no, α = 0.25": focal(0, 0.25)},
        "upper right",
    )
    c.plot(X, push(1), **PLAIN)
    c.plot(X, push(0), **PLAIN)
    c.text(1.0, 0.33, "BCE", fontsize=8.5, color=INK)
    c.text(-1.6, -0.5, "BCE", fontsize=8.5, color=INK, ha="right")
    _titled(c, "sigmoid focal, γ = 2", "logit", "push on the logit")
    c.set_ylim(-1.4, 2.2)
    focal4 = ref.BinaryPenalty(ref.focal(1.0), ref.focal(4.0))
    negatives = {"BCE": push(0), "focal, γn = 4": push(0, focal4)}
    negatives |= {f"and clip = {v:g}": push(0, ref.asymmetric(1.0, 4.0, v)) for v in (0.05, 0.2)}
    _curves(d, X, negatives, "lower left")
    _titled(d, "asymmetric, for a no", "logit")
    d.set_ylim(-1.5, 0.2)
    for ax, ticks in ((a, (-1, 0, 1)), (b, (-1, 0, 1, 2, 3)), (c, (-1, 0, 1)), (d, (-1, 0))):
        _ticks(ax, (-8, -4, 0, 4, 8), ticks)
    return figure


# --- distillation, contrast, helpers ----------------------------------------------------------------------------------


def distillation() -> Figure:
    """Draw teacher and student at three temperatures, and the push ``T (q - p)`` between them."""
    teacher, student = np.array([6.0, 3.0, 1.0, -2.0]), np.array([2.0, 3.0, -1.0, 0.0])
    figure, axes = panels(4.6, 2, 3, sharex=True, sharey="row")
    names = ["cat", "lynx", "dog", "car"]
    for column, t in enumerate((1.0, 2.0, 6.0)):
        top, bottom = axes[:, column]
        q, p = ref.softmax(teacher / t), ref.softmax(student / t)
        at = np.arange(4)
        top.bar(at - 0.2, q, 0.38, color=BLUE, label="teacher q")
        top.bar(at + 0.2, p, 0.38, color="white", edgecolor=INK, hatch="///", lw=0.8, label="student p")
        _titled(top, f"T = {t:g}")
        top.set_ylim(0, 1.25)
        _ticks(top, y=(0, 0.5, 1))
        _bars(bottom, -ref.distillation_loss(student[None], teacher[None], t).grad[0], names)
        bottom.set_ylim(-1.1, 1.35)
        _ticks(bottom, y=(-1, 0, 1))
    axes[0, 0].legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="upper right")
    axes[0, 0].set_ylabel("softmax at T", fontsize=9.5, color=INK)
    axes[1, 0].set_ylabel("push on the\nstudent's logit", fontsize=9.5, color=INK)
    return figure


def contrastive() -> Figure:
    """Draw the logits of four pairs and the push on each, of rows and columns."""
    angles = np.array([[0.1, 1.4, 2.6, 4.0], [0.4, 1.2, 3.3, 4.3]])
    a, b = (np.stack([np.cos(v), np.sin(v)], -1) for v in angles)
    scale, n = 5.0, 4
    similarity = scale * a @ b.T
    rows = ref.cross_entropy(similarity, np.arange(n)).grad
    columns = ref.cross_entropy(similarity.T, np.arange(n)).grad.T
    figure, axes = panels(2.7, 1, 3)
    drawn = {
        "logits: scale · a bᵀ": similarity,
        "push, rows only": -rows * n,
        "push, rows and columns": -(rows + columns) / 2 * n,
    }
    for ax, (title, values) in zip(axes.flat, drawn.items(), strict=True):
        most = 2.5 * np.abs(values).max()  # pale, to be read on
        ax.imshow(values, cmap="PuOr", vmin=-most, vmax=most)
        for (i, j), v in np.ndenumerate(values):
            says = f"{v:.1f}".replace("-", "−") if values is similarity else _signed(v)
            ax.text(
                j, i, says, ha="center", va="center", fontsize=8.5, color=INK, weight="bold" if i == j else "normal"
            )
        _titled(ax, title)
        ax.set_xticks(range(n), [f"b{k}" for k in range(n)])
        ax.set_yticks(range(n), [f"a{k}" for k in range(n)])
        ax.spines[:].set_visible(False)
    return figure


def numbers() -> Figure:
    """Draw the class weights against the class sizes, and the floors against the number of classes."""
    figure, axes = panels(3.3, 1, 2)
    left, right = axes[0]
    counts = np.array([10_000, 3_000, 1_000, 300, 100, 30, 10])
    curves = {"balanced": ref.class_weights(counts)}
    curves |= {f"effective, β = {b:g}": ref.class_weights(counts, "effective", b) for b in (0.9999, 0.999, 0.99)}
    for (name, weights), (colour, style) in zip(curves.items(), STYLES, strict=True):
        left.plot(counts, weights, style, color=colour, lw=2, marker="o", ms=4, label=name)
    left.set_xscale("log")
    left.set_yscale("log")
    left.minorticks_off()
    left.set_xticks([10, 100, 1000, 10000], ["10", "100", "1,000", "10,000"])
    left.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    left.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="upper right")
    _titled(left, "class_weights", "examples of the class", "weight of the class")
    c = np.unique(np.geomspace(2, 1000, 60).astype(int))
    right.plot(c, [ref.expected_initial_loss(k) for k in c], "-", color=BLUE, lw=2)
    right.plot(c, [ref.double_softmax_floor(k) for k in c], "--", color=ORANGE, lw=2)
    right.text(2.2, 4.4, "ln C:\nbefore training", fontsize=8.5, color=INK)
    right.text(1000, 2.6, "the floor with a\nsoftmax too many", fontsize=8.5, color=INK, ha="right", va="top")
    right.set_xscale("log")
    right.minorticks_off()
    right.set_xticks([2, 10, 100, 1000], ["2", "10", "100", "1,000"])
    right.set_ylim(0, 7.2)
    _ticks(right, y=(0, 2, 4, 6))
    _titled(right, "what the loss should be", "number of classes C", "loss")
    return figure


PICTURES = {
    "losses-penalties-push": penalties_push,
    "losses-penalties": penalties_loss,
    "losses-targets": targets,
    "losses-logits": logits,
    "losses-binary": binary,
    "losses-distillation": distillation,
    "losses-contrastive": contrastive,
    "losses-numbers": numbers,
}


def main(folder: Path = Path(__file__).parent / "img") -> None:
    """Write every picture to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        drawn = io.BytesIO()
        draw().savefig(drawn, facecolor="white")
        Image.open(drawn).convert("RGB").quantize(64).save(folder / f"{name}.png", optimize=True)  # a third of the size


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
