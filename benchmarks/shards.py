"""Time losses whose classes lie on two processes beside torch's ``loss_parallel``, and count what goes between them.

Both run in the same two processes, with gloo between them and a thread each, interleaved round by round; what counts is the
median of the rounds and the ratio. Bytes are those that a process gives to collectives, forward and backward.

    python benchmarks/shards.py    prints the table of docs/scale.md, and writes it there and to benchmarks/results/shards.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from machine import describe_machine
from report import quote
from torch import distributed as dist
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
PROCESSES = 2
BYTES = {"unsigned char": 1, "float": 4, "double": 8, "long int": 8}  # of a number, by the names that the profiler has


class Case(NamedTuple):
    """A loss of ``rows`` rows and ``classes`` classes, of logits or of a head with so many ``features``."""

    title: str
    rows: int
    classes: int
    features: int = 0


CASES = [
    Case("logits (1024, 32000)", 1024, 32000),
    Case("logits (256, 128256)", 256, 128256),
    Case("head (1024, 512) to 32000", 1024, 32000, 512),
    Case("head (512, 768) to 128256", 512, 128256, 768),
]


def sent(step: Any) -> tuple[int, int]:
    """Count the collectives of a step and the bytes that this process gives to them, as torch's profiler saw them."""
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    calls = [event for event in events if event.name().startswith("gloo:")]
    return len(calls), sum(BYTES[event.dtypes()[0]] * prod(event.shapes()[0]) for event in calls)


def contenders(case: Case) -> dict[str, Any]:
    """Draw a problem; return a training step of each contender, which returns loss and gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    import crossent

    mesh, shard, rank = init_device_mesh("cpu", (PROCESSES,)), crossent.VocabShard.even(case.classes), dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(case.classes, (case.rows,), generator=generator)
    size = len(torch.empty(case.classes).chunk(PROCESSES)[rank])
    if not case.features:
        own = torch.Generator().manual_seed(1 + rank)
        x = torch.randn(case.rows, size, generator=own).requires_grad_()

        def ours() -> Any:
            loss = crossent.cross_entropy(x, y, shard=shard)
            return loss, *torch.autograd.grad(loss, x)

        def torchs() -> Any:
            with loss_parallel():
                logits = DTensor.from_local(
                    x, mesh, [Shard(1)], shape=(case.rows, case.classes), stride=(case.classes, 1)
                )
                loss = F.cross_entropy(logits, DTensor.from_local(y, mesh, [Replicate()]))
                return loss.full_tensor(), *torch.autograd.grad(loss, x)

        return {"crossent": ours, "loss_parallel": torchs}
    h = torch.randn(case.rows, case.features, generator=generator).requires_grad_()
    w = (
        torch.randn(case.classes, case.features, generator=generator)
        .mul(0.1)
        .chunk(PROCESSES)[rank]
        .clone()
        .requires_grad_()
    )

    def our_head() -> Any:
        loss = crossent.linear_cross_entropy(h, w, y, shard=shard)
        return loss, *torch.autograd.grad(loss, (h, w))

    def torchs_head() -> Any:
        with loss_parallel():
            hidden = DTensor.from_local(h, mesh, [Replicate()])
            matrix = DTensor.from_local(
                w, mesh, [Shard(0)], shape=(case.classes, case.features), stride=(case.features, 1)
            )
            loss = F.cross_entropy(F.linear(hidden, matrix), DTensor.from_local(y, mesh, [Replicate()]))
            return loss.full_tensor(), *torch.autograd.grad(loss, (h, w))

    return {"crossent": our_head, "loss_parallel": torchs_head}


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Check that contenders agree, count what they send, and time them in turn."""
    steps = contenders(case)
    results, counts, times = {}, {}, {name: [] for name in steps}
    for name, step in steps.items():
        results[name] = step()
        counts[name] = sent(step)
    (loss, *grads), (loss_of_torch, *grads_of_torch) = results.values()
    torch.testing.assert_close(loss, loss_of_torch, rtol=1e-5, atol=1e-6)
    # Of logits or of the head; of hidden states torch leaves each process its part.
    assert (grads[-1] - grads_of_torch[-1]).norm() < 1e-3 * grads[-1].norm(), case.title
    end = torch.zeros(())
    start = time.perf_counter()
    while not end:
        for name, step in steps.items():
            dist.barrier()
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
        end = torch.tensor(float(time.perf_counter() - start > seconds and len(times["crossent"]) >= 5))
        dist.broadcast(end, 0)
    return {
        "title": case.title,
        "rounds": len(times["crossent"]),
        "ms": {name: 1e3 * median(of) for name, of in times.items()},
        "collectives": {name: count for name, (count, _) in counts.items()},
        "bytes": {name: count for name, (_, count) in counts.items()},
    }


def work(rank: int, store: str, seconds: float, path: str) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=PROCESSES)
    rows = [measure(case, seconds) for case in CASES]
    if rank == 0:
        Path(path).write_text(json.dumps(rows))
    dist.barrier()  # a thread of gloo that still waits for Python's lock when Python ends would abort the process
    dist.destroy_process_group()


def table(results: dict[str, Any]) -> str:
    """Write the table of docs/scale.md."""
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, torch {machine['torch']}, {machine['date']}:",
        "",
        "| float32 | crossent, ms | loss_parallel, ms | ratio | collectives | bytes that a process gives |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        (ours, theirs), counts, given = row["ms"].values(), row["collectives"].values(), row["bytes"].values()
        numbers = (f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}")
        pairs = (" / ".join(map(str, counts)), " / ".join(f"{n:,}" for n in given))
        lines.append(f"| {' | '.join([row['title'], *numbers, *pairs])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each problem")
    parser.add_argument("--out", type=Path, help="a file to write to; the stored results and docs/scale.md by default")
    args = parser.parse_args()
    machine = describe_machine()
    if not machine["idle"]:
        print("The machine is not idle: read the ratios with care, and do not publish them.")
    with tempfile.TemporaryDirectory() as folder:
        store, found = str(Path(folder) / "store"), str(Path(folder) / "rows")
        torch.multiprocessing.spawn(work, (store, args.seconds, found), PROCESSES)
        rows = json.loads(Path(found).read_text())
    results = {"schema": "crossent.shards/1", "machine": machine, "rows": rows}
    print(table(results))
    out = args.out or HERE / "results" / "shards.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    if args.out is None:
        page = HERE.parent / "docs" / "scale.md"
        page.write_text(quote(page.read_text("utf-8"), {"shards": table(results)}), "utf-8")


if __name__ == "__main__":
    main()
