"""Rules about what must not change a loss that somebody wrote: a constant, the order, ignored rows, parts of a batch.

A loss of the family depends on the probabilities of each row, and a batch is its rows put together. Each rule computes the same
loss in another way, and reports where the result differs. The last one looks whether the inputs are still as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from crossent.tools.check.findings import NotApplicable, Observation, Rule, RuleDescription, register_rule
from crossent.tools.check.recognise import ROUGH, TINY
from crossent.tools.check.row_block import numbers

if TYPE_CHECKING:  # it imports torch, which a check of files does not need
    from crossent.tools.check.audited_loss import AuditedLoss

RULES: dict[str, Rule] = {}


def _may_see_constants(loss: AuditedLoss, rule: str, of_a_sigmoid: str, on_purpose: str) -> bool:
    """Whether a constant in all logits of a row may change a loss; why it may is kept as what the rule measured."""
    if loss.binary:
        loss.measure(rule, of_a_sigmoid)
    elif loss.member is not None and loss.member.shifts:
        loss.measure(rule, f"{on_purpose}: {loss.member.text}")
    else:
        return False
    return True


@register_rule(
    RULES,
    RuleDescription(
        "CE204",
        "error",
        "adding a constant changes the loss",
        "softmax(x + a) = softmax(x): only differences of a row's logits mean anything. A loss that sees the "
        "constant pulls all logits of a row one way.",
        "Check that the softmax runs over the classes (dim=1 of (N, C)) and that nothing beside it looks at the "
        "logits; a z-loss does so on purpose. If every logit is a yes or no of its own, use a sigmoid.",
        "crossent.reference: L depends on p only",
    ),
)
def adding_a_constant(loss: AuditedLoss) -> Iterator[str]:
    """Another constant for every row."""
    if _may_see_constants(loss, "CE204", "constants: not for a sigmoid", "a constant changes it on purpose"):
        return
    a = loss.random.uniform(1.0, 3.0, size=(len(loss.x), 1))
    before, after = loss.value(loss.x, loss.target), loss.value(loss.x + a, loss.target)
    loss.measure("CE204", f"a constant added to a row changes it by {loss.far_apart(after, before):.1e}")
    if loss.far_apart(after, before) > loss.exact:
        yield f"the loss is {before.sum():.6g}, and {after.sum():.6g} after adding {numbers(a[:, 0])} to the rows"


@register_rule(
    RULES,
    RuleDescription(
        "CE205",
        "error",
        "the gradient of a row does not sum to 0",
        "p and a target that sums to 1 both sum to 1: what the true class is pulled up, the others are pushed down. "
        "A sum that is not 0 moves all logits of a row together, without changing any probability, until they "
        "overflow.",
        "The gradient is mass · p − t with mass = Σ t: not p − t where a row has several labels.",
        "crossent.reference: ∂L/∂x = mass · p − w ∘ t",
    ),
)
def sum_of_the_gradient(loss: AuditedLoss) -> Iterator[str]:
    """The sum over classes, for every kind of target."""
    if _may_see_constants(loss, "CE205", "sum of the gradient: not for a sigmoid", "its sum is not 0 on purpose"):
        return
    wrong, worst, seen = [], 0.0, ""
    for kind, target in loss.targets.items():
        grad = loss.derivatives(loss.x, target).grad
        far = np.abs(grad.sum(1)) / max(np.abs(grad).max(), 1e-12)
        worst, row = max(worst, float(far.max())), int(far.argmax())
        if far.max() > loss.exact:
            wrong.append(kind)
            seen = f"row {row}: {numbers(grad[row], 8)} sum to {grad[row].sum():.4g}"
    loss.measure("CE205", f"the gradient of a row sums to {worst:.1e} of its largest entry at most")
    if wrong:
        yield f"with {' and '.join(wrong)}, {seen}"


@register_rule(
    RULES,
    RuleDescription(
        "CE208",
        "error",
        "the order of the rows changes the loss",
        "A loss of a batch is a sum over its rows. If their order matters, rows are mixed: a softmax over the batch "
        "(dim=0), or a target that is broadcast along the wrong axis.",
        "Softmax and sums over classes: dim=1 (or −1) of logits (N, C).",
        "crossent's laws: permutation",
    ),
)
def order_of_the_rows(loss: AuditedLoss) -> Iterator[str]:
    """Shuffled rows, with their targets."""
    order = loss.random.permutation(len(loss.x))
    before, after = loss.value(loss.x, loss.target), loss.value(loss.x[order], loss.target[order])
    expected = before[order] if before.ndim and len(before) == len(order) else before
    grads = loss.derivatives(loss.x, loss.target).grad[order], loss.derivatives(loss.x[order], loss.target[order]).grad
    far = max(loss.far_apart(after, expected), loss.far_apart(grads[1], grads[0]))
    loss.measure("CE208", f"another order of the rows changes it by {far:.1e}")
    if far > loss.exact:
        yield f"the loss is {before.sum():.6g}, and {after.sum():.6g} with the rows in another order; gradients differ by {far:.1e}"


@register_rule(
    RULES,
    RuleDescription(
        "CE209",
        "error",
        "ignored rows change the loss",
        "Padding must cost nothing: no loss, no gradient, and no share in what the mean divides by. Otherwise a "
        "batch with more padding learns less, or learns to predict it.",
        "Multiply the rows' losses by (target != ignore_index) and divide by the sum of that, or use ignore_index= "
        "of cross_entropy.",
        "torch.nn.CrossEntropyLoss: ignore_index",
        also=("warning",),
    ),
)
def ignored_rows(loss: AuditedLoss) -> Iterator[Observation]:
    """Two more rows with the ignored label."""
    y = loss.indices
    if y is None:
        loss.measure("CE209", "ignored rows: not tried, it takes no class indices")
        return
    more = np.concatenate([loss.x, loss.random.normal(size=(2, loss.classes)) * 3])
    labels = np.concatenate([y, [loss.ignore_index] * 2])
    try:
        before, after = loss.derivatives(loss.x, y), loss.derivatives(more, labels)
    except NotApplicable:
        loss.measure("CE209", f"ignored rows: not tried, it refuses the label {loss.ignore_index}")
        return
    n = len(y)
    far = max(loss.far_apart(after.value.sum(), before.value.sum()), loss.far_apart(after.grad[:n], before.grad))
    push = float(np.abs(after.grad[n:]).max())
    loss.measure("CE209", f"two ignored rows change it by {far:.1e}")
    share = n / (n + 2)
    diluted = max(
        loss.far_apart(after.value.sum(), share * before.value.sum()),
        loss.far_apart(after.grad[:n], share * before.grad),
    )
    if far > loss.exact and diluted <= loss.exact and push <= TINY:
        yield Observation(
            f"{n} rows cost {before.value.sum():.6g}, and {after.value.sum():.6g} with 2 ignored rows besides: the mean divides "
            f"by {n + 2} rows, of which {n} count",
            why="Ignored rows cost nothing, but the mean divides by them as well: a batch with more padding learns less.",
            fix="Divide by (target != ignore_index).sum(), as ignore_index= of cross_entropy does, and not by the number of rows.",
        )
    elif far > loss.exact or push > TINY:
        on_purpose = (
            loss.member is not None and loss.member.shifts
        )  # a z-loss that counts them too: small, and no wrong label
        yield Observation(
            f"{n} rows cost {before.value.sum():.6g}; with 2 rows of label {loss.ignore_index} besides "
            f"{after.value.sum():.6g}, and their largest gradient is {push:.3g}",
            "warning" if on_purpose else "error",
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE210",
        "error",
        "micro-batches do not add up",
        "The loss of a batch should be what its parts give, weighted by their rows: then gradient accumulation and "
        "data parallelism train the same model. A loss that mixes rows, or divides by something else than rows, "
        "does not.",
        "Reduce by the sum over rows or by their mean. Nothing else may depend on how many rows there are.",
        "huggingface/transformers pull request 34191",
    ),
)
def micro_batches(loss: AuditedLoss) -> Iterator[str | Observation]:
    """Two parts of different sizes against the whole."""
    if not loss.reduction:
        loss.measure("CE210", f"all rows twice give {loss.twice:.4g} times the loss")
        yield f"all rows twice give {loss.twice:.4g} times the loss: a mean gives 1, a sum 2"
        return
    if _is_mean_of_class_means(loss):
        loss.measure("CE210", "it is the mean of the classes' means")
        yield Observation(
            "the loss of all rows is the mean over classes of their means",
            why="A mean of means gives every class the same say in a batch, whatever its number of rows: a row of a class that is "
            "rare in this batch weighs more than in another, and parts of a batch do not add up to the whole.",
            fix="Use class weights, which do not depend on the batch: weight= of cross_entropy, "
            'reduction="sum" and one denominator= for all micro-batches.',
        )
        return
    if loss.member is not None and loss.member.kind == "weighted":
        loss.measure("CE210", "not tried: class weights, so that micro-batches count by the sum of their weights")
        return
    n, cut = len(loss.x), len(loss.x) // 3
    parts = [slice(0, cut), slice(cut, n)]
    whole = loss.derivatives(loss.x, loss.target)
    value, grad = 0.0, np.zeros_like(whole.grad)
    for part in parts:
        share = (part.stop - part.start) / n if loss.reduction == "mean" else 1.0
        of_part = loss.derivatives(loss.x[part], loss.target[part])
        value += share * float(of_part.value.sum())
        grad[part] = share * of_part.grad
    far = max(loss.far_apart(np.asarray(value), whole.value.sum()), loss.far_apart(grad, whole.grad))
    loss.measure("CE210", f"micro-batches and the whole differ by {far:.1e}")
    if far > loss.exact:
        yield (
            f"{n} rows give {whole.value.sum():.6g}; parts of {cut} and {n - cut}, weighted by rows, {value:.6g} "
            f"(gradients differ by {far:.1e})"
        )


def _is_mean_of_class_means(loss: AuditedLoss) -> bool:
    y = np.append(np.arange(len(loss.x) - 2) % loss.classes, [0, 0])
    with suppress(NotApplicable):
        whole = loss.total(loss.x, loss.labels(y))
        each = [loss.total(loss.x[y == k], loss.labels(y[y == k])) for k in sorted(set(y.tolist()))]
        rows = [loss.total(loss.x[i : i + 1], loss.labels(y[i : i + 1])) for i in range(len(y))]
        apart = abs(float(np.mean(rows)) - whole) > ROUGH * abs(whole)
        return apart and loss.reduction != "none" and abs(float(np.mean(each)) - whole) <= TINY * abs(whole)
    return False


@register_rule(
    RULES,
    RuleDescription(
        "CE213",
        "error",
        "it writes to its inputs",
        "Whoever uses the logits or the labels afterwards, such as the accuracy in the next line, sees other "
        "numbers; and autograd raises, or differentiates what is no longer there.",
        "No operations that end in _ (exp_, sub_, scatter_) and no x[...] = on what was passed in: work on a copy.",
        "torch: in-place correctness checks",
    ),
)
def writes_to_inputs(loss: AuditedLoss) -> Iterator[str]:
    """Both inputs before and after."""
    changed = loss.writes()
    loss.measure("CE213", f"it changes {' and '.join(changed)}" if changed else "it writes to neither input")
    if changed:
        yield f"the call changes {' and '.join(changed)}"
