"""Threads with small stacks: a loss of any kind runs in 256 KB, of which the kernels take the most for float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

KB = 256
CALLS = """
import sys, threading, torch, crossent

dtype, classes = getattr(torch, sys.argv[1]), int(sys.argv[2])
rows = 160 if classes < 128 else 4
x = torch.randn(rows, classes, dtype=dtype)
apart = torch.randn(2, classes, 130, dtype=dtype)
y, pixels = torch.zeros(rows, dtype=torch.long), torch.zeros(2, 130, dtype=torch.long)
hidden, head = torch.randn(rows, 8, dtype=dtype), torch.randn(classes, 8, dtype=dtype)
penalised = {"penalty": crossent.Focal(2.0), "label_smoothing": 0.1}
options = [{}, penalised, {**penalised, "softcap": 5.0}]
weight = torch.ones(classes, dtype=dtype)
calls = [
    lambda: crossent.cross_entropy_stats(x, y, label_smoothing=0.1),
    lambda: crossent.cross_entropy_stats(x, x.softmax(1)),
]
for each in options:
    for reduction in ("mean", "none"):
        more = {**each, "reduction": reduction}
        calls += [
            lambda o=more: crossent.cross_entropy(x.requires_grad_(), y, weight, **o),
            lambda o=more: crossent.cross_entropy(x.requires_grad_(), x.detach().softmax(1).requires_grad_(), weight, **o),
            lambda o=more: crossent.cross_entropy(apart.requires_grad_(), pixels, weight, **o),
            lambda o=more: crossent.linear_cross_entropy(hidden.requires_grad_(), head, y, max_bytes=classes * 64, **o),
        ]
calls += [lambda: crossent.binary_cross_entropy_with_logits(x.requires_grad_(), x.detach().sigmoid(), pos_weight=weight)]

def compute(call):
    result = call()
    if isinstance(result, torch.Tensor):
        result.sum().backward()

compute(calls[0]), compute(calls[-1])  # what is imported and compiled once is no part of it
done = []

def every():
    for call in calls:
        with torch.no_grad():
            call()
    done.append(True)

def backward():
    for call in calls:
        compute(call)
    done.append(True)

backward(), done.clear()
threading.stack_size(int(sys.argv[3]) * 1024)
for target in (every, backward):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
assert done == [True, True]
"""


@pytest.mark.parametrize("classes", [3, 64, 100, 3000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_every_loss_runs_on_a_small_stack(dtype, classes):
    program = [sys.executable, "-c", CALLS, str(dtype)[6:], str(classes), str(KB)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"stopped by signal {-done.returncode}"
