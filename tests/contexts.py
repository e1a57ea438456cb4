"""The modes of torch that a call may stand inside, by name: tests and a fuzz target run the same ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


class _Overriding(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _switched(switch: Callable[[Any], None], on: Any, off: Any) -> Iterator[None]:
    switch(on)
    try:
        yield
    finally:
        switch(off)


def flop_counter() -> Any:
    """Return a counter of flops that prints nothing."""
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "none": contextlib.nullcontext,
    "a dispatch mode": _Watching,
    "a function mode": _Overriding,
    "flop counter": flop_counter,
    "hooks on saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "deterministic": lambda: _switched(torch.use_deterministic_algorithms, True, False),
    "default dtype": lambda: _switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: torch.device("cpu"),
    "default device meta": lambda: torch.device("meta"),
    "one autograd thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "forward mode, unused": forward_ad.dual_level,
}
