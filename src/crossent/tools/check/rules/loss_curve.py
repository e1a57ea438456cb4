"""Rules about the value of the loss: where it starts, and where it stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from crossent import reference
from crossent.tools.check.facts import Facts
from crossent.tools.check.findings import Observation, Rule, RuleDescription, register_rule

RULES: dict[str, Rule] = {}

LEAST = 8  # values of the loss, to say that it stays
CLOSE = 0.01  # of the level


class Levels(NamedTuple):
    """Where a loss starts, where it stays with a model that does not look at its input, and where with a second softmax."""

    start: float
    prior: float | None
    floor: float | None
    start_text: str  # how the start is written


def levels(facts: Facts) -> Levels:
    """Compute the levels; weights and smoothing move the last two."""
    counts, comparable = facts.target.counts, facts.options.plain and facts.target.counts.sum() > 0
    if not facts.options.binary:
        prior = reference.prior_entropy(counts) if comparable and not facts.target.negative.count else None
        floor = reference.double_softmax_floor(facts.C) if comparable else None
        return Levels(reference.expected_initial_loss(facts.C), prior, floor, f"ln {facts.C}")
    start = reference.expected_initial_loss(2)
    if not comparable or facts.target.outside.count or facts.loss.loss.n == 0:
        return Levels(start, None, None, "ln 2")
    each = facts.loss.loss.n / facts.C
    prior = float(np.mean([reference.prior_entropy([yes, each - yes]) for yes in counts]))
    share = float(counts.sum() / facts.loss.loss.n)
    yes, no = reference.sigmoid_cross_entropy([1.0, 0.0], [1.0, 0.0]).loss
    return Levels(start, prior, float(share * yes + (1 - share) * no), "ln 2")


def stays_at(losses: Sequence[float], level: float | None) -> bool:
    """Whether the second half of a loss curve stays within a hundredth of a level: both of its halves do, and no value is far."""
    if level is None or len(losses) < LEAST or not np.all(np.isfinite(losses)):
        return False
    tail = np.asarray(losses[len(losses) // 2 :])
    halves = [half.mean() for half in np.array_split(tail, 2)]
    near = max(abs(half - level) for half in halves) <= CLOSE * level
    return bool(near and np.abs(tail - level).max() <= 10 * CLOSE * level)


def _tail(facts: Facts) -> float:
    losses = facts.options.losses
    return float(np.mean(losses[len(losses) // 2 :]))


def _loss_curve(facts: Facts) -> str:
    losses = facts.options.losses
    many = len(losses) - len(losses) // 2
    return (
        f"the last {many} of {len(losses)} values of the loss are {_tail(facts):.4f} on average, from {losses[0]:.4f}"
    )


def _alike(facts: Facts) -> bool:
    """Whether a model that has been trained predicts the same for all rows."""
    return not facts.options.live and facts.loss.p_rows >= 20 and facts.loss.spread < 0.01


@register_rule(
    RULES,
    RuleDescription(
        "CE117",
        "warning",
        "the loss is far above ln C",
        "A model that knows nothing should find all classes equally likely, a loss of ln C, or ln 2 for yes or no. "
        "Far above, it is sure and wrong: the first steps only unlearn that, with large gradients.",
        "Make the last layer start small (weights near 0, biases 0 or the log of the frequencies), normalise the "
        "inputs, and check that the labels belong to these rows.",
        'A. Karpathy, "A Recipe for Training Neural Networks", 2019: verify loss @ init',
    ),
)
def far_above(facts: Facts) -> Iterator[str | Observation]:
    """A first value, or a second half, that is more than a nat, and more than a quarter, above."""
    losses, (start, _, _, start_text) = facts.options.losses, levels(facts)
    limit = start + max(1.0, 0.25 * start)
    if start == 0:  # one class, which is another rule's
        return
    if losses and losses[0] > limit:
        yield f"the first loss is {losses[0]:.4f}; {start_text} = {start:.4f}"
    elif len(losses) >= LEAST and _tail(facts) > limit:
        yield Observation(
            f"{_loss_curve(facts)}; {start_text} = {start:.4f}",
            why="It is worse than knowing nothing: the model is sure and wrong, and steps make it worse.",
            fix="A learning rate ten times smaller; and check that the loss is minimised, not maximised.",
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE118",
        "warning",
        "the loss stays at ln C",
        "ln C is the loss of a model for which all classes are equally likely. One that stays there learns nothing "
        "at all.",
        "Check that inputs and labels belong together: labels of other rows, shuffled or sorted apart from their inputs, "
        "keep a loss at ln C. Check that parameters change between two steps (zero_grad, backward, step; requires_grad), "
        "that the learning rate is not 0, far too small or far too large, that no ReLU is the last layer, and that the "
        "model can learn ten rows by heart.",
        'discuss.pytorch.org, "Cross entropy loss is not decreasing"',
        also=("note",),
    ),
)
def stays_at_ln_c(facts: Facts) -> Iterator[Observation]:
    """A loss curve that stays, or a model whose every p is 1/C."""
    start, _, _, start_text = levels(facts)
    if start == 0:  # one class, which is another rule's
        return
    if stays_at(facts.options.losses, start):
        yield Observation(f"{_loss_curve(facts)}; {start_text} = {start:.4f}")
    elif not facts.options.binary and _alike(facts) and np.abs(facts.loss.p * facts.C - 1).max() < 0.02:
        p = f"every p is 1/{facts.C} within 2% in all {facts.loss.p_rows:,} rows"
        yield Observation(
            f"{p}: the loss is {start_text} = {start:.4f} for any labels; a model before its first step does that",
            "note",
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE119",
        "warning",
        "the loss stays at the entropy of the labels",
        "H(prior), the entropy of the labels' frequencies, is the lowest loss of a model that does not look at "
        "its input. It learned how frequent the classes are, and nothing else.",
        "Check that inputs and labels belong together after shuffling, that inputs differ (no division to 0, no dead "
        "layer), and try a smaller learning rate.",
        "crossent.prior_entropy",
    ),
)
def stays_at_the_prior(facts: Facts) -> Iterator[Observation]:
    """A loss curve that stays, or a model that predicts the frequencies for every row."""
    start, prior, _, _ = levels(facts)
    if prior is None or abs(prior - start) <= 2 * CLOSE * start:  # the same place, and said already
        return
    if stays_at(facts.options.losses, prior):
        yield Observation(f"{_loss_curve(facts)}; H(prior) = {prior:.4f}")
    elif _alike(facts) and abs(facts.loss.loss.value - prior) <= CLOSE * prior:
        same = f"p is the same in all {facts.loss.p_rows:,} rows within 1%"
        yield Observation(f"{same}, and the loss {facts.loss.loss.value:.4f} is H(prior) = {prior:.4f}")


@register_rule(
    RULES,
    RuleDescription(
        "CE120",
        "warning",
        "the loss stays at the floor of two softmaxes",
        "ln(e + C − 1) − 1, 1.4612 for 10 classes, is the lowest value of a cross entropy that is given "
        "probabilities instead of logits. A mistake costs 1 more at most. For a sigmoid it is 0.3133 for every "
        "yes and 0.6931 for every no.",
        "Leave out the softmax or sigmoid at the end of the model: the loss has its own.",
        "crossent.double_softmax_floor",
    ),
)
def stays_at_the_floor(facts: Facts) -> Iterator[str]:
    """A loss curve that stays there, or a little above: by as much as there are mistakes; and never falls below."""
    losses, (_, prior, floor, _) = facts.options.losses, levels(facts)
    if floor is None or stays_at(losses, prior):
        return
    if stays_at(losses, floor):
        yield f"{_loss_curve(facts)}; the floor is {floor:.4f}"
    elif not facts.options.binary and _is_wall(losses, floor):
        yield f"{_loss_curve(facts)}, and none is below the floor, {floor:.4f}: the least is {min(losses):.4f}"


def _is_wall(losses: Sequence[float], floor: float) -> bool:
    """Whether a loss curve has come down to a floor, to 5% for the best batch, and goes on above it."""
    if len(losses) < LEAST or not np.all(np.isfinite(losses)) or not 0.999 * floor <= min(losses) <= 1.05 * floor:
        return False
    before, after = (half.mean() for half in np.array_split(np.asarray(losses[len(losses) // 2 :]), 2))
    return bool(abs(before - after) <= 2 * CLOSE * floor and after <= floor + 0.25)
