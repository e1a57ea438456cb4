"""``crossent train digits-noisy``: what is flipped, what is found of it, and what is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tools.training import only, settings, told, trained

from crossent.tools.train import data, metrics
from crossent.tools.train.conclusions import paragraph
from crossent.tools.train.noisy import (
    CANDIDATES,
    JOB,
    best_finder,
    flip,
    hits,
    learnt_by_heart,
    most_suspicious,
    opening,
    push_at,
    sorting,
    truth,
)
from crossent.tools.train.results import Tried

TRUE = load_digits().target


@pytest.fixture(scope="module")
def results():
    return trained("digits-noisy", rates=(0.03, 0.1))


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_this_share_of_each_class_is_flipped_to_any_other(share):
    part = data.load_digits(0).train
    flipped = flip(part, share, np.random.default_rng(0))
    before, after = part.labels.numpy(), flipped.labels.numpy()
    for label in range(10):
        rows = before == label
        assert (after[rows] != label).sum() == round(share * rows.sum())
    assert set(zip(before[before != after].tolist(), after[before != after].tolist(), strict=True)) <= {
        (a, b) for a in range(10) for b in range(10) if a != b
    }
    assert np.bincount(after[before != after], minlength=10).min() > 0
    assert torch.equal(part.inputs, flipped.inputs)


def test_test_labels_are_right_and_the_others_are_not():
    split = JOB.load(settings("digits-noisy"), 3)
    assert np.array_equal(split.test.labels, TRUE[split.test.position])
    for part in (split.train, split.validation):
        wrong = (part.labels.numpy() != TRUE[part.position]).mean()
        assert wrong == pytest.approx(0.4, abs=0.01)
        assert np.array_equal(truth(part), TRUE[part.position])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_learnt_by_heart_by_hand():
    log_p = np.log([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    labels, true = np.array([0, 1, 1, 0]), np.array([0, 0, 0, 1])
    assert learnt_by_heart(log_p, labels, true).tolist() == [True, False, True]


def test_found_is_precision_and_recall_among_as_many_as_were_flipped(results):
    for loss in results.losses:
        for run in loss.runs:
            flipped = run.details["flipped"]
            assert hits(run).sum() == flipped == len(run.shares["found"]) == len(run.shares["by_heart"])
            assert len(hits(run)) == results.sizes["train"]
            precision, recall = metrics.precision_and_recall(hits(run), flipped)
            assert precision == recall == pytest.approx(run.scores["found"])


def test_suspects_are_those_whose_label_is_believed_least(results):
    split = JOB.load(results.settings, 0)
    given = dict(zip(split.train.position.tolist(), split.train.labels.tolist(), strict=True))
    for loss in results.losses:
        run = loss.runs[0]
        believed = [each.p_label for each in run.details["suspects"]]
        assert believed == sorted(believed)
        assert len(believed) == 20
        for each, flipped in zip(run.details["suspects"], hits(run), strict=False):
            assert each.label == given[each.position]
            assert each.true == TRUE[each.position]
            assert (each.label != each.true) == flipped
            assert each.p_predicted >= each.p_label


def test_the_tables_are_those_of_the_runs(results):
    flipped = results.losses[0].runs[0].details["flipped"]
    row = sorting(results).rows[0]
    found = np.mean([run.scores["found"] for run in results.losses[0].runs])
    assert row[3] == f"{100 * found:.0f} / {100 * found:.0f}"
    assert sorting(results).columns[3] == f"first {flipped}"
    best = best_finder(results)
    assert best.mean("found") == max(loss.mean("found") for loss in results.losses)
    first = best.runs[0].details["suspects"][0]
    assert most_suspicious(results).rows[0][:2] == (str(first.position), str(first.label))


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_pull_on_an_unlikely_label():
    assert push_at(CANDIDATES["ce"], 0.01) == pytest.approx(0.99)
    assert push_at(CANDIDATES["mae"], 0.01) == pytest.approx(0.01 * 0.99)
    assert push_at(CANDIDATES["gce"], 0.01) == pytest.approx(0.01**0.7 * 0.99)


def test_the_opening_names_the_pull_of_the_losses_at_hand(results):
    assert "cross entropy pulls it up with 0.99" in opening(results)
    assert "the mean absolute error pulls it up with 0.01" in opening(results)
    assert "cross entropy pulls" not in opening(only(results, "mae"))
    assert "40% are false" in opening(results)
    fewer = replace(results, settings=replace(results.settings, options={"flipped": 0.25}))
    assert "25% are false" in opening(fewer)


def test_learning_by_heart_is_told_as_it_is(results):
    two = only(results, "ce", "gce")
    apart = told(two, ce={"accuracy": 0.7, "by_heart": 0.9}, gce={"accuracy": 0.9, "by_heart": 0.05})
    assert "ce learnt 90.0% of the flipped labels by heart and gce 5.0%" in paragraph(apart)
    turned = told(two, ce={"accuracy": 0.9, "by_heart": 0.05}, gce={"accuracy": 0.7, "by_heart": 0.9})
    assert "gce learnt 90.0% of the flipped labels by heart and ce 5.0%" in paragraph(turned)
    alike = told(two, ce={"accuracy": 0.9, "by_heart": 0.5}, gce={"accuracy": 0.9, "by_heart": 0.5})
    assert "up to 50.0% of the flipped labels were learnt by heart" in paragraph(alike)
    little = told(two, ce={"accuracy": 0.9, "by_heart": 0.04}, gce={"accuracy": 0.9, "by_heart": 0.02})
    assert "no more than 4.0% of the flipped labels were learnt by heart" in paragraph(little)


def test_gains_over_cross_entropy_have_their_sign(results):
    two = only(results, "ce", "gce")
    better = paragraph(told(two, ce={"accuracy": 0.7}, gce={"accuracy": 0.8}))
    assert "gce gets 80.0% right; ce (70.0%) is clearly behind" in better
    assert "+10.0 ± 0.0 points with gce" in better
    worse = paragraph(told(two, ce={"accuracy": 0.8}, gce={"accuracy": (0.6, 0.7)}))
    assert "ce gets 80.0% right; gce (65.0%) is clearly behind" in worse
    assert "−15.0 ± 10.0 points with gce" in worse


def test_ten_times_the_rate_is_told_where_it_was_tried(results):
    alone = told(only(results, "ce"), ce={"accuracy": 0.9})
    sweep = (Tried(0.03, 0.57, 1.0, {"by_heart": 0.1}), Tried(0.3, 0.41, 2.0, {"by_heart": 0.98}))
    tried = replace(alone, losses=(replace(alone["ce"], rate=0.03, sweep=sweep),))
    assert "of ce from 57.0% to 41.0% (98.0% by heart)" in paragraph(tried)
    not_tried = replace(alone, losses=(replace(alone["ce"], rate=0.3, sweep=sweep),))
    assert "Ten times" not in paragraph(not_tried)


def test_the_finder_is_only_praised_where_it_is_clearly_better(results):
    two = only(results, "ce", "gce")
    clear = paragraph(told(two, ce={"found": 0.6}, gce={"found": 0.9}))
    assert "hold 90.0% of the" in clear
    assert "flipped ones with gce, and 60.0% with ce." in clear
    alike = paragraph(told(two, ce={"found": (0.8, 0.9)}, gce={"found": (0.9, 0.82)}))
    assert "flipped ones with gce; no loss finds clearly fewer (the fewest: 85.0% with ce)." in alike
