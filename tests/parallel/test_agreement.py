"""What one process does wrong, or otherwise than the others, raises on all of them; nobody waits, and all of them go on."""

import functools
from unittest import mock

import pytest
import torch
from ranks import pool
from torch import distributed as dist

import crossent
from crossent import VocabShard
from crossent.impl import implementations, load

N, C, D = 6, 9, 4
CULPRIT = 1
LOSSES = ["cross_entropy", "cross_entropy_stats", "linear_cross_entropy", "linear_cross_entropy_stats"]

ranks = pool(3)


def _call(dtype=torch.float32, rows=N, **options):
    """Return the arguments of a call by name: inputs of this process, and labels of all."""
    generator = torch.Generator().manual_seed(3)
    return {
        "logits": torch.randn(N, C, generator=generator).to(dtype),
        "h": torch.randn(N, D, generator=generator).to(dtype),
        "w": torch.randn(C, D, generator=generator).to(dtype),
        "y": torch.randint(C, (N,), generator=generator),
        **options,
    }


def _run(loss, call, **more):
    """Call a loss with this process's classes; of a head, in blocks of a row."""
    given = dict(call)
    logits, h, w, y = (given.pop(name) for name in ("logits", "h", "w", "y"))
    shard = VocabShard.even(C, sequence_parallel=given.pop("sequence_parallel", False))
    here = slice(shard.start, shard.start + 3)
    if "linear" in loss:
        given.setdefault("max_bytes", 1)
        return getattr(crossent, loss)(h, w[here], y, shard=shard, **given, **more)
    given.pop("max_bytes", None)
    logits = logits[:, here] if isinstance(logits, torch.Tensor) else logits
    return getattr(crossent, loss)(logits, y, shard=shard, **given, **more)


def _some_rows(call, rows):
    return {**call, **{name: call[name][rows] for name in ("logits", "h", "y")}}


def _twice(call):
    return {**call, **{name: torch.cat([call[name]] * 2) for name in ("logits", "h", "y")}}


ANOTHER = {
    "fewer rows": ("rows", lambda call: _some_rows(call, slice(4))),
    "more rows": ("rows", _twice),
    "no rows": ("rows", lambda call: _some_rows(call, slice(0))),
    "another dtype": ("dtype", lambda call: {**call, **_call(torch.float64)}),
    "a lower precision": ("dtype", lambda call: {**call, **_call(torch.bfloat16)}),
    "probabilities": ("class indices", lambda call: {**call, "y": torch.ones(N, C)}),
    "other labels": ("same labels", lambda call: {**call, "y": call["y"].flip(0)}),
    "another reduction": ("reduction", lambda call: {**call, "reduction": "sum"}),
    "another denominator": ("reduction", lambda call: {**call, "reduction": "mean", "denominator": 3.0}),
    "sample weights": ("reduction", lambda call: {**call, "sample_weight": torch.ones(N)}),
    "smoothing": ("options", lambda call: {**call, "label_smoothing": 0.1}),
    "a penalty on all classes": (
        "options",
        lambda call: {**call, "penalty": crossent.Focal(2.0), "label_smoothing": 0.1},
    ),
    "class weights": ("options", lambda call: {**call, "weight": torch.ones(C)}),
    "another result's dtype": ("options", lambda call: {**call, "out_dtype": torch.float64}),
}
OF_HEADS = {
    "larger blocks": ("options", lambda call: {**call, "max_bytes": 1 << 20}),
    "frozen hidden states": ("options", lambda call: {**call, "h": call["h"].detach()}),
    "rows of its own": ("sequence_parallel", lambda call: {**call, "sequence_parallel": True}),
}


def _answer(call):
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, ""


def otherwise(loss, name, at_first):
    call = _call(**at_first)
    call["h"] = call["h"].requires_grad_()
    changed = {**ANOTHER, **OF_HEADS}[name][1](call)
    answer = _answer(lambda: _run(loss, changed if dist.get_rank() == CULPRIT else call))
    _run(loss, call)  # all go on together
    return answer


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [*ANOTHER, *OF_HEADS])
def test_what_is_not_alike_is_told_to_all(ranks, name, loss):
    if name in OF_HEADS and "linear" not in loss:
        return
    said = {**ANOTHER, **OF_HEADS}[name][0]
    errors = ranks(otherwise, loss, name, {})
    assert {kind for kind, _ in errors} == {ValueError}, errors
    assert len({message for _, message in errors}) == 1
    assert all(said in message and "each process" in message for _, message in errors), errors


def a_gradient_for_one(loss, wanted, dtype):
    """Let one process want a gradient, for which the others would not take part in a collective."""
    call = _call(dtype)
    if wanted == "y":
        call["y"] = torch.ones(N, C // 3, dtype=dtype) / C
    mine = {**call, wanted: call[wanted].clone().requires_grad_()} if dist.get_rank() == CULPRIT else call
    answer = _answer(lambda: _run(loss, mine))
    _run(loss, call)
    return answer


@pytest.mark.parametrize("loss", LOSSES[2:])
@pytest.mark.parametrize(
    ("wanted", "dtype"), [("w", torch.float32), ("w", torch.float16), ("y", torch.float32)], ids=str
)
def test_a_gradient_that_one_process_wants_is_told_to_all(ranks, wanted, dtype, loss):
    errors = ranks(a_gradient_for_one, loss, wanted, dtype)
    assert {kind for kind, _ in errors} == {ValueError}, errors
    assert all("options" in message and "gradient" in message and "each process" in message for _, message in errors), (
        errors
    )


def other_implementations(sequence_parallel):
    call = _call(max_bytes=400, sequence_parallel=sequence_parallel)
    answer = _answer(
        lambda: _run("linear_cross_entropy", {**call, "impl": "eager" if dist.get_rank() == CULPRIT else "native"})
    )
    return answer, _run("linear_cross_entropy", call).item()


@pytest.mark.skipif(implementations()["native"] is not None, reason="there are no kernels")
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_implementations_that_cut_other_blocks_are_refused(ranks, sequence_parallel):
    for (kind, message), _ in ranks(other_implementations, sequence_parallel):
        assert kind is ValueError, message
        assert "name one with impl" in message


def test_a_loss_is_not_its_statistics(ranks):
    for kind, message in ranks(another_loss):
        assert kind is ValueError
        assert "the same loss" in message


def another_loss():
    loss = "cross_entropy_stats" if dist.get_rank() == CULPRIT else "cross_entropy"
    return _answer(lambda: _run(loss, _call()))


WRONG = {
    "no tensor": (TypeError, {"logits": [[1.0]], "h": [[1.0]]}),
    "no dtype for logits": (RuntimeError, {"logits": torch.zeros(N, C).long(), "h": torch.zeros(N, D).long()}),
    "a label out of range": (IndexError, {"y": torch.tensor([0, 1, 2, 3, 4, C])}),
    "a label less than 0": (IndexError, {"y": torch.tensor([0, 1, 2, 3, 4, -1])}),
    "too few labels": (ValueError, {"y": torch.zeros(N - 1, dtype=torch.long)}),
    "weights of another size": (RuntimeError, {"weight": torch.ones(C + 1)}),
    "a mask of another size": (RuntimeError, {"class_mask": torch.ones(C + 2, dtype=torch.bool)}),
    "no reduction": (ValueError, {"reduction": "men"}),
    "no such option": (TypeError, {"smoothing": 0.1}),
}


def mistaken(loss, name, at_first):
    call = _call(**at_first)
    mine = {**call, **WRONG[name][1]} if dist.get_rank() == CULPRIT else call
    answer = _answer(lambda: _run(loss, mine))
    _run(loss, call)
    return answer


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [name for name in WRONG if name != "no such option"])
def test_a_mistake_raises_on_all(ranks, name, loss):
    # With a mask and smoothing the processes tell each other more, which must wait until all is well.
    for at_first in ({}, {"class_mask": torch.arange(C) != 4, "label_smoothing": 0.1}):
        errors = ranks(mistaken, loss, name, at_first)
        assert all(kind is not None and issubclass(kind, WRONG[name][0]) for kind, _ in errors), errors
        assert all(f"process {CULPRIT} of the group" in errors[rank][1] for rank in (0, 2)), errors


class LostError(Exception):
    """An error that only one process knows how to make."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def _breaking(at):
    """Let the ``at``-th look at rows fail on one process."""
    compute, seen = load("eager"), []
    usual = compute.partials

    def partials(logits, target):
        seen.append(None)
        if len(seen) == at + 1:
            raise LostError("nothing", "left")
        return usual(logits, target)

    return mock.patch.object(compute, "partials", partials if dist.get_rank() == CULPRIT else usual)


def broken(loss, at, sequence_parallel, reduction):
    call = _call(impl="eager", sequence_parallel=sequence_parallel, reduction=reduction)
    call["h"] = call["h"].requires_grad_()
    with _breaking(at):
        kind, message = _answer(lambda: _run(loss, call))
    _run(loss, call)
    return kind.__name__, message


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_an_exception_inside_a_block_raises_on_all(ranks, at, sequence_parallel, reduction):
    errors = ranks(broken, "linear_cross_entropy", at, sequence_parallel, reduction)
    assert [kind for kind, _ in errors] == ["Exception", "LostError", "Exception"], errors
    assert all(f"process {CULPRIT} of the group: nothing left" in errors[rank][1] for rank in (0, 2)), errors


def badly_encoded():
    """Fail with an error that takes more than a message to make."""
    call, compute = _call(impl="eager"), load("eager")
    usual = compute.partials

    def partials(logits, target):
        return usual(logits, target) if dist.get_rank() != CULPRIT else b"\xff".decode()

    with mock.patch.object(compute, "partials", partials):
        answer = _answer(lambda: _run("cross_entropy", call))
    _run("cross_entropy", call)
    return answer


def test_an_error_that_no_message_makes_raises_as_one_that_is_like_it(ranks):
    errors = ranks(badly_encoded)
    assert [kind for kind, _ in errors] == [UnicodeError, UnicodeDecodeError, UnicodeError], errors
    assert all("invalid start byte" in message for _, message in errors), errors


def test_an_exception_inside_a_loss_raises_on_all(ranks):
    errors = ranks(broken, "cross_entropy", 0, False, "mean")
    assert all("nothing left" in message for _, message in errors), errors


def nothing(loss, sequence_parallel):
    call = _some_rows(_call(sequence_parallel=sequence_parallel, reduction="sum"), slice(0))
    call["h"].requires_grad_()
    result = _run(loss, call)
    if "stats" in loss:
        assert result.count.item() == 0
        return result.loss.item()
    if "linear" in loss:
        result.backward()
        assert call["h"].grad.shape == (0, D)
    return result.item()


def test_no_rows_anywhere(ranks):
    for loss in LOSSES:
        assert ranks(nothing, loss, False) == [0.0] * 3
    for loss in LOSSES[2:]:
        assert ranks(nothing, loss, True) == [0.0] * 3


def all_ignored(reduction):
    """Processes whose rows do not count take part in the blocks of the others."""
    generator = torch.Generator().manual_seed(4)
    h = torch.randn(3 * N, D, generator=generator, dtype=torch.float64)
    w = torch.randn(C, D, generator=generator, dtype=torch.float64)
    y = torch.randint(C, (3 * N,), generator=generator)
    y[:N], y[2 * N + 1] = -100, -100
    rank, shard = dist.get_rank(), VocabShard.even(C, sequence_parallel=True)
    mine, here = slice(rank * N, rank * N + N), slice(shard.start, shard.start + 3)
    whole, own = (h.clone().requires_grad_(), w.clone().requires_grad_()), (h[mine].clone(), w[here].clone())
    own = [t.requires_grad_() for t in own]
    wanted = crossent.linear_cross_entropy(whole[0], whole[1], y, reduction=reduction)
    loss = crossent.linear_cross_entropy(*own, y[mine], shard=shard, max_bytes=200, reduction=reduction)
    wanted.sum().backward(), loss.sum().backward()
    torch.testing.assert_close(loss, wanted if reduction != "none" else wanted[mine], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(own[0].grad, whole[0].grad[mine], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(own[1].grad, whole[1].grad[here], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_process_whose_rows_do_not_count(ranks, reduction):
    ranks.assert_holds(all_ignored, reduction)


def _collectives(call):
    """Count the collectives of a call on which nothing looks, as a mode of torch would: the group numbers them."""
    before = dist.group.WORLD._get_sequence_number_for_group()
    call()
    return dist.group.WORLD._get_sequence_number_for_group() - before


def _many(rows, **options):
    generator = torch.Generator().manual_seed(dist.get_rank())
    logits = torch.randn(rows, 3, generator=generator)
    y = torch.arange(rows) % C
    return lambda: crossent.cross_entropy(logits, y, shard=VocabShard.even(C), **options)


SIZES = (6, 1000, 1000, 600, 1000, 100, 1000, 1000)


def traffic_of_sizes():
    _many(6)()
    return [_collectives(_many(rows)) for rows in SIZES]


def test_a_size_that_was_told_before_takes_one_gather(ranks):
    """A call of 1000 rows is longer than what few rows have left room for; one of 100 takes the room away again."""
    assert ranks(traffic_of_sizes) == [[1, 2, 1, 1, 1, 1, 2, 1]] * 3


def alone_after(sizes, changed, options):
    """Call with rows in these numbers, and then with others on one process, or with other options."""
    _many(6)()
    for rows in sizes:
        _many(rows)()
    mine = _many(changed, **options) if dist.get_rank() == CULPRIT else _many(sizes[-1])
    answer = _answer(mine)
    return answer, [_collectives(_many(rows)) for rows in sizes[-1:]], _many(40)().item()


@pytest.mark.parametrize("sizes", [(1000,), (1000, 6), (200_000,), (200_000, 1000)])
@pytest.mark.parametrize("changed", [5, 170, 3000, 250_000])
def test_who_changes_the_rows_alone_is_noticed_whatever_came_before(ranks, sizes, changed):
    """Room for rows is what all processes have heard of, so that no process sends more or less than the others wait for."""
    for answer, gathers, loss in (told := ranks(alone_after, sizes, changed, {})):
        assert answer[0] is ValueError, answer
        assert "as many rows" in answer[1]
        assert gathers == told[0][1]
        assert loss == told[0][2]


def test_who_changes_an_option_alone_is_noticed_after_many_calls(ranks):
    for answer, gathers, _ in ranks(alone_after, (1000,) * 3, 1000, {"label_smoothing": 0.1}):
        assert answer[0] is ValueError, answer
        assert "the options must be the same" in answer[1]
        assert gathers == [1]
    for rank, (answer, gathers, _) in enumerate(ranks(alone_after, (1000,) * 3, 1000, {"reduction": "men"})):
        assert answer[0] is ValueError, answer
        assert ("process 1 of the group" in answer[1]) == (rank != CULPRIT)
        assert gathers == [1]


def other_groups():
    """Groups have rooms of their own: one of two processes knows nothing of what all three have told."""
    pair = dist.new_group([0, 1])
    _many(6)()
    _many(1000)()
    counts = []
    if dist.get_rank() < 2:
        shard = VocabShard(pair, 3 * dist.get_rank(), 6)
        for _ in range(2):
            before = pair._get_sequence_number_for_group()
            crossent.cross_entropy(torch.randn(1000, 3), torch.arange(1000) % 6, shard=shard)
            counts.append(pair._get_sequence_number_for_group() - before)
    return counts, _collectives(_many(1000))


def test_groups_have_rooms_of_their_own(ranks):
    assert ranks(other_groups) == [([2, 1], 1), ([2, 1], 1), ([], 1)]


def traffic_of_losses():
    """Count what forward and backward of each loss tell, at the second call."""
    counts = {}
    for loss in LOSSES:
        for masked in (False, True):
            options = {"class_mask": torch.arange(C) != 4, "label_smoothing": 0.1} if masked else {}
            call, results = _call(reduction="mean", **options), []
            call["h" if "linear" in loss else "logits"].requires_grad_()
            run = functools.partial(_run, loss, call)
            run()
            forward = _collectives(lambda run=run, results=results: results.append(run()))
            total = results[0].loss if "stats" in loss else results[0]
            counts[loss, masked] = forward, _collectives(total.backward)
    return counts


def test_what_a_loss_tells_when_nothing_looks_on(ranks):
    for counts in ranks(traffic_of_losses):
        for (loss, masked), (forward, backward) in counts.items():
            blocks = N if "linear" in loss else 1
            reduced = loss == "linear_cross_entropy"  # the gradient of the hidden states, with the loss
            assert forward == blocks + masked + reduced, (loss, forward)
            if "stats" not in loss:
                assert backward == 0, loss
