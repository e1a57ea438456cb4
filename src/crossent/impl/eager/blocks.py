"""The losses where nobody differentiates their operations: a block of rows at a time, so that what is formed on the way is small.

The formulas of ``softmax`` and ``binary`` form half a dozen tensors as large as the logits. Over a block those stay in a cache,
or take less memory than one tensor as large as the logits. The losses of class indices have a shorter way, in place, over
``p`` itself:

    p' = p without the true class        rest = Σ p' = 1 - p_y
    L = -log1p(-rest)                    ∂L/∂x = p',  and  -rest  at the true class

in which nothing cancels where ``p_y`` is next to 1. Elsewhere ``rest`` is taken as ``1 - p_y``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossent.core.checks import may_be_overwritten
from crossent.core.modes import in_forward_mode, plain, readable
from crossent.core.reduction import compute_dtype, divide, ordered_sum, over, sums_of_rows, times, weigh
from crossent.core.target import BinaryTarget, Target, stand_in
from crossent.impl.eager import binary, shards, softmax
from crossent.impl.eager import statistics as of_logits
from crossent.impl.eager.pieces import class_sum
from crossent.impl.protocol import Costs, Forward, Gradients, Partials, RowStatistics, Sum

_CACHED = 1 << 18  # elements on the CPU: they stay in its caches, and are worth the calls of a dozen operations
_SHARE = 16  # blocks at least on another device: the fourteen tensors in float32 that one may take are less than the gradient
_LAUNCHED, _LARGEST = 1 << 19, 1 << 24  # elements that are worth a launch, and elements that are enough


def room(x: Tensor, target: Tensor, inplace: bool) -> Tensor:
    """Return where the gradient of x is written: new memory, or that of x where it may be overwritten."""
    return x.detach() if inplace and may_be_overwritten(x, target) else torch.empty_like(x)


def takes(*tensors: Tensor | None) -> bool:
    """Whether blocks will do: nothing looks on, and nothing is differentiated or batched by autograd."""
    some = [t for t in tensors if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in some):
        return False
    return plain(*some) and not any(map(torch._C._functorch.is_legacy_batchedtensor, some))


def size_on_device(elements: int, formed: int = 0) -> int:
    """How many elements a block has where no cache counts; ``formed`` is how many bytes gradients take for each of the logits.

    Two gradients in float32, or one in float64, leave less room for what is formed on the way.
    """
    parts = 4 if formed > 4 else 1
    return min(max(elements // _SHARE, _LAUNCHED) // parts, _LARGEST)


def size_of(x: Tensor, formed: int = 0) -> int:
    """How many elements a block of these logits has."""
    return _CACHED if x.is_cpu else size_on_device(x.numel(), formed)


# --- softmax ----------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Some rows: their logits and target, and where they are among ``(N, d1 · d2 ...)``."""

    logits: Tensor
    target: Target
    at: tuple[slice, ...]

    @property
    def at_lse(self) -> tuple[slice, ...]:
        """Where they are in ``(2, N, d1 · d2 ...)``."""
        return (slice(None), *self.at)


def _flat(x: Tensor | None, dims: int) -> Tensor | None:
    return x if x is None or x.dim() <= dims else x.flatten(dims - 1)


class Blocks:
    """The rows of a call, block by block: some of the batch, or where one of the batch is a large image, some of its pixels."""

    def __init__(self, logits: Tensor, target: Target, formed: int = 0) -> None:
        per_class = (target.logit_bias, target.class_mask)
        bias, mask = (t if t is None or t.dim() == 1 else _flat(t, 3) for t in per_class)
        values = _flat(target.values, 2 if target.values.dim() < logits.dim() else 3)
        assert values is not None
        self.logits = logits if logits.dim() <= 3 else logits.flatten(2)
        self.target = target._replace(values=values, logit_bias=bias, class_mask=mask, valid=_flat(target.valid, 2))
        self.rows = self.logits.shape[:1] + self.logits.shape[2:]
        self.pixels, self.most = logits.shape[2:], size_of(logits, formed)

    def __iter__(self) -> Iterator[Block]:
        x, most = self.logits, self.most
        of_one = max(1, x.shape[1:].numel())
        step = max(1, most // of_one)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            part, target = x[rows], self.target.some_rows(rows)
            if x.dim() < 3 or of_one <= most:
                yield Block(part, target, (rows,))
                continue
            width = max(1, most // x.shape[1])
            for first in range(0, x.shape[2], width):
                pixels = slice(first, first + width)
                yield Block(part[..., pixels], target.some_pixels(pixels), (rows, pixels))

    def whole(self, flat: Tensor, dims: int) -> Tensor:
        """Give a tensor whose pixels are one dimension, the last one of ``dims``, those of the call."""
        return flat.unflatten(dims - 1, self.pixels) if len(self.pixels) > 1 else flat


def _part(tensor: Tensor, block: Block) -> Tensor:
    """Return the part of a tensor of the logits' shape that belongs to a block."""
    rows, *pixels = block.at
    return tensor[rows][..., pixels[0]] if pixels else tensor[rows]


def cross_entropy_forward(logits: Tensor, target: Target, reduction: str) -> Forward:
    """Compute what ``softmax.cross_entropy_forward`` does."""
    if logits.numel() == 0 or not takes(logits, *target.tensors):
        return softmax.cross_entropy_forward(logits, target, reduction)
    blocks, dtype = Blocks(logits, target), compute_dtype(logits, target.values)
    loss, row_weight = (logits.new_empty(blocks.rows, dtype=dtype) for _ in range(2))
    lse = logits.new_empty((2, *blocks.rows), dtype=dtype)
    for block in blocks:
        of_block = softmax.row_losses(softmax.transformed(block.logits, block.target), block.target)
        loss[block.at], row_weight[block.at], lse[block.at_lse] = of_block
    loss, row_weight, lse = blocks.whole(loss, 2), blocks.whole(row_weight, 2), blocks.whole(lse, 3)
    if reduction != "none":
        loss, row_weight = ordered_sum(loss), ordered_sum(row_weight)
    return Forward(divide(loss, row_weight, "nan") if reduction == "mean" else loss, row_weight, lse)


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Target,
    lse: Tensor | None,
    needs: tuple[bool, ...] = (True, False, False, False),
    divisor: float | Tensor = 1.0,
    inplace: bool = False,
    elsewhere: Tensor | None = None,
) -> Gradients:
    """Compute the gradients as ``softmax.cross_entropy_backward`` does, in blocks where nobody differentiates them."""
    given = (grad, logits, *target.tensors)
    if logits.numel() == 0 or not takes(*given) or (lse is None and _differentiates()):
        return softmax.cross_entropy_backward(grad, logits, target, lse, needs, divisor, elsewhere=elsewhere)
    g, elsewhere = over(grad, divisor), _flat(elsewhere, 2)
    lse = lse.flatten(2) if lse is not None and lse.dim() > 3 else lse
    g = g if g.dim() < 2 else g.flatten(1)

    def of_block(block: Block) -> Gradients:
        of_rows = g if g.dim() == 0 else g[block.at]
        away = None if elsewhere is None else elsewhere[block.at]
        of_lse = None if lse is None else lse[block.at_lse]
        return softmax.cross_entropy_backward(of_rows, block.logits, block.target, of_lse, needs, elsewhere=away)

    return Gradients(*_in_blocks(logits, [target], needs, of_block, inplace))


def _differentiates() -> bool:
    """Whether a gradient whose lse is not given may be differentiated itself, in reverse or in forward mode."""
    return torch.is_grad_enabled() or in_forward_mode()


def _in_blocks(
    logits: Tensor,
    targets: Sequence[Target],
    needs: tuple[bool, ...],
    of_block: Callable[..., Sequence[Tensor | None]],
    inplace: bool = False,
) -> tuple[Tensor | None, ...]:
    """Put gradients together: those of logits and of what has their shape, and the sums over blocks of what has the classes'.

    They are those of ``sources_of``. ``of_block`` is given a block of the first target, and the same rows of the others.
    """
    sources = sources_of(logits, *targets)
    wanted = [
        need and t is not None
        for t, need in zip(sources, (*needs, *(False for _ in sources[len(needs) :])), strict=True)
    ]
    summed = [need and t is not None and t.dim() == 1 for t, need in zip(sources, wanted, strict=True)]
    formed = sum(
        t.itemsize for t, need, sums in zip(sources, wanted, summed, strict=True) if need and t is not None and not sums
    )
    parts = [
        Blocks(logits, _widened(logits, target, summed[1 + LEARNED * i :][1:LEARNED]), formed)
        for i, target in enumerate(targets)
    ]
    first = parts[0]
    flat = sources_of(first.logits, *(part.target for part in parts))
    placed = [
        torch.empty_like(t) if need and t is not None and not sums else None
        for t, need, sums in [*zip(flat, wanted, summed, strict=True)][1:]
    ]
    placed.insert(0, room(first.logits, first.target.values, inplace) if wanted[0] else None)
    totals: list[Tensor | None] = [None for _ in sources]
    for block, *same_rows in zip(*parts, strict=True):
        for i, part in enumerate(of_block(block, *same_rows)):
            to, total = placed[i], totals[i]
            if part is not None and to is not None:
                _part(to, block).copy_(part)
            elif part is not None and summed[i]:
                totals[i] = part if total is None else total.add_(part)
    return tuple(
        first.whole(to, 3) if to is not None else None if total is None or t is None else total.to(t.dtype)
        for to, total, t in zip(placed, totals, sources, strict=True)
    )


def _widened(logits: Tensor, target: Target, summed: Sequence[bool]) -> Target:
    """Widen the weights and the bias whose gradients are summed over blocks, so that no block rounds what it adds."""
    dtype = compute_dtype(logits, target.values)
    weight, bias = (
        t.to(dtype) if t is not None and sums else t
        for t, sums in zip((target.weight, target.logit_bias), summed, strict=True)
    )
    return target._replace(weight=weight, logit_bias=bias)


LEARNED = 3
"""How many tensors of a target may have a gradient: its values, weights and bias."""


def sources_of(logits: Tensor, *targets: Target) -> tuple[Tensor | None, ...]:
    """Return what may have a gradient: the logits, and of each target its values, weights and bias; class indices have none."""
    of_targets = [source for t in targets for source in (None if t.indices else t.values, t.weight, t.logit_bias)]
    return (logits, *of_targets)


Compute = Callable[..., Iterable[Tensor]]
"""One or more losses of each row, one after the other, as a differentiable function of logits and of one target or more."""


def composed_rows(compute: Compute, logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, ...]:
    """Compute losses of rows by a function that forms more on its way than a loss with one target does."""
    blocks, results = [Blocks(logits, target) for target in targets], list[Tensor]()
    for some in zip(*blocks, strict=True):
        of_block = tuple(compute(some[0].logits, *(block.target for block in some)))
        results = results or [logits.new_empty(blocks[0].rows, dtype=losses.dtype) for losses in of_block]
        for to, losses in zip(results, of_block, strict=True):
            to[some[0].at] = losses
    return tuple(blocks[0].whole(to, 2) for to in results)


def composed_rows_backward(
    of_block: Callable[..., Sequence[Tensor | None]],
    logits: Tensor,
    targets: Sequence[Target],
    needs: tuple[bool, ...],
    inplace: bool = False,
) -> tuple[Tensor | None, ...]:
    """Put together the gradients of the losses of rows for ``sources_of(logits, *targets)``.

    ``of_block`` computes those of a block, and is given the same rows of the other targets. ``inplace`` allows to write the
    gradient over the logits.
    """
    return _in_blocks(logits, targets, needs, of_block, inplace)


def statistics(logits: Tensor, target: Target) -> RowStatistics:
    """Compute what ``statistics.statistics`` does."""
    if logits.numel() == 0 or not takes(logits, *target.tensors):
        return of_logits.statistics(logits, target)
    blocks, dtype = Blocks(logits, target), compute_dtype(logits, target.values)
    of_rows = RowStatistics.made_by(lambda dtype: logits.new_empty(blocks.rows, dtype=dtype), dtype)
    for block in blocks:
        for to, value in zip(of_rows, of_logits.statistics(block.logits, block.target), strict=True):
            to[block.at] = value
    return RowStatistics(*(blocks.whole(to, 2) for to in of_rows))


def statistics_backward(
    grads: tuple[Tensor, ...], logits: Tensor, target: Target, needs: tuple[bool, ...]
) -> Gradients:
    """Compute what ``statistics.statistics_backward`` does, in blocks where nobody differentiates it."""
    given = (*grads, logits, *target.tensors)
    if logits.numel() == 0 or not takes(*given) or _differentiates():
        return of_logits.statistics_backward(grads, logits, target, needs)
    flat = [g if g.dim() < 2 else g.flatten(1) for g in grads]

    def of_block(block: Block) -> Gradients:
        return of_logits.statistics_backward(tuple(g[block.at] for g in flat), block.logits, block.target, needs)

    return Gradients(*_in_blocks(logits, [target], needs, of_block))


def partials(logits: Tensor, target: Target) -> Partials:
    """Compute what ``shards.partials`` does."""
    if logits.numel() == 0 or not takes(logits, *target.tensors):
        return shards.partials(logits, target)
    blocks, dtype = Blocks(logits, target), compute_dtype(logits, target.values)
    whole = logits.new_empty((4, *blocks.rows), dtype=dtype)
    for block in blocks:
        lse, *sums = shards.partials(block.logits, block.target)
        whole[:2][block.at_lse] = lse
        for to, value in zip(whole[2:], sums, strict=True):
            to[block.at] = value
    whole = blocks.whole(whole, 3)
    return Partials(whole[:2], whole[2], whole[3])


def partial_costs(logits: Tensor, target: Target, lse: Tensor) -> Costs:
    """Compute what ``shards.partial_costs`` does."""
    if logits.numel() == 0 or not takes(logits, lse, *target.tensors):
        return shards.partial_costs(logits, target, lse)
    blocks, dtype = Blocks(logits, target), compute_dtype(logits, target.values)
    whole, lse = logits.new_empty((2, *blocks.rows), dtype=dtype), lse.flatten(2) if lse.dim() > 3 else lse
    for block in blocks:
        costs = shards.partial_costs(block.logits, block.target, lse[block.at_lse])
        for to, value in zip(whole, costs, strict=True):
            to[block.at] = value
    return Costs(*blocks.whole(whole, 3))


def cross_entropy_sum(
    logits: Tensor,
    target: Target,
    mean: bool,
    dtype: torch.dtype | None,
    factor: float | None,
    inplace: bool = False,
    sample_weight: Tensor | None = None,
) -> Sum:
    """Compute a sum or mean and a factor times its gradient; see the protocol. The loss has the same bits without one."""
    if inplace and factor is not None:  # before anything is written over
        target.raise_if_out_of_range(logits.shape[1])
        inplace = sample_weight is None or may_be_overwritten(logits, sample_weight)
    blocks, u = Blocks(logits, target), _flat(sample_weight, 2)
    total = target.divisor(logits, sample_weight)
    g = over(total.new_full((), 1.0 if factor is None else factor), total if mean else 1.0)
    gradient = None if factor is None else room(blocks.logits, blocks.target.values, inplace)
    short = target.indices and target.plain and target.settings.label_smoothing == 0 and logits.numel() > 0
    loss = (_of_indices if short else _by_formula)(blocks, g, u, gradient)
    whole = ordered_sum(loss if u is None else times(u, loss))
    if mean:
        whole = divide(whole, total, "nan")
    gradient = None if gradient is None else blocks.whole(gradient, 3)
    return Sum(None if dtype is None else whole.to(dtype), float(total), gradient)


def _by_formula(blocks: Blocks, g: Tensor, u: Tensor | None, gradient: Tensor | None) -> Tensor:
    """Write ``u · g`` times the gradient of each row where there is room for it, and return the losses of the rows."""
    loss = blocks.logits.new_empty(blocks.rows, dtype=g.dtype)
    for block in blocks:
        loss[block.at], _, lse = softmax.row_losses(softmax.transformed(block.logits, block.target), block.target)
        if gradient is not None:
            of_rows = g if u is None else weigh(u[block.at], g)
            at_logits = softmax.cross_entropy_backward(of_rows, block.logits, block.target, lse).logits
            assert at_logits is not None
            _part(gradient, block).copy_(at_logits)
    return loss


def _softmax(x: Tensor) -> Tensor:
    """Compute ``p``; torch's own over classes that are apart has other bits with other numbers of threads."""
    if x.dim() == 2:
        return x.softmax(1)
    p = (x - x.amax(1, keepdim=True)).exp_()
    return p.div_(class_sum(p))


def _of_indices(blocks: Blocks, g: Tensor, u: Tensor | None, gradient: Tensor | None) -> Tensor:
    """Do the same for class indices, by the formulas at the top of this file."""
    ignored, y, weight = blocks.target.labels(stand_in(blocks.logits, g.dtype))
    absent = ignored | (weight == 0)
    if u is not None:
        absent, g = absent | (u == 0).unsqueeze(1), weigh(u, g).unsqueeze(1)
    some_absent = not readable(absent) or bool(absent.any())
    by = (g * weight).masked_fill_(absent, 0.0)
    top, at_y, top_p, rest = torch.empty((4, *weight.shape), dtype=g.dtype, device=g.device)
    for block in blocks:
        x, label = block.logits.to(g.dtype), _part(y, block)
        if some_absent:
            x = x.masked_fill(_part(absent, block), 0.0)
        _part(top, block).copy_(x.amax(1, keepdim=True))
        _part(at_y, block).copy_(x.gather(1, label))
        p = _softmax(x)
        _part(top_p, block).copy_(p.amax(1, keepdim=True))
        not_y = 1 - p.gather(1, label)  # exact to one rounding, except where p_y is next to 1
        others = class_sum(p.scatter_(1, label, 0.0)) + (not_y - not_y)  # nan without a softmax, of one class too
        others = _part(rest, block).copy_(torch.where(others < 0.5, others, not_y))
        if gradient is not None:
            factor = _part(by, block)
            _part(gradient, block).copy_(p.mul_(factor).scatter_(1, label, -factor * others))
    log_sum = -top_p.log()  # of Σ e^{x - top}, and nan where there is no softmax
    log_p = torch.where(rest < 0.5, (-rest).log1p(), (at_y - top) - log_sum)
    return times(weight, -log_p).squeeze(1)


# --- sigmoid ----------------------------------------------------------------------------------------------------------


class _Elements(NamedTuple):
    """The tensors of a binary loss, and how many slices of their first dimension make a block."""

    logits: Tensor
    target: BinaryTarget
    step: int

    @classmethod
    def of(cls, logits: Tensor, target: BinaryTarget, formed: int = 0) -> _Elements:
        size = size_of(logits, formed) // (1 if target.penalties[0] is None else 2)  # penalties keep twice as much
        return cls(logits, target, max(1, size // max(1, logits.shape[1:].numel())))

    def parts(self) -> Iterator[tuple[Any, Tensor, BinaryTarget]]:
        """Return block by block where it is, its logits and its target."""
        if self.logits.dim() == 0 or self.logits.numel() == 0:
            yield ..., self.logits, self.target
            return
        for start in range(0, len(self.logits), self.step):
            rows = slice(start, start + self.step)
            yield rows, self.logits[rows], self.target.some_rows(rows)


def binary_cross_entropy_forward(logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0) -> Tensor:
    """Compute what ``binary.binary_cross_entropy_forward`` does."""
    if not takes(logits, *target.tensors):
        return binary.binary_cross_entropy_forward(logits, target, reduce, divisor)
    if not reduce:
        return weighed_elements(logits, target, None, compute_dtype(logits, target.values))
    parts = _Elements.of(logits, target).parts()
    return _total([binary.binary_cross_entropy_forward(x, some, True) for _, x, some in parts], divisor)


def weighed_elements(logits: Tensor, target: BinaryTarget, row_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute the losses of elements times weights that broadcast to them, such as one a row, in a dtype of the caller's."""
    loss = torch.empty_like(logits, dtype=dtype)
    for rows, x, some in _Elements.of(logits, target, loss.itemsize).parts():
        loss[rows] = binary.binary_cross_entropy_forward(x, _weighed(some, _some_rows(row_weight, rows)), False)
    return loss


def weighed_elements_backward(
    grad: Tensor,
    logits: Tensor,
    target: BinaryTarget,
    row_weight: Tensor | None,
    dtype: torch.dtype,
    needs: tuple[bool, bool, bool],
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients for logits, target and weights from those of the losses, which are there in a dtype all the while."""
    on_logits = room(logits, target.values, inplace) if needs[0] else None
    on_target = torch.empty_like(target.values) if needs[1] else None
    on_weight = torch.zeros_like(row_weight) if needs[2] and row_weight is not None else None
    formed = dtype.itemsize + sum(t.itemsize for t in (on_logits, on_target) if t is not None)
    wide = compute_dtype(logits, target.values)
    for rows, x, some in _Elements.of(logits, target, formed).parts():
        g, u = grad[rows].to(wide), _some_rows(row_weight, rows)
        to_weight = _some_rows(on_weight, rows)
        if to_weight is not None and u is not None:
            losses = binary.binary_cross_entropy_forward(x, some, False)
            of_each = times(g, losses).masked_fill_((u == 0) & ~losses.isfinite(), 0.0)
            dims = max((i + 1 for i, size in enumerate(u.shape) if size > 1), default=0)
            to_weight.add_(sums_of_rows(of_each, dims).reshape(u.shape))
        gradients = binary.binary_cross_entropy_backward(g, x, _weighed(some, u), needs[:2])
        for to, part in zip((on_logits, on_target), gradients, strict=True):
            if to is not None and part is not None:
                to[rows] = part
    return on_logits, on_target, on_weight


def _some_rows(row_weight: Tensor | None, rows: Any) -> Tensor | None:
    """Return the weights of some rows; one weight is that of all of them."""
    return row_weight if row_weight is None or row_weight.dim() == 0 or len(row_weight) == 1 else row_weight[rows]


def _weighed(target: BinaryTarget, row_weight: Tensor | None) -> BinaryTarget:
    """Let weights of rows be weights of elements, or multiply those that there are."""
    if row_weight is None:
        return target
    weight = target.weight
    return target._replace(weight=row_weight if weight is None else weigh(weight.to(row_weight.dtype), row_weight))


def _total(sums: list[Tensor], divisor: float) -> Tensor:
    return divide(ordered_sum(torch.stack(sums)), divisor, "nan")


def binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: BinaryTarget,
    needs: tuple[bool, bool] = (True, False),
    divisor: float = 1.0,
    inplace: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute what ``binary.binary_cross_entropy_backward`` does."""
    if not takes(grad, logits, *target.tensors):
        return binary.binary_cross_entropy_backward(grad, logits, target, needs, divisor)
    on_logits = room(logits, target.values, inplace) if needs[0] else None
    on_target = torch.empty_like(target.values) if needs[1] else None
    formed = sum(t.itemsize for t in (on_logits, on_target) if t is not None)
    for rows, x, some in _Elements.of(logits, target, formed).parts():
        g = grad if grad.dim() == 0 else grad[rows]
        gradients = binary.binary_cross_entropy_backward(g, x, some, needs, divisor)
        for to, part in zip((on_logits, on_target), gradients, strict=True):
            if to is not None and part is not None:
                to[rows] = part
    return on_logits, on_target


def binary_cross_entropy_sum(
    logits: Tensor,
    target: BinaryTarget,
    divisor: float,
    dtype: torch.dtype | None,
    factor: float | None,
    inplace: bool = False,
) -> Sum:
    """Compute a sum over a divisor and a factor times its gradient; see the protocol."""
    if factor is None:
        loss = binary_cross_entropy_forward(logits, target, True, divisor)
        return Sum(None if dtype is None else loss.to(dtype), divisor, None)
    gradient = room(logits, target.values, inplace)
    g = logits.new_full((), factor, dtype=compute_dtype(logits, target.values))
    sums = []
    for rows, x, some in _Elements.of(logits, target).parts():
        sums.append(binary.binary_cross_entropy_forward(x, some, True))
        at_logits = binary.binary_cross_entropy_backward(g, x, some, divisor=divisor)[0]
        assert at_logits is not None
        gradient[rows] = at_logits
    return Sum(None if dtype is None else _total(sums, divisor).to(dtype), divisor, gradient)
