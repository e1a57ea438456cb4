"""The denominator that processes share: what they train together is what one process trains on all of their rows."""

import contextlib
import copy

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch import nn

import crossent
from crossent import cross_entropy, shared_denominator

C, D = 7, 5
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0, 1.5, 0.75], dtype=torch.float64)

ranks = pool(2)


def _model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()


def _batch(rank, rows=(9, 4)):
    """Rows that differ by rank in number, in values and in how many are ignored."""
    generator = torch.Generator().manual_seed(10 + rank)
    x = torch.randn(rows[rank], D, dtype=torch.float64, generator=generator)
    y = torch.randint(C, (rows[rank],), generator=generator)
    y[: rank + 1] = -100
    return x, y


def _all(*rows):
    batches = [_batch(rank, *rows) for rank in range(2)]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _gradients(model):
    found = [p.grad for p in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def _one_process(x, y, **options):
    model = _model()
    loss = cross_entropy(model(x), y, **options)
    loss.backward()
    return loss.item(), _gradients(model)


def _assert_trained_alike(answers, wanted):
    losses, gradients = zip(*answers, strict=True)
    assert sum(losses) / len(losses) == pytest.approx(wanted[0], rel=1e-13)
    for of_rank in gradients:
        for got, want in zip(of_rank, wanted[1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def _wrapped(kind):
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(_model())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = _model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def trained(kind, weighted, how):
    x, y = _batch(dist.get_rank())
    model, weight = _wrapped(kind), WEIGHT if weighted else None
    if how == "shared":
        loss = cross_entropy(model(x), y, weight, denominator=shared_denominator(y, weight=weight))
    elif how == "count":  # the count for gradients that are summed: an average divides once more
        loss = cross_entropy(model(x), y, weight, denominator=shared_denominator(y, weight=weight, averaged=False))
    else:
        loss = cross_entropy(model(x), y, weight)
    loss.backward()
    return loss.item(), _gradients(model)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_averaged_gradients_are_those_of_one_process(ranks, kind, weighted):
    wanted = _one_process(*_all(), weight=WEIGHT if weighted else None)
    _assert_trained_alike(ranks(trained, kind, weighted, "shared"), wanted)


def test_what_the_denominator_is_for(ranks):
    """The processes' own means, and the count of all rows, train something else."""
    _, (wanted, *_) = _one_process(*_all())
    for _, (gradient, *_) in ranks(trained, "ddp", False, "own"):
        assert (gradient - wanted).abs().max() > 0.1 * wanted.abs().max()
    for _, (gradient, *_) in ranks(trained, "ddp", False, "count"):
        torch.testing.assert_close(2 * gradient, wanted, rtol=1e-12, atol=1e-14)


def accumulated(kind, together):
    """Three micro-batches of a step, of which only the last one reduces gradients."""
    x, y = _batch(dist.get_rank())
    model, batches = _wrapped(kind), list(zip(x.split([1, 2, len(x) - 3]), y.split([1, 2, len(y) - 3]), strict=True))
    if together:
        count = shared_denominator(y)
    else:
        count = sum(shared_denominator(labels) for _, labels in batches)
    total = 0.0
    for at, (some, labels) in enumerate(batches):
        last = at == len(batches) - 1
        if kind == "fsdp":
            model.set_requires_gradient_sync(last)
        with contextlib.nullcontext() if last or kind == "fsdp" else model.no_sync():
            loss = cross_entropy(model(some), labels, denominator=count)
            loss.backward()
        total += loss.item()
    return total, _gradients(model)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_accumulation_over_processes(ranks, kind, together):
    _assert_trained_alike(ranks(accumulated, kind, together), _one_process(*_all()))


SEQUENCES, POSITIONS = 4, 9


def _text():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(C, (SEQUENCES, POSITIONS), generator=generator)
    labels[0, 5:] = -100  # padding lies unevenly over the processes
    labels[2, 1:] = -100
    return torch.randn(SEQUENCES, POSITIONS, D, dtype=torch.float64, generator=generator), labels


def sequence_parallel(kind):
    """Each process has some positions of every sequence, two micro-batches a step; the head's logits never exist as a whole."""
    h, labels = _text()
    here = slice(0, 6) if dist.get_rank() == 0 else slice(6, POSITIONS)
    model, own, total = _wrapped(kind), labels[:, here], 0.0
    count = shared_denominator(own)
    for some in (slice(0, 2), slice(2, 4)):
        if kind == "fsdp":
            model.set_requires_gradient_sync(some.start == 2)
        with contextlib.nullcontext() if some.start == 2 or kind == "fsdp" else model.no_sync():
            loss = cross_entropy(model(h[some, here]), own[some], denominator=count, dim=-1)
            loss.backward()
        total += loss.item()
    return total, _gradients(model)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_accumulation_over_sequence_parallel_processes(ranks, kind):
    h, labels = _text()
    _assert_trained_alike(ranks(sequence_parallel, kind), _one_process(h, labels, dim=-1))


def summed():
    """Gradients that a training loop of its own adds up."""
    x, y = _batch(dist.get_rank())
    model = _model()
    loss = cross_entropy(model(x), y, denominator=shared_denominator(y, averaged=False))
    loss.backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
    dist.all_reduce(loss := loss.detach())
    return loss.item(), _gradients(model)


def test_summed_gradients(ranks):
    _assert_trained_alike(ranks(summed), _one_process(*_all()))


def linear_head():
    x, y = _batch(dist.get_rank())
    head = copy.deepcopy(_model()[2])
    h = _model()[:2](x).detach()
    loss = crossent.linear_cross_entropy(h, head, y, denominator=shared_denominator(y))
    loss.backward()
    for p in head.parameters():
        dist.all_reduce(p.grad.div_(2))
    return loss.item(), _gradients(head)


def test_linear_head(ranks):
    head, (x, y) = copy.deepcopy(_model()[2]), _all()
    loss = cross_entropy(head(_model()[:2](x).detach()), y)
    loss.backward()
    _assert_trained_alike(ranks(linear_head), (loss.item(), _gradients(head)))


def perplexity():
    x, y = _batch(dist.get_rank())
    stats = crossent.cross_entropy_stats(_model()(x), y, reduction="sum")
    totals = torch.stack([stats.loss, stats.weight_sum, stats.correct, stats.count.double()]).detach()
    dist.all_reduce(totals)
    loss, weight, correct, count = totals.tolist()
    return torch.tensor(loss / weight).exp().item(), correct / count


def test_perplexity_from_summed_statistics(ranks):
    x, y = _all()
    stats = crossent.cross_entropy_stats(_model()(x), y, reduction="mean")
    for found, accuracy in ranks(perplexity):
        assert found == pytest.approx(stats.loss.exp().item(), rel=1e-6)
        assert accuracy == stats.correct.item()


def counts():
    rank = dist.get_rank()
    _, y = _batch(rank)
    alone = [dist.new_group([each]) for each in range(2)][rank]
    nothing = y[:0] if rank == 1 else torch.full((3,), -100)
    found = [
        shared_denominator(y),
        shared_denominator(y.to(torch.uint8), ignore_index=156),
        shared_denominator(y, group=alone),
        shared_denominator(y, averaged=False),
        shared_denominator(y, weight=WEIGHT.float()),
        shared_denominator(nothing),
        shared_denominator(nothing if rank else y),
        shared_denominator(torch.rand(3 + rank, C, 2)),
    ]
    with pytest.raises(ValueError, match="group must be one that this process belongs to"):
        shared_denominator(y, group=dist.GroupMember.NON_GROUP_MEMBER)
    return [(each.item(), each.dtype, each.dim()) for each in found]


def test_counts(ranks):
    first, second = ranks(counts)
    weights = [WEIGHT[y[y >= 0]].sum().item() for _, y in map(_batch, range(2))]
    for rank, found in enumerate((first, second)):
        assert [value for value, _, _ in found] == pytest.approx(
            [10 / 2, 10 / 2, [8, 2][rank], 10, sum(weights) / 2, 0, 8 / 2, (3 * 2 + 4 * 2) / 2]
        )
        assert {(dtype, dim) for _, dtype, dim in found} == {(torch.float64, 0)}


def test_one_process_alone():
    _, y = _batch(0)
    assert shared_denominator(y).item() == 8
    assert shared_denominator(torch.tensor(3)).item() == 1
    assert shared_denominator(torch.rand(C)).item() == 1
    assert shared_denominator(y, weight=WEIGHT.clone().requires_grad_()).requires_grad is False
    with pytest.raises(ValueError, match=r"group must be None where torch\.distributed is not initialised"):
        shared_denominator(y, group=object())
    with pytest.raises(ValueError, match=r"weight must have shape \(C,\), got \(1, 7\)"):
        shared_denominator(y, weight=WEIGHT[None])
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor of class indices"):
        shared_denominator([1, 2])
    with pytest.raises(TypeError, match="averaged must be True or False"):
        shared_denominator(y, averaged=1)
