"""``crossent.check_loss``: tries a loss that somebody wrote, on small inputs made for it, and says what it does.

Only the values and gradients that the loss returns are looked at. What a loss does not take, such as ``ignore_index``, is not
tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from crossent.core.names import only_its_keywords
from crossent.tools.check.audited_loss import AuditedLoss
from crossent.tools.check.findings import Findings, apply_rules
from crossent.tools.check.rules import LOSS_RULES
from crossent.tools.kinds import argument_kinds
from crossent.tools.printable import writable


class Trial(NamedTuple):
    """The outcome of a rule: what was measured, or why nothing was measured."""

    rule: str
    found: bool
    result: str


@dataclass(frozen=True)
class LossReport:
    """What an audit saw.

    Attributes:
        name: of the loss.
        about: what kind of loss it is, as measured.
        findings: what is wrong with it, errors first.
        trials: every rule, with what was measured.
    """

    name: str
    about: str
    findings: Findings
    trials: tuple[Trial, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found except notes."""
        return all(finding.severity == "note" for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.about}"]
        for trial in self.trials:
            lines.append(f"  {'✗' if trial.found else '·'} {trial.rule}  {trial.result}")
        return writable("\n".join([*lines, *([""] if self.findings else []), str(self.findings)]))

    __repr__ = __str__


@only_its_keywords
@argument_kinds(fn="a function", num_classes="an int", rows="an int", ignore_index="an int", name="a text or None")
def check_loss(
    fn: Callable[..., Any], *, num_classes: int = 5, rows: int = 7, ignore_index: int = -100, name: str | None = None
) -> LossReport:
    """Audit a loss that you wrote: try it, and say what is wrong with its values and gradients.

    It is given logits ``(N, C)`` in float64. Its targets are class indices, one-hot rows and rows with several labels; those
    that it refuses are left out. Its backward pass is compared with differences of its forward pass. Then come shifts, the order
    of rows, ignored rows, micro-batches, large and infinite logits, writing to inputs, and second derivatives.

    Args:
        fn: ``fn(logits, target)``, returning a scalar or one loss a row; a function, a module or a ``torch.autograd.Function``.
        num_classes: ``C``.
        rows: ``N``, different from ``C``.
        ignore_index: the label of rows that count for nothing, if the loss has one.
        name: what the report calls it.

    Returns:
        The findings, and what every rule measured.

    Raises:
        ValueError: the loss takes none of the targets, or differs from call to call.

    >>> import torch
    >>> def squash_and_subtract(logits, target):
    ...     p = logits.sigmoid()
    ...     return torch.where(target == 1, 1 - p, p).mean()
    >>> [finding.title for finding in check_loss(squash_and_subtract).findings]
    ['no pull where it is sure and wrong']
    >>> check_loss(torch.nn.CrossEntropyLoss()).ok
    True

    See also: :func:`crossent.check` for what is given to a loss; ``crossent rule`` for every rule.
    """
    if num_classes < 3 or rows < 4 or rows == num_classes:
        raise ValueError(
            f"num_classes must be at least 3, rows at least 4, and the two must differ, got {num_classes} and {rows}: with equal "
            "numbers the axes cannot be told apart"
        )
    called = name or str(getattr(fn, "__name__", type(fn).__name__))
    loss = AuditedLoss(fn, num_classes, rows, ignore_index)
    if not loss.targets:
        raise ValueError(
            f"{called} takes neither class indices (N,) nor one-hot rows (N, C) for logits (N, C) of shape {loss.x.shape}: "
            f"{loss.refused or 'its value is not finite'}"
        )
    if loss.total(loss.x, loss.target) != loss.total(loss.x, loss.target):
        raise ValueError(f"{called} differs from call to call: fix its seed, or leave out what is random, to audit it")
    findings = apply_rules(LOSS_RULES.values(), loss)
    broken = {finding.rule for finding in findings}
    trials = tuple(Trial(rule, rule in broken, loss.measured.get(rule, "not tried: it raises")) for rule in LOSS_RULES)
    return LossReport(called, _about(loss), findings, trials)


def _about(loss: AuditedLoss) -> str:
    how = {"mean": "a mean over rows", "sum": "a sum over rows", "none": "not reduced", "": "neither mean nor sum"}
    kind = (
        "every logit for itself, as with a sigmoid"
        if loss.binary
        else "the classes of a row compete, as with a softmax"
    )
    what = f"; it is {loss.member.text}" if loss.member is not None else ""
    return f"{kind}; {how[loss.reduction]}; takes {', '.join(loss.targets)}{what}"
