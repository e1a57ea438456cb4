"""Messages: each names the argument, the rule, what came, and the fix."""

import re

import pytest
import torch

import crossent

X, Y = torch.zeros(8, 5), torch.zeros(8, dtype=torch.long)
IMAGE = torch.zeros(2, 5, 4, 4)
LONG = {"dtype": torch.long}

SLIPS = [
    ("a column of labels", (X, Y[:, None]), {}, ["(8,)", "(8, 5)", "(8, 1)", "target.squeeze(1)"]),
    ("a channel on masks", (IMAGE, torch.zeros(2, 1, 4, 4, **LONG)), {}, ["(2, 4, 4)", "(2, 1, 4, 4)", "target.squeeze(1)"]),
    ("(N, T, C)", (torch.zeros(2, 7, 5), torch.zeros(2, 7, **LONG)), {}, ["(2, 7, 5)", "pass dim=-1"]),
    ("flat labels", (IMAGE, torch.zeros(32, **LONG)), {}, ["(2, 4, 4)", "(32,)", "target.reshape(2, 4, 4)"]),
    ("one-hot integers", (X, torch.zeros(8, 5, **LONG)), {}, ["torch.int64", "target.float()", "target.argmax(1)"]),
    ("one logit", (X[:, :1], Y[:, None]), {}, ["binary_cross_entropy_with_logits", "target.squeeze(1)"]),
    ("float labels", (X, Y.float()), {}, ["torch.float32", "target.long()"]),
    ("labels from one", (X, torch.arange(1, 9) % 5 + 1), {}, ["[0, 5)", "got 5 at target[3]", "labels start at 1"]),
    ("padding", (X, Y - 1), {}, ["got -1 at target[0] and 7 more", "ignore_index=-1"]),
    ("void pixels", (IMAGE, torch.full((2, 4, 4), 255)), {}, ["got 255 at target[0, 0, 0]", "ignore_index=255"]),
    ("labels beyond", (X, Y + 1000), {}, ["got 1000", "5 classes", "ignore_index=-100"]),
    ("another batch", (X, Y[:7]), {}, ["8 and 7 differ"]),
    ("one class for one row", (X[0], Y[:2]), {}, ["shape (C,)", "(N, C)"]),
    ("smoothing in percent", (X, Y), {"label_smoothing": 10}, ["label_smoothing", "[0, 1]", "10.0"]),
    ("weights of the rows", (X, Y, torch.ones(8)), {}, ["weight", "(5,)", "(8,)", "sample_weight"]),
    ("weights of another dtype", (X, Y, torch.ones(5).double()), {}, ["torch.float64", "weight.to(torch.float32)"]),
    ("learned weights", (X, Y, torch.ones(5, requires_grad=True)), {}, ["must not require grad", "weight.detach()"]),
    ("ignore soft", (X, X.softmax(1)), {"ignore_index": 3}, ["ignore_index", "got 3", "sample_weight"]),
    ("batchmean", (X, Y), {"reduction": "batchmean"}, ["'none', 'sum' or 'mean'", "'batchmean'", "denominator="]),
    ("sum over count", (X, Y), {"reduction": "sum", "denominator": 3}, ["reduction='mean'", "reduction='sum'", "drop one"]),
    ("counts", (X, Y), {"denominator": torch.ones(2)}, ["denominator", "0-d tensor", "(2,)"]),
    ("a list of counts", (X, Y), {"denominator": [1]}, ["denominator", "list"]),
    ("another word", (X, Y), {"empty": "none"}, ["'nan' or 'zero'", "'none'"]),
    ("another axis", (X, Y), {"dim": 2}, ["dim must lie in [-2, 2)", "got 2"]),
    ("row weights", (X, Y), {"sample_weight": torch.ones(7)}, ["sample_weight", "(8,)", "(7,)"]),
    ("integer logits", (Y[:, None].expand(8, 5), Y), {}, ["torch.int64", "swap", "input.float()"]),
    ("labels as a list", (X, [0] * 8), {}, ["target must be a torch.Tensor", "builtins.list"]),
    ("no such implementation", (X, Y), {"impl": "cuda"}, ["'eager', 'native', 'torch', 'triton'", "'cuda'"]),
    ("an integer result", (X, Y), {"out_dtype": torch.int64}, ["out_dtype", "torch.int64"]),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "said"), [s[1:] for s in SLIPS], ids=[s[0] for s in SLIPS])
def test_message(args, kwargs, said):
    with pytest.raises((ValueError, RuntimeError, IndexError, TypeError, NotImplementedError)) as caught:
        crossent.cross_entropy(*args, **kwargs)
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert len(message) < 320


BINARY_SLIPS = [
    ("a column of labels", (X[:, :1], torch.zeros(8)), {}, ["(8, 1)", "(8,)", "target.reshape(8, 1)"]),
    ("class indices", (X, torch.zeros(8)), {}, ["(8, 5)", "cross_entropy"]),
    ("integer labels", (X, torch.zeros(8, 5, **LONG)), {}, ["torch.int64", "target.float()"]),
    ("weights of channels", (IMAGE, IMAGE), {"pos_weight": torch.ones(5)}, ["pos_weight", "(5,)", "reshape(-1, 1, 1)"]),
    ("row weights", (X, X), {"sample_weight": torch.ones(5)}, ["leading dimensions", "(8, 5)", "(5,)"]),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "said"), [s[1:] for s in BINARY_SLIPS], ids=[s[0] for s in BINARY_SLIPS])
def test_binary_message(args, kwargs, said):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        crossent.binary_cross_entropy_with_logits(*args, **kwargs)
    message = str(caught.value)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(("name", "reason"), crossent.implementations().items())
def test_an_implementation_asked_for_is_obeyed_or_refused(name, reason):
    losses = (
        lambda: crossent.cross_entropy(X, Y, impl=name),
        lambda: crossent.binary_cross_entropy_with_logits(X, X, impl=name),
    )
    if reason is None:
        assert crossent.choose_implementation(X, name) == name
        for loss in losses:
            assert loss().isfinite()
        return
    for call in (*losses, lambda: crossent.choose_implementation(X, name)):
        with pytest.raises(RuntimeError, match=re.escape(reason)):
            call()


def test_out_of_range_is_told_whatever_the_settings():
    wrong = torch.tensor([0, 7, 1])
    for more in (
        {},
        {"label_smoothing": 0.1},
        {"reduction": "none"},
        {"weight": torch.ones(5)},
        {"sample_weight": torch.ones(3)},
    ):
        with pytest.raises(IndexError, match=r"got 7 at target\[1\]"):
            crossent.cross_entropy(X[:3], wrong, **more)
    compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="eager")
    with pytest.raises(IndexError, match=r"got 7 at target\[1\]"):
        compiled(X[:3], wrong)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_an_index_out_of_range_is_named_whatever_the_integer(dtype, reduction):
    with pytest.raises(IndexError, match=r"got 7 at target\[1\]"):
        crossent.cross_entropy(torch.zeros(2, 5), torch.tensor([0, 7]).to(dtype), reduction=reduction)
