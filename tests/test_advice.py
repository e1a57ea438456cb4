"""Every advice in an error is followed to the letter here, and must give the right number wherever the error can arise."""

import re
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.core.messages import layout_fix

LONG = {"dtype": torch.long}
GENERATOR = torch.Generator().manual_seed(5)
CALL = re.compile(r"(target|weight|pos_weight|mask|linear_weight|logit_bias)((?:\.\w+\([^()]*\))+)")


def refusal(call, *args, **kwargs):
    """Return the message of a call that is refused."""
    with pytest.raises((ValueError, RuntimeError, IndexError, TypeError, NotImplementedError)) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def advised(message, name, value):
    """Evaluate what a message says to do with an argument, each way it names."""
    return [eval(f"value{methods}", {"value": value}) for said, methods in CALL.findall(message) if said == name]


# --- shapes -----------------------------------------------------------------------------------------------------------


def rearranged(right):
    """All ways in which the dimensions of a tensor may lie, with a dimension of size 1 somewhere."""
    for order in permutations(range(right.dim())):
        permuted = right.permute(order)
        yield permuted
        for axis in range(right.dim() + 1):
            yield permuted.unsqueeze(axis)


@pytest.mark.parametrize(
    "shape", [(4, 3), (2, 3, 4), (2, 4, 4), (1, 6, 4), (8, 1), (3, 1, 5), (2, 2, 3), (6,), (2, 3, 4, 5)]
)
def test_a_tensor_is_laid_out_right_or_left_to_its_owner(shape):
    """Sizes that occur twice are left out of what can be known: they can change places without a trace."""
    right = torch.arange(np.prod(shape)).reshape(shape)
    distinct = len({size for size in shape if size != 1}) == len([size for size in shape if size != 1])
    for given in rearranged(right):
        fix = layout_fix("target", given.shape, shape)
        if fix is None:
            assert not distinct
            continue
        (result,) = advised(fix, "target", given)
        assert result.shape == shape
        if distinct:
            assert torch.equal(result, right), (given.shape, shape, fix)


@pytest.mark.parametrize("shape", [(2, 3, 4), (4, 6), (2, 12), (24,), (2, 2, 6)])
@pytest.mark.parametrize("given", [(24,), (6, 4), (2, 3, 4), (8, 3), (3, 8), (12, 2), (2, 12), (4, 3, 2), (2, 6, 2)])
def test_a_reshape_joins_or_splits_neighbours_and_nothing_else(given, shape):
    fix = layout_fix("target", given, shape)
    if fix and "reshape" in fix and "permute" not in fix:
        long, short = max(given, shape, key=len), min(given, shape, key=len)
        inner = {int(np.prod(long[:k])) for k in range(1, len(long) + 1)}
        assert all(int(np.prod(short[:k])) in inner for k in range(1, len(short) + 1))
        assert given == shape or "if the numbers lie in this order" in fix


SOFTMAX = {
    "cross_entropy": crossent.cross_entropy,
    "module": lambda x, y: crossent.CrossEntropyLoss()(x, y),
    "stats": lambda x, y: crossent.cross_entropy_stats(x, y, reduction="mean").loss,
    "focal": lambda x, y: crossent.focal_loss(x, y, 0.0),
    "distillation": lambda x, y: crossent.distillation_loss(x, x, 1.0, y, alpha=0.0),
}


@pytest.mark.parametrize("rows", [(5, 3), (3, 4, 6), (6, 1, 4), (4, 1, 1)])
@pytest.mark.parametrize("loss", SOFTMAX)
def test_labels_in_another_order(loss, rows):
    x = torch.randn(rows[0], 7, *rows[1:], generator=GENERATOR)
    right = torch.randint(7, rows, generator=GENERATOR)
    expected = F.cross_entropy(x, right)
    for given in rearranged(right):
        if given.shape == right.shape:
            continue
        message = refusal(SOFTMAX[loss], x, given)
        (target,) = advised(message, "target", given)
        torch.testing.assert_close(SOFTMAX[loss](x, target), expected)


@pytest.mark.parametrize("rows", [(5, 3), (3, 4, 6)])
def test_labels_of_a_head_in_another_order(rows):
    h, W = torch.randn(*rows, 8, generator=GENERATOR), torch.randn(7, 8, generator=GENERATOR)
    right = torch.randint(7, rows, generator=GENERATOR)
    expected = F.cross_entropy((h @ W.T).movedim(-1, 1), right)
    for given in rearranged(right):
        if given.shape != right.shape:
            message = refusal(crossent.linear_cross_entropy, h, W, given)
            (target,) = advised(message, "target", given)
            torch.testing.assert_close(crossent.linear_cross_entropy(h, W, target), expected)
            assert refusal(crossent.linear_cross_entropy_stats, h, W, given) == message


def test_time_before_batch():
    """Logits (T, N, C) with labels (N, T), and the classes last: first the class axis, then the order."""
    x, right = torch.randn(5, 3, 7, generator=GENERATOR), torch.randint(7, (5, 3), generator=GENERATOR)
    assert "pass dim=-1" in refusal(crossent.cross_entropy, x, right)
    message = refusal(crossent.cross_entropy, x, right.T, dim=-1)
    (target,) = advised(message, "target", right.T)
    torch.testing.assert_close(crossent.cross_entropy(x, target, dim=-1), F.cross_entropy(x.movedim(-1, 1), right))


@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 4, 5), (6, 1), (3, 1, 4)])
@pytest.mark.parametrize("loss", [crossent.binary_cross_entropy_with_logits, crossent.sigmoid_focal_loss])
def test_binary_targets_in_another_order(loss, shape):
    x, right = torch.randn(shape, generator=GENERATOR), torch.rand(shape, generator=GENERATOR)
    expected = loss(x, right, reduction="mean")
    for given in rearranged(right):
        if given.shape == right.shape:
            continue
        message = refusal(loss, x, given)
        assert "input.reshape" not in message
        (target,) = advised(message, "target", given)
        torch.testing.assert_close(loss(x, target, reduction="mean"), expected)
        for name in ("weight", "pos_weight"):
            said = (
                refusal(crossent.binary_cross_entropy_with_logits, x, right, **{name: given})
                if _refused(given, x)
                else ""
            )
            for value in advised(said, name, given):
                assert torch.equal(value.expand(shape), right)
        said = (
            refusal(crossent.binary_cross_entropy_with_logits, x, right, mask=given > 0.5) if _refused(given, x) else ""
        )
        for value in advised(said, "mask", given):
            assert torch.equal(value.expand(shape), right)


def _refused(value, logits):
    aligned = zip(reversed(value.shape), reversed(logits.shape), strict=False)
    return value.dim() > logits.dim() or not all(a in (1, b) for a, b in aligned)


@pytest.mark.parametrize(("given", "shape"), [((4, 4, 2), (2, 4, 4)), ((4, 6), (6, 4, 1)), ((12, 2), (3, 8))])
def test_what_cannot_be_known_is_not_advised(given, shape):
    """Equal sizes may have changed places: no reshape is named for them, by anyone."""
    if sorted(s for s in given if s > 1) == sorted(s for s in shape if s > 1) and len(set(given)) == len(given):
        return
    x = torch.zeros(shape[0], 5, *shape[1:])
    for call, args in (
        (crossent.cross_entropy, (x, torch.zeros(given, **LONG))),
        (crossent.binary_cross_entropy_with_logits, (torch.zeros(shape), torch.zeros(given))),
    ):
        message = refusal(call, *args)
        assert not CALL.search(message), message
    findings = crossent.check(np.zeros(shape) + 0.1, np.zeros(given), task="multilabel")
    assert not any(CALL.search(str(f.fix)) for f in findings)


@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 4, 5)])
def test_check_says_the_same(shape):
    """The tool reads files: what it names as a fix is followed as well, and it reckons with nothing that is scrambled."""
    x = torch.randn(shape, generator=GENERATOR)
    right = (torch.rand(shape, generator=GENERATOR) > 0.5).float()
    for given in rearranged(right):
        if given.shape == right.shape:
            continue
        fixes = [f.fix for f in crossent.check(x.numpy(), given.numpy(), task="multilabel") if "shape" in f.seen]
        results = [value for fix in fixes for value in advised(fix or "", "target", given)]
        assert results
        assert all(torch.equal(value, right) for value in results)


def test_a_weight_a_class_lies_along_the_dimension_that_is_named():
    """With as many rows as classes the size does not tell: each dimension that fits is named with its own way."""
    x, t = torch.randn(3, 3, 4, 5, generator=GENERATOR), torch.rand(3, 3, 4, 5, generator=GENERATOR)
    c = torch.tensor([1.0, 2.0, 3.0])
    message = refusal(crossent.binary_cross_entropy_with_logits, x, t, pos_weight=c)
    ways = dict(re.findall(r"along dimension (\d) with (pos_weight\.reshape\([^)]*\))", message))
    assert set(ways) == {"0", "1"}
    for axis, way in ways.items():
        (value,) = advised(way, "pos_weight", c)
        ours = crossent.binary_cross_entropy_with_logits(x, t, pos_weight=value)
        torch.testing.assert_close(ours, crossent.binary_cross_entropy_with_logits(x, t, pos_weight=c, dim=int(axis)))


def test_a_mask_a_row():
    x, t = torch.randn(4, 3, generator=GENERATOR), torch.rand(4, 3, generator=GENERATOR)
    mask = torch.tensor([True, False, True, True])
    message = refusal(crossent.binary_cross_entropy_with_logits, x, t, mask=mask)
    (value,) = advised(message, "mask", mask)
    expected = F.binary_cross_entropy_with_logits(x[mask], t[mask])
    torch.testing.assert_close(crossent.binary_cross_entropy_with_logits(x, t, mask=value), expected)


# --- labels -----------------------------------------------------------------------------------------------------------


def passed(message):
    """Read the ``ignore_index`` that a message says to pass."""
    return [int(value) for value in re.findall(r"pass ignore_index=(-?\d+)", message)]


@pytest.mark.parametrize("ignore_index", [-100, 0, 2, 255, -1])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int16])
def test_labels_that_start_at_one(ignore_index, ignored, dtype):
    if (dtype == torch.uint8 and ignored and ignore_index < 0) or ignore_index == 2:
        return  # such a label cannot be, or is a class
    x = torch.randn(6, 5, generator=GENERATOR)
    y = torch.tensor([1, 5, 3, 4, 2, 5])
    kept = torch.ones(6, dtype=torch.bool)
    if ignored:
        y[2], kept[2] = ignore_index, False
    expected = F.cross_entropy(x[kept], y[kept] - 1)
    message = refusal(crossent.cross_entropy, x, y.to(dtype), ignore_index=ignore_index)
    assert "if labels start at 1, subtract 1" in message
    index = passed(message) or [ignore_index]
    torch.testing.assert_close(crossent.cross_entropy(x, y.to(dtype).long() - 1, ignore_index=index[0]), expected)


def test_labels_that_start_at_zero_are_not_told_to_lose_one():
    message = refusal(crossent.cross_entropy, torch.zeros(4, 3), torch.tensor([0, 3, 1, 2]))
    assert "subtract" not in message
    assert "one more logit" in message
    message = refusal(crossent.multilabel_cross_entropy, torch.zeros(2, 3), [[0, 3], [1]])
    assert "subtract" not in message
    assert "leave out" not in message
    assert "subtract 1" in refusal(crossent.multilabel_cross_entropy, torch.zeros(2, 3), [[1, 3], [2]])
    assert "leave out" in refusal(crossent.multilabel_cross_entropy, torch.zeros(2, 3), [[1, -1], [2]])


@pytest.mark.parametrize("ignore_index", [-100, 0, 2, -1])
@pytest.mark.parametrize("void", [255, -1, -100])
@pytest.mark.parametrize("occurs", [False, True])
def test_rows_to_be_left_out(ignore_index, void, occurs):
    """An index that is ignored already goes on being ignored, and no class is un-ignored."""
    if ignore_index == void:
        return
    x, y = torch.randn(6, 5, generator=GENERATOR), torch.tensor([0, void, 1, 4, 3, 3])
    if occurs:
        y[2] = ignore_index
    kept = (y != void) & (y != ignore_index)
    expected = F.cross_entropy(x[kept], y[kept])
    message = refusal(crossent.cross_entropy, x, y, ignore_index=ignore_index)
    for index in passed(message):
        torch.testing.assert_close(crossent.cross_entropy(x, y, ignore_index=index), expected)
    filled = re.findall(r"target\.long\(\)\.masked_fill\(target == (-?\d+), (-?\d+)\)", message)
    for old, new in filled:
        target = y.long().masked_fill(y == int(old), int(new))
        torch.testing.assert_close(crossent.cross_entropy(x, target, ignore_index=ignore_index), expected)
    assert bool(filled) != bool(passed(message))


@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 5), None), ((4, 5), 0), ((4, 5), -1), ((4, 5, 3), None), ((4, 5, 3), -1), ((5,), None)]
)
def test_one_hot_integers(shape, dim):
    x = torch.randn(shape, generator=GENERATOR)
    axis = (min(len(shape) - 1, 1)) if dim is None else dim % len(shape)
    rows = shape[:axis] + shape[axis + 1 :]
    y = torch.randint(shape[axis], rows, generator=GENERATOR)
    hot = F.one_hot(y, shape[axis]).movedim(-1, axis)
    expected = crossent.cross_entropy(x, y, dim=dim)
    message = refusal(crossent.cross_entropy, x, hot, dim=dim)
    results = advised(message, "target", hot)
    assert len(results) == 2
    for target in results:
        torch.testing.assert_close(crossent.cross_entropy(x, target, dim=dim), expected)
    assert "for a yes or no to each logit use binary_cross_entropy_with_logits" in message


def test_advice_that_holds_under_a_condition_names_it():
    x, y, t = torch.zeros(4, 3), torch.zeros(4, **LONG), torch.full((4, 3), 0.5)
    assert "whole numbers" in refusal(crossent.cross_entropy, x, torch.full((4,), 0.7))
    assert "zeros and ones" in refusal(crossent.binary_cross_entropy_with_logits, x, torch.full((4, 3), 255))
    for mask in (torch.ones(3), torch.ones(3, **LONG)):
        message = refusal(crossent.cross_entropy, x, y, class_mask=mask)
        assert "if 1 stands for allowed" in message
        assert "if it is to be added" in message
    assert "class_mask" in refusal(crossent.cross_entropy, x, y, logit_bias=torch.ones(3, dtype=torch.bool))
    assert ".float()" not in refusal(crossent.cross_entropy, x, y, logit_bias=torch.ones(3, dtype=torch.bool))
    assert "if 1 stands for those" in refusal(crossent.binary_cross_entropy_with_logits, x, t, mask=torch.ones(4, 3))
    assert "divides by the number of rows" in refusal(crossent.cross_entropy, x, y, torch.ones(3, requires_grad=True))
    learned = torch.tensor(2.0, requires_grad=True)
    assert "without softcap, logit_bias and margin" in refusal(crossent.cross_entropy, x, y, temperature=learned)
    assert ".float()" not in refusal(crossent.cross_entropy, x.to(torch.complex64), y)


def test_weights_are_converted_to_what_holds_them():
    """A count of 100,000 is infinite in float16."""
    x, y, counts = (
        torch.randn(4, 3, generator=GENERATOR).half(),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([1, 7, 100_000]),
    )
    message = refusal(crossent.cross_entropy, x, y, counts)
    (dtype,) = re.findall(r"weight\.to\((torch\.\w+)\)", message)
    loss = crossent.cross_entropy(x, y, counts.to(getattr(torch, dtype.removeprefix("torch."))))
    torch.testing.assert_close(loss, F.cross_entropy(x.float(), y, counts.float()).half())


def test_batchmean():
    x, y = torch.randn(4, 3, 2, generator=GENERATOR), torch.randint(3, (4, 2), generator=GENERATOR)
    message = refusal(crossent.cross_entropy, x, y, reduction="batchmean")
    assert "pass 'mean' with denominator=len(input)" in message
    loss = crossent.cross_entropy(x, y, denominator=len(x))
    torch.testing.assert_close(loss, F.cross_entropy(x, y, reduction="sum") / len(x))


def test_an_unknown_penalty_is_not_replaced_by_another():
    assert "crossent.GCE()" in refusal(crossent.cross_entropy, torch.zeros(1, 2), torch.tensor([0]), penalty="gce")
    message = refusal(crossent.cross_entropy, torch.zeros(1, 2), torch.tensor([0]), penalty="hinge")
    assert "()" not in message
    assert "Focal, GCE" in message


def test_a_head_the_other_way_round():
    h, W = torch.randn(4, 8, generator=GENERATOR), torch.randn(7, 8, generator=GENERATOR)
    message = refusal(crossent.linear_cross_entropy, h, W.T.contiguous(), torch.zeros(4, **LONG))
    (value,) = advised(message, "linear_weight", W.T)
    assert torch.equal(value, W)
    assert ".t()" not in refusal(crossent.linear_cross_entropy, h, torch.zeros(8, 2, 3), torch.zeros(4, 2, **LONG))


def test_check_of_labels_one_and_two():
    x = np.linspace(-1, 1, 20)
    (finding,) = [f for f in crossent.check(x, np.array([1, 2] * 10), task="binary") if f.rule == "CE111"]
    assert "subtract 1" in finding.fix
    assert "Divide" not in finding.fix
    (finding,) = [f for f in crossent.check(x, np.array([0, 255] * 10), task="binary") if f.rule == "CE111"]
    assert "Masks of 0 and 255 only" in finding.fix
    assert "ignore_index=255" in finding.fix
