"""The recipe of ``docs/defer.md`` for FSDP2 with micro-batches, on two processes, beside one process that has all rows."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import crossent

PAGE = (Path(__file__).parents[2] / "docs" / "defer.md").read_text("utf-8")
(RECIPE,) = re.findall(r"```python\n(for layer in.*?)```", PAGE, re.DOTALL)
V, D, ROWS, LENGTH, MICRO_BATCHES, WORLD = 37, 6, 2, 9, 3, 2

ranks = pool(WORLD)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(V, D)
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    def forward(self, ids):
        h = self.tokens(ids)
        for layer in self.layers:
            h = h + layer(h).tanh().cumsum(1) / ids.shape[1]
        return h


class Model(nn.Module):
    """A model with the call and the loss of those of transformers."""

    def __init__(self):
        super().__init__()
        self.model, self.lm_head = Body(), nn.Linear(D, V, bias=False)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, labels=None, num_items_in_batch=None):
        logits = self.lm_head(self.model(input_ids))
        shifted = F.pad(labels, (0, 1), value=-100)[..., 1:]
        loss = F.cross_entropy(logits.view(-1, V), shifted.reshape(-1), reduction="sum") / num_items_in_batch
        return SimpleNamespace(loss=loss, logits=logits)


def made():
    torch.manual_seed(0)
    return Model().double()


def batches(rank):
    """Micro-batches whose counts of labels differ, among themselves and by process."""
    generator = torch.Generator().manual_seed(rank)
    found = []
    for at in range(MICRO_BATCHES):
        tokens = torch.randint(V, (ROWS, LENGTH), generator=generator)
        found.append((tokens, tokens.masked_fill(torch.arange(LENGTH) > 3 + 2 * at - 3 * rank, -100)))
    return found


def stepped():
    model = made()
    names = {
        "model": model,
        "micro_batches": batches(dist.get_rank()),
        "fully_shard": fully_shard,
        "crossent": crossent,
    }
    before, after = RECIPE.split("crossent.defer(model)")
    exec(before, names)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)  # of the parameters that fully_shard made
    exec(f"crossent.defer(model){after}", names | {"optimizer": optimizer})
    assert (crossent.Logits.formed, crossent.Logits.blocked) == (0, MICRO_BATCHES)
    return [p.detach().full_tensor() for p in model.parameters()]


@pytest.mark.slow
def test_fsdp_with_micro_batches_steps_as_one_process_with_all_rows(ranks):
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens, labels = (torch.cat(parts) for parts in zip(*batches(0), *batches(1), strict=True))
    start = [p.detach().clone() for p in model.parameters()]
    model(tokens, labels, (labels[..., 1:] != -100).sum()).loss.backward()
    optimizer.step()
    for stepped_parameters in ranks(stepped):
        for got, p, was in zip(stepped_parameters, model.parameters(), start, strict=True):
            torch.testing.assert_close(got, p.detach(), rtol=1e-10, atol=1e-12)
            assert not torch.equal(got, was)
