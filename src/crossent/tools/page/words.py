"""What each loss does, in the words of the page. The script gets the same words, so that they stand once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Words(NamedTuple):
    """A loss in the words of the page.

    Attributes:
        title: what people call it.
        gradient: ``∂L/∂x``.
        lead: what its push does, in a sentence that holds wherever the model stands.
        remark: what else to know.
        sigmoid: whether p is the sigmoid's, so that every class stands for itself.
    """

    title: str
    gradient: str
    lead: str
    remark: str
    sigmoid: bool = False


_SLOPE = "But nobody learns from a loss, only from its slope"

WORDS = {
    "ce": Words("cross entropy", "p − t", "The push is the mistake.", "The formula names only what is true, but all share one p."),
    "sigmoid-difference": Words(
        "sigmoid and difference", "∓ σ (1 − σ)", "The surer the mistake, the weaker the push.",
        f"{_SLOPE}, and the sigmoid is flat where the model is sure.", sigmoid=True,
    ),
    "bce": Words(
        "binary cross entropy", "σ − t", "Every class for itself, and for each the push is the mistake.",
        "It is cross entropy between x and 0, once for each class. The pushes need not balance.", sigmoid=True,
    ),
    "ce-smooth": Words(
        "label smoothing 0.1", "p − t", "The push is the mistake, against softer flags.",
        "t is 0.9 of the target and a tenth spread over all classes. Past its flag even the true class is pushed down.",
    ),
    "hinge": Words(
        "hinge", "1/C within the margin", "Whoever comes within 1 of the true class is pushed, all alike.",
        "Once the true logit leads by 1, nothing moves. It knows no probabilities: p here is the softmax.",
    ),
    "ce-after-softmax": Words(
        "softmax twice", "p ∘ (g − Σ p g)", "The surer the mistake, the weaker the push.",
        f"{_SLOPE}, and the second softmax multiplies it by p. Give cross entropy the logits.",
    ),
    "focal": Words(
        "focal", "m · p − s(p) · t", "Where the model is wrong it is cross entropy, and what is known already pulls less.",
        "s(p) = (1 − p)² − 2p (1 − p) log p, and m = Σ s t.",
    ),
    "gce": Words(
        "generalised cross entropy", "m · p − s(p) · t", "The surer the mistake, the weaker the push.",
        "s(p) = p^0.7, and m = Σ s t: wrong labels are not learned, and hard ones are not either.",
    ),
    "mae": Words(
        "mean absolute error", "m · p − s(p) · t", "The surer the mistake, the weaker the push.",
        f"{_SLOPE}: s(p) = p, and m = Σ s t.",
    ),
    "sce": Words(
        "symmetric cross entropy", "m · p − s(p) · t", "A tenth of cross entropy where the model is wrong, more elsewhere.",
        "s(p) = 0.1 + 4p, and m = Σ s t.",
    ),
    "poly1": Words(
        "Poly-1", "m · p − s(p) · t", "Where the model is wrong it is cross entropy, up to twice that elsewhere.",
        "s(p) = 1 + p, and m = Σ s t.",
    ),
    "taylor": Words(
        "Taylor cross entropy", "m · p − s(p) · t", "The surer the mistake, the weaker the push.",
        "s(p) = 1 − (1 − p)², and m = Σ s t.",
    ),
    "sigmoid-focal": Words(
        "sigmoid focal", "¾ (1 − t) s₋ σ − ¼ t s₊ (1 − σ)", "Every class for itself, and what is known already hardly pushes.",
        "s as for focal: s₊ of σ, s₋ of 1 − σ.", sigmoid=True,
    ),
    "asymmetric": Words(
        "asymmetric", "(1 − t) s₋ σ − t s₊ (1 − σ)", "Every class for itself; a false one with σ below 0.05 is left alone.",
        "γ is 1 for the true classes and 4 for the others.", sigmoid=True,
    ),
}  # fmt: skip
"""The losses by their names in ``explain``."""

OFFERED = ("sigmoid-difference", "bce", "ce-smooth", "hinge", "ce-after-softmax", "focal")
"""What stands beside cross entropy in the scenes, the first at the start."""


def words_of(losses: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Give the script the words of some losses."""
    return {name: WORDS[name]._asdict() for name in losses}
