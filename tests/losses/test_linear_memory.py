"""What ``linear_cross_entropy`` takes above its inputs and gradients, at its peak, as the system counts it in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("crossent.impl.native", reason="the compiled kernels are not installed")
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read as Linux tells them")

N, D, V, BUDGET, SLACK = 2048, 64, 20_000, 16 << 20, 16 << 20

CHILD = """
import sys
import torch
import crossent

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def draw(n, d, v):
    h, w = (torch.randn(k, d).to(dtype).requires_grad_(backward) for k in (n, v))
    return h, w, torch.randint(v, (n,))

def step(h, w, y, **settings):
    loss = crossent.linear_cross_entropy(h, w, y, max_bytes=budget, **settings)
    if backward:
        loss.backward(torch.full_like(loss, 0.5))

torch.set_num_threads(1)
n, d, v, budget = map(int, sys.argv[1:5])
dtype, backward, settings = getattr(torch, sys.argv[5]), sys.argv[6] == "training", eval(sys.argv[7])
step(*draw(64, 64, 2048), **settings)  # what libraries take once
h, w, y = draw(n, d, v)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
step(h, w, y, **settings)
print(peak() - before)
"""


def above(dtype: str, what: str, settings: str = "{}") -> int:
    """Return how many bytes the peak rises above inputs and gradients."""
    command = [sys.executable, "-c", CHILD, *map(str, (N, D, V, BUDGET)), dtype, what, settings]
    rise = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return rise - (N + V) * D * {"float32": 4, "bfloat16": 2}[dtype] * (what == "training")


@pytest.mark.parametrize("what", ["training", "evaluation"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_is_all_it_takes(dtype, what):
    accumulator = 4 * V * D if dtype == "bfloat16" and what == "training" else 0
    taken = above(dtype, what)
    assert taken <= BUDGET + SLACK + accumulator
    assert taken < N * V * 2 / 2  # half of what the logits alone would take


def test_settings_take_no_more():
    assert above("float32", "training", "{'label_smoothing': 0.1, 'z_loss': 1e-4, 'softcap': 30.0}") <= BUDGET + SLACK
