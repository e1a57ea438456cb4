"""``--fail-if "nll>0.5"``: conditions on the numbers of a report under which a command fails."""

from __future__ import annotations

import math
import operator
import re
from typing import NamedTuple

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
COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Condition(NamedTuple):
    """A condition; the command fails where it holds."""

    text: str
    key: str
    comparison: str
    bound: float

    def holds(self, report: Scores) -> bool:
        """Compare with the number of a report.

        Raises:
            OptionError: the report has no such number.
        """
        value = report.numbers[self.key]
        if value is None or math.isnan(value):
            raise OptionError("fail_if", f"{self.text!r}: this report has no {self.key}")
        return bool(COMPARISONS[self.comparison](value, self.bound))


def parse_condition(text: str) -> Condition:
    """Understand a condition.

    Raises:
        OptionError: it is none.

    >>> parse_condition("nll > 0.5")
    Condition(text='nll > 0.5', key='nll_nats_mean', comparison='>', bound=0.5)
    """
    parts = re.fullmatch(r"\s*(\w+)\s*([<>]=?)\s*([-+.\deE]+)\s*", text)
    try:
        name, comparison, bound = parts.groups() if parts else ("", "", "")
        key = SHORT.get(name, name)
        if key in DEFINITIONS:
            return Condition(text, key, comparison, float(bound))
    except ValueError:
        pass
    names = ", ".join([*SHORT, *(key for key in DEFINITIONS if key not in SHORT.values())])
    raise OptionError("fail_if", f"must read like 'nll>0.5', got {text!r}; what can be compared: {names}")
