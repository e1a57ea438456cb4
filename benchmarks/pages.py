"""What page faults cost: one copy of large logits into memory that is fresh, on small or huge pages, used again, or there."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from measure import copying, interleave, ratio, spread
from torch import Tensor

MEGABYTES = 131  # as float32 logits (1024, 32000) are
HUGE_PAGE = 1 << 21


def available() -> bool:
    """Whether this system lets a program choose its pages."""
    return all(hasattr(mmap, name) for name in ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_FREE"))


def huge_pages() -> str | None:
    """Read this system's setting for transparent huge pages: always, madvise or never."""
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return setting[setting.index("[") + 1 : setting.index("]")]


def pages(like: Tensor, advice: int) -> tuple[Tensor, mmap.mmap]:
    """Ask the system for memory for such a tensor, as malloc does for large ones, and say in which pages it is to come."""
    memory = mmap.mmap(-1, like.nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=start), memory


def fresh(source: Tensor, advice: int) -> Callable[[], None]:
    """Return a step that takes new memory, copies into it and gives it back to the system."""

    def step() -> None:
        tensor, memory = pages(source, advice)
        tensor.copy_(source)
        del tensor
        memory.close()

    return step


def used_again(source: Tensor) -> Callable[[], None]:
    """Return a step that copies into the same memory every time and then offers it to the system, as csrc/recycle.h does."""
    tensor, memory = pages(source, mmap.MADV_HUGEPAGE)

    def step() -> None:
        tensor.copy_(source)
        memory.madvise(mmap.MADV_FREE)

    return step


def faults(step: Callable[[], None]) -> int:
    """Count the page faults of one call, not the first."""
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure_pages(threads: int, seconds: float) -> dict:
    """Time the copy into each kind of memory with so many threads, interleaved."""
    torch.set_num_threads(threads)
    source = torch.randn(MEGABYTES * 10**6 // 4)
    steps = {
        "small": fresh(source, mmap.MADV_NOHUGEPAGE),
        "huge": fresh(source, mmap.MADV_HUGEPAGE),
        "again": used_again(source),
        "there": copying(source),
    }
    counted = {name: faults(step) for name, step in steps.items()}
    times, _ = interleave(steps, seconds)
    return {
        "threads": threads,
        "megabytes": MEGABYTES,
        "faults": counted,
        "spread": {name: spread(t) for name, t in times.items()},
        "copies": {name: ratio(t, times["there"]) for name, t in times.items()},
    }
