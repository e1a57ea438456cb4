"""``--fail-if "nll>0.5"``: conditions on the numbers of a report under which a command fails."""

from __future__ import annotations

import math
import operator
import re
from typing import NamedTuple

from crossent.tools.score.comparison import NUMBERS, Comparison
from crossent.tools.score.scores import DEFINITIONS, Scores
from crossent.tools.shared_options import OptionError

SHORT = {
    "nll": "nll_nats_mean",
    "loss": "loss_nats_mean",
    "bits": "nll_bits_mean",
    "top5": "top5_accuracy",
    "f1": "macro_f1",
    "ece": "calibration_error",
    "skill": "skill_over_prior",
}
SHARES = frozenset({"accuracy", "top5_accuracy", "exact_match", "macro_f1", "calibration_error"})
COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Condition(NamedTuple):
    """A condition; the command fails where it holds."""

    text: str
    key: str
    comparison: str
    bound: float

    def holds(self, report: Scores | Comparison) -> bool:
        """Compare with the number of a report, or of the comparison of two runs.

        Raises:
            OptionError: there is no such number.
        """
        value = report.numbers.get(self.key)
        if value is None or math.isnan(value):
            two = isinstance(report, Comparison)
            what = (
                f"the comparison of two runs has no {self.key}, it has {', '.join(NUMBERS)}"
                if two
                else f"this report has no {self.key}"
            )
            raise OptionError("fail_if", f"{self.text!r}: {what}")
        return bool(COMPARISONS[self.comparison](value, self.bound))


def parse_condition(text: str) -> Condition:
    """Understand a condition.

    Raises:
        OptionError: it is none.

    >>> parse_condition("nll > 0.5")
    Condition(text='nll > 0.5', key='nll_nats_mean', comparison='>', bound=0.5)
    """
    parts = re.fullmatch(r"\s*(\w+)\s*([<>]=?)\s*([-+.\deE]+)\s*(%?)\s*", text)
    name, comparison, bound, percent = parts.groups() if parts else ("", "", "", "")
    key = SHORT.get(name, name)
    try:
        number = float(bound)
    except ValueError:
        key = ""
    if key not in DEFINITIONS and key not in NUMBERS:
        short = ", ".join(f"{alias} for {full}" for alias, full in SHORT.items())
        raise OptionError(
            "fail_if",
            f"must read like 'nll>0.5', got {text!r}; what can be compared: {', '.join(DEFINITIONS)}; of two runs: "
            f"{', '.join(name for name in NUMBERS if name not in DEFINITIONS)}; shorter: {short}",
        )
    share = key.removesuffix("_first").removesuffix("_second").removesuffix("_difference") in SHARES
    if percent or (share and 1 < abs(number) <= 100):
        what = f"{name} is a share, from 0 to 1" if share else f"{name} is no percentage"
        raise OptionError(
            "fail_if", f"{text!r}: {what}: write {name}{comparison}{number / 100:g}" if share else f"{text!r}: {what}"
        )
    return Condition(text, key, comparison, number)
