"""The scores agree with other people's, with the specification, and with what can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
import torchmetrics.functional.text as tm_text
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

import crossent
from crossent import reference
from crossent.tools.files import FileError
from crossent.tools.score import measures, row_blocks, scores, temperature
from crossent.tools.score.scores import DEFINITIONS
from crossent.tools.score.scoring import score
from crossent.tools.shared_options import OptionError

N, C = 400, 8
RNG = np.random.default_rng(0)
Y = RNG.choice(C - 1, N, p=np.arange(1, C) / (C * (C - 1) / 2))  # class 7 has no rows
X = 2 * RNG.normal(size=(N, C)) + 2 * np.eye(C)[Y]
P = reference.softmax(X)


def numbers(*args, **options):
    return score(*args, **options).numbers


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Read in blocks of a few rows, so that every number is put together from many."""
    monkeypatch.setattr(row_blocks, "ELEMENTS", 7 * C)


# --- agreement --------------------------------------------------------------------------------------------------------


def test_scikit_learn_agrees():
    found, named = numbers(X, Y), P.argmax(1)
    expected = {
        "nll_nats_mean": log_loss(Y, P, labels=range(C)),
        "brier": brier_score_loss(Y, P, labels=range(C), scale_by_half=False),
        "accuracy": accuracy_score(Y, named),
        "macro_f1": f1_score(Y, named, average="macro"),
        "top5_accuracy": top_k_accuracy_score(Y, P, k=5, labels=range(C)),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-12), key


def test_torchmetrics_agrees():
    found, p, y = numbers(X, Y), torch.tensor(P), torch.tensor(Y)
    error = tm.classification.multiclass_calibration_error(p, y, C, n_bins=15, norm="l1")
    assert found["calibration_error"] == pytest.approx(error.item(), rel=1e-6)
    perplexity = tm_text.perplexity(torch.tensor(X)[None], y[None])
    assert found["perplexity"] == pytest.approx(perplexity.item(), rel=1e-6)


def test_classes_agree_with_scikit_learn():
    rows, named = score(X, Y).classes, P.argmax(1)
    expected = {
        "recall": recall_score(Y, named, average=None, labels=range(C), zero_division=np.nan),
        "precision": precision_score(Y, named, average=None, labels=range(C), zero_division=np.nan),
        "f1": f1_score(Y, named, average=None, labels=range(C)),
        "decisions": np.bincount(Y, minlength=C),
        "named": np.bincount(named, minlength=C),
        "p_mean": P.mean(0),
        "frequency": np.bincount(Y, minlength=C) / N,
    }
    for key, values in expected.items():
        np.testing.assert_allclose([getattr(row, key) for row in rows], values, rtol=1e-12, err_msg=key)
    assert sum(row.loss_share for row in rows) == pytest.approx(1)
    for row in rows[:-1]:
        wrong = named[(row.label == Y) & (named != Y)]
        assert row.taken_for == np.bincount(wrong).argmax()
        assert row.nll_nats_mean == pytest.approx(-np.log(P[row.label == Y, row.label]).mean())


def test_units_and_baselines():
    found, counts = numbers(X, Y), np.bincount(Y)
    nll = -np.log(P[np.arange(N), Y])
    assert found["nll_bits_mean"] == pytest.approx(found["nll_nats_mean"] / math.log(2))
    assert found["nll_nats_standard_error"] == pytest.approx(nll.std(ddof=1) / math.sqrt(N))
    assert found["nll_bits_standard_error"] == pytest.approx(found["nll_nats_standard_error"] / math.log(2))
    assert found["uniform_nll_nats"] == pytest.approx(math.log(C))
    prior = -(counts / N * np.log(counts / N)).sum()
    assert found["prior_nll_nats"] == pytest.approx(prior)
    assert found["skill_over_prior"] == pytest.approx(1 - nll.mean() / prior)
    assert found["skill_over_uniform"] == pytest.approx(1 - nll.mean() / math.log(C))


def test_the_trained_loss_is_that_of_the_specification():
    weight = RNG.random(C)
    weight[2] = 0.0
    for options in ({"weight": weight}, {"label_smoothing": 0.2}, {"weight": weight, "label_smoothing": 0.1}):
        found = numbers(X, Y, **options)
        assert found["loss_nats_mean"] == pytest.approx(reference.cross_entropy(X, Y, **options).loss, rel=1e-12)
        assert found["nll_nats_mean"] == numbers(X, Y)["nll_nats_mean"]
    assert numbers(X, Y)["loss_nats_mean"] is None


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    small = score(X, Y)
    monkeypatch.setattr(row_blocks, "ELEMENTS", 1 << 20)
    whole = score(X, Y)
    for key, value in whole.numbers.items():
        assert small.numbers[key] == (None if value is None else pytest.approx(value, rel=1e-10)), key
    assert small.worst == whole.worst
    assert small.suspects == whole.suspects


# --- what the values are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "values"), [("probs", P), ("logprobs", np.log(P)), ("logits", X + 1000)])
def test_the_same_numbers_however_they_are_given(kind, values):
    report = score(values, Y, input=kind)
    for key, value in numbers(X, Y).items():
        assert report.numbers[key] == (None if value is None else pytest.approx(value, rel=1e-8)), key
    assert report.remarks == score(X, Y).remarks


def test_values_that_look_otherwise_are_said_and_obeyed():
    report = score(P, Y)
    assert report.remarks[0] == (
        "All values lie in [0, 1] and every row sums to 1: if they are probabilities, say --input probs."
    )
    assert report.numbers["nll_nats_mean"] == pytest.approx(reference.cross_entropy(P, Y).loss)
    assert "The sum of the probabilities of a row is up to 0.5 away from 1" in score(P / 2, Y, input="probs").remarks[0]
    assert (
        "The sum of the exponentials of the log-probabilities of a row is up to"
        in score(X, Y, input="logprobs").remarks[0]
    )
    assert "All values lie in [0, 1]: if" in score(P, np.eye(C)[Y], task="multilabel").remarks[0]
    with pytest.raises(
        FileError, match=r"logits: row 0 goes from .*, which are no probabilities: leave out --input probs"
    ):
        score(X, Y, input="probs")


def test_a_probability_of_zero_is_an_infinite_loss():
    p = np.array([[0.0, 1.0], [0.5, 0.5], [0.2, 0.8]])
    report = score(p, [0, 1, 1], input="probs")
    assert report.numbers["nll_nats_mean"] == math.inf
    assert report.numbers["infinite"] == 1
    assert report.numbers["temperature"] is None
    assert report.to_dict()["numbers"]["nll_nats_mean"] is None
    assert "1 decisions give their true class probability 0" in report.remarks[0]
    assert report.worst[0].row == 0


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_pixels_tokens_and_one_hot_rows_are_decisions():
    plain = numbers(X, Y)
    images, masks = X.reshape(10, 5, 8, C).transpose(0, 3, 1, 2), Y.reshape(10, 5, 8)
    for found in (
        numbers(images, masks),
        numbers(X.reshape(10, 40, C), Y.reshape(10, 40), task="lm"),
        numbers(X.reshape(10, 40, C), Y.reshape(10, 40), class_dim=-1),
        numbers(X.reshape(10, 40, C).transpose(0, 2, 1), Y.reshape(10, 40)),
        numbers(X, np.eye(C, dtype=int)[Y]),
        numbers(X, Y[:, None]),
        numbers(X, Y.astype(np.float32)),
        numbers(torch.tensor(X, requires_grad=True), torch.tensor(Y)),
    ):
        for key in (
            "decisions",
            "nll_nats_mean",
            "accuracy",
            "brier",
            "calibration_error",
            "macro_f1",
            "prior_nll_nats",
        ):
            assert found[key] == pytest.approx(plain[key], rel=1e-6), key


def test_an_axis_that_is_not_clear_is_said():
    square = X[:64].reshape(8, 8, C)
    said = "The classes could lie in axis 1 or 2; axis {} was taken."
    assert said.format(1) in score(square, Y[:64].reshape(8, 8)[:, :8]).remarks[-2]
    assert said.format(2) in score(square, Y[:64].reshape(8, 8), task="lm").remarks
    assert not any("could lie" in remark for remark in score(square, Y[:64].reshape(8, 8), class_dim=2).remarks)


def test_a_place_in_a_row_is_where_it_was():
    images, masks = X.reshape(10, 5, 8, C).transpose(0, 3, 1, 2), Y.reshape(10, 5, 8)
    for worst in score(images, masks).worst:
        at = (worst.row, *np.unravel_index(worst.position, (5, 8)))
        assert masks[at] == worst.true
        x = images[at[0], :, at[1], at[2]]
        assert reference.surprisal(x)[worst.true] == pytest.approx(worst.loss_nats)


def test_ignored_labels_count_for_nothing_whatever_their_logits():
    y, x = Y.copy(), X.copy()
    y[::3], x[::3] = -100, np.nan
    found, kept = numbers(x, y), np.arange(N) % 3 > 0
    assert (found["rows"], found["decisions"], found["ignored"]) == (N, kept.sum(), (~kept).sum())
    assert found["nll_nats_mean"] == pytest.approx(numbers(X[kept], Y[kept])["nll_nats_mean"])
    assert numbers(x, np.where(y < 0, 255, y), ignore_index=255)["nll_nats_mean"] == found["nll_nats_mean"]


def test_language_models():
    x, y = X.reshape(10, 40, C), Y.reshape(10, 40)
    found = numbers(x, y, task="lm", shift=True, bytes=1000)
    shifted = reference.cross_entropy(x[:, :-1].reshape(-1, C), y[:, 1:].reshape(-1)).loss
    assert found["decisions"] == 390
    assert found["nll_nats_mean"] == pytest.approx(shifted)
    assert found["bits_per_token"] == pytest.approx(shifted / math.log(2))
    assert found["bits_per_byte"] == pytest.approx(shifted / math.log(2) * 390 / 1000)
    assert found["suspected_label_errors"] is None
    assert numbers(x, y, task="lm")["bits_per_byte"] is None
    assert numbers(X, Y)["bits_per_token"] is None


def test_several_labels_a_row():
    y = (np.random.default_rng(3).random((N, C)) < reference.sigmoid(X - 1)).astype(int)
    p, report = reference.sigmoid(X), score(X, y, task="multilabel")
    found = report.numbers
    expected = {
        "decisions": N * C,
        "nll_nats_mean": reference.binary_cross_entropy_with_logits(X, y).loss,
        "brier": brier_score_loss(y.ravel(), p.ravel()),
        "accuracy": accuracy_score(y.ravel(), p.ravel() > 0.5),
        "exact_match": accuracy_score(y, p > 0.5),
        "macro_f1": f1_score(y, p > 0.5, average="macro"),
        "uniform_nll_nats": math.log(2),
        "prior_nll_nats": np.mean([reference.prior_entropy([k, N - k]) for k in y.sum(0)]),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-10), key
    confidence, right = np.maximum(p, 1 - p).ravel(), (p.ravel() > 0.5) == y.ravel()
    error = tm.classification.binary_calibration_error(torch.tensor(confidence), torch.tensor(right), n_bins=15)
    assert found["calibration_error"] == pytest.approx(error.item(), rel=1e-6)
    smooth = numbers(X, y, task="multilabel", label_smoothing=0.1)["loss_nats_mean"]
    assert smooth == pytest.approx(reference.binary_cross_entropy_with_logits(X, y, label_smoothing=0.1).loss)
    worst = report.worst[0]
    assert worst.loss_nats == pytest.approx(reference.sigmoid_cross_entropy(X, y).loss.max())
    assert y[worst.row, worst.position] == worst.true
    for kind, values in (("probs", p), ("logprobs", np.log(p))):
        assert numbers(values, y, task="multilabel", input=kind)["nll_nats_mean"] == pytest.approx(
            found["nll_nats_mean"]
        )
    certain = numbers([[0.0, 1.0]], [[0, 1]], task="multilabel", input="probs")
    assert certain["nll_nats_mean"] == 0


def test_one_column_of_several_labels_is_a_yes_or_no():
    x, y = X[:, 0], (Y == 0).astype(int)
    found = numbers(x, y, task="multilabel")
    assert found["nll_nats_mean"] == pytest.approx(log_loss(y, reference.sigmoid(x)))
    assert found == numbers(x[:, None], y[:, None], task="multilabel")


# --- one idea each ----------------------------------------------------------------------------------------------------


def test_a_standard_error_counts_a_row_once():
    row, value = np.repeat(np.arange(40), 10), RNG.normal(size=400)
    copies = np.repeat(value.reshape(40, 10)[:, 0], 10)
    mean, single = measures.Mean(), measures.Mean()
    for part in np.array_split(np.arange(400), 17):
        mean.add(row[part], copies[part])
    single.add(np.arange(40), copies[::10])
    assert mean.value == pytest.approx(single.value)
    assert mean.standard_error == pytest.approx(single.standard_error)


def test_a_standard_error_covers_the_truth():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        level = rng.normal(size=50)  # what the decisions of a row have in common
        sizes = rng.integers(1, 6, 50)
        row = np.repeat(np.arange(50), sizes)
        mean = measures.Mean()
        mean.add(row, level[row] + rng.normal(size=len(row)))
        inside += abs(mean.value) < 1.96 * mean.standard_error
    assert 0.91 < inside / 400 < 0.97


def test_a_standard_error_does_not_cancel():
    value = 1e9 + np.arange(10.0)
    mean = measures.Mean()
    mean.add(np.arange(10), value)
    assert mean.standard_error == pytest.approx(value.std(ddof=1) / math.sqrt(10))
    assert math.isnan(score(X[:1], Y[:1]).numbers["nll_nats_standard_error"])


def test_the_temperature_is_the_best_on_the_even_rows_and_tried_on_the_odd():
    found = numbers(X, Y)
    grid = np.exp(np.linspace(-1, 1, 2001)) * found["temperature"]
    losses = [reference.cross_entropy(X[::2] / t, Y[::2]).loss for t in grid]
    assert grid[np.argmin(losses)] == pytest.approx(found["temperature"], rel=1e-3)
    assert found["decisions_odd_rows"] == N // 2
    assert found["odd_rows_nll_nats_before"] == pytest.approx(reference.cross_entropy(X[1::2], Y[1::2]).loss)
    after = reference.cross_entropy(X[1::2] / found["temperature"], Y[1::2]).loss
    assert found["odd_rows_nll_nats_after"] == pytest.approx(after)
    p = reference.softmax(X[1::2] / found["temperature"])
    error = tm.classification.multiclass_calibration_error(torch.tensor(p), torch.tensor(Y[1::2]), C, n_bins=15)
    assert found["odd_rows_calibration_error_after"] == pytest.approx(error.item(), rel=1e-6)


@pytest.mark.parametrize("scale", [0.02, 0.5, 1.0, 30.0])
def test_the_temperature_undoes_a_scale(scale):
    assert numbers(scale * X, Y)["temperature"] == pytest.approx(scale * numbers(X, Y)["temperature"], rel=1e-5)


def test_the_temperature_of_what_is_never_wrong_or_knows_nothing_is_at_its_limit():
    sure = score(np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0])
    assert sure.numbers["temperature"] == pytest.approx(temperature.LIMITS[0], rel=1e-3)
    assert "ran into its limit" in sure.remarks[-1]
    assert numbers(-np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0])["temperature"] == pytest.approx(
        temperature.LIMITS[1], rel=1e-3
    )
    assert numbers(np.zeros((6, 3)), [0, 1, 2, 0, 1, 2])["temperature"] == 1
    assert numbers(1e4 * np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0])["temperature"] == 1


def test_a_large_file_is_fitted_on_some_of_its_even_rows(monkeypatch):
    whole = numbers(np.tile(X, (5, 1)), np.tile(Y, 5))["temperature"]
    monkeypatch.setattr(temperature, "SAMPLE", N * C // 2)
    part = numbers(np.tile(X, (5, 1)), np.tile(Y, 5))["temperature"]
    assert part != whole
    assert part == pytest.approx(whole, rel=0.2)


def test_the_worst_examples_are_those_with_the_largest_loss():
    nll = -np.log(P[np.arange(N), Y])
    worst = score(X, Y, top=25).worst
    assert [e.row for e in worst] == np.argsort(-nll, kind="stable")[:25].tolist()
    first = worst[0]
    assert first.true == Y[first.row]
    assert first.p_true == pytest.approx(P[first.row, first.true])
    assert first.predicted == P[first.row].argmax()
    assert first.p_predicted == pytest.approx(P[first.row].max())
    assert score(X, Y, top=0).worst == []
    equal = score(np.zeros((50, C)), Y[:50], top=3).worst
    assert [e.row for e in equal] == [0, 1, 2]


def test_suspected_label_errors_are_the_flipped_labels():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, C, 2000)
    x = 6 * np.eye(C)[truth] + rng.normal(size=(2000, C))
    flipped = rng.choice(2000, 60, replace=False)
    y = truth.copy()
    y[flipped] = (truth[flipped] + 1 + rng.integers(0, C - 1, 60)) % C
    report = score(x, y, top=1000, suspects="confident-learning")
    found = {e.row for e in report.suspects}
    assert len(found) == report.numbers["suspected_label_errors"]
    assert len(found & set(flipped.tolist())) >= 35
    assert len(found - set(flipped.tolist())) <= 10
    gains = [e.p_predicted - e.p_true for e in report.suspects]
    assert gains == sorted(gains, reverse=True)
    least_sure = score(x, y, top=1000)
    assert least_sure.numbers == report.numbers
    own = [e.p_true for e in least_sure.suspects]
    assert own == sorted(own)
    assert len({e.row for e in least_sure.suspects} & set(flipped.tolist())) >= len(found & set(flipped.tolist()))


def test_more_candidates_than_are_kept_is_said(monkeypatch):
    monkeypatch.setattr(measures, "CANDIDATES", 5)
    assert "There are more suspected label errors than were counted." in score(X, Y).remarks


def test_remarks_say_what_no_number_does():
    assert "above that of finding all classes equally likely" in score(-X, Y).remarks[0]
    prior = np.log(np.bincount(Y, minlength=C) / N + 1e-3)
    assert (
        "the class frequencies alone would do better"
        in score(np.tile(prior + 0.01 * RNG.normal(size=C), (N, 1)), Y).remarks[0]
    )
    assert score(X / 3, Y).remarks == ["1 of the 8 classes does not occur among the labels."]
    assert not any("temperature" in remark for remark in score(X[:1], Y[:1]).remarks)
    assert "No temperature could be fitted" in score(X, np.where(np.arange(N) % 2, Y, -100)).remarks[-2]


def test_logits_too_far_apart_for_float64_cost_infinitely_much():
    assert numbers([[1e308, -1e308]] * 4, [1, 0, 0, 0])["nll_nats_mean"] == math.inf
    assert numbers([[1e308, -1e308]] * 4, [0, 0, 0, 0])["nll_nats_mean"] == 0


def test_every_number_is_defined_and_every_definition_used():
    assert set(numbers(X, Y)) == set(DEFINITIONS)


def test_the_page_has_every_definition():
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text("utf-8")
    assert "\n".join(f"| `{key}` | {what} |" for key, what in DEFINITIONS.items()) in page


def test_the_package_can_be_called_and_its_report_printed():
    report = crossent.score(X, Y)
    assert report.numbers == numbers(X, Y)
    assert repr(report) == f"<Report: 400 decisions, {report.numbers['nll_nats_mean']:.4f} nats, accuracy 0.4075>"
    said = "400 rows, 8 classes; the values are read as logits\nWarning: The cross entropy is above H(prior)"
    assert str(report).startswith(said)
    assert max(map(len, str(report).splitlines())) <= 80


# --- refused ----------------------------------------------------------------------------------------------------------


BAD = np.where(np.arange(N)[:, None] % 150 == 7, np.nan, X)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "said"),
    [
        (BAD, Y, {}, r"logits: 3 have no softmax \(nan, \+inf, or only -inf\), first in row 7, 157, 307"),
        (np.where(np.arange(N)[:, None] == 9, -np.inf, X), Y, {}, "logits: 1 has no softmax .* row 9:"),
        (np.where(np.eye(N, C) > 0, np.inf, X), Y, {}, "8 have no softmax .* row 0, 1, 2, 3, 4:"),
        (
            X,
            Y + 2,
            {},
            r"labels: row \d+ has label 8, but the 8 classes are 0 to 7: labels that start at 1 need 1 subtracted",
        ),
        (
            X,
            np.where(Y == 3, 255, Y),
            {},
            "has label 255, but the 8 classes are 0 to 7; --ignore-index leaves a label out",
        ),
        (X, np.where(Y == 3, -1, Y), {}, "has label -1,"),
        (X, Y + 0.5, {}, "labels: row 0 has label .*5, which is no class number"),
        (X, np.full(len(Y), np.nan), {}, "labels: every label is missing"),
        (X, np.full(N, -100), {}, "labels: every label is missing or ignore_index=-100; nothing to score"),
        (
            X,
            np.full((N, C), 0.5),
            {},
            "labels: row 0 is neither one-hot nor a soft label that sums to 1; --task multilabel scores several labels a row",
        ),
        (
            X,
            Y,
            {"task": "multilabel"},
            r"labels: has shape \(400,\), but --task multilabel needs zeros and ones of shape",
        ),
        (X, 2 * np.eye(C)[Y], {"task": "multilabel"}, "has label 2, but --task multilabel takes 0 and 1"),
        (Y, X, {}, r"labels: has shape \(400, 8\), and logits only \(400,\): logits first, then labels"),
        (X[:, 0], Y, {}, "logits: has one logit a row, which is no softmax but a yes or no: --task binary"),
        (X[:, :1], Y, {}, "logits: has one logit a row"),
        (X.reshape(10, 40, C), Y.reshape(10, 40), {}, r"labels of shape \(10, 8\): --class-dim 2 would fit"),
        (X, Y, {"task": "lm", "shift": True}, r"--shift needs logits of shape \(N, T, V\)"),
        (
            X.T,
            Y,
            {},
            r"labels of shape \(8,\): the classes seem to come first, where the rows belong; save the logits transposed",
        ),
        (X, Y[:5], {}, r"labels: has shape \(5,\), but logits of shape \(400, 8\) .* need labels of shape \(400,\)$"),
        (X[:0], Y[:0], {}, "logits: must hold at least one row"),
        (X.astype(complex), Y, {}, "logits: holds complex128, not real numbers"),
    ],
)
def test_files_that_cannot_be_scored(logits, labels, options, said):
    with pytest.raises(FileError, match=said) as caught:
        score(logits, labels, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input": "probabilities"}, "input must be one of logits, probs, logprobs, got 'probabilities'"),
        ({"task": "ordinal"}, "task must be one of multiclass, binary, multilabel, lm"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ({"weight": (1.0, -1.0)}, "weight must hold finite numbers, none negative"),
        ({"weight": (1.0,) * C, "task": "multilabel"}, "weight belongs to the softmax"),
        ({"shift": True}, "shift is for tokens: it needs task lm"),
        ({"class_dim": 0}, r"class_dim must lie between 1 and 1 for logits of shape \(400, 8\)"),
        ({"class_dim": 0, "task": "multilabel"}, "class_dim must lie between 1 and 1"),
        ({"weight": [1.0, 2.0]}, "weight has 2 numbers, but logits has 8 classes"),
        ({"class_names": ("a", "b")}, "class_names names 2, but logits has 8 classes"),
        ({"top": -1}, "top must be 0 or more"),
        ({"bytes": 0}, "bytes must be 1 or more"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(OptionError, match=said):
        score(X, Y, **options)


def test_the_classes_of_binary_masks_are_their_channels_and_not_their_pixels():
    random = np.random.default_rng(0)
    t = (random.random((6, 2, 3, 4)) < 0.4).astype(int)
    x = random.normal(size=t.shape) + 2 * t - 1
    report = score(x, t, task="multilabel", class_names=["road", "sky"], top=2)
    channels = [score(x[:, k].reshape(6, -1, 1).reshape(-1, 1), t[:, k].reshape(-1, 1), task="binary") for k in (0, 1)]
    assert report.numbers["classes"] == 2
    assert report.numbers["decisions"] == t.size
    assert [row.nll_nats_mean for row in report.classes] == pytest.approx(
        [c.numbers["nll_nats_mean"] for c in channels]
    )
    assert report.numbers["macro_f1"] == pytest.approx(np.mean([c.numbers["macro_f1"] for c in channels]))
    assert report.numbers["prior_nll_nats"] == pytest.approx(np.mean([c.numbers["prior_nll_nats"] for c in channels]))
    worst = report.worst[0]
    losses = np.logaddexp(0, x) - t * x
    row, channel, *at = np.unravel_index(losses.argmax(), losses.shape)
    assert (worst.row, scores.class_and_place(report, worst)) == (row, (channel, tuple(at)))
    said = " ".join(str(report).split()) if str(report) else ""
    assert f"{row} {','.join(map(str, at))} {('road', 'sky')[channel]}" in said
    last = score(np.moveaxis(x, 1, -1), np.moveaxis(t, 1, -1), task="multilabel", dim=-1)
    assert [row.nll_nats_mean for row in last.classes] == pytest.approx([row.nll_nats_mean for row in report.classes])
    one = score(x[:, :1], t[:, 0], task="binary")  # masks (N, H, W) beside logits (N, 1, H, W)
    assert one.numbers["classes"] == 1
