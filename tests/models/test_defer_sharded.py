"""Deferred heads over two processes: in blocks and right, or formed, right and counted, or refused with a way out.

The plane is where the weight is, where the hidden states are, whether the embedding is tied to the head, whether there is a
bias. What comes out is held to one process that has the whole model and all rows; each process computes with other rows where
rows are split.
"""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torch.distributed.nn.functional
from ranks import pool
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
from torch.nn import functional as F

import crossent
from crossent import Logits, VocabShard

N, D, V = 6, 4, 11
F64 = torch.float64
PLACES = {"R": Replicate(), "S0": Shard(0), "S1": Shard(1)}
ranks = pool(2)


@functools.cache
def _mesh():
    return init_device_mesh("cpu", (2,))


def _data():
    generator = torch.Generator().manual_seed(0)
    W, b, h = (torch.randn(size, generator=generator, dtype=F64) for size in ((V, D), (V,), (N, D)))
    ids, y = (torch.randint(V, (N,), generator=generator) for _ in range(2))
    y[1] = -100  # so that a mean of the processes' means is another number
    return W, b, h, ids, y


def _put(value, place):
    return value if place == "plain" else distribute_tensor(value, _mesh(), [PLACES[place]], src_data_rank=None)


def _whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def _head(place, bias, part=slice(None)):
    W, b, *_ = _data()
    head = nn.Linear(D, len(W[part]), bias=bias, dtype=F64)
    head.weight = nn.Parameter(_put(W[part], place))
    if bias:
        head.bias = nn.Parameter(_put(b[part], place if place in ("plain", "S0") else "R"))
    return crossent.defer(head, max_bytes=2 * V * 8)


def _expected(loss, tied, bias):
    W, b, h, ids, y = (t.requires_grad_() if t.is_floating_point() else t for t in _data())
    value = loss(F.linear(F.embedding(ids, W).tanh() if tied else h, W, b if bias else None), y)
    return [value.detach(), *torch.autograd.grad(value, [W] + [b] * bias + [h] * (not tied))]


def _hidden(head, place, tied, leaves):
    _, _, h, ids, _ = _data()
    if not tied:
        x = _put(h, place).requires_grad_()
        leaves.append(x)
        return x
    of_weight = hasattr(head.weight, "placements")
    rows = "plain" if not of_weight else "S0" if place == "S0" else "R"
    x = F.embedding(_put(ids, rows), head.weight).tanh()
    if place == "plain":
        return _whole(x)
    return x.redistribute(_mesh(), [PLACES[place]]) if of_weight else _put(x, place)


def _assert_all_close(ours, right):
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(_whole(a), b, rtol=1e-9, atol=1e-10)


# --- the plane ----------------------------------------------------------------------------------------------------------

LOSSES = {
    "torch": F.cross_entropy,
    "ours": crossent.cross_entropy,
    "smoothed": lambda x, y: F.cross_entropy(x.double(), y, label_smoothing=0.2, reduction="sum"),
    "in two steps": lambda x, y: F.nll_loss(x.log_softmax(-1), y),
    "shifted": lambda x, y: F.cross_entropy(x[:4].contiguous().view(-1, V), y[2:]),
}  # fmt: skip


def point(loss, weight, hidden, tied, bias, outcome):
    head, leaves = _head(weight, bias), []
    Logits.reset()
    leaves += head.parameters()
    y = _put(_data()[-1], hidden if hidden in ("plain", "S0") else "R")
    if outcome == "refused":
        with pytest.raises(RuntimeError, match="must find hidden states and weight both plain or both DTensors"):
            head(_hidden(head, hidden, tied, leaves))
        assert Logits.formed == 0
        return
    logits = head(_hidden(head, hidden, tied, leaves))
    assert logits.shape == (N, V)
    value = LOSSES[loss](logits, y)
    ours = [value.detach(), *torch.autograd.grad(value, leaves)]
    _assert_all_close(ours, _expected(LOSSES[loss], tied, bias))
    assert (Logits.formed, Logits.blocked) == (0, 1), Logits.report()


@pytest.mark.parametrize("hidden", ["plain", *PLACES])
@pytest.mark.parametrize("weight", ["plain", *PLACES])
def test_the_plane(ranks, weight, hidden):
    outcome = "blocks" if (weight == "plain") == (hidden == "plain") else "refused"
    for tied in (False, True):
        if tied and weight == "plain" and hidden != "plain":
            continue  # rows of a plain embedding are plain
        for bias in (False, True):
            for loss in LOSSES if outcome == "blocks" else ["torch"]:
                ranks.assert_holds(point, loss, weight, hidden, tied, bias, outcome)


NUMBERS = {
    "lse": lambda x: x.logsumexp(-1),
    "argmax": lambda x: x.argmax(-1),
    "scaled": lambda x: x * 2.0,
    "one class": lambda x: x[:, 3],
    "mean": lambda x: x.mean(-1),
}  # fmt: skip


def number(name, weight, hidden):
    """Hold what is not followed for DTensors to torch on the logits, formed once."""
    h, (W, b, *_) = _put(_data()[2], hidden), _data()
    logits = _head(weight, True)(h)
    Logits.reset()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = _whole(NUMBERS[name](logits))
    torch.testing.assert_close(got, NUMBERS[name](F.linear(_data()[2], W, b)))
    assert (Logits.formed, Logits.blocked) == (1, 0)
    assert any("formed the logits of a deferred head" in str(each.message) for each in told)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_not_followed_for_dtensors_is_formed(ranks, name):
    for weight, hidden in (("R", "R"), ("R", "S0"), ("S0", "R"), ("S1", "S1")):
        ranks.assert_holds(number, name, weight, hidden)


# --- tensor parallelism of torch ----------------------------------------------------------------------------------------

STYLES = {
    "gathered": lambda: ColwiseParallel(output_layouts=Replicate()),
    "gathered, DTensor": lambda: ColwiseParallel(output_layouts=Replicate(), use_local_output=False),
    "not gathered": lambda: ColwiseParallel(),
    "not gathered, DTensor": lambda: ColwiseParallel(use_local_output=False),
    "rows": lambda: RowwiseParallel(input_layouts=Replicate()),
}  # fmt: skip


class Wrapped(nn.Module):
    def __init__(self, tied, bias):
        super().__init__()
        W, b, *_ = _data()
        self.tokens, self.head = nn.Embedding(V, D, dtype=F64), nn.Linear(D, V, bias=bias, dtype=F64)
        self.head.weight = nn.Parameter(W.clone())
        if bias:
            self.head.bias = nn.Parameter(b.clone())
        if tied:
            self.tokens.weight = self.head.weight


def parallelized(style, order, bias):
    model, (_, _, h, _, y) = Wrapped(False, bias), _data()
    if order == "defer first":
        crossent.defer(model.head)
    parallelize_module(model, _mesh(), {"head": STYLES[style]()})
    if order == "then defer":
        crossent.defer(model.head)
    x = h.clone().requires_grad_()
    Logits.reset()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        logits = model.head(x)
    assert (Logits.formed, Logits.blocked) == (1, 0)
    assert any("it has a forward hook, as parallelize_module puts there" in str(each.message) for each in told)
    leaves = [model.head.weight, *([model.head.bias] if bias else []), x]
    if style == "not gathered, DTensor":
        with loss_parallel():
            value = F.cross_entropy(logits, y)
            value.backward()
        got = [value.detach(), *(leaf.grad for leaf in leaves)]
    else:
        if style == "not gathered":
            shard = VocabShard.even(V)
            value = crossent.cross_entropy(logits, y, shard=shard)
        else:
            value = F.cross_entropy(logits, y if not isinstance(logits, DTensor) else _put(y, "R"))
        got = [value.detach(), *torch.autograd.grad(value, leaves)]
    _assert_all_close(got, _expected(F.cross_entropy, False, bias))


@pytest.mark.parametrize("order", ["defer first", "then defer"])
@pytest.mark.parametrize("style", STYLES)
def test_parallelize_module(ranks, style, order):
    for bias in (False, True):
        ranks.assert_holds(parallelized, style, order, bias)


# --- a shard of the classes on each process -----------------------------------------------------------------------------


def local_shard(bias, statistics):
    """Logits of a shard of the classes tell that to our losses, which put them together."""
    _, _, h, _, y = _data()
    shard = VocabShard.even(V)
    own = slice(shard.start, shard.start + 6)
    head, x = _head("plain", bias, own), h.clone().requires_grad_()
    Logits.reset()
    logits = head(x)
    assert isinstance(logits, Logits)
    if statistics:
        value = crossent.cross_entropy_stats(logits, y, shard=shard, reduction="mean").loss
    else:
        value = crossent.cross_entropy(logits, y, shard=shard)
    got = [value.detach(), *torch.autograd.grad(value, [*head.parameters(), x])]
    loss, *gradients, of_h = _expected(crossent.cross_entropy, False, bias)
    _assert_all_close(got, [loss, *(g[own] for g in gradients), of_h])
    assert (Logits.formed, Logits.blocked) == (0, 1), Logits.report()


@pytest.mark.parametrize("statistics", [False, True])
def test_a_shard_of_the_classes(ranks, statistics):
    for bias in (False, True):
        ranks.assert_holds(local_shard, bias, statistics)


def _scatter(x):
    halves = [torch.ones(N, V, dtype=F64), torch.zeros(N, V, dtype=F64)]
    dist.scatter(x, halves if dist.get_rank() == 0 else None)


COLLECTIVES = {
    "all_reduce": lambda x: dist.all_reduce(x),
    "broadcast": lambda x: dist.broadcast(x, 1),
    "scatter": _scatter,
}  # fmt: skip


def collective(name):
    """What a collective writes to logits stays written, and a gathering one gets all of them."""
    W, b, h, *_ = _data()
    h = h + dist.get_rank()
    deferred, plain = _head("plain", True)(h).detach(), F.linear(h, W, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x in (deferred, plain):
            COLLECTIVES[name](x)
        torch.testing.assert_close(deferred.argmax(-1), plain.argmax(-1))
        torch.testing.assert_close(deferred.to_tensor(), plain)
        parts = [[torch.empty_like(plain) for _ in range(2)] for _ in range(2)]
        for x, to in zip((deferred, plain), parts, strict=True):
            dist.all_gather(to, x)
        torch.testing.assert_close(*parts)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives(ranks, name):
    ranks.assert_holds(collective, name)


def lost_gradient():
    """The collectives that autograd knows are Functions, to which an object is a constant."""
    logits = _head("plain", True)(_data()[2])
    with pytest.raises(RuntimeError, match=r"would return a result without their gradient"):
        torch.distributed.nn.functional.all_reduce(logits)


def test_collectives_with_a_gradient(ranks):
    ranks.assert_holds(lost_gradient)


# --- FSDP2 --------------------------------------------------------------------------------------------------------------


class Trained(Wrapped):
    def forward(self, ids, y):
        return F.cross_entropy(self.head(self.tokens(ids).tanh()), y)


def fsdp(tied, bias, along, apart):
    *_, ids, y = _data()
    rank = dist.get_rank()
    rows = [slice(0, 2), slice(2, N)]
    torch.manual_seed(0)
    whole = Trained(tied, bias)
    model = copy.deepcopy(whole)
    (sum(whole(ids[part], y[part]) for part in rows) / 2).backward()
    crossent.defer(model.head)
    options = {"mesh": _mesh(), "shard_placement_fn": (lambda p: Shard(p.ndim - 1)) if along == "S1" else None}
    if apart:
        fully_shard(model.head, **options)
    fully_shard(model, **options)
    Logits.reset()
    loss = model(ids[rows[rank]], y[rows[rank]])
    loss.backward()
    torch.testing.assert_close(loss.detach(), whole(ids[rows[rank]], y[rows[rank]]).detach())
    for ours, right in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(_whole(ours.grad), right.grad)
    assert (Logits.formed, Logits.blocked) == (0, 1), Logits.report()


@pytest.mark.parametrize("along", ["S0", "S1"])
def test_fsdp(ranks, along):
    for tied in (False, True):
        for bias in (False, True):
            for apart in (False, True) if not tied else (False,):
                ranks.assert_holds(fsdp, tied, bias, along, apart)
