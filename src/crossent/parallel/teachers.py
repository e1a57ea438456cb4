"""A teacher whose classes lie on several processes: what one gather of two numbers a row makes of its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.core.shard import VocabShard
from crossent.core.target import Teacher
from crossent.impl.head import teacher_logits
from crossent.parallel.collectives import Failure
from crossent.parallel.softmax import Rows, exchange, written_out


@torch.no_grad()
def taught(
    rows: Rows, teacher: Teacher, shape: tuple[int, ...], shard: VocabShard, impl: str, failure: Failure
) -> Rows:
    """Give rows their teacher's probabilities of the classes that are here, where ``softmax(z / T)`` is over all classes."""
    z = level = None

    def lse() -> Tensor:
        nonlocal z, level
        z = teacher_logits(teacher, None, shape, impl, rows.target.class_mask)
        if not z.shape[1]:
            return torch.stack([z.sum(1) - torch.inf, z.sum(1)]).to(rows.allowed.dtype)
        top = z.amax(1)
        level = top.masked_fill(top == -torch.inf, 0.0)  # a shard may have no class that is allowed
        return torch.stack([top, (z - level.unsqueeze(1)).exp().sum(1)]).to(rows.allowed.dtype)

    tops, sums = exchange(rows, 2, lse, shard, failure).unbind(1)

    def probabilities() -> Tensor:
        assert z is not None
        top = tops.amax(0)
        top = top.masked_fill(top == -torch.inf, 0.0)
        total = ((tops - top).exp() * sums).sum(0)
        return z.sub_(top.to(z.dtype).unsqueeze(1)).exp_().div_(total.clamp_min(1.0).to(z.dtype).unsqueeze(1))

    q = failure.attempt(probabilities, lambda: rows.target.values)
    target = rows.target._replace(values=q)
    return written_out(rows._replace(target=target, hard=rows.hard._replace(values=q)), shard, failure)
