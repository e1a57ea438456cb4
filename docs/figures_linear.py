"""Draw the picture of ``linear.md``: ``python docs/figures_linear.py [folder]`` writes it to ``docs/img``.

Every length comes from the peaks that ``make bench`` measured and stored. What they are made of is told by the sizes of tensors;
what these do not explain is drawn as it is, so that the bars end where the measurement does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from figures import BLUE, GREEN, GREY, INK, ORANGE, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "results.json"
CONTENDERS = {"eager": "torch eager", "tuned": "torch chunked,\ntuned", "crossent": "crossent"}
PARTS = {  # colour and hatch, so that neither is needed
    "hidden states and head": (GREY, ""),
    "their gradients": (GREEN, "//"),
    "as large as the logits": (ORANGE, ""),
    "logits of a block": (BLUE, ""),
    "everything else": ("#FFFFFF", ".."),
}


def rows(backward: bool) -> list[dict]:
    """Return the float32 rows of the larger problem, or whichever was measured."""
    memory = json.loads(RESULTS.read_text("utf-8"))["linear"]["memory"]
    most = max(row["rows"] for row in memory)
    return [row for row in memory if row["rows"] == most and row["dtype"] == "float32" and row["backward"] == backward]


def parts(row: dict, contender: str) -> list[tuple[str, float]]:
    """Take a measured peak apart, in MB.

    Torch's eager path peaks before the head's gradient exists, while it holds the log-probabilities, the gradient for these and
    that for the logits; in evaluation while it holds the logits and the log-probabilities.
    """
    inputs = row["states"] + row["head"]
    gradients = inputs if row["backward"] else 0.0
    total = inputs + gradients + row["above"][contender]
    found = [("hidden states and head", inputs)]
    if contender == "eager":
        found += [("as large as the logits", row["logits"])] * (3 if row["backward"] else 2)
    else:
        found += [("their gradients", gradients), ("logits of a block", row["block"][contender])]
    return [*found, ("everything else", max(0.0, total - sum(size for _, size in found)))]


def memory() -> Figure:
    """Draw where the memory went, in training and in evaluation."""
    figure, axes = panels(3.6, 2, 1, sharex=True)
    for ax, backward in zip(axes.flat, (True, False), strict=True):
        (row,) = rows(backward)
        for y, contender in enumerate(CONTENDERS):
            _bar(ax, y, parts(row, contender))
        ax.set_yticks(range(len(CONTENDERS)), list(CONTENDERS.values()))
        ax.set_ylim(len(CONTENDERS) - 0.5, -0.5)
        what = "forward and backward" if backward else "forward only"
        ax.set_title(f"{what}, float32, N = {row['rows']:,}", fontsize=10.5, color=INK, loc="left")
    axes[1, 0].set_xlabel("MB, at the peak", fontsize=9.5, color=INK)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor=INK, lw=0.6) for colour, hatch in PARTS.values()]
    figure.legend(handles, list(PARTS), loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _bar(ax: Axes, y: int, pieces: list[tuple[str, float]]) -> None:
    left = 0.0
    for name, size in pieces:
        colour, hatch = PARTS[name]
        ax.barh(y, size, 0.62, left, color=colour, hatch=hatch, edgecolor=INK, lw=0.6)
        left += size
    ax.text(left, y, f" {left:,.0f}", va="center", fontsize=9.5, color=INK)


PICTURES = {"linear": memory}


def main(folder: Path = Path(__file__).parent / "img") -> None:
    """Write the picture to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(folder / f"{name}.png", facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
