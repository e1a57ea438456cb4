"""Every shape: forward and backward of a plain call beside torch's own, over a grid of sizes, dtypes, layouts and reductions.

A cell is the ratio of crossent's time to torch's: the smallest times of calls taken in turn in one process, so that what else the
machine does can only make a cell noisier. Run as a script it measures one number of threads: ``sweep.py THREADS SECONDS``.
The environment chooses the instruction set, of both sides.
"""

from __future__ import annotations

import csv
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import instruction_set
from torch import Tensor

import crossent

BATCHES = (1, 8, 64, 512, 8192)
CLASSES = (2, 3, 10, 32, 50, 64, 100, 200, 1000, 4000)
INNER = (1, 2, 4, 16, 64, 100, 1024)  # rows behind the classes, such as pixels
DTYPES = ("float32", "bfloat16", "float16")
REDUCTIONS = ("mean", "none")
MOST_ELEMENTS = 1 << 21
LEAST_CALLS, MOST_CALLS = 3, 25
LONG_CALL = 1e-4  # seconds; what takes torch less is a small call
BOUNDS = {"small": 1.10, "long": 1.05}


@dataclass(frozen=True)
class Cell:
    """One problem of the grid."""

    loss: str
    batch: int
    classes: int
    inner: int
    dtype: str
    reduction: str
    layout: str  # of the classes: strided, as torch lays them out, or contiguous (channels_last)

    def steps(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return forward and backward of crossent's loss and of torch's."""
        torch.manual_seed(0)
        shape = (self.batch, self.classes) + ((self.inner,) if self.inner > 1 else ())
        x = torch.randn(shape, dtype=getattr(torch, self.dtype))
        if self.layout == "contiguous" and self.inner > 1:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        x.requires_grad_()
        if self.loss == "binary":
            target = torch.rand_like(x).detach()
            ours, theirs = crossent.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
        else:
            target = torch.randint(self.classes, (self.batch, *shape[2:]))
            ours, theirs = crossent.cross_entropy, F.cross_entropy
        return self._step(ours, x, target), self._step(theirs, x, target)

    def _step(self, loss: Callable[..., Tensor], x: Tensor, target: Tensor) -> Callable[[], None]:
        def step() -> None:
            value = loss(x, target, reduction=self.reduction)
            value.backward(torch.ones_like(value))
            x.grad = None

        return step


def cells() -> Iterator[Cell]:
    """Return the grid, without what is too large for a moment and without layouts that are the same."""
    for batch, classes, dtype, reduction in itertools.product(BATCHES, CLASSES, DTYPES, REDUCTIONS):
        for inner, layout in itertools.product(INNER, ("strided", "contiguous")):
            if prod((batch, classes, inner)) <= MOST_ELEMENTS and not (inner == 1 and layout == "strided"):
                yield Cell("softmax", batch, classes, inner, dtype, reduction, layout)
        if batch * classes <= MOST_ELEMENTS:
            yield Cell("binary", batch, classes, 1, dtype, reduction, "contiguous")


def measure_cell(cell: Cell, seconds: float) -> dict:
    """Time both in turn until so many seconds are over; return the smallest times."""
    ours, theirs = cell.steps()
    best = [float("inf")] * 2
    ours(), theirs()
    start = time.perf_counter()
    for calls in range(MOST_CALLS):
        if calls >= LEAST_CALLS and time.perf_counter() - start > seconds:
            break
        for k, step in enumerate((ours, theirs)):
            begin = time.perf_counter()
            step()
            best[k] = min(best[k], time.perf_counter() - begin)
    return asdict(cell) | {"us": round(1e6 * best[0], 1), "torch_us": round(1e6 * best[1], 1)}


def measure_here(threads: int, seconds: float) -> list[dict]:
    """Measure every cell; those above their bound once more and longer, for a disturbance is not a slower kernel."""
    torch.set_num_threads(threads)
    rows = []
    gc.disable()
    for cell in cells():
        row = measure_cell(cell, seconds)
        for _ in range(2):
            if ratio(row) > bound(row):
                again = measure_cell(cell, 5 * seconds)
                row["us"], row["torch_us"] = (min(row[k], again[k]) for k in ("us", "torch_us"))
        rows.append(row | {"threads": threads, "isa": instruction_set()})
    gc.enable()
    return rows


def measure_sweep(threads: int, seconds: float, isa: str | None = None) -> list[dict]:
    """Measure it in a process of its own, where the kernels of both sides are those of an instruction set."""
    command = [sys.executable, str(Path(__file__).resolve()), str(threads), str(seconds)]
    both = {} if isa is None else {"CROSSENT_ISA": isa, "ATEN_CPU_CAPABILITY": isa}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | both)
    return json.loads(done.stdout.splitlines()[-1])


SWEEP = "sweep.csv"


def write_sweep(rows: list[dict], path: Path) -> None:
    """Write a line a cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_sweep(path: Path) -> list[dict]:
    """Read what was written."""
    numbers = {"batch": int, "classes": int, "inner": int, "threads": int, "us": float, "torch_us": float}
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: numbers.get(name, str)(value) for name, value in row.items()} for row in csv.DictReader(file)]


def ratio(row: dict) -> float:
    return row["us"] / row["torch_us"]


def settings(rows: list[dict]) -> list[tuple[str, int]]:
    """Return the instruction sets and numbers of threads that were measured, in that order."""
    return list(dict.fromkeys((row["isa"], row["threads"]) for row in rows))


def bound(row: dict) -> float:
    """Return how much longer than torch a call may take."""
    return BOUNDS["long" if row["torch_us"] > 1e6 * LONG_CALL else "small"]


def summary(rows: list[dict], machine: dict) -> str:
    """Say in how many cells torch is faster, and where most."""
    if not rows:
        return ""
    noisy = "" if machine["idle"] else ", not idle"
    parts = [f"{machine['processor']}, {machine['cores']} cores, {machine['date']}{noisy}:"]
    for isa, threads in settings(rows):
        of = [row for row in rows if (row["isa"], row["threads"]) == (isa, threads)]
        slower = sorted((row for row in of if ratio(row) > bound(row)), key=ratio, reverse=True)
        words = f"{isa}, {threads} thread" + "s" * (threads > 1)
        middle = sorted(map(ratio, of))[len(of) // 2]
        text = f"{words}: {len(of)} cells, half of them below {middle:.2f}; {len(slower)} above their bound"
        if slower:
            row = slower[0]
            shape = (row["batch"], row["classes"]) + ((row["inner"],) if row["inner"] > 1 else ())
            how = f"{row['loss']} {row['dtype']} {shape}, {row['layout']} classes, reduction {row['reduction']}"
            text += f", the worst at {ratio(row):.2f} ({how})"
        parts.append(f"- {text}.")
    return "\n".join([parts[0], "", *parts[1:]])


def draw_sweep(rows: list[dict], path: Path) -> None:
    """Draw the ratios.

    There is a column of fields for each instruction set and number of threads, in it a field for each loss and layout, and in
    that a stripe for each dtype and reduction.
    """
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm

    plt.rcdefaults()
    plt.rcParams.update({"font.size": 7})
    kinds = [("softmax", "contiguous"), ("softmax", "strided"), ("binary", "contiguous")]
    measured = settings(rows)
    stripes = list(itertools.product(DTYPES, REDUCTIONS))
    columns = [(batch, classes) for batch in BATCHES for classes in CLASSES]
    lines = {
        kind: [1] if kind[0] == "binary" else list(INNER if kind[1] == "contiguous" else INNER[1:]) for kind in kinds
    }
    heights = [len(lines[kind]) * len(stripes) for kind in kinds]
    figure, fields = plt.subplots(
        len(kinds), len(measured), figsize=(7 * len(measured), 11), dpi=160, squeeze=False, facecolor="white",
        layout="constrained", height_ratios=[max(height, 3 * len(stripes)) for height in heights],
    )  # fmt: skip
    for (i, kind), (j, (isa, count)) in itertools.product(enumerate(kinds), enumerate(measured)):
        field = np.full((heights[i], len(columns)), np.nan)
        for row in rows:
            if (row["loss"], row["layout"], row["isa"], row["threads"]) == (*kind, isa, count):
                stripe = stripes.index((row["dtype"], row["reduction"]))
                y = stripe * len(lines[kind]) + lines[kind].index(row["inner"])
                field[y, columns.index((row["batch"], row["classes"]))] = ratio(row)
        axes = fields[i][j]
        image = axes.imshow(field, aspect="auto", cmap="RdBu_r", norm=LogNorm(0.1, 10), interpolation="nearest")
        axes.set_title(f"{kind[0]}, {kind[1]} classes, {isa}, {count} thread{'s' * (count > 1)}", loc="left")
        middle = (len(lines[kind]) - 1) / 2
        axes.set_yticks([s * len(lines[kind]) + middle for s in range(len(stripes))], [f"{d}, {r}" for d, r in stripes])
        axes.set_xticks(
            [k * len(CLASSES) for k in range(len(BATCHES))], [f"N = {batch}" for batch in BATCHES], ha="left"
        )
        for k in range(1, len(BATCHES)):
            axes.axvline(k * len(CLASSES) - 0.5, color="black", linewidth=0.6)
        for k in range(1, len(stripes)):
            axes.axhline(k * len(lines[kind]) - 0.5, color="black", linewidth=0.6)
    figure.colorbar(image, ax=fields, shrink=0.5, label="crossent's time ÷ torch's: blue is faster, red is slower")
    figure.suptitle(
        "Forward and backward. Within each N the classes grow to the right (2 … 4,000), within each stripe the rows behind "
        "them downwards (1 or 2 … 1,024)",
        x=0.01, ha="left", fontsize=8,
    )  # fmt: skip
    figure.savefig(path, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    print(json.dumps(measure_here(int(sys.argv[1]), float(sys.argv[2]))))
