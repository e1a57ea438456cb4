"""Timing of a head and its loss beside the bare matrix products that no way of computing them can do without.

The unit is three products into memory that exists, ``h Wᵀ``, ``G W`` and ``Gᵀ h``; without a gradient it is the first. A call takes
seconds, so contenders take turns for a few rounds, and a contender that is far slower than the others for fewer. Run as a
script it is the fresh process of one problem: it prints a row of the results for ``linear.py NAME THREADS``.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measure import burst, interleave, ratio, spread
from torch import Tensor, nn

import crossent

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LARGE = 1 << 40  # bytes: a block that takes everything
CHUNK = 256  # rows, for torch's operator
CHECKED = 1024  # rows on which the contenders' results are compared before anything is timed
SHORT = 0.1  # seconds: shorter steps are timed in bursts
SECONDS = 4.0  # for a problem of short steps
ROUNDS = 5  # of long steps

# The largest error of the loss, and of a gradient by its norm, against torch's float32 result.
ALLOWED = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (8e-3, 2e-2)}


class Contender(NamedTuple):
    """A mean loss as a function of hidden states, head and target, and how many rounds it takes part in."""

    loss: Loss
    rounds: int = ROUNDS
    sums_in_bfloat16: bool = False  # so that its loss is left unchecked here; linear_accuracy.py measures it
    all_rows: bool = False  # no row is ignored, whatever the target says


class Case(NamedTuple):
    """One problem. ``name`` is for ``--only``; ``who`` takes part."""

    name: str
    rows: int
    features: int
    classes: int
    dtype: torch.dtype
    who: tuple[str, ...]
    backward: bool = True
    ignored: float = 0.0
    rounds: int = ROUNDS
    quick: bool = False

    @property
    def title(self) -> str:
        """Say in words what is measured."""
        parts = [f"{dtype_name(self.dtype)} N = {self.rows:,}, D = {self.features}, V = {self.classes:,}"]
        parts += [f"{self.ignored:.0%} ignored".replace("%", " %")] * bool(self.ignored)
        return ", ".join(parts + ["forward only"] * (not self.backward))


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as people do."""
    return str(dtype).removeprefix("torch.")


ALL = ("eager", "compile", "chunked", "tuned", "crossent", "large")
FEW = ("eager", "crossent")
MODEL = (768, 50257)  # features and classes
FLOAT, HALF = torch.float32, torch.bfloat16

CASES = [
    Case("linear-float32", 1024, *MODEL, FLOAT, ALL),
    Case("linear-bfloat16", 1024, *MODEL, HALF, ALL),
    Case("linear-8192-float32", 8192, *MODEL, FLOAT, FEW, rounds=3),
    Case("linear-8192-bfloat16", 8192, *MODEL, HALF, FEW, rounds=3),
    Case("linear-ignored", 1024, *MODEL, FLOAT, ("eager", "whole", "crossent"), ignored=0.5),
    Case("linear-4d", 1024, 768, 4 * 768, FLOAT, ("eager", "compile", "tuned", "crossent")),
    Case("linear-4d-bfloat16", 1024, 768, 4 * 768, HALF, ("eager", "compile", "tuned", "crossent")),
    Case("linear-small", 128, 64, 1000, FLOAT, ("eager", "compile", "crossent"), quick=True),
    Case("linear-evaluation-float32", 1024, *MODEL, FLOAT, ("eager", "tuned", "crossent"), backward=False),
    Case("linear-evaluation-bfloat16", 1024, *MODEL, HALF, ("eager", "tuned", "crossent"), backward=False),
]


def eager(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h, w), y)


def chunked(**settings: object) -> Loss:
    """Return torch's own operator in chunks of rows."""
    options = nn.LinearCrossEntropyOptions(**settings)
    return lambda h, w, y: F.linear_cross_entropy(h, w, y, options=options)


def contenders(case: Case) -> dict[str, Contender]:
    """Return who takes part.

    "chunked" is torch's operator as it chooses its chunks itself; "tuned" is the fastest setting that was found for it on a CPU.
    "large" is crossent in one block. "whole" is crossent on a target without ignored rows.
    """
    torch.compiler.reset()
    half = case.dtype == HALF

    def whole(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return crossent.linear_cross_entropy(h, w, y.clamp(min=0))

    found = {
        "eager": Contender(eager, case.rounds),
        "compile": Contender(torch.compile(eager, options={"cpp.threads": torch.get_num_threads()}), case.rounds),
        "chunked": Contender(chunked(), 2, half),
        "tuned": Contender(chunked(batch_chunk_size=CHUNK, acc_policy="accurate"), 3, half),
        "crossent": Contender(crossent.linear_cross_entropy, case.rounds),
        "large": Contender(
            lambda h, w, y: crossent.linear_cross_entropy(h, w, y, max_bytes=LARGE), case.rounds
        ),
        "whole": Contender(whole, case.rounds, all_rows=True),
    }  # fmt: skip
    return {name: found[name] for name in case.who}


def draw(case: Case, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw hidden states, a head that makes logits of about unit variance, and a target."""
    rows = case.rows if rows is None else rows
    h = torch.randn(rows, case.features).to(case.dtype).requires_grad_(case.backward)
    w = (torch.randn(case.classes, case.features) * case.features**-0.5).to(case.dtype).requires_grad_(case.backward)
    y = torch.randint(case.classes, (rows,))
    y[torch.randperm(rows)[: int(case.ignored * rows)]] = -100
    return h, w, y


def products(case: Case, h: Tensor, w: Tensor) -> Callable[[], None]:
    """Return the unit."""
    h, w = h.detach(), w.detach()
    logits, at_h, at_w = torch.zeros(len(h), len(w), dtype=h.dtype), torch.zeros_like(h), torch.zeros_like(w)

    def step() -> None:
        torch.mm(h, w.t(), out=logits)
        if case.backward:
            torch.mm(logits, w, out=at_h)
            torch.mm(logits.t(), h, out=at_w)

    return step


def training(f: Contender, h: Tensor, w: Tensor, y: Tensor) -> Callable[[], None]:
    """Return forward, and backward where a gradient is wanted."""

    def step() -> None:
        loss = f.loss(h, w, y)
        if h.requires_grad:
            loss.backward()
            h.grad = w.grad = None

    return step


def result(f: Contender, h: Tensor, w: Tensor, y: Tensor) -> list[Tensor]:
    """Run once; return the loss and, where they are wanted, the gradients."""
    loss = f.loss(h, w, y)
    return [loss.detach(), *(torch.autograd.grad(loss, (h, w)) if h.requires_grad else ())]


def off(found: Tensor, right: Tensor) -> float:
    """Return the relative error by the norm."""
    return ((found.to(right.dtype) - right).norm() / right.norm()).item()


def warm_up(case: Case, peers: dict[str, Contender]) -> dict[str, str]:
    """Run every contender and check its result, on some of the rows; return who cannot run, and why.

    Raises:
        AssertionError: a contender computes something else than torch does in float32.
    """
    failed: dict[str, str] = {}
    h, w, y = draw(case, min(case.rows, CHECKED))
    wide = [x.detach().float().requires_grad_(case.backward) for x in (h, w)]
    right = {f.all_rows: result(Contender(eager), *wide, y.clamp(min=0) if f.all_rows else y) for f in peers.values()}
    for name, f in peers.items():
        try:
            found = result(f, h, w, y)
        except Exception as error:
            if name != "compile":
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        errors = [off(*pair) for pair in zip(found, right[f.all_rows], strict=True)]
        of_loss, of_gradient = ALLOWED[case.dtype]
        if max(errors[1:], default=0.0) > of_gradient or not (errors[0] <= of_loss or f.sums_in_bfloat16):
            raise AssertionError(f"{name} is wrong for {case.title}: relative errors of loss and gradients {errors}")
    return failed


def take_turns(steps: dict[str, Callable[[], None]], rounds: dict[str, int]) -> dict[str, list[float]]:
    """Time one call of each contender in turn, each round beginning with another one."""
    order, times = list(steps), {name: [] for name in steps}
    for k in range(max(rounds.values())):
        for name in order:
            if k < rounds[name]:
                times[name].append(burst(steps[name], 1))
        order.append(order.pop(0))
        gc.collect()
    return times


def measure(case: Case, threads: int) -> dict:
    """Check and time one problem with so many threads; return its row of the results."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    peers = contenders(case)
    failed = warm_up(case, peers)
    h, w, y = draw(case)
    steps = {"products": products(case, h, w)}
    steps |= {name: training(f, h, w, y) for name, f in peers.items() if name not in failed}
    steps["products"]()
    if burst(steps["products"], 1) < SHORT:
        times, _ = interleave(steps, SECONDS)
    else:
        times = take_turns(steps, {"products": case.rounds} | {name: f.rounds for name, f in peers.items()})

    def over(name: str, unit: str) -> float:
        return ratio(times[name], times[unit][: len(times[name])])

    return {
        "name": case.name,
        "title": case.title,
        "rows": case.rows,
        "features": case.features,
        "classes": case.classes,
        "dtype": dtype_name(case.dtype),
        "backward": case.backward,
        "threads": threads,
        "plan": list(crossent.linear_plan(h, w, y)),
        "rounds": {name: len(t) for name, t in times.items()},
        "ms": {name: 1e3 * median(t) for name, t in times.items()},
        "spread": {name: spread(t) for name, t in times.items()},
        "products": {name: over(name, "products") for name in times if name != "products"},
        "over_crossent": {
            name: ratio(t, times["crossent"][: len(t)])
            for name, t in times.items()
            if name not in ("products", "crossent")
        },
        "failed": failed,
    }


def measure_linear(chosen: list[Case], threads: int) -> list[dict]:
    """Measure each problem in a process of its own."""
    rows = []
    for case in chosen:
        command = [sys.executable, str(Path(__file__).resolve()), case.name, str(threads)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        times = "  ".join(f"{name} {x:.2f}" for name, x in rows[-1]["products"].items())
        unit = f"{rows[-1]['ms']['products']:.1f} ms"
        print(f"{case.title:<58} {threads} thr  {times} of the products' {unit}", flush=True)
    return rows


if __name__ == "__main__":
    name, count = sys.argv[1:]
    (one,) = (case for case in CASES if case.name == name)
    print(json.dumps(measure(one, int(count))))
