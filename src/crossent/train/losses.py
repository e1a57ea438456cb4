"""The losses put side by side: how each is trained, which probabilities of its model are scored, and what defines it.

The definition is ``crossent.reference``; what is trained is written as a user would. That the two give the same
gradient is shown in the report and held by the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from crossent import binary_cross_entropy_with_logits, cross_entropy, reference
from crossent.reference import Array, LossAndGradient

Labels = NDArray[np.int64]

SMOOTHING = 0.1
SURE_AND_WRONG = (-1.0, 6.0, -0.25)
"""Logits of a confidently wrong prediction: the true class is the first."""


@dataclass(frozen=True)
class Candidate:
    """One loss: of logits ``(N, C)`` and class indices ``(N)``, a mean over rows."""

    name: str
    formula: str
    loss: Callable[[Tensor, Tensor], Tensor]
    log_probabilities: Callable[[Tensor], Tensor]
    scored: str
    reference: Callable[[Array, Labels], LossAndGradient]


# --- what is trained --------------------------------------------------------------------------------------------------


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Write class indices as rows of zeros and a one, in the shape and dtype of the logits."""
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)


def smooth_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute cross entropy with label smoothing."""
    return cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def one_vs_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute binary cross entropy of each class against the rest."""
    return binary_cross_entropy_with_logits(logits, one_hot(labels, logits))


def sigmoid_difference(logits: Tensor, labels: Tensor) -> Tensor:
    """Squash, and take the difference: the mean of ``1 - σ(x)`` where t = 1 and ``σ(x)`` elsewhere."""
    p = logits.sigmoid()
    return torch.where(one_hot(labels, logits) == 1, 1 - p, p).mean()


def ce_after_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Make the classic mistake: give probabilities to a loss that takes logits."""
    return cross_entropy(logits.softmax(1), labels)


# --- which probabilities are scored -----------------------------------------------------------------------------------


def log_softmax(logits: Tensor) -> Tensor:
    """Compute the log of ``softmax(x)`` in float64."""
    return logits.double().log_softmax(1)


def log_normalised_sigmoid(logits: Tensor) -> Tensor:
    """Compute the log of ``σ(x_k) / Σ_j σ(x_j)`` in float64."""
    return F.logsigmoid(logits.double()).log_softmax(1)


# --- what defines it --------------------------------------------------------------------------------------------------


def _reference_one_vs_rest(x: Array, labels: Labels) -> LossAndGradient:
    return reference.binary_cross_entropy_with_logits(x, reference.index_target(labels, x.shape[-1]))


def _reference_sigmoid_difference(x: Array, labels: Labels) -> LossAndGradient:
    return reference.sigmoid_difference(x, reference.index_target(labels, x.shape[-1]))


def _reference_after_softmax(x: Array, labels: Labels) -> LossAndGradient:
    """Apply the chain rule through the inner softmax: ``∂L/∂x = p ∘ (g - Σ p g)`` with ``g = softmax(p) - t``."""
    p = reference.softmax(x)
    outer = reference.cross_entropy(p, labels)
    return LossAndGradient(outer.loss, p * (outer.grad - (p * outer.grad).sum(-1, keepdims=True)))


_SOFTMAX = (log_softmax, "softmax of the logits")
_SIGMOID = (log_normalised_sigmoid, "σ of the logits, divided by its sum over the classes")

CANDIDATES = {
    c.name: c
    for c in (
        Candidate("ce", "−log p(true)", cross_entropy, *_SOFTMAX, reference.cross_entropy),
        Candidate(
            "ce-smooth", "CE with t = 0.9 · one-hot + 0.1/C", smooth_ce, *_SOFTMAX,
            lambda x, labels: reference.cross_entropy(x, labels, label_smoothing=SMOOTHING),
        ),
        Candidate(
            "bce", "mean over classes of −log σ(x) if true, −log σ(−x) if not", one_vs_rest, *_SIGMOID,
            _reference_one_vs_rest,
        ),
        Candidate(
            "sigmoid-difference", "mean over classes of 1 − σ(x) if true, σ(x) if not",
            sigmoid_difference, *_SIGMOID, _reference_sigmoid_difference,
        ),
        Candidate(
            "hinge", "1/C · sum over the others of max(0, 1 − x(true) + x)", F.multi_margin_loss,
            *_SOFTMAX, reference.multiclass_hinge,
        ),
        Candidate(
            "ce-after-softmax", "−log softmax(softmax(x))(true)", ce_after_softmax, log_softmax,
            "the softmax the model ends with", _reference_after_softmax,
        ),
    )
}  # fmt: skip


# --- how hard each pushes ---------------------------------------------------------------------------------------------


class Push(NamedTuple):
    """The gradient on the confidently wrong row, twice; and how it compares with an undecided row's.

    ``against_undecided`` is the push on the wrong class that the model is sure of, divided by that push at logits of 0.
    """

    grad: tuple[float, ...]
    autograd: tuple[float, ...]
    against_undecided: float


def push_when_wrong(candidate: Candidate) -> Push:
    """Compute the gradient at ``SURE_AND_WRONG`` by the reference, and by autograd of the loss that is trained."""
    label = np.array([0])
    wrong = int(np.argmax(SURE_AND_WRONG))
    grad = candidate.reference(np.array([SURE_AND_WRONG]), label).grad[0]
    undecided = candidate.reference(np.zeros((1, len(SURE_AND_WRONG))), label).grad[0]
    x = torch.tensor([SURE_AND_WRONG], dtype=torch.float64, requires_grad=True)
    (by_autograd,) = torch.autograd.grad(candidate.loss(x, torch.from_numpy(label)), x)
    return Push(tuple(grad.tolist()), tuple(by_autograd[0].tolist()), float(grad[wrong] / undecided[wrong]))


def push_curve(candidate: Candidate, logit: Array, num_classes: int = 10) -> Array:
    """Compute the push up on the true class where only one other competes, as a multiple of its push at even odds.

    The true class has this logit, the competing one 0 and the others -50, so that softmax and sigmoid give the true
    class the same probability ``σ(logit)``.
    """
    rows = np.full((len(logit) + 1, num_classes), -50.0)
    rows[:, 0] = [*logit, 0.0]
    rows[:, 1] = 0.0
    push = -candidate.reference(rows, np.zeros(len(rows), np.int64)).grad[:, 0]
    return np.asarray(push[:-1] / push[-1])
