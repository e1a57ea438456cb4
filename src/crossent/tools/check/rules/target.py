"""Rules about targets, and about the weights and the smoothing that go with them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from crossent.tools.check.facts import Facts
from crossent.tools.check.findings import Observation, Rule, RuleDescription, Severity, register_rule
from crossent.tools.check.row_block import numbers

RULES: dict[str, Rule] = {}


# --- labels -----------------------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE114",
        "error",
        "labels that are no class",
        "Class indices are 0 to C − 1. On the CPU torch raises an IndexError, on a GPU a device-side assert ends "
        "the process. Labels that start at 1 go unnoticed while the last class is missing, or where the model has "
        "one logit too many.",
        "If labels start at 1, subtract 1. What is to be left out needs ignore_index=.",
        "pytorch/pytorch issues 1204 and 18014",
        also=("warning",),
    ),
)
def labels_that_are_no_class(facts: Facts) -> Iterator[Observation]:
    """Labels out of range, or from 1 to C."""
    target, C = facts.target, facts.C
    if facts.layout.kind != "indices" or C == 1:  # one class is another rule's
        return
    if target.outside.count:
        low, high = int(target.low), int(target.high)
        text = f"labels from {low} to {high} for {C} classes, 0 to {C - 1}: {target.outside.of(target.rows)}"
        if low == 1 and high == C:
            yield Observation(text, fix="The labels start at 1: subtract 1.")
        elif low == 0 and high == 255 and C == 2 and target.counts[1] == 0:
            yield Observation(
                text, fix="A mask of 0 and 255 for two classes: labels // 255. If 255 means unknown, ignore_index=255."
            )
        elif low < 0 or high == 255:
            odd = low if low < 0 else 255
            yield Observation(text, fix=f"If {odd} means nothing to be learned, pass ignore_index={odd}.")
        else:
            yield Observation(
                text, fix="Compare the labels with the number of logits: the model needs one for every class."
            )
        return
    n, counts = int(target.counts.sum()), target.counts
    # Would class 0 be missing by chance, were it as frequent as the rarest of the others?
    if C > 2 and counts[0] == 0 and np.all(counts[1:] > 0) and facts.options.ignored != 0:
        rarest = int(counts[1:].min())
        if rarest >= 10:
            text = (
                f"class 0 never occurs in {n:,} labels, and every class from 1 to {C - 1} at least {rarest} times: "
                f"do labels start at 1, for {C - 1} classes?"
            )
            yield Observation(
                text,
                "warning",
                why="The model then has a logit that is only ever pushed down, and predicts one class too many.",
            )


@register_rule(
    RULES,
    RuleDescription(
        "CE116",
        "error",
        "target of the wrong shape or dtype",
        "torch reads a floating target of the logits' shape as probabilities and anything else as class indices, "
        "int64 or uint8, of that shape without the class axis. Its messages about other targets are hard to read.",
        "Class indices: (N, d1, ...) and long. Probabilities: the logits' shape and floating. Binary: the logits' "
        "shape and floating.",
        "torch.nn.CrossEntropyLoss",
        also=("warning",),
    ),
)
def target_of_the_wrong_kind(facts: Facts) -> Iterator[Observation]:
    """Shapes and dtypes that torch refuses."""
    misfit = facts.layout.misfit
    if facts.target.broken.count:
        what = "labels that are no whole numbers" if facts.layout.kind == "indices" else "targets that are nan or inf"
        yield Observation(
            f"{what} in {facts.target.broken.of(facts.target.rows)}", fix="Look where these rows were labelled."
        )
    if misfit is not None:
        # What a file stores is not yet what the loss is given: a dtype is none of its own, a shape stays what it is.
        dtype_only = misfit.fix.startswith(("target.long()", "target.float()"))
        if dtype_only and facts.options.stored:
            return
        severity: Severity = "warning" if misfit.fix in ("target.long()", "target.float()") else "error"
        why = "torch takes a floating target of the logits' shape and raises a RuntimeError or ValueError for others."
        yield Observation(misfit.seen, severity, why if facts.options.binary else None, misfit.fix)


@register_rule(
    RULES,
    RuleDescription(
        "CE105",
        "error",
        "soft targets that are no probabilities",
        "Nothing checks that probability targets are probabilities. Negative ones reward being wrong, so that the loss "
        "has no lower bound. A row that sums to M counts M times, with the gradient M · p − t. torch gives no "
        "warning.",
        "Divide each row by its sum: for several labels crossent.multilabel_cross_entropy does (t = 1/M). If "
        "classes do not exclude each other, a sigmoid: binary_cross_entropy_with_logits, which is checked with "
        '--task multilabel, task="multilabel" in Python.',
        "pytorch/pytorch issue 152437",
        also=("warning",),
    ),
)
def soft_targets(facts: Facts) -> Iterator[str | Observation]:
    """Negative weights, or rows that do not sum to 1."""
    target = facts.target
    if facts.layout.kind != "weights" or facts.options.binary or facts.C == 1:
        return
    if target.negative.count:
        yield f"negative targets in {target.negative.of(target.rows)}"
    if target.off_sum.count:
        low, high = target.sums
        text = f"rows that sum to {low:.4g}" if low == high else f"rows that sum to between {low:.4g} and {high:.4g}"
        yield Observation(f"{text}: {target.off_sum.of(target.rows)}", "warning")


@register_rule(
    RULES,
    RuleDescription(
        "CE106",
        "error",
        "every target is ignored",
        "The mean over nothing is nan, in torch by design. Its gradient is 0, but a nan that is added to other "
        "losses or averaged over micro-batches makes those nan as well.",
        'empty="zero" of crossent.cross_entropy, or skip the batch. With accumulation: reduction="sum", divided by the count over '
        "all micro-batches (denominator=).",
        "pytorch/pytorch issues 70348 and 116349",
        also=("note",),
    ),
)
def every_target_ignored(facts: Facts) -> Iterator[str | Observation]:
    """Nothing is left of the whole, or of a micro-batch."""
    if not facts.has_target or facts.target.rows == 0:
        return
    ignored = f"{facts.options.ignored:g}" if facts.options.ignored is not None else "none"
    if facts.counted == 0:
        text = f"all {facts.target.rows:,} targets are ignore_index={ignored}"
        as_wanted = Observation(
            text,
            "note",
            "The loss is 0 with a gradient of 0: this batch teaches nothing.",
            "Nothing, if such batches are rare.",
        )
        yield as_wanted if facts.options.empty == "zero" else text
        return
    empty = [k for k, part in enumerate(facts.loss.parts) if part.counted == 0]
    if empty:
        which = ", ".join(map(str, empty[:4])) + (", …" if len(empty) > 4 else "")
        many = f"{len(empty)} of {len(facts.loss.parts)} micro-batches of {facts.options.micro_batch} rows"
        yield f"{many} hold ignore_index={ignored} only: number {which}, counted from 0"


@register_rule(
    RULES,
    RuleDescription(
        "CE121",
        "warning",
        "a mean of means",
        "The mean over micro-batches of their means is not the mean over rows where they count different numbers of "
        "rows: a row in a short one weighs more. Gradient accumulation and data parallelism do this without a warning.",
        'reduction="sum" in every micro-batch, divided by the number of rows that count in all of them: denominator= of '
        "crossent.cross_entropy.",
        "huggingface/transformers pull request 34191",
    ),
)
def mean_of_means(facts: Facts) -> Iterator[str]:
    """Micro-batches that count different numbers of rows, and differ in their mean."""
    full = [part for part in facts.loss.parts if part.counted]
    counted = [part.counted for part in full]
    if len(full) < 2 or min(counted) == max(counted) or facts.loss.loss.n == 0:
        return
    means, mean = float(np.mean([part.loss.value for part in full])), facts.loss.loss.value
    if abs(means - mean) > 0.01 * abs(mean):
        yield (
            f"micro-batches of {facts.options.micro_batch} rows count between {min(counted)} and {max(counted)} of them: the mean "
            f"of their means is {means:.4f}, the mean over rows {mean:.4f}"
        )


# --- language models --------------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE108",
        "error",
        "labels of the wrong position",
        "The logits at position t say which token comes at t + 1. Against the token at t a model that sees it "
        "learns to copy: the loss falls to 0, and nothing was learned. Where data and loss both shift, it learns "
        "the token after the next.",
        "Shift once: cross_entropy(logits[:, :-1], labels[:, 1:]). Models of transformers shift inside, and want "
        "labels = input_ids.",
        "transformers, ForCausalLMLoss",
        also=("note",),
    ),
)
def labels_of_the_wrong_position(facts: Facts) -> Iterator[Observation]:
    """Labels that are the input, or that suit the logits of another position."""
    if facts.options.task != "lm" or not facts.has_target:
        return
    if facts.pairs and facts.options.inputs is not None:
        yield from _against_inputs(facts)
        return
    here, name = (
        facts.loss.near[0],
        "pairs of logits at t and label at t + 1" if facts.options.shift else "pairs as given",
    )
    for k in (1, -1):
        there = facts.loss.near[k]
        if min(here.n, there.n) >= 20 and here.above(there) > 5 and there.value < 0.9 * here.value:
            where = "one position later" if k > 0 else "one position earlier"
            fix = "The loss shifts and the data does too: let one of them do it." if facts.options.shift else None
            yield Observation(
                f"the loss of {name} is {here.value:.4f}, with the labels {where} {there.value:.4f} ({here.n:,} tokens)",
                fix=fix,
            )
            return
    share = facts.loss.right / max(here.n, 1)
    if here.n >= 100 and share >= 0.99:
        text = f"{100 * share:.1f}% of {here.n:,} tokens are predicted: real text is not that predictable"
        yield Observation(
            text, "note", fix="Check that the labels are not the input: give inputs= as well, and the two are compared."
        )


def _against_inputs(facts: Facts) -> Iterator[Observation]:
    """Compare labels with the input: they must be what comes next."""
    ahead = {k: n == facts.pairs for k, n in facts.ahead.items()}
    if ahead.get(1, False):
        return
    if ahead.get(0, False):
        yield Observation(f"the label of every position is its own input, for all {facts.pairs:,} tokens that count")
    elif ahead.get(2, False):
        yield Observation(
            f"the label of every position is the input two positions on, for all {facts.pairs:,} tokens that count",
            fix="The data is shifted and the loss shifts again: let one of them do it.",
        )


# --- weights and smoothing --------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE109",
        "error",
        "class weights against label smoothing",
        "The smoothed target is multiplied by the weights, so the ε/C that every class gets is worth more for a "
        "rare class. Once its weight is more than 1 + C(1 − ε)/ε times that of a row's own class, the loss is least "
        "where the rare class wins that row too.",
        "Smaller weights (their square root, or the effective number), less smoothing, or logit_bias= with the log "
        "of the frequencies instead of weights.",
        "pytorch/pytorch issue 104776, where accuracy fell to 0.0008",
    ),
)
def weights_against_smoothing(facts: Facts) -> Iterator[str]:
    """A ratio of weights past the threshold, for a class that occurs."""
    weight, smoothing, C = facts.options.weight, facts.options.label_smoothing, facts.C
    if weight is None or smoothing == 0 or facts.options.binary or len(weight) != C:
        return
    used = (weight > 0) & ((facts.target.counts > 0) if facts.has_target else True)
    if not used.any():
        return
    rare = int(np.argmax(weight))
    own = int(np.argmin(np.where(used, weight, np.inf)))
    ratio, limit = float(weight[rare] / weight[own]), 1 + C * (1 - smoothing) / smoothing
    if ratio > limit:
        t = np.full(C, smoothing / C)
        t[own] += 1 - smoothing
        best = weight * t / (weight * t).sum()
        yield (
            f"the weight of class {rare} is {ratio:.4g} times that of class {own}, more than {limit:.4g} for "
            f"label_smoothing={smoothing:g} and {C} classes: a row of class {own} costs least at p({own}) = {best[own]:.3f}, "
            f"p({rare}) = {best[rare]:.3f}"
        )


# --- binary -----------------------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE111",
        "error",
        "binary targets outside [0, 1]",
        "The loss (1 − t) x + ln(1 + e^−x) of a target t above 1 falls without end as x grows: at t = 255 it is "
        "−2540 for a logit of 10. torch gives no warning.",
        "Masks of 0 and 255: divide by 255, or mask > 127. Labels of −1 and 1: (t + 1) / 2. What is to be left out "
        "needs ignore_index= or mask= of crossent.binary_cross_entropy_with_logits.",
        "pytorch/pytorch issues 110865 and 123339; milesial/Pytorch-UNet issue 65",
    ),
)
def binary_targets_outside(facts: Facts) -> Iterator[Observation]:
    """Targets below 0 or above 1."""
    target = facts.target
    if not facts.options.binary or not target.outside.count:
        return
    low, high = target.low, target.high
    text = f"targets from {low:.4g} to {high:.4g}: {target.outside.of(target.rows)}"
    if (low, high) == (-1, 1):
        yield Observation(text, fix="Labels of −1 and 1: (t + 1) / 2. If −1 means unknown: ignore_index=-1.")
    elif low >= 0 and high > 1:
        masks = f"Masks of 0 and {high:.4g} only: divide by {high:.4g}, or t == {high:.4g}"
        unknown = f"if {high:.4g} means unknown, ignore_index={high:.4g}"
        fix = "Labels of 1 and 2: subtract 1." if (low, high) == (1, 2) else f"{masks}; {unknown}."
        yield Observation(text, fix=fix)
    else:
        yield Observation(text)


@register_rule(
    RULES,
    RuleDescription(
        "CE112",
        "error",
        "pos_weight along the wrong axis",
        "pos_weight broadcasts from the last axis, as everything in NumPy and torch. For images (N, C, H, W) a "
        "vector of C numbers lies along W, and torch notices only if W is not C; for logits (N) a vector lies along "
        "the rows.",
        "pos_weight.reshape(-1, 1, 1) for (N, C, H, W), or dim=1 of crossent.binary_cross_entropy_with_logits. For "
        "one logit a row pos_weight is a single number.",
        "pytorch/pytorch issues 27936 and 82496",
    ),
)
def pos_weight_along_the_wrong_axis(facts: Facts) -> Iterator[Observation]:
    """A vector that meets another axis than that of the classes."""
    pos_weight, shape = facts.options.pos_weight, facts.layout.shape
    if not facts.options.binary or pos_weight is None or prod(pos_weight.shape) == 1 or facts.options.dim is not None:
        return
    given = f"pos_weight of shape {pos_weight.shape} ({numbers(pos_weight.reshape(-1))}) for logits of shape {shape}"
    behind = zip(reversed(pos_weight.shape), reversed(shape), strict=False)
    if pos_weight.ndim > len(shape) or any(a not in (1, b) for a, b in behind):
        yield Observation(f"{given}: it does not broadcast, torch refuses it", fix=_reshaped(pos_weight.shape, shape))
    elif len(shape) == 1:
        yield Observation(
            f"{given}: every row gets a weight of its own", fix="One logit a row has one pos_weight, a single number."
        )
    elif len(shape) > 2 and pos_weight.shape == (shape[1],):
        yield Observation(
            f"{given}: it lies along axis {len(shape) - 1}, not along the classes on axis 1",
            fix=_reshaped(pos_weight.shape, shape),
        )


def _reshaped(given: tuple[int, ...], shape: tuple[int, ...]) -> str | None:
    """Say how to lay a vector along axis 1."""
    if len(shape) > 2 and len(given) == 1 and given[0] == shape[1]:
        return f"pos_weight.reshape{(-1,) + (1,) * (len(shape) - 2)}, or dim=1 of crossent.binary_cross_entropy_with_logits"
    if len(given) == 1 and given[0] == 2:
        return (
            "Two numbers, for no and yes, are not wanted: pos_weight is the factor for yes, w_yes / w_no, and weight=w_no "
            "that for both."
        )
    return None
