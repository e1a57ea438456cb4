"""A GPU that is not there: Triton compiles for it and launches nothing, and what it compiled can be read.

The wrappers run as they are, on tensors of the CPU: arguments are specialised, and kernels are compiled to the processor's own
code. It needs Triton and no GPU, and ``TRITON_INTERPRET`` must not be set.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import crossent.impl.triton as kernels

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "forward": kernels.forward,
    "backward": kernels.backward,
    "fused": kernels.fused,
    "statistics": kernels.statistics,
    "binary": kernels.binary.binary,
}
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, *_: Any) -> tuple[Any, ...]:
        return object(), 0, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class _Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> None:
        pass


class _Driver:
    """What Triton asks a driver for, as far as it compiles and launches."""

    launcher_cls = _Launcher

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.utils = target, _Utils()

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextmanager
def pretended(target: str) -> Iterator[None]:
    """Compile for a GPU in this block, with tensors of the CPU in the place of its own."""
    before = set(kernels._DEVICES)
    kernels._DEVICES.add("cpu")
    driver.set_active(_Driver(TARGETS[target]))
    try:
        yield
    finally:
        driver._active = None  # what it was: to reset it, Triton would look for a GPU
        kernels._DEVICES.clear()
        kernels._DEVICES.update(before)


def compiled(target: str, call: Callable[[], Any], of: dict[str, Any] = KERNELS) -> dict[str, list[Any]]:
    """Make a call and return what was compiled for it of some kernels, by the kernel's name."""
    for kernel in of.values():
        kernel.device_caches.clear()
    with pretended(target):
        call()
    caches = {name: kernel.device_caches for name, kernel in of.items()}
    return {name: list(cache[0][0].values()) for name, cache in caches.items() if 0 in cache}


# --- reading what was compiled ----------------------------------------------------------------------------------------


class Code(NamedTuple):
    """A kernel in a processor's own code."""

    registers: int
    stack: int  # bytes a thread
    spills: int  # loads and stores of registers
    lines: list[str]
    loops: list[list[str]]  # the instructions of each, without what a branch may jump over


_KIND = {  # of a processor: a label, an instruction, a branch, registers that go to memory
    "cubin": (r"\s*(\.L_x_\d+):", r"\s*/\*[0-9a-f]+\*/\s+(.*?);", r"BRA.*?`\((\.L_x_\d+)\)", r"\b(LDL|STL)"),
    "amdgcn": (r"(\.LBB\d+_\d+):", r"\t([a-z]\w+.*)", r"s_c?branch\w* (\.LBB\d+_\d+)", r"scratch_(load|store)"),
}


def _tool(name: str, cubin: bytes, *flags: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / name), *flags, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(kernel: Any) -> Code:
    """Read a compiled kernel."""
    kind = "cubin" if "cubin" in kernel.asm else "amdgcn"
    if kind == "cubin":
        text = _tool("nvdisasm", kernel.asm["cubin"], "-c")
        usage = _tool("cuobjdump", kernel.asm["cubin"], "-res-usage")
        registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    else:
        text = kernel.asm["amdgcn"]
        registers, stack = (
            int(re.findall(rf"\.{name}: *(\d+)", text)[0]) for name in ("vgpr_count", "private_segment_fixed_size")
        )
    lines, loops = _loops(text, *_KIND[kind][:3])
    spills = sum(bool(re.match(_KIND[kind][3], re.sub(r"^@!?U?P\d+ ", "", line))) for line in lines)
    return Code(registers, stack, spills, lines, loops)


def _loops(text: str, label: str, instruction: str, branch: str) -> tuple[list[str], list[list[str]]]:
    lines: list[str] = []
    at: dict[str, int] = {}
    for line in text.splitlines():
        if found := re.match(label, line):
            at[found[1]] = len(lines)
        elif found := re.match(instruction, line):
            lines.append(found[1].strip())
    jumps = [(i, at.get(found[1], -1)) for i, line in enumerate(lines) if (found := re.search(branch, line))]
    loops = []
    for end, begin in jumps:
        if 0 <= begin < end:
            skipped = {k for i, to in jumps if begin <= i < to <= end for k in range(i + 1, to)}
            loops.append([lines[k] for k in range(begin, end + 1) if k not in skipped])
    return lines, loops


def wide(instructions: list[str]) -> tuple[int, int, int]:
    """Count loads and stores of 16 bytes of memory, and those that are narrower."""
    loads = [line for line in instructions if re.search(r"LDG|(global|buffer)_load", line)]
    stores = [line for line in instructions if re.search(r"STG|(global|buffer)_store", line)]
    of_16 = r"\.128|dwordx4|_b128"
    wide_loads, wide_stores = (sum(bool(re.search(of_16, line)) for line in each) for each in (loads, stores))
    return wide_loads, wide_stores, len(loads) + len(stores) - wide_loads - wide_stores
