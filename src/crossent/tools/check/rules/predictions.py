"""Rules about what is predicted, beside what is labelled: runs that are stuck, and labels that belong elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np

from crossent.tools.check.facts import Facts
from crossent.tools.check.findings import Observation, Rule, RuleDescription, register_rule
from crossent.tools.check.matches import named_permutation
from crossent.tools.check.other_rows import ROWS, opposite
from crossent.tools.check.rules.loss_curve import levels, stays_at

RULES: dict[str, Rule] = {}

FEW = 20  # rows, below which a pattern may be chance
NEARLY_ALL = 0.995


def _class(facts: Facts, k: int) -> str:
    names = facts.options.class_names
    return f"class {k}" + (f" ({names[k]})" if len(names) == facts.C and names[k] != str(k) else "")


def _uniform(facts: Facts) -> bool:
    return bool(np.abs(facts.loss.p * facts.C - 1).max() < 0.02)


@register_rule(
    RULES,
    RuleDescription(
        "CE122",
        "warning",
        "the logits do not depend on the row",
        "The same answer for every input: the layers before have stopped telling inputs apart. The usual causes are units "
        "that are 0 for all inputs (dead ReLUs after a step that was too large), inputs that are all the same, or a model in "
        "which only the last bias learns.",
        "A learning rate ten times smaller and a fresh start, since dead units do not come back; normalised inputs; and check "
        "that two different inputs give different values in each layer.",
        "S. Lu et al., Dying ReLU and Initialization, 2019",
    ),
)
def logits_of_no_row(facts: Facts) -> Iterator[str]:
    """A model that has been trained and predicts the same for all rows, and not all classes alike."""
    prior = levels(facts).prior
    at_the_prior = prior is not None and abs(facts.loss.loss.value - prior) <= 0.01 * prior  # another rule says so
    constant = facts.loss.p_rows >= FEW and facts.loss.spread < 1e-3
    if facts.options.live or not constant:
        return
    if not facts.options.binary and (facts.C == 1 or _uniform(facts) or at_the_prior):  # other rules'
        return
    p = ", ".join(f"{p:.3g}" for p in facts.loss.p[:4]) + (", …" if facts.C > 4 else "")
    yield f"p is {p} in all {facts.loss.p_rows:,} rows, within 0.1% ({facts.logits.example})"


@register_rule(
    RULES,
    RuleDescription(
        "CE123",
        "warning",
        "one class takes all predictions",
        "Whatever the input, the same class has the largest logit, though the labels name others. The loss may look small. The "
        "usual causes are class weights that are far from the frequencies, a learning rate that is too large, or batches of one "
        "class at a time.",
        "Compare class weights with the frequencies (n / (C · n_k) is already a lot), shuffle the rows, and try a smaller learning "
        "rate. For a decision that allows for imbalance: logit_bias= with the log of the frequencies.",
        "crossent train digits-imbalanced",
    ),
)
def one_class_takes_all(facts: Facts) -> Iterator[str]:
    """One class nearly always predicted, and far less often labelled."""
    rows, predicted = facts.matches.rows, facts.matches.predicted
    if facts.options.live or rows < 2 * FEW or facts.layout.kind == "" or facts.loss.spread < 0.05:
        return
    if facts.options.binary:
        if facts.C > 1 or facts.loss.loss.n == 0:
            return
        yes = float(predicted[0]) / rows
        share = float(facts.target.counts[0]) / facts.loss.loss.n
        taken, labelled, name = (yes, share, "yes") if yes > 0.5 else (1 - yes, 1 - share, "no")
    else:
        k = int(predicted.argmax())
        taken, labelled = (
            float(predicted[k]) / rows,
            float(facts.target.counts[k] / max(facts.target.counts.sum(), 1e-30)),
        )
        name = _class(facts, k)
    if taken >= NEARLY_ALL and labelled < 0.9:
        yield f"{name} is predicted in {100 * taken:.1f}% of {rows:,} rows, and is the label of {100 * labelled:.1f}%"


@register_rule(
    RULES,
    RuleDescription(
        "CE124",
        "warning",
        "labels of one kind only",
        "There is nothing to tell apart: a model that always gives this answer is right, the loss falls to 0, and "
        "nothing was learned. Masks that "
        "were resized, scaled or loaded wrongly, a folder that was read alone, or rows that are sorted by class look like this.",
        "Print np.unique(labels) where they are loaded, before every step that scales or resizes them; shuffle the rows.",
        "milesial/Pytorch-UNet issue 65",
    ),
)
def labels_of_one_kind(facts: Facts) -> Iterator[Observation]:
    """One class in all labels, targets that are all 0 or all 1, or masks that were divided too often."""
    target, counts = facts.target, facts.target.counts
    number = facts.loss.loss.n if facts.options.binary else int(counts.sum())
    if not facts.has_target or number < FEW or facts.target.outside.count:
        return
    if not facts.options.binary:
        if facts.layout.kind == "indices" and facts.C > 1 and (counts > 0).sum() == 1:
            yield Observation(f"all {number:,} labels are {_class(facts, int(counts.argmax()))}, of {facts.C} classes")
        return
    if target.low == target.high and target.low in (0, 1):
        if not (
            facts.options.live and target.low == 0
        ):  # a batch of pictures without what is looked for is nothing strange
            yield Observation(f"all {number:,} targets are {target.low:.0f}")
    elif target.low >= 0 and 0 < target.high < 0.01:
        yield Observation(
            f"no target of {number:,} is larger than {target.high:.4g}, about 1/{1 / target.high:.0f}",
            fix="Masks of 0 and 1 were divided by 255, or masks of 0 and 255 twice: leave the division out.",
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE125",
        "error",
        "labels that belong to other rows or classes",
        "The logits do not fit these labels, but the same labels in another order fit. Predictions and labels "
        "were sorted, "
        "shuffled or dropped apart, classes were numbered twice in different ways, or a sign is lost. A mean over rows does "
        "not notice.",
        "Join predictions and labels by a key of the row, and numbers of classes by their names, as crossent score does for "
        "tables. Check with labels that did not come through the code of the training.",
        "scikit-learn/scikit-learn issue 30910",
        also=("warning",),
    ),
)
def labels_of_others(facts: Facts) -> Iterator[Observation]:
    """A better match that was found: classes permuted, rows shifted or sorted, labels transposed, logits negated."""
    found = _better(facts) or _known_elsewhere(facts)
    if found is not None:
        yield found


def _better(facts: Facts) -> Observation | None:
    here, matches = facts.loss.loss, facts.matches
    number = here.n
    if number < FEW or (facts.C < 2 and not facts.options.binary) or not facts.has_target:
        return None
    start, prior, _, _ = levels(facts)
    known = min(start, start if prior is None else prior)  # what the frequencies alone would cost
    accuracy = facts.loss.right / number
    candidates = [(f"labels {name}", match) for name, match in matches.elsewhere.items()]
    candidates.append(("logits of the opposite sign", matches.negated))
    better = [
        (match.loss.value, name, match)
        for name, match in candidates
        if match.loss.n >= FEW
        and match.loss.value < min(0.8 * here.value, 0.9 * known)
        and here.above(match.loss) > 8
        and (facts.options.binary or match.right / match.loss.n > accuracy + 0.2)
        and not (name.endswith("down") and here.value < known and _in_order(facts, name.removeprefix("labels ")))
    ]
    permuted = _permuted(facts, accuracy)
    if better and (permuted is None or min(better)[0] < permuted[0]):
        value, name, match = min(better, key=lambda each: each[0])
        share = match.right / match.loss.n
        right = "" if facts.options.binary else f", and {100 * share:.1f}% instead of {100 * accuracy:.1f}% are right"
        fix = "Look for the minus that is missing, or that is there twice." if "sign" in name else None
        return Observation(f"the loss is {here.value:.4f}; with {name} it is {value:.4f}{right}", fix=fix)
    return None if permuted is None else permuted[1]


def _permuted(facts: Facts, accuracy: float) -> tuple[float, Observation] | None:
    """Look for classes that are numbered otherwise in the logits than in the labels."""
    found = facts.matches.permutation()
    if found is None or facts.options.binary:
        return None
    order, share, value = found
    number, here, (start, prior, _, _) = facts.loss.loss.n, facts.loss.loss.value, levels(facts)
    chance = 4 * sqrt(facts.C / number)  # what an order that is chosen after the fact gains by chance
    if share < accuracy + max(0.3, chance) or value > min(0.8 * here, start, start if prior is None else prior):
        return None
    occurs = facts.target.counts > 0
    names = facts.options.class_names

    def name(k: int) -> str:
        return names[k] if len(names) == facts.C else str(k)

    text = (
        f"the loss is {here:.4f}; it is {value:.4f}, and {100 * share:.1f}% instead of {100 * accuracy:.1f}% are right, if "
        f"each label is "
        f"read as {named_permutation(order, occurs, name)}"
    )
    fix = None
    if facts.C <= 30:
        fix = (
            f"labels = np.array({order.tolist()})[labels] brings them into the order of the logits; better, number the "
            "classes once."
        )
    return value, Observation(text, fix=fix)


def _in_order(facts: Facts, name: str) -> bool:
    """Whether rows have an order of their own, as in a text or a series: a label says something about that of another row."""
    pairs = facts.matches.knowledge.get(name)
    if pairs is None or not pairs.n:
        return False
    return pairs.beyond_chance(pairs.dependence(), min(facts.layout.rows[0], pairs.n)) > 5


def _known_elsewhere(facts: Facts) -> Observation | None:
    """Look for a model that was trained on labels of other rows: its logits say more of the others' labels than they should."""
    knowledge = {name: each for name, each in facts.matches.knowledge.items() if each.n}
    if facts.C < 2 or not knowledge:
        return None
    explained = {name: each.explained() for name, each in knowledge.items()}
    name = max(explained, key=lambda each: explained[each])
    best, independent = (
        knowledge[name],
        min(facts.layout.rows[0], knowledge[name].n),
    )  # pixels of a picture are no draws
    back = explained.get(opposite(name), 0.0) if opposite(name) != name else 0.0
    chance = (facts.C - 1) / max(independent, 1)
    if independent < max(ROWS, 20 * facts.C) or explained[name] < max(0.05 + 2 * chance, 3 * back):
        return None
    if best.beyond_chance(explained[name], independent) < 10:
        return None
    # Texts and series know what came before, and a little of what comes after: there only a lot of the latter is strange.
    if _in_order(facts, name) and (not name.endswith("up") or explained[name] < max(0.2, 5 * back)):
        return None
    other_way = f", and {back:.3f} of those {opposite(name)}" if opposite(name) != name else ""
    return Observation(
        f"given the labels as they are, the logits explain {explained[name]:.3f} of the labels {name}{other_way} (squared "
        f"canonical correlations: 0 is nothing, 1 is all; {best.n:,} rows)",
        "warning",
        "What a row is says nothing about the label of another row, unless that label is its own. A model that is trained on "
        "labels of other rows learns them by heart, slowly and for nothing, and still tells its inputs apart: that is seen here.",
    )


@register_rule(
    RULES,
    RuleDescription(
        "CE126",
        "warning",
        "padding is counted as text",
        "The label at the end of most rows is the same again and again: padding, which is easy to predict. It makes the "
        "loss look better "
        "than it is and takes its share of the mean, so that text is learned more slowly and the model learns to repeat the label.",
        "ignore_index= with that label, or -100 in its place. Where the end of a text has the same label, keep the first "
        "one of each row: "
        "the model must learn to stop.",
        "huggingface/transformers issue 23530: pad_token = eos_token",
    ),
)
def padding_counted(facts: Facts) -> Iterator[str]:
    """Labels (B, T) that end with one label which hardly occurs elsewhere."""
    seen = facts.padding
    ends, text = seen.ends, seen.text
    if seen.label is None or ends.n + text.n < FEW or seen.of < 4 or seen.rows < 0.3 * seen.of:
        return
    share = ends.n / (ends.n + text.n)
    if share < 0.05 or text.n == 0 or seen.elsewhere > 0.3 * ends.n:
        return
    both = (ends.total + text.total) / (ends.n + text.n)
    yield (
        f"{100 * share:.0f}% of {ends.n + text.n:,} labels that count are a {seen.label} at the end of a row, in {seen.rows:,} of "
        f"{seen.of:,} rows; they cost {ends.value:.4f} each, all together {both:.4f}, and the others {text.value:.4f}"
    )


@register_rule(
    RULES,
    RuleDescription(
        "CE127",
        "warning",
        "these predictions cost more than knowing nothing",
        "A model for which all classes are equally likely costs ln C, or ln 2 for yes or no. One that costs more is sure of "
        "what is wrong.",
        "If hardly any row is right: labels of other rows, classes in another order, or another preprocessing than in "
        "training. If many are: "
        "a model that is too sure, which a temperature mends (crossent score). If single classes cost most: they were "
        "ignored in training.",
        "crossent.expected_initial_loss",
    ),
)
def costs_more_than_nothing(facts: Facts) -> Iterator[str]:
    """A mean loss above ln C by more than chance, for a model that has been trained."""
    here, (start, _, _, start_text) = facts.loss.loss, levels(facts)
    if facts.options.live or here.n < FEW or start == 0 or not facts.has_target or facts.logits.percent:
        return
    if (
        facts.target.outside.count
        or (facts.target.off_sum.count and not facts.options.binary)
        or _better(facts) is not None
        or facts.layout.misread
        or facts.layout.square
    ):
        return
    if here.value <= 1.1 * start or (here.value - start) / max(sqrt(here.variance), 1e-12) < 5:
        return
    right = (
        ""
        if facts.options.binary or facts.layout.kind != "indices"
        else f"; {100 * facts.loss.right / here.n:.1f}% of rows are right"
    )
    yield f"the mean loss is {here.value:.4f}, and {start_text} = {start:.4f}{right}"


@register_rule(
    RULES,
    RuleDescription(
        "CE131",
        "warning",
        "class weights drown the rest",
        "A row counts as many times as its class weighs. Where one class has nearly all of the weight, the loss is that "
        "class's alone: it "
        "falls as the class is predicted everywhere, and the others are hardly learned.",
        "Weights that bring the classes to the same total are n / (C · n_k); often their square root is enough.",
        "pytorch/pytorch issue 104776",
    ),
)
def weights_drown_the_rest(facts: Facts) -> Iterator[str]:
    """A class with most of the weight, and few of the labels."""
    counts, weight, pos_weight = facts.target.counts, facts.options.weight, facts.options.pos_weight
    if not facts.has_target or counts.sum() < FEW:
        return
    if facts.options.binary:
        number, yes = facts.loss.loss.n, float(counts.sum())
        if pos_weight is None or pos_weight.size != 1 or not 0 < yes < 0.5 * number:
            return
        share = float(pos_weight.reshape(-1)[0]) * yes
        share /= share + number - yes
        if share > 0.9:
            yield (
                f"pos_weight {pos_weight.reshape(-1)[0]:.4g} gives yes {100 * share:.1f}% of the weight, and "
                f"{100 * yes / number:.1f}% of targets"
            )
        return
    if weight is None or len(weight) != facts.C or not np.isfinite(weight).all():
        return
    shares = np.asarray(weight, np.float64) * counts
    k = int(shares.argmax())
    share, labelled = float(shares[k] / max(shares.sum(), 1e-30)), float(counts[k] / counts.sum())
    if share > 0.9 and labelled < 0.5:
        yield (
            f"{_class(facts, k)} weighs {weight[k]:.4g} and has {100 * share:.1f}% of the weight of all rows, with "
            f"{100 * labelled:.1f}% of "
            "the labels"
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE134",
        "note",
        "class weights that rise with the class counts",
        "Weights are there to let rare classes count more, n / (C · n_k) or its square root. These are larger for frequent "
        "classes, as the frequencies themselves are: rare classes count even less than without weights.",
        "weight = crossent.class_weights(counts); pos_weight = negatives / positives. If frequent classes are meant to count "
        "more, leave it.",
        'scikit-learn, class_weight="balanced"',
    ),
)
def weights_rise_with_the_counts(facts: Facts) -> Iterator[str]:
    """Weights whose logarithms go up with those of the counts, over more than a factor of two of both."""
    if not facts.has_target:
        return
    name = "pos_weight" if facts.options.binary else "weight"
    given = facts.options.pos_weight if facts.options.binary else facts.options.weight
    if given is None or given.size != facts.C or not np.isfinite(given).all():
        return
    weight, counts = np.asarray(given, np.float64).reshape(-1), facts.target.counts
    there = (counts > 0) & (weight > 0)  # a weight of 0 leaves a class out
    weight, counts, classes = weight[there], counts[there], np.flatnonzero(there)
    if len(weight) < 2 or weight.max() <= 2 * weight.min():
        return
    many, few = int(counts.argmax()), int(counts.argmin())
    sure = counts[many] - counts[few] > 4 * sqrt(counts[many] + counts[few])  # a batch counts with noise
    if not sure or counts[many] <= 2 * counts[few] or weight[many] <= 2 * weight[few]:
        return
    if _rank_correlation(weight, counts) > 0.8:
        yield (
            f"{name} is {weight[many]:.4g} for {_class(facts, classes[many])}, which has {counts[many]:,.0f} labels, and "
            f"{weight[few]:.4g} for {_class(facts, classes[few])}, which has {counts[few]:,.0f}"
        )


def _rank_correlation(a: Any, b: Any) -> float:
    """Correlate the ranks of two lists (Spearman's ρ), of which equal entries share one."""
    ranks = [np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.float64) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


@register_rule(
    RULES,
    RuleDescription(
        "CE132",
        "warning",
        "a frequent class that is never predicted",
        "Its probability is next to nothing in rows that are labelled so. A model that has seen the class gives it "
        "at least its frequency. It "
        "was left out of the training loss: ignore_index on a class that is evaluated, a class weight of 0, or rows that "
        "were filtered.",
        "Train on the class, or ignore it in the evaluation too: the same ignore_index and weights in both.",
        "torch.nn.CrossEntropyLoss: ignore_index",
    ),
)
def never_predicted(facts: Facts) -> Iterator[str]:
    """A class with labels, no predictions and hardly any probability, while others are predicted."""
    counts, predicted, number = facts.target.counts, facts.matches.predicted, facts.matches.rows
    if (
        facts.options.live
        or facts.options.binary
        or facts.layout.kind != "indices"
        or number < 10 * facts.C
        or (predicted > 0).sum() < 2
    ):
        return
    share = counts / max(counts.sum(), 1e-30)
    lost = (share >= max(0.05, 0.5 / facts.C)) & (predicted == 0) & (facts.loss.p < 0.1 * share)
    if lost.sum() == 1 and _better(facts) is None:
        k = int(lost.argmax())
        yield (
            f"{_class(facts, k)} is the label of {100 * share[k]:.1f}% of {number:,} rows, and has p = "
            f"{facts.loss.p[k]:.2g} on average"
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE133",
        "warning",
        "an ignored class is predicted",
        "The label counts for nothing, but its logit is there and takes part in the softmax: nothing in the loss says how "
        "large it should be "
        "in the rows that are ignored, and in the others it takes probability from the classes that count.",
        "If it is no class, leave its logit out, or close it with class_mask=. If it is one, do not ignore it.",
        "torch.nn.CrossEntropyLoss: ignore_index",
    ),
)
def ignored_class_predicted(facts: Facts) -> Iterator[str]:
    """Predictions of the class that is ignored, in rows that count."""
    ignored, rows = facts.options.ignored, facts.matches.rows
    if (
        facts.options.live
        or facts.options.binary
        or ignored is None
        or not 0 <= ignored < facts.C
        or rows < FEW
        or not facts.target.ignored
    ):
        return
    many = int(facts.matches.predicted[int(ignored)])
    if many > 0.01 * rows:
        yield (
            f"{_class(facts, int(ignored))} is ignore_index and is predicted in {100 * many / rows:.1f}% of the {rows:,} "
            "rows that count"
        )


# --- the course of the loss -------------------------------------------------------------------------------------------

CURVE_RULES: dict[str, Rule] = {}


@register_rule(
    CURVE_RULES,
    RuleDescription(
        "CE128",
        "warning",
        "the loss jumped far above its start",
        "One step threw the model further away than where it began: the learning rate is too large for the gradient that "
        "came. A run that recovers from it has often lost units, which stay dead.",
        "A learning rate ten times smaller, a warm-up, or clipped gradients; and begin anew instead of going on.",
        "I. Goodfellow et al., Deep Learning, 2016, section 8.2.4: cliffs",
    ),
)
def jumped(facts: Facts) -> Iterator[str]:
    """A value three times the first, and more than a nat above it."""
    losses = np.asarray(facts.options.losses, np.float64)
    losses = losses[np.isfinite(losses)]
    if len(losses) < 3:
        return
    at = int(losses.argmax())
    if losses[at] > 3 * losses[0] and losses[at] > losses[0] + 1:
        yield (
            f"the loss goes from {losses[0]:.4g} to {losses[at]:.4g} at value {at} of {len(losses)}, counted from 0, and "
            f"ends at {losses[-1]:.4g}"
        )


@register_rule(
    CURVE_RULES,
    RuleDescription(
        "CE129",
        "error",
        "a loss that no cross entropy has",
        "−log p is never negative, and 0 only where every p of a true class is 1. A negative loss has a sign too many or "
        "targets outside "
        "[0, 1]. One that is 0 all the time has one logit a row, no rows that count, or labels that the model is given.",
        "Print one batch: logits of shape (N, C) with C > 1, targets in [0, 1] or class numbers, and how many are not ignored.",
        "pytorch/pytorch issue 56542",
    ),
)
def impossible(facts: Facts) -> Iterator[str]:
    """A negative value, or nearly all of them exactly 0."""
    losses = np.asarray(facts.options.losses, np.float64)
    if len(losses) == 0:
        return
    negative = np.flatnonzero(losses < 0)
    if len(negative) and facts.options.plain:
        yield f"the loss is {losses[negative[0]]:.4g} at value {negative[0]} of {len(losses)}, counted from 0"
    elif len(losses) > 3 and (losses == 0).mean() > 0.9:
        yield f"the loss is exactly 0 in {int((losses == 0).sum())} of {len(losses)} values"


@register_rule(
    CURVE_RULES,
    RuleDescription(
        "CE130",
        "warning",
        "the loss is always the same number",
        "Not even the batches differ: parameters do not change, and the loss does not depend on the input. The usual causes are "
        "a missing optimiser step, gradients that are cut off (detach, no_grad, argmax), frozen parameters, or a learning "
        "rate of 0.",
        "Check that p.grad is not None and not 0 after backward, and that a parameter differs before and after step.",
        'discuss.pytorch.org, "Cross entropy loss is not decreasing"',
    ),
)
def constant(facts: Facts) -> Iterator[str]:
    """Values that are all the same, and not 0 or one of the levels, which are other rules'."""
    losses = np.asarray(facts.options.losses, np.float64)
    if (
        len(losses) < 8
        or not np.isfinite(losses).all()
        or losses[0] == 0
        or stays_at(list(losses), levels(facts).start)
    ):
        return
    if np.ptp(losses) <= 1e-6 * abs(losses[0]):
        yield f"all {len(losses)} values of the loss are {losses[0]:.6g}"
