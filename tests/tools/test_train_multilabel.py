"""``crossent train digits-multilabel``: what is on a canvas, how it is scored, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tools.training import Silent, only, settings, small, told, trained

from crossent.tools.train import JOBS, data, metrics
from crossent.tools.train import run as running
from crossent.tools.train.canvases import BLOCKS
from crossent.tools.train.conclusions import paragraph
from crossent.tools.train.multilabel import CANDIDATES, by_number, draw


@pytest.fixture(scope="module")
def results():
    return trained("digits-multilabel")


@pytest.fixture(scope="module")
def split():
    return small("digits-multilabel").load(settings("digits-multilabel"), 0)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_canvas_shows_its_digits_and_is_labelled_by_them():
    images, labels = (each.numpy() for each in data.digits())
    pool, scrambled, blank = np.arange(100, 300), 0, 0
    for number in range(40):
        canvas = draw(number, pool, np.random.default_rng(number))
        there = canvas.position[canvas.position >= 0]
        assert len(there) == number % 4
        assert set(there) <= set(pool)
        assert sorted(np.flatnonzero(canvas.label)) == sorted(labels[there])
        assert len(set(labels[there])) == len(there)
        for cell in range(4):
            row, column = divmod(cell, 2)
            ink = canvas.ink[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            if canvas.position[cell] >= 0:
                assert np.array_equal(ink, images[canvas.position[cell]])
            elif ink.any():
                # the ink of a digit of the pool, and not the digit
                sums = np.sort(ink.ravel())
                assert any(np.array_equal(sums, np.sort(images[i].ravel())) for i in pool)
                assert not any(np.array_equal(ink, images[i]) for i in pool)
                scrambled += 1
            else:
                blank += 1
    assert 20 < scrambled < 80
    assert 20 < blank < 80


def test_every_number_of_digits_is_as_frequent_in_every_block(split):
    numbers = split.test.labels.sum(1).reshape(BLOCKS, -1)
    assert all(torch.equal(block.sort().values, torch.tensor([0.0, 1, 2, 3])) for block in numbers)


def test_blocks_of_the_test_part_share_no_digit(split):
    blocks = [set(block.flatten().tolist()) - {-1} for block in split.test.position.chunk(BLOCKS)]
    assert len(blocks) == BLOCKS
    assert sum(map(len, blocks)) == len(set.union(*blocks))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_softmax_learns_nothing_from_a_canvas_without_a_digit_and_a_sigmoid_does():
    hot = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    for name, ignored in (("softmax", True), ("softmax-na", False), ("bce", False), ("focal", False)):
        logits = torch.tensor([[1.0, 0, 2], [3, -1, 0]], requires_grad=True)
        CANDIDATES[name].loss(logits, hot).backward()
        assert bool((logits.grad[1] == 0).all()) is ignored
        assert (logits.grad[0] != 0).all()


# --- scores -----------------------------------------------------------------------------------------------------------


def test_average_precision_is_sklearns_with_equal_probabilities_too():
    rng = np.random.default_rng(0)
    for decimals in (9, 1):
        p, hot = rng.random((60, 5)).round(decimals), rng.random((60, 5)) < 0.3
        assert metrics.mean_average_precision(p, hot) == pytest.approx(average_precision_score(hot, p), rel=1e-12)


def test_a_class_that_does_not_occur_has_no_average_precision():
    p, hot = np.array([[0.9, 0.5], [0.1, 0.5]]), np.array([[True, False], [False, False]])
    assert metrics.mean_average_precision(p, hot) == 1


def test_the_best_threshold_has_most_rows_exact():
    rng = np.random.default_rng(1)
    p, hot = rng.random((50, 4)), rng.random((50, 4)) < 0.4
    best = metrics.exact(p, hot, metrics.best_threshold(p, hot)).sum()
    assert best == max(((p >= t) == hot).all(1).sum() for t in np.arange(1, 100) / 100)


def test_told_how_many_nothing_is_right_where_there_is_nothing():
    p = np.array([[0.9, 0.8, 0.1], [0.2, 0.1, 0.3], [0.5, 0.4, 0.6]])
    hot = np.array([[False, False, False], [False, False, True], [True, True, False]])
    assert metrics.exact_if_told(p, hot).tolist() == [True, True, False]


def test_the_threshold_is_the_validation_canvases(split):
    """It is the same whatever the test canvases are, and best for the others."""
    job = small("digits-multilabel")
    candidate = CANDIDATES["bce"]

    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x[:, 0, :2, :5].reshape(-1, 10)

    class Run:
        model, seed, train_loss, validation_score = Fixed(), 0, (1.0,), (0.5,)

    validation = split.validation._replace(inputs=split.validation.inputs * 0 - 9)
    inputs = validation.inputs.clone()
    inputs[:, 0, :2, :5] = torch.where(validation.labels > 0, 0.2, -0.2).reshape(-1, 2, 5)
    validation = validation._replace(inputs=inputs)
    other = split.test._replace(labels=split.test.labels.flip(0))
    for test in (split.test, other):
        result = job.examine(candidate, Run(), split._replace(validation=validation, test=test))
        assert result.details["threshold"] == 0.5
    assert job.judge(candidate, Fixed()(inputs), validation.labels).score == 1


def test_scores_are_means_over_the_numbers(results):
    for loss in results.losses:
        for run in loss.runs:
            assert run.scores["exact"] == pytest.approx(np.mean([run.scores[f"exact_{number}"] for number in range(4)]))
            # a quarter of the canvases is empty: told that there are 0 digits, every network is right on those
            assert run.scores["told"] >= 0.25


def test_the_table_has_a_column_a_number(results):
    row = by_number(results).rows[0]
    assert row == ("softmax", *(f"{100 * results['softmax'].mean(f'exact_{number}'):.1f}" for number in range(4)))


# --- what is said -----------------------------------------------------------------------------------------------------


def both(results, softmax, bce):
    return paragraph(told(only(results, "softmax", "bce"), softmax=softmax, bce=bce))


def test_what_softmax_lacks_is_told_as_it_is(results):
    number = both(results, {"exact": 0.4, "told": 0.9}, {"exact": 0.8, "told": 0.92})
    assert "bce gets 80.0% exactly right; softmax (40.0%) is clearly behind" in number
    assert "softmax gets 90.0% and bce 92.0%: most of what softmax lacks is how many, not which." in number
    which = both(results, {"exact": 0.4, "told": 0.5}, {"exact": 0.8, "told": 0.9})
    assert "softmax does not only lack how many, but also which." in which
    nothing = both(results, {"exact": 0.8, "told": 0.9}, {"exact": 0.8, "told": 0.9})
    assert "softmax gets 90.0% and bce 90.0%." in nothing
    ahead = both(results, {"exact": 0.9, "told": 0.9}, {"exact": 0.8, "told": 0.9})
    assert "softmax gets 90.0% exactly right; bce (80.0%) is clearly behind" in ahead
    assert "lack" not in ahead


def test_one_threshold_is_only_blamed_where_it_fails(results):
    fails = {"exact": 0.5, "exact_1": 0.9, "exact_3": 0.01}
    said = both(results, fails, {"exact": 0.8, "exact_1": 0.8, "exact_3": 0.7})
    assert "One threshold must do for p = 1 and p = 1/3: softmax gets 90.0% of the canvases with one digit" in said
    said = both(results, {**fails, "exact_3": 0.8}, {"exact": 0.8, "exact_1": 0.8, "exact_3": 0.7})
    assert "Though one threshold must do for p = 1 and p = 1/3, softmax gets 90.0%" in said


def test_canvases_without_a_digit_are_reported_for_each_loss(results):
    said = both(results, {"exact": 0.5, "exact_0": 0.1}, {"exact": 0.8, "exact_0": 0.95})
    assert "nothing is named on 10.0% with softmax and 95.0% with bce" in said


def test_focal_is_compared_with_bce(results):
    two = only(results, "bce", "focal")
    said = paragraph(told(two, bce={"exact": 0.8, "map": 0.9}, focal={"exact": 0.7, "map": 0.95}))
    assert "changes exact match by −10.0 ± 0.0 points against bce, and mAP by +5.0 ± 0.0 points" in said


def test_the_page_says_of_several_labels_what_a_run_does():
    page = " ".join((Path(__file__).parents[2] / "docs" / "why-cross-entropy.md").read_text("utf-8").split())
    asked = settings("digits-multilabel", losses=("softmax", "bce"), epochs=4, seeds=1, rates=(0.1, 1.0))
    ran = running.run(running.job_of(JOBS["digits-multilabel"]), asked, Silent())
    softmax, bce = ran["softmax"], ran["bce"]
    assert "The sigmoid keeps all three." in page
    assert bce.mean("exact") > softmax.mean("exact") + 0.1
    assert "If somebody tells you M, take the M largest: then both are alike" in page
    assert abs(softmax.mean("told") - bce.mean("told")) < 0.1
    # one threshold for one label and for three
    assert "For M = 1 you would want 0.5, and that finds none of the four." in page
    assert softmax.runs[0].details["threshold"] < 0.5
    assert softmax.mean("exact_1") - softmax.mean("exact_3") > 0.5 > bce.mean("exact_1") - bce.mean("exact_3")
    assert "the model learns nothing from it" in page
    assert bce.mean("exact_0") > softmax.mean("exact_0")
    said = paragraph(ran)
    assert "most of what softmax lacks is how many, not which" in said
    assert "Softmax cross entropy learns nothing from canvases without a digit" in said
