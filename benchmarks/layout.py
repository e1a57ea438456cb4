"""Numbers, tables and phrases that all reports share."""

from __future__ import annotations


def figures(value: float | None) -> str:
    """Write a number with two or three significant digits, a missing one as a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: list[str], lines: list[list[str]]) -> str:
    """Lay out a Markdown table, its first column to the left and the rest to the right."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def noise(rows: list[dict]) -> str:
    """Say how far the rounds scatter."""
    spreads = sorted(max(row["spread"].values()) for row in rows)
    return (
        f"The quartiles of a contender's times lie up to {spreads[len(spreads) // 2]:.0%} of the median apart in half of the "
        f"rows, {spreads[-1]:.0%} in the noisiest."
    )


def thread_words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
