"""The head and its loss in two ways: with the logits of all tokens, as torch does it, and without.

Run as a module this is the fresh process in which the memory of one way is measured:
``python -m crossent.tools.train.language.heads WAY SEQUENCES LENGTH FEATURES CLASSES THREADS`` prints how many bytes the peak rose.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossent import linear_cross_entropy
from crossent.core import torchs

TORCH, CROSSENT = "torch", "crossent"


class Shape(NamedTuple):
    """How many tokens of how many features meet how many classes."""

    sequences: int
    length: int
    features: int
    classes: int


def with_logits(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Average the cross entropy of the next token by ``F.linear`` and ``F.cross_entropy``."""
    logits = F.linear(hidden[:, :-1], weight)
    return torchs.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def without_logits(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Compute the same by ``crossent.linear_cross_entropy``."""
    return linear_cross_entropy(hidden, weight, tokens, shift=1)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {TORCH: with_logits, CROSSENT: without_logits}
CALLS = {TORCH: "F.linear, F.cross_entropy", CROSSENT: "linear_cross_entropy"}


# --- memory -----------------------------------------------------------------------------------------------------------


def measure_peaks(shape: Shape) -> dict[str, int | None]:
    """Measure how far forward and backward of each way raise the peak memory, above hidden states and head, in bytes.

    Each way has a fresh process, for a peak never falls; None where the system does not tell.
    """
    processes = {
        way: subprocess.Popen(
            [sys.executable, "-m", __name__, way, *map(str, shape), str(torch.get_num_threads())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for way in WAYS
    }
    peaks: dict[str, int | None] = {}
    for way, process in processes.items():
        said, wrong = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the memory of {CALLS[way]} could not be measured: {wrong.strip()}")
        peaks[way] = int(said) if said.strip() else None
    return peaks


def peak_of(way: str, shape: Shape) -> int | None:
    """Go forward and backward once, and return how far the peak rose."""

    def step(shape: Shape) -> int | None:
        hidden = torch.randn(shape[:3], requires_grad=True)
        weight = torch.randn(shape.classes, shape.features, requires_grad=True)
        tokens = torch.randint(shape.classes, shape[:2])
        with contextlib.suppress(OSError):  # reset the peak, where the system allows it
            Path("/proc/self/clear_refs").write_text("5")
        before = _peak()
        WAYS[way](hidden, weight, tokens).backward()
        after = _peak()
        return None if before is None or after is None else after - before

    step(Shape(2, 64, shape.features, 1024))  # what libraries and threads take once does not count
    return step(shape)


def _peak() -> int | None:
    """Return the largest resident size so far, in bytes: by the kernel's own count where there is one."""
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


if __name__ == "__main__":
    asked, *numbers = sys.argv[1:]
    torch.set_num_threads(int(numbers.pop()))
    found = peak_of(asked, Shape(*map(int, numbers)))
    print("" if found is None else found)
