"""The tables and the plot, drawn from the results alone."""

from __future__ import annotations

from pathlib import Path

CONTENDERS = {"eager": "torch eager", "compile": "torch.compile", "crossent": "crossent"}
COLOURS = {"eager": "#9a9a9a", "compile": "#e69f00", "crossent": "#0072b2"}  # told apart by colour-blind eyes too


def figures(value: float | None) -> str:
    """Write a number with two or three significant digits, a missing one as a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: list[str], lines: list[list[str]]) -> str:
    """Lay out a Markdown table, its first column to the left and the rest to the right."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def ratios(row: dict) -> list[str]:
    """Write how many times longer than crossent torch and torch.compile take."""
    return [figures(row["over_crossent"].get(name)) for name in ("eager", "compile")]


RATIOS = ["torch ÷ crossent", "compile ÷ crossent"]


def large_table(rows: list[dict]) -> str:
    head = ["logits", "copy, ms", *CONTENDERS.values(), *RATIOS]
    lines = [
        [row["title"], figures(row["ms"]["copy"])]
        + [figures(row["copies"].get(name)) for name in CONTENDERS]
        + ratios(row)
        for row in rows
    ]
    return table(head, lines)


def small_table(rows: list[dict]) -> str:
    head = ["logits", "threads", "copy", *CONTENDERS.values(), *RATIOS]
    lines = [
        [row["title"], str(row["threads"]), figures(1e3 * row["ms"]["copy"])]
        + [figures(1e3 * row["ms"][name] if name in row["ms"] else None) for name in CONTENDERS]
        + ratios(row)
        for row in rows
    ]
    return table(head, lines)


def memory_table(rows: list[dict]) -> str:
    names = list(rows[0]["above"])
    head = ["logits", "logits and gradient, each", *(CONTENDERS[name] for name in names)]
    lines = [
        [row["title"], f"{row['logits']:.0f}"]
        + [f"{row['above'][name]:.0f} ({row['above'][name] / row['logits']:.2f} ×)" for name in names]
        for row in rows
    ]
    return table(head, lines)


def machine_text(results: dict) -> str:
    """Say what was measured on what, and what a reader should hold against it."""
    machine = results["machine"]
    used = sorted({row["implementation"] for row in results["rows"]})
    kernels = f" ({machine['instruction_set']})" if machine["instruction_set"] else ""
    parts = [
        f"{machine['processor']}, {machine['cores']} cores",
        f"crossent {machine['crossent']}" + (f", implementation {', '.join(used)}{kernels}" if used else ""),
        f"torch {machine['torch']} ({machine['torch_instruction_set']})",
        f"Python {machine['python']}",
        f"torch.compile with {machine['compiler'] or 'no compiler'}",
        machine["date"],
    ]
    text = "; ".join(parts) + "."
    if not machine["idle"]:
        text += f"\n\n**The machine was not idle** (load {machine['load']:.2f}): noisy."
    if results["partial"]:
        text += "\n\n**A partial run**, for a first look only."
    return text


def noise(rows: list[dict]) -> str:
    """Say how far the rounds scatter."""
    spreads = sorted(max(row["spread"].values()) for row in rows)
    return (
        f"The quartiles of a contender's times lie up to {spreads[len(spreads) // 2]:.0%} of the median apart in half of the "
        f"rows, {spreads[-1]:.0%} in the noisiest."
    )


def thread_words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def make_markdown(results: dict) -> str:
    """Write all tables, each only if there is something in it."""
    large = [row for row in results["rows"] if not row["small"]]
    small = [row for row in results["rows"] if row["small"]]
    parts = ["# Measurements", machine_text(results)]
    if large:
        parts.append(
            "Forward and backward of the mean, with a fresh gradient each time. The contenders' times are in copies: how many "
            "times as long as one plain copy of the logits into an existing tensor. Peers run in one process, interleaved; "
            "all figures are medians over the rounds, ratios are taken within a round. torch.compile is in its default mode, "
            f"warm, its compile time left out. {noise(large)}"
        )
    for threads in sorted({row["threads"] for row in large}, reverse=True):
        parts += [f"## {thread_words(threads)}", large_table([row for row in large if row["threads"] == threads])]
    if small:
        parts += ["## Small problems, in µs", small_table(small)]
    if results["memory"]:
        parts += [
            "## Peak memory above the logits, in MB",
            "Forward and backward once in a fresh process. The gradient that is asked for, as large as the logits, is in it.",
            memory_table(results["memory"]),
        ]
    return "\n\n".join(parts) + "\n"


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Draw the contenders' times in copies of the logits as horizontal bars, on a logarithmic axis that begins at one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcdefaults()
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.56 * len(rows)), dpi=200, facecolor="white", layout="constrained")
    for i, (name, label) in enumerate(CONTENDERS.items()):
        bars = [(k + 0.27 * (i - 1), row["copies"][name]) for k, row in enumerate(rows) if name in row["copies"]]
        if not bars:
            continue
        places, values = zip(*bars, strict=True)
        bold = "bold" if name == "crossent" else "normal"
        drawn = axes.barh(places, values, height=0.25, color=COLOURS[name], label=label, zorder=2)
        axes.bar_label(drawn, [figures(v) for v in values], padding=3, fontsize=8, fontweight=bold)
    axes.axvline(1, color="black", linewidth=1, zorder=3)
    axes.set_xscale("log")
    highest = max(value for row in rows for value in row["copies"].values())
    lowest = min(value for row in rows for value in row["copies"].values())
    axes.set_xlim(min(1, lowest / 1.3), highest * 1.25)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= highest * 1.25]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [two_lines(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8, zorder=0)
    axes.set_xlabel("time in copies of the logits, forward and backward (1 = one plain copy; logarithmic)")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    figure.savefig(path, facecolor="white")
    plt.close(figure)


def two_lines(row: dict) -> str:
    """Break a title behind the shape."""
    shape = f"({', '.join(map(str, row['shape']))})"
    return row["title"].replace(f"{shape}, ", f"{shape}\n")


def write_report(results: dict, out: Path) -> list[Path]:
    """Write ``table.md`` and, if there is something to draw, ``speed.png``; return their paths."""
    written = [out / "table.md"]
    written[0].write_text(make_markdown(results))
    large = [row for row in results["rows"] if not row["small"]]
    if large:
        threads = max(row["threads"] for row in large)
        written.append(out / "speed.png")
        draw(
            [row for row in large if row["threads"] == threads],
            f"CPU, {thread_words(threads)}; shorter is better",
            written[1],
        )
    return written
