"""Losses of DTensors compiled as one graph, which takes seconds a case."""

import functools

import pytest
import torch
from ranks import pool
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crossent

R = Replicate()
N, C = 7, 5

ranks = pool(2)


@functools.cache
def _mesh():
    return init_device_mesh("cpu", (2,))


def compiled_case(option, reduction, placement):
    mesh = _mesh()  # torch does not compile a second mesh that is equal to the first
    x, u, y = torch.randn(N, C, dtype=torch.float64), torch.rand(N, dtype=torch.float64), torch.arange(N) % C
    y[1] = -100
    options = {"sample_weight": u} if option == "samples" else {}
    rows = placement if placement == Shard(0) else R
    given = {name: distribute_tensor(value, mesh, [rows], src_data_rank=None) for name, value in options.items()}
    labels = distribute_tensor(y, mesh, [rows], src_data_rank=None)
    logits = distribute_tensor(x, mesh, [placement], src_data_rank=None).requires_grad_()

    torch._dynamo.reset()

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def step(a, b):
        return crossent.cross_entropy(a * 2.0, b, reduction=reduction, **given).sum()

    loss = step(logits, labels)
    loss.backward()
    one = x.clone().requires_grad_()
    wanted = crossent.cross_entropy(one * 2.0, y, reduction=reduction, **options).sum()
    wanted.backward()
    torch.testing.assert_close(loss.full_tensor(), wanted, rtol=1e-12, atol=1e-13)
    assert logits.grad.placements == logits.placements
    torch.testing.assert_close(logits.grad.full_tensor(), one.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("option", "reduction", "placement"),
    [
        ("plain", "mean", Shard(0)),
        ("samples", "mean", Shard(0)),
        ("plain", "none", Shard(0)),
        ("plain", "mean", Shard(1)),
    ],
)
def test_compiled_as_one_graph(ranks, option, reduction, placement):
    ranks.assert_holds(compiled_case, option, reduction, placement)


def compiled_head(of_h, of_w):
    mesh = _mesh()
    generator = torch.Generator().manual_seed(1)
    h, w = (
        torch.randn(N, 3, dtype=torch.float64, generator=generator),
        torch.randn(C, 3, dtype=torch.float64, generator=generator),
    )
    y = torch.arange(N) % C
    y[1] = -100
    rows = of_h if of_h == Shard(0) else R
    hidden, matrix, labels = (
        distribute_tensor(value, mesh, [placement], src_data_rank=None)
        for value, placement in ((h, of_h), (w, of_w), (y, rows))
    )
    leaves = [hidden.requires_grad_(), matrix.requires_grad_()]
    torch._dynamo.reset()

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def step(h, w, y):
        return crossent.linear_cross_entropy(h * 2.0, w, y)

    loss = step(*leaves, labels)
    grads = torch.autograd.grad(loss, leaves)
    one = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    wanted = crossent.linear_cross_entropy(one[0] * 2.0, one[1], y)
    torch.testing.assert_close(loss.full_tensor(), wanted, rtol=1e-12, atol=1e-13)
    for got, want in zip(grads, torch.autograd.grad(wanted, one), strict=True):
        torch.testing.assert_close(got.full_tensor(), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("of_h", "of_w"), [(Shard(0), R), (Shard(0), Shard(0)), (R, Shard(0))], ids=str)
def test_heads_compiled_as_one_graph(ranks, of_h, of_w):
    ranks.assert_holds(compiled_head, of_h, of_w)
