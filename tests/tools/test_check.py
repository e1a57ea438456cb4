"""Every rule of ``crossent.check``: what torch does without a warning, that the rule sees it, and a near miss that it leaves."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from functools import wraps

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import crossent
from crossent import reference
from crossent.tools.check.findings import REMARK, SEVERITIES, Findings
from crossent.tools.check.rules import LOSS_RULES, RULE_DESCRIPTIONS, VALUE_RULES


@wraps(crossent.check)
def check(*args, **options):
    """Look for everything but CE127: random logits cost more than ln C, as it rightly says. It has its own tests."""
    return Findings(finding for finding in crossent.check(*args, **options) if finding.rule != "CE127")


INF, NAN = float("inf"), float("nan")


def rules(findings):
    return [finding.rule for finding in findings]


def normal(*shape, scale=2.0, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * scale


def labels(n, classes, seed=1):
    return np.random.default_rng(seed).integers(0, classes, n)


def learned(n, classes, margin=3.0, wrong=0.1, seed=2):
    """Logits as a trained model gives them: the true class in front, with some mistakes, at different scales."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    at = np.where(random.random(n) < wrong, random.integers(0, classes, n), y)
    x = random.normal(size=(n, classes)) * random.uniform(0.5, 2, size=(n, 1)) - 2
    x[np.arange(n), at] += margin * random.uniform(0.3, 2, size=n)
    return x, y


# --- squashed before the loss -----------------------------------------------------------------------------------------


def test_softmax_before_the_loss():
    x, y = learned(300, 10, margin=40, wrong=0)
    p = torch.tensor(x).softmax(1)
    # however right the model is, torch's loss of probabilities stays above the floor
    assert F.cross_entropy(p, torch.tensor(y)).item() == pytest.approx(1.4612, abs=1e-4)
    (finding,) = check(p, y)
    assert (finding.rule, finding.severity) == ("CE101", "error")
    assert "all 300 rows" in finding.seen
    assert "can never be less than 1.4612" in finding.seen
    assert "before the softmax" in finding.fix


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_softmax_is_seen_in_every_dtype(classes, dtype):
    x, y = learned(64, classes)
    assert "CE101" in rules(check(torch.tensor(x).softmax(1).to(dtype), y, loss_dtype="float32"))


def test_rounded_probabilities_are_seen():
    x, y = learned(50, 10)
    assert rules(check(reference.softmax(x).round(3), y)) == ["CE101"]


def test_probabilities_that_do_not_sum_to_1_are_no_softmax():
    x, y = learned(300, 10)
    p = reference.softmax(x)
    assert "CE101" not in rules(check(2 * p, y))
    p[17] *= 0.9  # one row is enough to doubt
    assert "CE101" not in rules(check(p, y))


def test_log_softmax_is_harmless_and_said_to_be():
    x, y = learned(100, 7)
    x, y = torch.tensor(x), torch.tensor(y)
    assert F.cross_entropy(x.log_softmax(1), y).item() == pytest.approx(F.cross_entropy(x, y).item(), abs=1e-12)
    (finding,) = check(x.log_softmax(1), y)
    assert (finding.rule, finding.severity) == ("CE102", "note")
    assert "Harmless" in finding.why


def test_logits_below_0_are_no_log_softmax():
    x, y = learned(100, 7)
    assert check(-np.abs(x), y) == []


def test_sigmoid_before_the_binary_loss():
    x = normal(200, 3, scale=5)
    t = (x > 0).astype(float)
    p = torch.tensor(x).sigmoid()
    # a perfect model still pays ln 2 for every no
    right = F.binary_cross_entropy_with_logits(torch.tensor(t), torch.tensor(t))
    assert right.item() == pytest.approx(t.mean() * 0.3133 + (1 - t.mean()) * 0.6931, abs=1e-4)
    (finding,) = check(p, t, task="binary")
    assert (finding.rule, finding.severity) == ("CE110", "warning")


def test_small_logits_of_an_untrained_model_are_no_sigmoid():
    x = 0.4 + 0.1 * normal(64, 1, scale=1)  # one column, all in [0, 1] by its bias
    assert x.min() > 0
    assert x.max() < 1
    assert check(x, np.arange(64)[:, None] % 2.0, task="binary") == []


def test_sigmoid_before_a_softmax():
    x, y = learned(200, 12)
    (finding,) = check(reference.sigmoid(3 * x), y)
    assert finding.rule == "CE110"
    assert f"{reference.double_softmax_floor(12):.4f}" in finding.why
    assert check(3 * reference.sigmoid(3 * x), y) == []
    (finding,) = check(np.minimum(np.maximum(x, 0) / 10, 0.8), y)
    assert "ReLU" in finding.fix


# --- the class axis ---------------------------------------------------------------------------------------------------


def square():
    """A trained language model with as many classes as positions."""
    x, y = learned(8 * 7, 7, margin=6)
    return x.reshape(8, 7, 7), y.reshape(8, 7)


def test_classes_on_the_last_axis_where_torch_cannot_notice():
    x, y = square()
    x, y = torch.tensor(x), torch.tensor(y)
    wrong, right = F.cross_entropy(x, y).item(), F.cross_entropy(x.movedim(-1, 1), y).item()
    assert right < 1 < wrong  # and torch said nothing
    (finding,) = check(x, y)
    assert (finding.rule, finding.severity) == ("CE103", "error")
    assert f"{wrong:.4f}" in finding.seen
    assert f"{right:.4f}" in finding.seen


def test_classes_on_axis_1_are_right():
    x, y = square()
    assert check(np.moveaxis(x, -1, 1), y) == []
    assert check(x, y, dim=-1) == []
    assert check(x, y, task="lm") == []


def test_classes_on_the_last_axis_where_torch_raises():
    x, y = learned(40, 5)
    x, y = x.reshape(8, 5, 5)[:, :3], y.reshape(8, 5)[:, :3]
    with pytest.raises(RuntimeError, match="Expected target size"):
        F.cross_entropy(torch.tensor(x), torch.tensor(y))
    (finding,) = check(x, y)
    assert finding.rule == "CE103"
    assert "movedim(-1, 1)" in finding.fix


def test_one_logit_a_row():
    x = normal(8, 1)
    assert F.cross_entropy(torch.tensor(x), torch.zeros(8, dtype=torch.long)).item() == 0
    assert F.cross_entropy(torch.tensor(x), torch.ones(8, 1, dtype=torch.double)).item() == 0
    assert rules(check(x, np.zeros(8, int))) == ["CE104"]
    assert "CE104" in rules(check(x, np.ones((8, 1))))
    many = check(normal(40, 1), np.arange(40) % 2)  # labels of a yes or no: not also "no class", nor "stays at ln 1"
    assert rules(many) == ["CE104"]
    assert check(x, np.zeros((8, 1)), task="binary") == []
    assert check(normal(8, 2), np.zeros(8, int)) == []


# --- targets ----------------------------------------------------------------------------------------------------------


def test_soft_targets_that_are_no_probabilities():
    x = normal(6, 4)
    t = reference.softmax(normal(6, 4, seed=3))
    t[2] = [-3.0, 2.0, 1.0, 1.0]
    t[4] *= 2
    assert np.isfinite(F.cross_entropy(torch.tensor(x), torch.tensor(t)).item())
    assert F.cross_entropy(torch.tensor([[9.0, 0.0]]), torch.tensor([[2.0, -1.0]])).item() < -8  # rewarded without end
    error, warning = check(x, t)
    assert (error.rule, error.severity, warning.severity) == ("CE105", "error", "warning")
    assert "row 2: -3, 2, 1, 1" in error.seen
    assert "row 4" in warning.seen


def test_soft_targets_that_are_probabilities():
    t = reference.softmax(normal(6, 4, seed=3))
    assert check(normal(6, 4), t) == []
    assert check(normal(6, 4), t.astype(np.float16)) == []


def test_several_labels_a_row_are_told_to_be_divided():
    t = np.tile([1.0, 1.0, 0.0, 0.0], (5, 1))
    x = torch.tensor(normal(5, 4), requires_grad=True)
    (grad,) = torch.autograd.grad(F.cross_entropy(x, torch.tensor(t), reduction="sum"), x)
    torch.testing.assert_close(grad, 2 * x.softmax(1) - torch.tensor(t))  # M p - t
    (finding,) = check(x, t)
    assert finding.severity == "warning"
    assert "rows that sum to 2" in finding.seen
    assert "multilabel_cross_entropy" in finding.fix
    assert "--task multilabel" in finding.fix
    assert check(x, t, task="multilabel") == []


def test_every_target_ignored():
    x = normal(6, 3)
    assert torch.isnan(F.cross_entropy(torch.tensor(x), torch.full((6,), -100)))
    assert rules(check(x, np.full(6, -100))) == ["CE106"]
    assert rules(check(x, np.full(6, 255), ignore_index=255)) == ["CE106"]
    assert check(x, [-100] * 5 + [1]) == []


def test_a_micro_batch_with_nothing_in_it():
    x, y = learned(12, 3)
    y[4:8] = -100
    parts = [F.cross_entropy(torch.tensor(x[i : i + 4]), torch.tensor(y[i : i + 4])) for i in (0, 4, 8)]
    assert torch.isnan(sum(parts))
    (finding,) = check(x, y, micro_batch=4)
    assert finding.rule == "CE106"
    assert "1 of 3 micro-batches" in finding.seen
    assert "number 1" in finding.seen
    assert check(x, y) == []
    y[5] = 0
    assert "CE106" not in rules(check(x, y, micro_batch=4))


def test_a_mean_of_means():
    x, y = learned(12, 3)
    y[1:6] = -100
    whole = F.cross_entropy(torch.tensor(x), torch.tensor(y))
    means = [F.cross_entropy(torch.tensor(x[i : i + 6]), torch.tensor(y[i : i + 6])) for i in (0, 6)]
    (finding,) = check(x, y, micro_batch=6)
    assert finding.rule == "CE121"
    assert f"{sum(means).item() / 2:.4f}" in finding.seen
    assert f"{whole.item():.4f}" in finding.seen
    assert check(x, learned(12, 3)[1], micro_batch=6) == []


def test_masked_logits_and_label_smoothing():
    x, y = normal(5, 4), np.array([0, 1, 2, 0, 1])
    x[3, 3] = -INF
    assert F.cross_entropy(torch.tensor(x), torch.tensor(y), label_smoothing=0.1).item() == INF
    (finding,) = check(x, y, label_smoothing=0.1)
    assert finding.rule == "CE107"
    assert "row 3" in finding.seen
    assert "class_mask" in finding.fix
    assert check(x, y) == []


def test_masked_logits_and_soft_targets():
    x, y = normal(5, 4), np.array([0, 1, 2, 0, 1])
    x[3, 3] = -INF
    t = np.eye(4)[y]
    assert torch.isnan(F.cross_entropy(torch.tensor(x), torch.tensor(t)))
    (finding,) = check(x, t)
    assert (finding.rule, finding.severity) == ("CE107", "warning")
    assert np.isfinite(crossent.cross_entropy(torch.tensor(x), torch.tensor(t)).item())
    assert check(normal(5, 4) - 1e4, t) == []


def test_the_target_itself_is_masked():
    x, y = normal(5, 4), np.array([0, 1, 2, 3, 1])
    x[3, 3] = -INF
    assert F.cross_entropy(torch.tensor(x), torch.tensor(y)).item() == INF
    (finding,) = check(x, y)
    assert (finding.rule, finding.severity) == ("CE107", "error")
    assert "row 3" in finding.seen
    (finding,) = check(x[3], 3)
    assert "the only row (the row: 3)" in finding.seen


@pytest.mark.parametrize(
    ("y", "said"),
    [
        ([1, 2, 3, 4], "subtract 1"),
        ([0, 1, 2, 255], "ignore_index=255"),
        ([0, 1, -1, 2], "ignore_index=-1"),
        ([0, 9, 1, 2], "number of logits"),
    ],
)
def test_labels_that_are_no_class(y, said):
    x = normal(4, 4)
    with pytest.raises(IndexError):
        F.cross_entropy(torch.tensor(x), torch.tensor(y))
    (finding,) = check(x, y)
    assert finding.rule == "CE114"
    assert said in finding.fix


def test_labels_from_1_go_unnoticed_with_one_logit_too_many():
    y = labels(400, 5) + 1
    x = torch.zeros(400, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(F.cross_entropy(x, torch.tensor(y)), x)
    assert (grad[:, 0] > 0).all()  # class 0 is only ever pushed down, and torch says nothing
    (finding,) = check(normal(400, 6), y)
    assert (finding.rule, finding.severity) == ("CE114", "warning")
    assert "do labels start at 1" in finding.seen


def test_a_class_may_be_missing():
    y = labels(400, 5) + 1
    assert check(normal(400, 6), np.where(y == 3, 2, y)) == []  # two are
    assert check(normal(30, 6), y[:30]) == []  # few labels
    x = normal(400, 6) - [9, 0, 0, 0, 0, 0]
    assert check(x, np.where(y == 5, 0, y), ignore_index=0) == []  # 0 means nothing


@pytest.mark.parametrize(
    ("shape", "target", "said"),
    [
        ((4, 3), np.zeros((4, 1), int), "reshape(4,)"),
        ((4, 3), np.eye(3, dtype=int)[[0, 1, 2, 0]], "target.float()"),
        ((4, 3), np.array([0.0, 1.0, 2.0, 0.0]), "target.long()"),
        ((4, 3), np.zeros((5,), int), "class indices need shape (4,)"),
        ((2, 3, 4, 4), np.zeros((2, 1, 4, 4), int), "reshape(2, 4, 4)"),
    ],
)
def test_targets_of_the_wrong_kind(shape, target, said):
    x = normal(*shape)
    with pytest.raises((RuntimeError, ValueError)):
        F.cross_entropy(torch.tensor(x), torch.tensor(target))
    (finding,) = (finding for finding in check(x, target) if finding.rule == "CE116")
    assert said in finding.fix


def test_whole_targets_of_yes_and_no():
    x, t = normal(30), np.arange(30) % 2
    with pytest.raises(RuntimeError):
        F.binary_cross_entropy_with_logits(torch.tensor(x), torch.tensor(t))
    (finding,) = check(x, t, task="binary")
    assert (finding.rule, finding.severity, finding.fix) == ("CE116", "warning", "target.float()")
    assert "indices" not in finding.why  # the binary loss takes none
    assert "task binary" in next(finding for finding in check(x, t) if finding.rule == "CE116").fix


def test_targets_of_the_right_kind():
    assert check(normal(4, 3), np.array([0, 1, 2, 0], np.uint8)) == []
    assert check(normal(2, 3, 4, 4), labels(32, 3).reshape(2, 4, 4)) == []
    assert check(normal(3), 1) == []
    assert check(normal(5, 3, 2), labels(10, 3).reshape(5, 2)) == []


# --- language models --------------------------------------------------------------------------------------------------


def sentence(rows=6, length=40, vocabulary=11):
    """Tokens, and the logits of a model that has learned which comes next."""
    random = np.random.default_rng(5)
    tokens = random.integers(0, vocabulary, (rows, length))
    x = random.normal(size=(rows, length, vocabulary))
    follows = np.roll(tokens, -1, axis=1)
    np.put_along_axis(
        x, follows[..., None], np.take_along_axis(x, follows[..., None], 2) + 4 * random.random((rows, length, 1)), 2
    )
    return x, tokens


def test_unshifted_labels():
    x, tokens = sentence()
    shifted = F.cross_entropy(torch.tensor(x[:, :-1]).flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten())
    as_given = F.cross_entropy(torch.tensor(x).flatten(0, 1), torch.tensor(tokens).flatten())
    assert shifted < as_given - 1  # torch computes both
    (finding,) = check(x, tokens, task="lm")
    assert (finding.rule, finding.severity) == ("CE108", "error")
    assert "one position later" in finding.seen


def test_shifted_labels_are_right():
    x, tokens = sentence()
    assert check(x, tokens, task="lm", shift=True) == []
    assert check(x[:, :-1], tokens[:, 1:], task="lm") == []
    assert check(x, tokens, task="lm", shift=True, inputs=tokens) == []


def test_labels_shifted_twice():
    x, tokens = sentence()
    (finding,) = check(x[:, :-1], tokens[:, 1:], task="lm", shift=True)
    assert finding.rule == "CE108"
    assert "let one of them do it" in finding.fix


def test_labels_that_are_the_input():
    tokens = sentence()[1]
    x = normal(*tokens.shape, 11)  # untrained, so that only the input tells
    (finding,) = check(x, tokens, task="lm", inputs=tokens)
    assert finding.rule == "CE108"
    assert "its own input" in finding.seen
    assert check(x[:, :-1], tokens[:, 1:], task="lm", inputs=tokens[:, :-1]) == []
    (finding,) = check(x[:, :-1], tokens[:, 1:], task="lm", shift=True, inputs=tokens[:, :-1])
    assert "two positions on" in finding.seen


def test_a_model_that_copies():
    tokens = sentence()[1]
    x = 8.0 * np.eye(11)[tokens] + 0.1 * normal(*tokens.shape, 11)
    assert F.cross_entropy(torch.tensor(x).flatten(0, 1), torch.tensor(tokens).flatten()).item() < 0.02
    (finding,) = check(x, tokens, task="lm")
    assert (finding.rule, finding.severity) == ("CE108", "note")


# --- weights and smoothing --------------------------------------------------------------------------------------------


def minimiser(weight, smoothing, y):
    """Find the probabilities at which torch's weighted and smoothed loss of a label is least."""
    x = torch.zeros(1, len(weight), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        w = torch.tensor(weight, dtype=torch.double)
        loss = F.cross_entropy(x, torch.tensor([y]), w, reduction="sum", label_smoothing=smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    return x.softmax(1)[0]


def test_class_weights_against_label_smoothing():
    weight = [1.0] * 9 + [110.0]
    p = minimiser(weight, 0.1, 0)
    assert p.argmax() == 9  # at the loss's minimum the rare class wins a row of class 0
    (finding,) = check(normal(40, 10), labels(40, 9), weight=weight, label_smoothing=0.1)
    assert finding.rule == "CE109"
    assert "more than 91" in finding.seen
    assert f"p(0) = {p[0]:.3f}, p(9) = {p[9]:.3f}" in finding.seen


def test_class_weights_below_the_threshold():
    weight = [1.0] * 9 + [90.0]
    assert minimiser(weight, 0.1, 0).argmax() == 0
    assert check(normal(40, 10), labels(40, 9), weight=weight, label_smoothing=0.1) == []
    assert check(normal(40, 10), labels(40, 9), weight=[1.0] * 9 + [110.0]) == []


# --- binary -----------------------------------------------------------------------------------------------------------


def test_binary_targets_of_255():
    x = normal(2, 1, 8, 8)
    t = 255.0 * (x > 0)
    assert F.binary_cross_entropy_with_logits(torch.full((1,), 10.0), torch.full((1,), 255.0)).item() == pytest.approx(
        -2540
    )
    assert F.binary_cross_entropy_with_logits(torch.tensor(x), torch.tensor(t)).item() < -100
    (finding,) = check(x, t, task="binary")
    assert finding.rule == "CE111"
    assert "divide by 255" in finding.fix
    assert check(x, t / 255, task="binary") == []


def test_binary_targets_of_minus_1():
    x = normal(50, 3)
    t = np.sign(x)
    (finding,) = check(x, t, task="multilabel")
    assert "(t + 1) / 2" in finding.fix
    (only,) = check(x, t, task="multilabel", ignore_index=-1)
    assert (only.rule, "all 82 targets are 1" in only.seen) == ("CE124", True)


def test_pos_weight_along_the_last_axis():
    x, t, w = normal(2, 4, 4, 4), (normal(2, 4, 4, 4, seed=5) > 0) * 1.0, np.array([1.0, 2.0, 3.0, 4.0])
    args = torch.tensor(x), torch.tensor(t)
    silent = F.binary_cross_entropy_with_logits(*args, pos_weight=torch.tensor(w))
    meant = F.binary_cross_entropy_with_logits(*args, pos_weight=torch.tensor(w).reshape(-1, 1, 1))
    assert silent.item() != pytest.approx(meant.item(), rel=1e-3)
    (finding,) = check(x, t, task="binary", pos_weight=w)
    assert finding.rule == "CE112"
    assert "reshape(-1, 1, 1)" in finding.fix
    assert check(x, t, task="binary", pos_weight=w.reshape(-1, 1, 1)) == []
    assert check(x, t, task="binary", pos_weight=w, dim=1) == []
    assert check(normal(5, 4), (normal(5, 4, seed=5) > 0) * 1.0, task="binary", pos_weight=w) == []


def test_pos_weight_for_no_and_yes():
    (finding,) = check(normal(9, 1), np.ones((9, 1)), task="binary", pos_weight=[1.0, 5.0])
    assert "w_yes / w_no" in finding.fix
    (finding,) = check(normal(2), np.ones(2), task="binary", pos_weight=[1.0, 5.0])
    assert "every row gets a weight of its own" in finding.seen


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_float16_that_overflows():
    x = torch.tensor(normal(6, 4))
    x[2, 1] = 1e5
    half, y = x.half(), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.isnan(F.cross_entropy(half, y))
    (finding,) = check(half, y)
    assert (finding.rule, finding.severity) == ("CE113", "error")
    assert "row 2" in finding.seen
    x[2, 1] = 6e4
    assert check(x.half(), y) == []


def test_float16_and_many_rows():
    x, y = torch.zeros(65520, 2, dtype=torch.half, requires_grad=True), torch.zeros(65520, dtype=torch.long)
    (grad,) = torch.autograd.grad(F.cross_entropy(x, y), x)
    assert not grad.any()  # training has stopped, in silence
    assert ("CE113", "warning") in [(f.rule, f.severity) for f in check(x, y)]
    assert "CE113" not in rules(check(x[:-1], y[:-1]))
    assert "CE113" not in rules(check(x.float(), y))


def test_the_loss_of_bfloat16_is_quantised():
    x, y = torch.tensor(normal(64, 2000, scale=0.1)).bfloat16(), torch.tensor(labels(64, 2000))
    exact = F.cross_entropy(x.double(), y).item()
    coarse = F.cross_entropy(x.float(), y).bfloat16().item()
    assert abs(coarse - exact) > 1e-3
    (finding,) = check(x, y)
    assert (finding.rule, finding.severity) == ("CE113", "note")
    assert f"the loss is {exact:.4f}; computed in bfloat16 it is {coarse:g}, in steps of 0.031" in finding.seen
    assert check(x, y, loss_dtype="float32") == []


def test_nan_from_one_row_on():
    x, y = learned(40, 4)
    x[25:] = NAN
    assert torch.isnan(F.cross_entropy(torch.tensor(x), torch.tensor(y)))
    (finding,) = check(x, y)
    assert finding.rule == "CE115"
    assert "15 of 40 rows (row 25: nan" in finding.seen
    assert "every row after the first" in finding.seen


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((slice(None), 2), "weights themselves"),
        ((slice(3, 30, 9), 2), "always in class 2"),
        (7, "inputs of these rows"),
    ],
)
def test_a_nan_and_its_origin(where, said):
    x, y = learned(40, 4)
    x[where] = NAN
    (finding,) = check(x, y)
    assert said in finding.seen


def test_nan_in_ignored_rows_are_harmless_here():
    x, y = learned(40, 4)
    x[7], y[7] = NAN, -100
    leaf = torch.tensor(x, requires_grad=True)
    (grad,) = torch.autograd.grad(F.cross_entropy(leaf, torch.tensor(y)), leaf)
    assert torch.isnan(grad[7]).all()  # torch's loss is finite, its gradient is not
    (finding,) = check(x, y)
    assert (finding.rule, finding.severity) == ("CE115", "note")
    assert check(np.nan_to_num(x), y) == []


def test_infinite_rows():
    x, y = learned(40, 4)
    x[3, 1], x[5] = INF, -INF
    assert torch.isnan(F.cross_entropy(torch.tensor(x), torch.tensor(y), reduction="none")[[3, 5]]).all()
    first, second = check(x, y)
    assert "+inf in 1 of 40 rows (row 3" in first.seen
    assert "every logit is −inf in 1 of 40 rows (row 5" in second.seen


def test_a_course_that_becomes_nan():
    x, y = learned(40, 4)
    (finding,) = check(x, y, losses=[1.4, 1.2, NAN, NAN])
    assert finding.rule == "CE115"
    assert "the loss is nan from value 2 of 4 on, counted from 0; before it was 1.2" in finding.seen


# --- where a loss starts and stays ------------------------------------------------------------------------------------


def falling(start, end, n=40):
    return end + (start - end) * np.exp(-np.arange(n) / (n / 8)) + 0.005 * normal(n, seed=9)


def test_a_first_loss_far_above():
    y = labels(64, 27)
    first = F.cross_entropy(torch.tensor(normal(64, 27, scale=20)), torch.tensor(y)).item()
    assert first > 20
    (finding,) = check(normal(64, 27), y, losses=[first, 9.0, 4.0])
    assert finding.rule == "CE117"
    assert "ln 27 = 3.2958" in finding.seen
    assert check(normal(64, 27), y, losses=[3.9, 3.1, 2.0]) == []


def test_a_loss_that_never_comes_down():
    finding, jumped = check(normal(64, 10), labels(64, 10), losses=falling(2.4, 30.0))
    assert (finding.rule, jumped.rule) == ("CE117", "CE128")
    assert "learning rate ten times smaller" in finding.fix
    assert check(normal(64, 10), labels(64, 10), losses=falling(2.4, 3.0)) == []


@pytest.mark.parametrize(
    ("level", "rule"), [(np.log(10), "CE118"), (1.3, "CE119"), (reference.double_softmax_floor(10), "CE120")]
)
def test_a_loss_that_stays(level, rule):
    y = np.repeat(np.arange(10), [60, 5, 5, 5, 5, 5, 5, 4, 3, 3])
    if rule == "CE119":
        level = reference.prior_entropy(np.bincount(y))
    stuck = falling(2.31, level)
    (finding,) = check(normal(100, 10), y, losses=stuck)
    assert (finding.rule, finding.severity) == (rule, "warning")
    assert f"{level:.4f}" in finding.seen
    assert check(normal(100, 10), y, losses=falling(2.31, level * 0.9)) == []
    assert check(normal(100, 10), y, losses=np.linspace(2.4, 2 * level - 2.4, 40)) == []  # only passes by


def test_a_run_through_two_softmaxes_that_makes_mistakes_stays_above_the_floor():
    floor, mistakes = reference.double_softmax_floor(10), np.random.default_rng(0).binomial(64, 0.08, 300) / 64
    x, y = torch.tensor([[60.0] + [0.0] * 9]), torch.tensor([0, 1])
    right, wrong = (F.cross_entropy(x.softmax(1), y[k : k + 1]).item() for k in (0, 1))
    assert (right, wrong - right) == pytest.approx((floor, 1.0), abs=1e-6)  # a mistake costs 1 and no more
    batches = falling(1.0, 0.0, 300) - 0.005 * normal(300, seed=9) + floor + mistakes
    (finding,) = check(normal(64, 10), labels(64, 10), losses=batches)
    assert finding.rule == "CE120"
    assert "none is below the floor" in finding.seen
    assert check(normal(64, 10), labels(64, 10), losses=batches + 0.1 * normal(300)) == []  # no wall


def test_a_binary_loss_that_stays():
    t = (normal(300, 4) > 1).astype(float)
    share = t.mean()
    double = F.binary_cross_entropy_with_logits(torch.tensor(t), torch.tensor(t)).item()  # σ(x) = t
    assert double == pytest.approx(share * 0.31326 + (1 - share) * np.log(2), abs=1e-4)
    for level, rule in ((np.log(2), "CE118"), (double, "CE120")):
        assert rules(check(normal(300, 4), t, task="binary", losses=falling(0.7, level))) == [rule]
    prior = np.mean([reference.prior_entropy([yes, 300 - yes]) for yes in t.sum(0)])
    assert rules(check(normal(300, 4), t, task="binary", losses=falling(0.7, prior))) == ["CE119"]


def test_a_model_whose_predictions_are_all_alike():
    y = np.repeat(np.arange(4), [70, 10, 10, 10])
    uniform = check(0.001 * normal(100, 4), y)
    assert [(f.rule, f.severity) for f in uniform] == [("CE118", "note")]
    prior = np.log([0.7, 0.1, 0.1, 0.1]) + 0.0001 * normal(100, 4)
    (finding,) = check(prior + 3, y)
    assert (finding.rule, finding.severity) == ("CE119", "warning")
    assert check(np.log([0.7, 0.1, 0.1, 0.1]) + 3 + 0.5 * normal(100, 4), y) == []


# --- nothing to be found ----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.integers(1, 200),
    st.sampled_from(["random", "small", "peaky", "trained", "trained hard"]),
    st.sampled_from([np.float64, np.float32, np.float16]),
    st.booleans(),
)
def test_ordinary_logits_are_left_in_peace(seed, classes, n, kind, dtype, soft):
    random = np.random.default_rng(seed)
    if kind.startswith("trained"):
        x, y = learned(n, classes, 3.0 if kind == "trained" else 20.0, 0.1 if kind == "trained" else 0.0, seed)
    else:
        scale = {"random": 1.0, "small": 0.05, "peaky": 30.0}[kind]
        x, y = random.normal(size=(n, classes)) * scale, random.integers(0, classes, n)
    target = reference.softmax(random.normal(size=x.shape)) if soft else y
    # class 0 may be missing by chance among few labels, but not while all others are frequent
    assert check(x.astype(dtype), target, label_smoothing=0.1, weight=random.uniform(0.5, 2, classes)) == []
    t = (random.random(x.shape) < 0.3).astype(float)
    assert check(x.astype(dtype), t, task="binary", pos_weight=random.uniform(0.5, 9, classes)) == []


def test_ordinary_courses_are_left_in_peace():
    y = labels(500, 10)
    for seed in range(20):
        random = np.random.default_rng(seed)
        loss_curve = (
            random.uniform(0.02, 0.7)
            + 2.3 * np.exp(-np.arange(200) / random.uniform(5, 60))
            + 0.1 * random.normal(size=200)
        )
        assert check(normal(500, 10), y, losses=np.abs(loss_curve)) == []


# --- what is taken, and how it is said --------------------------------------------------------------------------------


def test_torch_tensors_lists_and_arrays_are_the_same():
    p = reference.softmax(normal(20, 3)).astype(np.float32)
    y = labels(20, 3)
    (a,), (b,), (c,) = (
        check(p, y),
        check(torch.tensor(p, requires_grad=True), torch.tensor(y)),
        check(p.tolist(), y.tolist()),
    )
    assert a == b == c
    assert rules(check(torch.tensor(p).bfloat16(), y)) == ["CE101", "CE113"]


def test_nothing_found_is_said_not_to_be_proof():
    assert str(check(normal(5, 3))) == f"Nothing found. {REMARK}"


def test_errors_come_first_and_name_the_row_as_the_user_counts():
    x = normal(4, 3, 5, 6)
    x[2, 0, 3, 4] = NAN
    y = labels(120, 3).reshape(4, 5, 6)
    findings = check(x, y, losses=[9.0])
    assert [f.severity for f in findings] == ["error", "warning"]
    assert "row (2, 3, 4)" in findings[0].seen


def test_blocks_do_not_change_what_is_found(monkeypatch):
    x, y = learned(500, 10)
    y[100:104], x[321, 4] = 17, NAN
    whole = check(x, y, micro_batch=4, losses=[9.0])
    monkeypatch.setattr("crossent.tools.check.survey.ELEMENTS", 64)
    assert check(x, y, micro_batch=4, losses=[9.0]) == whole
    x, tokens = sentence()
    assert rules(check(x, tokens, task="lm")) == ["CE108"]
    assert check(x, tokens, task="lm", shift=True) == []


def test_settings_are_checked():
    with pytest.raises(TypeError, match="did you mean label_smoothing"):
        check(normal(2, 2), [0, 1], label_smooting=0.1)
    for wrong in (
        {"task": "lm2"},
        {"label_smoothing": 2},
        {"micro_batch": 0},
        {"shift": True},
        {"dim": 5},
        {"weight": [1, 2, 3]},
    ):
        with pytest.raises(ValueError):
            check(normal(2, 2), [0, 1], **wrong)
    with pytest.raises(ValueError):
        check(np.zeros((0, 3)), [])
    x, tokens = sentence()
    with pytest.raises(ValueError, match="inputs must have the shape"):
        check(x, tokens, task="lm", inputs=tokens[:, :4])
    with pytest.raises(ValueError, match="token ids"):
        check(x, reference.softmax(x), task="lm", shift=True)
    with pytest.raises(TypeError, match="real numbers"):
        check([["a"]], [0])
    assert "task" in inspect.signature(check).parameters


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_comes_is_answered_or_refused_with_a_reason(data):
    sizes = st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(sizes)
    x = random.choice([0.0, 0.3, -2.0, 1e5, NAN, INF, -INF], size=shape)
    of = data.draw(st.sampled_from([shape, shape[:-1], shape[:1] + shape[2:], data.draw(sizes)]))
    target = random.choice([-100.0, 0.0, 1.0, 2.0, 0.5, 255.0, NAN], size=of)
    given = {
        "task": data.draw(st.sampled_from(["multiclass", "binary", "lm"])),
        "dim": data.draw(st.sampled_from([None, None, 0, -1, 2])),
        "weight": data.draw(st.sampled_from([None, random.random(3)])),
        "pos_weight": data.draw(st.sampled_from([None, random.random(data.draw(sizes))])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1])),
        "micro_batch": data.draw(st.sampled_from([None, 2])),
        "losses": data.draw(st.sampled_from([None, random.random(20), [NAN] * 9])),
    }
    if given["task"] == "lm":
        given |= {"shift": data.draw(st.booleans()), "inputs": data.draw(st.sampled_from([None, target]))}
    try:
        said = str(check(x, data.draw(st.sampled_from([target, target.round(), None])), **given))
    except ValueError as error:
        said = str(error)
    assert re.search(r"^CE\d\d\d|Nothing found|must|needs|is for", said)


def test_every_rule_has_a_card_that_says_everything():
    assert list(RULE_DESCRIPTIONS) == sorted(RULE_DESCRIPTIONS)
    for name, description in RULE_DESCRIPTIONS.items():
        assert description.id == name
        assert description.severity in SEVERITIES
        for said in (description.title, description.why, description.fix, description.source):
            assert said
            assert said == said.strip()


def severities_in(function, seen):
    """Find the severities that a rule's function, and those of its module that it calls, write into observations."""
    constants = {
        each.value
        for each in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)).rsplit("    ),\n)\n")[-1]))
        if isinstance(each, ast.Constant) and each.value in SEVERITIES
    }
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if inspect.isfunction(called) and called.__module__ == function.__module__ and name not in seen:
            constants |= severities_in(called, seen | {name})
    return constants


def test_a_rule_is_listed_with_every_severity_it_can_have():
    for name, rule in (VALUE_RULES | LOSS_RULES).items():
        said = {rule.description.severity, *rule.description.also}
        assert severities_in(rule.look, {rule.look.__name__}) | {rule.description.severity} == said, name
    assert RULE_DESCRIPTIONS["CE105"].severities == "error or warning"
    assert RULE_DESCRIPTIONS["CE113"].severities == "error, warning or note"
    assert RULE_DESCRIPTIONS["CE101"].severities == "error"


X, Y, T = normal(64, 4), labels(64, 4), np.eye(4)[labels(64, 4)]
RARE = np.where(Y == 1, 1, 0)
FIRES = {
    "CE101": (reference.softmax(X), Y, {}),
    "CE102": (-reference.surprisal(X), Y, {}),
    "CE103": (normal(4, 3, 5), np.zeros((4, 3), int), {}),
    "CE104": (X[:, :1], Y * 0, {}),
    "CE105": (X, 2 * T, {}),
    "CE106": (X, Y * 0 - 100, {}),
    "CE107": (np.where(np.arange(4) == 3, -INF, X), Y, {}),
    "CE108": (normal(4, 16, 4), Y.reshape(4, 16), {"task": "lm", "inputs": Y.reshape(4, 16)}),
    "CE109": (X, Y, {"weight": [1, 1, 1, 40], "label_smoothing": 0.1}),
    "CE110": (reference.sigmoid(3 * X), T, {"task": "binary"}),
    "CE111": (X, 255 * T, {"task": "binary"}),
    "CE112": (normal(2, 3, 3, 3), np.ones((2, 3, 3, 3)), {"task": "binary", "pos_weight": [1, 2, 3]}),
    "CE113": (np.where(X > 4, INF, X).astype(np.float16), Y, {}),
    "CE114": (X, Y + 1, {}),
    "CE115": (X * NAN, Y, {}),
    "CE116": (X, Y[:, None], {}),
    "CE117": (X, Y, {"losses": [9.0]}),
    "CE118": (X, Y, {"losses": [np.log(4)] * 9}),
    "CE119": (X, RARE, {"losses": [reference.prior_entropy(np.bincount(RARE))] * 9}),
    "CE120": (X, Y, {"losses": [reference.double_softmax_floor(4)] * 9}),
    "CE122": (np.tile(X[0], (64, 1)), Y, {}),
    "CE123": (X + np.array([0, 30, 0, 0]), Y, {}),
    "CE124": (X, Y * 0 + 3, {}),
    "CE125": (X + 9 * np.eye(4)[Y], (Y + 1) % 4, {}),
    "CE126": (
        normal(8, 16, 4),
        np.where(np.arange(16) > 8, 3, (Y[:8] % 3)[:, None] * np.ones(16, int)),
        {"task": "lm"},
    ),
    "CE127": (9 * X, Y, {}),
    "CE128": (X, Y, {"losses": [1.4, 1.2, 88.0, 1.4]}),
    "CE129": (X, Y, {"losses": [1.4, -0.2]}),
    "CE130": (X, Y, {"losses": [1.5] * 8}),
    "CE131": (X, Y, {"weight": [1, 1, 1000, 1]}),
    "CE132": (X + 9 * np.eye(4)[Y] - [40, 0, 0, 0], Y, {}),
    "CE133": (X, Y, {"ignore_index": 0}),
    "CE134": (X, np.repeat([0, 1, 2, 3], [40, 14, 6, 4]), {"weight": [40, 14, 6, 4]}),
    "CE121": (X, np.where(np.arange(64) < 40, -100, Y), {"micro_batch": 24}),
}


@pytest.mark.parametrize("rule", VALUE_RULES)
def test_every_rule_fires_and_says_all_of_it(rule):
    logits, target, settings = FIRES[rule]
    found = [finding for finding in crossent.check(logits, target, **settings) if finding.rule == rule]
    assert found
    for finding in found:
        assert finding.title == RULE_DESCRIPTIONS[rule].title
        assert list(finding.to_dict()) == ["rule", "severity", "title", "seen", "why", "fix"]
        assert all(finding.to_dict().values())
        assert re.search(r"\d", finding.seen)
        assert all(said == said.strip() for said in finding.to_dict().values())


def test_checking_arrays_imports_no_torch():
    script = (
        "import sys, crossent\nassert crossent.check([[0.9, 0.1]], [0])[0].rule == 'CE101'\n"
        "import crossent.tools.check\nassert crossent.check([[0.9, 0.1]], [0])[0].rule == 'CE101'\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
