"""``Logits``: what a deferred head answers in the place of logits, and how torch's functions find their way through it.

It holds hidden states, the head, and a short record of what was done since. Operations on positions (slices, shapes, masks,
indices) are done to the hidden states, which are small; operations on values (scaling, a soft cap, a bias) are folded into the
head or noted. What a loss asks of the logits is computed in blocks. For anything else they are formed, and that is counted.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from crossent.core.checks import under_autocast
from crossent.core.modes import plain
from crossent.ops.linear import function_under_way
from crossent.ops.node import SameNumbers

_PLACES = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<")  # whose lines are not the caller's


class Form(NamedTuple):
    """What became of ``x = h Wᵀ + b`` since, beside what its tensors say.

    Attributes:
        dtype: of the logits, which may be wider than that of the product.
        kind: what the numbers are: ``"logits"``, ``"log p"``, ``"p"``, or ``"p log p"`` of their softmax.
        capped: whether a tanh was taken of ``h Wᵀ + b``.
        scale: what that tanh was multiplied by; positive.
        factor: what the log-probabilities, or what was made of them, were multiplied by.
        axis: where the classes are, counted from the end: -1, -2, ...
        max_bytes: how large a block of logits may be; None is :func:`crossent.linear_cross_entropy`'s own.
        head: what the head is called in the report.
    """

    dtype: torch.dtype
    kind: str = "logits"
    capped: bool = False
    scale: float = 1.0
    factor: float = 1.0
    axis: int = -1
    max_bytes: int | None = None
    head: str = "a head"


@dataclass(eq=False, repr=False)  # a dataclass, in whose fields DistributedDataParallel looks for tensors
class Logits:
    """The logits ``h Wᵀ + b`` of a head that :func:`crossent.defer` was given, which are not formed.

    It has the ``shape``, ``dtype`` and ``device`` of the logits and takes part in torch's functions. These are computed a block
    of rows at a time, with gradients:

    - a loss: ``cross_entropy`` of torch or of this library, its module and its statistics; ``log_softmax`` and ``nll_loss``;
    - the log-probability of a token: ``log_softmax(-1).gather(-1, y)``, ``take_along_dim``, ``x.gather(-1, y) - x.logsumexp(-1)``;
    - ``logsumexp``, and the entropy as ``-(p * log_p).sum(-1)``;
    - ``argmax``, ``max`` and ``amax`` over the classes;
    - distillation: ``kl_div`` with the :class:`Logits` or the probabilities of a teacher.

    Positions may be sliced, masked and reshaped before that. Values may be cast, scaled, capped by a tanh, shifted by a bias and
    masked by class. Anything else forms the logits and is counted. It also warns, once for each place, unless what is formed
    is a single row.

    Attributes:
        hidden: hidden states, ``(..., D)``, in the order of the logits' rows.
        weight: ``W``, ``(V, D)``.
        bias: ``b``, ``(V)``, or None.
        shift: what was added to the classes after a soft cap, ``(V)``, or None.
        allowed: the classes that were not masked, ``(V)``, or None for all.
        form: what was done since.
        formed: how often logits were formed in this process; 0 is what a training run wants to see.
        blocked: how often something was computed in blocks instead.
        places: where logits were formed, and how often: ``{"train.py:41 softmax": 3}``.
        heads: the same of each head, by its name in the model, with the calls that it answered with plain logits, since no
            loss was expected: ``{"GPT.lm_head": {"blocked": 12, "formed": 0, "plain": 3}}``.

    >>> import crossent
    >>> head = torch.nn.Linear(8, 1000)
    >>> logits = crossent.defer(head)(torch.randn(2, 5, 8))
    >>> logits
    Logits(shape=(2, 5, 1000), dtype=torch.float32, kind='logits')
    >>> loss = torch.nn.functional.cross_entropy(logits.view(-1, 1000), torch.zeros(10, dtype=torch.long))
    >>> crossent.Logits.formed
    0
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    shift: Tensor | None
    allowed: Tensor | None
    form: Form

    def __post_init__(self) -> None:
        self._writes = [0]  # how often it was changed in place, or logits of which it is a view
        self._seen = 0
        self._written: Tensor | None = None  # the logits as a tensor, once something wrote to them that is not followed

    formed: ClassVar[int] = 0
    blocked: ClassVar[int] = 0
    places: ClassVar[Counter[str]] = Counter()
    heads: ClassVar[dict[str, Counter[str]]] = {}

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        max_bytes: int | None = None,
        head: str = "a head",
    ) -> Logits:
        """Hold what gives the logits ``h Wᵀ + b``, as autocast has it now; ``head`` is what the report calls it."""
        if under_autocast(hidden.device) and hidden.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        hidden = _no_view(hidden) if torch.is_grad_enabled() else hidden.detach()
        weight, bias = _not_a_leaf(weight), None if bias is None else _not_a_leaf(bias)
        kind = cls if torch.compiler.is_compiling() or any_requires_grad(hidden, weight, bias) else _Evaluated
        return kind(hidden, weight, bias, None, None, Form(hidden.dtype, max_bytes=max_bytes, head=head))

    @classmethod
    def report(cls) -> str:
        """Say whether deferred heads do what they are for in this process: in all, of each head, and where logits were formed.

        >>> import crossent
        >>> crossent.Logits.reset()
        >>> crossent.Logits.report()
        'deferred heads: nothing computed in blocks, logits formed 0 times'
        """
        lines = [f"deferred heads: {_done(cls.blocked, cls.formed)}"]
        for name, counts in cls.heads.items():
            plain = f", {_number_of(counts['plain'], 'call')} without gradients and labels answered plainly"
            lines.append(f"  {name}: {_done(counts['blocked'], counts['formed'])}{plain if counts['plain'] else ''}")
        return "\n".join([*lines, *(f"  {count} x {place}" for place, count in cls.places.most_common())])

    @classmethod
    def reset(cls) -> None:
        """Forget what was counted."""
        cls.formed, cls.blocked = 0, 0
        cls.places.clear()
        cls.heads.clear()

    def __reduce__(self) -> Any:
        return _unflatten, (*_flatten(self), type(self))

    # --- what a tensor says of itself ---------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """The number of classes, ``V``."""
        return self.weight.shape[0]

    @property
    def _placed(self) -> bool:
        """Whether hidden states and head are DTensors."""
        return hasattr(self.weight, "placements")

    @property
    def shape(self) -> torch.Size:
        """The logits' shape."""
        lead, at = list(self.hidden.shape[:-1]), self.hidden.dim() + self.form.axis
        return torch.Size([*lead[:at], self.classes, *lead[at:]])

    @property
    def dtype(self) -> torch.dtype:
        """The logits' dtype."""
        return self.form.dtype

    @property
    def device(self) -> torch.device:
        """The logits' device."""
        return self.hidden.device

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.hidden.dim()

    @property
    def layout(self) -> torch.layout:
        """The logits' layout, strided."""
        return torch.strided

    @property
    def requires_grad(self) -> bool:
        """Whether a loss of these has a gradient for anything."""
        return any_requires_grad(self.hidden, self.weight, self.bias, self.shift)

    @property
    def is_cuda(self) -> bool:
        """Whether the logits are on a CUDA device."""
        return self.hidden.is_cuda

    @property
    def is_leaf(self) -> bool:
        """Whether nothing was computed to get here, which is never so where there is a gradient."""
        return not self.requires_grad

    @property
    def is_sparse(self) -> bool:
        """No."""
        return False

    is_quantized = is_nested = is_meta = is_sparse

    @property
    def data(self) -> Logits:
        """The same without a gradient."""
        return _follow("detach", Tensor.detach, (self,), {})  # type: ignore[no-any-return]

    @property
    def T(self) -> Any:
        """The logits with their dimensions in reverse."""
        return self.permute(*reversed(range(self.ndim)))  # type: ignore[attr-defined]

    @property
    def mT(self) -> Any:
        """The logits with their last two dimensions exchanged."""
        return self.transpose(-1, -2)  # type: ignore[attr-defined]

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the size of a dimension."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.ndim

    def numel(self) -> int:
        """Return the number of logits."""
        return self.shape.numel()

    nelement = numel
    ndimension = dim

    def element_size(self) -> int:
        """Return the bytes of a logit."""
        return self.dtype.itemsize

    def get_device(self) -> int:
        """Return the number of the device."""
        return self.hidden.get_device()

    def is_floating_point(self) -> bool:
        """Return True."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Return False."""
        return False

    def is_contiguous(self, memory_format: object = None) -> bool:
        """Return True: there is nothing that could lie elsewhere."""
        return True

    def new_empty(self, *size: Any, **options: Any) -> Tensor:
        """Return an empty tensor of this dtype and device."""
        return self._like().new_empty(*size, **options)

    def new_zeros(self, *size: Any, **options: Any) -> Tensor:
        """Return zeros of this dtype and device."""
        return self._like().new_zeros(*size, **options)

    def new_ones(self, *size: Any, **options: Any) -> Tensor:
        """Return ones of this dtype and device."""
        return self._like().new_ones(*size, **options)

    def new_full(self, *arguments: Any, **options: Any) -> Tensor:
        """Return a tensor of one number, of this dtype and device."""
        return self._like().new_full(*arguments, **options)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Return a tensor of this dtype and device."""
        return self._like().new_tensor(data, **options)

    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def __repr__(self) -> str:
        return f"Logits(shape={tuple(self.shape)}, dtype={self.dtype}, kind={self.form.kind!r})"

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        return iter(self.unbind(0))  # type: ignore[attr-defined]

    # --- how torch's functions come here ------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _follow(NAMES.get(func) or str(getattr(func, "__name__", "a function")), func, args, kwargs or {})

    def _with(self, **changes: Any) -> Logits:
        """Return these logits with other tensors, or another form; at other positions alone they are a view."""
        view = all(name in ("hidden", "axis") for name in changes)
        fields = {name: _no_view(changes.pop(name, getattr(self, name))) for name in TENSORS}
        form = changes.pop("form", self.form)
        made = type(self)(**fields, form=form._replace(**changes) if changes else form)
        return self._seen_by(made) if view else made

    def _seen_by(self, view: Logits) -> Logits:
        view._writes, view._seen = self._writes, self._seen
        return view

    def _check_current(self) -> None:
        """Refuse logits whose numbers were changed through others that share them, or whose head was freed."""
        if plain(self.weight) and self.weight.untyped_storage().nbytes() == 0 and self.weight.numel():
            raise RuntimeError(
                "the weight of a deferred head was freed before the loss was computed, as FSDP does where the module that owns it "
                "was made with reshard_after_forward=True: call set_reshard_after_forward(False, recurse=False) of that module, or "
                "compute the loss in its forward"
            )
        if self._seen != self._writes[0]:
            raise RuntimeError(
                "the numbers of these deferred logits were changed in place through others that share them, by a call such as "
                "logits.div_(2): a view of logits that do not exist cannot follow that. Write logits = logits / 2, or take "
                "the view after it"
            )
        if (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and self.requires_grad
            and function_under_way()
        ):
            raise RuntimeError(
                "an autograd Function was given deferred logits, and would return a result without their gradient: pass "
                "logits.to_tensor() to its apply, or undefer the head"
            )

    def to_tensor(self) -> Tensor:
        """Form the logits, as a plain tensor; it is counted in :attr:`formed`."""
        self._check_current()
        return _counted(self, "to_tensor") if self._written is None else self._written

    def _form(self) -> Tensor:
        """Form the logits in torch operations, whose gradients autograd knows."""
        form = self.form
        x = F.linear(self.hidden, self.weight, self.bias)
        if form.capped:
            x = form.scale * x.tanh()
        x = x.to(form.dtype)
        if self.shift is not None:
            x = x + self.shift.to(form.dtype)
        if self.allowed is not None:
            x = x.masked_fill(~self.allowed, -torch.inf)
        if form.kind == "p":
            x = x.softmax(-1)
        elif form.kind != "logits":
            log_p = x.log_softmax(-1)
            x = log_p if form.kind == "log p" else log_p.exp() * log_p
        x = x if form.factor == 1 else form.factor * x
        return x.movedim(-1, form.axis)


def _number_of(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _done(blocked: int, formed: int) -> str:
    done = f"{_number_of(blocked, 'result')} computed in blocks" if blocked else "nothing computed in blocks"
    return f"{done}, logits formed {_number_of(formed, 'time')}"


class _Evaluated(Logits):
    """Logits without a gradient, which say that they are a torch.Tensor, so that evaluation loops gather them.

    Those with a gradient do not say so, for DistributedDataParallel hands every torch.Tensor of an output on to C++.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Tensor


def _not_a_leaf(t: Tensor) -> Tensor:
    """Give a leaf a node, by which DistributedDataParallel finds it in an output."""
    if not torch.is_grad_enabled():
        return t.detach()
    if not (t.is_leaf and t.requires_grad):
        return _no_view(t)  # type: ignore[no-any-return]
    node: Tensor = t.view_as(t) if torch.compiler.is_compiling() else SameNumbers.apply(t)
    return node


def _no_view(t: Any) -> Any:
    """Give a view a node of its own, so that FSDP does not warn of it in an output.

    An operation in place on a view would lose FSDP's hook. Here such an operation changes what is noted, and no tensor.
    """
    if torch.compiler.is_compiling() or not isinstance(t, Tensor) or not t.requires_grad or t._base is None:
        return t
    return SameNumbers.apply(t)


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether any of these tensors requires grad."""
    return any(t is not None and t.requires_grad for t in tensors)


TENSORS = ("hidden", "weight", "bias", "shift", "allowed")


def _flatten(logits: Logits) -> tuple[list[Any], Form]:
    return [*(getattr(logits, name) for name in TENSORS), logits._written], logits.form


def _unflatten(children: Any, form: Form, kind: type[Logits] = Logits) -> Logits:
    """Make logits again of tensors that somebody may have cast, as FSDP does with what a module answers."""
    *tensors, written = children
    made = kind(**dict(zip(TENSORS, tensors, strict=True)), form=form)
    if written is not None:
        made._written = written
        return made
    if isinstance(made.hidden, Tensor) and isinstance(made.weight, Tensor) and made.hidden.is_floating_point():
        wide = made.hidden.dtype
        if wide != made.weight.dtype:
            made = made._with(weight=made.weight.to(wide))
        if wide.itemsize > form.dtype.itemsize:
            made = made._with(dtype=wide)
    return made


pytree.register_pytree_node(Logits, _flatten, _unflatten, serialized_type_name="crossent.Logits")
pytree.register_pytree_node(
    _Evaluated,
    _flatten,
    lambda children, form: _unflatten(children, form, _Evaluated),
    serialized_type_name="crossent.Evaluated",
)


# --- dispatch -----------------------------------------------------------------------------------------------------------

Handler = Callable[..., Any]
FOLLOWED: dict[str, Handler] = {}
"""What is followed, by the name of torch's function or method, without underscores: it returns NotImplemented where it cannot."""
PLACED: set[str] = set()
"""Of these names, what is followed for DTensors too."""
NAMES: dict[Callable[..., Any], str] = {}
"""The functions of these names: torch.compile knows a function, and not what it is called."""


def follows(*names: str, placed: bool = False) -> Callable[[Handler], Handler]:
    """Register what stands for torch's functions of these names; ``placed`` says that it does for DTensors too."""

    def register(handler: Handler) -> Handler:
        for name in names:
            FOLLOWED[name] = handler
            PLACED.update(names if placed else ())
            for home in (torch, F, torch.special):
                if hasattr(home, name):
                    NAMES[getattr(home, name)] = name
        return handler

    return register


def _follow(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what a function of torch does: in blocks if it is followed here, and else with logits that are formed."""
    given = [x for x in _inside((*args, *kwargs.values())) if isinstance(x, Logits)]
    for x in given:
        x._check_current()
    if any(x._written is not None for x in given):
        args, kwargs = _replaced(args, kwargs, lambda x: x if x._written is None else x._written)
        return func(*args, **kwargs)
    base, inplace = _split(name)
    handler = FOLLOWED.get(base)
    if handler is not None and base not in PLACED and any(x._placed for x in given):
        handler = None
    result = NotImplemented if handler is None else handler(*args, **kwargs)
    if result is NotImplemented:
        return _on_formed(name, func, args, kwargs)
    if inplace and isinstance(args[0], Logits) and isinstance(result, Logits):
        return overwrite(args[0], result)
    return result


def _inside(values: Any) -> Iterator[Any]:
    """Give the arguments of a function, and what is in its lists."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _inside(value)
        else:
            yield value


def _replaced(args: Any, kwargs: Any, by: Callable[[Logits], Any]) -> Any:
    """Put something in the place of the logits among arguments."""
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Logits))
    return pytree.tree_unflatten([by(x) if isinstance(x, Logits) else x for x in leaves], spec)


def _split(name: str) -> tuple[str, bool]:
    """Take a method's name apart into what it does and whether it does it in place."""
    base = name.strip("_")
    if name.startswith("__i") and base[1:] in FOLLOWED:
        return base[1:], True
    return base, name.endswith("_") and not name.startswith("__")


def overwrite(logits: Logits, result: Logits) -> Logits:
    """Let an operation in place change the logits that it was called on; views of them are out of date from then on."""
    logits._writes[0] += 1
    logits._seen = logits._writes[0]
    for name in (*TENSORS, "form"):
        setattr(logits, name, getattr(result, name))
    return logits


def _on_formed(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function with logits that are formed in the places of those that were not; what it wrote to them stays."""
    base, inplace = _split(name)
    formed: dict[int, tuple[Logits, Tensor]] = {}

    def form(x: Logits) -> Tensor:
        if id(x) not in formed:
            with _counting_writes():
                formed[id(x)] = x, _counted(x, base)
        return formed[id(x)][1]

    args, kwargs = _replaced(args, kwargs, form)
    by_name = inplace or base == "setitem" or getattr(func, "__module__", "").startswith("torch.distributed")
    before = [_version(t) for _, t in formed.values()]
    result = func(*args, **kwargs)
    for (x, t), version in zip(formed.values(), before, strict=True):
        if by_name or _version(t) != version:
            x._writes[0] += 1
            x._seen, x._written = x._writes[0], t
    return result


@contextmanager
def _counting_writes() -> Iterator[None]:
    """Let tensors that are made here count what is written to them, which those of inference mode do not."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _version(t: Tensor) -> int:
    """Read how often something was written to a tensor."""
    return 0 if torch.compiler.is_compiling() else t._version


def _counted(logits: Logits, name: str) -> Tensor:
    """Form logits and count it."""
    note_formed(logits.form.head, name, tuple(logits.shape))
    return logits._form()


def note_formed(head: str, name: str, shape: tuple[int, ...], why: str = "") -> None:
    """Count logits that are formed, and warn where that is new; under torch.compile this runs once, when it traces."""
    file, line = _caller()
    place = f"{file}:{line} {name}"
    Logits.formed += 1
    Logits.places[place] += 1
    _count(head, "formed")
    if Logits.places[place] == 1:
        words = (
            f"{name} formed the logits of a deferred head, of shape {shape}: the result is right, and saves no memory. "
            f"crossent.Logits.report() lists all such places, and help(crossent.Logits) what is computed in blocks.{why}"
        )
        if "peft" in Path(file).parts:
            words += " PEFT adapted the head after it was deferred: call crossent.defer after get_peft_model"
        if prod(shape) > max(shape, default=1):  # a single row is no more than a block has
            warnings.warn_explicit(words, UserWarning, file, line)


def note_blocked(head: str) -> None:
    """Count what was computed in blocks."""
    Logits.blocked += 1
    _count(head, "blocked")


def note_plain(head: str) -> None:
    """Count a call that was answered with plain logits."""
    _count(head, "plain")


def _count(head: str, what: str) -> None:
    Logits.heads.setdefault(head, Counter())[what] += 1


# Under torch.compile these are run once, while it traces, and leave nothing in the graph. The decorator of torch.compiler
# does no more than this, but imports the whole compiler for it.
note_formed._dynamo_marked_constant = True  # type: ignore[attr-defined]
note_blocked._dynamo_marked_constant = True  # type: ignore[attr-defined]
note_plain._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _caller() -> tuple[str, int]:
    """Find the line of the program outside this library and torch that is being run, or compiled."""
    context = torch._guards.TracingContext.try_get() if torch.compiler.is_compiling() else None
    if context is not None:
        frames = [(frame.filename, frame.lineno or 0) for frame in torch._guards.TracingContext.extract_stack()]
        return next((f for f in reversed(frames) if not f[0].startswith(_PLACES)), ("compiled code", 0))
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PLACES):
        frame = frame.f_back
    return ("?", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def _method(name: str) -> Callable[..., Any]:
    func = getattr(Tensor, name)

    def method(self: Logits, *args: Any, **kwargs: Any) -> Any:
        return _follow(name, func, (self, *args), kwargs)

    method.__name__ = method.__qualname__ = name
    return method


# Python looks operators up in the class, and so does torch.compile every method.
_OPERATORS = (
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv", "floordiv",
    "mod", "pow", "rpow", "neg", "pos", "abs", "matmul", "rmatmul", "invert", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "xor", "getitem", "setitem", "bool", "float", "int", "index", "contains", "array",
)  # fmt: skip
for _name in (*(f"__{each}__" for each in _OPERATORS), *(each for each in dir(Tensor) if not each.startswith("_"))):
    if (_name not in vars(Logits) or _name == "__eq__") and callable(getattr(Tensor, _name, None)):
        setattr(Logits, _name, _method(_name))
Logits.__hash__ = object.__hash__  # type: ignore[method-assign]
