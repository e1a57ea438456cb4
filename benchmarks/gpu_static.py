"""What the GPU kernels are made of, read without a GPU, and the time that follows from it: ``make gpu-figures``.

Writes ``results/gpu_static.json`` and the table in ``docs/gpu-kernels.md``. Instructions are those of the main loops, a thread's
for each element; edges of rows and what is done once a row are left out. Times are computed from bytes and instructions, never
measured.
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
    """A GPU as the model has it.

    The target, the peak of its memory in TB/s, its multiprocessors, what one issues in 1e9 lanes a second, and the second cache in
    MB (of an MI300X, the one before its memory).
    """

    target: str
    memory: float
    count: int
    issue: float
    cache: float


# Peaks that their makers publish. A copy reaches about 0.9 of the memory's.
GPUS = {
    "H100": Gpu("sm_90", 3.35, 132, 128 * 1.755, 50),
    "H200": Gpu("sm_90", 4.8, 132, 128 * 1.755, 50),
    "B200": Gpu("sm_100", 8.0, 148, 128 * 1.8, 126),
    "MI300X": Gpu("gfx942", 5.3, 304, 64 * 2.1, 256),
}
_OF_PEAK, _OF_CACHE = 0.9, 0.8
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
    in_flight: int  # bytes of the rows that a multiprocessor works on at a time


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
        kernels.cross_entropy_statistics(x, described)

    return launch


def in_flight(name: str, shape: tuple[int, ...], dtype: torch.dtype, registers: int, lanes: int) -> int:
    """Tell how many bytes of rows a multiprocessor has at a time, which has 2048 threads and 65536 registers."""
    if len(shape) > 2 or shape[0] == 1024:
        return 0  # blocks of rows whose classes lie apart, and elements, are small or read once
    launch = launch_of(name, shape, dtype)
    threads = launch.warps * lanes
    programs = max(1, min(2048 // threads, 65536 // (threads * -(-registers // 8) * 8), 32))
    return int(programs * launch.tile.ROWS.value * shape[1] * dtype.itemsize)


def launch_of(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Tell how a kernel is launched."""
    x = torch.zeros(shape, dtype=dtype)
    return kernels.to.for_statistics(x) if name == "statistics" else kernels.to.arrange(x, False, name == "fused")


def elements_a_thread(name: str, shape: tuple[int, ...], dtype: torch.dtype, lanes: int) -> float:
    """Tell how many elements a thread has of a block."""
    if shape[0] == 1024:
        return kernels.binary.block_of(torch.zeros(1, dtype=dtype)) / (4 * lanes)
    launch = launch_of(name, shape, dtype)
    rows, across, e = (each.value for each in launch.tile[:3])
    return float(rows * across * e / (lanes * launch.warps))


READ_AGAIN = ("fused", "statistics")  # kernels with two walks over each row


def main_loops(name: str, code: Code, ties: bool) -> list[list[str]]:
    """Take the loops over blocks that hold nothing but classes: the first of each walk.

    The walk for the sums has a loop for blocks at the edge behind it and, without ties, one over the lane that is read again.
    """
    if (
        name == "binary"
    ):  # which has no loop: a program has one block, and the code for the last of them stands beside it
        return [code.lines[: len(code.lines) // 2]]
    return [code.loops[0]] + ([code.loops[2 if ties else 3]] if name in READ_AGAIN else [])


def figures(target: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Iterator[Figures]:
    """Read the kernels for one target."""
    for shape_name, shape in shapes.items():
        for dtype_name, dtype in DTYPES.items():
            for name, made in compiled(target, call(shape, dtype)).items():
                for kernel in made:
                    yield _figures(kernel, name, shape_name, dtype_name, target)


def _figures(kernel: Any, name: str, shape_name: str, dtype_name: str, target: str) -> Figures:
    """Read one kernel."""
    code, lanes, shape, dtype = read(kernel), TARGETS[target].warp_size, SHAPES[shape_name], DTYPES[dtype_name]
    with pretended(target):
        each = elements_a_thread(name, shape, dtype, lanes)
        ties = shape[0] != 1024 and kernels.to.arrange(torch.zeros(shape, dtype=dtype)).tile.TIES.value
        at_a_time = in_flight(name, shape, dtype, code.registers, lanes) if name in READ_AGAIN else 0
    loops = main_loops(name, code, ties)
    narrow = sum(wide(loop)[2] for loop in loops) if name != "binary" else 0
    count = round(sum(map(len, loops)) / each, 1)
    return Figures(
        name, shape_name, dtype_name, target, code.registers, code.stack, code.spills, narrow, count, at_a_time
    )


def passes(row: Figures, gpu: Gpu) -> int:
    """Tell how often the logits' bytes go to or from the memory; a row that the cache has lost is read once more."""
    lost = row.in_flight * gpu.count > gpu.cache * 1e6 * _OF_CACHE
    return {"forward": 1, "backward": 2, "binary": 3, "fused": 2, "statistics": 1}[row.kernel] + lost


def seconds(row: Figures, gpu: Gpu) -> tuple[float, float]:
    """Compute the time that the memory takes and the time that the instructions take."""
    count, size = MODELLED[row.shape], DTYPES[row.dtype].itemsize
    memory = count * size * passes(row, gpu) / (gpu.memory * 1e12 * _OF_PEAK)
    return memory, count * row.instructions / (gpu.count * gpu.issue * 1e9)


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
                why = (
                    " (issue)"
                    if issue > memory
                    else " (read twice)"
                    if passes(row, gpu) > {"fused": 2, "statistics": 1}.get(row.kernel, 3)
                    else ""
                )
                times.append(f"{name} {1e3 * max(memory, issue):.2f}{why}")
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
    page = ROOT / "docs/gpu-kernels.md"
    page.write_text(written(page.read_text("utf-8"), found), "utf-8")
    sys.stdout.write(table(found) + "\n")
