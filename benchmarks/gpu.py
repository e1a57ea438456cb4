"""The GPU kernels on a GPU, beside a copy, torch, torch.compile and other libraries: ``make bench-gpu``.

It needs torch, Triton and this package, and nothing else. First each loss and gradient is held to float64. Then forward,
backward, and both are timed, in turn, with the caches written over before each. A figure is the median. Its unit is a copy of
the logits, which reads and writes as many bytes as a loss with its gradient must. The lines "variant: …" are other ways to a mean
with its gradient, from ``gpu_variants.py``. Last comes which of them is the fastest at each shape. ``--toy`` runs all of it at
small sizes, also in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_variants import VARIANTS
from torch import Tensor

import crossent

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LOSSES = {
    "vocabulary 32k": (8192, 32000),
    "vocabulary 128k": (8192, 128256),
    "vocabulary 256k": (4096, 262144),
    "classes": (65536, 1000),
    "segmentation": (16, 21, 512, 512),
}
FEW_ROWS = {"64 rows of 128k": (64, 128256), "8 rows of 128k": (8, 128256), "8 rows of 256k": (8, 262144)}
HEADS = {"8B": (4096, 4096, 128256), "2B": (8192, 2304, 256000), "7B": (8192, 4096, 32000)}
TOYS = {"rows": (4, 65), "segmentation": (2, 5, 4, 6)}, {"few rows": (2, 1600)}, {"head": (4, 16, 33)}
VARIANT = "variant: "
_FLUSH = 256 << 20  # bytes, more than a cache has
_AHEAD = (
    4_000_000  # cycles, some 2 ms, in which the host launches what is timed: a few rows take less than their launches
)


class Row(NamedTuple):
    """A measurement: milliseconds, and bytes at the peak beside what was there before."""

    case: str
    dtype: str
    contender: str
    part: str
    milliseconds: float
    peak: int


class Machine:
    """Where it runs: how it is timed, and what it takes."""

    def __init__(self, rounds: int) -> None:
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.rounds = rounds
        self.flush = torch.empty(_FLUSH if self.gpu else 1, dtype=torch.uint8, device=self.device)
        self.left_out: list[str] = []

    def leave_out(self, case: str, dtype: str, contender: str, why: object) -> None:
        """Say that a contender cannot run, and why."""
        self.left_out.append(f"{case}, {dtype}, {contender}: {why!s:.200}")
        sys.stderr.write(f"{self.left_out[-1]}: left out\n")

    def describe(self) -> dict[str, Any]:
        """Name the machine and the versions."""
        import triton

        name = torch.cuda.get_device_name() if self.gpu else f"{platform.machine()}, Triton's interpreter"
        return {
            "device": name,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "crossent": crossent.__version__,
        }

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Time one call, on a GPU without the time that the host takes to launch it."""
        self.flush.zero_()
        if not self.gpu:
            start = perf_counter()
            call()
            return 1e3 * (perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_AHEAD)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def peak(self, call: Callable[[], Any]) -> int:
        """Tell how many bytes a call takes at its peak, beside what was there."""
        if not self.gpu:
            call()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def compare(self, case: str, dtype: str, parts: dict[tuple[str, str], Callable[[], Any]]) -> Iterator[Row]:
        """Run the contenders in turn, round by round; the first run of each compiles and tells the peak."""
        peaks: dict[tuple[str, str], int] = {}
        for name, call in list(parts.items()):
            try:
                peaks[name] = self.peak(call)
            except Exception as error:  # a contender that cannot is left out, and said
                self.leave_out(case, dtype, name[0], error)
        times: dict[tuple[str, str], list[float]] = {name: [] for name in peaks}
        for _ in range(self.rounds):
            for name, taken in times.items():
                taken.append(self.milliseconds(parts[name]))
        for (contender, part), taken in times.items():
            yield Row(case, dtype, contender, part, median(taken), peaks[contender, part])


# --- losses -----------------------------------------------------------------------------------------------------------


def problem(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw logits, peaky ones, and labels of which some are ignored."""
    torch.manual_seed(0)
    x = torch.randn(shape, device=device, dtype=dtype).mul_(3)
    y = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    y.view(-1)[::7] = -100
    return x, y


def ours(x: Tensor, y: Tensor) -> Tensor:
    """Compute our mean loss by the kernels, or say why not."""
    return crossent.cross_entropy(x, y, impl="triton")


LOSS_CONTENDERS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "torch": lambda: F.cross_entropy,
    "torch.compile": lambda: torch.compile(F.cross_entropy),
    "crossent": lambda: ours,
}


def assert_close(case: str, got: Tensor, exact: Tensor, rtol: float, atol: float = 0.0) -> None:
    """Hold a result to float64, and name the case where it is off."""
    torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=atol, msg=lambda text: f"{case}: {text}")


def check_losses(machine: Machine, shapes: dict[str, tuple[int, ...]]) -> None:
    """Hold the loss and gradient of some rows of each shape to float64."""
    for case, shape in shapes.items():
        for dtype in DTYPES.values():
            x, y = problem((min(shape[0], 64), *shape[1:]), dtype, machine.device)
            leaf, exact = x.requires_grad_(), x.detach().double().requires_grad_()
            loss, right = (
                crossent.cross_entropy(leaf, y, out_dtype=torch.float32, impl="triton"),
                F.cross_entropy(exact, y),
            )
            loss.backward()
            right.backward()
            eps = torch.finfo(torch.float32).eps
            assert_close(case, loss.detach(), right.detach(), 64 * eps)
            assert_gradient_close(case, leaf.grad, exact.grad, dtype)


def assert_gradient_close(case: str, got: Tensor | None, exact: Tensor, dtype: torch.dtype) -> None:
    """Hold a gradient to float64: it has one rounding to its dtype, and some in float32."""
    assert got is not None
    eps = torch.finfo(torch.float32).eps
    assert_close(case, got, exact, torch.finfo(dtype).eps + 64 * eps, 4 * eps * exact.abs().max().item())


def asked_for(name: str, contenders: list[str] | None) -> bool:
    """Whether a variant is to run: all of them are meant by "variants"."""
    return not contenders or "variants" in contenders or VARIANT + name in contenders


def variants(
    machine: Machine, case: str, dtype: str, x: Tensor, y: Tensor, contenders: list[str] | None
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Hold each variant to float64 and return it; one that cannot run is left out, and said."""
    found: dict[tuple[str, str], Callable[[], Any]] = {}
    names = [name for name in VARIANTS if asked_for(name, contenders)]
    if x.dim() > 2 or not names:
        return found
    some = x[:64].double().requires_grad_()
    right = F.cross_entropy(some, y[:64])
    (slope,) = torch.autograd.grad(right, some)
    for name in names:
        try:
            loss, gradient = VARIANTS[name](x[:64], y[:64])
        except Exception as error:  # as compilers raise, of any kind
            machine.leave_out(case, dtype, VARIANT + name, error)
            continue
        assert_close(f"{case}, {name}", loss, right.detach(), 64 * torch.finfo(torch.float32).eps)
        assert_gradient_close(f"{case}, {name}", gradient, slope, x.dtype)
        found[VARIANT + name, "both"] = partial(VARIANTS[name], x, y)
    return found


def fastest(rows: list[Row]) -> list[str]:
    """Say which variant is the fastest at each shape."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        at = best.get((row.case, row.dtype))
        if row.contender.startswith(VARIANT) and (at is None or row.milliseconds < at.milliseconds):
            best[row.case, row.dtype] = row
    return [f"{r.case}, {r.dtype}: {r.contender[len(VARIANT) :]}, {r.milliseconds:.3f} ms" for r in best.values()]


def time_losses(machine: Machine, shapes: dict[str, tuple[int, ...]], contenders: list[str] | None) -> Iterator[Row]:
    """Time forward, backward and both, and the variants beside them."""
    for case, shape in shapes.items():
        for name, dtype in DTYPES.items():
            x, y = problem(shape, dtype, machine.device)
            beside, leaf = torch.empty_like(x), x.detach().requires_grad_()
            parts: dict[tuple[str, str], Callable[[], Any]] = {("copy", "both"): lambda a=x, b=beside: b.copy_(a)}
            for contender, make in LOSS_CONTENDERS.items():
                if contenders and contender not in contenders:
                    continue
                loss = make()

                def forward(loss=loss, x=x, y=y) -> Tensor:
                    with torch.no_grad():
                        return loss(x, y)

                def both(loss=loss, x=leaf, y=y) -> None:
                    torch.autograd.grad(loss(x, y), x)

                def backward(loss=loss, x=leaf, y=y, kept=[]) -> None:  # noqa: B006
                    """Run the backward pass of a loss whose graph is kept: what it forms in forward it then forms again."""
                    if not kept:
                        kept.append(loss(x, y))
                    torch.autograd.grad(kept[0], x, retain_graph=True)

                parts[contender, "forward"], parts[contender, "both"] = forward, both
                parts[contender, "backward"] = backward
            parts |= variants(machine, case, name, x, y, contenders)
            yield from machine.compare(case, name, parts)


# --- heads ------------------------------------------------------------------------------------------------------------


Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def _plain_head(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(h @ w.t(), y)


def _liger() -> Head:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda h, w, y: loss(w, h, y)


def _cce() -> Head:
    from cut_cross_entropy import linear_cross_entropy

    return lambda h, w, y: linear_cross_entropy(h, w, y)


def _quack() -> Head:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda h, w, y: chunked_linear_cross_entropy(h, w, y)


HEAD_CONTENDERS: dict[str, Callable[[], Head]] = {
    "torch": lambda: _plain_head,
    "torch.compile": lambda: torch.compile(_plain_head),
    "torch, chunked": lambda: F.linear_cross_entropy,
    "crossent": lambda: lambda h, w, y: crossent.linear_cross_entropy(h, w, y, impl="triton"),
    "Liger": _liger,
    "CCE": _cce,
    "QuACK": _quack,
}


def heads(contenders: list[str] | None) -> dict[str, Head]:
    """Return the contenders that are asked for and installed."""
    found = {}
    for name, make in HEAD_CONTENDERS.items():
        if contenders and name not in contenders:
            continue
        try:
            found[name] = make()
        except (ImportError, AttributeError) as error:
            sys.stderr.write(f"{name} is left out: {error}\n")
    return found


def products(h: Tensor, w: Tensor, logits: Tensor) -> None:
    """Compute the three products that every head needs."""
    torch.mm(h, w.t(), out=logits)
    torch.mm(logits, w)
    torch.mm(logits.t(), h)


def time_heads(
    machine: Machine, shapes: dict[str, tuple[int, int, int]], contenders: list[str] | None
) -> Iterator[Row]:
    """Time forward and backward of a head in bfloat16 beside its bare products."""
    for case, (rows, features, classes) in shapes.items():
        torch.manual_seed(0)
        h = torch.randn(rows, features, device=machine.device).bfloat16().requires_grad_()
        w = (torch.randn(classes, features, device=machine.device) / features**0.5).bfloat16().requires_grad_()
        y = torch.randint(classes, (rows,), device=machine.device)
        logits = torch.empty(rows, classes, device=machine.device, dtype=torch.bfloat16)
        parts: dict[tuple[str, str], Callable[[], Any]] = {
            ("three products", "both"): partial(products, h.detach(), w.detach(), logits)
        }
        for contender, loss in heads(contenders).items():
            parts[contender, "both"] = lambda loss=loss, h=h, w=w, y=y: torch.autograd.grad(loss(h, w, y), (h, w))
        yield from machine.compare(case, "bfloat16", parts)


# --- results ----------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Write the rows, with what they take in copies or in products."""
    units = {(r.case, r.dtype): r.milliseconds for r in rows if r.contender in ("copy", "three products")}
    lines = [
        "| case | dtype | contender | part | ms | in units | peak, MB |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        ratio = r.milliseconds / units[r.case, r.dtype]
        lines.append(
            f"| {r.case} | {r.dtype} | {r.contender} | {r.part} | {r.milliseconds:.3f} | {ratio:.2f} | {r.peak / 2**20:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Check, time, and write ``gpu.json`` and ``gpu.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--toy", action="store_true", help="small sizes")
    parser.add_argument("--contenders", nargs="*", help="only these, beside the units")
    said = parser.parse_args(arguments)
    machine = Machine(said.rounds)
    shapes, few, head_shapes = TOYS if said.toy else (LOSSES, FEW_ROWS, HEADS)
    check_losses(machine, shapes | few)
    rows = [
        *time_losses(machine, shapes | few, said.contenders),
        *time_heads(machine, head_shapes, said.contenders),
    ]
    said.out.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine.describe(),
        "rows": [row._asdict() for row in rows],
        "fastest variant": fastest(rows),
        "left out": machine.left_out,
    }
    (said.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (said.out / "gpu.md").write_text(table(rows) + "\n", "utf-8")
    sys.stdout.write("\n".join([table(rows), "", "The fastest variant:", *fastest(rows)]) + "\n")
    return rows


if __name__ == "__main__":
    main()
