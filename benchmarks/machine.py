"""What the measurements were made on."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import datetime, timezone

import torch
from pages import huge_pages

import crossent

IDLE = 0.5  # the load average over the last minute below which a machine counts as idle


def processor() -> str:
    """Name the processor's model."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def instruction_set() -> str | None:
    """Name the instruction set of crossent's kernels, or None without them."""
    try:
        from crossent import _native
    except ImportError:
        return None
    return _native.isa()


def instruction_sets() -> list[str]:
    """List the instruction sets that crossent's kernels are there for; none without them."""
    try:
        from crossent import _native
    except ImportError:
        return []
    return _native.isas()


def compiler() -> str | None:
    """Name the C++ compiler that torch.compile uses, or None where it finds none."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        command = [get_cpp_compiler(), "--version"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except Exception:
        return None


def describe_machine() -> dict:
    """Gather what a reader needs to know about this machine, before anything is run on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": huge_pages(),
        "crossent": crossent.__version__,
        "torch": torch.__version__,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "compiler": compiler(),
        "load": load,
        "idle": load is None or load < IDLE,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
