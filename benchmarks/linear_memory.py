"""Peak memory of a head and its loss above inputs and gradients, each contender in a fresh process.

Run as a script it is that process: it prints the bytes for ``linear_memory.py CONTENDER ROWS DTYPE training|evaluation``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from memory import peak, status

ROWS, FEATURES, CLASSES = (1024, 8192), 768, 50257
DTYPES = ("float32", "bfloat16")
CONTENDERS = ("eager", "tuned", "crossent")


def child(contender: str, rows: int, dtype: str, backward: bool) -> dict:
    """Draw a problem and run it once; return in bytes how far the peak rose, and the sizes of everything."""
    import torch
    from linear import CHUNK, Case, contenders, draw, training

    import crossent

    case = Case("", rows, FEATURES, CLASSES, getattr(torch, dtype), (contender,), backward)
    (f,) = contenders(case).values()
    small = case._replace(rows=256, features=64, classes=2048)
    training(f, *draw(small))()  # what libraries and threads take once does not count
    h, w, y = draw(case)
    with contextlib.suppress(OSError):  # reset the peak, where the system allows it
        Path("/proc/self/clear_refs").write_text("5")
    before, resident = peak(), status("VmRSS")
    loss = f.loss(h, w, y)
    if backward:
        loss.backward()
    gradients = h.nbytes + w.nbytes if backward else 0
    at_a_time = {"eager": rows, "tuned": CHUNK, "crossent": crossent.linear_plan(h, w, y).rows}
    return {
        "above": peak() - before - gradients,
        "hidden": before - (resident or before),
        "states": h.nbytes,
        "head": w.nbytes,
        "logits": rows * CLASSES * h.itemsize,
        "block": at_a_time[contender] * CLASSES * h.itemsize,
    }


def measure_linear_memory(quick: bool = False) -> list[dict]:
    """Return a row for each problem: what the tensors take, and each contender above inputs and gradients, in MB."""
    rows = []
    problems = [(n, dtype, backward) for backward in (True, False) for n in ROWS for dtype in DTYPES]
    for n, dtype, backward in problems[:1] if quick else problems:
        title = f"{dtype} N = {n:,}" + ("" if backward else ", forward only")
        row: dict = {"title": title, "rows": n, "dtype": dtype, "backward": backward}
        row |= {"above": {}, "hidden": {}, "block": {}}
        for contender in CONTENDERS:
            command = [sys.executable, str(Path(__file__).resolve()), contender, str(n), dtype]
            command.append("training" if backward else "evaluation")
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row |= {name: out[name] / 1e6 for name in ("states", "head", "logits")}
            for name in ("above", "hidden", "block"):
                row[name][contender] = out[name] / 1e6
        print(title, row["above"], flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    who, n, kind, what = sys.argv[1:]
    print(json.dumps(child(who, int(n), kind, what == "training")))
