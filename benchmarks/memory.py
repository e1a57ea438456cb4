"""Peak memory of forward and backward, above logits and target, each contender in a fresh process.

Run as a script it is that process: it prints the bytes for ``memory.py CONTENDER LOSS ROWS CLASSES DTYPE``.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

SHAPE = (1024, 32000)
PROBLEMS = [("softmax", "float32"), ("softmax", "bfloat16"), ("binary", "float32")]
CONTENDERS = ("eager", "crossent", "inplace")


def status(key: str) -> int:
    """Read a number of bytes out of this process's status, or 0 where there is no such thing."""
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def peak() -> int:
    """Return the largest resident size so far, in bytes.

    The kernel's own count where there is one: what ``getrusage`` returns a child begins at its parent's size.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def child(contender: str, loss: str, rows: int, classes: int, dtype: str) -> dict:
    """Build the logits and run forward and backward once; return how far the peak rose, and the logits' size, in bytes."""
    import torch
    import torch.nn.functional as F
    from computed import computed

    import crossent

    name = {"softmax": "cross_entropy", "binary": "binary_cross_entropy_with_logits"}[loss]
    f = getattr(F if contender == "eager" else crossent, name)
    options = {"inplace_forward": True} if contender == "inplace" else {}
    torch.manual_seed(0)

    def draw(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn((n, c), dtype=getattr(torch, dtype), requires_grad=True)
        return x, torch.rand(n, c) if loss == "binary" else torch.randint(c, (n,))

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        f(computed(x), y, **options).backward()

    step(*draw(64, 1000))  # what libraries and threads take once does not count
    x, y = draw(rows, classes)
    with contextlib.suppress(OSError):  # reset the peak, where the system allows it
        Path("/proc/self/clear_refs").write_text("5")
    before, resident = peak(), status("VmRSS")
    step(x, y)
    return {"above": peak() - before, "logits": x.nbytes, "hidden": before - (resident or before)}


def measure_memory(quick: bool = False) -> list[dict]:
    """Return one row for each problem: the logits and what each contender takes above them, in MB.

    ``hidden`` is how far the peak lay above the resident size before the start: what the difference may miss.
    """
    rows = []
    for loss, dtype in PROBLEMS[:1] if quick else PROBLEMS:
        title = f"{dtype} {SHAPE}" + (", binary" if loss == "binary" else "")
        row: dict = {"title": title, "shape": list(SHAPE), "dtype": dtype, "above": {}, "hidden": {}}
        for contender in CONTENDERS:
            command = [sys.executable, str(Path(__file__).resolve()), contender, loss, *map(str, SHAPE), dtype]
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row["logits"] = out["logits"] / 1e6
            row["above"][contender], row["hidden"][contender] = out["above"] / 1e6, out["hidden"] / 1e6
        rows.append(row)
    return rows


if __name__ == "__main__":
    who, which, n, c, kind = sys.argv[1:]
    print(json.dumps(child(who, which, int(n), int(c), kind)))
