"""Random members of the family, options, layouts, modes of torch and orders of derivative, held to the reference in float64.

    python tests/fuzz_modes.py [SECONDS] [--seed N] [--count N]  (the second half of make fuzz)

The reference gives the loss ``L`` and its gradient ``g``. A direction ``v`` of the logits turns them into all that is held:
``L``, ``g``, forward mode ``g · v``, and ``H v`` in reverse over reverse, forward over reverse and reverse over forward, which are
the reference's ``(g(x + hv) - g(x - hv)) / 2h``. The same numbers have to come out under every mode of torch.

Some seeds take a problem out of a pool and give it other logits: these are compiled, once a process each.

Numbers are moderate here: what is hostile belongs to ``fuzz.py``.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from types import FunctionType
from typing import Any

import fuzz
import numpy as np
import torch
import torch._inductor.config
from contexts import CONTEXTS
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import crossent
from crossent import reference

ROUNDINGS = 256.0  # of the dtype that is computed in, at the size of the largest term
STEP = 1e-5  # of the differences, whose error is its square
COMPILED = 0.05  # how many of the seeds are compiled calls,
POOL = 60  # out of so many

Loss = Callable[..., Tensor]


THROUGH: dict[str, Callable[[Loss, Tensor], Loss]] = {
    "as it is": lambda f, x: f,
    "vmap": lambda f, x: lambda x: torch.vmap(f)(x.unsqueeze(0)).squeeze(0),
    "functionalized": lambda f, x: torch.func.functionalize(f),
    "make_fx": lambda f, x: torch.fx.experimental.proxy_tensor.make_fx(f)(x.detach()),
    "checkpoint": lambda f, x: lambda x: checkpoint(f, x, use_reentrant=False),
}
ORDERS = ("value", "gradient", "gradient twice", "forward", "reverse over reverse", "forward over reverse", "jacobian")
PENALTIES = [
    (crossent.Focal(2.0), reference.focal(2.0)), (crossent.Focal(0.5), reference.focal(0.5)),
    (crossent.Poly1(1.0), reference.poly1(1.0)), (crossent.GCE(0.7), reference.gce(0.7)),
    (crossent.MAE(), reference.mae()), (crossent.SCE(0.1, 1.0), reference.sce(0.1, 1.0)),
    (crossent.Taylor(3), reference.taylor(3)),
]  # fmt: skip


@dataclass
class Problem:
    """A member of the family with its options, and how it is called and differentiated."""

    seed: int
    member: str
    logits: fuzz.Strided
    direction: Tensor
    loss: Loss
    expected: Callable[[Any], Any]  # from logits in float64, the reference's loss and gradient
    options: dict[str, Any]
    around: str
    through: str
    order: str
    pooled: int | None = None  # its number in the pool of compiled ones
    backend: str = ""

    def __repr__(self) -> str:
        compiled = "" if self.pooled is None else f" by {self.backend}, {self.pooled} of the pool"
        how = f"{self.around}, {self.through}{compiled}, {self.order}"
        said = {name: tuple(v.shape) if isinstance(v, Tensor) else v for name, v in self.options.items()}
        return f"{self.member} of {self.logits}, {said}: {how}"


def _torch_refuses(order: str, around: str, through: str, expanded: bool) -> bool:
    """Whether torch refuses this of any loss."""
    functions = order in ("forward over reverse", "jacobian")  # transforms of torch.func
    return (
        (through in ("checkpoint", "make_fx") and (functions or order == "forward"))
        or (around in ("hooks on saved tensors", "saved on the CPU") and functions)
        or (around == "forward mode, unused" and order in ("forward", "forward over reverse"))  # which does not nest
        or (around == "flop counter" and through == "make_fx")  # whose graph is a module without parameters of its own
        or (expanded and order in ("forward", "forward over reverse"))  # a tangent is laid out as its primal is
    )


def draw(seed: int) -> Problem:
    """Draw the problem of a seed."""
    rng = random.Random(seed)
    if rng.random() >= COMPILED:
        return _draw(seed, rng)
    p = pooled(rng.randrange(POOL))
    torch.manual_seed(seed)
    logits = p.logits.copy()
    # The gaps keep their nan.
    logits.memory.copy_(torch.where(logits.memory.isnan(), logits.memory, torch.randn(logits.memory.shape)))
    return replace(p, seed=seed, logits=logits)


@cache
def pooled(number: int) -> Problem:
    """Draw a problem of the pool, which is the same whatever the seed is."""
    rng = random.Random(number)
    p = _draw(number, rng)
    backend = (
        "eager" if p.order == "reverse over reverse" else rng.choice(["eager", "aot_eager", "aot_eager", "inductor"])
    )
    return replace(p, around="none", through="compiled", pooled=number, backend=backend)


def _draw(seed: int, rng: random.Random) -> Problem:
    """Draw a problem that is not compiled."""
    torch.manual_seed(seed)
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.float64, torch.bfloat16, torch.float16])
    member = rng.choice(["softmax", "softmax", "softmax", "binary", "stats", "head", "head in blocks", "multilabel"])
    shape = rng.choice([(5,), (1, 1), (4, 3), (7, 5), (3, 70), (33, 10), (2, 4, 3), (2, 3, 2, 2), (40, 300), (2, 2100)])
    if member in ("head", "head in blocks", "multilabel") and len(shape) != 2:
        shape = (6, 5)
    x = fuzz.lay_out(rng, (torch.randn(shape) * rng.choice([0.1, 1, 4])).to(dtype))
    axis = 0 if len(shape) == 1 else 1
    if member in ("binary", "multilabel"):
        target, options = _draw_binary(rng, shape, dtype)
    else:
        target, options = _draw_softmax(rng, shape, axis, dtype)
    if member == "stats":
        options.pop("penalty", None)
    if member == "multilabel":
        options = {name: options[name] for name in ("reduction", "empty", "impl")}
    theirs = {name: _for_reference(value) for name, value in options.items() if name != "impl"}
    loss, expected = _member(member, x.view, target, options, theirs)
    while True:
        order = rng.choice(ORDERS)
        around = rng.choice(list(CONTEXTS)) if rng.random() < 0.5 else "none"
        through = rng.choice(list(THROUGH)) if rng.random() < 0.5 else "as it is"
        if not _torch_refuses(order, around, through, x.layout == "expanded"):
            break
    return Problem(seed, member, x, torch.randn(shape).to(dtype), loss, expected, options, around, through, order)


def _for_reference(value: Any) -> Any:
    """Say the value of an option as the reference takes it: arrays, in float64, and its own penalties."""
    if isinstance(value, Tensor):
        return value.double().numpy() if value.is_floating_point() else value.numpy()
    return next((theirs for ours, theirs in PENALTIES if ours is value), value)


def _some(rng: random.Random, chance: float = 0.25) -> bool:
    return rng.random() < chance


def _draw_softmax(rng: random.Random, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> Any:
    """Draw a target and options."""
    classes, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    some = partial(_some, rng)
    options: dict[str, Any] = {"reduction": rng.choice(["none", "sum", "mean"])}
    allowed = torch.ones(classes, dtype=torch.bool)
    if some() and classes > 1:
        allowed = torch.rand(classes) < 0.7
        allowed[rng.randrange(classes)] = True
        options["class_mask"] = allowed
    known = allowed.nonzero().squeeze(1)
    soft = some(0.3)
    if soft:
        t = torch.rand(shape).movedim(axis, -1) * allowed
        target = (t / t.sum(-1, keepdim=True).clamp(min=1e-3)).movedim(-1, axis).to(dtype)
    else:
        target = known[torch.randint(len(known), rows)]
        if some():
            target = torch.where(torch.rand(rows) < 0.3, -100, target)
    if some():
        options["label_smoothing"] = rng.choice([0.1, 0.5])
    if some():
        options["weight"] = (torch.rand(classes) + 0.1).to(dtype)
        if not soft and some() and classes > 1:
            options["weight"][rng.randrange(classes)] = 0
    if some() and rows:
        options["sample_weight"] = torch.rand(rows) * (torch.rand(rows) < 0.8)
    if some():
        options["temperature"] = rng.choice([0.5, 2.0])
    if some(0.2):
        options["softcap"] = rng.choice([2.0, 30.0])
        options["softcap_after_temperature"] = some(0.5)
    if some():
        options["logit_bias"] = torch.randn(classes).to(dtype)
    if some(0.2):
        options["margin"] = 0.3
    if some(0.2):
        options["z_loss"] = 1e-2
    if some() and options["reduction"] == "mean":
        options["denominator"] = 3.0
    options["empty"] = "zero"
    options["impl"] = rng.choice([None, None, "eager"])
    if some(0.35):
        options["penalty"] = rng.choice(PENALTIES)[0]
    return target, options


def _draw_binary(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Draw a target and options."""
    some = partial(_some, rng)
    options: dict[str, Any] = {"reduction": rng.choice(["none", "sum", "mean"])}
    target = (torch.rand(shape) if some(0.5) else (torch.rand(shape) < 0.4).float()).to(dtype)
    if some():
        options["weight"] = torch.rand(shape[-1:]).to(dtype)
    if some():
        options["pos_weight"] = (torch.rand(shape[-1:]) + 0.2).to(dtype)
    if some():
        options["mask"] = torch.rand(shape) < 0.7
    if some():
        options["label_smoothing"] = 0.1
    options["empty"] = "zero"
    options["impl"] = rng.choice([None, None, "eager"])
    if some(0.35):
        options["penalty"] = rng.choice(PENALTIES)[0]
    return target, options


def _member(name: str, x: Tensor, target: Tensor, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[Loss, Any]:
    """Return the loss and what the reference says of it, both functions of the logits or of what takes their place."""
    t = _for_reference(target)
    if name == "binary":
        return (
            lambda x: crossent.binary_cross_entropy_with_logits(x, target, **ours),
            lambda x: reference.binary_cross_entropy_with_logits(x, t, **theirs),
        )
    if name == "multilabel":
        labels = target > 0.5
        return (
            lambda x: crossent.multilabel_cross_entropy(x, labels, **ours),
            lambda x: reference.multilabel_cross_entropy(x, labels.numpy(), **theirs),
        )
    if name == "stats":
        return (
            lambda x: crossent.cross_entropy_stats(x, target, **ours).loss,
            lambda x: reference.cross_entropy(x, t, **theirs),
        )
    if name in ("head", "head in blocks"):
        matrix = torch.randn(x.shape[1], x.shape[1]).to(x.dtype) / x.shape[1] ** 0.5
        more = {"max_bytes": 4 * x.shape[1] * x.itemsize} if name == "head in blocks" else {}
        W = _for_reference(matrix)
        return (
            lambda x: crossent.linear_cross_entropy(x, matrix, target, **ours, **more),
            lambda x: reference.linear_cross_entropy(x, W, t, **theirs)[:2],
        )
    return lambda x: crossent.cross_entropy(x, target, **ours), lambda x: reference.cross_entropy(x, t, **theirs)


# --- what comes out ---------------------------------------------------------------------------------------------------


def compute(p: Problem) -> Tensor:
    """Call the loss in its mode and differentiate it to its order."""
    x, v = p.logits.view.detach(), p.direction
    if p.pooled is not None:
        # Inductor keeps what it compiled on the disk, by keys that do not know what the operators promise today.
        with torch._inductor.config.patch(force_disable_caches=True):
            return _compiled(p.pooled)(x, v)
    with CONTEXTS[p.around]():
        return derive(THROUGH[p.through](lambda x: p.loss(x), x), x, v, p.order)


def derive(f: Loss, x: Tensor, v: Tensor, order: str) -> Tensor:
    """Differentiate a loss."""

    def total(x: Tensor) -> Tensor:
        return f(x).sum(dtype=torch.promote_types(x.dtype, torch.float32))

    if order == "value":
        return f(x)
    if order == "forward":
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(total(forward_ad.make_dual(x, v))).tangent
    if order == "jacobian":
        return torch.func.jacrev(total)(x)
    if order == "forward over reverse":
        return torch.func.jvp(torch.func.grad(total), (x,), (v,))[1]
    leaf = x.requires_grad_()
    loss = total(leaf)
    if order == "gradient":
        return torch.autograd.grad(loss, leaf)[0]
    if order == "gradient twice":
        torch.autograd.grad(loss, leaf, retain_graph=True)
        return torch.autograd.grad(loss, leaf)[0]
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad((grad.to(torch.promote_types(x.dtype, torch.float32)) * v).sum(), leaf)[0]


@cache
def _compiled(number: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile a problem of the pool: with what differentiates it, where that can be inside a graph."""
    p = pooled(number)
    whole = p.order in ("value", "forward", "forward over reverse", "jacobian")

    def call(x: Tensor, v: Tensor) -> Tensor:
        return derive(p.loss, x, v, p.order) if whole else p.loss(x)

    # What was compiled is kept with the code, so each of the pool has its own.
    own = FunctionType(call.__code__.replace(), globals(), f"pooled_{number}", None, call.__closure__)
    compiled = torch.compile(own, fullgraph=True, dynamic=False, backend=p.backend)
    return compiled if whole else lambda x, v: derive(lambda x: compiled(x, v), x, v, p.order)


def expect(p: Problem) -> Any:
    """Ask the reference for the same."""
    x, v = p.logits.view.detach().double().numpy(), p.direction.double().numpy()
    loss, grad, *_ = p.expected(x)
    if p.order == "value":
        return loss
    if p.order in ("gradient", "gradient twice", "jacobian"):
        return grad
    if p.order == "forward":
        return (grad * v).sum()
    return (p.expected(x + STEP * v)[1] - p.expected(x - STEP * v)[1]) / (2 * STEP)


def check(p: Problem) -> None:
    """Hold what comes out to the reference.

    Raises:
        AssertionError: it is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compute(p)
    expected = torch.as_tensor(np.asarray(expect(p), np.float64))
    assert got is not None, "no derivative came out"
    if p.pooled is not None:
        eager = derive(p.loss, p.logits.view.detach(), p.direction, p.order)
        assert got.dtype == eager.dtype, f"{got.dtype}, and {eager.dtype} where nothing is compiled"
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    _, grad, *_ = p.expected(p.logits.view.detach().double().numpy())
    size = max(
        1.0, expected.abs().max().item() if expected.numel() else 0.0, float(np.abs(grad).sum() if np.size(grad) else 0)
    )
    eps = torch.finfo(p.logits.view.dtype).eps
    bound = ROUNDINGS * eps * size + 1e-7 * size
    off = (got.detach().double() - expected).abs()
    worst = off.max().item() if off.numel() else 0.0
    assert worst <= bound, f"{p.order} is off by {worst:.3g}, more than {bound:.3g}"  # which nan is, too


if __name__ == "__main__":
    fuzz.main(draw, check, __doc__)
