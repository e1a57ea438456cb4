"""The losses that can be explained, as far as the command line must know them before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from crossent.tools.train.catalogue import DIGITS_LOSSES, NOISY_LOSSES, SEGMENTATION_LOSSES


@dataclass(frozen=True)
class LossDescription:
    """A loss in words.

    Attributes:
        name: what a user types.
        about: what it is.
        formula: of the loss, for one row.
        gradient: its formula.
        why: what that gradient does.
        link: how logits become p.
        takes: ``"weights"`` of any kind, ``"labels"`` (none, one or several), or one ``"label"`` and finite logits.
        nats: whether the loss is a logarithm, so that it has a unit.
    """

    name: str
    about: str
    formula: str
    gradient: str
    why: str
    link: Literal["softmax", "sigmoid"] = "softmax"
    takes: Literal["weights", "labels", "label"] = "weights"
    nats: bool = False


_IDENTITY = "m · p − s(p) · t with m = Σ s(p) · t"

LOSSES = {
    description.name: description
    for description in (
        LossDescription(
            "ce",
            DIGITS_LOSSES["ce"],
            "−Σ t log p",
            "p − t",
            "Every class is pushed from p towards t: up by what it lacks, down by what it has too much, which is all of p for "
            "a class that is not true. The pushes sum to 0.",
            nats=True,
        ),
        LossDescription(
            "ce-smooth",
            DIGITS_LOSSES["ce-smooth"],
            "−Σ t log p",
            "p − t",
            "t = 0.9 · target + 0.1/C. As ce, towards a little of every class: a class with p < 0.1/C is pulled up, and a "
            "true class beyond p = 0.9 + 0.1/C is pushed down.",
            nats=True,
        ),
        LossDescription(
            "bce",
            DIGITS_LOSSES["bce"],
            "−Σ [t log σ(x) + (1 − t) log σ(−x)]",
            "σ(x) − t",
            "Every class for itself: the pushes need not balance, and σ(x) need not sum to 1. Torch's mean is 1/C of all this.",
            link="sigmoid",
            nats=True,
        ),
        LossDescription(
            "sigmoid-difference",
            DIGITS_LOSSES["sigmoid-difference"],
            "Σ [1 − σ(x) if t = 1, else σ(x)]",
            "∓σ(x)(1 − σ(x))",
            "It vanishes where the model is sure, also where it is sure and wrong.",
            link="sigmoid",
            takes="labels",
        ),
        LossDescription(
            "hinge",
            DIGITS_LOSSES["hinge"],
            "1/C · Σ max(0, 1 − x(true) + x) over the others",
            "1/C for the others within the margin, minus their sum for the true class",
            "All classes within 1 of the true one are pushed equally hard, the others not at all. It knows no "
            "probabilities: p is the softmax of the logits.",
            takes="label",
        ),
        LossDescription(
            "ce-after-softmax",
            DIGITS_LOSSES["ce-after-softmax"],
            "−Σ t log softmax(p)",
            "p ∘ (g − Σ p g)",
            "g: ∂L/∂x of ce with p for x. A class with little probability is hardly pushed, not even the true one; and the "
            "loss cannot come near 0.",
            nats=True,
        ),
        LossDescription(
            "focal",
            SEGMENTATION_LOSSES["focal"],
            "−Σ t (1 − p)² log p",
            _IDENTITY,
            "s(p) = (1 − p)² − 2p(1 − p) log p: what is known already pulls less, what is thought impossible pulls as in ce.",
        ),
        LossDescription(
            "gce",
            NOISY_LOSSES["gce"],
            "Σ t (1 − p^0.7) / 0.7",
            _IDENTITY,
            "s(p) = p^0.7: a target that is thought impossible is hardly pulled, so that wrong labels are not learned, "
            "and hard ones are not either.",
        ),
        LossDescription(
            "mae",
            NOISY_LOSSES["mae"],
            "Σ t (1 − p)",
            _IDENTITY,
            "s(p) = p: a target that is thought impossible is not pulled at all.",
        ),
        LossDescription(
            "sce",
            NOISY_LOSSES["sce"],
            "Σ t (−0.1 log p + 4 (1 − p))",
            _IDENTITY,
            "s(p) = 0.1 + 4p: a tenth of ce where the target is thought impossible, four times mae elsewhere.",
        ),
        LossDescription(
            "poly1",
            "Poly-1, epsilon 1",
            "Σ t (−log p + 1 − p)",
            _IDENTITY,
            "s(p) = 1 + p: ce where the target is thought impossible, and up to twice ce where it is known.",
        ),
        LossDescription(
            "taylor",
            "Taylor cross entropy, order 2",
            "Σ t ((1 − p) + (1 − p)²/2)",
            _IDENTITY,
            "s(p) = 1 − (1 − p)²: twice mae where the target is thought impossible, ce where it is known.",
        ),
        LossDescription(
            "sigmoid-focal",
            "sigmoid focal loss, gamma 2, alpha 0.25",
            "Σ [0.25 t f(σ(x)) + 0.75 (1 − t) f(σ(−x))]",
            "0.75 (1 − t) s(σ(−x)) σ(x) − 0.25 t s(σ(x)) σ(−x)",
            "f(p) = −(1 − p)² log p, s as in focal. Every class for itself, and what is known already hardly pushes.",
            link="sigmoid",
        ),
        LossDescription(
            "asymmetric",
            "asymmetric loss, gamma 1 and 4, clip 0.05",
            "−Σ [t (1 − σ(x)) log σ(x) + (1 − t) q⁴ log(1 − q)]",
            "(1 − t) s₋ σ(x) − t s₊ σ(−x)",
            "q = max(σ(x) − 0.05, 0); s₊, s₋: −p f'(p) of either part. Every class for itself, and one that is false and has "
            "σ(x) ≤ 0.05 is left alone.",
            link="sigmoid",
        ),
    )
}
"""The losses by the name a user types."""

ALIASES = {
    "ce+ls": "ce-smooth",
    "double-softmax": "ce-after-softmax",
    "mnist": "sigmoid-difference",
    "mnist-loss": "sigmoid-difference",
    "poly-1": "poly1",
}
"""What people call some of them."""

DEFAULT = tuple(DIGITS_LOSSES)
"""The losses that ``crossent train digits`` compares."""


def find_losses(losses: str | Iterable[str]) -> tuple[LossDescription, ...]:
    """Look up losses, each once and in the order given.

    >>> [loss.name for loss in find_losses("mnist, ce")]
    ['sigmoid-difference', 'ce']
    """
    listed = losses.split(",") if isinstance(losses, str) else losses
    names = [str(name).strip() for name in listed]
    found = dict.fromkeys(ALIASES.get(name, name) for name in names if name)
    if not found:
        raise ValueError(f"losses must name at least one loss, got none: choose from {', '.join(LOSSES)}")
    for name in found:
        if name not in LOSSES:
            close = get_close_matches(name, [*LOSSES, *ALIASES], 1)
            meant = f"did you mean {close[0]!r}? It must be one of" if close else "choose from"
            raise ValueError(f"no loss is called {name!r}: {meant} {', '.join(LOSSES)}")
    return tuple(LOSSES[name] for name in found)
