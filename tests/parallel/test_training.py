"""A training step with everything at once: micro-batches, data parallelism, and a head whose classes and rows are spread."""

import functools

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import crossent
from crossent import VocabShard, linear_cross_entropy, shared_denominator
from crossent.losses import linear

IN, D, V, DP, TP = 5, 6, 11, 2, 2
SEQUENCES, POSITIONS, MICRO = 4, 6, 2  # of each data-parallel part, of each sequence, and micro-batches of a step

MUST_BE_FORMED = linear.must_be_formed
ranks = pool(4)


@functools.cache
def _mesh():
    return init_device_mesh("cpu", (DP, TP), mesh_dim_names=("dp", "tp"))


def _model():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(IN, D), nn.Tanh()).double(), torch.randn(V, D, dtype=torch.float64)


def _batch(part):
    """Sequences that differ by part, with padding that lies unevenly over parts and positions."""
    generator = torch.Generator().manual_seed(30 + part)
    x = torch.randn(SEQUENCES, POSITIONS, IN, dtype=torch.float64, generator=generator)
    y = torch.randint(V, (SEQUENCES, POSITIONS), generator=generator)
    y[0, 1 + part :] = -100
    y[2, : 3 * part] = -100
    return x, y


def step(reduction):
    """Train one step; each process has some positions of the sequences of its part, and some classes of the head."""
    mesh, (body, w) = _mesh(), _model()
    dp, tp = (mesh[name].get_group() for name in ("dp", "tp"))
    shard = VocabShard.even(V, tp, sequence_parallel=True)
    head = w.chunk(TP)[dist.get_rank(tp)].clone().requires_grad_()
    x, y = _batch(dist.get_rank(dp))
    here = slice(dist.get_rank(tp) * POSITIONS // TP, (dist.get_rank(tp) + 1) * POSITIONS // TP)
    # Every process counts its own labels, and the gradients are averaged over the data-parallel ones alone.
    count = shared_denominator(y[:, here], averaged=False) / DP
    total = 0.0
    for some in torch.arange(SEQUENCES).chunk(MICRO):
        h = body(x[some][:, here])
        given = {"shard": shard, "max_bytes": 200}
        if reduction == "mean":
            loss = linear_cross_entropy(h, head, y[some][:, here], denominator=count, **given)
            loss.backward()
            total += loss.item()
        else:  # of rows kept apart each process makes a sum of its own
            loss = linear_cross_entropy(h, head, y[some][:, here], reduction="none", **given).sum() / count
            loss.backward()
            dist.all_reduce(loss := loss.detach(), group=tp)
            total += loss.item()
    for p in body.parameters():
        dist.all_reduce(p.grad, group=tp)  # these processes have different rows
    for p in (*body.parameters(), head):
        dist.all_reduce(p.grad.div_(DP), group=dp)
    return total, [p.grad for p in body.parameters()], head.grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("at_once", [False, True], ids=["blocks", "at once"])
def test_micro_batches_data_and_sequence_parallelism_are_one_process(ranks, reduction, at_once):
    ranks(_form, at_once)
    body, w = _model()
    w.requires_grad_()
    (x, y) = (torch.cat(parts) for parts in zip(*map(_batch, range(DP)), strict=True))
    loss = nn.functional.cross_entropy(nn.functional.linear(body(x), w).flatten(0, 1), y.flatten())
    loss.backward()
    answers = ranks(step, reduction)
    assert sum(total for total, _, _ in answers) / 4 == pytest.approx(loss.item(), rel=1e-12)
    for rank, (_, of_body, of_head) in enumerate(answers):
        for grad, p in zip(of_body, body.parameters(), strict=True):
            torch.testing.assert_close(grad, p.grad, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(of_head, w.grad.chunk(TP)[rank % TP], rtol=1e-12, atol=1e-14)


def _form(at_once):
    """Form logits block by block, or all at once in operations that autograd knows."""
    linear.must_be_formed = (lambda call: "the test wants them") if at_once else MUST_BE_FORMED


def perplexity():
    """The perplexity of all tokens, and how many are right, from sums that each process has of its rows."""
    mesh, (body, w) = _mesh(), _model()
    x, y = _batch(dist.get_rank(mesh["dp"].get_group()))
    shard = VocabShard.even(V, mesh["tp"].get_group())
    head = w.chunk(TP)[dist.get_rank(shard.group)]
    stats = crossent.linear_cross_entropy_stats(body(x), head, y, shard=shard, reduction="sum")
    totals = torch.stack([stats.loss, stats.weight_sum, stats.correct, stats.count]).detach()
    dist.all_reduce(totals, group=mesh["dp"].get_group())
    loss, weight, correct, count = totals.tolist()
    return torch.tensor(loss / weight).exp().item(), correct / count


def test_perplexity_of_a_head_on_several_processes(ranks):
    body, w = _model()
    (x, y) = (torch.cat(parts) for parts in zip(*map(_batch, range(DP)), strict=True))
    logits, counted = nn.functional.linear(body(x), w).flatten(0, 1), y.flatten() != -100
    wanted = nn.functional.cross_entropy(logits, y.flatten()).exp().item()
    right = (logits.argmax(1) == y.flatten())[counted].double().mean().item()
    for found, accuracy in ranks(perplexity):
        assert found == pytest.approx(wanted, rel=1e-6)
        assert accuracy == pytest.approx(right)
