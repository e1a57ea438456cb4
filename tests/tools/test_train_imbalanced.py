"""``crossent train digits-imbalanced``: what is thinned, what is found of it, and what is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.utils.class_weight import compute_class_weight
from tools.training import only, settings, told, trained

from crossent.tools.train import data, metrics
from crossent.tools.train.conclusions import paragraph
from crossent.tools.train.imbalanced import CANDIDATES, JOB, by_class, counts, opening, thin, training_images


@pytest.fixture(scope="module")
def results():
    return trained("digits-imbalanced")


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 10, 100])
def test_classes_are_thinned_geometrically(ratio):
    whole = data.load_digits(0).train
    part = thin(whole, ratio, np.random.default_rng(0))
    most = np.bincount(whole.labels).min()
    expected = [max(1, round(most / ratio ** (label / 9))) for label in range(10)]
    assert counts(part).tolist() == expected
    assert expected[0] / expected[9] == pytest.approx(ratio, rel=0.2)


def test_what_is_kept_is_part_of_the_training_part_and_only_that_is_thinned():
    whole, split = data.load_digits(0), JOB.load(settings("digits-imbalanced"), 4)
    assert set(split.train.position.tolist()) < set(whole.train.position.tolist())
    for part, before in ((split.validation, whole.validation), (split.test, whole.test)):
        assert all(torch.equal(a, b) for a, b in zip(part, before, strict=True))
    place = {p: i for i, p in enumerate(whole.train.position.tolist())}
    rows = [place[p] for p in split.train.position.tolist()]
    assert torch.equal(split.train.inputs, whole.train.inputs[rows])
    assert torch.equal(split.train.labels, whole.train.labels[rows])


def test_weights_and_prior_are_those_of_the_training_part():
    part = JOB.load(settings("digits-imbalanced"), 0).train
    weight = CANDIDATES["weighted"].given(part)["weight"]
    expected = compute_class_weight("balanced", classes=np.arange(10), y=part.labels.numpy())
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    bias = CANDIDATES["adjusted"].given(part)["logit_bias"]
    np.testing.assert_allclose(bias.exp() * len(part.labels), np.bincount(part.labels), rtol=1e-5)
    assert CANDIDATES["plain"].given(part) == {}


# --- scores -----------------------------------------------------------------------------------------------------------


def test_recall_and_balanced_accuracy_are_sklearns():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(5, 200, p=[0.5, 0.2, 0.1, 0.1, 0.1]), rng.integers(0, 5, 200)
    recall = metrics.recalls(predicted, labels, 5)
    np.testing.assert_allclose(recall, recall_score(labels, predicted, average=None))
    shares = metrics.balanced_shares(predicted == labels, labels)
    assert shares.mean() == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_scores_are_means_of_the_recalls(results):
    for loss in results.losses:
        for run in loss.runs:
            recall = run.details["recall"]
            assert run.scores["balanced_accuracy"] == pytest.approx(np.mean(recall))
            assert run.scores["common"] == pytest.approx(np.mean(recall[:3]))
            assert run.scores["rare"] == pytest.approx(np.mean(recall[-3:]))


def test_the_table_has_a_column_a_class(results):
    table = by_class(results)
    assert table.rows[0] == ("training images", *map(str, training_images(results)))
    recall = np.mean([run.details["recall"] for run in results["adjusted"].runs], axis=0)
    row = next(row for row in table.rows if row[0] == "adjusted")
    assert row[1:] == tuple(f"{100 * each:.0f}" for each in recall)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_opening_counts_the_images_and_names_the_ways_out_at_hand(results):
    images = training_images(results)
    assert f"{images[0]} training images of the digit 0 and {images[9]} of the digit 9" in opening(results)
    assert "logit adjustment" in opening(results)
    assert "logit adjustment" not in opening(only(results, "plain", "focal"))


def test_gain_and_price_are_told_as_they_are(results):
    two = only(results, "plain", "adjusted")
    plain = {"balanced_accuracy": 0.8, "rare": 0.5, "common": 0.98}
    better = told(two, plain=plain, adjusted={"balanced_accuracy": 0.9, "rare": 0.7, "common": 0.9})
    said = paragraph(better)
    assert "adjusted has a balanced accuracy of 90.0%; plain (80.0%) is clearly behind" in said
    assert "plain finds 50.0%" in said
    assert (
        "adjusted finds more of them (+20.0 ± 0.0 points), and fewer of the 3 most frequent (−8.0 ± 0.0 points)" in said
    )
    worse = told(two, plain=plain, adjusted={"balanced_accuracy": 0.7, "rare": 0.3, "common": 0.99})
    said = paragraph(worse)
    assert "adjusted finds fewer of them (−20.0 ± 0.0 points), and more of the 3 most frequent" in said
    unclear = told(two, plain=plain, adjusted={"balanced_accuracy": 0.8, "rare": (0.4, 0.65), "common": (0.99, 0.95)})
    said = paragraph(unclear)
    assert "adjusted finds not clearly more of them" in said
    assert "and not clearly fewer of the 3 most frequent" in said


def test_nothing_is_compared_with_what_did_not_learn(results):
    two = only(results, "plain", "adjusted")
    failed = told(two, plain={"balanced_accuracy": 0.1}, adjusted={"balanced_accuracy": 0.9})
    assert "rarest" not in paragraph(failed)
    alone = told(only(results, "plain"), plain={"balanced_accuracy": 0.8, "rare": 0.5})
    assert paragraph(alone).count("points") == 0
    assert "plain finds 50.0%." in paragraph(alone)


def test_the_ratio_is_obeyed():
    asked = replace(settings("digits-imbalanced"), options={"ratio": 5})
    images = counts(JOB.load(asked, 0).train)
    assert images[0] / images[9] == pytest.approx(5, rel=0.05)
