"""Rules about a loss that somebody wrote. They see it through :class:`crossent.tools.check.audited_loss.AuditedLoss`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from crossent import reference
from crossent.reference import Array
from crossent.tools.check.findings import NotApplicable, Observation, Rule, RuleDescription, register_rule
from crossent.tools.check.row_block import numbers

if TYPE_CHECKING:  # it imports torch, and who checks files needs none
    from crossent.tools.check.audited_loss import AuditedLoss

RULES: dict[str, Rule] = {}

EXACT = 1e-9  # of float64, after a few hundred operations
COARSE = 1e-4  # of float32


def _exact(loss: AuditedLoss) -> float:
    return EXACT if loss.eps < 1e-12 else COARSE


def _far(a: Array, b: Array) -> float:
    """Compute the largest difference, relative to the larger of 1e-3 and the largest value."""
    return float(np.abs(a - b).max() / max(1e-3, np.abs(b).max()))


# --- the backward pass ------------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE201",
        "error",
        "the gradient is not that of the loss",
        "The backward pass does not belong to the forward pass: training goes down another function than the one "
        "that is printed.",
        "Write the forward pass in torch operations and leave the backward pass to autograd, or hold it to "
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
        far = _far(grad, differences)
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
            _far(scale * grad, p - target) < loss.tolerance
            and _far(scale * differences, mass * p - target) < loss.tolerance
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
    if _far(grad, ratio * differences) < loss.tolerance and abs(ratio) > 1e-6:
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
    if abs(ratio - 3) > COARSE and np.abs(once).max() > 0:
        yield f"the gradient of 3 · loss is {ratio:.4g} times that of the loss, not 3 times"


@register_rule(
    RULES,
    RuleDescription(
        "CE203",
        "warning",
        "the second derivative is wrong",
        "What is differentiated twice (gradient penalties, meta-learning, Hessians) gets a number without a word, "
        "and it is not the derivative: the backward pass uses values that were saved without their graph.",
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
    far = _far(second, differences)
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
    if _far(grad, factor[:, None] * (reference.softmax(loss.x) - t)) > loss.tolerance:
        return ""
    return (
        f"The factor in front of −log p, {numbers(factor, 3)}, is detached: the gradient is that of weights which do not depend on "
        "the logits. Take .detach() or no_grad away from it, or call it a weight, and print the weighted cross entropy."
    )


# --- the softmax ------------------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE204",
        "error",
        "adding a constant changes the loss",
        "softmax(x + a) = softmax(x): only differences of a row's logits mean anything. A loss that sees the "
        "constant pulls all logits of a row one way.",
        "See that the softmax runs over the classes (dim=1 of (N, C)) and that nothing beside it looks at the "
        "logits; a z-loss does so on purpose. If every logit is a yes or no of its own, use a sigmoid.",
        "crossent.reference: L depends on p only",
    ),
)
def adding_a_constant(loss: AuditedLoss) -> Iterator[str]:
    """Another constant for every row."""
    if loss.binary:
        loss.measure("CE204", "constants: not for a sigmoid")
        return
    if loss.member is not None and loss.member.shifts:
        loss.measure("CE204", f"a constant changes it on purpose: {loss.member.text}")
        return
    a = loss.random.uniform(1.0, 3.0, size=(len(loss.x), 1))
    before, after = loss.value(loss.x, loss.target), loss.value(loss.x + a, loss.target)
    loss.measure("CE204", f"a constant added to a row changes it by {_far(after, before):.1e}")
    if _far(after, before) > _exact(loss):
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
    if loss.binary:
        loss.measure("CE205", "sum of the gradient: not for a sigmoid")
        return
    if loss.member is not None and loss.member.shifts:
        loss.measure("CE205", f"its sum is not 0 on purpose: {loss.member.text}")
        return
    wrong, worst, seen = [], 0.0, ""
    for kind, target in loss.targets.items():
        grad = loss.derivatives(loss.x, target).grad
        far = np.abs(grad.sum(1)) / max(np.abs(grad).max(), 1e-12)
        worst, row = max(worst, float(far.max())), int(far.argmax())
        if far.max() > _exact(loss):
            wrong.append(kind)
            seen = f"row {row}: {numbers(grad[row], 8)} sum to {grad[row].sum():.4g}"
    loss.measure("CE205", f"the gradient of a row sums to {worst:.1e} of its largest entry at most")
    if wrong:
        yield f"with {' and '.join(wrong)}, {seen}"


@register_rule(
    RULES,
    RuleDescription(
        "CE206",
        "error",
        "a second softmax inside",
        "The loss squashes its input and then uses a loss that squashes again. It cannot fall below ln(e + C − 1) − "
        "1 for a softmax, or 0.3133 for every yes and 0.6931 for every no for a sigmoid, and pulls hardly at all "
        "where it is sure and wrong.",
        "Give the logits to the loss as they are: cross_entropy and binary_cross_entropy_with_logits squash "
        "themselves.",
        "pytorch/pytorch issue 55902",
    ),
)
def second_softmax(loss: AuditedLoss) -> Iterator[str]:
    """The loss is that of probabilities taken for logits."""
    y = np.arange(len(loss.x)) % loss.classes
    value = loss.total(loss.x, loss.labels(y))
    if loss.binary:
        doubled = reference.sigmoid_cross_entropy(reference.sigmoid(loss.x), np.eye(loss.classes)[y]).loss
        name = "binary cross entropy of sigmoid(x)"
    else:
        doubled = reference.cross_entropy_after_softmax(loss.x, y, "none").loss
        name = "cross entropy of softmax(x)"
    sizes = {"mean": doubled.mean(), "sum": doubled.sum(), "none": doubled.sum()}
    best = loss.total(60 * (2 * np.eye(loss.classes)[y] - 1), loss.labels(y)) / (
        1 if loss.reduction == "mean" else len(y)
    )
    loss.measure("CE206", f"with logits of ±60, all right, a row costs {best:.2g}")
    if loss.reduction and abs(value - sizes[loss.reduction]) <= 1e-6 * abs(value):
        yield f"the loss is {name}, to six digits; with logits of ±60, all right, that of a row is still {best:.4f}"


@register_rule(
    RULES,
    RuleDescription(
        "CE207",
        "warning",
        "no pull where it is sure and wrong",
        "The gradient of 1 − p, of a difference, or of a second softmax contains a factor p(1 − p), which vanishes "
        "exactly where the model is confidently wrong: such rows are never learned. So does that of a clipped "
        "logarithm, log(p + 1e-8). With cross entropy the pull is 1 − p, nearly 1.",
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


# --- rows -------------------------------------------------------------------------------------------------------------


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
    far = max(_far(after, expected), _far(grads[1], grads[0]))
    loss.measure("CE208", f"another order of the rows changes it by {far:.1e}")
    if far > _exact(loss):
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
    far = max(_far(after.value.sum(), before.value.sum()), _far(after.grad[:n], before.grad))
    push = float(np.abs(after.grad[n:]).max())
    loss.measure("CE209", f"two ignored rows change it by {far:.1e}")
    share = n / (n + 2)
    diluted = max(_far(after.value.sum(), share * before.value.sum()), _far(after.grad[:n], share * before.grad))
    if far > _exact(loss) and diluted <= _exact(loss) and push <= EXACT:
        yield Observation(
            f"{n} rows cost {before.value.sum():.6g}, and {after.value.sum():.6g} with 2 ignored rows besides: the mean divides "
            f"by {n + 2} rows, of which {n} count",
            why="Ignored rows cost nothing, but the mean divides by them as well: a batch with more padding learns less.",
            fix="Divide by (target != ignore_index).sum(), as ignore_index= of cross_entropy does, and not by the number of rows.",
        )
    elif far > _exact(loss) or push > EXACT:
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
            fix="Say it with class weights, which do not depend on the batch: weight= of cross_entropy, "
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
    far = max(_far(np.asarray(value), whole.value.sum()), _far(grad, whole.grad))
    loss.measure("CE210", f"micro-batches and the whole differ by {far:.1e}")
    if far > _exact(loss):
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
        apart = abs(float(np.mean(rows)) - whole) > COARSE * abs(whole)
        return apart and loss.reduction != "none" and abs(float(np.mean(each)) - whole) <= EXACT * abs(whole)
    return False


# --- numbers ----------------------------------------------------------------------------------------------------------


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
        yield f"{' and '.join(changed)} are other numbers after the call"


# --- what it is beside the cross entropy ------------------------------------------------------------------------------


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
    if (pull < -EXACT).all():
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
    if known and abs(scale * loss.classes - 1) < COARSE:
        yield f"its gradient is that of the cross entropy divided by {loss.classes}, the number of classes"


@register_rule(
    RULES,
    RuleDescription(
        "CE216",
        "error",
        "smoothed targets that are none",
        "A smoothed target is a probability: over the classes of a softmax it sums to 1, and those of yes and of no sum to 1. One "
        "that does not has its least loss elsewhere than where the model is right.",
        "t(1 − ε) + ε/C for a softmax, t(1 − ε) + ε/2 for a sigmoid; label_smoothing= of cross_entropy and of "
        "crossent.binary_cross_entropy_with_logits.",
        "Szegedy et al., Rethinking the Inception Architecture, 2016",
    ),
)
def smoothed_targets(loss: AuditedLoss) -> Iterator[str]:
    """Targets that do not sum to 1, recognised by the gradient."""
    member = loss.member
    if member is None or member.kind != "smoothed":
        loss.measure("CE216", "label smoothing: none")
        return
    loss.measure("CE216", f"label smoothing: {member.text}")
    true, others = member.targets
    if (true, others) == (1.0, 0.0):
        return
    if loss.binary and abs(true + others - 1) > COARSE:
        yield (
            f"a yes is asked to be {true:.4g} and a no {others:.4g}, which sum to {true + others:.4g}: a model that is right about "
            f"every yes is least costly at p = {true:.4g}"
        )
    elif not loss.binary:
        total = true + others * (loss.classes - 1)
        yield f"the true class is asked to be {true:.4g} and each other {others:.4g}, which sum to {total:.4g}"


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
    counts = abs(loss.total(loss.x, target) - expected) <= COARSE * expected
    loss.measure("CE217", f"a row with M labels counts {'M times' if counts else 'otherwise than M times'}")
    if counts:
        row = int(target.sum(1).argmax())
        many = int(target[row].sum())
        yield f"row {row} has {many} labels and costs {cost[row]:.4g}, the sum over them; their mean is {cost[row] / many:.4g}"
