"""Rules about the backward pass of a loss that somebody wrote: whether it is the derivative of the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from crossent import reference
from crossent.reference import Array
from crossent.tools.check.findings import NotApplicable, Observation, Rule, RuleDescription, register_rule
from crossent.tools.check.recognise import ROUGH
from crossent.tools.check.row_block import numbers

if TYPE_CHECKING:  # it imports torch, which a check of files does not need
    from crossent.tools.check.audited_loss import AuditedLoss

RULES: dict[str, Rule] = {}


@register_rule(
    RULES,
    RuleDescription(
        "CE201",
        "error",
        "the gradient is not that of the loss",
        "The backward pass does not belong to the forward pass: training goes down another function than the one "
        "that is printed.",
        "Write the forward pass in torch operations and leave the backward pass to autograd, or check it with "
        "torch.autograd.gradcheck. For L = −Σ t log p it is mass · p − t with mass = Σ t, for each row.",
        "torch.autograd.gradcheck",
    ),
)
def gradient_of_another_loss(loss: AuditedLoss) -> Iterator[Observation]:
    """Differences of the forward pass against the backward pass, for every kind of target."""
    wrong, worst, seen, fix = [], 0.0, "", None
    for kind, target in loss.targets.items():
        try:
            grad = loss.derivatives(loss.x, target).grad
        except NotApplicable as error:
            yield Observation(f"with {kind}: {error}")
            raise
        differences = loss.by_differences(loss.x, target)
        far = loss.far_apart(grad, differences)
        worst = max(worst, far)
        if far > loss.tolerance:
            row = int(np.abs(grad - differences).max(1).argmax())
            wrong.append(kind)
            seen = f"the backward pass gives {numbers(grad[row])} in row {row}; the derivative of the forward pass is "
            seen += numbers(differences[row])
            fix = _repair(loss, target, grad, differences)
    loss.measure("CE201", f"gradient and finite differences differ by {worst:.1e}")
    if wrong:
        yield Observation(f"with {' and '.join(wrong)}: {seen}", fix=fix)


def _repair(loss: AuditedLoss, target: Array, grad: Array, differences: Array) -> str | None:
    """Recognise p - t where the rows do not sum to 1, or a forgotten factor."""
    scale = len(loss.x) if loss.reduction == "mean" else 1
    if target.ndim == 2:
        p, mass = reference.softmax(loss.x), target.sum(1, keepdims=True)
        if (
            loss.far_apart(scale * grad, p - target) < loss.tolerance
            and loss.far_apart(scale * differences, mass * p - target) < loss.tolerance
        ):
            return (
                "The backward pass is p − t, right only for rows that sum to 1. A row with M labels needs M · p − "
                "t; or divide the target by M (t = 1/M), and the loss becomes the mean over a row's labels: "
                "crossent.multilabel_cross_entropy."
            )
    factors = _detached(loss, target, scale * grad)
    if factors:
        return factors
    ratio = float((grad * differences).sum() / max((differences**2).sum(), 1e-30))
    if loss.far_apart(grad, ratio * differences) < loss.tolerance and abs(ratio) > 1e-6:
        return f"The backward pass is {ratio:.4g} times the derivative: a factor such as N, or a sign, is missing on one side."
    return None


@register_rule(
    RULES,
    RuleDescription(
        "CE202",
        "error",
        "the backward pass ignores what comes in",
        "backward(ctx, grad_output) must multiply by grad_output. Without it the gradient of 3 · loss is that of "
        "the loss: loss weights, gradient accumulation (loss / n) and the scaler of mixed precision have no effect.",
        "Return grad_output * (p − t) / N.",
        "torch.autograd.Function",
    ),
)
def ignores_what_comes_in(loss: AuditedLoss) -> Iterator[str]:
    """The gradient of three times the loss."""
    once = loss.derivatives(loss.x, loss.target).grad
    thrice = loss.derivatives(loss.x, loss.target, factor=3.0).grad
    ratio = float((thrice * once).sum() / max((once**2).sum(), 1e-30))
    loss.measure("CE202", f"the gradient of 3 · loss is {ratio:.4g} times that of the loss")
    if abs(ratio - 3) > ROUGH and np.abs(once).max() > 0:
        yield f"the gradient of 3 · loss is {ratio:.4g} times that of the loss, not 3 times"


@register_rule(
    RULES,
    RuleDescription(
        "CE203",
        "warning",
        "the second derivative is wrong",
        "What is differentiated twice (gradient penalties, meta-learning, Hessians) gets a wrong number without a "
        "warning: the backward pass uses values that were saved without their graph.",
        "In backward compute p from the saved logits again, in torch operations, or mark it @once_differentiable so "
        "that it raises.",
        "torch.autograd.function.once_differentiable",
    ),
)
def second_derivative(loss: AuditedLoss) -> Iterator[str]:
    """The second derivative of L²/2 in one direction, against differences of the gradient."""
    v = loss.random.normal(size=loss.x.shape)
    try:
        second, differences = loss.hessian_times(loss.target, v)
    except NotApplicable as error:
        loss.measure("CE203", f"second derivative: none, and it {error}")
        return
    far = loss.far_apart(second, differences)
    loss.measure("CE203", f"second derivative and differences of the gradient differ by {far:.1e}")
    if far > 10 * loss.tolerance:
        yield (
            f"in one direction autograd gives {numbers(second[0])} for row 0; differences of the gradient "
            f"{numbers(differences[0])}"
        )


def _detached(loss: AuditedLoss, target: Array, grad: Array) -> str:
    """Recognise ``w · (p - t)`` with the ``w`` that is in front of ``-log p``, of which no gradient was taken."""
    t = np.eye(loss.classes)[target] if target.ndim == 1 else target
    if loss.binary or not np.allclose(t.sum(1), 1):
        return ""
    rows = np.array([loss.total(loss.x[i : i + 1], target[i : i + 1]) for i in range(len(loss.x))])
    factor = rows / (t * reference.surprisal(loss.x)).sum(1)
    if loss.far_apart(grad, factor[:, None] * (reference.softmax(loss.x) - t)) > loss.tolerance:
        return ""
    return (
        f"The factor in front of −log p, {numbers(factor, 3)}, is detached: the gradient is that of weights which do not depend on "
        "the logits. Take .detach() or no_grad away from it, or call it a weight, and print the weighted cross entropy."
    )
