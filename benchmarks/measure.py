"""Timing of interleaved contenders, after a check that they compute the same thing.

Run as a script it is the fresh process of one problem: it prints a row of the results for ``measure.py NAME THREADS SECONDS``.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import torch
from problems import CASES, Case, Contender, arguments, contenders, logits
from torch import Tensor

import crossent

Step = Callable[[], object]  # what is timed, or done between two that are timed

BURST = 2e-3  # seconds that one timed burst of calls should last at least
MOST_CALLS = 1000  # in a burst
MOST_ROUNDS = 100
LEAST_ROUNDS = 5

# Relative errors of loss and gradient against torch's eager float32, allowed to crossent and to torch. In half precision
# torch's eager rounds the logarithms of the probabilities, which costs it more than the last place.
ALLOWED = {
    torch.float32: {"crossent": 1e-4, "torch": 1e-4},
    torch.bfloat16: {"crossent": 8e-3, "torch": 8e-2},
    torch.float16: {"crossent": 1e-3, "torch": 1e-2},
}


@contextmanager
def run_as(f: Contender) -> Iterator[None]:
    """Let crossent's large gradients be fresh memory, or its kernels another set, for a contender that wants it so."""
    if not f.fresh and f.isa is None:
        yield
        return
    from crossent.impl import native

    recycles, isa = native._RECYCLES, native._native.isa()
    native._RECYCLES = recycles and not f.fresh
    native._native.use_isa(f.isa or isa)
    try:
        yield
    finally:
        native._RECYCLES = recycles
        native._native.use_isa(isa)


def loss_and_gradient(f: Contender, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run forward and backward once and take the gradient off the leaf."""
    with run_as(f):
        loss = f.loss(x)
        loss.backward()
    grad, x.grad = x.grad, None
    return loss.detach(), grad


def wrong(loss: Tensor, grad: Tensor, reference: tuple[Tensor, Tensor], allowed: float) -> str | None:
    """Compare with the reference; return what is wrong, or None.

    Every element of the gradient may be off by ``allowed`` relative to itself, plus a ten-millionth of the largest and the
    spacing of its dtype's smallest numbers: a probability may cancel, and a float16 gradient may underflow.
    """
    right_loss, right = reference
    if not (loss.float() - right_loss).abs() <= allowed * right_loss.abs():
        return f"loss {loss.item()} instead of {right_loss.item()}"
    kind = torch.finfo(grad.dtype)
    bound = right.abs().mul_(allowed).add_(1e-7 * right.abs().max() + kind.smallest_normal * kind.eps)
    off = (grad.float() - right).abs_()
    bad = ~(off <= bound)
    return f"{int(bad.sum())} elements of the gradient, off by up to {off.max().item():.3g}" if bad.any() else None


def warm_up(case: Case, peers: dict[str, Contender], given: dict[str, Tensor]) -> dict[str, str]:
    """Run every contender on its logits and check its result, so that nothing wrong is timed; return who cannot run, and why.

    Raises:
        AssertionError: a contender computes something else than torch does in float32.
    """
    failed: dict[str, str] = {}
    reference = loss_and_gradient(peers["eager"], given["eager"].detach().float().requires_grad_())
    for name, f in peers.items():
        if not f.backward:
            continue
        try:
            result = loss_and_gradient(f, given[name])
        except Exception as error:
            if name != "compile":
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        who = "torch" if name in ("eager", "compile") else "crossent"
        fault = wrong(*result, reference, ALLOWED[case.dtype][who])
        if fault:
            raise AssertionError(f"{name} is wrong for {case.title}: {fault}")
        del result
        loss_and_gradient(f, given[name])
    return failed


def copying(x: Tensor) -> Step:
    """Return the unit: one plain copy of the logits into a tensor that exists."""
    x = x.detach()
    y = torch.empty_like(x).copy_(x)

    def step() -> None:
        y.copy_(x)

    return step


def training(f: Contender, x: Tensor) -> Step:
    """Return forward and backward with a new gradient. The time includes making it and dropping it."""
    loss = f.loss

    def forward() -> None:
        with torch.no_grad():
            loss(x)

    def both() -> None:
        loss(x).backward()
        x.grad = None

    def both_as_it_wants() -> None:
        with run_as(f):
            both()

    return forward if not f.backward else both_as_it_wants if f.fresh or f.isa else both


def burst(step: Step, calls: int, restore: Step | None = None) -> float:
    """Return the seconds that one call takes, averaged over a burst of them. What each leaves is restored outside of the time."""
    if restore is None:
        start = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - start) / calls
    took = 0.0
    for _ in range(calls):
        took += burst(step, 1)
        restore()
    return took / calls


def calls_for(step: Step, restore: Step | None = None) -> int:
    """Find how many calls make a burst long enough for the clock."""
    calls = 1
    while calls < MOST_CALLS and calls * (each := burst(step, calls, restore)) < BURST:
        calls = min(MOST_CALLS, max(2 * calls, int(BURST / each) + 1))
    return calls


def interleave(
    steps: dict[str, Step], seconds: float, restore: dict[str, Step] | None = None
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time bursts of each contender in turn, round by round, each round beginning with another one.

    ``restore`` has what is to be done after a step of some of them. Garbage is collected between the rounds and not within.
    """
    after = restore or {}
    calls = {name: calls_for(step, after.get(name)) for name, step in steps.items()}
    order = list(steps)
    times: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(MOST_ROUNDS):
            if done >= LEAST_ROUNDS and (time.perf_counter() - start) * (done + 1) / done > seconds:
                break
            for name in order:
                times[name].append(burst(steps[name], calls[name], after.get(name)))
            order.append(order.pop(0))
            gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()
    return times, calls


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def spread(times: list[float]) -> float:
    """Return the distance of the quartiles relative to the median: how noisy the measurement was."""
    low, middle, high = quantiles(times, n=4)
    return (high - low) / middle


def measure(case: Case, threads: int, seconds: float) -> dict:
    """Check and time one problem with so many threads; return its row of the results."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x, (target, options) = logits(case), arguments(case)
    implementation = crossent.choose_implementation(x, target=target)
    peers = contenders(case, target, options, implementation)
    given = {name: x.detach().clone().requires_grad_() if f.overwrites else x for name, f in peers.items()}
    failed = warm_up(case, peers, given)
    steps = {"copy": copying(x)} | {name: training(f, given[name]) for name, f in peers.items() if name not in failed}
    # A gradient makes logits of which nearly all are equal, and the largest takes longer to find among such.
    restore = {name: partial(given[name].data.copy_, x.detach()) for name, f in peers.items() if f.overwrites}
    times, calls = interleave(steps, seconds, restore)
    return {
        "name": case.name,
        "title": case.title,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "small": case.small,
        "threads": threads,
        "implementation": implementation,
        "rounds": len(times["copy"]),
        "calls": calls,
        "ms": {name: 1e3 * median(t) for name, t in times.items()},
        "spread": {name: spread(t) for name, t in times.items()},
        "copies": {name: ratio(t, times["copy"]) for name, t in times.items() if name != "copy"},
        "over_crossent": {
            name: ratio(times[name], times["crossent"]) for name in ("eager", "compile") if name in times
        },
        "failed": failed,
    }


def measure_alone(case: Case, threads: int, seconds: float) -> dict:
    """Measure a problem in a process of its own: what malloc keeps of another problem's memory makes fresh pages rarer."""
    command = [sys.executable, str(Path(__file__).resolve()), case.name, str(threads), str(seconds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    name, threads, seconds = sys.argv[1:]
    (chosen,) = (case for case in CASES if case.name == name)
    print(json.dumps(measure(chosen, int(threads), float(seconds))))
