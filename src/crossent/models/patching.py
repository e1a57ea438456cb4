"""Calls of torch's losses that this library computes: one line for programs whose code is not to be changed.

While a patch stands, every module of the process that names one of torch's functions names a stand-in for it, which calls ours.
That reaches torch's own modules whenever they were made, and the losses of ``transformers``, since all of them call
``torch.nn.functional``. What no name leads to is not reached: a function in a list, a ``functools.partial``, or a default argument
goes on being torch's.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any

import torch

from crossent.core import torchs
from crossent.losses.binary import binary_cross_entropy_with_logits
from crossent.losses.linear import linear_cross_entropy
from crossent.losses.softmax import cross_entropy

__all__ = ["Patch", "patch", "patched_places", "unpatch"]

_Loss = Callable[..., Any]

_lock = Lock()
_standing: set[Patch] = set()
_active = False  # whether any patch stands, which a compiler guards on more cheaply than on a set


def _stand_in(theirs: _Loss, ours: _Loss) -> _Loss:
    """Make what stands in the place of a function of torch's: it keeps its name, so that it pickles as that."""

    @wraps(theirs)
    def loss(*args: Any, **kwargs: Any) -> Any:
        # code that keeps this after the last patch gets torch's function again
        return ours(*args, **kwargs) if _active else theirs(*args, **kwargs)

    return loss


_STAND_INS: dict[_Loss, _Loss] = {
    torchs.cross_entropy: _stand_in(torchs.cross_entropy, cross_entropy),
    torchs.binary_cross_entropy_with_logits: _stand_in(
        torchs.binary_cross_entropy_with_logits, binary_cross_entropy_with_logits
    ),
    torchs.linear_cross_entropy: _stand_in(torchs.linear_cross_entropy, linear_cross_entropy),
}


class Patch:
    """A patch that stands until it is taken back; a context manager that takes it back at its end."""

    def undo(self) -> None:
        """Take this patch back; torch's losses are torch's again when no other one stands. A second time does nothing."""
        with _lock:
            _standing.discard(self)
            _settle()

    @property
    def active(self) -> bool:
        """Whether it stands still."""
        return self in _standing

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        """Say what is reached, or that nothing is any more."""
        if not self.active:
            return "<crossent.patch, taken back>"
        named = (f"{name} in {', '.join(modules)}" for name, modules in patched_places().items())
        return f"<crossent.patch of {'; '.join(named)}>"


def patch() -> Patch:
    """Let this library compute what is asked of torch's losses, in the whole process, until it is taken back.

    ``torch.nn.functional.cross_entropy``, ``binary_cross_entropy_with_logits`` and ``linear_cross_entropy`` become those of this
    library wherever a module names them. So do the modules of torch's classes (``CrossEntropyLoss`` and the like), made before or
    after, and the losses of other libraries that call these: those of transformers, sentence-transformers, TRL, fastai. Results,
    dtypes and errors are torch's but for what is better here.

    Every thread sees it, since a backward pass that recomputes runs in threads of its own; a process that is spawned must call it
    itself. It may be nested, and stands until the last is taken back. It looks at every module that is imported, which takes a
    tenth of a second or so: it is meant for a run, not for a step. ``torch.compile`` compiles anew after it is called and after it
    is taken back. ``torch.jit.script`` does not read what stands there: script first.

    Returns:
        What takes it back: by ``undo()``, or at the end of a ``with`` block. Printed, it says what it reaches.

    Raises:
        RuntimeWarning: somebody else has put a function of their own in the place of one of torch's, which stays there.

    >>> loss = torch.nn.CrossEntropyLoss()
    >>> logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    >>> with patch():
    ...     print(loss(logits, target))
    tensor(2.0612e-09)
    >>> loss(logits, target).item() == 0
    True

    See also: :func:`unpatch`; ``crossent info``, which says what is patched; ``docs/clients.md``.
    """
    _let_compilers_know_torchs_functions()
    with _lock:
        made = Patch()
        _standing.add(made)
        _settle()
    strangers = [f for f in _STAND_INS if getattr(torch.nn.functional, f.__name__) is not _STAND_INS[f]]
    for theirs in strangers:
        there = getattr(torch.nn.functional, theirs.__name__)
        warnings.warn(
            f"crossent.patch() leaves torch.nn.functional.{theirs.__name__} alone: "
            f"{there.__module__}.{there.__qualname__} has taken its place. Undo that first, or call crossent.{theirs.__name__}",
            RuntimeWarning,
            stacklevel=2,
        )
    return made


def unpatch() -> None:
    """Take every patch back: torch's losses are torch's own again.

    >>> handle = patch()
    >>> unpatch()
    >>> handle
    <crossent.patch, taken back>

    See also: :func:`patch`.
    """
    with _lock:
        _standing.clear()
        _settle()


def patched_places() -> dict[str, list[str]]:
    """List for each loss of torch's that is patched the modules that name ours now; nothing where no patch stands."""
    names = {stand_in: theirs.__name__ for theirs, stand_in in _STAND_INS.items()}
    places: dict[str, list[str]] = {}
    for module, _, value in _named(names):
        modules = places.setdefault(names[value], [])
        modules += [] if module.__name__ in modules else [module.__name__]
    return places


def _let_compilers_know_torchs_functions() -> None:
    """Let ``torch.compile`` find torch's functions by their names while those are torch's, which it does once in a process.

    Otherwise it would take our stand-ins for torch's functions, and reuse from its cache on disk what it compiled of those.
    """
    from torch._dynamo import trace_rules

    trace_rules.get_torch_obj_rule_map()


def _settle() -> None:
    """Let every module name our stand-ins if a patch stands, and torch's functions if none does."""
    global _active
    _active = bool(_standing)
    swapped = _STAND_INS if _active else {stand_in: theirs for theirs, stand_in in _STAND_INS.items()}
    for module, name, value in _named(swapped):
        vars(module)[name] = swapped[value]


def _named(functions: dict[_Loss, Any]) -> Iterator[tuple[ModuleType, str, _Loss]]:
    """Find what names some functions: every module that is imported, but for this library's own."""
    by_identity = {id(function) for function in functions}
    for module in list(sys.modules.values()):
        # a module that makes its names when asked for them is not to be asked
        if not isinstance(module, ModuleType) or module.__name__.split(".")[0] == "crossent":
            continue
        for name, value in list(vars(module).items()):
            if id(value) in by_identity:
                yield module, name, value
