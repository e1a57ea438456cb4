"""The problems that are measured, and the contenders that solve them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from computed import computed
from torch import Tensor

import crossent

Loss = Callable[[Tensor], Tensor]

OTHER_ISA = "avx2"
KEPT_BY_MALLOC = 1 << 25  # bytes; what is larger goes back to the system whenever it is freed, and comes as fresh pages


class Contender(NamedTuple):
    """A mean loss as a function of the logits alone, and how it is to be run."""

    loss: Loss
    overwrites: bool = False  # the logits, with their gradient: it is given logits of its own
    fresh: bool = False  # its gradient comes in new memory at every step, as all others' does
    backward: bool = True
    isa: str | None = None  # the instruction set of crossent's kernels, where it is not the best one


@dataclass(frozen=True)
class Case:
    """One problem: the logits' shape and dtype, and what is asked of them.

    ``name`` is for ``--only``, ``title`` for people. ``quick`` cases make up the ``--quick`` run; ``small`` ones are all
    overhead and get a table of their own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    note: str = ""
    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = False
    quick: bool = False
    small: bool = False

    @property
    def title(self) -> str:
        """Say in words what is measured."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} {self.shape}" + (f", {self.note}" if self.note else "")

    @property
    def large(self) -> bool:
        """Whether a gradient of this size is new memory at every step for those who do not keep it."""
        return prod(self.shape) * self.dtype.itemsize > KEPT_BY_MALLOC


ROWS, BATCH, MAPS = (8192, 1000), 1024, (4, 21, 512, 512)

CASES = [
    Case("few-classes", (65536, 10), quick=True),
    Case("plain", ROWS, quick=True),
    Case("smoothing", ROWS, note="label smoothing", options={"label_smoothing": 0.1}),
    Case("probabilities", ROWS, note="probability targets", variant="probabilities"),
    Case("weights", ROWS, note="class weights, a third ignored", variant="weights"),
    Case("vocabulary-32k", (BATCH, 32000), quick=True),
    Case("vocabulary-32k-float16", (BATCH, 32000), torch.float16),
    Case("vocabulary-128k", (BATCH, 128256)),
    Case("vocabulary-128k-bfloat16", (BATCH, 128256), torch.bfloat16),
    Case("segmentation", MAPS, note="contiguous"),
    Case("segmentation-channels-last", MAPS, note="channels_last", channels_last=True),
    Case("binary", ROWS, note="binary", variant="binary", quick=True),
    Case("small-1", (1, 10), small=True),
    Case("small-32", (32, 10), small=True, quick=True),
    Case("small-128", (128, 100), small=True),
    Case("small-17", (17, 1000), small=True),
    Case("small-1-bfloat16", (1, 10), torch.bfloat16, small=True),
    Case("small-32-bfloat16", (32, 10), torch.bfloat16, small=True),
    Case("small-128-bfloat16", (128, 100), torch.bfloat16, small=True),
    Case("small-17-bfloat16", (17, 1000), torch.bfloat16, small=True),
]


def logits(case: Case) -> Tensor:
    """Draw the logits, a leaf that wants a gradient."""
    x = torch.randn(case.shape, dtype=case.dtype)
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def arguments(case: Case) -> tuple[Tensor, dict[str, Any]]:
    """Draw the target, and the options that go with it."""
    classes = case.shape[1]
    if case.variant == "binary":
        return torch.rand(case.shape), {}
    if case.variant == "probabilities":
        return torch.randn(case.shape).softmax(1), case.options
    target = torch.randint(classes, case.shape[:1] + case.shape[2:])
    if case.variant == "weights":
        target[torch.randperm(len(target))[: len(target) // 3]] = -100
        return target, {"weight": torch.rand(classes) + 0.5}
    return target, case.options


def contenders(case: Case, target: Tensor, options: dict[str, Any], implementation: str) -> dict[str, Contender]:
    """Return who takes part.

    ``torch.compile`` starts from nothing for every problem, so that its code is made for these sizes and this number of
    threads, and not for any. "fresh" is crossent with ``CROSSENT_RECYCLE=0``, where that makes a difference. "in place" gets
    the logits as a model computes them, for it refuses leaves. "forward" is crossent without a gradient. "avx2" and "avx2 in
    place" are what a processor without AVX-512 gets.
    """
    binary = case.variant == "binary"
    theirs = F.binary_cross_entropy_with_logits if binary else F.cross_entropy
    ours = crossent.binary_cross_entropy_with_logits if binary else crossent.cross_entropy
    torch.compiler.reset()
    compiled = torch.compile(theirs, options={"cpp.threads": torch.get_num_threads()})

    def default(x: Tensor) -> Tensor:
        return ours(x, target, **options)

    def in_place(x: Tensor) -> Tensor:
        return ours(computed(x), target, inplace_forward=True, **options)

    found = {
        "eager": Contender(lambda x: theirs(x, target, **options)),
        "compile": Contender(lambda x: compiled(x, target, **options)),
        "crossent": Contender(default),
    }
    if implementation == "native" and not case.small:
        from crossent import _native as native

        if case.large:
            found["fresh"] = Contender(default, fresh=True)
        found["inplace"] = Contender(in_place, overwrites=True)
        found["forward"] = Contender(default, backward=False)
        if OTHER_ISA in native.isas() and native.isa() != OTHER_ISA:
            found["avx2"] = Contender(default, isa=OTHER_ISA)
            found["avx2 in place"] = Contender(in_place, overwrites=True, isa=OTHER_ISA)
    return found
