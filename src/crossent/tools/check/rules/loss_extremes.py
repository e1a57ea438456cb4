"""Rules about logits that are sure, large or infinite, given to a loss that somebody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from crossent import reference
from crossent.reference import Array
from crossent.tools.check.findings import Rule, RuleDescription, register_rule
from crossent.tools.check.row_block import numbers

if TYPE_CHECKING:  # it imports torch, which a check of files does not need
    from crossent.tools.check.audited_loss import AuditedLoss

RULES: dict[str, Rule] = {}


@register_rule(
    RULES,
    RuleDescription(
        "CE207",
        "warning",
        "no pull where it is sure and wrong",
        "The gradient of 1 − p, of a difference, or of a second softmax contains a factor p(1 − p), which vanishes "
        "exactly where the model is confidently wrong: such rows are never learned. The gradient of a clipped "
        "logarithm, log(p + 1e-8), vanishes there too. With cross entropy the pull is 1 − p, nearly 1.",
        "Use −log p: cross_entropy, or binary_cross_entropy_with_logits where every class is a yes or no. Losses "
        "against wrong labels (MAE, GCE) do this on purpose.",
        'docs/why-cross-entropy.md, "Why not sigmoid and a difference?"',
    ),
)
def no_pull(loss: AuditedLoss) -> Iterator[str]:
    """The gradient of the true class's logit, undecided and far on the wrong side."""
    y = np.zeros(len(loss.x), np.int64)
    pulls = {}
    for margin in (0.0, 10.0, 30.0):
        x = np.zeros_like(loss.x)
        x[:, 0], x[:, 1] = -margin / 2, margin / 2
        pulls[margin] = -float(loss.derivatives(x, loss.labels(y)).grad[:, 0].sum())
    undecided = pulls.pop(0.0)
    if undecided <= 0:
        loss.measure("CE207", "not tried: it does not pull the true class up where the model is undecided")
        return
    loss.measure(
        "CE207",
        "pull when wrong by 10 and by 30, against undecided: "
        + ", ".join(f"{pull / undecided:.2g}" for pull in pulls.values()),
    )
    for margin, pull in pulls.items():
        if pull < 0.1 * undecided:
            note = _which_loss(loss)
            yield (
                f"the pull on the true class is {undecided:.3g} where the model is undecided and {pull:.3g} where its logit is "
                f"{margin:g} below that of a wrong class{note}"
            )
            return


def _which_loss(loss: AuditedLoss) -> str:
    y = np.arange(len(loss.x)) % loss.classes
    value = loss.total(loss.x, loss.labels(y))
    each = reference.sigmoid_difference(loss.x, np.eye(loss.classes)[y], "none").loss
    if loss.binary and any(abs(value - size) < 1e-6 * value for size in (each.mean(), each.sum())):
        return "; it is sigmoid and difference, the mean absolute error"
    return ""


@register_rule(
    RULES,
    RuleDescription(
        "CE211",
        "error",
        "large logits give nan or inf",
        "exp overflows in float32 beyond 88, and log 0 is −inf: one sure row makes the mean nan and ends the training.",
        "Never log(softmax(x)): log_softmax(x), or cross_entropy(x, t), which subtract the largest logit first. For "
        "a sigmoid logsigmoid(x), or binary_cross_entropy_with_logits.",
        "crossent.reference.surprisal",
    ),
)
def large_logits(loss: AuditedLoss) -> Iterator[str]:
    """Sure rows, right and wrong, in float32."""
    y = np.arange(len(loss.x)) % 2
    sign = np.where(np.arange(loss.classes) == 0, 1.0, -1.0)
    sign[2:] = 0.0
    for size in (20.0, 100.0, 1e4):
        got = loss.in_float32(np.tile(size * sign, (len(loss.x), 1)), loss.labels(y))
        bad = [name for name, values in (("loss", got.value), ("gradient", got.grad)) if not np.isfinite(values).all()]
        if bad:
            loss.measure("CE211", f"not finite for logits of ±{size:g} in float32")
            what = " and the ".join(bad)
            yield f"with logits of {size:g}, −{size:g} and 0 in float32 the {what} of sure rows are not finite ({_worst(got)})"
            return
    loss.measure("CE211", "finite for logits of ±1e4 in float32")


def _worst(got: tuple[Array, Array]) -> str:
    value, grad = got
    broken = ~np.isfinite(grad).all(1)
    row = int(broken.argmax())
    total = f"loss {value.sum():.4g}"
    return (
        f"{total}, gradient of row {row} {numbers(grad[row])}" if broken.any() else f"{total}, the gradient is finite"
    )


@register_rule(
    RULES,
    RuleDescription(
        "CE212",
        "warning",
        "a masked class gives nan or inf",
        "A class with a logit of −inf has p = 0. If the target does not ask for it, it costs nothing: 0 · log 0 is "
        "0, but 0 · (−inf) in floating point is nan. A smoothed target asks for a little of it: inf.",
        "Pick the target's −log p instead of multiplying by a one-hot target, or torch.where(t == 0, 0, t * log_p); "
        "class_mask= of crossent.cross_entropy.",
        "google-deepmind/optax issue 896",
    ),
)
def masked_class(loss: AuditedLoss) -> Iterator[str]:
    """-inf in a class that no target asks for."""
    if loss.binary:
        loss.measure("CE212", "−inf: not tried for a sigmoid")
        return
    x = loss.x.copy()
    x[:, -1] = -np.inf
    got = loss.derivatives(x, loss.labels(np.arange(len(x)) % (loss.classes - 1)))
    finite = np.isfinite(got.value).all() and np.isfinite(got.grad).all()
    loss.measure("CE212", f"{'finite' if finite else 'not finite'} with −inf for a class that no row asks for")
    if not finite:
        yield f"with −inf for a class that no row asks for: {_worst(got)}"
