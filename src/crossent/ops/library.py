"""How records are written as the arguments of an operator and read back, by name, in one place; and what autograd asks first.

An :class:`Operator` is defined by its parameters: a schema's words, such as ``"Tensor logits"``, or a :class:`Fields`, which
stands for a record whose fields become arguments of their own. It is called, implemented, faked and differentiated with the
records themselves.

A call takes one of four doors, the first whose conditions hold:

==================  =================================================================  =========================================
door                conditions                                                         what runs
==================  =================================================================  =========================================
:func:`plain`       torch's own tensors; no compiler, tracer, transform or mode        the implementation itself
:func:`by_formula`  forward mode, ``functionalize`` or an export to ONNX               torch operations, which torch differentiates
:func:`transformed` ``torch.func`` and vmap                                            a Function over torch operations
none of these       compilers, tracers, exports, fake tensors, modes, subclasses       the operator, through the dispatcher
==================  =================================================================  =========================================

An export to ONNX gets torch's own loss where ONNX has an operator for it: ``ops/softmax.py``.
Plain calls have a shorter way past the first door: ``ops/small.py``. Sums and means form their gradient there: ``ops/fused.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import _FlopCounterMode, flop_registry, register_flop_formula

from crossent.core.modes import transformed
from crossent.core.penalties import NamedPenalty
from crossent.core.settings import BinarySettings, Record, Settings
from crossent.core.target import BinaryTarget, Target, Teacher
from crossent.impl.head import Head, Plan

_library = torch.library.Library("crossent", "DEF")
_ANY_DEVICE = "CompositeExplicitAutograd"


class Fields:
    """A record as arguments: for each of its fields a schema's words, or another record's fields."""

    def __init__(self, record: Callable[..., Any], optional: bool = False, /, **parts: str | Fields) -> None:
        self.record, self.optional, self.parts = record, optional, parts

    @property
    def schema(self) -> str:
        """The arguments, as a schema has them."""
        return ", ".join(part.schema if isinstance(part, Fields) else part for part in self.parts.values())

    @property
    def size(self) -> int:
        """How many arguments there are."""
        return sum(part.size if isinstance(part, Fields) else 1 for part in self.parts.values())

    def write(self, value: Any) -> list[Any]:
        """Write a record as arguments; where an optional one is missing, its tensors are None and its numbers 0."""
        written: list[Any] = []
        for name, part in self.parts.items():
            if value is None:
                written.append(0.0 if part.startswith("float ") else None)  # type: ignore[union-attr]
            elif isinstance(part, Fields):
                written.extend(part.write(getattr(value, name)))
            else:
                written.append(getattr(value, name))
        return written

    def read(self, arguments: Iterator[Any]) -> Any:
        """Make the record again of the arguments that come next."""
        values = {
            name: part.read(arguments) if isinstance(part, Fields) else next(arguments)
            for name, part in self.parts.items()
        }
        if self.optional and next(iter(values.values())) is None:
            return None
        return self.record(**values)


def _numbers(record: type[Record]) -> Fields:
    """Write the rows of a record of settings as the arguments of a schema."""
    parts: dict[str, str | Fields] = {}
    for row in fields(record):  # type: ignore[arg-type]
        schema = row.metadata["schema"]
        if schema is None:  # it says how another number is meant, and in_order has applied it
            continue
        parts[row.name] = _PENALTY if schema == "penalty" else f"{schema} {row.name}"
    return Fields(record, **parts)


def _penalty(name: str, parameters: Sequence[float]) -> NamedPenalty:
    return NamedPenalty(name, tuple(parameters))


def _head(input: Tensor, weight: Tensor, bias: Tensor | None, shape: Sequence[int]) -> Head:
    return Head(input, weight, bias, tuple(shape))


_PENALTY = Fields(_penalty, name="str penalty", parameters="float[] parameters")
TARGET = Fields(
    Target,
    values="Tensor target",
    weight="Tensor? class_weight",
    logit_bias="Tensor? logit_bias",
    class_mask="Tensor? class_mask",
    valid="Tensor? valid",
    settings=_numbers(Settings),
)
BINARY_TARGET = Fields(
    BinaryTarget,
    values="Tensor target",
    weight="Tensor? weight",
    pos_weight="Tensor? pos_weight",
    mask="Tensor? mask",
    settings=_numbers(BinarySettings),
)
HEAD = Fields(_head, input="Tensor input", weight="Tensor weight", bias="Tensor? bias", shape="SymInt[] shape")
TEACHER = Fields(
    Teacher,
    True,
    input="Tensor? teacher_input",
    weight="Tensor? teacher_weight",
    bias="Tensor? teacher_bias",
    temperature="float teacher_temperature",
)
PLAN = Fields(Plan, target=TARGET, teacher=TEACHER, max_bytes="int max_bytes", impl="str impl")


class Operator:
    """An operator of ``torch.ops.crossent``, called, implemented and faked with records instead of their fields.

    ``check`` is asked first, with real tensors and with fake ones: a call through ``torch.ops`` was checked by nobody.
    """

    def __init__(self, name: str, *parameters: str | Fields, returns: str, check: Callable[..., None]) -> None:
        self.name, self.parameters, self.check = name, parameters, check
        schema = ", ".join(each.schema if isinstance(each, Fields) else each for each in parameters)
        _library.define(f"{name}({schema}) -> {returns}")
        self.overload = getattr(torch.ops.crossent, name).default
        self._counted = False

    def arguments(self, *values: Any) -> list[Any]:
        """Write the values of the parameters as the arguments of the schema."""
        written: list[Any] = []
        for parameter, value in zip(self.parameters, values, strict=True):
            if isinstance(parameter, Fields):
                written.extend(parameter.write(value))
            else:
                written.append(value)
        return written

    def __call__(self, *values: Any) -> Any:
        """Call it through the dispatcher."""
        return self.dispatch(*self.arguments(*values))

    def dispatch(self, *arguments: Any) -> Any:
        """Call it through the dispatcher, with the arguments of the schema."""
        if self._counted and not torch.compiler.is_compiling():
            self._tell_counters()
        return self.overload(*arguments)

    def implement(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of the parameters compute it on any device."""
        _library.impl(self.name, self._with_records(compute), _ANY_DEVICE)
        return compute

    def compose(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of the parameters compute it in torch operations, into which compilers take it apart.

        To Dynamo it is one step. An ``autograd.Function`` that Dynamo itself looks into has a gradient that cannot be
        differentiated, and with ``backend="eager"`` nothing says so.
        """
        _library.impl(self.name, self._with_records(compute), "CompositeImplicitAutograd")
        return compute

    def fake(self, describe: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of the parameters tell the shapes and dtypes of its results."""
        torch.library.register_fake(f"crossent::{self.name}", self._with_records(describe), lib=_library)
        return describe

    def differentiate(self, record: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of the parameters compute it where autograd is to know of it."""

        def under_autograd(*arguments: Any) -> Any:
            if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in _flat(arguments)):
                return self._with_records(record)(*arguments)
            if forward_ad._current_level >= 0 and any(
                isinstance(x, Tensor) and has_tangent(x) for x in _flat(arguments)
            ):
                raise NotImplementedError(
                    f"crossent::{self.name} has no forward mode: call the function that it belongs to"
                )
            with torch._C._AutoDispatchBelowAutograd():
                return self.overload(*arguments)

        _library.impl(self.name, under_autograd, "Autograd")
        return record

    def count_flops(self, count: Callable[..., int]) -> Callable[..., int]:
        """Let a function of the parameters, with shapes in the place of tensors, tell FlopCounterMode the cost."""

        def of_shapes(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
            flops: int = count(*self._records(arguments))
            return flops

        register_flop_formula(self.overload.overloadpacket)(of_shapes)
        self._counted = True
        return count

    def _tell_counters(self) -> None:
        """Give the formula to counters that look on: each copied the formulas when it was made, which may be before this one."""
        packet = self.overload.overloadpacket
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, _FlopCounterMode):
                mode.counter.flop_registry.setdefault(packet, flop_registry[packet])

    def _with_records(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def from_arguments(*arguments: Any) -> Any:
            values = self._records(arguments)
            self.check(*values)
            return function(*values)

        return from_arguments

    def _records(self, arguments: Sequence[Any]) -> list[Any]:
        """Read the values of the parameters off the arguments of the schema."""
        rest = iter(arguments)
        return [p.read(rest) if isinstance(p, Fields) else next(rest) for p in self.parameters]


def _flat(arguments: Sequence[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from argument
        else:
            yield argument


# --- what is asked before and after -----------------------------------------------------------------------------------


def has_tangent(x: Tensor) -> bool:
    """Whether a tensor carries a tangent of the innermost level of forward mode."""
    return unpack_dual(x).tangent is not None


def exporting_to_onnx() -> bool:
    """Whether an export to ONNX is under way; torch.onnx is not imported to find out that it is not."""
    return (torch.compiler.is_compiling() or "torch.onnx" in sys.modules) and torch.onnx.is_in_onnx_export()


def by_formula() -> bool:
    """Whether torch itself is to differentiate or translate what a call that is not plain computes: see the table above."""
    if transformed():
        if torch.compiler.is_compiling():  # which takes no Function with a forward mode of its own
            return True
        stack = torch._C._functorch.get_interpreter_stack() or []
        return any(each.key() == torch._C._functorch.TransformType.Functionalize for each in stack)
    return forward_ad._current_level >= 0 or exporting_to_onnx()


def differentiated(grad: Tensor, *saved: Tensor | None) -> bool:
    """Whether a backward running now is itself transformed or differentiated, in reverse or in forward mode."""
    if torch.is_grad_enabled() or transformed():
        return True
    if torch.compiler.is_compiling():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor  # by is_grads_batched
    return any(t is not None and (batched(t) or has_tangent(t)) for t in (grad, *saved))


def primal(value: Any) -> Any:
    """Return what was saved for forward mode without its tangent at this level.

    Torch switches forward mode off inside a ``jvp``, and the tangents of outer levels would be dropped in silence. Switched
    on again it nests rightly, provided that this level's own tangents are out of the way.
    """
    functorch = torch._C._functorch
    if value is None or not functorch.is_batchedtensor(value):
        return None if value is None else unpack_dual(value).primal
    batch, level = functorch.maybe_get_bdim(value), functorch.maybe_get_level(value)
    return functorch._add_batch_dim(primal(functorch.get_unwrapped(value)), batch, level)


def tell_if_in_place(grad: Tensor | None, logits: Tensor) -> None:
    """Tell autograd that the logits are gone, if the gradient was written over them."""
    if grad is not None and grad.data_ptr() == logits.data_ptr():
        torch.autograd.graph.increment_version(logits)


def gradients_like(grads: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Lay each gradient out as its input is, as the operators promise; what was not asked for is an empty tensor."""
    return tuple(x.new_empty(0) if g is None else like(g, x) for g, x in zip(grads, inputs, strict=True))


def like(g: Tensor, x: Tensor) -> Tensor:
    """Lay a gradient out as a tensor is."""
    if g.stride() == x.stride():
        return g
    outer_first = sorted(range(x.dim()), key=torch.empty_like(x, device="meta").stride, reverse=True)
    back = [outer_first.index(axis) for axis in range(x.dim())]
    return g.permute(outer_first).contiguous().permute(back)


def fake_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Describe gradients laid out as their inputs; what was not asked for is an empty tensor."""
    (first, *_) = inputs
    given = [first if x is None else x for x in inputs]
    assert first is not None
    return tuple(
        torch.empty_like(x) if need and x is not None else like.new_empty(0)  # type: ignore[union-attr]
        for x, like, need in zip(inputs, given, needs, strict=True)
    )


def for_each_input(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return what the backward of a Function returns: the gradients of its first inputs, and None for all others."""
    return (*gradients, *(None for _ in ctx.needs_input_grad[len(gradients) :]))


def where_asked(grads: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Put None in the place of gradients that were not asked for."""
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))
