"""What is done with logits that do not exist: torch's functions on positions, on values, and those that ask for a number a row.

Each has the arguments of torch's own and returns NotImplemented where only logits that are formed would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from crossent.core.checks import under_autocast
from crossent.core.reduction import read_reduction, result_dtype
from crossent.core.settings import Settings
from crossent.core.target import SPECIAL, Teacher
from crossent.losses.linear import linear_cross_entropy, linear_cross_entropy_stats
from crossent.losses.statistics import CrossEntropyStats
from crossent.models.logits import TENSORS, Logits, follows, note_blocked, overwrite

NO_INDEX = -(1 << 40)  # an ignore_index that no label has
_ALL = slice(None)
_OF_THE_CALL = ("sample_weight", "denominator", "empty", "out_dtype", "impl", "shard")
_OF_MEMORY = ("dim", "inplace_backward", "inplace_forward")  # these say where logits lie, and here there are none
_OF_THE_LOGITS = SPECIAL["cross_entropy"]
_OF_ANY_LOGITS = ("penalty", "z_loss")  # these see p and lse; every other option says what is done to the logits before


def _at_end(x: Any) -> bool:
    return isinstance(x, Logits) and x.form.axis == -1


def _dim(x: Logits, dim: Any) -> int | None:
    """Read a dimension, counted from 0; None for what is none."""
    return dim % x.ndim if type(dim) is int and -x.ndim <= dim < x.ndim else None


def _on_classes(x: Logits, dim: Any) -> bool:
    return _dim(x, dim) == x.ndim + x.form.axis


# --- positions: what is done to the logits' rows is done to the hidden states --------------------------------------------


def _positions(x: Any, *dims: Any) -> bool:
    """Whether these dimensions are of positions, with the classes behind them all."""
    return _at_end(x) and all(_dim(x, d) is not None and not _on_classes(x, d) for d in dims)


@follows("view", "reshape", placed=True)
def _reshape(x: Any, *size: Any, shape: Any = None) -> Any:
    size = tuple(size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size) or tuple(shape or ())
    if not _at_end(x) or len(size) < 2 or not all(isinstance(n, (int, torch.SymInt)) for n in size):
        return NotImplemented
    rows = prod(x.hidden.shape[:-1])
    if size[-1] == -1:
        others = prod(size[:-1])
        last = rows * x.classes // others if others else -1
    else:
        last = size[-1]
    if last != x.classes:
        return NotImplemented
    return x._with(hidden=x.hidden.reshape(*size[:-1], x.hidden.shape[-1]))


@follows("view_as", "reshape_as", placed=True)
def _reshape_as(x: Any, other: Any) -> Any:
    return _reshape(x, *other.shape)


@follows("flatten", placed=True)
def _flattened(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if not _positions(x, start_dim, end_dim):
        return NotImplemented
    return x._with(hidden=x.hidden.flatten(_dim(x, start_dim), _dim(x, end_dim)))


@follows("unflatten", placed=True)
def _unflattened(x: Any, dim: int, sizes: Any) -> Any:
    return x._with(hidden=x.hidden.unflatten(_dim(x, dim), sizes)) if _positions(x, dim) else NotImplemented


@follows("unsqueeze", placed=True)
def _unsqueezed(x: Any, dim: int) -> Any:
    at = dim if dim >= 0 else dim + x.ndim + 1
    return x._with(hidden=x.hidden.unsqueeze(at)) if _at_end(x) and 0 <= at < x.ndim else NotImplemented


@follows("squeeze", placed=True)
def _squeezed(x: Any, dim: Any = None) -> Any:
    if not _at_end(x):
        return NotImplemented
    dims = range(x.ndim - 1) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    if (dim is None and x.classes == 1) or not _positions(x, *dims):
        return NotImplemented
    return x._with(hidden=x.hidden.squeeze(tuple(dims)))


@follows("permute", placed=True)
def _permuted(x: Any, *dims: Any) -> Any:
    given = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    order = [_dim(x, d) for d in given] if isinstance(x, Logits) else []
    if sorted(d for d in order if d is not None) != list(range(len(order))) or len(order) != x.ndim:
        return NotImplemented
    classes = x.ndim + x.form.axis
    leads = [d - (d > classes) for d in order if d is not None and d != classes]
    return x._with(hidden=x.hidden.permute(*leads, x.ndim - 1), axis=order.index(classes) - x.ndim)


@follows("transpose", "swapaxes", "swapdims", placed=True)
def _transposed(x: Any, dim0: int, dim1: int) -> Any:
    a, b = (_dim(x, d) for d in (dim0, dim1))
    if a is None or b is None:
        return NotImplemented
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return _permuted(x, *order)


@follows("movedim", "moveaxis")
def _moved(x: Any, source: Any, destination: Any) -> Any:
    if type(source) is not int or type(destination) is not int:
        return NotImplemented
    a, b = _dim(x, source), _dim(x, destination)
    if a is None or b is None:
        return NotImplemented
    order = [d for d in range(x.ndim) if d != a]
    order.insert(b, a)
    return _permuted(x, *order)


@follows("select", placed=True)
def _selected(x: Any, dim: int, index: Any) -> Any:
    return x._with(hidden=x.hidden.select(_dim(x, dim), index)) if _positions(x, dim) else NotImplemented


@follows("narrow")
def _narrowed(x: Any, dim: int, start: Any, length: int) -> Any:
    if _at_end(x) and _on_classes(x, dim) and isinstance(start, int):
        return _some_classes(x, slice(start, start + length))
    return x._with(hidden=x.hidden.narrow(_dim(x, dim), start, length)) if _positions(x, dim) else NotImplemented


@follows("index_select")
def _index_selected(x: Any, dim: int, index: Tensor) -> Any:
    if _at_end(x) and _on_classes(x, dim):
        return _some_classes(x, index)
    return x._with(hidden=x.hidden.index_select(_dim(x, dim), index)) if _positions(x, dim) else NotImplemented


@follows("roll")
def _rolled(x: Any, shifts: Any, dims: Any = None) -> Any:
    if not _positions(x, *(dims if isinstance(dims, tuple) else (dims,))):
        return NotImplemented
    dims = tuple(_dim(x, d) for d in (dims if isinstance(dims, tuple) else (dims,)))
    return x._with(hidden=x.hidden.roll(shifts, dims))


@follows("flip")
def _flipped(x: Any, *dims: Any) -> Any:
    dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return x._with(hidden=x.hidden.flip(*(_dim(x, d) for d in dims))) if _positions(x, *dims) else NotImplemented


@follows("expand")
def _expanded(x: Any, *sizes: Any) -> Any:
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if not _at_end(x) or not sizes or sizes[-1] not in (-1, x.classes):
        return NotImplemented
    return x._with(hidden=x.hidden.expand(*sizes[:-1], -1))


@follows("repeat_interleave")
def _repeated(x: Any, repeats: Any, dim: Any = None, **options: Any) -> Any:
    if not _positions(x, dim):
        return NotImplemented
    return x._with(hidden=x.hidden.repeat_interleave(repeats, _dim(x, dim), **options))


def _parts(name: str) -> Callable[..., Any]:
    """Follow what takes tensors apart along a dimension."""

    def taken_apart(x: Any, *sizes: Any, dim: int = 0, **named: Any) -> Any:
        if name == "unbind":
            dim = sizes[0] if sizes else dim
        elif len(sizes) > 1:
            *first, dim = sizes
            sizes = tuple(first)
        if not _positions(x, dim):
            return NotImplemented
        arguments = () if name == "unbind" else sizes
        parts = getattr(torch.Tensor, name)(x.hidden, *arguments, dim=_dim(x, dim), **named)
        return tuple(x._with(hidden=part) for part in parts)

    return taken_apart


for _each in ("split", "chunk", "tensor_split", "unbind"):
    follows(_each)(_parts(_each))
follows("split_with_sizes")(_parts("split"))


def _joined(join: Callable[..., Tensor], more_dims: int) -> Callable[..., Any]:
    """Follow what joins logits of the same head along positions."""

    def together(tensors: Any, dim: int = 0, **more: Any) -> Any:
        first = tensors[0]
        same = all(isinstance(x, Logits) and _same_head(x, first) for x in tensors)
        at = dim if dim >= 0 else dim + (first.ndim if same else 0) + more_dims
        if more or not same or not _at_end(first) or not 0 <= at < first.ndim - 1 + more_dims:
            return NotImplemented
        return first._with(hidden=join([x.hidden for x in tensors], at))

    return together


follows("cat", "concat", "concatenate")(_joined(torch.cat, 0))
follows("stack")(_joined(torch.stack, 1))


def _same_head(a: Logits, b: Logits) -> bool:
    return a.form == b.form and all(
        _same_memory(getattr(a, name), getattr(b, name)) for name in TENSORS if name != "hidden"
    )


def _same_memory(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are the same, or views of one parameter that two calls of a head made."""
    if a is None or b is None or torch.compiler.is_compiling():
        return a is b
    places = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in (a, b)]
    return a is b or (places[0] == places[1] and a.is_contiguous())


@follows("contiguous", "alias", placed=True)
def _itself(x: Any, memory_format: Any = None) -> Any:
    return x


@follows("atleast_1d", "atleast_2d")
def _with_dimensions(x: Any) -> Any:
    return x if isinstance(x, Logits) and x.ndim >= 2 else NotImplemented


@follows("clone")
def _cloned(x: Any, memory_format: Any = None) -> Any:
    return x._with(form=x.form)


@follows("detach")
def _detached(x: Any) -> Any:
    return x._seen_by(_each_tensor(x, Tensor.detach))


def _each_tensor(x: Logits, function: Callable[[Tensor], Tensor]) -> Logits:
    tensors = {name: getattr(x, name) for name in TENSORS}
    return x._with(**{name: None if t is None else function(t) for name, t in tensors.items()})


# --- indices ------------------------------------------------------------------------------------------------------------


def _uses(item: Any) -> int:
    """Count the dimensions that an item of an index takes up."""
    if item is None:
        return 0
    if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
        return item.dim()
    return 1


def _index(x: Logits, index: Any) -> tuple[tuple[Any, ...], Any] | None:
    """Take an index apart into that of positions and that of classes; None where it cannot be."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Logits) for item in items):
        return None
    dots = [k for k, item in enumerate(items) if item is Ellipsis]
    missing = x.ndim - sum(_uses(item) for item in items if item is not Ellipsis)
    if missing < 0 or len(dots) > 1:
        return None
    if dots:
        items[dots[0] : dots[0] + 1] = [_ALL] * missing
    else:
        items += [_ALL] * missing
    if not items or items[-1] is None or _uses(items[-1]) != 1:
        return None  # the classes are not last any more, or part of a mask
    return tuple(items[:-1]), items[-1]


@follows("getitem", placed=True)
def _item(x: Any, index: Any) -> Any:
    parts = _index(x, index) if _at_end(x) else None
    if parts is None:
        return NotImplemented
    positions, classes = parts
    if isinstance(classes, slice) and classes == _ALL:
        return x._with(hidden=x.hidden[positions])
    if x._placed:
        return NotImplemented
    looked_up = [item for item in positions if isinstance(item, (list, Tensor))]
    if isinstance(classes, Tensor) and classes.dtype != torch.bool and looked_up:
        if len(looked_up) < len(positions):
            return NotImplemented
        rows = x._with(hidden=x.hidden[positions])
        if classes.dim() > rows.ndim - 1:
            return NotImplemented
        return _gathered(rows, classes.expand(rows.hidden.shape[:-1]).unsqueeze(-1), -1, squeeze=True)
    if looked_up and not isinstance(classes, slice):
        return NotImplemented
    rows = x._with(hidden=x.hidden[positions])
    if isinstance(classes, int):
        one = _some_classes(rows, slice(classes, classes + 1 or None))
        return NotImplemented if one is NotImplemented else one._form().squeeze(-1)
    if isinstance(classes, Tensor) and classes.dim() != 1:
        return NotImplemented
    return _some_classes(rows, classes)


def _some_classes(x: Logits, classes: Any) -> Any:
    """Keep the logits of some classes, which are those of some rows of the head."""
    if x.form.kind != "logits":
        return NotImplemented  # their softmax is over all classes
    tensors = {name: getattr(x, name) for name in ("weight", "bias", "shift", "allowed")}
    return x._with(**{name: None if t is None else t[classes] for name, t in tensors.items()})


@follows("setitem")
def _set_item(x: Any, index: Any, value: Any) -> Any:
    parts = _index(x, index) if _at_end(x) else None
    if parts is None or not all(isinstance(item, slice) and item == _ALL for item in parts[0]):
        return NotImplemented
    masked = torch.zeros(x.classes, dtype=torch.bool, device=x.device)
    masked[parts[1]] = True
    result = _masked(x, masked, value)
    return NotImplemented if result is NotImplemented else overwrite(x, result)


# --- values -------------------------------------------------------------------------------------------------------------


@follows("to", placed=True)
def _to(x: Any, *arguments: Any, **options: Any) -> Any:
    given: list[Any] = [a.dtype if isinstance(a, Logits) else a for a in arguments]
    if isinstance(arguments[0] if arguments else None, Logits):
        given.insert(0, arguments[0].device)
    like = torch.empty(0, dtype=x.dtype, device=x.device).to(*given, **options)
    if like.device != x.device:
        x = _each_tensor(x, lambda t: t.to(like.device))
    return x if like.dtype == x.dtype else _cast(x, like.dtype)


def _cast(x: Logits, dtype: torch.dtype) -> Any:
    return x._with(dtype=dtype) if dtype.is_floating_point else NotImplemented


for _name, _dtype in (
    ("float", torch.float32),
    ("double", torch.float64),
    ("half", torch.float16),
    ("bfloat16", torch.bfloat16),
):
    follows(_name, placed=True)(lambda x, memory_format=None, dtype=_dtype: _to(x, dtype))


@follows("type_as", placed=True)
def _type_as(x: Any, other: Any) -> Any:
    return _to(x, other.dtype) if isinstance(x, Logits) else x.to(other.dtype)


@follows("cpu")
def _cpu(x: Any, memory_format: Any = None) -> Any:
    return _to(x, "cpu")


@follows("cuda")
def _cuda(x: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = None) -> Any:
    return _to(x, "cuda" if device is None else torch.device("cuda", device) if isinstance(device, int) else device)


def _promoted(x: Logits, other: Any) -> torch.dtype:
    """Return the dtype of the logits with another operand, as ``torch.result_type`` does, which torch.compile cannot trace."""
    if not isinstance(other, Tensor) or (other.dim() == 0 and not other.is_complex()):
        return x.dtype
    return torch.promote_types(x.dtype, other.dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scaled(x: Logits, by: Any) -> Any:
    """Multiply by a number or a tensor of one element, which goes into the hidden states, or by one number a row."""
    if _is_number(by):
        return _scaled_by_number(x, float(by))
    if x.form.kind != "logits" or x.form.capped or x.shift is not None or not isinstance(by, Tensor) or by.is_complex():
        return NotImplemented
    dtype = _promoted(x, by)
    if by.numel() == 1 and by.dim() <= x.ndim:
        by = by.reshape(())
        bias = None if x.bias is None else (x.bias * by).to(x.bias.dtype)
    elif _at_end(x) and x.bias is None and by.dim() <= x.ndim and by.shape[-1:] == (1,) and x.classes > 1:
        bias = None  # one factor a row, (..., 1)
    elif _along_classes(x, by):
        by = by.reshape(-1)
        bias = None if x.bias is None else (x.bias * by).to(x.bias.dtype)
        return x._with(weight=(x.weight * by.unsqueeze(1)).to(x.weight.dtype), bias=bias, dtype=dtype)
    else:
        return NotImplemented
    hidden = (x.hidden * by).to(x.hidden.dtype)
    return x._with(hidden=hidden, bias=bias, dtype=dtype) if hidden.shape == x.hidden.shape else NotImplemented


def _along_classes(x: Logits, other: Any) -> bool:
    """Whether a tensor has one number a class."""
    one_each = isinstance(other, Tensor) and other.shape[-1:] == (x.classes,) and other.numel() == x.classes
    return bool(one_each and _at_end(x) and x.classes > 1 and other.dim() <= x.ndim)


def _scaled_by_number(x: Logits, by: float) -> Any:
    if x.form.kind != "logits":
        return x._with(factor=x.form.factor * by)
    shift = None if x.shift is None else x.shift * by
    if x.form.capped:
        if by == 0:
            return NotImplemented
        if by < 0:  # tanh is odd
            x, by = _scaled_inside(x, -1.0), -by
        return x._with(scale=x.form.scale * by, shift=shift)
    return _scaled_inside(x, by)._with(shift=shift)


def _scaled_inside(x: Logits, by: float) -> Logits:
    return x._with(hidden=x.hidden * by, bias=None if x.bias is None else x.bias * by)


@follows("mul", "multiply", "rmul")
def _mul(a: Any, b: Any, **more: Any) -> Any:
    if more:
        return NotImplemented
    if isinstance(a, Logits) and isinstance(b, Logits):
        return _times_log(a, b)
    return _scaled(a, b) if isinstance(a, Logits) else _scaled(b, a)


def _times_log(a: Logits, b: Logits) -> Any:
    """Multiply probabilities by their own logarithms."""
    p, log_p = (a, b) if a.form.kind == "p" else (b, a)
    same = p.form == log_p.form._replace(kind="p", factor=p.form.factor, dtype=p.dtype)
    if log_p.form.kind != "log p" or not same or any(getattr(p, name) is not getattr(log_p, name) for name in TENSORS):
        return NotImplemented
    return p._with(
        kind="p log p", factor=p.form.factor * log_p.form.factor, dtype=torch.promote_types(p.dtype, log_p.dtype)
    )


@follows("div", "divide", "true_divide", "truediv")
def _div(a: Any, b: Any, *, rounding_mode: Any = None, **more: Any) -> Any:
    if more or rounding_mode is not None or not isinstance(a, Logits) or isinstance(b, Logits):
        return NotImplemented
    if _is_number(b):
        return _scaled(a, 1.0 / b) if b != 0 else NotImplemented
    return _scaled(a, b.reciprocal()) if isinstance(b, Tensor) and b.is_floating_point() else NotImplemented


@follows("neg", "negative")
def _neg(x: Any) -> Any:
    return _scaled_by_number(x, -1.0)


@follows("pos", "positive")
def _pos(x: Any) -> Any:
    return x


def _plus(x: Logits, other: Any, sign: int) -> Any:
    """Add a number, or one a class."""
    if x.form.kind != "logits":
        return NotImplemented
    if _is_number(other):
        other = torch.full((x.classes,), float(other), dtype=x.dtype, device=x.device)
    elif not _along_classes(x, other) or not other.is_floating_point():
        return NotImplemented
    dtype, added = _promoted(x, other), sign * other.reshape(-1)
    if x.form.capped or x.shift is not None or (added.dtype != x.weight.dtype and not added.requires_grad):
        return x._with(shift=added if x.shift is None else x.shift + added, dtype=dtype)
    added = added.to(x.weight.dtype)
    return x._with(bias=added if x.bias is None else x.bias + added, dtype=dtype)


@follows("add", "radd")
def _add(a: Any, b: Any, *, alpha: Any = 1, **more: Any) -> Any:
    if more or alpha != 1 or (isinstance(a, Logits) and isinstance(b, Logits)):
        return NotImplemented
    return _plus(a, b, 1) if isinstance(a, Logits) else _plus(b, a, 1)


@follows("sub", "subtract")
def _sub(a: Any, b: Any, *, alpha: Any = 1, **more: Any) -> Any:
    return NotImplemented if more or alpha != 1 or not isinstance(a, Logits) else _plus(a, b, -1)


@follows("tanh")
def _tanh(x: Any, **more: Any) -> Any:
    if more or x.form.kind != "logits" or x.form.capped or x.shift is not None or x.allowed is not None:
        return NotImplemented
    return x._with(capped=True)


def _masked(x: Logits, masked: Tensor, value: Any) -> Any:
    """Leave out classes whose logits become minus infinity, or the least number that their dtype has."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item() if not torch.compiler.is_compiling() else 0.0
    if x.form.kind != "logits" or not _is_number(value) or value > torch.finfo(x.dtype).min:
        return NotImplemented
    return x._with(allowed=~masked if x.allowed is None else x.allowed & ~masked)


@follows("masked_fill")
def _masked_fill(x: Any, mask: Tensor, value: Any) -> Any:
    return _masked(x, mask.reshape(-1), value) if _along_classes(x, mask) else NotImplemented


# --- softmax ------------------------------------------------------------------------------------------------------------


def _softmax_of(kind: str) -> Callable[..., Any]:
    def softmax(x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, **more: Any) -> Any:
        if more or x.form.kind not in ("logits", "log p") or x.form.factor != 1 or not _on_classes(x, dim):
            return NotImplemented
        wide = torch.float32 if dtype is None and under_autocast(x.device) and x.dtype.itemsize < 4 else x.dtype
        return x._with(kind=kind, dtype=wide if dtype is None else dtype)

    return softmax


follows("log_softmax", placed=True)(_softmax_of("log p"))
follows("softmax")(_softmax_of("p"))


@follows("exp")
def _exp(x: Any, **more: Any) -> Any:
    return x._with(kind="p") if not more and x.form.kind == "log p" and x.form.factor == 1 else NotImplemented


@follows("log")
def _log(x: Any, **more: Any) -> Any:
    return x._with(kind="log p") if not more and x.form.kind == "p" and x.form.factor == 1 else NotImplemented


# --- numbers a row, computed in blocks ------------------------------------------------------------------------------------


def _options(x: Logits) -> dict[str, Any]:
    """Say what became of the logits since, in the options of a linear loss."""
    scale = x.form.scale
    return {
        "linear_bias": x.bias,
        "softcap": 1.0 if x.form.capped else None,
        "temperature": 1.0 / scale,
        "logit_bias": None if x.shift is None else x.shift / scale,
        "class_mask": x.allowed,
        "max_bytes": x.form.max_bytes,
    }


def _statistics(x: Logits) -> CrossEntropyStats:
    """Compute what rows tell without a label."""
    note_blocked(x.form.head)
    target = torch.zeros(x.hidden.shape[:-1], dtype=torch.int64, device=x.device)
    return linear_cross_entropy_stats(x.hidden, x.weight, target, **_options(x))


def _row_losses(x: Logits, target: Any, **options: Any) -> Tensor:
    note_blocked(x.form.head)
    return linear_cross_entropy(x.hidden, x.weight, target, reduction="none", **(_options(x) | options))


def _rows_back(x: Logits, rows: Tensor, keepdim: bool = False) -> Tensor:
    """Give a number a row the place of its classes."""
    return rows.unsqueeze(x.ndim + x.form.axis) if keepdim else rows


@follows("logsumexp")
def _logsumexp(x: Any, dim: Any, keepdim: bool = False, **more: Any) -> Any:
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if more or x.form.kind != "logits" or not _on_classes(x, dim):
        return NotImplemented
    return _rows_back(x, _statistics(x).lse.to(x.dtype), keepdim)


@follows("argmax")
def _argmax(x: Any, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    if more or x.form.factor <= 0 or x.form.kind == "p log p" or not _on_classes(x, dim):
        return NotImplemented
    with torch.no_grad():
        predicted = _statistics(x).predicted.clamp(min=0)  # a row of nan has no class, and torch says 0
    return _rows_back(x, predicted, keepdim)


@follows("max")
def _max(x: Any, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    indices = _argmax(x, dim, True, **more)
    values = NotImplemented if indices is NotImplemented else _gathered(x, indices, dim)
    if values is NotImplemented:
        return NotImplemented
    both = (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))
    return torch.return_types.max(both)


@follows("amax")
def _amax(x: Any, dim: Any = (), keepdim: bool = False, **more: Any) -> Any:
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    largest = _max(x, dim, keepdim, **more)
    return largest if largest is NotImplemented else largest[0]


@follows("gather", "take_along_dim")
def _gather(x: Any, dim: Any = None, index: Any = None, indices: Any = None, **more: Any) -> Any:
    if isinstance(dim, Tensor):  # take_along_dim(input, indices, dim)
        dim, index = index, dim
    index = indices if index is None else index
    more.pop("sparse_grad", None)
    if more or not isinstance(x, Logits) or not isinstance(index, Tensor):
        return NotImplemented
    return _gathered(x, index, dim)


def _gathered(x: Logits, index: Tensor, dim: Any, squeeze: bool = False) -> Any:
    """Take one class of each row, or a few."""
    if not _on_classes(x, dim) or index.dim() != x.ndim or x.form.kind == "p log p":
        return NotImplemented
    index = index.movedim(x.form.axis, -1)
    if index.shape[:-1] != x.hidden.shape[:-1]:
        if any(n > m for n, m in zip(index.shape[:-1], x.hidden.shape[:-1], strict=True)):
            return NotImplemented
        x = x._with(hidden=x.hidden[tuple(slice(n) for n in index.shape[:-1])])
    few = index.shape[-1]
    if few != 1 and (few * x.hidden.shape[-1] > x.classes or x.allowed is not None):
        return NotImplemented
    if few == 1 and x.form.kind != "logits":
        log_p = -_row_losses(x, index.squeeze(-1), ignore_index=NO_INDEX, out_dtype=x.dtype).unsqueeze(-1)
    elif x.allowed is not None:
        return NotImplemented
    else:
        log_p = _at_classes(x, index)
        if x.form.kind != "logits":
            log_p = log_p - _statistics(x).lse.unsqueeze(-1)
    value = x.form.factor * (log_p.exp() if x.form.kind == "p" else log_p)
    value = value.to(x.dtype).movedim(-1, x.form.axis)
    return value.squeeze(x.form.axis) if squeeze else value


def _at_classes(x: Logits, index: Tensor) -> Tensor:
    """Compute the logits of a few classes of each row, ``(..., K)``."""
    note_blocked(x.form.head)
    wide = torch.promote_types(x.hidden.dtype, torch.float32)
    rows = F.embedding(index, x.weight).to(wide)
    value = (rows * x.hidden.unsqueeze(-2).to(wide)).sum(-1)
    if x.bias is not None:
        value = value + x.bias[index]
    if x.form.capped:
        value = x.form.scale * value.tanh()
    return value if x.shift is None else value + x.shift[index]


@follows("sum")
def _sum(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, **more: Any) -> Any:
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if more or (dim is not None and not _on_classes(x, dim)):
        return NotImplemented
    rows = _row_sums(x)
    if rows is NotImplemented:
        return NotImplemented
    rows = (x.form.factor * rows).to(x.dtype if dtype is None else dtype)
    return rows.sum() if dim is None else _rows_back(x, rows, keepdim)


def _row_sums(x: Logits) -> Any:
    """Sum each row over the classes."""
    kind = x.form.kind
    if kind == "p log p":
        return -_statistics(x).entropy
    if x.allowed is not None:
        return NotImplemented
    if kind == "log p":  # minus the loss with all of the label spread over the classes
        target = torch.zeros(x.hidden.shape[:-1], dtype=torch.int64, device=x.device)
        return -x.classes * _row_losses(
            x, target, label_smoothing=1.0, out_dtype=torch.promote_types(x.dtype, torch.float32)
        )
    if kind == "p":
        return _statistics(x).lse * 0 + 1
    if x.form.capped or x.shift is not None:
        return NotImplemented
    note_blocked(x.form.head)
    rows = x.hidden @ x.weight.sum(0)
    return rows if x.bias is None else rows + x.bias.sum()


@follows("mean")
def _mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, **more: Any) -> Any:
    total = _sum(x, dim, keepdim, dtype=dtype, **more)
    return total if total is NotImplemented else total / (x.numel() if dim is None else x.classes)


# --- losses -------------------------------------------------------------------------------------------------------------


def _loss_ready(x: Any, dim: Any = None) -> bool:
    """Whether a loss reads the classes where they are."""
    if not isinstance(x, Logits) or x.form.factor != 1 or x.form.kind not in ("logits", "log p"):
        return False
    return _on_classes(x, dim if dim is not None else min(1, x.ndim - 1))


def _teacher(target: Logits) -> Teacher | None:
    """Return probabilities that nothing is to learn from as a teacher, or None where they are more than a softmax of a head."""
    learns = torch.is_grad_enabled() and target.requires_grad
    plain = target.form.factor == 1 and not target.form.capped and target.shift is None and target.allowed is None
    return Teacher(target.hidden, target.weight, target.bias) if plain and not learns else None


def _target(x: Logits, target: Any) -> Any:
    """Read a target as a linear loss wants it: classes behind all positions; NotImplemented where only logits will do."""
    if isinstance(target, Logits):
        teacher = _teacher(target) if target.form.kind == "p" and target.shape == x.shape else None
        return NotImplemented if teacher is None or target.form.axis != x.form.axis else teacher
    if not isinstance(target, Tensor):
        return NotImplemented
    return target.movedim(x.form.axis, -1) if target.shape == x.shape else target


def _loss_options(x: Logits, target: Any, weight: Any, ignore_index: int, given: dict[str, Any]) -> Any:
    """Collect the options of a linear loss; NotImplemented where logits that were transformed would be transformed again."""
    of_logits = {name: given[name] for name in _OF_THE_LOGITS if name in given and given[name] is not None}
    if not given.keys() <= {*_OF_THE_CALL, *_OF_THE_LOGITS, *_OF_MEMORY}:
        return NotImplemented
    transformed = x.form.capped or x.shift is not None or x.allowed is not None
    if transformed:
        beside = {name: value for name, value in of_logits.items() if name not in _OF_ANY_LOGITS}
        beside.pop("softcap_after_temperature", None)  # without a cap it says nothing
        if any(isinstance(value, Tensor) or value != Settings.defaults.get(name) for name, value in beside.items()):
            return NotImplemented
        of_logits = {name: of_logits[name] for name in _OF_ANY_LOGITS if name in of_logits}
    indices = isinstance(target, Tensor) and not target.is_floating_point()
    if not indices and ignore_index >= 0:
        return NotImplemented
    options = _options(x)
    options |= of_logits
    options |= {name: given[name] for name in _OF_THE_CALL if given.get(name) is not None}
    if indices:
        options["ignore_index"] = ignore_index
    promoted = () if indices else tuple(t for t in (target, weight) if isinstance(t, Tensor))
    options["out_dtype"] = result_dtype(cast(Tensor, x), promoted, given.get("out_dtype"))
    return options


def _arguments(input: Any, target: Any, weight: Any, ignore_index: int, given: dict[str, Any]) -> Any:
    """Write what a loss of deferred logits was given as a linear loss takes it; NotImplemented where only logits will do."""
    if not _loss_ready(input, given.get("dim")):
        return NotImplemented
    if input._placed != hasattr(target, "placements"):
        return NotImplemented  # labels that may be all or a part; under loss_parallel torch knows
    target = _target(input, target)
    options = NotImplemented if target is NotImplemented else _loss_options(input, target, weight, ignore_index, given)
    if options is NotImplemented:
        return NotImplemented
    note_blocked(input.form.head)
    return {"input": input.hidden, "linear_weight": input.weight, "target": target, "weight": weight, **options}


@follows("cross_entropy", placed=True)
def _cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    **given: Any,
) -> Any:
    arguments = _arguments(input, target, weight, ignore_index, given)
    if arguments is NotImplemented:
        return NotImplemented
    how = read_reduction(reduction, size_average, reduce)
    return linear_cross_entropy(**arguments, reduction=how, label_smoothing=label_smoothing)


@follows("cross_entropy_stats", placed=True)
def _cross_entropy_stats(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "none",
    label_smoothing: float = 0.0,
    **given: Any,
) -> Any:
    arguments = _arguments(input, target, weight, ignore_index, given)
    if arguments is NotImplemented:
        return NotImplemented
    how = read_reduction(reduction)
    return linear_cross_entropy_stats(**arguments, reduction=how, label_smoothing=label_smoothing)


@follows("nll_loss", "nll_loss_nd", placed=True)
def _nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Any:
    if not isinstance(input, Logits) or input.form.kind != "log p" or getattr(target, "shape", None) == input.shape:
        return NotImplemented
    return _cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction)


@follows("kl_div")
def _kl_div(
    input: Any,
    target: Any,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Any:
    """``Σ t log t - t log p`` is the cross entropy with the teacher's probabilities less their entropy."""
    if (
        not isinstance(input, Logits)
        or input.form.kind != "log p"
        or input.form.factor != 1
        or input.shape != target.shape
    ):
        return NotImplemented
    if size_average is not None or reduce is not None or reduction not in ("sum", "mean", "batchmean"):
        return NotImplemented
    rows = _kl_rows(input, target, log_target)
    if rows is NotImplemented:
        return NotImplemented
    total = rows.sum().to(torch.promote_types(input.dtype, target.dtype))
    return total if reduction == "sum" else total / (input.numel() if reduction == "mean" else input.shape[0])


def _kl_rows(x: Logits, target: Any, log_target: bool) -> Any:
    if isinstance(target, Logits):
        teacher = _teacher(target) if target.form.kind == ("log p" if log_target else "p") else None
        if teacher is None or target.form.axis != x.form.axis:
            return NotImplemented
        entropy = _statistics(_each_tensor(target, Tensor.detach)).entropy
        return _row_losses(x, teacher, out_dtype=_wide(x)) - entropy
    if log_target or target.requires_grad:
        return NotImplemented
    t = target.movedim(x.form.axis, -1)
    return _row_losses(x, t, out_dtype=_wide(x)) - torch.cat(
        [torch.special.entr(part).sum(-1, dtype=_wide(x)) for part in _some_rows(t)]
    ).view(t.shape[:-1])


def _wide(x: Logits) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _some_rows(t: Tensor, size: int = 128) -> Iterator[Tensor]:
    """Give rows of probabilities, a few at a time."""
    yield from t.reshape(-1, t.shape[-1]).split(size)
