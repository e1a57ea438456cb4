"""``defer``: a model's own code runs, its head answers with :class:`Logits`, and the logits are never formed.

The class of the head is exchanged, and that of a model around it that can say whether labels were given. A class is all that
is exchanged: hooks and closures would be left behind by a copy, a pickle, and by whoever calls ``forward`` directly.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

import crossent.models.following  # noqa: F401  # what Logits follow
from crossent.core.modes import transformed
from crossent.losses.heads import ModuleHead, parts_inside_a_call
from crossent.models.logits import Logits, note_formed, note_plain

__all__ = ["Logits", "defer", "undefer"]

Module = TypeVar("Module", bound=nn.Module)


class _Deferred:
    """What a module whose class was exchanged has beside its own: a way to be copied and pickled, and one to end it."""

    plain_class: type[nn.Module]
    """The module's own class."""
    kind: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A class that was made at run time cannot be pickled by its name, but the module's own can.
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        rebuild, arguments, *state = reduced
        return (_rebuilt, (self.kind, rebuild, (self.plain_class, *arguments[1:])), *state)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        undefer(self)  # type: ignore[type-var]


class _DeferredHead(_Deferred):
    """A head that answers with :class:`Logits` where a loss may follow."""

    kind = "head"
    _crossent_always = False
    _crossent_labelled = False  # set while a model around it is called with labels
    _crossent_max_bytes: int | None = None
    _crossent_name = "a head"

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(input, Tensor) or not self._answers():
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]
        parts = _parts_of(self, input)
        if parts is None:
            return super().forward(input)  # type: ignore[misc]
        return self._answer(*parts)

    def _answers(self) -> bool:
        """Whether a loss may follow: gradients are enabled, or labels given outside of torch.compile, or it is always so."""
        if torch._C._get_tracing_state() is not None or transformed():
            return False
        if torch.is_grad_enabled() or self._crossent_labelled or self._crossent_always:
            return True
        note_plain(self._crossent_name)
        return False

    def _answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Logits:
        _keep_gathered(self)
        return Logits.of(hidden, weight, bias, max_bytes=self._crossent_max_bytes, head=self._crossent_name)


class _LinearInside(_DeferredHead, nn.Linear):
    """The Linear below a class with a forward of its own, which calls it by ``super().forward(h)`` and goes on from there."""

    def forward(self, input: Tensor) -> Any:
        if not self._answers() or _why_formed(self, input, self.weight) is not None:
            return nn.Linear.forward(self, input)
        return self._answer(input, self.weight, self.bias)


class _DeferredModel(_Deferred):
    """A model that tells its head whether labels were given, and that keeps it deferred when it is exchanged."""

    kind = "model"
    _crossent_options: dict[str, Any] = {}  # noqa: RUF012  # of a class: never written to
    _crossent_labels_at: int | None = None  # where labels stand among the arguments of its forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; a forward of its instance, which some trainers put there, stands before that of its class."""
        call = super().__call__  # type: ignore[misc]
        if torch.compiler.is_compiling() or "forward" not in vars(self):
            return call(*args, **kwargs)
        return _tell_of_labels(self, lambda _, *args, **kwargs: call(*args, **kwargs), args, kwargs)

    def set_output_embeddings(self, new_embeddings: Any) -> Any:
        """Set the output embedding, and defer it too."""
        result = super().set_output_embeddings(new_embeddings)  # type: ignore[misc]
        _keep_deferred(self)
        return result


def _told_of_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Write a model's forward that tells the head of labels; its signature, which trainers read, is the model's."""

    @wraps(forward)
    def forward_with_labels_told(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _tell_of_labels(self, forward, args, kwargs)

    return forward_with_labels_told


def _tell_of_labels(model: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a model's forward, and let its head know whether labels were given."""
    if torch.compiler.is_compiling():
        return forward(model, *args, **kwargs)
    _keep_deferred(model)
    labels, at = kwargs.get("labels"), model._crossent_labels_at
    if labels is None and at is not None and at < len(args):
        labels = args[at]
    head = model.get_output_embeddings()
    if labels is None or not isinstance(head, _DeferredHead):
        return forward(model, *args, **kwargs)
    counted, outer = Logits.blocked + Logits.formed, head._crossent_labelled
    head._crossent_labelled = True
    try:
        result = forward(model, *args, **kwargs)
    finally:
        head._crossent_labelled = outer
    if Logits.blocked + Logits.formed == counted:
        _note_head_passed_by(model, head, result)
    return result


def _note_head_passed_by(model: Any, head: Any, result: Any) -> None:
    """Count the logits of a model that was given labels and made logits of them without a call of its head."""
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple) else ()
    classes = head.weight.shape[0]
    for value in values:
        if issubclass(type(value), Tensor) and value.shape[-1:] == (classes,) and value.is_floating_point():
            why = " The model never called its head, and multiplied by its weight itself"
            note_formed(head._crossent_name, f"{type(model).__name__}.forward", tuple(value.shape), why)
            return


@cache
def _deferred_class(kind: str, plain: Any) -> type[nn.Module]:
    """Make the class that a module of some class gets; libraries look at the name of a model's, which stays."""
    bases: tuple[type, ...]
    members: dict[str, Any] = {}
    if kind == "head":
        inside = issubclass(plain, nn.Linear) and plain.forward is not nn.Linear.forward
        bases, name = (plain, _LinearInside) if inside else (_DeferredHead, plain), f"Deferred{plain.__name__}"
    else:
        bases, members, name = (_DeferredModel, plain), {"forward": _told_of_labels(plain.forward)}, plain.__name__
        names = list(inspect.signature(plain.forward).parameters)
        members["_crossent_labels_at"] = names.index("labels") - 1 if "labels" in names else None
    members |= {"plain_class": plain, "__module__": plain.__module__, "__doc__": plain.__doc__}
    made: type[nn.Module] = type(name, bases, members)
    return made


def _rebuilt(kind: str, rebuild: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make a copy of a deferred module, of its own class first."""
    module = rebuild(*arguments)
    module.__class__ = _deferred_class(kind, type(module))  # type: ignore[arg-type]  # a class is hashable
    return module


def _parts_of(head: Any, input: Tensor) -> ModuleHead | None:
    """Take a head apart for hidden states; where that cannot be, count that its logits are formed, say why, and return None."""
    try:
        parts = parts_inside_a_call(head, input)
    except (TypeError, RuntimeError) as error:
        _note_why(head, input, head.weight, str(error))
        return None
    return parts if _why_formed(head, input, parts.weight) is None else None


def _why_formed(head: Any, input: Tensor, weight: Tensor) -> str | None:
    """Say why the logits of a head that was called are formed now, and count that; None where they need not be.

    Hidden states and a weight of which one is a DTensor are refused, since torch says less.
    """
    placed = hasattr(weight, "placements")
    if placed != hasattr(input, "placements"):
        where = "of which each process has all" if not placed else f"placed {tuple(weight.placements)}"  # type: ignore[attr-defined]
        raise RuntimeError(
            f"a deferred head must find hidden states and weight both plain or both DTensors, got {type(input).__name__} and a "
            f"weight {where}: where FSDP shards it, call the head in the forward of a module that fully_shard was given, or "
            "unshard() that module first; for tensor parallelism, let parallelize_module place both"
        )
    if "forward" in vars(head):
        why = "it got a forward of its instance after defer, as tensor parallelism and device maps put there, which expects them"
    elif placed and head._forward_hooks:
        why = "it has a forward hook, as parallelize_module puts there to place them"
    else:
        return None
    _note_why(head, input, weight, why)
    return why


def _note_why(head: Any, input: Tensor, weight: Tensor, why: str) -> None:
    shape = (*input.shape[:-1], weight.shape[0])
    note_formed(head._crossent_name, type(head).__name__, shape, f" The head cannot be taken apart: {why}")


def _keep_gathered(head: Any) -> None:
    """Ask FSDP not to free the weights that it gathered for this head when its forward ends: the loss reads them later."""
    keep = getattr(head, "set_reshard_after_forward", None)
    if keep is not None and not torch.compiler.is_compiling():
        keep(False, recurse=False)


def defer(module: Module, *, always: bool = False, max_bytes: int | None = None) -> Module:
    """Let a model's head answer with :class:`Logits`, so that its loss is computed in blocks and its logits never exist.

    The head is an :class:`torch.nn.Linear`, or PEFT's wrapper of one; of a model of ``transformers``, whatever is around it, it is
    found as ``get_output_embeddings()``. Its class is exchanged for a subclass: parameters, state dicts, copies and saved
    files stay as they are. The model's own code then runs on :class:`Logits`, which compute in blocks what a loss asks of them.

    The head answers so while gradients are enabled, and also without them where the model around it is given ``labels``, but
    for compiled models. In all other calls, such as those of ``generate``, it answers with plain logits.

    Args:
        module: a model of ``transformers``, anything around one (PEFT, DistributedDataParallel, Lightning), or a head itself.
        always: answer with :class:`Logits` in every call, as for a teacher or a reference model under ``no_grad``.
        max_bytes: how large a block of logits may be, as in :func:`crossent.linear_cross_entropy`.

    Returns:
        The same module. A ``with`` statement undefers it at its end, as :func:`undefer` does.

    Raises:
        TypeError: a module without a head that this can do.
        RuntimeError: a head whose forward was replaced, as tensor parallelism and device maps do.

    A model without an output embedding, such as a classifier, is left alone with a warning.

    >>> import crossent
    >>> crossent.Logits.reset()
    >>> head = torch.nn.Linear(8, 1000)
    >>> h, y = torch.randn(6, 8), torch.zeros(6, dtype=torch.long)
    >>> expected = torch.nn.functional.cross_entropy(head(h), y)
    >>> with crossent.defer(head):
    ...     loss = torch.nn.functional.cross_entropy(head(h), y)
    >>> torch.testing.assert_close(loss, expected)
    >>> print(crossent.Logits.report())
    deferred heads: 1 result computed in blocks, logits formed 0 times
      Linear(8, 1000): 1 result computed in blocks, logits formed 0 times

    See also: :func:`crossent.linear_cross_entropy`, which does the computing; ``docs/defer.md``.
    """
    model, head = _find_head(module)
    if head is None:
        warnings.warn(
            f"{type(module).__name__} has no output embedding, and nothing was deferred: only a language model's head has logits "
            "worth it. To defer another head, pass it itself",
            stacklevel=2,
        )
        return module
    options: dict[str, Any] = {"always": always, "max_bytes": max_bytes}
    _exchange(head, _name(model, head), **options)
    if model is not None:
        if not isinstance(model, _DeferredModel):
            model.__class__ = _deferred_class("model", type(model))  # type: ignore[arg-type]  # a class is hashable
        model._crossent_options = options
    return module


def undefer(module: Module) -> Module:
    """Give a model and its head, which :func:`defer` was given, their own classes back.

    Returns:
        The same module.

    Raises:
        RuntimeError: a module whose class was exchanged once more since, as ``fully_shard`` does.
    """
    for each in module.modules():
        if "plain_class" in vars(type(each)):
            each.__class__ = type(each).plain_class  # type: ignore[attr-defined]
            for name in [name for name in vars(each) if name.startswith("_crossent_")]:
                delattr(each, name)
        elif isinstance(each, _Deferred):
            raise RuntimeError(
                f"undefer must undo the last change of a module's class, got {type(each).__name__}, which is a subclass of what "
                "defer made: leave it deferred, or undefer the model before it is sharded or parametrized"
            )
    return module


def _find_head(module: nn.Module) -> tuple[Any, Any]:
    """Find the model that has an output embedding, and that; or None and the module itself, as the head."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, a model or its head, got {type(module).__name__}")
    asked = False
    for each in module.modules():
        find = getattr(type(each), "get_output_embeddings", None)
        if find is not None:
            asked = True
            head = find(each)
            if isinstance(head, nn.Module):
                return each, head
    if asked:
        return None, None
    inner = module._modules.get("_orig_mod", module)  # of torch.compile
    return None, inner


def _keep_deferred(model: Any) -> None:
    """Defer the head that is there now: PEFT puts its own in the place of it, and so does a new vocabulary."""
    head = model.get_output_embeddings()
    if isinstance(head, nn.Module) and not isinstance(head, _DeferredHead):
        _exchange(head, _name(model, head), **model._crossent_options)


_NAMED: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def _name(model: Any, head: Any) -> str:
    """Name a head for the report: ``GPT.lm_head``, and ``GPT.lm_head (2)`` while there is another one of that name."""
    if model is None:
        base = f"{type(head).__name__}({getattr(head, 'in_features', '?')}, {getattr(head, 'out_features', '?')})"
    else:
        path = next((name for name, each in model.named_modules() if each is head), "head")
        base = f"{type(model).__name__}.{path}"
    name, number = base, 1
    while _NAMED.get(name, head) is not head:
        number += 1
        name = f"{base} ({number})"
    return name


def _exchange(head: Any, name: str, always: bool = False, max_bytes: int | None = None) -> None:
    """Exchange the class of a head, if it is one, and note how it is to answer."""
    if not isinstance(head, _DeferredHead):
        _refuse(head)
        head.__class__ = _deferred_class("head", type(head))  # type: ignore[arg-type]  # a class is hashable
        head._crossent_name = name
        _NAMED[name] = head
    head._crossent_always, head._crossent_max_bytes = always, max_bytes


def _refuse(head: Any) -> None:
    """Refuse what is no head, and a head that would go on answering with plain logits."""
    if not isinstance(head, nn.Linear) and not _WRAPPED & set(head._modules):
        candidates = [name for name, each in head.named_modules() if isinstance(each, nn.Linear)]
        last = f": pass its head, perhaps crossent.defer(model.{candidates[-1]})" if candidates else ""
        raise TypeError(
            f"defer takes a model of transformers or a head, an nn.Linear or PEFT's adapter of one, got {type(head).__name__}{last}"
        )
    own = type(head).forward
    if (
        isinstance(head, nn.Linear)
        and own is not nn.Linear.forward
        and "super" not in inspect.unwrap(own).__code__.co_names
    ):
        raise TypeError(
            f"defer follows a head's own forward to the Linear's, got {type(head).__name__}, which does not call "
            "super().forward(h): write it so, or make it a plain nn.Linear and do what is around it in the model"
        )
    if "forward" in vars(head):
        raise RuntimeError(
            f"defer exchanges the class of a head, got a {type(head).__name__} with a forward of its own instance, as tensor "
            "parallelism (tp_plan) and device maps put there, which would go on forming the logits: leave the head out of the "
            "plan or map. To keep its classes split over processes, compute the loss with crossent.linear_cross_entropy, of "
            "plain tensors with shard= or of DTensors"
        )


_WRAPPED = {"base_layer", "modules_to_save"}  # what PEFT's adapters of a layer have
