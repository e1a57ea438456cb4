"""Train a small language model whose vocabulary lies on several processes, so that none of them has all logits of a row.

torchrun --nproc_per_node 2 examples/tensor_parallel.py     with NCCL on GPUs and gloo without
"""

import torch
from torch import distributed as dist
from torch import nn

from crossent import VocabShard, linear_cross_entropy, linear_cross_entropy_stats

V, D, POSITIONS, STEPS = 1001, 64, 32, 60
cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
torch.cuda.set_device(device) if cuda else None

torch.manual_seed(0)  # the body and the batches are the same on all processes
body = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D)).to(device)
shard = VocabShard.even(V)
head = nn.Parameter(torch.randn(V, D).mul(0.02).chunk(world)[rank].to(device))  # this process's classes
optimizer = torch.optim.AdamW([*body.parameters(), head], lr=1e-2)


def batch():
    """Make sequences in which token ``t + 1`` is known from token ``t``."""
    tokens = (torch.randint(V, (16, 1)) + 7 * torch.arange(POSITIONS)) % V
    return tokens.to(device), tokens.to(device)  # labels count all classes, not those of one process


for step in range(STEPS):
    tokens, labels = batch()
    loss = linear_cross_entropy(body(tokens), head, labels, shift=1, shard=shard)
    loss.backward()  # each process gets the whole gradient of the body, and that of its part of the head
    optimizer.step()
    optimizer.zero_grad()
    if rank == 0 and step % 20 == 19:
        print(f"step {step + 1}: {loss.item():.4f} nats a label")

tokens, labels = batch()
with torch.no_grad():
    stats = linear_cross_entropy_stats(body(tokens), head, labels, shift=1, shard=shard, reduction="mean")
if rank == 0:
    print(f"right: {stats.correct.item():.1%}, entropy {stats.entropy.item():.4f} nats")
dist.barrier()  # a thread of gloo that still waits for Python's lock when Python ends would abort the process
dist.destroy_process_group()
