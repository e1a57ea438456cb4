"""The implementations, by name: which there are, why one is missing, and which is chosen for given logits."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("eager", "native", "triton")

_MISSING = {
    "native": "the compiled CPU kernels are not part of this version",
    "triton": "the Triton kernels are not part of this version",
}


def implementations() -> dict[str, str | None]:
    """Map each implementation's name to None if it can be used here, else to the reason why it cannot.

    >>> implementations()["eager"] is None
    True
    """
    return {name: _MISSING.get(name) for name in NAMES}


def choose_implementation(logits: Tensor, impl: str | None = None) -> str:
    """Name the implementation that a call with these logits and this ``impl`` runs; a name is obeyed or refused, never replaced.

    Raises:
        ValueError: ``impl`` is no implementation's name.
        RuntimeError: it is one, but cannot run here.

    >>> import torch
    >>> choose_implementation(torch.zeros(2, 3))
    'eager'
    """
    if impl is None or impl == "eager":
        return "eager"
    if impl not in NAMES:
        raise ValueError(f"impl must be None or one of {', '.join(map(repr, NAMES))}, got {impl!r}")
    raise RuntimeError(f"impl={impl!r} cannot run here: {_MISSING[impl]}; use impl='eager' or leave it out")


@cache
def load(name: str) -> ModuleType:
    """Import the implementation of that name."""
    return import_module(f"{__name__}.{name}")
