"""What a mean divides by where its rows are spread over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from crossent.core.checks import check_devices, check_tensor, flag, integer_of_64_bits
from crossent.core.messages import shape
from crossent.core.modes import is_dtensor
from crossent.core.reduction import dtype_of_sums


def shared_denominator(
    target: Tensor, *, group: Any = None, weight: Tensor | None = None, ignore_index: int = -100, averaged: bool = True
) -> Tensor:
    r"""Compute the ``denominator=`` with which the losses of several processes are the mean over all their rows.

    With ``c = 1`` where there are no class weights, and ``W`` processes in the group::

        denominator = Σ_ranks Σ_rows c[y] / W        or without / W where averaged=False

    The mean of the processes' own means is another number where their counts differ. ``W`` is there because DDP and FSDP
    average the gradients over the processes: the sum of ``W`` gradients over the count is what is wanted, and they divide it by
    ``W`` once more. The losses themselves then average, too, to the mean over all rows.

    Every process of the group has to call it, each with its own rows, also where it has none. It is one all-reduce of one number.
    Denominators add up: that of several micro-batches is the sum of theirs, or that of their labels side by side.

    Args:
        target: class indices of any shape and integer dtype; or probabilities ``(C)`` or ``(N, C, d1, ...)``, floating, of which
            every row counts. Labels that the loss shifts are given shifted: ``labels[..., 1:]``.
        group: the processes whose rows make up the batch, such as ``mesh["dp"].get_group()``; None is all processes, or this one
            where :mod:`torch.distributed` is not initialised. Processes that share a sequence belong to it; those that hold
            the same rows, as with tensor parallelism, do not.
        weight: class weights ``c``, ``(C)``, as the loss has them. Probabilities are averaged without them.
        ignore_index: rows with this index do not count.
        averaged: whether gradients are averaged over the group, as DDP and FSDP do. False where they are summed.

    Returns:
        A 0-d float64 tensor on the target's device (float32 where that has no float64), the same bits on every process.
        It is 0 where no row of any process counts: see ``empty=``.

    Raises:
        TypeError: a target that is a DTensor, whose loss divides by the whole batch as it is; an argument of another type.
        ValueError: a process outside the group; a ``weight`` that is not ``(C)``.

    >>> labels = torch.tensor([3, -100, 7])
    >>> shared_denominator(labels).item()
    2.0

    See also: ``denominator=`` of :func:`crossent.cross_entropy`, which takes it; ``docs/scale.md``.

    Source: the averaging is that of PyTorch 2.13, ``torch.nn.parallel.DistributedDataParallel``.
    """
    size = _size(group)
    if is_dtensor(target):
        raise TypeError(
            "target must be a plain torch.Tensor with this process's rows, got a DTensor, whose mean divides by the whole batch: "
            "leave denominator out, or count with (target != ignore_index).sum().full_tensor()"
        )
    total = _own_share(target, weight, integer_of_64_bits("ignore_index", ignore_index))
    if size > 1:
        distributed.all_reduce(total, group=group)
    return total / size if flag("averaged", averaged) else total


def _size(group: Any) -> int:
    """Count the processes of a group."""
    if not distributed.is_available() or not distributed.is_initialized():
        if group is not None:
            raise ValueError(
                "group must be None where torch.distributed is not initialised: call init_process_group first"
            )
        return 1
    size = distributed.get_world_size(group)
    if size < 1:
        raise ValueError("group must be one that this process belongs to: only its members call shared_denominator")
    return size


def _own_share(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Sum what this process's rows weigh. Labels out of range are left to the loss, since raising here would stop one process."""
    check_tensor("target", target, "a torch.Tensor of class indices or probabilities")
    wide = dtype_of_sums(target.device)
    check_devices(target, weight=weight)
    if weight is not None and check_tensor("weight", weight, "a torch.Tensor of shape (C,) or None").dim() != 1:
        raise ValueError(f"weight must have shape (C,), got {shape(weight)}")
    if target.is_floating_point():
        rows = 1 if target.dim() < 2 else target.select(1, 0).numel() if target.shape[1] else 0
        return torch.tensor(rows, dtype=wide, device=target.device)
    labels = target.long()
    counts = labels != ignore_index
    if weight is None:
        return counts.sum().to(wide)
    row_weights = weight.detach().to(wide)[labels.clamp(0, len(weight) - 1)]
    return row_weights.masked_fill(~counts, 0.0).sum()
