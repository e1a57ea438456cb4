"""What the members of the family cost beside cross entropy itself: each through the same kernels, interleaved with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import interleave, ratio, spread

import crossent

SHAPES = ((8192, 1000), (65536, 10))


def members(num_classes: int) -> dict[str, dict]:
    """Return the settings of each member."""
    bias = torch.linspace(-1, 1, num_classes)
    return {
        "Focal(2)": {"penalty": crossent.Focal(2.0)},
        "Poly1(1)": {"penalty": crossent.Poly1(1.0)},
        "GCE(0.7)": {"penalty": crossent.GCE(0.7)},
        "MAE()": {"penalty": crossent.MAE()},
        "SCE(0.1, 1)": {"penalty": crossent.SCE(0.1, 1.0)},
        "Taylor(2)": {"penalty": crossent.Taylor(2)},
        "temperature": {"temperature": 2.0},
        "logit_bias": {"logit_bias": bias},
        "class_mask": {"class_mask": bias < 0.9},
        "margin": {"margin": 0.35},
        "z_loss": {"z_loss": 1e-4},
        "softcap": {"softcap": 30.0},
    }


def measure_members(threads: int, seconds: float) -> list[dict]:
    """Time forward and backward of each member; return what it takes, relative to cross entropy."""
    torch.set_num_threads(threads)
    rows = []
    for shape in SHAPES:
        x, y = torch.randn(shape, requires_grad=True), torch.randint(shape[1] * 9 // 10, shape[:1])

        def training(settings: dict, x: torch.Tensor = x, y: torch.Tensor = y) -> Callable[[], None]:
            def step() -> None:
                x.grad = None
                crossent.cross_entropy(x, y, impl="native", **settings).backward()

            return step

        steps = {"cross entropy": training({})} | {name: training(s) for name, s in members(shape[1]).items()}
        times, _ = interleave(steps, seconds)
        rows.append(
            {
                "shape": list(shape),
                "threads": threads,
                "spread": {name: spread(t) for name, t in times.items()},
                "relative": {
                    name: ratio(t, times["cross entropy"]) for name, t in times.items() if name != "cross entropy"
                },
            }
        )
    return rows
