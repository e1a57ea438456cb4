"""The implementations, by name: which there are, why one is missing, and which is chosen for given logits."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from torch import Tensor

from crossent.core.checks import check_tensors, flag
from crossent.core.reduction import read_reduction
from crossent.core.target import BinaryTarget, Target, describe_options
from crossent.impl import eager as formulas  # the one implementation whose operations autograd knows
from crossent.impl.protocol import Implementation

__all__ = [
    "choose",
    "choose_implementation",
    "formulas",
    "implementations",
    "load",
    "register",
    "wanted_loss",
    "with_short_way",
]

# Where each implementation lives, the preferred first; the last takes everything.
HOMES = {
    "native": "crossent.impl.native",
    "triton": "crossent.impl.triton",
    "torch": "crossent.impl.builtin",
    "eager": "crossent.impl.eager",
}
_WHAT = {"native": "the compiled CPU kernels are not installed", "triton": "Triton is not installed"}

# A loss as a whole, which autograd may differentiate itself, or parts of one: gradients, statistics, blocks of a head. A loss is
# plain if torch's own operator may give it where there are no kernels.
Wanted = Literal["plain", "loss", "parts"]

_LOADED: dict[str, Implementation] = {}
_MISSING: dict[str, str] = {}


def register(implementation: Implementation) -> None:
    """Add an implementation, which is then preferred to those that were there.

    The formulas must know its numbers too, since they are what is differentiated and transformed in its place.
    """
    global _LOADED
    whole = formulas.IMPLEMENTATION
    unlisted = {*implementation.numbers, *implementation.binary_numbers} - whole.numbers - whole.binary_numbers
    if unlisted:
        raise ValueError(
            f"{implementation.name} has numbers that impl/eager does not list: {', '.join(sorted(unlisted))}; "
            "its derivatives in torch operations would ignore them"
        )
    _MISSING.pop(implementation.name, None)
    _LOADED = {implementation.name: implementation, **_LOADED}


def _load_all() -> None:
    for name, home in reversed(HOMES.items()):
        try:
            register(import_module(home).IMPLEMENTATION)
        except ImportError as error:
            _MISSING[name] = f"{_WHAT[name]} ({error})"


_load_all()


def implementations() -> dict[str, str | None]:
    """Map each implementation's name to None if it can be used here, else to the reason why it cannot.

    >>> implementations()["eager"] is None
    True
    """
    return {name: _MISSING.get(name) for name in sorted({*_LOADED, *_MISSING})}


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
            ``label_smoothing``, ``reduction``, ``sample_weight``, ``pos_weight``, ``inplace_backward`` and ``inplace_forward``.
            The latter two count for nothing in compiled calls and for DTensors, which never have their logits written over.

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
    check_tensors(logits=logits, **({} if target is None else {"target": target}))
    described = describe_options(loss, target, settings)
    reduction, weighed = read_reduction(settings.get("reduction", "mean")), settings.get("sample_weight") is not None
    inplace = [flag(name, settings.get(name, False)) for name in ("inplace_backward", "inplace_forward")]
    return choose(logits, impl, target, described, wanted_loss(logits, described, reduction, weighed, any(inplace)))


def wanted_loss(logits: Tensor, target: Target | BinaryTarget, reduction: str, weighed: bool, inplace: bool) -> Wanted:
    """Return "plain" where torch's own operator may give a loss, and "loss" where it may not.

    With weights of rows, or with the gradient over the logits, a call says more than torch's, and may take 8 bytes an element.
    Torch's operator takes 12 in float32 and up to 8 in half precision. For a sum of sigmoid losses it takes 8 and 4, but with
    ``pos_weight`` or without a sum 12 and up to 10. It never writes over the logits.
    """
    widest = 2
    if isinstance(target, BinaryTarget):
        widest = 0 if reduction == "none" or target.pos_weight is not None else 4
    fits = not weighed or logits.element_size() <= widest
    return "plain" if fits and not inplace else "loss"


def choose(
    logits: Tensor,
    impl: str | None,
    target: Tensor | None = None,
    described: Target | BinaryTarget | None = None,
    wanted: Wanted = "parts",
) -> str:
    """Name the implementation for logits, a target and all else that a call says."""
    if impl is None:
        for name, each in _LOADED.items():
            fits = each.chosen_for(logits) and (wanted == "plain" or not each.differentiable)
            if fits and each.reason_against(logits, target, described) is None:
                return name
        reason = formulas.IMPLEMENTATION.reason_against(logits, target, described)
        raise RuntimeError(f"no implementation can run here: {reason}")
    if not isinstance(impl, str) or (impl not in _LOADED and impl not in _MISSING):
        raise ValueError(f"impl must be None or one of {', '.join(map(repr, implementations()))}, got {impl!r}")
    reason = _MISSING.get(impl) or load(impl).reason_against(logits, target, described)
    if not reason and load(impl).differentiable and wanted == "parts":
        reason = (
            f"the implementation {impl!r} gives the loss of a plain call as a whole, and nothing of what is asked here"
        )
    if reason:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}; use impl='eager' or leave it out")
    return impl


def load(name: str) -> Implementation:
    """Return the implementation of that name."""
    return _LOADED[name]


def with_short_way() -> Implementation | None:
    """Return the preferred implementation of those that have a shorter way for sums and means."""
    return next((each for each in _LOADED.values() if each.has_short_way), None)
