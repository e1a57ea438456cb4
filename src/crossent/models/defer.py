"""``defer``: a model's own code runs, its head answers with :class:`Logits`, and the logits are never formed.

The class of the head is exchanged, and that of a model around it that can say whether labels were given. A class is all that
is exchanged: hooks and closures would be left behind by a copy, a pickle, and by whoever calls ``forward`` directly.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cache, wraps
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import crossent.models.following  # noqa: F401  # what Logits follow
from crossent.core.modes import transformed
from crossent.losses.heads import ModuleHead, parts_inside_a_call
from crossent.models.logits import Logits, note_formed

__all__ = ["Logits", "defer", "undefer"]

Module = TypeVar("Module", bound=nn.Module)


class _Deferred:
    """What a module whose class was exchanged has beside its own: a way to be copied and pickled, and one to end it."""

    plain_class: type[nn.Module]
    """The module's own class."""
    kind: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A class that was made at run time cannot be pickled by its name, but the module's own can.
        rebuild, arguments, *state = super().__reduce_ex__(max(int(protocol), 2))
        return (_rebuilt, (self.kind, rebuild, (self.plain_class, *arguments[1:])), *state)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        undefer(self)  # type: ignore[type-var]


class _DeferredHead(_Deferred):
    """A head that answers with :class:`Logits` where a loss may follow."""

    kind = "head"
    _crossent_always = False
    _crossent_labelled = False  # set while a model around it is called with labels
    _crossent_max_bytes: int | None = None

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(input, Tensor) or not self._answers():
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]
        parts = _parts_of(self, input)
        if parts is None:
            return super().forward(input)  # type: ignore[misc]
        _keep_gathered(self)
        return Logits.of(*parts, max_bytes=self._crossent_max_bytes)

    def _answers(self) -> bool:
        """Whether a loss may follow: gradients are enabled, or labels given, or it is always so."""
        if torch._C._get_tracing_state() is not None or transformed():
            return False
        return torch.is_grad_enabled() or self._crossent_labelled or self._crossent_always


class _LinearInside(_DeferredHead, nn.Linear):
    """The Linear below a class with a forward of its own, which calls it by ``super().forward(h)`` and goes on from there."""

    def forward(self, input: Tensor) -> Any:
        if not self._answers():
            return nn.Linear.forward(self, input)
        _keep_gathered(self)
        return Logits.of(input, self.weight, self.bias, max_bytes=self._crossent_max_bytes)


class _DeferredModel(_Deferred):
    """A model that tells its head whether labels were given, and that keeps it deferred when it is exchanged."""

    kind = "model"
    _crossent_options: dict[str, Any] = {}  # noqa: RUF012  # of a class: never written to

    def set_output_embeddings(self, new_embeddings: Any) -> Any:
        """Set the output embedding, and defer it too."""
        result = super().set_output_embeddings(new_embeddings)  # type: ignore[misc]
        _keep_deferred(self)
        return result


def _told_of_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Write a model's forward that tells the head of labels; its signature, which trainers read, is the model's."""
    names = list(inspect.signature(forward).parameters)

    @wraps(forward)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            _keep_deferred(self)
        labels = kwargs.get("labels")
        if labels is None and "labels" in names[: len(args) + 1]:
            labels = args[names.index("labels") - 1]
        if labels is None or torch.is_grad_enabled():
            return forward(self, *args, **kwargs)
        head = self.get_output_embeddings()
        head._crossent_labelled = True
        try:
            return forward(self, *args, **kwargs)
        finally:
            head._crossent_labelled = False

    return told


@cache
def _deferred_class(kind: str, plain: type[nn.Module]) -> type[nn.Module]:
    """Make the class that a module of some class gets; libraries look at the name of a model's, which stays."""
    bases: tuple[type, ...]
    members: dict[str, Any] = {}
    if kind == "head":
        inside = issubclass(plain, nn.Linear) and plain.forward is not nn.Linear.forward
        bases, name = (plain, _LinearInside) if inside else (_DeferredHead, plain), f"Deferred{plain.__name__}"
    else:
        bases, members, name = (_DeferredModel, plain), {"forward": _told_of_labels(plain.forward)}, plain.__name__
    members |= {"plain_class": plain, "__module__": plain.__module__, "__doc__": plain.__doc__}
    made: type[nn.Module] = type(name, bases, members)
    return made


def _rebuilt(kind: str, rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make a copy of a deferred module, of its own class first."""
    module = rebuild(*arguments)
    module.__class__ = _deferred_class(kind, type(module))
    return module


def _parts_of(head: Any, input: Tensor) -> ModuleHead | None:
    """Take a head apart for hidden states, or say why that cannot be and return None."""
    try:
        return parts_inside_a_call(head, input)
    except (TypeError, RuntimeError) as error:
        note_formed(type(head).__name__, (*input.shape[:-1], head.weight.shape[0]), f" {error}")
        return None


def _keep_gathered(head: Any) -> None:
    """Ask FSDP not to free the weights that it gathered for this head when its forward ends: the loss reads them later."""
    keep = getattr(head, "set_reshard_after_forward", None)
    if keep is not None and not torch.compiler.is_compiling():
        keep(False, recurse=False)


def defer(module: Module, *, always: bool = False, max_bytes: int | None = None) -> Module:
    """Let a model's head answer with :class:`Logits`, so that its loss is computed in blocks and its logits never exist."""
    model, head = _found(module)
    options = {"always": always, "max_bytes": max_bytes}
    _exchange_head(head, **options)
    if model is not None:
        if not isinstance(model, _DeferredModel):
            model.__class__ = _deferred_class("model", type(model))
        model._crossent_options = options
    return module


def undefer(module: Module) -> Module:
    """Give the modules inside that :func:`defer` changed their own classes back."""
    for each in module.modules():
        if type(each).__dict__.get("plain_class") is not None:
            each.__class__ = type(each).plain_class
            for name in [n for n in each.__dict__ if n.startswith("_crossent_")]:
                del each.__dict__[name]
        elif isinstance(each, _Deferred):
            raise RuntimeError(f"cannot undefer {type(each).__name__}")
    return module


def _exchange_head(head: Any, always: bool, max_bytes: int | None) -> None:
    if not isinstance(head, _DeferredHead):
        head.__class__ = _deferred_class("head", type(head))
    head._crossent_always, head._crossent_max_bytes = always, max_bytes


def _found(module: nn.Module) -> tuple[Any, Any]:
    for each in module.modules():
        find = getattr(type(each), "get_output_embeddings", None)
        if find is not None and (head := find(each)) is not None:
            return each, head
    return None, module


def _keep_deferred(model: Any) -> None:
    """Defer the head that is there now: PEFT puts its own in the place of it, and so does a new vocabulary."""
    head = model.get_output_embeddings()
    if head is not None and not isinstance(head, _DeferredHead):
        _exchange_head(head, **model._crossent_options)
