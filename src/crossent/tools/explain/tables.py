"""An explanation as words and tables of strings, made once and shown in the terminal or in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from crossent.tools.explain.loss_terms import add
from crossent.tools.explain.row_numbers import LossExplanation, RowNumbers
from crossent.tools.printable import brief, printable
from crossent.tools.table import Table

MOST_CLASSES = 12
OF_MANY = 8
MOST_LABELS = 5
LONGEST = 30
BAR_WIDTH = 12
UP, DOWN, LITTLE_UP, LITTLE_DOWN = "▲", "▼", "△", "▽"


# --- words ------------------------------------------------------------------------------------------------------------


def heading(e: RowNumbers) -> str:
    """Say what is explained."""
    count = len(e.logits)
    return f"{count} class{'es' * (count > 1)}, target: {target(e)}"


def legend(e: RowNumbers) -> str:
    """Say how to read the tables."""
    sentences = (
        "x: logit, p: probability, t: target, term: the class's part of the loss L. One step of gradient descent, "
        f"x − {general(e.step)} · ∂L/∂x, raises a logit ({UP}) or lowers it ({DOWN}) and leads to p after."
    )
    if len(e.losses) > 1:
        sentences += " All bars have one scale."
    classes, scale = shown(e), _scale(e)
    drawn = {push_bar(loss.gradient[k], scale) for loss in e.losses for k in classes}
    return sentences + f" {LITTLE_UP}{LITTLE_DOWN}: less than half a sign." * bool(drawn & {LITTLE_UP, LITTLE_DOWN})


def target(e: RowNumbers) -> str:
    """Name the target.

    >>> from crossent.tools.explain.explanation import explain
    >>> target(explain([0.0, 0.0, 0.0], {0, 2}, class_names=["cat", "dog", "fish"]))
    'cat and fish (t = 1/2 each where p is the softmax)'
    """
    if e.labels is None:
        return f"weights {_listed([f'{weight(w)} for {called(e, k)}' for k, w in enumerate(e.weights) if w])}"
    each = f" (t = 1/{len(e.labels)} each where p is the softmax)" if len(e.labels) > 1 else ""
    return f"{_listed([called(e, k) for k in e.labels]) or 'no class'}{each}"


def _listed(names: Sequence[str]) -> str:
    shown, more = names[:MOST_LABELS], len(names) - MOST_LABELS
    last = f"{more} more" if more > 0 else shown[-1] if names else ""
    head = shown if more > 0 else shown[:-1]
    return f"{', '.join(head)} and {last}" if head else last


def total(loss: LossExplanation) -> str:
    """Write the loss, in nats and bits if it has a unit."""
    if loss.bits is None:
        return number(loss.loss)
    return f"{number(loss.loss)} nats = {number(loss.bits)} bits"


def references(e: RowNumbers) -> str:
    """Say what the losses can be compared with."""
    r = e.references
    sentence = f"To compare: ln C = {number(r.ln_classes)} nats is what ce costs if all classes are equally likely"
    if r.prior_entropy is not None:
        sentence += (
            f", H(prior) = {number(r.prior_entropy)} what it costs on average if only the class frequencies are known"
        )
    return f"{sentence}; a softmax too many keeps it above ln(e+C−1)−1 = {number(r.double_softmax_floor)}."


# --- tables -----------------------------------------------------------------------------------------------------------


def loss_table(e: RowNumbers, loss: LossExplanation) -> Table:
    """Tabulate the classes that matter, the others together, and in the last row the sums."""
    classes, scale = shown(e), _scale(e)
    rows = [_class_row(e, loss, k, scale) for k in classes]
    rest = sorted(set(range(len(e.logits))) - set(classes))
    if rest:
        rows.append(_sums(f"{len(rest)} others", loss, rest))
    rows.append(_sums("Σ", loss, range(len(e.logits))))
    description = loss.description
    p = "σ(x)" if description.link == "sigmoid" else "p"
    columns = ("class", "x", p, "t", "term", "∂L/∂x", "push", f"{p.removesuffix('(x)')} after")
    marked = frozenset((i, 0) for i, k in enumerate(classes) if e.weights[k])
    notes = (f"L = {total(loss)} = {description.formula}", f"∂L/∂x = {loss.gradient_formula}. {description.why}")
    return Table(f"{loss.name}  {description.about}", columns, rows, notes, marked, _text_columns(columns))


def comparisons(e: RowNumbers) -> list[Table]:
    """Tabulate the losses side by side: what each does for the class that counts most, and for one that is preferred to it."""
    best = focus(e)
    compared = [_comparison(e, best, _focus_is(e))]
    wrong = [k for k, weight in enumerate(e.weights) if not weight and e.logits[k] > e.logits[best]]
    if wrong and any(e.weights):
        compared.append(_comparison(e, max(wrong, key=lambda k: e.logits[k]), "class that is likeliest instead"))
    return compared


def _comparison(e: RowNumbers, k: int, role: str) -> Table:
    scale = _scale(e)
    rows = tuple(
        (
            loss.name,
            number(loss.loss),
            signed(loss.gradient[k]),
            push_bar(loss.gradient[k], scale),
            number(loss.p[k]),
            number(loss.p_after[k]),
            _sum_text(loss.gradient),
        )
        for loss in e.losses
    )
    columns = ("loss", "L", "∂L/∂x", "push", "p", "p after", "Σ ∂L/∂x")
    title = f"Side by side, for the {role}: {brief(name(e, k), LONGEST)}"
    return Table(title, columns, rows, text_columns=_text_columns(columns))


def _text_columns(columns: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(j for j, column in enumerate(columns) if column in ("class", "loss", "push"))


def focus(e: RowNumbers) -> int:
    """Choose the class that counts most: of the largest weight, or without a target of the largest logit."""
    best = e.weights if any(e.weights) else e.logits
    return max(range(len(best)), key=best.__getitem__)


def _focus_is(e: RowNumbers) -> str:
    if not any(e.weights):
        return "likeliest class"
    if e.labels is None:
        return "class of the largest weight"
    return "true class" if len(e.labels) == 1 else "first of the true classes"


def shown(e: RowNumbers) -> list[int]:
    """Choose the classes that matter: all of a few; of many the labels first, then the largest logits. In their order."""
    count = len(e.logits)
    if count <= MOST_CLASSES:
        return list(range(count))
    by_weight = sorted((k for k in range(count) if e.weights[k]), key=lambda k: -e.weights[k])[:MOST_LABELS]
    by_logit = sorted(set(range(count)) - set(by_weight), key=lambda k: (-e.logits[k], k))
    return sorted(by_weight + by_logit[: OF_MANY - len(by_weight)])


def _class_row(e: RowNumbers, loss: LossExplanation, k: int, scale: float) -> tuple[str, ...]:
    g = loss.gradient[k]
    numbers = (number(loss.p[k]), weight(loss.t[k]), number(loss.terms[k]), signed(g))
    return name(e, k), general(e.logits[k]), *numbers, push_bar(g, scale), number(loss.p_after[k])


def _sums(title: str, loss: LossExplanation, classes: Iterable[int]) -> tuple[str, ...]:
    p, t, terms, gradient, after = (
        [column[k] for k in classes] for column in (loss.p, loss.t, loss.terms, loss.gradient, loss.p_after)
    )
    return title, "", number(add(p)), weight(add(t)), number(add(terms)), _sum_text(gradient), "", number(add(after))


def _sum_text(gradient: Sequence[float]) -> str:
    """Write a sum, which is 0 if it is rounding."""
    added, largest = add(gradient), max(map(abs, gradient), default=0.0)
    return signed(added if abs(added) > 1e-12 * largest else 0.0)


def _scale(e: RowNumbers) -> float:
    """Find the largest derivative of all losses: a whole bar."""
    return max((abs(g) for loss in e.losses for g in loss.gradient if math.isfinite(g)), default=0.0)


# --- cells ------------------------------------------------------------------------------------------------------------


def push_bar(gradient: float, scale: float) -> str:
    """Draw a push: as many signs as it is parts of the scale.

    >>> push_bar(-0.9, 0.9), push_bar(0.2, 0.9), push_bar(0.001, 0.9), push_bar(0.0, 0.9)
    ('▲▲▲▲▲▲▲▲▲▲▲▲', '▼▼▼', '▽', '')
    """
    if not gradient or not math.isfinite(gradient) or not scale:
        return ""
    whole = round(BAR_WIDTH * abs(gradient) / scale)
    if gradient < 0:
        return UP * whole or LITTLE_UP
    return DOWN * whole or LITTLE_DOWN


def number(value: float) -> str:
    """Write a number with four decimals, or one digit of a power of ten where that would be 0, in at most nine signs.

    >>> number(0.25), number(3e-7), number(0.0), number(-1.5), number(-123456.7), number(-math.inf)
    ('0.2500', '3e−07', '0', '−1.5000', '−123457', '−∞')
    """
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else f"{value:+}".replace("inf", "∞").replace("-", "−").removeprefix("+")
    if not value:
        return "0"
    size = abs(value)
    if size < 5e-5:
        text = f"{value:.0e}"
    elif size < 1e6:
        text = f"{value:.{4 if size < 100 else 1 if size < 1000 else 0}f}"
    else:
        text = f"{value:.2e}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """Write a number with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def weight(value: float) -> str:
    """Write a target weight, which is mostly whole.

    >>> weight(1.0), weight(0.1 / 3)
    ('1', '0.0333')
    """
    return number(value) if value % 1 else general(value)


def general(value: float) -> str:
    """Write a number as short as four digits allow.

    >>> general(2.0), general(-0.123456), general(1 / 3)
    ('2', '−0.1235', '0.3333')
    """
    return f"{value:.4g}".replace("-", "−").replace("inf", "∞")


def called(e: RowNumbers, k: int) -> str:
    """Name a class in a sentence."""
    return brief(name(e, k), LONGEST) if e.class_names[k] != str(k) else f"class {k}"


def name(e: RowNumbers, k: int) -> str:
    """Write a class name so that it can do no harm in a terminal: control and direction signs as their codes."""
    return printable(e.class_names[k]).replace("\n", "\\n")
