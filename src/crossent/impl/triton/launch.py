"""From tensors to launches: how logits are laid out, which tile walks them, and what a kernel is told of the settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import ceil, inf, prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossent.core.reduction import compute_dtype, weigh
from crossent.core.target import Target
from crossent.impl.triton import walks
from crossent.impl.triton.family import PENALTIES, Member
from crossent.impl.triton.tile import Layout, Tile

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CONSTANTS = {torch.float32: tl.float32, torch.float64: tl.float64}
_LOAD = 16  # bytes that a thread loads at once
_BLOCKS, _MOST_LANES = 4, 512  # how many blocks a row has at least, until they are that wide
# A row that is read again should still be in the L2 cache, of which a multiprocessor's share is some 300 KB. A thread has two
# lanes, and a multiprocessor 2048 threads, so that rows in flight take 256 KB where a lane has _SHARE bytes of a row. A row has
# 1024 threads at most.
_SHARE, _PER_BLOCK = 64, 4
_WITHOUT_BFLOAT16 = ("gfx90a", "gfx942")


def constant(value: Any) -> Any:
    """Mark a value as one that a kernel is compiled for."""
    return tl.constexpr(value)


class Strides(NamedTuple):
    """A tensor seen as ``(N, C, P)``."""

    outer: int
    classes: int
    inner: int


class Launch(NamedTuple):
    """What all kernels of a call have in common: logits and gradient, and how they lie."""

    logits: Tensor
    shape: tuple[int, int, int]  # N, C, P
    layout: Layout
    tile: Tile
    programs: int
    warps: int
    dtype: torch.dtype
    like: Tensor  # laid out as g is, without memory

    def new(self, dtype: torch.dtype) -> Tensor:
        """Return an empty tensor of the logits' shape, laid out as g."""
        return torch.empty_strided(self.like.shape, self.like.stride(), dtype=dtype, device=self.logits.device)

    def laid_out(self, x: Tensor) -> Tensor:
        """Lay a tensor of the logits' shape out as g, and return it itself where it lies so."""
        return x if self.lies(x) and not x.is_neg() else self.new(x.dtype).copy_(x)

    def lies(self, x: Tensor) -> bool:
        """Whether a tensor of the logits' shape is laid out as g, and begins where a load may."""
        same = all(a == b or size == 1 for a, b, size in zip(x.stride(), self.like.stride(), x.shape, strict=True))
        return same and x.data_ptr() % _LOAD == 0

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.shape[0] * self.shape[2]


def _strides(x: Tensor) -> Strides | None:
    """See a tensor ``(N, C, d1, ...)`` as ``(N, C, P)``; None where the dimensions behind the classes do not lie as one."""
    inner: int | None = None
    reach = 0
    for size, stride in reversed(list(zip(x.shape[2:], x.stride()[2:], strict=True))):
        if size == 1:
            continue
        if inner is None:
            inner = stride
        elif stride != reach:
            return None
        reach = size * stride
    return Strides(x.stride(0), x.stride(1), inner or 0)


def _merged(shape: tuple[int, int, int], *each: Strides) -> tuple[tuple[int, int, int], list[Strides]]:
    """Make one dimension of N and P where all strides allow it."""
    n, c, p = shape
    if p == 1:
        return (1, c, n), [Strides(0, s.classes, s.outer) for s in each]
    if n == 1 or all(s.outer == p * s.inner for s in each):
        return (1, c, n * p), [Strides(0, s.classes, s.inner) for s in each]
    return shape, list(each)


def for_statistics(logits: Tensor) -> Launch:
    """Decide how logits are walked where more of each row is kept in registers: by more threads, or fewer rows at a time."""
    launch = arrange(logits, rows_apart=64)
    return launch._replace(warps=2 * launch.warps) if warp_size() == 64 and launch.warps > 1 else launch


def arrange(logits: Tensor, inplace: bool = False, again: bool = False, rows_apart: int = 128) -> Launch:
    """Decide how logits are walked; they are copied first where no walk takes their strides.

    ``again`` says that a row is read more than once, and should still be in the cache then.
    """
    logits = logits.resolve_neg()  # memory alone does not show a sign that torch has put off changing
    launch = _arranged(logits, logits if inplace else torch.empty_like(logits, device="meta"), again, rows_apart)
    if launch is None:
        logits = logits.contiguous()
        launch = _arranged(logits, torch.empty_like(logits, device="meta"), again, rows_apart)
    assert launch is not None
    return launch


def _arranged(x: Tensor, like: Tensor, again: bool, rows_apart: int) -> Launch | None:
    """Decide how logits are walked and what belongs to them is laid out; None where no walk takes their strides."""
    of_x, of_g = _strides(x), _strides(like)
    if of_x is None or of_g is None:
        return None
    shape, (of_x, of_g) = _merged((x.shape[0], x.shape[1], prod(x.shape[2:])), of_x, of_g)
    beside = shape[1] == 1 or of_x.classes == of_g.classes == 1
    apart = not beside and of_x.inner == of_g.inner == 1
    if not (beside or apart):
        return None
    dtype, chunk = compute_dtype(x), _LOAD // x.element_size()
    even = not any(s % chunk for s in (of_x.outer, of_x.inner, of_g.outer, of_g.inner))
    alike = (of_x.outer, of_x.inner) == (of_g.outer, of_g.inner)
    chunks = beside and shape[1] > 1 and x.data_ptr() % _LOAD == 0 and (even or alike)
    slack = chunk - 1 if chunks and not even else 0
    shared = again and chunks and shape[1] * x.element_size() > _SHARE * _MOST_LANES
    lanes = min(_MOST_LANES * _PER_BLOCK, shape[1] * x.element_size() // _SHARE) if shared else _MOST_LANES
    tile, warps = _tile(dtype, chunk, shape[1], lanes, chunks, slack, rows_apart if apart else 0)
    tiles = ceil(shape[2] / tile.ROWS.value)
    classes = (1, 1) if beside else (of_x.classes, of_g.classes)
    layout = Layout(
        shape[1], shape[2], tiles, of_x.outer, of_x.inner, classes[0], of_g.outer, of_g.inner, classes[1]
    )  # fmt: skip
    return Launch(x, shape, layout, tile, shape[0] * tiles, warps, dtype, like)


def warp_size() -> int:
    """Tell how many threads run in step on this device."""
    return 32 if INTERPRETED else _warp_size_of(triton.runtime.driver.active)


@cache
def _warp_size_of(driver: Any) -> int:
    size: int = driver.get_current_target().warp_size
    return size


def _tile(
    dtype: torch.dtype, chunk: int, classes: int, most: int, chunks: bool, slack: int, rows_apart: int
) -> tuple[Tile, int]:
    """Choose the tile: some of the classes of one row, a few short rows, or 8 classes of many rows where they lie apart.

    A thread has 16 bytes or twice as many of each load. A row is some blocks long, since those at its edge take longer.
    """
    exact, apart = dtype == torch.float64 or chunk < 8, rows_apart > 0
    if apart:
        rows, lanes, e, warps = rows_apart, 1, 8, 1
    else:
        e, blocks = chunk, ceil((classes + slack) / chunk)
        lanes = triton.next_power_of_2(max(min(blocks, warp_size()), min(blocks // _BLOCKS, most)))
        rows = 1 if lanes >= 32 else 256 // lanes
        warps = max(1, lanes * rows // (2 * warp_size()))
    keep, bits = most > _MOST_LANES, by_bits()
    unread = 0.0 if bits else -inf  # there a load gives 0 for what it does not read, and another number takes a select
    parts = (rows, lanes, e, chunks, slack, apart, lanes < 32, keep, bits, unread, exact, CONSTANTS[dtype])
    return Tile(*map(constant, parts)), warps


def by_bits() -> bool:
    """Whether this device has no instruction that rounds to bfloat16, where the compiler's own way takes twice as many."""
    return not INTERPRETED and _arch_of(triton.runtime.driver.active) in _WITHOUT_BFLOAT16


@cache
def _arch_of(driver: Any) -> Any:
    return driver.get_current_target().arch


@contextmanager
def device_of(logits: Tensor) -> Iterator[None]:
    """Launch where the logits are."""
    if logits.is_cuda:
        with torch.cuda.device(logits.device):
            yield
    else:
        yield


# --- the target and the settings --------------------------------------------------------------------------------------


def target_of(target: Target, launch: Launch, sample_weight: Tensor | None = None) -> walks.Target:
    """Lay the target out for the kernels, and what each row weighs in a sum, if it is given."""
    values = target.values.contiguous() if target.indices else launch.laid_out(target.values)
    valid = None if target.valid is None else target.valid.contiguous().view(torch.uint8)
    return walks.Target(values, constant(target.indices), valid, _vector(sample_weight, launch.dtype))


def _parameters(target: Target) -> tuple[int, float, float]:
    """Write a penalty as its number and two parameters."""
    name, parameters = target.settings.penalty
    a, b = (*parameters, 0.0, 0.0)[:2]
    if name == "MAE":
        a = 1.0
    if name == "GCE" and a == 0:
        name = ""  # its limit, -log p
    if name == "SCE":
        a, b = parameters[0], -parameters[1] * parameters[2]
    return PENALTIES[name], a, b


def _vector(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if values is None else values.detach().to(dtype).contiguous().resolve_neg()


def _spread(target: Target, weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Compute what smoothing spreads to each class; None where that is one number for all."""
    if target.settings.label_smoothing == 0 or (weight is None and target.class_mask is None):
        return None
    if target.class_mask is None:
        share: Tensor | float = 1 / (target.settings.all_classes or weight.shape[0]) if weight is not None else 0.0
    else:
        allowed = target.class_mask.to(dtype)
        share = allowed / allowed.sum().clamp_min(1.0)
    share = target.settings.label_smoothing * share
    if weight is None:
        assert isinstance(share, Tensor)
        return share
    if not isinstance(share, Tensor):  # filled on the device: a number that is copied there would be waited for
        share = torch.full((), share, dtype=dtype, device=weight.device)
    return weigh(share, weight)


def member_of(target: Target, launch: Launch) -> Member:
    """Write the settings for the kernels; in float64 as constants, since a number is handed over in float32."""
    s, dtype = target.settings, launch.dtype
    weight, bias = _vector(target.weight, dtype), _vector(target.logit_bias, dtype)
    mask = None if target.class_mask is None else target.class_mask.contiguous().view(torch.uint8)
    scaled = s.temperature != 1 or s.margin != 0
    kind, a, b = _parameters(target)
    capped = s.softcap is not None
    number = constant if dtype == torch.float64 else float
    return Member(
        weight=weight,
        bias=bias,
        mask=mask,
        spread=_spread(target, weight, dtype),
        SMOOTHED=constant(s.label_smoothing != 0),
        CAPPED=constant(capped),
        MOVED=constant(scaled or capped or bias is not None or mask is not None),
        SCALED=constant(scaled),
        PENALTY=constant(kind),
        Z=constant(s.z_loss != 0),
        share=number(s.label_smoothing / max(1, s.all_classes or launch.shape[1])),
        keep=number(1 - s.label_smoothing),
        cap=number(s.softcap or 1.0),
        per_cap=number(1 / (s.softcap or 1.0)),
        per_temperature=number(1 / s.temperature),
        margin=number(s.margin / s.temperature),
        z_loss=number(s.z_loss),
        a=number(a),
        b=number(b),
        order=int(a) if s.penalty.name == "Taylor" else 1,
        ignore_index=s.ignore_index,
        SHARD=constant(s.all_classes != 0),
    )
