"""Rules about the logits: values that are no logits, and values that floating point cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, isfinite, log2

from crossent import reference
from crossent.tools.check.facts import Facts, Tally
from crossent.tools.check.findings import Observation, Rule, RuleDescription, register_rule

RULES: dict[str, Rule] = {}


# --- squashed before the loss -----------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE101",
        "error",
        "softmax before the loss",
        "The loss applies a softmax of its own. To probabilities it hardly reacts: they differ by 1 at most, so "
        "that the loss cannot fall below ln(e + C − 1) − 1 (0.3133 for 2 classes, 1.4612 for 10, 5.9095 for 1000) "
        "and a class that is thought impossible is hardly pulled. torch gives no warning.",
        "Give the loss the values before the softmax. Where only probabilities p are left, log(p) are logits.",
        "pytorch/pytorch issue 55902, open since 2021",
    ),
)
def softmax_before_the_loss(facts: Facts) -> Iterator[str | Observation]:
    """Rows in [0, 1] that sum to 1."""
    if (
        not facts.options.binary
        and facts.options.input == "logits"
        and facts.logits.example
        and facts.logits.percent
        and facts.C > 1
    ):
        yield Observation(
            f"all {facts.counted:,} rows that count lie in [0, 100] and sum to 100 ({facts.logits.example}): percentages",
            fix="Give the loss the values before the softmax. Where only percentages are left, log(x / 100) are logits.",
        )
        return
    if facts.options.binary or not _are_probabilities(facts):
        return
    text = f"all {facts.counted:,} rows that count lie in [0, 1] and sum to 1 ({facts.logits.example})"
    if facts.has_target and facts.options.plain:
        low = reference.double_softmax_floor(facts.C)
        text += f"; the loss of these is {facts.loss.loss.value:.4f} and can never be less than {low:.4f}"
        if facts.loss.as_probabilities.n == facts.loss.loss.n:
            text += f", that of their logarithms is {facts.loss.as_probabilities.value:.4f}"
    if not facts.options.stored:
        yield text
        return
    fix = RULES["CE101"].description.fix
    yield Observation(text, fix=f"{fix} If a file of probabilities is meant to be checked: --input probs.")


def _are_probabilities(facts: Facts) -> bool:
    seen = facts.logits
    # A few rows may sum to 1 by chance; many do not, and may have been rounded.
    tolerance = 1e-2 if facts.counted > 8 else 1e-4
    if facts.dtype in ("float16", "bfloat16"):
        tolerance = 2e-2
    if seen.rounded:  # to two decimals: each may be wrong by half of the last
        tolerance = max(tolerance, 1e-2 + 0.005 * facts.C)
    return (
        facts.options.input == "logits"
        and facts.C > 1
        and bool(seen.example)
        and seen.unit
        and seen.unit_error <= tolerance
    )


@register_rule(
    RULES,
    RuleDescription(
        "CE102",
        "note",
        "log-softmax before the loss",
        "Harmless: the softmax of log-probabilities is those probabilities again, so loss and gradient are what "
        "they would be. It costs one pass over the logits.",
        "Leave the log_softmax out, or keep it: nothing but speed depends on it.",
        "torch.nn.NLLLoss, which wants log-probabilities, against torch.nn.CrossEntropyLoss",
    ),
)
def log_softmax_before_the_loss(facts: Facts) -> Iterator[str]:
    """Rows of at most 0 whose exponentials sum to 1."""
    half = facts.dtype in ("float16", "bfloat16")
    tolerance = 1e-4 if not half else 5e-2 if facts.counted > 8 else 2e-3  # a few rows may do so by chance
    seen = facts.logits
    if facts.options.input != "logits":
        return
    if not facts.options.binary and facts.C > 1 and seen.example and seen.log_error <= tolerance:
        yield f"in all {facts.counted:,} rows that count Σ exp(x) is 1 ({seen.example})"


@register_rule(
    RULES,
    RuleDescription(
        "CE110",
        "warning",
        "sigmoid before the loss",
        "The loss applies a sigmoid of its own. To values in [0, 1] its probability of yes is never below 0.5 and "
        "never above 0.73: every no costs ln 2 = 0.6931 at least, every yes 0.3133. torch gives no "
        "warning.",
        "Give the loss the values before the sigmoid; BCEWithLogitsLoss is sigmoid and BCELoss in one.",
        "torch.nn.BCEWithLogitsLoss",
    ),
)
def sigmoid_before_the_loss(facts: Facts) -> Iterator[Observation]:
    """Values that never leave [0, 1], though those of a linear layer would."""
    seen, columns = facts.logits, facts.C
    if (
        facts.options.input != "logits"
        or not seen.example
        or not seen.unit
        or seen.low == seen.high
        or facts.counted * columns < 16
        or _are_probabilities(facts)
    ):
        return
    # Untrained outputs hug a constant of either sign in every column; only many columns, or both ends, say something.
    if columns < 10 and not (seen.low < 0.1 and seen.high > 0.9):
        return
    text = f"all {facts.counted * columns:,} logits that count lie in [0, 1], from {seen.low:.3g} to {seen.high:.3g}"
    if facts.options.binary:
        yield Observation(f"{text} ({seen.example})")
        return
    low = reference.double_softmax_floor(columns)
    why = f"A softmax of values that differ by 1 at most hardly tells classes apart: the loss cannot fall below {low:.4f}."
    fix = "Give the loss the values before the sigmoid."
    if seen.low == 0 and seen.high < 0.9:  # a sigmoid is not 0 where it does not come near 1 either
        fix = "The exact 0 looks like a ReLU as last layer: give the loss the values before it."
    yield Observation(f"{text} ({seen.example})", why=why, fix=fix)


# --- the class axis ---------------------------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE103",
        "error",
        "classes on another axis",
        "torch takes axis 1 for the classes: (N, C) or (N, C, d1, ...). A language model gives (B, T, V). Where T = "
        "V torch cannot notice, and trains the softmax over time.",
        "logits.movedim(-1, 1), or flatten both: logits.reshape(-1, V), labels.reshape(-1); crossent takes dim=-1.",
        "pytorch/pytorch issue 3947",
        also=("note",),
    ),
)
def classes_on_another_axis(facts: Facts) -> Iterator[Observation]:
    """(N, T, C) where (N, C, T) is expected: by the shape, or by the loss where both are possible."""
    layout, options = facts.layout, facts.options
    if layout.misread is not None:
        yield Observation(f"{layout.misread.seen} (torch says: Expected target size ...)", fix=layout.misread.fix)
    if not layout.square or options.dim is not None or facts.last_axis.n == 0:
        return
    here, there = facts.loss.loss, facts.last_axis
    apart = here.above(there)
    text = (
        f"logits of shape {layout.shape} and labels of shape {layout.rows}: the loss is {here.value:.4f} with the classes on "
        f"axis 1, as torch takes them, and {there.value:.4f} with them on the last"
    )
    if apart > 5:
        yield Observation(text)
    elif apart > -5 and options.live:
        yield Observation(f"{text}; an untrained model does not tell which is meant", "note")


@register_rule(
    RULES,
    RuleDescription(
        "CE104",
        "error",
        "one logit a row",
        "The softmax of one number is 1, so the loss is 0 and the gradient is 0 whatever the model says. torch "
        "gives no warning.",
        "For yes or no: binary_cross_entropy_with_logits, or two logits a row. For regression: another loss.",
        "pytorch/pytorch issue 56542",
    ),
)
def one_logit_a_row(facts: Facts) -> Iterator[str]:
    """A class axis of size 1."""
    if facts.C == 1 and not facts.options.binary:
        yield f"logits of shape {facts.layout.shape} have 1 class on axis {facts.layout.axis}: the loss of every row is 0"


# --- infinities, nan, half precision ----------------------------------------------------------------------------------


@register_rule(
    RULES,
    RuleDescription(
        "CE107",
        "error",
        "a masked class is asked for",
        "A logit of −inf says that a class is impossible. Label smoothing asks for a little of every class, and a "
        "target on a masked class for all of it: the loss is inf. In torch a soft target of exactly 0 there is nan, "
        "0 · (−inf).",
        "Mask with class_mask= of crossent.cross_entropy, which smooths over the allowed classes only and takes "
        "soft targets, and check that no row's own class is masked. A large negative number instead of −inf only "
        "turns an infinite loss into a large one.",
        "google-deepmind/optax issue 896",
        also=("warning",),
    ),
)
def masked_class_asked_for(facts: Facts) -> Iterator[str | Observation]:
    """-inf where the target, or its smoothed form, is not 0."""
    logits, target, total = facts.logits, facts.target, facts.rows
    if target.forbidden.count:
        yield f"the target's own class has a logit of −inf in {target.forbidden.of(total)}: the loss there is inf"
    if logits.masked.count and facts.options.label_smoothing > 0 and facts.has_target and not facts.options.binary:
        smoothing = facts.options.label_smoothing
        yield f"label_smoothing={smoothing:g} meets logits of −inf in {logits.masked.of(total)}: the loss is inf"
    elif target.masked.count and not facts.options.binary:
        yield Observation(
            f"a soft target of 0 meets a logit of −inf in {target.masked.of(total)}: torch's loss is nan", "warning"
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE113",
        "error",
        "half precision",
        "float16 holds nothing beyond 65504: larger logits are inf and the loss is nan, and torch's mean over 65520 "
        "rows or more divides by inf, so that loss and gradients are 0 or nan. bfloat16 has 8 bits: a loss of 7.43 "
        "moves in steps of 0.03.",
        "Compute the loss in float32: logits.float(), autocast, or out_dtype=torch.float32 of crossent, whose sums "
        "are float32 whatever the logits are.",
        "pytorch/pytorch issue 85791, google-deepmind/optax issue 1020",
        also=(
            "warning",
            "note",
        ),
    ),
)
def half_precision(facts: Facts) -> Iterator[str | Observation]:
    """float16 that overflows, and losses that can only take a few values."""
    seen, dtype = facts.logits, facts.dtype
    if dtype == "float16" and seen.infinite.count:
        yield f"float16 logits are +inf in {seen.infinite.of(facts.rows)}: they have overflowed"
    loss_dtype = facts.options.loss_dtype or dtype
    if (
        not facts.options.live
        and loss_dtype == dtype == "float16"
        and facts.rows >= 65520
        and not facts.options.micro_batch
    ):
        text = f"{facts.rows:,} rows of float16: torch's mean divides by a count that float16 cannot hold"
        yield Observation(text, "warning", fix=f"If these rows are one batch: {RULES['CE113'].description.fix}")
    loss = facts.loss.loss.value
    if loss_dtype == "bfloat16" and loss > 0:
        step = 2.0 ** (floor(log2(loss)) - 7)
        yield Observation(
            f"the loss is {loss:.4f}; computed in bfloat16 it is {round(loss / step) * step:.6g}, in steps of {step:.2g}",
            "note",
            why="bfloat16 has 8 bits: progress smaller than a step is not seen, and sums lose more than that.",
        )


@register_rule(
    RULES,
    RuleDescription(
        "CE115",
        "error",
        "nan or inf in the logits",
        "One nan makes the mean loss nan, and the next step makes every weight nan. A row whose largest logit is infinite has "
        "no softmax.",
        "Look at the row named first: its input, the layer before it, the learning rate of the step before.",
        "torch.autograd.set_detect_anomaly",
        also=("note",),
    ),
)
def not_a_number(facts: Facts) -> Iterator[Observation]:
    """Where the first nan is, and what that says about its origin."""
    seen, total, losses = facts.logits, facts.rows, facts.options.losses
    broken = [k for k, loss in enumerate(losses) if not isfinite(loss)]
    if broken and not facts.options.live:
        k = broken[0]
        before = f"; before it was {losses[k - 1]:.4g}" if k else ""
        yield Observation(f"the loss is {losses[k]} from value {k} of {len(losses)} on, counted from 0{before}")
    if seen.nan.count:
        yield _nan_finding(facts, seen.nan)
    if seen.infinite.count and facts.dtype != "float16":
        yield Observation(
            f"logits are +inf in {seen.infinite.of(total)}: the softmax of such a row is nan",
            fix="Look for an overflow before this: exp of a large number, a division by 0, half precision.",
        )
    if seen.nothing.count:
        yield Observation(
            f"every logit is −inf in {seen.nothing.of(total)}: nothing is allowed there, and the softmax is nan",
            fix="A mask leaves out all classes: let it leave one, or ignore these rows with ignore_index.",
        )


def _nan_finding(facts: Facts, nan: Tally) -> Observation:
    """Say where the nan are: from one row on, in a column, in single rows."""
    total, columns = facts.rows, facts.logits.nan_columns
    text = f"nan in {nan.of(total)}"
    if facts.has_target and facts.logits.nan_counts == 0:
        return Observation(
            f"{text}, all of them ignored",
            "note",
            why="The loss does not see them. In torch's gradient of these rows they come back as nan (0 · nan); crossent's is 0.",
            fix="Nothing for crossent. For torch put 0 into ignored rows before the loss.",
        )
    if nan.count == total:
        return Observation(
            f"{text}: likely the weights themselves are nan", fix="Go back to the last step with a finite loss."
        )
    if nan.at + nan.count == total and nan.count > 1:
        return Observation(f"{text}, and in every row after the first: likely the weights became nan there")
    if columns is not None and columns.any() and not columns.all():
        which = ", ".join(str(k) for k in columns.nonzero()[0][:4])
        return Observation(
            f"{text}, always in class {which}: likely the weights of that class, or a bias such as log 0"
        )
    return Observation(f"{text}, while the rows between are finite: likely the inputs of these rows")
