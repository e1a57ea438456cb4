"""The tables of a head and its loss: what pages quote of ``results["linear"]``."""

from __future__ import annotations

from layout import figures, noise, table, thread_words

NAMES = {
    "eager": "torch eager",
    "compile": "torch.compile",
    "chunked": "torch chunked",
    "tuned": "torch chunked, tuned",
    "crossent": "crossent",
    "large": "crossent, one block",
    "whole": "crossent, no row ignored",
}
COMPACT = ("eager", "crossent")
QUOTED = "linear-8192"
ERRORS = {"eager": "torch eager", "chunked": "torch chunked", "crossent": "crossent"}


def named(rows: list[dict], key: str) -> list[str]:
    """Keep the contenders who took part in any of these rows."""
    return [name for name in NAMES if any(name in row[key] for row in rows)]


def ratio_text(value: float | None) -> str:
    """Write a ratio that is to be read to a hundredth."""
    return "–" if value is None else f"{value:.2f}" if value < 10 else figures(value)


def blocks_text(row: dict) -> str:
    """Say into how many blocks crossent took the rows apart."""
    return str(row["plan"][0]) if row["plan"][0] else "at once"


def speed_table(rows: list[dict]) -> str:
    """Write the contenders' times in those of the bare products."""
    found = named(rows, "products")
    lines = [
        [row["title"], figures(row["ms"]["products"])]
        + [ratio_text(row["products"].get(name)) for name in found]
        + [blocks_text(row)]
        for row in rows
    ]
    return table(["problem", "products, ms", *(NAMES[name] for name in found), "blocks"], lines)


def memory_table(rows: list[dict]) -> str:
    """Write the peaks above inputs and gradients beside the sizes of what cannot be avoided."""
    found = named(rows, "above")
    lines = [
        [row["title"], f"{(row['states'] + row['head']) * (2 if row['backward'] else 1):.0f}", f"{row['logits']:.0f}"]
        + [f"{row['above'][name]:.0f}" for name in found]
        for row in rows
    ]
    return table(["problem", "inputs and gradients", "logits", *(NAMES[name] for name in found)], lines)


def gradient_table(rows: list[dict]) -> str:
    """Write the errors of the head's gradient, each relative to that of one product over all rows by the same contender."""
    lines = []
    for row in rows:
        (one,) = (other["gradient"] for other in rows if other["dtype"] == row["dtype"] and other["blocks"] == 1)
        errors = [f"{row['gradient'][k]:.1e} ({row['gradient'][k] / one[k]:.2f} ×)" for k in ("chunked", "crossent")]
        lines.append([f"{row['dtype']}, {blocks_word(row)}", f"{row['gradient']['eager']:.1e}", *errors])
    return table(["head's gradient", *ERRORS.values()], lines)


def loss_table(rows: list[dict]) -> str:
    """Write the errors of the half precision loss."""
    names = ERRORS | {"wide": "crossent, `out_dtype=torch.float32`"}
    half = [row for row in rows if row["dtype"] == "bfloat16"]
    lines = [[blocks_word(row), *(percent(row["loss"][name]) for name in names)] for row in half]
    return table(["bfloat16 loss", *names.values()], lines)


def blocks_word(row: dict) -> str:
    return "1 block" if row["blocks"] == 1 else f"{row['blocks']} blocks"


def percent(value: float) -> str:
    return f"{100 * value:+.4f} %".replace("-", "−")


def compact(linear: dict) -> str:
    """Write what the page on heads begins with: time and memory of the largest problems, side by side."""
    peaks = {row["title"]: row["above"] for row in linear["memory"] if row["backward"]}
    head, lines = ["problem"], []
    for unit in ("", ", MB"):
        head += [f"{NAMES[name]}{unit}" for name in COMPACT]
    for row in linear["rows"]:
        if row["name"].startswith(QUOTED):
            above = peaks.get(row["title"].partition(", D")[0], {})
            times = [ratio_text(row["products"].get(name)) for name in COMPACT]
            lines.append([row["title"], *times, *(f"{above[name]:,.0f}" if name in above else "–" for name in COMPACT)])
    return table(head, lines)


def linear_fragments(linear: dict) -> dict[str, str]:
    """Write what pages quote, by the name that their markers give it, as far as it was measured."""
    found = {}
    if linear["rows"]:
        threads = thread_words(linear["rows"][0]["threads"])
        found["linear"] = compact(linear)
        found["linear_speed"] = f"{threads}:\n\n{speed_table(linear['rows'])}\n\n{noise(linear['rows'])}"
    if linear["memory"]:
        found["linear_memory"] = memory_table(linear["memory"])
    if linear["accuracy"]:
        found["linear_gradient"] = gradient_table(linear["accuracy"])
        found["linear_loss"] = loss_table(linear["accuracy"])
    return found


def defer_table(rows: list[dict]) -> str:
    """Write what a training step takes above parameters and gradients, with and without a deferred head."""
    timed = all("ms" in row for row in rows)
    head = ["problem", "head", "logits", "plain", "deferred", *(["plain, ms", "deferred, ms"] if timed else [])]
    lines = []
    for row in rows:
        sizes = [row["head"], row["logits"], row["above"]["plain"], row["above"]["deferred"]]
        times = [figures(row["ms"][name]) for name in ("plain", "deferred")] if timed else []
        lines.append([row["title"], *(f"{size:.0f}" for size in sizes), *times])
    return table(head, lines)


def defer_fragments(rows: list[dict]) -> dict[str, str]:
    """Write what the page about deferred heads quotes, if it was measured."""
    return {"defer": defer_table(rows)} if rows else {}


def linear_markdown(linear: dict) -> list[str]:
    """Write the sections of the table of all measurements."""
    found = linear_fragments(linear)
    titles = {
        "linear_speed": "A head and its loss, in the bare matrix products",
        "linear_memory": "Peak memory of a head and its loss above inputs and gradients, in MB",
        "linear_gradient": "Relative error of the head's gradient against float64",
        "linear_loss": "Relative error of the bfloat16 loss against float64",
    }
    return [part for name, title in titles.items() if name in found for part in (f"## {title}", found[name])]
