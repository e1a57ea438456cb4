"""Losses of DTensors: values, placements and gradients are those of one process with all rows."""

import functools

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import crossent

R = Replicate()
N, C, L = 7, 5, 3  # of which no number divides another, so that four processes have uneven parts

ranks = pool(4)


@functools.cache
def _mesh(*shape):
    return init_device_mesh("cpu", shape)


def _data(kind):
    """Logits and targets, the same on every process, which then takes its part; rows of every process differ."""
    generator = torch.Generator().manual_seed(len(kind))
    shape = {"rows": (N, C), "pixels": (N, C, L), "last": (N, L, C)}[kind.split()[0]]
    axis = len(shape) - 1 if kind.startswith("last") else 1
    rows = tuple(size for at, size in enumerate(shape) if at != axis)
    x = 4 * torch.randn(shape, dtype=torch.float64, generator=generator)
    if "soft" in kind:
        y = torch.rand(shape, dtype=torch.float64, generator=generator)
    else:
        y = torch.randint(C, rows, generator=generator)
        y.view(-1)[1] = -100
    weight = torch.rand(C, dtype=torch.float64, generator=generator) + 0.5
    u = torch.rand(rows, dtype=torch.float64, generator=generator)
    whole = torch.randn(shape, dtype=torch.float64, generator=generator)
    return {"input": x, "target": y, "weight": weight, "sample_weight": u, "logit_bias": whole, "axis": axis}


def _options(name, data):
    """Return the options of a case: tensors among them are distributed."""
    return {
        "plain": {},
        "weighted": {"weight": data["weight"], "label_smoothing": 0.1},
        "samples": {"sample_weight": data["sample_weight"], "weight": data["weight"]},
        "denominator": {"denominator": 6.5},
        "given": {"denominator": torch.tensor(6.5, dtype=torch.float64)},
        "family": {
            "label_smoothing": 0.2, "temperature": 1.5, "softcap": 9.0, "z_loss": 0.01, "penalty": crossent.Focal(2.0),
            "class_mask": torch.arange(C) != 3 if data["target"].is_floating_point() else torch.arange(C) < C,
            "logit_bias": data["weight"].log(),
        },
        "bias": {"logit_bias": data["logit_bias"], "margin": 0.3},
    }[name]  # fmt: skip


def _like(value, name, x, axis, placements):
    """Distribute a tensor as its dimensions that are the logits' are, and the rest to every process."""
    if value.shape == x.shape:
        dims = list(range(x.dim()))
    else:
        dims = [axis] if value.dim() == 1 and name not in ("target", "sample_weight") else []
        dims = dims or [each for each in range(x.dim()) if each != axis]
    placed = []
    for placement in placements:
        fits = isinstance(placement, Shard) and value.dim() and placement.dim in dims
        placed.append(Shard(dims.index(placement.dim)) if fits else R)
    return placed


LEAVES = ("input", "logit_bias", "sample_weight", "weight", "target")


def _leaves(call, soft):
    return [
        name
        for name, value in call.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name in LEAVES and (name != "weight" or soft)
    ]


def _reduce(result, factors):
    """Make one number of a result, to which every row matters in its own way."""
    return (result * factors).sum() if result.dim() else result * 3.0


def _gradients(function, call, leaves, factors, twice):
    """Return the result and the gradients of a call; ``twice``, those of the squares of the gradients instead."""
    call = {name: v.detach().requires_grad_() if name in leaves else v for name, v in call.items()}
    result = function(**call)
    inputs = [call[name] for name in leaves]
    grads = torch.autograd.grad(_reduce(result, factors), inputs, create_graph=twice)
    if twice:
        total = sum((g * g).sum() for g in grads)
        grads = torch.autograd.grad(total, inputs)
    return result, grads


def one_case(kind, option, reduction, shape, placements, twice=False, function="cross_entropy"):
    mesh, data = _mesh(*shape), _data(kind)
    axis, x = data["axis"], data["input"]
    call = {"input": x, "target": data["target"], **_options(option, data)}
    more = {} if axis == 1 else {"dim": axis}
    if reduction != "mean" and "denominator" in call:
        return
    leaves = _leaves(call, "soft" in kind)
    rows = torch.linspace(-1, 2, data["sample_weight"].numel(), dtype=torch.float64).view(data["sample_weight"].shape)
    run = functools.partial(getattr(crossent, function), reduction=reduction, **more)
    wanted, of_one = _gradients(run, call, leaves, rows, twice)

    placed = {
        name: distribute_tensor(value, mesh, _like(value, name, x, axis, placements), src_data_rank=None)
        if isinstance(value, torch.Tensor) else value
        for name, value in call.items()
    }  # fmt: skip
    own = distribute_tensor(rows, mesh, _like(rows, "target", x, axis, placements), src_data_rank=None)
    got, grads = _gradients(run, placed, leaves, own, twice)
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    assert type(got) is DTensor
    close(got.full_tensor(), wanted)
    without_classes = [R if p == Shard(axis) else p for p in placements]
    if reduction != "none":
        assert got.placements == (R,) * mesh.ndim
    elif without_classes == list(placements):
        assert got.placements == tuple(_like(rows, "target", x, axis, placements))
    for name, grad, want in zip(leaves, grads, of_one, strict=True):
        assert grad.placements == placed[name].placements, name
        assert grad.shape == want.shape
        close(grad.full_tensor(), want, msg=lambda words, name=name: f"{name}: {words}")


MESHES = {
    "R": ((4,), [R]),
    "S0": ((4,), [Shard(0)]),
    "S0 S0": ((2, 2), [Shard(0), Shard(0)]),
    "R S0": ((2, 2), [R, Shard(0)]),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("option", ["plain", "weighted", "samples", "denominator", "given", "family", "bias"])
def test_rows(ranks, mesh, option):
    for kind in ("rows", "rows soft"):
        for reduction in ("mean", "sum", "none"):
            ranks(one_case, kind, option, reduction, *MESHES[mesh])


@pytest.mark.parametrize("kind", ["pixels", "pixels soft", "last"])
@pytest.mark.parametrize("option", ["plain", "samples", "bias"])
def test_pixels(ranks, kind, option):
    middle = 1 if kind == "last" else 2
    for reduction in ("mean", "none"):
        ranks(one_case, kind, option, reduction, (4,), [Shard(middle)])
        ranks(one_case, kind, option, reduction, (2, 2), [Shard(0), Shard(middle)])


@pytest.mark.parametrize("kind", ["rows", "rows soft", "pixels"])
def test_sharded_classes(ranks, kind):
    for option in ("plain", "weighted", "bias"):
        for reduction in ("mean", "sum", "none"):
            ranks(one_case, kind, option, reduction, (4,), [Shard(1)])
            ranks(one_case, kind, option, reduction, (2, 2), [Shard(0), Shard(1)])


@pytest.mark.parametrize("placements", [[Shard(0)], [R], [Shard(1)]])
def test_second_derivatives(ranks, placements):
    for kind, option in (("rows", "weighted"), ("rows soft", "bias"), ("rows", "samples")):
        for reduction in ("mean", "none"):
            ranks(one_case, kind, option, reduction, (4,), placements, True)
    ranks(one_case, "rows", "plain", "mean", (2, 2), [Shard(0), R], True)
