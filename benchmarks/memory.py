"""Peak memory of forward and backward, above the logits, each contender in a fresh process.

Run as a script it is that process: it prints the bytes for ``memory.py CONTENDER ROWS CLASSES DTYPE``.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

SHAPE = (1024, 32000)
DTYPES = ("float32", "bfloat16")
CONTENDERS = ("eager", "crossent")


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


def child(contender: str, rows: int, classes: int, dtype: str) -> dict:
    """Build the logits and run forward and backward once; return how far the peak rose, and the logits' size, in bytes."""
    import torch
    import torch.nn.functional as F

    import crossent

    f = {"eager": F.cross_entropy, "crossent": crossent.cross_entropy}[contender]
    torch.manual_seed(0)

    def draw(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn((n, c), dtype=getattr(torch, dtype), requires_grad=True), torch.randint(c, (n,))

    small, few = draw(64, 1000)
    f(small, few).backward()  # what libraries and threads take once does not count
    x, y = draw(rows, classes)
    with contextlib.suppress(OSError):  # forget peaks of the past where the kernel lets us
        Path("/proc/self/clear_refs").write_text("5")
    before, resident = peak(), status("VmRSS")
    f(x, y).backward()
    return {"above": peak() - before, "logits": x.nbytes, "hidden": before - (resident or before)}


def measure_memory(dtypes: tuple[str, ...] = DTYPES) -> list[dict]:
    """Return one row for each dtype: the logits and what each contender takes above them, in MB.

    ``hidden`` is how far the peak lay above the resident size before the start: what the difference may miss.
    """
    rows = []
    for dtype in dtypes:
        row: dict = {"title": f"{dtype} {SHAPE}", "shape": list(SHAPE), "dtype": dtype, "above": {}, "hidden": {}}
        for contender in CONTENDERS:
            command = [sys.executable, str(Path(__file__).resolve()), contender, *map(str, SHAPE), dtype]
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row["logits"] = out["logits"] / 1e6
            row["above"][contender], row["hidden"][contender] = out["above"] / 1e6, out["hidden"] / 1e6
        rows.append(row)
    return rows


if __name__ == "__main__":
    name, n, c, kind = sys.argv[1:]
    print(json.dumps(child(name, int(n), int(c), kind)))
