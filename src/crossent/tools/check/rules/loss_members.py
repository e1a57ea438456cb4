"""Rules about which member of the family a loss is that somebody wrote, and what it lacks to be the one that was meant.

``crossent.tools.check.recognise`` finds the member by the gradient: a sign, a scale, a target, a penalty, other logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from crossent import reference
from crossent.tools.check.findings import Observation, Rule, RuleDescription, register_rule
from crossent.tools.check.recognise import CLOSE, ROUGH, TINY, proportional

if TYPE_CHECKING:  # it imports torch, which a check of files does not need
    from crossent.tools.check.audited_loss import AuditedLoss

RULES: dict[str, Rule] = {}


@register_rule(
    RULES,
    RuleDescription(
        "CE206",
        "error",
        "a second softmax inside",
        "The loss squashes its input and then uses a loss that squashes again. It cannot fall below ln(e + C − 1) − "
        "1 for a softmax, or 0.3133 for every yes and 0.6931 for every no for a sigmoid, and pulls hardly at all "
        "where it is sure and wrong.",
        "Give the logits to the loss as they are: cross_entropy and binary_cross_entropy_with_logits apply "
        "the softmax or the sigmoid themselves.",
        "pytorch/pytorch issue 55902",
    ),
)
def second_softmax(loss: AuditedLoss) -> Iterator[str]:
    """The gradient is that of probabilities taken for logits, whatever the scale."""
    y = np.arange(len(loss.x)) % loss.classes
    if loss.binary:
        p = reference.sigmoid(loss.x)
        inner = reference.sigmoid_cross_entropy(p, np.eye(loss.classes)[y]).grad
        doubled = inner * p * (1 - p)
        name = "binary cross entropy of sigmoid(x)"
    else:
        doubled = reference.cross_entropy_after_softmax(loss.x, y, "none").grad
        name = "cross entropy of softmax(x)"
    best = loss.total(60 * (2 * np.eye(loss.classes)[y] - 1), loss.labels(y)) / (
        1 if loss.reduction == "mean" else len(y)
    )
    loss.measure("CE206", f"with logits of ±60 that are all right, a row costs {best:.2g}")
    gradient = loss.derivatives(loss.x, loss.labels(y)).grad
    if loss.reduction and proportional(gradient, doubled, max(CLOSE, 100 * loss.eps)):
        yield f"its gradient is that of the {name}, to six digits; with logits of ±60 that are all right, a row costs {best:.4f}"


@register_rule(
    RULES,
    RuleDescription(
        "CE214",
        "error",
        "it pushes the true class down",
        "Descent lowers the loss, and this one becomes lower as the true class becomes less likely: training makes the model "
        "wrong, and the printed loss falls without end.",
        "The sign is missing: −log p, not log p. For log_softmax and gather: -x.log_softmax(1).gather(1, t[:, None]).mean().",
        "torch.nn.NLLLoss, whose input is log p and whose value is −log p",
    ),
)
def pushes_the_true_class_down(loss: AuditedLoss) -> Iterator[str]:
    """The gradient of the true class's logit where the model is undecided."""
    y = np.arange(len(loss.x)) % loss.classes
    x = np.zeros_like(loss.x)
    pull = -loss.derivatives(x, loss.labels(y)).grad[np.arange(len(y)), y]
    loss.measure("CE214", f"pull on the true class where the model is undecided: {float(pull.mean()):.3g} a row")
    if (pull < -TINY).all():
        named = (
            f": it is {loss.member.text}" if loss.member is not None and loss.member.text.startswith("minus") else ""
        )
        yield f"where the model is undecided, descent moves the true class by {float(pull.mean()):.3g} a row{named}"


@register_rule(
    RULES,
    RuleDescription(
        "CE215",
        "warning",
        "the mean divides by the classes too",
        "The loss is the cross entropy divided by C: a mean over all elements of a one-hot product instead of over rows. Its "
        "gradient is C times smaller, and so is every step: with 1000 classes nothing seems to learn.",
        "Sum over the classes first: -(t * log_p).sum(1).mean().",
        "torch.nn.CrossEntropyLoss: the mean of probabilities divides by rows",
    ),
)
def divides_by_the_classes(loss: AuditedLoss) -> Iterator[str]:
    """A scale of 1/C."""
    member = loss.member
    known = member is not None and member.kind == "scaled"
    scale = abs(member.number) if member is not None and known else 1.0
    loss.measure(
        "CE215", f"scale, against the cross entropy: {scale:.4g}" if known else "scale: it is no plain cross entropy"
    )
    if known and abs(scale * loss.classes - 1) < ROUGH:
        yield f"its gradient is that of the cross entropy divided by {loss.classes}, the number of classes"


@register_rule(
    RULES,
    RuleDescription(
        "CE216",
        "error",
        "smoothed targets that are no probabilities",
        "A smoothed target is a probability: over the classes of a softmax it sums to 1, and those of yes and of no sum to 1. With "
        "other targets the loss is lowest where the model is not right.",
        "t(1 − ε) + ε/C for a softmax, t(1 − ε) + ε/2 for a sigmoid; label_smoothing= of cross_entropy and of "
        "crossent.binary_cross_entropy_with_logits.",
        "Szegedy et al., Rethinking the Inception Architecture, 2016",
    ),
)
def smoothed_targets(loss: AuditedLoss) -> Iterator[str | Observation]:
    """Targets that do not sum to 1, recognised by the gradient."""
    member = loss.member
    if member is None or member.kind != "smoothed":
        loss.measure("CE216", "label smoothing: none")
        return
    loss.measure("CE216", f"label smoothing: {member.text}")
    true, others = member.targets
    if (true, others) == (1.0, 0.0):
        return
    if loss.binary and abs(true + others - 1) > ROUGH:
        yield (
            f"a yes is asked to be {true:.4g} and a no {others:.4g}, which sum to {true + others:.4g}: a model that is right about "
            f"every yes is least costly at p = {true:.4g}"
        )
    elif not loss.binary:
        total = true + others * (loss.classes - 1)
        yield Observation(
            f"the true class is asked to be {true:.4g} and each other {others:.4g}, which sum to {total:.4g}",
            why=f"For a softmax, targets that sum to {total:.4g} are {total:.4g} times targets that sum to 1: this is another "
            f"scale, and a smoothing of ε = {loss.classes * others / total:.4g}.",
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE217",
        "note",
        "a row with M labels counts M times",
        "The loss sums −log p over the labels of a row. A row with 3 labels has three times the loss and the gradient of a row "
        "with one, and no p can bring it to 0: its least value is M ln M.",
        "If rows should count alike, divide the target by its sum: t = 1/M, crossent.multilabel_cross_entropy.",
        "docs/losses.md, several labels a row",
    ),
)
def counts_several_times(loss: AuditedLoss) -> Iterator[str]:
    """Rows with several labels, in a loss that takes no class indices."""
    target = next((t for kind, t in loss.targets.items() if kind == "several labels a row"), None)
    if target is None or loss.binary or loss.indices is not None or not loss.reduction:
        loss.measure("CE217", "several labels a row: not tried")
        return
    cost = (target * reference.surprisal(loss.x)).sum(1)
    expected = cost.mean() if loss.reduction == "mean" else cost.sum()
    counts = abs(loss.total(loss.x, target) - expected) <= ROUGH * expected
    loss.measure("CE217", f"a row with M labels counts {'M times' if counts else 'otherwise than M times'}")
    if counts:
        row = int(target.sum(1).argmax())
        many = int(target[row].sum())
        yield f"row {row} has {many} labels and costs {cost[row]:.4g}, the sum over them; their mean is {cost[row] / many:.4g}"
