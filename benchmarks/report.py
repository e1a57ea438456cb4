"""Tables, plot and the pages that quote them, drawn from the results alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from layout import figures, noise, table, thread_words
from report_linear import defer_fragments, linear_fragments, linear_markdown
from sweep import SWEEP, draw_sweep, read_sweep

CONTENDERS = {
    "eager": "torch eager",
    "compile": "torch.compile",
    "crossent": "crossent",
    "fresh": "crossent, fresh memory",
    "inplace": "crossent, in place",
}
PEERS = {name: CONTENDERS[name] for name in ("eager", "compile", "crossent")}
COLOURS = {  # told apart by colour-blind eyes too
    "eager": "#9a9a9a",
    "compile": "#e69f00",
    "crossent": "#0072b2",
    "fresh": "#9ecae8",
    "inplace": "#009e73",
}
KINDS = {  # of memory
    "small": "fresh, in pages of 4 KB",
    "huge": "fresh, in huge pages",
    "again": "used again, after MADV_FREE",
    "there": "there all the time",
}
HEADLINE = ("few-classes", "plain", "vocabulary-32k", "vocabulary-128k-bfloat16", "segmentation", "binary")


def ratios(row: dict) -> list[str]:
    """Write how many times longer than crossent torch and torch.compile take."""
    return [figures(row["over_crossent"].get(name)) for name in ("eager", "compile")]


RATIOS = ["torch ÷ crossent", "compile ÷ crossent"]


def of_threads(rows: list[dict], threads: int) -> list[dict]:
    return [row for row in rows if row["threads"] == threads]


def most_threads(rows: list[dict]) -> int:
    return max(row["threads"] for row in rows)


def large_rows(results: dict) -> list[dict]:
    return [row for row in results["rows"] if not row["small"]]


def small_rows(results: dict) -> list[dict]:
    return [row for row in results["rows"] if row["small"]]


def measured(rows: list[dict], names: dict[str, str] = CONTENDERS) -> dict[str, str]:
    """Keep the contenders who took part in any of these rows."""
    return {name: label for name, label in names.items() if any(name in row["copies"] for row in rows)}


def run_that_has(measured_by: Callable[[dict], object], results: dict) -> dict:
    """Return the run that measured something: this one, or else that of the second processor."""
    return results if measured_by(results) or "second" not in results else results["second"]


def sweep_of(results: dict) -> str:
    return results.get("sweep") or ""


def processor(results: dict) -> str:
    machine = results["machine"]
    kernels = f" ({machine['instruction_set']})" if machine["instruction_set"] else ""
    return f"{machine['processor']}{kernels}{busy(machine)}"


def large_table(rows: list[dict]) -> str:
    names = measured(rows)
    lines = [
        [row["title"], figures(row["ms"]["copy"]), *(figures(row["copies"].get(name)) for name in names), *ratios(row)]
        for row in rows
    ]
    return table(["logits", "copy, ms", *names.values(), *RATIOS], lines)


def small_table(rows: list[dict]) -> str:
    head = ["logits", "threads", "copy", *PEERS.values(), *RATIOS]
    lines = [
        [row["title"], str(row["threads"]), figures(1e3 * row["ms"]["copy"])]
        + [figures(1e3 * row["ms"][name] if name in row["ms"] else None) for name in PEERS]
        + ratios(row)
        for row in rows
    ]
    return table(head, lines)


def parts_table(rows: list[dict]) -> str:
    """Take crossent's time apart: the loss alone, its gradient over the logits, and what new memory for the gradient adds."""
    lines = []
    for row in rows:
        copies = row["copies"]
        if "forward" not in copies or "inplace" not in copies:
            continue
        both, fresh = copies["crossent"], copies.get("fresh")
        parts = [copies["forward"], copies["inplace"] - copies["forward"], both - copies["inplace"]]
        lines.append([row["title"], *map(figures, [*parts, None if fresh is None else fresh - copies["inplace"]])])
    head = [
        "logits",
        "the loss alone",
        "its gradient adds, in place",
        "beside the logits it adds",
        "in fresh memory it adds",
    ]
    return table(head, lines) if lines else "Not measured yet."


def isa_table(rows: list[dict]) -> str:
    """Set the best instruction set beside AVX2, in copies."""
    lines = [
        [row["title"], *(figures(row["copies"].get(name)) for name in ("crossent", "inplace", "avx2", "avx2 in place"))]
        for row in rows
        if "avx2" in row["copies"]
    ]
    head = ["logits", "crossent", "in place", "crossent, AVX2", "in place, AVX2"]
    return table(head, lines) if lines else "Not measured yet."


def memory_table(rows: list[dict]) -> str:
    names = list(rows[0]["above"])
    head = ["logits", "logits and gradient, each", *(CONTENDERS[name] for name in names)]
    lines = [
        [row["title"], f"{row['logits']:.0f}"]
        + [f"{row['above'][name]:.0f} ({row['above'][name] / row['logits']:.2f} ×)" for name in names]
        for row in rows
    ]
    return table(head, lines)


def members_table(rows: list[dict]) -> str:
    """Write what each member of the family takes, in times of cross entropy itself."""
    if not rows:
        return "Not measured yet."
    heads = [f"{tuple(row['shape'])}, {thread_words(row['threads'])}" for row in rows]
    lines = [[name, *(figures(row["relative"][name]) for row in rows)] for name in rows[0]["relative"]]
    return table(["member", *heads], lines)


def pages_table(rows: list[dict]) -> str:
    """Write what a copy takes by the kind of memory it goes to, in copies into memory that is there."""
    if not rows:
        return "Not measured yet."
    lines = [
        [label, f"{rows[0]['faults'][kind]:,}", *(figures(row["copies"][kind]) for row in rows)]
        for kind, label in KINDS.items()
    ]
    return table(["memory", "page faults", *(thread_words(row["threads"]) for row in rows)], lines)


def headline(results: dict) -> str:
    """Write what the README quotes: some rows with all threads, small calls with one, and the peak of memory."""
    of_small_calls = run_that_has(small_rows, results)
    large, small, machine = large_rows(results), small_rows(of_small_calls), results["machine"]
    names = measured(large)
    names.pop("fresh", None)
    chosen = [row for row in of_threads(large, most_threads(large)) if row["name"] in HEADLINE]
    lines = [[row["title"], *(figures(row["copies"].get(name)) for name in names)] for row in chosen]
    by = ", ".join(thread_words(n) for n in {row["threads"] for row in chosen})
    parts = [f"{machine['processor']}, {by}{busy(machine)}:", table(["logits", *names.values()], lines)]
    one = of_threads(small, min((row["threads"] for row in small), default=1))
    calls = "; ".join(
        f"{row['title']} {figures(1e3 * row['ms']['eager'])} and {figures(1e3 * row['ms']['crossent'])}" for row in one
    )
    where = "" if of_small_calls is results else f" on {processor(of_small_calls)}"
    parts.append(f"Small calls{where}, in µs by {CONTENDERS['eager']} and by {CONTENDERS['crossent']}: {calls}.")
    for row in results["memory"][:1]:
        above = "; ".join(f"{CONTENDERS[name]} {figure:.0f}" for name, figure in row["above"].items())
        parts.append(
            f"Memory above the logits, in MB, for {row['title']}, whose gradient is {row['logits']:.0f}: {above}."
        )
    return "\n\n".join(parts)


def busy(machine: dict) -> str:
    return "" if machine["idle"] else f" (not idle, load {machine['load']:.2f})"


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
        f"huge pages: {machine.get('huge_pages') or 'unknown'}",
        f"torch.compile with {machine['compiler'] or 'no compiler'}",
        machine["date"],
    ]
    text = "; ".join(parts) + "."
    if not machine["idle"]:
        text += f"\n\n**The machine was not idle** (load {machine['load']:.2f}): noisy."
    if results["partial"]:
        text += "\n\n**A partial run**, for a first look only."
    return text


def large_text(rows: list[dict]) -> str:
    return (
        "Forward and backward of the mean, with a new gradient each time. The contenders' times are in copies: how many "
        "times as long as one plain copy of the logits into an existing tensor. Peers run in one process, interleaved, and "
        "each problem in a fresh one; all figures are medians over the rounds, ratios are taken within a round. torch.compile "
        f"is in its default mode, warm, its compile time left out. {noise(rows)}"
    )


def large_section(rows: list[dict]) -> str:
    """Write a table for each number of threads, the most first."""
    parts = []
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        parts += [f"### {thread_words(threads)}".capitalize(), large_table(of_threads(rows, threads))]
    return "\n\n".join(parts)


def fragments(results: dict) -> dict[str, str]:
    """Write what pages quote, by the name that their markers give it."""
    of_small_calls = run_that_has(small_rows, results)
    large, small = large_rows(results), small_rows(of_small_calls)
    found = {
        "machine": machine_text(results),
        "pages": pages_table(results.get("pages", [])),
        "members": members_table(results.get("members", [])),
        "sweep": sweep_of(run_that_has(sweep_of, results)) or "Not measured yet.",
    }
    if "second" in results:
        rows = large_rows(results["second"])
        found["second"] = f"{machine_text(results['second'])} {noise(rows)}\n\n{large_section(rows)}"
    if large:
        found |= {"noise": noise(large), "speed": large_section(large)}
        found["parts"] = parts_table(of_threads(large, most_threads(large)))
        found["isa"] = isa_table(of_threads(large, most_threads(large)))
    if small:
        found["small"] = f"{processor(of_small_calls)}:\n\n{small_table(small)}"
    if large and small:
        found["headline"] = headline(results)
    if results["memory"]:
        found["memory"] = memory_table(results["memory"])
    return found | linear_fragments(results["linear"]) | defer_fragments(results.get("defer", []))


def quote(page: str, found: dict[str, str]) -> str:
    """Put each fragment between its markers, ``<!-- bench: NAME -->`` and ``<!-- end -->``.

    Raises:
        KeyError: a page asks for a fragment that there is not.
    """
    markers = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return markers.sub(lambda match: f"{match[1]}\n{found[match[2]]}\n\n{match[3]}", page)


def make_markdown(results: dict) -> str:
    """Write all tables, each only if there is something in it."""
    found, large = fragments(results), large_rows(results)
    parts = ["# Measurements", found["machine"]]
    if large:
        parts += ["## Large problems, in copies", large_text(large), found["speed"]]
        parts += ["## Where crossent's time goes, in copies, with all threads", found["parts"]]
        parts += ["## With AVX2 in the place of the best instruction set, in copies, with all threads", found["isa"]]
    if "small" in found:
        parts += ["## Small problems, in µs", found["small"]]
    if "memory" in found:
        parts += [
            "## Peak memory above logits and target, in MB",
            "Forward and backward once in a fresh process. The gradient that is asked for, as large as the logits, is in it.",
            found["memory"],
        ]
    if results.get("members"):
        parts += ["## The members of the family, relative to cross entropy in the same kernels", found["members"]]
    if sweep_of(run_that_has(sweep_of, results)):
        parts += ["## Every shape, beside torch", found["sweep"]]
    if "second" in found:
        parts += ["## Large problems on a processor of another kind", found["second"]]
    parts += linear_markdown(results["linear"])
    if results.get("pages"):
        size = f"{results['pages'][0]['megabytes']} MB"
        parts += [f"## A copy of {size} by the memory it goes to, in copies", found["pages"]]
    return "\n\n".join(parts) + "\n"


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Draw the contenders' times in copies of the logits as horizontal bars, on a logarithmic axis that begins at one.

    What fresh memory adds to crossent's time is drawn on, pale, to its bar.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcdefaults()
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.7 * len(rows)), dpi=200, facecolor="white", layout="constrained")
    names = measured(rows)
    slots = [name for name in names if name != "fresh"]

    def place(k: int, name: str) -> float:
        return k + 0.2 * (slots.index("crossent" if name == "fresh" else name) - (len(slots) - 1) / 2)

    for name, label in names.items():
        bars = [(place(k, name), row["copies"][name]) for k, row in enumerate(rows) if name in row["copies"]]
        layer = 2 if name == "fresh" else 2.1
        axes.barh(*zip(*bars, strict=True), height=0.18, color=COLOURS[name], label=label, zorder=layer)
    for k, row in enumerate(rows):
        for name in (name for name in slots if name in row["copies"]):
            end, text = row["copies"][name], figures(row["copies"][name])
            fresh = row["copies"].get("fresh", 0) if name == "crossent" else 0
            if fresh > end:
                end, text = fresh, f"{text}, {figures(fresh)} fresh"
            bold = "bold" if name in ("crossent", "inplace") else "normal"
            axes.annotate(
                text, (end, place(k, name)), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=7, fontweight=bold,
            )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1, zorder=3)
    axes.set_xscale("log")
    highest = max(value for row in rows for value in row["copies"].values())
    lowest = min(row["copies"][name] for row in rows for name in slots if name in row["copies"])
    axes.set_xlim(min(1, lowest / 1.3), highest * 1.25)
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if axes.get_xlim()[0] <= t <= highest * 1.25]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [two_lines(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8, zorder=0)
    axes.set_xlabel("time in copies of the logits, forward and backward (1 = one plain copy; logarithmic)")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, facecolor="white")
    plt.close(figure)


def two_lines(row: dict) -> str:
    """Break a title behind the shape."""
    shape = f"({', '.join(map(str, row['shape']))})"
    return row["title"].replace(f"{shape}, ", f"{shape}\n")


def write_report(results: dict, out: Path) -> list[Path]:
    """Write ``table.md`` and, if there is something to draw, ``speed.png`` and ``sweep.png``; return their paths."""
    written = [out / "table.md"]
    written[0].write_text(make_markdown(results), encoding="utf-8")
    large = large_rows(results)
    if large:
        threads = most_threads(large)
        written.append(out / "speed.png")
        draw(of_threads(large, threads), f"CPU, {thread_words(threads)}; shorter is better", written[1])
    if (out / SWEEP).exists():
        written.append(out / "sweep.png")
        draw_sweep(read_sweep(out / SWEEP), written[-1])
    return written


def write_pages(results: dict, root: Path) -> list[Path]:
    """Put the figures into the pages of the repository that quote them; return their paths."""
    written = [
        root / "README.md",
        root / "docs" / "performance.md",
        root / "docs" / "linear.md",
        root / "docs" / "defer.md",
    ]
    for path in written:
        path.write_text(quote(path.read_text(encoding="utf-8"), fragments(results)), encoding="utf-8")
    return written
