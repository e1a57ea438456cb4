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
from math import isqrt
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
    """A loss, and what a step of it takes.

    It is given logits and ``soft`` tensors of their shape, of which the last ``learned`` ones have gradients, or class indices
    where ``soft`` is 0. Of ``vectors`` it makes logits itself. ``elements`` says that the loss is not reduced and as large as
    they are, ``inplace`` that the gradient is written over them.
    """

    loss: Callable[..., Tensor]
    soft: int = 0
    backward: bool = True
    learned: int = 0
    inplace: bool = False
    elements: bool = False
    vectors: bool = False

    def bound(self, dtype: torch.dtype) -> float:
        """Return how many bytes an element docs/gpu.md allows: 8, or what is returned or given takes and some for the blocks."""
        wide = max(dtype.itemsize, 4)
        tensors = self.learned + self.elements + (not self.inplace)
        taken = wide if self.vectors else dtype.itemsize * tensors
        return 8.0 if taken <= 4 else taken + wide * 5 / 16

    def draw(self, dtype: torch.dtype) -> list[Tensor]:
        """Draw what the loss is given."""
        torch.manual_seed(0)
        if self.vectors:
            return [torch.randn(isqrt(N * C), 2).to(dtype).requires_grad_() for _ in range(2)]
        x = torch.randn(N, C).to(dtype).requires_grad_(self.backward)
        given = [torch.rand(N, C).to(dtype) for _ in range(self.soft)] or [torch.randint(C, (N,))]
        for each in given[len(given) - self.learned :]:
            each.requires_grad_()
        return [x * 1 if self.inplace else x, *given]  # not over a leaf

    def step(self, dtype: torch.dtype) -> Callable[[], None]:
        """Draw what it takes, and return one forward and backward, which in place can be done once."""
        tensors = self.draw(dtype)

        def step() -> None:
            loss = self.loss(*tensors)
            if not self.backward:
                return
            grad = torch.ones((), dtype=loss.dtype).expand_as(loss) if self.elements else None
            if self.inplace:
                torch.autograd.grad(loss, tensors[0], grad)
                return
            loss.backward(grad)
            for each in tensors:
                each.grad = None

        return step


def measure(member: Member, dtype: torch.dtype) -> dict[str, float]:
    """Count one forward and backward."""
    step = member.step(dtype)
    with pretended_device(), Counter() as counter:
        step()
    return {
        "launches": counter.launches,
        "bytes": round(counter.bytes / (N * C), 1),
        "peak": round(bytes_at_once(member.step(dtype)), 1),
    }


def bytes_at_once(step: Callable[[], None]) -> float:
    """Return how many bytes a step takes at once for each of the logits."""
    with pretended_device():
        return peak(step) / (N * C)


def eager(loss: Callable[..., Tensor], *arguments: float, soft: int = 1, learned: int = 0, **options) -> Member:
    """Return a member that calls a loss in torch operations, with weights and biases of the dtype of its logits."""

    def call(x: Tensor, target: Tensor, *more: Tensor) -> Tensor:
        given = {k: v.to(x.dtype) if k in ("weight", "logit_bias") else v for k, v in options.items()}
        return loss(x, target, *arguments, *more, impl="eager", **given)

    elements = loss is crossent.binary_cross_entropy_with_logits and options.get("reduction") == "none"
    return Member(call, soft, learned=learned, inplace="inplace_backward" in options, elements=elements)


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
    of = partial(eager, crossent.cross_entropy, soft=0)
    return {
        "torch.nn.functional.cross_entropy": Member(F.cross_entropy),
        "a plain call: torch's operator": Member(lambda x, y: crossent.cross_entropy(x, y, impl="torch")),
        'the same with impl="eager"': of(),
        "class weights, eager": of(weight=given.weight),
        "smoothing, eager": of(label_smoothing=0.1),
        "probabilities, eager": of(soft=1),
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
        "probabilities, temperature": of(soft=1, temperature=2.0),
        "everything": of(**given.everything()),
        "everything, probabilities": of(soft=1, **given.everything()),
        "probabilities that learn": of(soft=1, learned=1),
        "probabilities, in place": of(soft=1, inplace_backward=True),
        "everything, in place": of(inplace_backward=True, **given.everything()),
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
        "several labels, in place": labels(inplace_backward=True),
        "distillation": distillation(),
        "distillation, reverse": distillation(reverse=True),
        "distillation, labels": distillation(**with_labels),
        "distillation, reverse, labels": distillation(reverse=True, **with_labels),
        "distillation, a teacher that learns": distillation(learned=1, teacher_grad=True),
        "distillation, a target that learns": distillation(soft=2, learned=1),
        "distillation, teacher and target learn": distillation(soft=2, learned=2, teacher_grad=True),
        "distillation, class weights that learn": distillation(soft=2, weight=given.weight.clone().requires_grad_()),
    }


def statistics(x: Tensor, y: Tensor) -> Tensor:
    """Add up the statistics that have a gradient."""
    return torch.stack([each.sum() for each in crossent.cross_entropy_stats(x, y, impl="eager")[:4]]).sum()


def contrastive(learned: bool = False, **options) -> Member:
    """Return the loss of pairs of vectors, whose scale may be learned."""
    scale = torch.tensor(10.0, requires_grad=learned)
    return Member(lambda a, b: crossent.contrastive_cross_entropy(a, b, scale, impl="eager", **options), vectors=True)


def contrastive_members() -> dict[str, Member]:
    """Return losses that make their logits, which are counted."""
    return {
        "contrastive": contrastive(),
        "contrastive, the rows alone": contrastive(symmetric=False),
        "contrastive, a scale that learns": contrastive(learned=True, label_smoothing=0.1),
    }


def sigmoid_members(given: Given) -> dict[str, Member]:
    """Return sigmoid losses."""
    of = partial(eager, crossent.binary_cross_entropy_with_logits)
    return {
        "torch's binary_cross_entropy_with_logits": Member(F.binary_cross_entropy_with_logits, soft=1),
        "sigmoid, eager": of(),
        "sigmoid, mask and rows that weigh": of(mask=given.some, sample_weight=given.rows),
        "sigmoid, a target that learns": of(learned=1),
        "sigmoid, focal": of(penalty=crossent.Focal(2.0)),
        "sigmoid, asymmetric": of(penalty=crossent.Asymmetric()),
        "sigmoid, losses of elements": of(reduction="none"),
        "sigmoid, elements and rows that weigh": of(reduction="none", sample_weight=given.rows),
        "sigmoid, elements and weights that learn": of(
            reduction="none", sample_weight=given.rows.clone().requires_grad_(), weight=given.weight
        ),
        "sigmoid, elements in place": of(reduction="none", inplace_backward=True),
    }


def members() -> dict[str, Member]:
    """Return every member of the family by what it is called."""
    of_statistics = {
        "statistics": Member(statistics, backward=False),
        "statistics with a gradient": Member(statistics),
    }
    given = Given.of_all()
    return (
        softmax_members(given)
        | composed_members(given)
        | contrastive_members()
        | of_statistics
        | sigmoid_members(given)
    )


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
