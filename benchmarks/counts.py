"""What a loss asks of a device without kernels of its own: operations, bytes moved and memory, counted on any machine.

A device is pretended: the CPU runs what would run there, with blocks of the size that they would have, under torch's profiler.
An operation that reads or writes memory is one launch; its bytes are those of its tensors. ``counts.py`` writes
``results/counts.json`` and the table in docs/gpu.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import crossent
from crossent.impl.eager import Eager, blocks

RESULTS = Path(__file__).parent / "results" / "counts.json"
PAGE = Path(__file__).parents[1] / "docs/gpu.md"
N, C = 1024, 8192

Step = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def pretended_device() -> Iterator[None]:
    """Let the eager implementation work as it does where it cannot look at numbers."""

    def size(x: Tensor, formed: int = 0) -> int:
        return blocks.size_on_device(x.numel(), formed)

    with (
        patch.object(Eager, "fuses", lambda *_: False),
        patch.object(blocks, "size_of", size),
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


class Member(NamedTuple):
    """A loss of logits and a target: whether that has their shape, and whether gradients are formed, for the target too."""

    loss: Step
    soft: bool = False
    backward: bool = True
    learned: bool = False

    def bound(self, dtype: torch.dtype) -> float:
        """Return how many bytes an element docs/gpu.md allows: 8, or what the gradients take and some for the blocks."""
        gradients = dtype.itemsize * (2 if self.learned else 1)
        return 8.0 if gradients <= 4 else gradients + max(dtype.itemsize, 4) * 5 / 16

    def step(self, dtype: torch.dtype) -> Callable[[], None]:
        """Draw what it takes, and return one forward and backward."""
        torch.manual_seed(0)
        x = torch.randn(N, C).to(dtype).requires_grad_(self.backward)
        target = torch.rand(N, C).to(dtype).requires_grad_(self.learned) if self.soft else torch.randint(C, (N,))

        def step() -> None:
            loss = self.loss(x, target)
            if self.backward:
                loss.backward()
            x.grad = target.grad = None

        return step


def measure(member: Member, dtype: torch.dtype) -> dict[str, float]:
    """Count one forward and backward."""
    step = member.step(dtype)
    with pretended_device(), Counter() as counter:
        step()
    return {
        "launches": counter.launches,
        "bytes": round(counter.bytes / (N * C), 1),
        "peak": round(bytes_at_once(step), 1),
    }


def bytes_at_once(step: Callable[[], None]) -> float:
    """Return how many bytes a step takes at once for each of the logits."""
    with pretended_device():
        return peak(step) / (N * C)


def eager(
    loss: Callable[..., Tensor], *arguments: float, soft: bool = True, learned: bool = False, **options
) -> Member:
    """Return a member that calls a loss in torch operations, with weights and biases of the dtype of its logits."""

    def call(x: Tensor, target: Tensor) -> Tensor:
        given = {k: v.to(x.dtype) if k in ("weight", "logit_bias") else v for k, v in options.items()}
        return loss(x, target, *arguments, impl="eager", **given)

    return Member(call, soft, learned=learned)


class Given(NamedTuple):
    """What rows and classes are given: classes that are allowed, a weight and a bias for each, and what rows weigh."""

    some: Tensor
    weight: Tensor
    bias: Tensor
    rows: Tensor

    @classmethod
    def of_all(cls) -> Given:
        """Draw it for the shape that is counted."""
        return cls(torch.arange(C) > 3, torch.linspace(0.5, 2, C), torch.linspace(-1, 1, C), torch.linspace(0, 1, N))

    def everything(self) -> dict[str, Any]:
        """Return every option of a softmax loss."""
        return {
            "temperature": 2.0, "softcap": 30.0, "logit_bias": self.bias, "class_mask": self.some, "z_loss": 1e-4,
            "weight": self.weight, "penalty": crossent.Focal(2.0), "label_smoothing": 0.1, "sample_weight": self.rows,
            "margin": 0.1,
        }  # fmt: skip


PENALTIES = {
    "focal": crossent.Focal(2.0), "Poly-1": crossent.Poly1(), "generalised": crossent.GCE(), "MAE": crossent.MAE(),
    "symmetric": crossent.SCE(), "Taylor": crossent.Taylor(),
}  # fmt: skip


def softmax_members(given: Given) -> dict[str, Member]:
    """Return softmax losses of one target, by what they are called."""
    of = partial(eager, crossent.cross_entropy, soft=False)
    return {
        "torch.nn.functional.cross_entropy": Member(F.cross_entropy),
        "a plain call: torch's operator": Member(lambda x, y: crossent.cross_entropy(x, y, impl="torch")),
        'the same with impl="eager"': of(),
        "class weights, eager": of(weight=given.weight),
        "smoothing, eager": of(label_smoothing=0.1),
        "probabilities, eager": of(soft=True),
        "rows that weigh": of(sample_weight=given.rows),
        "temperature": of(temperature=2.0),
        "soft cap": of(softcap=30.0),
        "bias": of(logit_bias=given.bias),
        "margin": of(margin=0.2),
        "class mask": of(class_mask=given.some),
        "z-loss": of(z_loss=1e-4),
        **{name: of(penalty=penalty) for name, penalty in PENALTIES.items()},
        "soft cap, class mask": of(softcap=30.0, class_mask=given.some),
        "smoothing and z-loss": of(label_smoothing=0.1, z_loss=1e-4),
        "probabilities, temperature": of(soft=True, temperature=2.0),
        "everything": of(**given.everything()),
        "everything, probabilities": of(soft=True, **given.everything()),
        "probabilities that learn": of(soft=True, learned=True),
    }


def composed_members(given: Given) -> dict[str, Member]:
    """Return losses that make a target of their own."""
    labels = partial(eager, crossent.multilabel_cross_entropy)
    distillation = partial(eager, crossent.distillation_loss, 2.0)
    with_labels = {
        "target": torch.randint(C, (N,)),
        "class_mask": given.some,
        "sample_weight": given.rows,
        "z_loss": 1e-4,
    }
    return {
        "several labels": labels(),
        "several labels, everything": labels(**given.everything()),
        "distillation": distillation(),
        "distillation, reverse": distillation(reverse=True),
        "distillation, labels": distillation(**with_labels),
        "distillation, reverse, labels": distillation(reverse=True, **with_labels),
        "distillation, a teacher that learns": distillation(learned=True, teacher_grad=True),
    }


def statistics(x: Tensor, y: Tensor) -> Tensor:
    """Add up the statistics that have a gradient."""
    return torch.stack([each.sum() for each in crossent.cross_entropy_stats(x, y, impl="eager")[:4]]).sum()


def sigmoid_members(given: Given) -> dict[str, Member]:
    """Return sigmoid losses."""
    of = partial(eager, crossent.binary_cross_entropy_with_logits)
    return {
        "torch's binary_cross_entropy_with_logits": Member(F.binary_cross_entropy_with_logits, soft=True),
        "sigmoid, eager": of(),
        "sigmoid, mask and rows that weigh": of(mask=given.some, sample_weight=given.rows),
        "sigmoid, a target that learns": of(learned=True),
        "sigmoid, focal": of(penalty=crossent.Focal(2.0)),
        "sigmoid, asymmetric": of(penalty=crossent.Asymmetric()),
    }


def members() -> dict[str, Member]:
    """Return every member of the family by what it is called."""
    of_statistics = {
        "statistics": Member(statistics, backward=False),
        "statistics with a gradient": Member(statistics),
    }
    given = Given.of_all()
    return softmax_members(given) | composed_members(given) | of_statistics | sigmoid_members(given)


def count_all() -> list[dict]:
    """Count every member in float32 and bfloat16."""
    rows = []
    for name, member in members().items():
        of_dtypes = {str(d).split(".")[1]: measure(member, d) for d in (torch.float32, torch.bfloat16)}
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
    head, begin, rest = PAGE.read_text("utf-8").partition("<!-- counts -->\n")
    end = rest[rest.index("\n<!-- end -->") :]
    PAGE.write_text(f"{head}{begin}\n{table(counted)}\n{end}", encoding="utf-8")
    print(table(counted))
