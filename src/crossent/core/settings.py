"""The record of a call's numbers, and the words on every option.

A number stands in one row of :class:`Settings` (softmax) or :class:`BinarySettings`: its name, its default, its check and how
an operator's schema writes it. What carries a record (operators, kernels, modules) goes through its fields by name.
``DOCUMENTATION`` has the words on each option once, and :func:`documented` puts them into the docstrings.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

import torch
from torch import Tensor
from typing_extensions import Self, TypedDict, dataclass_transform

from crossent.core import checks
from crossent.core.names import refuse_unknown
from crossent.core.penalties import BinaryPenalty, NamedPenalty, Penalty, named_penalty
from crossent.core.shard import VocabShard


def row(*, default: Any, schema: str | None, check: Callable[[str, Any], Any]) -> Any:
    """Write a row of a record: a number's default, its check, and how a schema writes it.

    A row whose schema is None only says how another number is meant. ``in_order`` applies it, and no operator has it.
    """
    return field(default=default, metadata={"check": check, "schema": schema})


class Record:
    """Numbers that have names, defaults and checks."""

    names: ClassVar[tuple[str, ...]]
    defaults: ClassVar[dict[str, Any]]
    checks: ClassVar[dict[str, Callable[[str, Any], Any]]]
    unsaid: ClassVar[dict[str, Any]]  # the defaults as signatures have them, None for no penalty
    usual: ClassVar[Any]  # the record of the defaults

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Check numbers by their names; what is not given, or is what a signature has, is the default."""
        changed = {}
        for name, value in given.items():
            default = cls.unsaid[name]
            if value is not default and (type(value) is not type(default) or value != default):
                changed[name] = cls.checks[name](name, value)
        return cls(**cls.in_order(changed)) if changed else cls.usual

    @classmethod
    def in_order(cls, numbers: dict[str, Any]) -> dict[str, Any]:
        """Write checked numbers in the one way that is computed, where there are several ways to say it."""
        return numbers

    def unusual(self) -> tuple[str, ...]:
        """Name the numbers that are not their defaults."""
        return tuple(name for name in self.names if getattr(self, name) != self.defaults[name])

    def unknown_to(self, numbers: Collection[str]) -> str | None:
        """Name the first number that is not its default and is none of these: whoever computes with these would ignore it."""
        for name in self.names:
            if name not in numbers and getattr(self, name) != self.defaults[name]:
                return name
        return None


_R = TypeVar("_R", bound=Record)


@dataclass_transform(frozen_default=True, field_specifiers=(row,))
def record(cls: type[_R]) -> type[_R]:
    """Make a frozen dataclass of rows."""
    cls = dataclass(frozen=True)(cls)
    rows = fields(cls)  # type: ignore[arg-type]
    cls.names = tuple(each.name for each in rows)
    cls.defaults = {each.name: each.default for each in rows}
    cls.checks = {each.name: each.metadata["check"] for each in rows}
    cls.unsaid = {each.name: None if each.name == "penalty" else each.default for each in rows}
    cls.usual = cls()
    return cls


@record
class Settings(Record):
    """The numbers of a softmax loss. The defaults are torch's cross entropy: ``settings == Settings()`` is what plain means.

    ``t`` is smoothed before ``c`` multiplies it. A penalty is kept by its name and parameters, which an operator can carry.
    ``all_classes`` is how many classes there are where the logits are a shard of them, and 0 where they have them all; only
    ``crossent.parallel`` sets it.
    """

    ignore_index: int = row(default=-100, schema="int", check=checks.integer_of_64_bits)
    label_smoothing: float = row(default=0.0, schema="float", check=checks.smoothing)
    temperature: float = row(default=1.0, schema="float", check=checks.positive("it divides the logits"))
    softcap: float | None = row(
        default=None,
        schema="float?",
        check=checks.optional(checks.positive("it bounds the logits; for none pass None")),
    )
    margin: float = row(default=0.0, schema="float", check=checks.finite("it is subtracted from the target's logit"))
    z_loss: float = row(
        default=0.0, schema="float", check=checks.at_least_zero("it is the factor of lse², such as 1e-4")
    )
    penalty: NamedPenalty = row(
        default=NamedPenalty(), schema="penalty", check=lambda _, value: named_penalty(value, binary=False)
    )
    all_classes: int = row(default=0, schema="int", check=checks.integer_of_64_bits)
    softcap_after_temperature: bool = row(default=False, schema=None, check=checks.flag)

    @classmethod
    def in_order(cls, numbers: dict[str, Any]) -> dict[str, Any]:
        """Write a cap of ``x / T`` as one of ``x``: ``cap · tanh((x / T) / cap) = (T · cap · tanh(x / (T · cap))) / T``.

        So no implementation knows of the other order.
        """
        if numbers.pop("softcap_after_temperature", False) and "softcap" in numbers:
            cap = numbers["softcap"] * numbers.get("temperature", 1.0)
            numbers["softcap"] = checks.positive("it is multiplied by the temperature")("softcap", cap)
        return numbers


@record
class BinarySettings(Record):
    """The numbers of a binary loss."""

    ignore_index: float | None = row(default=None, schema="float?", check=checks.optional(checks.number))
    label_smoothing: float = row(default=0.0, schema="float", check=checks.smoothing)
    penalty: NamedPenalty = row(
        default=NamedPenalty(), schema="penalty", check=lambda _, value: named_penalty(value, binary=True)
    )


PLAIN: Settings = Settings.usual
PLAIN_BINARY: BinarySettings = BinarySettings.usual
TORCHS = ("ignore_index", "label_smoothing")
"""The numbers of a softmax loss that torch has too."""
NUMBERS = frozenset(
    {*Settings.names, *BinarySettings.names, "dim", "shift", "max_bytes", "max_rows"}
    - {"penalty", "softcap_after_temperature"}
)
"""The options that are numbers, of any loss; a denominator may be a tensor too, and stay one."""


# --- the options that functions and modules take by keyword -------------------------------------------------------------


class ModuleRowOptions(TypedDict, total=False):
    """How the losses of rows become a result, and what computes them."""

    denominator: float | Tensor | None
    empty: Literal["nan", "zero"]
    out_dtype: torch.dtype | None
    impl: str | None


class LogitOptions(TypedDict, total=False):
    """What a softmax loss makes of its logits, beside torch's arguments and the penalty."""

    temperature: float
    softcap: float | None
    logit_bias: Tensor | None
    margin: float
    class_mask: Tensor | None
    z_loss: float
    softcap_after_temperature: bool


class _Batch(TypedDict, total=False):
    sample_weight: Tensor | None


class _Layout(TypedDict, total=False):
    dim: int | None
    inplace_backward: bool
    inplace_forward: bool


class _Shard(TypedDict, total=False):
    shard: VocabShard | None


class _Penalty(TypedDict, total=False):
    penalty: Penalty | None


class _Torchs(TypedDict, total=False):
    reduction: Literal["none", "mean", "sum"]
    label_smoothing: float


class _Ignored(TypedDict, total=False):
    ignore_index: int


class SoftmaxModuleOptions(ModuleRowOptions, _Layout, _Penalty, LogitOptions, total=False):
    """What every softmax loss of logits takes."""


class CrossEntropyModuleOptions(SoftmaxModuleOptions, _Shard, total=False):
    """What :class:`crossent.CrossEntropyLoss` takes by keyword beside torch's arguments."""


class MultilabelModuleOptions(SoftmaxModuleOptions, _Torchs, total=False):
    """What :class:`crossent.MultilabelCrossEntropyLoss` takes by keyword."""


class MultilabelOptions(MultilabelModuleOptions, _Batch, total=False):
    """What :func:`crossent.multilabel_cross_entropy` takes by keyword."""


class FocalModuleOptions(ModuleRowOptions, _Layout, LogitOptions, _Torchs, _Ignored, _Shard, total=False):
    """What :class:`crossent.FocalLoss` takes by keyword."""


class FocalOptions(FocalModuleOptions, _Batch, total=False):
    """What :func:`crossent.focal_loss` takes by keyword."""


class StatisticsOptions(ModuleRowOptions, _Batch, _Penalty, LogitOptions, _Shard, total=False):
    """What :func:`crossent.cross_entropy_stats` takes by keyword beside torch's arguments."""

    dim: int | None


class LinearOptions(ModuleRowOptions, _Batch, _Penalty, LogitOptions, _Shard, total=False):
    """What :func:`crossent.linear_cross_entropy` takes by keyword beside its own arguments."""


class LinearModuleOptions(LinearOptions, _Torchs, total=False):
    """What :class:`crossent.LinearCrossEntropyLoss` takes by keyword beside its head."""

    weight: Tensor | None
    ignore_index: int | None
    options: object
    shift: int
    max_bytes: int | None
    max_rows: int | None


class LinearArguments(LinearModuleOptions, total=False):
    """What :func:`crossent.linear_cross_entropy` takes by keyword, its own arguments among it."""

    linear_bias: Tensor | None


class SigmoidFocalModuleOptions(ModuleRowOptions, _Layout, total=False):
    """What :class:`crossent.SigmoidFocalLoss` takes by keyword beside its own arguments."""

    weight: Tensor | None
    pos_weight: Tensor | None
    ignore_index: float | None
    label_smoothing: float


class SigmoidFocalOptions(SigmoidFocalModuleOptions, _Batch, total=False):
    """What :func:`crossent.sigmoid_focal_loss` takes by keyword beside its own arguments."""

    mask: Tensor | None


class BinaryModuleOptions(ModuleRowOptions, _Layout, total=False):
    """What :class:`crossent.BCEWithLogitsLoss` takes by keyword beside torch's arguments."""

    ignore_index: float | None
    label_smoothing: float
    penalty: Penalty | BinaryPenalty | None


class DistillationModuleOptions(ModuleRowOptions, _Torchs, _Ignored, total=False):
    """What :class:`crossent.DistillationLoss` takes by keyword."""

    weight: Tensor | None
    dim: int | None
    teacher_grad: bool
    reverse: bool
    penalty: Penalty | None
    class_mask: Tensor | None
    z_loss: float


class DistillationOptions(DistillationModuleOptions, _Batch, total=False):
    """What :func:`crossent.distillation_loss` takes by keyword."""


_DEFAULTS: dict[str, Any] = {
    "reduction": "mean",
    "empty": "nan",
    "inplace_backward": False,
    "inplace_forward": False,
    "teacher_grad": False,
    "reverse": False,
    "shift": 0,
    "penalty": None,
}


def default_of(name: str) -> Any:
    """Return the default of an option."""
    return _DEFAULTS[name] if name in _DEFAULTS else Settings.defaults.get(name)


def names_of(options: type) -> tuple[str, ...]:
    """List the keywords that a ``TypedDict`` has."""
    return tuple(options.__annotations__)


def check_names(given: Any, options: type, function: str) -> None:
    """Refuse keywords that a function does not take, and say which was likely meant."""
    if given:
        refuse_unknown(given, names_of(options), function)


# --- the words ----------------------------------------------------------------------------------------------------------

DOCUMENTATION = {
    "weight": """class weights ``c``, ``(C)``; for indices in the dtype of the logits, or in float32 or float64 where these are
        in half precision.""",
    "size_average": "deprecated, as in torch.",
    "reduce": "deprecated, as in torch.",
    "ignore_index": """rows with this index count for nothing: no loss, no gradient whatever their logits hold, no share in the
        mean.""",
    "reduction": """``"none"``, ``"sum"`` or ``"mean"``. The mean divides by ``Σ c[y]`` over the rows not ignored for indices, by
        the number of rows for probabilities.""",
    "label_smoothing": "``ε`` in [0, 1].",
    "sample_weight": """a factor for each row, of the shape of the unreduced loss; ``k`` is the row ``k`` times, in the mean's
        divisor too, and 0 is the row left out. Differentiable.""",
    "denominator": """a number or 0-d tensor that replaces what the mean divides by, such as the count over all
        micro-batches. Where processes average their gradients, as those of DDP and FSDP do, it is the count of all of them over
        their number, which :func:`crossent.shared_denominator` computes.""",
    "empty": """what the mean over nothing is: ``"nan"`` as in torch, or ``"zero"``, which stays connected to the graph.""",
    "out_dtype": "dtype of the result.",
    "dim": "the class dimension; by default 0 for logits of one dimension and 1 for more.",
    "penalty": """what a class costs by its probability, such as :class:`crossent.Focal`; by default ``-log p``. It sees the
        probability, not the weighted loss.""",
    "temperature": "``T``, positive. The loss is not multiplied by it.",
    "softcap": """``cap``, positive. A logit of ``-inf`` becomes ``-cap`` and so possible: use ``class_mask``, which comes
        later.""",
    "softcap_after_temperature": """the cap bounds ``x / T`` in the place of ``x``: ``cap · tanh(x / (T · cap))``, for a model that
        scales its logits before it caps them. Bias and margin are divided by ``T`` as ever.""",
    "logit_bias": """floating, ``(C)`` or of the logits' shape, such as the log of the classes' frequencies. Differentiable.""",
    "margin": """``m``, subtracted from the logit of the target class; with probabilities, ``m t_k`` from each. It is the target
        before smoothing in either case.""",
    "class_mask": """boolean, ``(C)`` or of the logits' shape, True for the classes that are allowed. The others have probability
        0 and gradient 0 whatever their logits hold, and smoothing spreads over the allowed ones only. A row that wants a class
        it does not allow pays ``f(0)``, which is infinite for cross entropy. A row that allows nothing is left out, as one that
        is ignored.""",
    "z_loss": """``λ``, at least 0, weighted like its row: by ``c[y]`` for indices, 1 for probabilities, and by
        ``sample_weight``.""",
    "pos_weight": "``π``, broadcast to the logits' shape from the last dimension, or ``(C)`` along ``dim``.",
    "mask": "boolean, broadcast to the logits' shape; False is ignored, whatever its logits hold.",
    "teacher_grad": "differentiate in the teacher's logits too.",
    "reverse": "the distance is ``KL(p‖q)`` in the place of ``KL(q‖p)``.",
    "linear_bias": "``b``, of the shape of ``W`` without its last dimension.",
    "options": "accepted and not used: torch's options choose its blocks, and here ``max_bytes`` does.",
    "shift": """1 for a language model whose labels are its inputs: the state at ``t`` is to predict the label at ``t + 1``.
        Nothing is copied. The unreduced loss has that many positions less.""",
    "max_bytes": """how large the logits of a block may be; None is 128 MiB on the CPU and 1 GiB on a GPU. The rest of what is
        made on the way is small.""",
    "max_rows": """how many rows count at most, if you know: on a GPU, which is not asked how many are ignored, no more than that
        many are multiplied. Where more count, the loss is nan and has a gradient of 0. A CPU looks, and needs no bound. It is
        for sums and means of a head that is whole.""",
    "inplace_backward": """allow the backward pass to write the gradient over the logits, which then takes no memory and the
        least time. Whatever uses the logits afterwards raises, as after any in-place operation. The kernels do so for plain
        tensors; where they do not run the gradient is new memory as ever. Not for leaves, whose values would be lost.""",
    "inplace_forward": """allow the same as soon as the gradient is formed, which for a sum or a mean is in the forward pass. So
        nothing as large as the logits is made at all. They are gone once the loss is there: a second derivative or a second
        backward pass raises. In bfloat16 a factor that backward brings rounds once more where it is no power of two. In
        float16, whose gradient waits for the factor of a loss scaler, and without a reduction it is ``inplace_backward``.""",
    "shard": """the :class:`crossent.VocabShard` of the classes that ``input`` holds, where the others lie on other processes. One
        gather gives the loss over all classes, on every process. Labels are indices among all classes.""",
    "impl": """``None`` to choose, or ``"eager"``, ``"native"``, ``"triton"``, which is obeyed or refused. Derivatives of
        derivatives and ``torch.func`` transforms are computed in torch operations whatever it says.""",
}
"""The words on an option, as docstrings show them wherever it applies."""

_Documented = TypeVar("_Documented", bound=Callable[..., Any])


def documented(function: _Documented) -> _Documented:
    """Write the words on a function's options in the place of ``{options}`` in its docstring.

    An option whose words stand in the docstring already, because it means something else there, keeps those.
    """
    if function.__doc__ is None:
        return function
    names: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        keywords = parameter.kind is inspect.Parameter.VAR_KEYWORD
        names += names_of(get_type_hints(function)[name].__args__[0]) if keywords else [name]
    lines = []
    for name in names:
        if name in DOCUMENTATION and f"\n        {name}:" not in function.__doc__:
            words = " ".join(DOCUMENTATION[name].split())
            wrapped = textwrap.wrap(f"{name}: {words}", 128, initial_indent=" " * 8, subsequent_indent=" " * 12)
            lines.append("\n".join(wrapped))
    function.__doc__ = function.__doc__.replace("        {options}", "\n".join(lines))
    return function
