"""What the GPU kernels are made of, read without a GPU, and the time that follows from it: ``make gpu-figures``.

Writes ``results/gpu_static.json`` and the table in ``docs/gpu.md``. Instructions are those of the main loops, a thread's for each
element; edges of rows and what is done once a row are left out. Times are computed from bytes and instructions, never measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pretended_gpu import TARGETS, Code, compiled, pretended, read, wide

import crossent.impl.triton as kernels
from crossent.core.target import BinaryTarget, Target

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/gpu_static.json"
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
SHAPES = {
    "rows of 128256": (4, 128256),
    "rows of 50257": (4, 50257),
    "rows of 1000": (4, 1000),
    "21 × 512 × 512": (2, 21, 512, 512),
    "elements": (1024, 1024),
}


class Gpu(NamedTuple):
    """A GPU as the model has it: the target, its peak of memory in TB/s, and lanes times clock in 1e12 a second."""

    target: str
    memory: float
    issue: float


# Peaks that their makers publish. A copy reaches about 0.9 of the memory's.
GPUS = {
    "H100": Gpu("sm_90", 3.35, 132 * 128 * 1.755e-3),
    "H200": Gpu("sm_90", 4.8, 132 * 128 * 1.755e-3),
    "B200": Gpu("sm_100", 8.0, 148 * 128 * 1.8e-3),
    "MI300X": Gpu("gfx942", 5.3, 304 * 64 * 2.1e-3),
}
_OF_PEAK = 0.9
MODELLED = {  # elements of the shapes whose time is computed
    "rows of 128256": 8192 * 128256,
    "rows of 50257": 8192 * 50257,
    "rows of 1000": 65536 * 1000,
    "21 × 512 × 512": 16 * 21 * 512 * 512,
    "elements": 8192 * 8192,
}


class Figures(NamedTuple):
    """What is read of one kernel."""

    kernel: str
    shape: str
    dtype: str
    target: str
    registers: int
    stack: int
    spills: int
    narrow: int  # accesses of memory in the main loops that are narrower than 16 bytes
    instructions: float


def call(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Return what launches all kernels that a shape is read for."""
    x = torch.zeros(shape, dtype=dtype)
    if shape[0] == 1024:
        target = BinaryTarget(torch.zeros(shape, dtype=dtype))
        return lambda: kernels.binary_cross_entropy_sum(x, target, 1.0, torch.float32, 1.0)
    rows = (shape[0], *shape[2:])
    described = Target(torch.zeros(rows, dtype=torch.int64))

    def launch() -> None:
        kernels.cross_entropy_forward(x, described, "none")
        kernels.cross_entropy_backward(torch.ones(()), x, described, torch.zeros(2, *rows))
        kernels.cross_entropy_sum(x, described, True, torch.float32, 1.0)

    return launch


def elements_a_thread(shape: tuple[int, ...], dtype: torch.dtype, lanes: int) -> float:
    """Tell how many elements a thread has of a block."""
    if shape[0] == 1024:
        return kernels.binary.block_of(torch.zeros(1, dtype=dtype)) / (4 * lanes)
    launch = kernels.to.arrange(torch.zeros(shape, dtype=dtype))
    rows, across, e = (each.value for each in launch.tile[:3])
    return float(rows * across * e / (lanes * launch.warps))


def main_loops(name: str, code: Code, ties: bool) -> list[list[str]]:
    """Take the loops over blocks that hold nothing but classes: the first of each walk.

    The walk for the sums has a loop for blocks at the edge behind it and, without ties, one over the lane that is read again.
    """
    if (
        name == "binary"
    ):  # which has no loop: a program has one block, and the code for the last of them stands beside it
        return [code.lines[: len(code.lines) // 2]]
    return [code.loops[0]] + ([code.loops[2 if ties else 3]] if name == "fused" else [])


def figures(target: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Iterator[Figures]:
    """Read the kernels for one target."""
    lanes = TARGETS[target].warp_size
    for shape_name, shape in shapes.items():
        for dtype_name, dtype in DTYPES.items():
            with pretended(target):
                each = elements_a_thread(shape, dtype, lanes)
                ties = shape[0] != 1024 and kernels.to.arrange(torch.zeros(shape, dtype=dtype)).tile.TIES.value
            for name, made in compiled(target, call(shape, dtype)).items():
                for kernel in made:
                    code = read(kernel)
                    loops = main_loops(name, code, ties)
                    narrow = sum(wide(loop)[2] for loop in loops) if name != "binary" else 0
                    count = round(sum(map(len, loops)) / each, 1)
                    yield Figures(
                        name, shape_name, dtype_name, target, code.registers, code.stack, code.spills, narrow, count
                    )


def seconds(row: Figures, gpu: Gpu) -> tuple[float, float]:
    """Compute the time that the memory takes and the time that the instructions take."""
    count, size = MODELLED[row.shape], DTYPES[row.dtype].itemsize
    passes = {"forward": 1, "backward": 2, "fused": 2, "binary": 3}[row.kernel]
    return count * size * passes / (gpu.memory * 1e12 * _OF_PEAK), count * row.instructions / (gpu.issue * 1e12)


def table(rows: list[Figures]) -> str:
    """Write the figures with the times that follow from them."""
    lines = [
        "| kernel | logits | dtype | target | registers | stack | instructions an element | computed, ms |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        times = []
        for name, gpu in GPUS.items():
            if gpu.target == row.target:
                memory, issue = seconds(row, gpu)
                times.append(f"{name} {1e3 * max(memory, issue):.2f}{' (issue)' if issue > memory else ''}")
        lines.append(
            f"| {row.kernel} | {row.shape} | {row.dtype} | {row.target} | {row.registers} | {row.stack} | "
            f"{row.instructions:.1f} | {', '.join(times) or '–'} |"
        )
    return "\n".join(lines)


def written(page: str, rows: list[Figures]) -> str:
    """Put the table into a page, between its marks."""
    begin, end = "<!-- gpu: figures -->\n", "\n<!-- end -->"
    head, rest = page.split(begin)
    return head + begin + "\n" + table(rows) + "\n" + rest[rest.index(end) :]


def stored() -> list[Figures]:
    """Read the figures that are kept."""
    return [Figures(**row) for row in json.loads(RESULTS.read_text("utf-8"))]


if __name__ == "__main__":
    found = [row for target in TARGETS for row in figures(target)]
    RESULTS.write_text(
        "[\n" + ",\n".join(json.dumps(row._asdict(), ensure_ascii=False) for row in found) + "\n]\n", "utf-8"
    )
    page = ROOT / "docs/gpu.md"
    page.write_text(written(page.read_text("utf-8"), found), "utf-8")
    sys.stdout.write(table(found) + "\n")
