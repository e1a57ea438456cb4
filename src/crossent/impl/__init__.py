"""The implementations, by name: which there are, why one is missing, and which is chosen for given logits."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from crossent.impl import eager

NAMES = ("eager", "native", "triton")
_LOADED: dict[str, ModuleType] = {"eager": eager}
_MISSING = {"triton": "the Triton kernels are not part of this version"}

try:
    from crossent.impl import native
except ImportError as error:
    _MISSING["native"] = f"the compiled CPU kernels are not installed ({error})"
else:
    _LOADED["native"] = native


def implementations() -> dict[str, str | None]:
    """Map each implementation's name to None if it can be used here, else to the reason why it cannot.

    >>> implementations()["eager"] is None
    True
    """
    return {name: _MISSING.get(name) for name in NAMES}


def choose_implementation(logits: Tensor, impl: str | None = None, *, target: Tensor | None = None) -> str:
    """Name the implementation that a call with these arguments runs; a name is obeyed or refused, never replaced.

    Raises:
        ValueError: ``impl`` is no implementation's name.
        RuntimeError: it is one, but cannot run here or on these tensors.

    >>> import torch
    >>> choose_implementation(torch.zeros(2, 3), "eager")
    'eager'
    """
    if impl == "eager":
        return "eager"
    if impl is None:
        return "eager" if "native" in _MISSING or load("native").refuses(logits, target) else "native"
    if impl not in NAMES:
        raise ValueError(f"impl must be None or one of {', '.join(map(repr, NAMES))}, got {impl!r}")
    reason = _MISSING.get(impl) or load(impl).refuses(logits, target)
    if reason:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}; use impl='eager' or leave it out")
    return impl


def load(name: str) -> ModuleType:
    """Return the implementation of that name."""
    return _LOADED[name]
