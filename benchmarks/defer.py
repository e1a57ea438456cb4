"""A training step of tiny models with wide heads, with and without a deferred head: its peak of memory and its time.

Each is a fresh process. Run as a script it is that process: it prints bytes and milliseconds for
``defer.py plain|deferred CLASSES ROUNDS``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from memory import peak, status

ROWS, LENGTH, FEATURES, CLASSES = 4, 512, 128, (32_000, 128_000, 256_000)
CONTENDERS = ("plain", "deferred")
ROUNDS = 5


def child(contender: str, classes: int, rounds: int) -> dict:
    """Train for a few steps; return in bytes how far the peak rose above parameters and gradients, and the median of the times."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    import crossent

    class Model(nn.Module):
        """The head of a language model that computes its loss itself, with next to nothing before it."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.mix = nn.Embedding(classes, FEATURES), nn.Linear(FEATURES, FEATURES)
            self.lm_head = nn.Linear(FEATURES, classes, bias=False)
            self.lm_head.weight = self.tokens.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits = self.lm_head(torch.tanh(self.mix(self.tokens(tokens))))
            return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())

    torch.manual_seed(0)
    model = Model()
    if contender == "deferred":
        crossent.defer(model.lm_head)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    tokens = torch.randint(classes, (ROWS, LENGTH))
    with contextlib.suppress(OSError):  # reset the peak, where the system allows it
        Path("/proc/self/clear_refs").write_text("5")
    before, resident, times, loss = peak(), status("VmRSS"), [], 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        step = model(tokens)
        step.backward()
        times.append(1e3 * (time.perf_counter() - start))
        loss = step.item()
    return {
        "above": peak() - before,
        "hidden": before - (resident or before),
        "ms": median(times[1:] or times),
        "loss": loss,
        "head": model.lm_head.weight.nbytes,
        "logits": ROWS * LENGTH * classes * 4,
        "formed": crossent.Logits.formed,
    }


def measure_defer(quick: bool = False) -> list[dict]:
    """Return a row for each number of classes: megabytes above parameters and gradients, and milliseconds of a step."""
    rows = []
    for classes in CLASSES[:1] if quick else CLASSES:
        row: dict = {"title": f"V = {classes:,}", "classes": classes, "above": {}, "ms": {}, "loss": {}}
        for contender in CONTENDERS:
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                contender,
                str(classes),
                str(2 if quick else ROUNDS),
            ]
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row |= {name: out[name] / 1e6 for name in ("head", "logits")}
            row["above"][contender], row["ms"][contender], row["loss"][contender] = (
                out["above"] / 1e6,
                out["ms"],
                out["loss"],
            )
        print(row["title"], row["above"], row["ms"], flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    who, width, count = sys.argv[1:]
    print(json.dumps(child(who, int(width), int(count))))
