"""What the members of the family cost beside cross entropy itself: each through the same kernels, interleaved with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import interleave, ratio, spread
from torch import Tensor

import crossent

SHAPES = ((8192, 1000), (65536, 10))


def members(num_classes: int) -> dict[str, dict]:
    """Return the settings of each member."""
    bias = torch.linspace(-1, 1, num_classes)
    return {
        "weight": {"weight": bias + 2},
        "label_smoothing": {"label_smoothing": 0.1},
        "label_smoothing, weight": {"label_smoothing": 0.1, "weight": bias + 2},
        "Focal(2)": {"penalty": crossent.Focal(2.0)},
        "Focal(2), label_smoothing": {"penalty": crossent.Focal(2.0), "label_smoothing": 0.1},
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


def steps(shape: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Return a training step of each member, and of what else goes over the logits, with logits of a shape."""
    x, y = torch.randn(shape, requires_grad=True), torch.randint(shape[1] * 9 // 10, shape[:1])
    t, weight, of_rows = torch.rand(shape).softmax(1), torch.linspace(1, 3, shape[1]), torch.linspace(1, 3, shape[0])
    binary = crossent.binary_cross_entropy_with_logits

    def training(loss: Callable[..., Tensor], *arguments: Tensor, **settings: object) -> Callable[[], None]:
        def step() -> None:
            x.grad = None
            loss(x, *arguments, **settings).backward()

        return step

    def statistics() -> object:
        with torch.no_grad():
            return crossent.cross_entropy_stats(x, y, impl="native")

    softmax = crossent.cross_entropy
    of_members = {name: training(softmax, y, impl="native", **each) for name, each in members(shape[1]).items()}
    return {
        "cross entropy": training(softmax, y, impl="native"),
        **of_members,
        "probabilities": training(softmax, t, impl="native"),
        "probabilities, weight": training(softmax, t, weight, impl="native"),
        "sample_weight": training(softmax, y, sample_weight=of_rows, impl="native"),
        "binary": training(binary, t, impl="native"),
        "binary, weight": training(binary, t, weight, impl="native"),
        "binary, pos_weight": training(binary, t, pos_weight=weight, impl="native"),
        "statistics of each row, forward only": statistics,
    }


def measure_members(threads: int, seconds: float) -> list[dict]:
    """Time forward and backward of each member; return what it takes, relative to cross entropy."""
    torch.set_num_threads(threads)
    rows = []
    for shape in SHAPES:
        times, _ = interleave(steps(shape), 2 * seconds)  # there are many of them
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
