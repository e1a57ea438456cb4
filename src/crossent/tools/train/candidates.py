"""A loss put beside others: how it is trained, which probabilities of its model are scored, and what defines it.

The definition is ``crossent.reference``; what is trained is written as a user would. The tests check that
both give the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from crossent import cross_entropy, focal_loss, reference
from crossent.reference import Array, LossAndGradient
from crossent.tools.train.data import Subset

Labels = NDArray[np.int64]
Loss = Callable[[Tensor, Tensor], Tensor]

SMOOTHING = 0.1
SURE_AND_WRONG = (-1.0, 6.0, -0.25)
"""Logits of a confidently wrong prediction: the true class is the first."""


def nothing(part: Subset) -> dict[str, Any]:
    """Give a loss nothing beside the logits and the labels."""
    return {}


@dataclass(frozen=True)
class Candidate:
    """One loss: of logits ``(N, C, ...)`` and labels, a mean over rows.

    ``given`` says what else the loss and its reference are given, such as weights, from the rows to be trained on.
    """

    name: str
    formula: str
    loss: Callable[..., Tensor]
    log_probabilities: Callable[[Tensor], Tensor]
    scored: str
    reference: Callable[..., LossAndGradient]
    given: Callable[[Subset], dict[str, Any]] = nothing

    def on(self, train: Subset) -> Loss:
        """Settle the loss for these training rows."""
        return partial(self.loss, **self.given(train))


def by_name(*candidates: Candidate) -> dict[str, Candidate]:
    """List losses by the name a user types."""
    return {candidate.name: candidate for candidate in candidates}


# --- which probabilities are scored -----------------------------------------------------------------------------------


def log_softmax(logits: Tensor) -> Tensor:
    """Compute the log of ``softmax(x)`` in float64."""
    return logits.double().log_softmax(1)


def log_sigmoid(logits: Tensor) -> Tensor:
    """Compute the log of ``σ(x)`` in float64."""
    return F.logsigmoid(logits.double())


def log_normalised_sigmoid(logits: Tensor) -> Tensor:
    """Compute the log of ``σ(x_k) / Σ_j σ(x_j)`` in float64."""
    return log_sigmoid(logits).log_softmax(1)


SOFTMAX = (log_softmax, "softmax of the logits")
SIGMOID = (log_sigmoid, "σ of the logits")
NORMALISED_SIGMOID = (log_normalised_sigmoid, "σ of the logits, divided by its sum over the classes")


# --- what several jobs train ------------------------------------------------------------------------------------------


def smooth_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute cross entropy with label smoothing."""
    return cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def _reference_smooth_ce(x: Array, labels: Labels) -> LossAndGradient:
    return reference.cross_entropy(x, labels, label_smoothing=SMOOTHING)


PLAIN = Candidate("plain", "−log p(true)", cross_entropy, *SOFTMAX, reference.cross_entropy)
WEIGHTED = replace(PLAIN, name="weighted", formula="−c(true) log p(true), c = n / (C n(true))")
FOCAL = Candidate("focal", "−(1 − p(true))² log p(true)", focal_loss, *SOFTMAX, reference.focal_loss)
CE = Candidate("ce", "−log p(true)", cross_entropy, *SOFTMAX, reference.cross_entropy)
CE_SMOOTH = Candidate("ce-smooth", "CE with t = 0.9 · one-hot + 0.1/C", smooth_ce, *SOFTMAX, _reference_smooth_ce)


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
