"""The implementations, by name: which there are, why one is missing, and which is chosen for given logits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from crossent.core.target import BinaryTarget, Target, described_settings
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


def choose_implementation(
    logits: Tensor,
    impl: str | None = None,
    *,
    target: Tensor | None = None,
    loss: str = "cross_entropy",
    **settings: Any,
) -> str:
    """Name the implementation that a call with these arguments runs; a name is obeyed or refused, never replaced.

    Args:
        logits: of the call.
        impl: as in the call.
        target: of the call; the dtype of probabilities matters.
        loss: ``"cross_entropy"`` or ``"binary_cross_entropy_with_logits"``.
        settings: those of the call that torch's loss does not have, such as ``penalty`` or ``class_mask``, and
            ``label_smoothing``.

    Raises:
        ValueError: ``impl`` is no implementation's name.
        RuntimeError: it is one, but cannot run here or on these tensors.
        TypeError: a setting on which the choice does not depend.

    >>> import torch
    >>> choose_implementation(torch.zeros(2, 3), "eager")
    'eager'
    >>> choose_implementation(torch.zeros(2, 3), logit_bias=torch.zeros(2, 3))
    'eager'
    """
    return choose(logits, impl, target, described_settings(loss, target, settings))


def choose(
    logits: Tensor, impl: str | None, target: Tensor | None = None, described: Target | BinaryTarget | None = None
) -> str:
    """Name the implementation for logits, a target and all else that a call says."""
    if impl == "eager":
        return "eager"
    if impl is None:
        return "eager" if "native" in _MISSING or load("native").refuses(logits, target, described) else "native"
    if impl not in NAMES:
        raise ValueError(f"impl must be None or one of {', '.join(map(repr, NAMES))}, got {impl!r}")
    reason = _MISSING.get(impl) or load(impl).refuses(logits, target, described)
    if reason:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}; use impl='eager' or leave it out")
    return impl


def load(name: str) -> ModuleType:
    """Return the implementation of that name."""
    return _LOADED[name]
