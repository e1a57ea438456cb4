"""What fails on one process in the middle of a loss, such as for want of memory, raises on all of them, which then go on."""

import functools
import math
from unittest import mock

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import crossent
from crossent import VocabShard
from crossent.impl import formulas, head, load
from crossent.parallel import linear as heads
from crossent.parallel import sequences, softmax, teachers

N, C, D, BLOCKS = 6, 9, 4, 3
CULPRIT = 1

ranks = pool(3)

# Where something can fail: what is called there, and how many blocks or looks have gone by.
POINTS = {
    "hidden states": (heads, "hidden_states"),
    "logits": (head, "_form_logits"),
    "the first look": (load("eager"), "partials"),
    "putting together": (softmax, "together"),
    "the second look": (formulas, "partial_costs"),
    "the teacher": (teachers, "teacher_logits"),
    "a smoothed target": (formulas, "smoothed_target"),
    "gradients for logits": (load("eager"), "cross_entropy_backward"),
    "slopes of formed logits": (softmax._EAGER, "cross_entropy_backward"),
    "the memory of gradients": (head.Gradients, "__init__"),
    "gradients for hidden states": (head.Gradients, "_add_input"),
    "gradients for a part of a sequence": (sequences.ScatteredGradients, "_add_input"),
    "gradients for the matrix": (head.Gradients, "_add_weight"),
    "finished gradients": (head.Gradients, "finish"),
    "rows to send": (sequences.Span, "padded"),
    "rows that came": (sequences.Span, "joined"),
    "gradients to send": (sequences.Span, "parted"),
    "statistics": (formulas, "partial_statistics"),
}


class LostError(Exception):
    """An error that other processes do not know."""


def _failing(point, at):
    """Let the ``at``-th call at a point fail on one process, counted from 0, or from the last one where it is negative."""
    owner, name = POINTS[point]
    usual, seen = getattr(owner, name), []
    at = at if at >= 0 else BLOCKS + at

    @functools.wraps(usual)
    def called(*arguments, **named):
        seen.append(None)
        if len(seen) == at + 1 and dist.get_rank() == CULPRIT:
            raise LostError("nothing left")
        return usual(*arguments, **named)

    return mock.patch.object(owner, name, called)


def _answer(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def _problem(kind, sequence_parallel=False):
    generator = torch.Generator().manual_seed(3)
    h, w, teacher = (torch.randn(size, D, generator=generator) for size in (N, C, C))
    y, shard = torch.randint(C, (N,), generator=generator), VocabShard.even(C, sequence_parallel=sequence_parallel)
    w = w[shard.start :][:3].clone()
    given = {"impl": "eager"}
    if kind == "taught":
        y = crossent.Teacher(h.clone(), teacher)
    if kind in ("smoothed", "two looks"):
        given["label_smoothing"] = 0.1
    if kind == "smoothed":
        given["class_mask"] = torch.arange(C) < C
    if kind == "two looks":
        given["penalty"] = crossent.Focal(2.0)
    return h, w, y, shard, given


def of_head(point, at, kind, reduction, wanted, sequence_parallel, reduce_input_grad=True):
    """Fail in forward or backward of a head in three blocks, and then do the same without a failure."""
    h, w, y, shard, given = _problem(kind, sequence_parallel)
    h, w = h.requires_grad_("h" in wanted), w.requires_grad_("w" in wanted)
    each = 4 * 3 * 2 * (1 + load("eager").workspace) * (N // BLOCKS) * (3 if sequence_parallel else 1)
    each += 4 * 3 * 2 * head.TEACHERS_WORKSPACE * (N // BLOCKS) if kind == "taught" else 0
    shard = VocabShard(None, shard.start, C, sequence_parallel, reduce_input_grad)

    def step():
        loss = crossent.linear_cross_entropy(h, w, y, shard=shard, max_bytes=each, reduction=reduction, **given)
        if wanted:
            loss.sum().backward()
        return loss

    with _failing(point, at):
        answer = _answer(step)
    return answer, step().sum().item()


def assert_told(answers):
    """Hold the errors of all processes to name the one that failed, and what it lacked."""
    for rank, ((kind, message), afterwards) in enumerate(answers):
        assert kind == ("LostError" if rank == CULPRIT else "Exception"), answers
        assert "nothing left" in message
        assert rank == CULPRIT or f"process {CULPRIT} of the group" in message
        assert math.isfinite(afterwards)


IN_BLOCKS = ["hidden states", "logits", "the first look", "putting together", "gradients for logits"]
PARTS = {"hidden states": "rows that came", "gradients for hidden states": "gradients for a part of a sequence"}


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole", "sequences"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("point", [*IN_BLOCKS, "gradients for hidden states", "gradients for the matrix"])
def test_what_fails_in_a_block_of_a_head(ranks, point, reduction, sequence_parallel):
    point = PARTS.get(point, point) if sequence_parallel else point
    for at in (0, 1, -1):
        for wanted in ("hw",) if "hidden" in point or "sequence" in point else ("hw", "w"):
            assert_told(ranks(of_head, point, at, "plain", reduction, wanted, sequence_parallel))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_fails_where_the_caller_adds_gradients_up(ranks, reduction):
    for point in ("gradients for logits", "finished gradients"):
        at = 0 if "finished" in point else -1
        assert_told(ranks(of_head, point, at, "plain", reduction, "hw", False, False))


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole", "sequences"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_fails_before_and_after_the_blocks(ranks, reduction, sequence_parallel):
    for wanted in ("hw", "w"):
        assert_told(ranks(of_head, "the memory of gradients", 0, "plain", reduction, wanted, sequence_parallel))
    if not sequence_parallel:
        assert_told(ranks(of_head, "finished gradients", 0, "plain", reduction, "hw", False))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_fails_in_what_goes_between_processes(ranks, reduction):
    for at in (0, 1, -1):
        for point in ("rows to send", "rows that came", "gradients to send"):
            assert_told(ranks(of_head, point, at, "plain", reduction, "hw", True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("kind", "point"),
    [("two looks", "the second look"), ("taught", "the teacher"), ("smoothed", "a smoothed target")],
)
def test_what_fails_at_a_second_look(ranks, kind, point, reduction):
    for at in (0,) if kind == "smoothed" else (0, 1, -1):
        for wanted in ("hw", ""):
            assert_told(ranks(of_head, point, at, kind, reduction, wanted, False))


def of_formed_logits(point, sequence_parallel, wanted):
    """Fail in the backward of a head whose logit_bias wants a gradient, too, where autograd forms all of them."""
    h, w, y, shard, given = _problem("plain", sequence_parallel)
    h, w = h.requires_grad_("h" in wanted), w.requires_grad_("w" in wanted)
    bias = torch.zeros(len(w)).requires_grad_()

    def step():
        loss = crossent.linear_cross_entropy(h, w, y, shard=shard, logit_bias=bias, **given)
        loss.backward()
        return loss

    with _failing(point, 0):
        answer = _answer(step)
    return answer, step().item()


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole", "sequences"])
@pytest.mark.parametrize("wanted", ["hw", "w"])
def test_what_fails_where_autograd_forms_the_gradients_of_a_head(ranks, wanted, sequence_parallel):
    assert_told(ranks(of_formed_logits, "slopes of formed logits", sequence_parallel, wanted))
    assert_told(ranks(of_formed_logits, "the first look", sequence_parallel, wanted))


def of_logits(point, at, kind, loss):
    h, w, y, shard, given = _problem(kind)
    logits = (h @ w.t()).requires_grad_()
    call = functools.partial(getattr(crossent, loss), logits, y, shard=shard, **given)
    with _failing(point, at):
        answer = _answer(call)
    result = call()
    return answer, (result[0] if isinstance(result, tuple) else result).sum().item()


@pytest.mark.parametrize(
    ("kind", "point", "loss"),
    [
        ("plain", "the first look", "cross_entropy"),
        ("two looks", "the second look", "cross_entropy"),
        ("two looks", "putting together", "cross_entropy"),
        ("smoothed", "a smoothed target", "cross_entropy"),
        ("smoothed", "a smoothed target", "cross_entropy_stats"),
        ("plain", "statistics", "cross_entropy_stats"),
        ("two looks", "putting together", "cross_entropy_stats"),
        ("two looks", "the second look", "cross_entropy_stats"),
    ],
)
def test_what_fails_in_a_loss_of_logits(ranks, kind, point, loss):
    assert_told(ranks(of_logits, point, 0, kind, loss))


def statistics_of_head(at):
    h, w, y, shard, given = _problem("plain")
    call = functools.partial(crossent.linear_cross_entropy_stats, h, w, y, shard=shard, max_bytes=200, **given)
    usual, seen = torch.nn.functional.linear, []

    def fails(*arguments):
        seen.append(None)
        if len(seen) == at + 1 and dist.get_rank() == CULPRIT:
            raise LostError("nothing left")
        return usual(*arguments)

    with mock.patch.object(torch.nn.functional, "linear", fails):
        answer = _answer(call)
    return answer, call().loss.sum().item()


@pytest.mark.parametrize("at", [0, 1])
def test_what_fails_in_the_statistics_of_a_head(ranks, at):
    assert_told(ranks(statistics_of_head, at))


def of_dtensors(loss, reduction, forward):
    """Fail in the part of one process, of rows that are spread over all of them."""
    mesh = init_device_mesh("cpu", (3,))
    h, w, y, _, _ = _problem("plain")
    w = torch.randn(C, D, generator=torch.Generator().manual_seed(4))
    logits, hidden, labels = (distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) for t in (h @ w.t(), h, y))
    matrix = distribute_tensor(w, mesh, [Replicate()], src_data_rank=None)
    arguments = (hidden, matrix, labels) if "linear" in loss else (logits, labels)
    call = functools.partial(getattr(crossent, loss), *arguments, reduction=reduction, impl="eager")
    usual = getattr(formulas.IMPLEMENTATION, forward)

    def fails(*given, **named):
        if dist.get_rank() == CULPRIT:
            raise LostError("nothing left")
        return usual(*given, **named)

    with mock.patch.object(formulas.IMPLEMENTATION, forward, fails):
        answer = _answer(call)
    result = call()
    result = result[0] if isinstance(result, tuple) else result
    assert isinstance(result, DTensor)
    return answer, result.full_tensor().item()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("loss", "forward"),
    [
        ("cross_entropy", "cross_entropy_forward"),
        ("cross_entropy_stats", "statistics"),
        ("linear_cross_entropy", "cross_entropy_forward"),
    ],
)
def test_what_fails_in_a_process_with_rows_of_its_own(ranks, loss, forward, reduction):
    assert_told(ranks(of_dtensors, loss, reduction, forward))
