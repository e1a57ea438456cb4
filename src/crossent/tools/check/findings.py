"""What a rule says, and what it finds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from crossent.tools.printable import printable, writable

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

INDENT = 8
WIDTH = 88  # of a finding that is printed from Python
REMARK = "Finding nothing is no proof: a check sees values, not the code that made them."


@dataclass(frozen=True)
class RuleDescription:
    """A rule in words.

    Attributes:
        id: such as ``"CE101"``.
        severity: ``"error"``, the loss is not what is meant; ``"warning"``, it probably is not; ``"note"``, worth knowing.
            That of the usual case.
        title: the mistake.
        why: what it does, in torch too.
        fix: what to do.
        source: where it is described or asked about.
        also: the severities of its other cases.
    """

    id: str
    severity: Severity
    title: str
    why: str
    fix: str
    source: str
    also: tuple[Severity, ...] = ()

    @property
    def severities(self) -> str:
        """Name every severity that a finding of this rule can have, such as ``"error or warning"``."""
        *rest, last = (kind for kind in SEVERITIES if kind in (self.severity, *self.also))
        return f"{', '.join(rest)} or {last}" if rest else last


@dataclass(frozen=True)
class Observation:
    """What a rule saw. In a special case its severity, why and fix replace those of the description."""

    text: str
    severity: Severity | None = None
    why: str | None = None
    fix: str | None = None


class NotApplicable(Exception):
    """A rule cannot be tried on its subject."""


class Rule(NamedTuple):
    """A description, and the function that looks for what it describes."""

    description: RuleDescription
    look: Callable[[Any], Iterable[str | Observation]]


def register_rule(rules: dict[str, Rule], description: RuleDescription) -> Callable[[Any], Any]:
    """Register a function under a description."""

    def register(look: Callable[[Any], Iterable[str | Observation]]) -> Callable[[Any], Iterable[str | Observation]]:
        rules[description.id] = Rule(description, look)
        return look

    return register


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        rule: the rule's id, which ``crossent rule`` explains.
        severity: ``"error"``, ``"warning"`` or ``"note"``.
        title: the mistake.
        seen: what was seen, with rows and values.
        why: why it matters.
        fix: what to do.
    """

    rule: str
    severity: Severity
    title: str
    seen: str
    why: str
    fix: str

    def __str__(self) -> str:
        return written(self, WIDTH)

    def to_dict(self) -> dict[str, str]:
        """Give all of it as plain data."""
        return asdict(self)


def written(finding: Finding, width: int) -> str:
    """Write a finding in lines of a width."""
    parts = paragraphs((("seen", finding.seen), ("why", finding.why), ("fix", finding.fix)), width)
    lines = textwrap.wrap(f"{finding.rule} {finding.severity}: {finding.title}", width, subsequent_indent="  ")
    return writable(printable("\n".join([*lines, *(f"  {name:<6}{text}" for name, text in parts)])))


def paragraphs(parts: Iterable[tuple[str, str]], width: int) -> Iterator[tuple[str, str]]:
    """Break named paragraphs into lines, which go on below their beginning in column ``INDENT``."""
    for name, said in parts:
        lines = textwrap.wrap(said, max(width - INDENT, 20), break_on_hyphens=False)
        yield name, f"\n{' ' * INDENT}".join(lines)


class Findings(list[Finding]):
    """A list of findings that can be read when it is printed."""

    def __repr__(self) -> str:
        return writable("\n".join(map(str, self)) if self else f"Nothing found. {REMARK}")

    __str__ = __repr__

    @property
    def errors(self) -> bool:
        """Whether there is an error among them."""
        return any(finding.severity == "error" for finding in self)

    def count(self, severity: object) -> int:
        """Count those of a severity."""
        return sum(finding.severity == severity for finding in self)


def _finding(description: RuleDescription, seen: Observation) -> Finding:
    severity = seen.severity or description.severity
    return Finding(
        description.id, severity, description.title, seen.text, seen.why or description.why, seen.fix or description.fix
    )


def apply_rules(rules: Iterable[Rule], subject: Any) -> Findings:
    """Let rules look at their subject; errors come first, otherwise in the order of the rules.

    What a rule has found before it raises :class:`NotApplicable` is kept.
    """
    found = Findings()
    for description, see in rules:
        with suppress(NotApplicable):
            for seen in see(subject):
                found.append(_finding(description, Observation(seen) if isinstance(seen, str) else seen))
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return found
