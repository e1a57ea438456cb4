"""Other ways to a mean and its gradient on a GPU, which ``gpu.py`` times beside those of the library.

Each is a function of logits ``(N, C)``, whose classes lie side by side, and labels, of which -100 are ignored. It gives the mean
loss and the gradient. But for the cluster they are made of the walks of the library, so that they are as exact as its own. They
run in Triton's interpreter, and are compiled in ``tests/impl/test_triton_static.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

import crossent.impl.triton as kernels
from crossent.core.target import Target
from crossent.impl.triton import launch as to
from crossent.impl.triton import sums
from crossent.impl.triton.backward import over
from crossent.impl.triton.numbers import exp_, expm1_, log1p_
from crossent.impl.triton.tile import Layout, Rows, rows_of
from crossent.impl.triton.walks import (
    Labels,
    Mass,
    labels_of,
    log_p_of_label,
    losses_of,
    row_sums,
    slopes_of,
    write_gradient,
)

Result = tuple[Tensor, Tensor]
_WARPS_EACH = 32  # that a multiprocessor has of the persistent kernel
_PROGRAMS_EACH = 2  # of the parts of rows that a multiprocessor has
_CTAS, _CTA_WARPS = 8, 16


# --- what the library has ---------------------------------------------------------------------------------------------


def two_kernels(x: Tensor, y: Tensor) -> Result:
    """Run forward and backward apart: 6 bytes an element in bfloat16."""
    target = Target(y)
    loss, divisor, lse = kernels.cross_entropy_forward(x, target, "mean")
    one = torch.ones((), device=x.device)
    return loss, kernels.cross_entropy_backward(one, x, target, lse, divisor=divisor).logits


def fused(x: Tensor, y: Tensor) -> Result:
    """Form the gradient in forward, with a program for each row: 4 bytes."""
    found = kernels.cross_entropy_sum(x, Target(y), True, torch.float32, 1.0)
    return found.loss, found.gradient


# --- persistent -------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """What the kernels here have in common."""

    launch: to.Launch
    target: Any
    member: Any
    gradient: Tensor
    divisor: Tensor
    losses: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, again: bool) -> Given:
        """Arrange the logits, and add up what a mean divides by."""
        launch, described = to.arrange(x, again=again), Target(y)
        target, member = to.target_of(described, launch), to.member_of(described, launch)
        divisor = sums.total_weight(target, None, launch.rows, launch.shape[1], member.ignore_index, x, torch.float32)
        losses = torch.empty(launch.rows, dtype=torch.float32, device=x.device)
        return cls(launch, target, member, launch.new(x.dtype), divisor, losses)

    def result(self) -> Result:
        """Return the mean and the gradient."""
        return sums.total(self.losses) / self.divisor, self.gradient


def multiprocessors() -> int:
    """Tell how many the device has."""
    if to.INTERPRETED:
        return 2
    driver = triton.runtime.driver.active
    return int(driver.utils.get_device_properties(driver.get_current_device())["multiprocessor_count"])


@triton.jit
def persistent_rows(logits, target, to, divisor, loss, programs, member, layout, tile):
    """Do what ``fused`` does, for one row after the other."""
    for program in range(tl.program_id(0), programs, tl.num_programs(0)):
        rows = rows_of(program, layout, tile)
        labels = labels_of(target, rows, member, layout, tile)
        live = labels.counts
        top, log_sum = row_sums(logits, rows, live, labels, member, layout, tile)
        cost, u, mass = losses_of(logits, target, top, log_sum, rows, live, labels, member, layout, tile)
        tl.store(loss + rows.number, tl.where(live, cost, 0.0), mask=rows.inside)
        g = over(tl.zeros([tile.ROWS], tile.R) + 1.0, tl.load(divisor))
        slopes = slopes_of(g, u, mass, top, log_sum, labels, member, tile)
        write_gradient(logits, target, to, None, top, log_sum, slopes, rows, labels, member, layout, tile)


def persistent(x: Tensor, y: Tensor) -> Result:
    """Form the gradient in forward, with no more programs than run at once: those rows alone are in the cache."""
    given = Given.of(x, y, True)
    launch = given.launch
    programs = min(launch.programs, multiprocessors() * max(1, _WARPS_EACH // launch.warps))
    persistent_rows[(programs,)](
        launch.logits, given.target, given.gradient, given.divisor, given.losses, launch.programs, given.member,
        launch.layout, launch.tile, num_warps=launch.warps,
    )  # fmt: skip
    return given.result()


# --- a cluster for each row -------------------------------------------------------------------------------------------


@triton.jit
def cluster_row(logits, labels, to, divisor, loss, classes, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """Read a row into the registers of a cluster, and write its gradient from there."""
    first = tl.program_id(0).to(tl.int64) * classes
    y = tl.load(labels + tl.program_id(0))
    live = y >= 0
    at = tl.arange(0, BLOCK)
    own = tl.load(logits + first + y, mask=live, other=0.0).to(tl.float32)
    x = tl.load(logits + first + at, mask=live & (at < classes), other=-float("inf")).to(tl.float32)
    top = tl.where(live, tl.max(x, 0), 0.0)
    e = exp_(x - top, EXACT)
    below, ties = tl.sum(tl.where(x == top, 0.0, e), 0), tl.sum(tl.where(x == top, 1.0, 0.0), 0)
    log_sum = log1p_(tl.where(live, below + (ties - 1.0), 0.0))
    u = (own - top) - log_sum
    tl.store(loss + tl.program_id(0), tl.where(live, -u, 0.0))
    g = tl.where(live, over(1.0, tl.load(divisor)), 0.0)
    slope = tl.where(at == y.to(tl.int32), g * expm1_(tl.minimum(u, 0.0)), e * (g * exp_(-log_sum, True)))
    tl.store(to + first + at, slope.to(to.dtype.element_ty), mask=at < classes)


def without_clusters() -> str | None:
    """Say why there are no clusters here, or None where there are."""
    if to.INTERPRETED:
        return None
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda" or target.arch < 90:
        return "clusters are for GPUs of NVIDIA from sm_90 on"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        return f"Triton {triton.__version__} does not compile clusters: it fails in its pass PlanCTA, until 3.8"
    return None


def cluster(x: Tensor, y: Tensor) -> Result:
    """Read each row once, by eight programs that hold it in their registers: 4 bytes, whatever the cache holds."""
    if (why := without_clusters()) is not None:
        raise RuntimeError(why)
    block = triton.next_power_of_2(x.shape[1])
    if block > 32 * _CTAS * _CTA_WARPS * to.warp_size():
        raise RuntimeError(f"a row of {x.shape[1]} classes does not fit in the registers of a cluster")
    if x.shape[1] % 16 or not x.is_contiguous():
        raise RuntimeError(f"loads are of 16 bytes where the classes are a multiple of 16, and {x.shape[1]} is none")
    given = Given.of(x, y, False)
    cluster_row[(x.shape[0],)](
        x, y, given.gradient, given.divisor, given.losses, x.shape[1], x.element_size() >= 4, block,
        num_warps=_CTA_WARPS, num_ctas=_CTAS,
    )  # fmt: skip
    return given.result()


# --- rows in parts ----------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of the classes of a program's rows: it is a row of its own, but for its label and the sum over all parts."""

    rows: Any
    labels: Any
    layout: Any
    number: Any


@triton.jit
def part_of_program(target, length, PARTS: tl.constexpr, member, layout, tile):
    """Find the part of its row that this program has; ``length`` is whole blocks, so that a part begins where a load may.

    Example: 10 classes, blocks of 4 and two parts of 8 and 2. Class 9 is label 1 of the second part, and -1 of the first.
    """
    part = tl.program_id(0) % PARTS
    rows = rows_of(tl.program_id(0) // PARTS, layout, tile)
    labels = labels_of(target, rows, member, layout, tile)
    first = part * length
    classes = tl.minimum(length, layout.classes - first)
    y = labels.y - first
    here = labels.counts & (y >= 0) & (y < classes)
    labels = Labels(tl.where(here, y, -1), tl.where(here, labels.weight, 0.0), labels.counts, labels.wrong)
    rows = Rows(rows.number, rows.at_x + first, rows.at_g + first, rows.phase, rows.inside)
    of_part = Layout(
        classes, layout.inner, layout.tiles, layout.x_outer, layout.x_inner, layout.x_class, layout.g_outer,
        layout.g_inner, layout.g_class,
    )  # fmt: skip
    return Part(rows, labels, of_part, part)


@triton.jit
def parts_sums(logits, target, parts, count, length, PARTS: tl.constexpr, member, layout, tile):
    """Write the top of this program's part of its row, and Σ e^(x - top) over the rest of the part."""
    part = part_of_program(target, length, PARTS, member, layout, tile)
    rows, labels = part.rows, part.labels
    top, log_sum = row_sums(logits, rows, labels.counts, labels, member, part.layout, tile)
    at = parts + rows.number * PARTS + part.number
    tl.store(at, top, mask=rows.inside)
    tl.store(at + count * PARTS, -expm1_(-log_sum) / exp_(-log_sum, True), mask=rows.inside)  # e^log_sum - 1


@triton.jit
def over_parts(parts, rows, count, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Combine the parts of a program's row to its top and log_sum, again without one class at the top.

    They are numbers until the end: Triton takes thousands of instructions to bring a vector along that lies in other threads.
    """
    i = tl.arange(0, WIDTH)
    at = parts + tl.sum(rows.number, 0) * PARTS + i
    tops = tl.load(at, mask=i < PARTS, other=-float("inf"))
    rest = tl.load(at + count * PARTS, mask=i < PARTS, other=0.0)
    top, first = tl.max(tops, 0), tl.argmax(tops, 0)
    seen = tl.where(i == first, rest, (1.0 + rest) * exp_(tops - top, True))
    log_sum = log1p_(tl.sum(tl.where(tops == -float("inf"), 0.0, seen), 0))
    return top + tl.zeros([1], tops.dtype), log_sum + tl.zeros([1], tops.dtype)


@triton.jit
def parts_gradients(
    logits, target, to, divisor, loss, parts, count, length, PARTS: tl.constexpr, WIDTH: tl.constexpr, member, layout, tile,
):  # fmt: skip
    """Write the gradient of this program's part of its row, and the loss where the label is."""
    part = part_of_program(target, length, PARTS, member, layout, tile)
    rows, labels, live = part.rows, part.labels, part.labels.counts
    top, log_sum = over_parts(parts, rows, count, PARTS, WIDTH)
    u = log_p_of_label(logits, top, log_sum, rows, live, labels, member, part.layout, tile)
    own = labels.weight
    away = tl.where(live, 1.0 - own, 0.0)
    tells = (own != 0.0) | ((live == 0) & (part.number == 0))
    tl.store(loss + rows.number, tl.where(live, -u, 0.0), mask=rows.inside & tells)
    g = over(tl.zeros([1], tile.R) + 1.0, tl.load(divisor))
    slopes = slopes_of(g, u, Mass(own, away, away, away, own + away), top, log_sum, labels, member, tile)
    write_gradient(logits, target, to, None, top, log_sum, slopes, rows, labels, member, part.layout, tile)


def split(x: Tensor, y: Tensor) -> Result:
    """Give a row to several programs, where there are fewer rows than programs that run at once: two kernels, 6 bytes."""
    given = Given.of(x, y, False)
    launch, classes = given.launch, given.launch.shape[1]
    if launch.tile.ROWS.value > 1:
        raise RuntimeError(f"rows of {classes} classes are too short for parts")
    step = launch.tile.LANES.value * launch.tile.E.value
    wanted = min(ceil(classes / step), ceil(_PROGRAMS_EACH * multiprocessors() / launch.programs))
    length = ceil(ceil(classes / step) / wanted) * step
    parts = ceil(classes / length)
    memory = torch.empty((2, launch.rows, parts), dtype=torch.float32, device=x.device)
    member = given.member._replace(SHARD=to.constant(True))
    grid, width = (launch.programs * parts,), triton.next_power_of_2(parts)
    parts_sums[grid](
        launch.logits, given.target, memory, launch.rows, length, parts, member, launch.layout, launch.tile,
        num_warps=launch.warps,
    )  # fmt: skip
    parts_gradients[grid](
        launch.logits, given.target, given.gradient, given.divisor, given.losses, memory, launch.rows, length, parts, width,
        member, launch.layout, launch.tile, num_warps=launch.warps,
    )  # fmt: skip
    return given.result()


VARIANTS: dict[str, Callable[[Tensor, Tensor], Result]] = {
    "two kernels": two_kernels,
    "fused": fused,
    "persistent": persistent,
    "cluster": cluster,
    "split": split,
}
KERNELS = {
    "persistent": persistent_rows,
    "cluster": cluster_row,
    "split, sums": parts_sums,
    "split, gradients": parts_gradients,
}
