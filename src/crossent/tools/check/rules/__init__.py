"""The rules: those of ``VALUES`` look at facts about logits, targets and losses, those of ``CUSTOM`` at a loss somebody wrote."""

from crossent.tools.check.rules import custom, logits, loss_curve, target

VALUES = dict(sorted({**logits.RULES, **target.RULES, **loss_curve.RULES}.items()))
CUSTOM = custom.RULES
CARDS = {name: rule.card for name, rule in (VALUES | CUSTOM).items()}

__all__ = ["CARDS", "CUSTOM", "VALUES"]
