"""What a loss asks of a device without kernels of its own: operations, bytes moved and memory, counted on any machine.

A device is pretended: the CPU runs what would run there, with blocks of the size that they would have, under torch's profiler.
An operation that reads or writes memory is one launch; its bytes are those of its tensors. ``counts.py`` writes
``results/counts.json`` and prints the table that stands in docs/gpu.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import crossent
from crossent.impl import eager
from crossent.impl.eager import blocks

RESULTS = Path(__file__).parent / "results" / "counts.json"
N, C = 1024, 8192

Step = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def pretended_device() -> Iterator[None]:
    """Let the eager implementation work as it does where it cannot look at numbers."""

    def size(x: Tensor) -> int:
        return min(max(x.numel() // blocks._SHARE, blocks._LAUNCHED), blocks._LARGEST)

    with (
        patch.object(eager.Eager, "fuses", lambda *_: False),
        patch.object(blocks, "_size", size),
        patch.object(blocks, "readable", lambda _: False),
        patch.object(torch._C, "_len_torch_dispatch_stack", lambda: 0),
    ):
        yield


NOTHING_MOVED = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::detach", "aten::_unsafe_view"}


class Counter(TorchDispatchMode):
    """Counts what is launched, and the bytes that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if view or schema.name in NOTHING_MOVED:
            return result
        self.launches += 1
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        tensors = {id(t): t for t in leaves if isinstance(t, Tensor) and t.numel() and 0 not in t.stride()}
        # What is written in place was read as well, but for a copy over it.
        twice = [
            value
            for argument, value in zip(schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and schema.name != "aten::copy_"
        ]
        self.bytes += sum(t.numel() * t.itemsize for t in [*tensors.values(), *twice])
        return result


def peak(step: Callable[[], None]) -> int:
    """Return how many bytes more than before were taken at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    taken = most = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        taken += event.nbytes()
        most = max(most, taken)
    return most


def measure(loss: Step, dtype: torch.dtype, soft: bool) -> dict[str, float]:
    """Count one forward and backward."""
    torch.manual_seed(0)
    x = torch.randn(N, C).to(dtype).requires_grad_()
    target = torch.rand(N, C).to(dtype) if soft else torch.randint(C, (N,))

    def step() -> None:
        loss(x, target).backward()
        x.grad = None

    with pretended_device():
        with Counter() as counter:
            step()
        most = peak(step)
    return {
        "launches": counter.launches,
        "bytes": round(counter.bytes / x.numel(), 1),
        "peak": round(most / x.numel(), 1),
    }


def members() -> dict[str, tuple[Step, bool]]:
    """Return losses by what they are called, and whether their target is probabilities."""

    def eager_loss(**options) -> Step:
        return lambda x, y: crossent.cross_entropy(x, y, impl="eager", **options)

    return {
        "torch.nn.functional.cross_entropy": (F.cross_entropy, False),
        "a plain call: torch's operator": (lambda x, y: crossent.cross_entropy(x, y, impl="torch"), False),
        'the same with impl="eager"': (eager_loss(), False),
        "temperature": (eager_loss(temperature=2.0), False),
        "z-loss": (eager_loss(z_loss=1e-4), False),
        "focal": (eager_loss(penalty=crossent.Focal(2.0)), False),
        "soft cap, class mask": (eager_loss(softcap=30.0, class_mask=torch.arange(C) > 3), False),
        "smoothing and z-loss": (eager_loss(label_smoothing=0.1, z_loss=1e-4), False),
        "probabilities, temperature": (eager_loss(temperature=2.0), True),
    }


def count_all() -> list[dict]:
    """Count every member in float32 and bfloat16."""
    rows = []
    for name, (loss, soft) in members().items():
        of_dtypes = {str(d).split(".")[1]: measure(loss, d, soft) for d in (torch.float32, torch.bfloat16)}
        rows.append({"member": name, **of_dtypes})
    return rows


def table(rows: list[dict]) -> str:
    """Write the counts as the page shows them."""
    lines = [
        "| | float32: launches | bytes moved | peak | bfloat16: launches | bytes moved | peak |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row[d][key]:g}" for d in ("float32", "bfloat16") for key in ("launches", "bytes", "peak")]
        lines.append(f"| {row['member']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    counted = count_all()
    RESULTS.write_text(json.dumps({"rows": counted, "shape": [N, C]}, indent=1) + "\n", encoding="utf-8")
    print(table(counted))
