"""Deferred heads in two processes on gloo with different data: DDP and FSDP2 are right, and so are plans of
tensor parallelism, which form the logits and say so.

Run as ``defer_processes.py ddp|fsdp|tp``; test_defer_clients.py does.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))
from nanogpt import NanoGPT, batch

import crossent
from crossent import Logits

WORLD, V = 2, 997


class Outside(NanoGPT):
    """A model that returns its logits, of which the training loop makes the loss; one layer is never used."""

    def __init__(self, **options):
        super().__init__(V, **options)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, idx):
        return super().forward(idx)[0]


def llama():
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, max_position_embeddings=32, **small))


def loss_of(model, idx, targets):
    base = getattr(model, "module", model)
    if isinstance(base, Outside):
        return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), ignore_index=-1)
    if isinstance(base, NanoGPT):
        return model(idx, targets)[1]
    return model(input_ids=idx, labels=targets.masked_fill(targets == -1, -100)).loss


def expected(make, rank):
    """Return the loss of a process and the mean of the processes' gradients, from a plain model."""
    torch.manual_seed(0)
    model, losses = make(), []
    for each in range(WORLD):
        loss = loss_of(model, *batch(V, seed=each))
        (loss / WORLD).backward()
        losses.append(loss.detach())
    return losses[rank], {name: p.grad for name, p in model.named_parameters()}


def check(name, make, wrap, rank):
    loss, gradients = expected(make, rank)
    torch.manual_seed(0)
    model = wrap(make())
    Logits.reset()
    for _ in range(2):
        model.zero_grad()
        ours = loss_of(model, *batch(V, seed=rank))
        ours.backward()
        torch.testing.assert_close(ours.detach(), loss, rtol=1e-4, atol=1e-5)
        for key, p in model.named_parameters():
            right, got = gradients[key.removeprefix("module.")], p.grad
            got = got.full_tensor() if hasattr(got, "full_tensor") else got
            if right is None:
                assert got is None or not got.any(), f"{name}: {key}"
            else:
                torch.testing.assert_close(
                    got, right, rtol=1e-3, atol=1e-6, msg=lambda words, key=key: f"{name}: {key} {words}"
                )
    assert Logits.formed == 0, f"{name}: {Logits.report()}"
    assert Logits.blocked == 2, name
    dist.barrier()
    if rank == 0:
        print(f"{name}: right", flush=True)


def refuses(words, call):
    refused = ""
    try:
        call()
    except RuntimeError as error:
        refused = str(error)
    assert words in refused, refused


def defer(model):
    crossent.defer(model if hasattr(model, "get_output_embeddings") else model.lm_head, max_bytes=15 * V * 4)
    return model


MODELS = {
    "tied": lambda: NanoGPT(V),
    "bias": lambda: NanoGPT(V, tied=False, bias=True),
    "loss outside": lambda: Outside(tied=False),
    "loss outside, tied": Outside,
    "llama": llama,
}


def ddp(rank):
    for name, make in MODELS.items():
        for options in ({"find_unused_parameters": True}, {"static_graph": True}):
            check(f"ddp {name} {options}", make, lambda m, o=options: DistributedDataParallel(defer(m), **o), rank)
    for name in ("tied", "bias", "llama"):
        check(f"ddp {name}", MODELS[name], lambda m: DistributedDataParallel(defer(m)), rank)


def fsdp(rank):
    def sharded(*units, later=False, **options):
        def wrap(model):
            model = model if later else defer(model)
            for unit in units:
                for part in unit(model) if callable(unit) else [getattr(model, unit)]:
                    fully_shard(part, **options)
            model = fully_shard(model, **options)
            return defer(model) if later else model

        return wrap

    for name, make in MODELS.items():
        check(f"fsdp {name}", make, sharded(), rank)
    for name in ("bias", "loss outside", "llama"):
        check(f"fsdp {name}, head apart", MODELS[name], sharded("lm_head"), rank)
        check(
            f"fsdp {name}, head apart, freed",
            MODELS[name],
            sharded("lm_head", reshard_after_forward=name == "llama"),
            rank,
        )
        check(f"fsdp {name}, then deferred", MODELS[name], sharded("lm_head", later=True), rank)
    check("fsdp llama by layers", llama, sharded(lambda m: m.model.layers), rank)
    check("fsdp llama, body and head", llama, sharded("model", "lm_head"), rank)
    model = sharded(reshard_after_forward=True)(MODELS["loss outside"]())
    refuses("freed before the loss was computed", lambda: loss_of(model, *batch(V, seed=rank)))


def tp(rank):
    """A plan of transformers: a model that is loaded by one is refused, and one that was deferred before is right and counted."""
    import transformers
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    folder = (
        Path(tempfile.gettempdir()) / f"crossent-defer-{os.environ['MASTER_PORT']}"
    )  # some versions let one rank write
    torch.manual_seed(0)
    llama().save_pretrained(folder)
    dist.barrier()
    model = transformers.LlamaForCausalLM.from_pretrained(folder, tp_plan="auto")
    refuses("tp_plan", lambda: crossent.defer(model))

    idx, targets = batch(V, seed=0)  # the same on both, as in tensor parallelism
    torch.manual_seed(0)
    plain = llama()
    loss = loss_of(plain, idx, targets)
    loss.backward()
    mesh, plan = init_device_mesh("cpu", (WORLD,)), {"lm_head": "colwise_gather_output", "lm_head.weight": "colwise"}
    for plan_of_head in (plan, {}):
        torch.manual_seed(0)
        model = crossent.defer(llama(), max_bytes=15 * V * 4)
        apply_tensor_parallelism(model, mesh, plan_of_head)
        sharded = hasattr(model.lm_head.weight, "placements")
        assert sharded == bool(plan_of_head)
        Logits.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if sharded else "error")
            ours = loss_of(model, idx, targets)
            ours.backward()
            torch.testing.assert_close(ours, loss, rtol=1e-4, atol=1e-5)
            for (key, p), right in zip(model.named_parameters(), plain.parameters(), strict=True):
                got = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                torch.testing.assert_close(
                    got, right.grad, rtol=1e-3, atol=1e-6, msg=lambda words, key=key: f"{key} {words}"
                )
            assert (Logits.formed, Logits.blocked) == ((1, 0) if sharded else (0, 1)), Logits.report()
            with torch.no_grad():
                torch.testing.assert_close(loss_of(model, idx, targets), loss.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                model.generate(idx, max_new_tokens=3, do_sample=False),
                plain.generate(idx, max_new_tokens=3, do_sample=False),
            )
    if rank == 0:
        print("tp: right", flush=True)


def run(rank, port, layout):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
    }
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*saves no memory")
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    {"ddp": ddp, "fsdp": fsdp, "tp": tp}[layout](rank)
    dist.barrier()  # a thread of gloo that still waits for Python's lock when Python ends would abort the process
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, args=(port, sys.argv[1]), nprocs=WORLD)
