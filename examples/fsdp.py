"""Train a small language model under FSDP2, whose logits never exist and whose mean is over the labels of all processes.

torchrun --nproc_per_node 2 examples/fsdp.py     with NCCL on GPUs and gloo without
"""

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from crossent import linear_cross_entropy, shared_denominator

V, D, POSITIONS, MICRO_BATCHES, STEPS = 1000, 64, 32, 2, 40
cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
torch.cuda.set_device(device) if cuda else None


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D))
        self.head = nn.Linear(D, V, bias=False)

    def loss(self, tokens, labels, denominator):
        return linear_cross_entropy(self.body(tokens), self.head, labels, shift=1, denominator=denominator)


def batch():
    """Make sequences of processes that differ in length: token ``t + 1`` is known from token ``t``."""
    tokens = (torch.randint(V, (8, 1), generator=generator) + 7 * torch.arange(POSITIONS)) % V
    lengths = torch.randint(2, POSITIONS + 1, (8, 1), generator=generator) // (rank + 1)
    return tokens.to(device), tokens.masked_fill(torch.arange(POSITIONS) >= lengths, -100).to(device)


torch.manual_seed(0)
generator = torch.Generator().manual_seed(1 + rank)
mesh, model = init_device_mesh(device.type, (world,)), Model().to(device)
fully_shard(model.body, mesh=mesh)
fully_shard(model, mesh=mesh)  # the unit that owns the head is the one whose method reads it
register_fsdp_forward_method(model, "loss")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(STEPS):
    batches, total = [batch() for _ in range(MICRO_BATCHES)], torch.zeros((), device=device)
    count = shared_denominator(torch.cat([labels for _, labels in batches])[..., 1:])  # the labels that are predicted
    for at, (tokens, labels) in enumerate(batches):
        model.set_requires_gradient_sync(at == MICRO_BATCHES - 1)
        loss = model.loss(tokens, labels, count)
        loss.backward()
        total += loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    dist.all_reduce(total)
    if rank == 0 and step % 10 == 9:
        print(f"step {step + 1}: {total.item() / world:.4f} nats a label")
dist.barrier()  # a thread of gloo that still waits for Python's lock when Python ends would abort the process
dist.destroy_process_group()
