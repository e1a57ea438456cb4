"""Random calls of both losses, held to the reference in float64: shapes, strides, dtypes, hostile numbers, threads, kernels.

    python tests/fuzz.py [SECONDS] [--seed N] [--count N]  (make fuzz, make fuzz SECONDS=600)

A problem is drawn from its seed alone; what fails is printed with the command that draws it again. Held are

- loss and gradients, element by element, to bounds that follow from the terms they are sums of;
- the same bits for any number of threads, and with the gradient written in the place of the logits;
- the layout of the gradient;
- every byte of the arguments, and of the gaps between the elements of those that have gaps. These hold nan, so that whoever
  reads them shows.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from cases import IMPLEMENTATIONS
from torch import Tensor

import crossent
from crossent import reference
from crossent.ops import fused

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = [
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip
# No larger ones: sums over the classes would overflow in float32, where the reference does not.
HOSTILE = [np.inf, -np.inf, -np.inf, np.nan, 1e4, -1e4, 1e30, -1e30, 1e-40, -1e-40, 0.0, -0.0, 88.0, -104.0, 16.7]
# Where runs, blocks and tiles begin and end.
EDGES = [1, 2, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 2047, 2048, 2049, 2079, 2080, 2081, 4095, 4097, 4127]
MOST = 300_000  # elements, which is more than a megabyte and so in recycled memory
K = 64  # roundings that any of the sums may take


# --- drawing ----------------------------------------------------------------------------------------------------------


class Strided(NamedTuple):
    """A tensor as a view of the memory around it, which nobody may read or write."""

    memory: Tensor
    view: Tensor
    layout: str

    def copy(self) -> Strided:
        memory, view = self.memory.clone(), self.view
        return Strided(memory, memory.as_strided(view.shape, view.stride(), view.storage_offset()), self.layout)

    def same(self, other: Strided) -> bool:
        """Compare all the memory, bit by bit."""
        return torch.equal(self.memory.view(torch.uint8), other.memory.view(torch.uint8))

    def __repr__(self) -> str:
        x = self.view
        dtype = str(x.dtype).removeprefix("torch.")
        return f"<{dtype} {tuple(x.shape)}, {self.layout}: strides {x.stride()}, offset {x.storage_offset()}>"


def lay_out(rng: random.Random, values: Tensor, plain: float = 0.4) -> Strided:
    """Put values into memory in some order of the dimensions, with gaps, at any alignment, or some of them only once."""
    kinds = ["class last", "permuted", "sliced", "offset", "expanded", "anything"]
    kind = "contiguous" if rng.random() < plain else rng.choice(kinds)
    order, steps, start = list(range(values.dim())), [1] * values.dim(), 0
    lying = list(values.shape)  # sizes in memory
    if kind == "class last" and values.dim() > 1:
        order.append(order.pop(1))
    if kind in ("permuted", "anything"):
        rng.shuffle(order)
    if kind in ("sliced", "anything"):
        steps = [rng.choice([1, 1, 1, 2, 3]) for _ in order]
        lying = [n * step + rng.choice([0, 0, 1, 5]) for n, step in zip(lying, steps, strict=True)]
    if kind in ("offset", "anything"):
        start = rng.choice([1, 3, 7])
    if kind == "expanded":
        lying = [1 if n > 1 and rng.random() < 0.5 else n for n in lying]
    memory = torch.full((start + prod(lying),), 77, dtype=values.dtype)
    if values.is_floating_point():
        memory.fill_(torch.nan)
    view = memory[start:].view([lying[d] for d in order]).permute([order.index(d) for d in range(len(order))])
    for d, (n, step) in enumerate(zip(values.shape, steps, strict=True)):
        if kind != "expanded":
            view = view[(slice(None),) * d + (slice(0, n * step, step),)]
    once = tuple(slice(0, n) for n in view.shape)
    view.copy_(values[once])
    return Strided(memory, view.expand(values.shape), kind)


@dataclass
class Problem:
    """A call, and in which surroundings it is made."""

    seed: int
    binary: bool
    logits: Strided
    target: Strided
    weight: Strided | None = None
    pos_weight: Strided | None = None
    grad: Strided | None = None  # of the loss, in its shape; None for ones that autograd makes itself
    options: dict[str, Any] = field(default_factory=dict)
    needs_target: bool = False
    inplace: bool = False
    out_of_range: bool = False
    isa: str | None = None
    recycles: bool = True
    streams: bool = False
    threads: tuple[int, int] = (1, 1)

    @property
    def given(self) -> list[Strided]:
        return [x for x in (self.logits, self.target, self.weight, self.pos_weight, self.grad) if x is not None]

    @property
    def wide(self) -> torch.dtype:
        """What is computed in."""
        wide = {self.logits.view.dtype, self.target.view.dtype if self.options["impl"] == "eager" else None}
        return torch.float64 if torch.float64 in wide else torch.float32


def draw_shape(rng: random.Random, binary: bool) -> tuple[int, ...]:
    """Draw (C), (N, C) or (N, C, d1, ...), and for binary losses anything."""
    kind = rng.choice(
        ["tiny", "tiny", "rows", "rows", "wide", "wide", "image", "image", "strided", "one row", "nothing"]
    )
    few, edge = rng.choice([1, 2, 3, 5, 10, 21, 31, 32, 33, 64]), rng.choice(EDGES) + rng.choice([0, 0, 0, 5, 1000])
    if kind == "tiny":
        shape = tuple(rng.randint(1, 9) for _ in range(rng.randint(2, 5)))
    elif kind == "rows":
        shape = (rng.choice([1, 127, 128, 129, 1000, rng.randint(1, 3000)]), rng.choice([few, rng.randint(1, 150)]))
    elif kind == "wide":
        shape = (rng.randint(1, 6), rng.choice([edge, rng.randint(65, 9000)]))
    elif kind == "image":
        shape = (rng.randint(1, 3), few, rng.randint(1, 40), rng.choice([1, 8, 31, 32, 33, rng.randint(1, 40)]))
    elif kind == "strided":
        shape = (rng.randint(1, 3), edge, rng.randint(1, 9))
    elif kind == "one row":
        shape = (edge,)
    else:
        shape = rng.choice([(0, 5), (2, 5, 0), (0, 3, 2, 2)])
    if binary and rng.random() < 0.2:
        shape = rng.choice([(), (3,), (1500,), (2, 1, 3, 1, 5), (1024,), (1025, 3)])
    while prod(shape) > MOST:
        shape = (*shape[:-1], shape[-1] // 2)
    return shape


def draw_floats(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, hostile: float) -> Tensor:
    """Draw flat, peaky or far away numbers, and some that are no proper numbers at all."""
    x = torch.randn(shape, dtype=torch.float64) * rng.choice([0.01, 1, 1, 4, 30])
    if rng.random() < 0.1:
        x += rng.choice([1e4, -1e4])
    if rng.random() < hostile and x.numel():
        count = rng.choice([1, 3, 1 + x.numel() // 20, x.numel()])
        where = torch.randint(x.numel(), (count,))
        x.view(-1)[where] = (
            torch.tensor([rng.choice(HOSTILE) for _ in range(min(count, 50))])
            .double()
            .repeat(count // min(count, 50) + 1)[:count]
        )
    return x.to(dtype)


def draw_weights(rng: random.Random, shape: tuple[int, ...]) -> Tensor:
    x = torch.rand(shape, dtype=torch.float64) * rng.choice([1, 1, 3])
    return x * (torch.rand(shape) > 0.3) if rng.random() < 0.4 else x


def draw_probabilities(rng: random.Random, shape: tuple[int, ...]) -> Tensor:
    """Draw rows that sum to one, hard ones, ones of any mass and sign, and ones that are nothing."""
    kind = rng.choice(["random", "hard", "sum", "any", "zero"])
    axis = min(len(shape) - 1, 1)
    x = torch.randn(shape, dtype=torch.float64)
    if not shape or kind == "random":
        return torch.rand(shape, dtype=torch.float64)
    if kind == "hard":
        return (x == x.amax(axis, keepdim=True) if x.numel() else x).double()
    return x.softmax(axis) if kind == "sum" else 2 * x if kind == "any" else x * (torch.rand(shape) > 0.7)


def draw_indices(rng: random.Random, classes: int, rows: tuple[int, ...], options: dict[str, Any]) -> Tensor:
    """Draw class indices of some integer dtype, and let some of them be ignored."""
    ignored = rng.choice([-100, -100, -1, 255, classes // 2])
    kinds = [
        d for d in INTEGERS if torch.iinfo(d).max >= classes and torch.iinfo(d).min <= ignored <= torch.iinfo(d).max
    ]
    if ignored != -100:
        options["ignore_index"] = ignored
    y = torch.randint(classes, rows)
    y[torch.rand(rows) < rng.choice([0.0, 0.0, 0.3, 1.0])] = ignored
    return y.to(rng.choice(kinds))


def draw(seed: int) -> Problem:
    """Draw the problem of a seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    binary = rng.random() < 0.3
    shape, dtype = draw_shape(rng, binary), rng.choice(FLOATS)
    logits = lay_out(rng, draw_floats(rng, shape, dtype, 0.35))
    options: dict[str, Any] = {"reduction": rng.choice(["none", "sum", "mean"])}
    problem = Problem(seed, binary, logits, logits, options=options)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    axis = min(len(shape) - 1, 1)
    rows = shape if binary else shape[:axis] + shape[axis + 1 :]
    if binary:
        problem.target = lay_out(rng, draw_probabilities(rng, shape).to(rng.choice([dtype, wide])))
        for name in ("weight", "pos_weight"):
            if rng.random() < 0.35:
                part = tuple(n if rng.random() < 0.6 else 1 for n in shape)[rng.randint(0, len(shape)) :]
                setattr(
                    problem, name, lay_out(rng, draw_weights(rng, part).to(rng.choice([dtype, wide, torch.float32])))
                )
    else:
        soft = rng.random() < 0.35
        if rng.random() < 0.4:
            options["label_smoothing"] = rng.choice([0.1, 0.5, 1.0, 1e-3])
        if soft:
            problem.target = lay_out(rng, draw_probabilities(rng, shape).to(rng.choice([dtype, wide])))
        else:
            problem.target = lay_out(rng, draw_indices(rng, shape[axis], rows, options), 0.7)
        if rng.random() < 0.4:
            kind = rng.choice([dtype, wide]) if soft else dtype
            problem.weight = lay_out(rng, draw_weights(rng, (shape[axis],)).to(kind), 0.6)
    soft = problem.target.view.is_floating_point()
    result = rows if options["reduction"] == "none" else ()
    if rng.random() < 0.6:
        problem.grad = lay_out(rng, (torch.rand(result) + 0.1) * rng.choice([-1, 1, 1, 100]))
    problem.needs_target = soft and rng.random() < 0.5
    problem.inplace = rng.random() < 0.4
    # by a name, or small calls form the gradient with the loss, which rounds it once more, when it is not in place
    options["impl"] = rng.choice(IMPLEMENTATIONS if problem.inplace else [None, *IMPLEMENTATIONS])
    problem.recycles = rng.random() < 0.8
    problem.threads = rng.choice([(1, 2), (2, 1), (1, 3), (3, 2)])
    if "native" in IMPLEMENTATIONS:
        from crossent import _native

        isas = _native.isas()
        problem.isa = rng.choice(isas[: isas.index(_native.isa()) + 1])  # up to what the environment chose
        problem.streams = rng.random() < 0.3
    if not soft and prod(rows) and rng.random() < 0.05:
        wrong = rng.choice([shape[axis], shape[axis] + 1, -1, -2])
        kind = torch.iinfo(problem.target.view.dtype)
        if wrong != options.get("ignore_index", -100) and kind.min <= wrong <= kind.max:
            where = tuple(rng.randrange(n) for n in rows)
            problem.target.view[where] = wrong
            problem.out_of_range = True
    return problem


# --- what it should be ------------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """A value, and how far from it a result may be before it is rounded to its dtype."""

    value: np.ndarray
    bound: np.ndarray


def numbers(x: Strided | None) -> Any:
    if x is None:
        return None
    return x.view.double().numpy() if x.view.is_floating_point() else x.view.numpy().astype(np.int64)


def expect_softmax(p: Problem) -> tuple[Expected, Expected, Expected]:
    """Compute the loss of each row and its gradients for logits and target, each with its bound.

    A row's loss is Σ w cost, cost = -log p, and all its terms are of one sign but for w. The smallest cost, m, is the
    logarithm of 1 + a sum of exponentials; these carry the rounding of their exponents, which are about log m.
    """
    x, t, weight = numbers(p.logits), numbers(p.target), numbers(p.weight)
    axis, eps = min(x.ndim - 1, 1), torch.finfo(p.wide).eps
    smoothing, ignored = p.options.get("label_smoothing", 0.0), p.options.get("ignore_index", -100)
    soft = p.target.view.is_floating_point()
    right = reference.cross_entropy(x, t, weight, ignored, "none", smoothing)
    x = np.moveaxis(x, axis, -1)
    c = np.ones(x.shape[-1]) if weight is None else weight
    hot = np.moveaxis(t, axis, -1) if soft else reference.index_target(t, x.shape[-1], ignored)
    valid = np.ones(x.shape[:-1], bool) if soft else t != ignored
    with np.errstate(all="ignore"):
        cost = np.abs(reference.surprisal(np.where(valid[..., None], x, 0.0)))
        w = np.abs(c * reference.smooth(hot, smoothing)) * valid[..., None]
        # what smoothing adds or takes is a term of its own
        w += np.abs(c) * ((1 - smoothing) * np.abs(hot) + smoothing / x.shape[-1]) * valid[..., None]
        mass, m = w.sum(-1, keepdims=True), cost.min(-1, keepdims=True, initial=np.inf)
        slack = reference.times(mass, np.where((m > 0) & (m < 1), m * np.abs(np.log(m)), 0.0))
        p_k = np.exp(-cost)
        # the reference's own rounding of large logits, beside that of float64 results
        lost = np.where(np.isfinite(x), np.abs(x), 0.0).max(-1, keepdims=True, initial=0.0) * 2.0**-52 / eps
        on_loss = (K * reference.times(w, cost).sum(-1, keepdims=True) + slack + 4 * mass * lost)[..., 0]
        on_grad = K * (reference.times(mass, reference.times(p_k, 1 + cost + lost)) + w)
        on_target = reference.times(np.abs(c) * (1 - smoothing), K * cost + 4 * lost) + slack
        if (
            not soft
        ):  # the true class, of mass (p - 1) and what smoothing gives to the others, keeps its relative accuracy
            given = smoothing / x.shape[-1] * np.abs(c).sum()
            here = (
                2 * K * (np.abs(np.moveaxis(right.grad, axis, -1)) + given + reference.times(mass, p_k * lost)) + slack
            )
            on_grad = np.where(hot == 1, here, on_grad)
        tiny = 8 * torch.finfo(p.wide).tiny * (1 + mass)
    loss = Expected(right.loss, eps * on_loss + tiny[..., 0])
    grad = Expected(right.grad, np.moveaxis(eps * on_grad + tiny, -1, axis))
    target = right.grad if right.target_grad is None else right.target_grad
    return loss, grad, Expected(target, np.moveaxis(eps * on_target + tiny, -1, axis))


def expect_binary(p: Problem) -> tuple[Expected, Expected, Expected]:
    """Compute the loss of each element and its gradients, each with its bound."""
    x, t, weight, pi = numbers(p.logits), numbers(p.target), numbers(p.weight), numbers(p.pos_weight)
    eps, tiny = torch.finfo(p.wide).eps, torch.finfo(p.wide).tiny
    right = reference.binary_cross_entropy_with_logits(x, t, weight, "none", pi)
    w, pi = (np.broadcast_to(1.0 if v is None else np.abs(v), x.shape) for v in (weight, pi))
    with np.errstate(all="ignore"):
        yes, no = reference.times(pi, np.abs(t)), 1 + np.abs(t)
        off, on = reference.softplus(-x), reference.softplus(x)
        on_loss = reference.times(w, reference.times(yes, off) + reference.times(no, on))
        on_grad = reference.times(w, no * reference.sigmoid(x) + yes * reference.sigmoid(-x))
        on_target = reference.times(w, reference.times(pi, off) + on)
        tiny = 8 * tiny * (1 + reference.times(w, yes + no + pi))
    bounds = (K * eps * bound + tiny for bound in (on_loss, on_grad, on_target))
    each = [Expected(value, bound) for value, bound in zip(right, bounds, strict=True)]
    return each[0], each[1], each[2]


def settled(expected: Expected) -> Expected:
    """Leave no bound, but 0, to a number that is exact because what is infinite has no weight: its bound would be nan."""
    exact = np.isnan(expected.bound) & np.isfinite(expected.value)
    return Expected(expected.value, np.where(exact, 0.0, expected.bound))


def expect(p: Problem) -> tuple[Expected, Expected, Expected]:
    """Compute what the call returns and the gradients."""
    with np.errstate(all="ignore"):
        loss, grad, target = map(settled, expect_binary(p) if p.binary else expect_softmax(p))
    g, eps = np.ones(()) if p.grad is None else numbers(p.grad), torch.finfo(p.wide).eps
    if p.options["reduction"] != "none":
        with np.errstate(all="ignore"):
            value, bound = loss.value.sum(), loss.bound.sum() + K * eps * np.abs(loss.value).sum()
            if p.options["reduction"] == "mean":
                divisor = divisor_of(p)
                value, bound = (value / divisor if divisor else np.nan), bound / divisor
                g = g / divisor if divisor else np.zeros(())
        loss = Expected(value, bound)
    elif not p.binary and grad.value.ndim > 1 and g.ndim:
        g = np.expand_dims(g, 1)
    with np.errstate(all="ignore"):
        bounds = (reference.times(np.abs(g), e.bound + K * eps * np.abs(e.value)) for e in (grad, target))
        by = [Expected(reference.times(g, e.value), bound) for e, bound in zip((grad, target), bounds, strict=True)]
    return loss, by[0], by[1]


def divisor_of(p: Problem) -> float:
    if p.binary:
        return float(p.logits.view.numel())
    y, weight = numbers(p.target), numbers(p.weight)
    if p.target.view.is_floating_point():
        return p.logits.view.numel() / max(p.logits.view.shape[min(y.ndim - 1, 1)], 1)
    valid = y != p.options.get("ignore_index", -100)
    return float(valid.sum() if weight is None else weight[y[valid]].sum())


def close(name: str, got: Tensor, expected: Expected) -> None:
    """Hold a result to its bound, and to one rounding to its dtype; what is not finite must be just that.

    Raises:
        AssertionError: something is further away.
    """
    kind, value = torch.finfo(got.dtype), np.asarray(expected.value)
    here = got.detach().double().numpy()
    assert here.shape == value.shape, f"{name} has shape {here.shape} instead of {value.shape}"
    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        # avx512_bf16 takes what is smaller than the smallest normal number for 0
        bound = expected.bound + kind.eps * np.abs(value) + (2.0**-24 if got.dtype == torch.float16 else kind.tiny)
        good = np.abs(here - value) <= bound
        good |= np.isinf(here) & (np.sign(here) == np.sign(value)) & (np.abs(value) + bound > kind.max)
        exact = (here == value) | (np.isnan(here) & np.isnan(value))
    wrong = ~np.where(finite, good | exact, exact)  # a bound may be nan, where what is infinite has no weight
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        allowed = bound[at] if finite[at] else 0
        raise AssertionError(
            f"{name}[{', '.join(map(str, at))}] is {here[at]!r} instead of {value[at]!r}, off by "
            f"{abs(here[at] - value[at]):.3g} where {allowed:.3g} is allowed; {int(wrong.sum())} of {wrong.size} are wrong"
        )


# --- what it is -------------------------------------------------------------------------------------------------------


@contextmanager
def surroundings(p: Problem, threads: int) -> Iterator[None]:
    """Set threads, instruction set and memory for a call, and put them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if p.isa is None:
        try:
            yield
        finally:
            torch.set_num_threads(before)
        return
    from crossent.impl import native

    isa, recycles = native._native.isa(), native._RECYCLES
    native._native.use_isa(p.isa)
    native._RECYCLES = recycles and p.recycles
    streams = native._native.stream_from(0 if p.streams else 1 << 62)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        native._native.stream_from(streams)
        native._native.use_isa(isa)
        native._RECYCLES = recycles


class Result(NamedTuple):
    """What a call gave."""

    loss: Tensor
    grad: Tensor
    target_grad: Tensor | None


def compute(p: Problem, inplace: str | None = None) -> Result:
    """Run forward and backward. The arguments must come back untouched, but for logits whose place the gradient takes."""
    copies = [x.copy() for x in p.given]
    logits, target = copies[0].view.requires_grad_(), copies[1].view
    if p.needs_target:
        target.requires_grad_()
    rest = iter(copies[2:])
    tensors = {name: next(rest).view for name in ("weight", "pos_weight") if getattr(p, name) is not None}
    f = crossent.binary_cross_entropy_with_logits if p.binary else crossent.cross_entropy
    more = {inplace: True} if inplace else {}
    loss = f(logits.view_as(logits) if inplace else logits, target, **tensors, **p.options, **more)
    g = None if p.grad is None else next(rest).view.to(loss.dtype)
    if g is None and loss.dim():
        g = torch.ones((), dtype=loss.dtype).expand_as(loss)
    grads = torch.autograd.grad(loss, (logits, target) if p.needs_target else (logits,), g)
    result = Result(loss.detach().clone(), grads[0].clone(), grads[1] if p.needs_target else None)
    if inplace and grads[0].data_ptr() == logits.data_ptr():
        with torch.no_grad():
            logits.detach().copy_(p.logits.view)
    for now, before in zip(copies, p.given, strict=True):
        assert now.same(before), f"{before} was written to"
    strides = torch.empty_like(p.logits.view).stride()
    for got, wanted, size in zip(grads[0].stride(), strides, grads[0].shape, strict=True):
        assert got == wanted or size < 2 or not grads[0].numel(), (
            f"strides of the gradient: {grads[0].stride()}, not {strides}"
        )
    return result


def same(a: Result, b: Result, when: str, one_nan: bool) -> None:
    """Compare results bit by bit.

    The kernels have one nan. Torch's operations have several: whether one is negative hangs on the instruction that met it, and
    a vector's is another than that of the numbers behind the last whole vector. The sign of a 0 means nothing anywhere.

    Raises:
        AssertionError: they differ.
    """

    def bits(x: Tensor) -> Tensor:
        x = (x if one_nan else x.masked_fill(x.isnan(), torch.nan)) + 0.0
        return x.new_empty(x.numel()).copy_(x.reshape(-1)).view(torch.uint8)

    for name, x, y in zip(Result._fields, a, b, strict=True):
        if x is not None and y is not None:
            assert torch.equal(bits(x), bits(y)), f"{name} has other bits {when}"


def normal(x: Tensor | None) -> Tensor | None:
    """Put 0 for numbers below the normal ones, which a factor rounds once more."""
    return x if x is None else x.masked_fill(x.abs() <= torch.finfo(x.dtype).tiny, 0.0)


def check(p: Problem) -> None:
    """Make the call, and compare it with everything that is known of it.

    Raises:
        AssertionError: it is wrong.
    """
    for each in fused.EXPECTED:  # a problem follows from its seed alone
        fused.EXPECTED[each] = None if each == torch.float16 else 1.0
    with surroundings(p, p.threads[0]):
        if p.out_of_range:
            try:
                compute(p)
            except IndexError:
                return
            raise AssertionError("an index out of range was taken")
        first, result = compute(p), compute(p)  # whose gradient is formed with what backward brought the first time
        places = ["inplace_backward"] if p.inplace else []
        # In half precision a factor rounds once more.
        if p.inplace and (p.grad is None or p.logits.view.dtype.itemsize >= 4):
            places.append("inplace_forward")
        written = {place: compute(p, inplace=place) for place in places}
    one_nan = p.options["impl"] == "native"
    same(*(Result._make(map(normal, each)) for each in (first, result)), "the second time", one_nan)
    with surroundings(p, p.threads[1]):
        same(compute(p), result, f"with {p.threads[1]} threads than with {p.threads[0]}", one_nan)
    for place, there in written.items():
        same(there, result, f"with {place}", one_nan)
    loss, grad, target = expect(p)
    close("loss", result.loss, loss)
    if grad is not None:
        close("gradient", result.grad, grad)
    if target is not None and result.target_grad is not None:
        close("gradient of the target", result.target_grad, target)


def run(
    seeds: Iterator[int],
    seconds: float,
    most_failures: int = 5,
    draw: Callable[[int], Any] = draw,
    check: Callable[[Any], None] = check,
) -> tuple[int, list[int]]:
    """Check one seed after the other for so long; print what fails; return how many were tried, and which failed."""
    start, tried, failed = time.monotonic(), 0, []
    for seed in seeds:
        if time.monotonic() - start > seconds or len(failed) == most_failures:
            break
        problem = None
        tried += 1
        try:
            problem = draw(seed)
            check(problem)
        except Exception as error:
            failed.append(seed)
            if not isinstance(error, AssertionError):
                traceback.print_exc(file=sys.stdout)
            print(
                f"seed {seed}: {error}\n  {problem}\n  again: python {sys.argv[0]} --seed {seed} --count 1", flush=True
            )
    return tried, failed


def main(draw: Callable[[int], Any] = draw, check: Callable[[Any], None] = check, text: str = __doc__) -> None:
    """Run a fuzz target from the command line."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, help="the first seed; by default the time")
    parser.add_argument("--count", type=int, default=2**62, help="how many seeds at most")
    parser.add_argument("--failures", type=int, default=5, help="after how many failures to stop")
    args = parser.parse_args()
    first = int(time.time() * 1000) % 10**9 if args.seed is None else args.seed
    print(
        f"crossent {crossent.__version__}, implementations {', '.join(IMPLEMENTATIONS)}, from seed {first}", flush=True
    )
    tried, failed = run(iter(range(first, first + args.count)), args.seconds, args.failures, draw, check)
    print(f"{tried} problems, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
