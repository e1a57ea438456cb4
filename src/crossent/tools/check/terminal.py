"""Findings and rules in the terminal, in lines as wide as the terminal, but no wider than is pleasant to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from crossent.tools.check.findings import REMARK, SEVERITIES, Findings, RuleDescription, paragraphs
from crossent.tools.printable import printable
from crossent.tools.terminal import readable

COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def show(findings: Findings, looked_at: str, rules: int, console: Console | None = None) -> None:
    """Print findings and how many there are of each severity; or that nothing was found, which is no proof."""
    console = readable(console)
    for finding in findings:
        console.print(_heading(finding.rule, finding.severity, finding.title))
        for part in _parts(console, ("seen", finding.seen), ("why", finding.why), ("fix", finding.fix)):
            console.print(part)
        console.print()
    if findings:
        counts = ", ".join(_many(findings.count(kind), kind) for kind in SEVERITIES)
        console.print(Text(f"{counts} in {looked_at}."))
    else:
        console.print(Text(f"Nothing found in {looked_at} by {rules} rules."))
        console.print(Text(REMARK, style="dim"))


def show_rule(description: RuleDescription, console: Console | None = None) -> None:
    """Print a rule."""
    console = readable(console)
    console.print(_heading(description.id, description.severities, description.title, kind=description.severity))
    for part in _parts(console, ("why", description.why), ("fix", description.fix), ("from", description.source)):
        console.print(part)


def show_rules(descriptions: Iterable[RuleDescription], console: Console | None = None) -> None:
    """Print a line for every rule."""
    console = readable(console)
    descriptions = list(descriptions)
    width = max(len(description.severities) for description in descriptions)
    for description in descriptions:
        severities = f"{description.severities:<{width}}"
        console.print(_heading(description.id, severities, description.title, style="", kind=description.severity))


def _many(n: int, kind: str) -> str:
    return f"{n} {kind}{'' if n == 1 else 's'}"


def _heading(rule: str, severity: str, title: str, style: str = "bold", kind: str | None = None) -> Text:
    return Text.assemble((rule, style), "  ", (f"{severity:<7}", COLOURS[kind or severity]), "  ", (title, style))


def _parts(console: Console, *parts: tuple[str, str]) -> Iterator[Text]:
    for name, said in paragraphs(((name, printable(said)) for name, said in parts), console.width):
        yield Text.assemble((f"  {name:<6}", "dim"), said)
