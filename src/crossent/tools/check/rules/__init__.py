"""The rules: ``VALUE_RULES`` look at facts about logits, targets and losses, ``LOSS_RULES`` at a loss somebody wrote."""

from crossent.tools.check.rules import (
    logits,
    loss_curve,
    loss_derivatives,
    loss_extremes,
    loss_invariances,
    loss_members,
    predictions,
    target,
)

CURVE_RULES = {**loss_curve.RULES, **predictions.CURVE_RULES}
VALUE_RULES = dict(sorted({**logits.RULES, **target.RULES, **predictions.RULES, **CURVE_RULES}.items()))
LOSS_RULES = dict(
    sorted({**loss_derivatives.RULES, **loss_invariances.RULES, **loss_extremes.RULES, **loss_members.RULES}.items())
)
RULE_DESCRIPTIONS = {name: rule.description for name, rule in (VALUE_RULES | LOSS_RULES).items()}

__all__ = ["CURVE_RULES", "LOSS_RULES", "RULE_DESCRIPTIONS", "VALUE_RULES"]
