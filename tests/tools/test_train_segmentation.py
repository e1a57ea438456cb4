"""``crossent train digits-segmentation``: what is on a canvas, how its pixels are scored, and what is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score
from tools.training import only, settings, small, told, trained

from crossent import reference
from crossent.tools.train import data, metrics
from crossent.tools.train.canvases import BLOCKS
from crossent.tools.train.conclusions import paragraph
from crossent.tools.train.segmentation import (
    BACKGROUND,
    CANDIDATES,
    FAINT,
    INKS,
    by_class,
    counts,
    draw,
    opening,
    painted,
    written,
)


@pytest.fixture(scope="module")
def results():
    return trained("digits-segmentation")


@pytest.fixture(scope="module")
def split():
    return small("digits-segmentation").load(settings("digits-segmentation"), 0)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_pixel_is_of_a_digit_or_background_or_faint():
    images, labels = (each.numpy() for each in data.digits())
    for number in range(20):
        canvas = draw(number, np.arange(50, 90), np.random.default_rng(number))
        assert set(canvas.position) <= set(range(50, 90))
        # no digit covers another one: all their ink is there
        assert canvas.ink.sum() == images[canvas.position].sum()
        assert np.array_equal(canvas.label == BACKGROUND, canvas.ink == 0)
        assert np.array_equal(canvas.label == FAINT, (canvas.ink > 0) & (canvas.ink < 8))
        dark = dict.fromkeys(range(10), 0)
        for i in canvas.position:
            dark[int(labels[i])] += int((images[i] >= 8).sum())
        assert [int((canvas.label == label).sum()) for label in range(10)] == list(dark.values())


def test_faint_pixels_are_not_counted(split):
    labels = split.train.labels
    assert counts(split.train).sum() == (labels != FAINT).sum() < labels.numel()
    assert counts(split.train)[BACKGROUND] == (labels == BACKGROUND).sum()


def test_blocks_of_the_test_part_share_no_digit(split):
    blocks = [set(block.flatten().tolist()) for block in split.test.position.chunk(BLOCKS)]
    assert len(blocks) == BLOCKS
    assert sum(map(len, blocks)) == len(set.union(*blocks))


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CANDIDATES)
def test_faint_pixels_have_no_gradient_and_all_others_do(split, name):
    labels = split.train.labels[:3]
    logits = torch.randn(3, 11, 24, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    CANDIDATES[name].on(split.train)(logits, labels).backward()
    pushed = (logits.grad != 0).any(1)
    assert torch.equal(pushed, labels != FAINT)


def test_weights_are_balanced_over_the_pixels_that_count(split):
    weight = CANDIDATES["weighted"].given(split.train)["weight"]
    np.testing.assert_allclose(weight, reference.class_weights(counts(split.train)), rtol=1e-6)
    assert weight[BACKGROUND] == weight.min()


# --- scores -----------------------------------------------------------------------------------------------------------


def test_pixel_scores_are_sklearns():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice([0, 1, 2, 255], (6, 5, 4)), rng.integers(0, 3, (6, 5, 4))
    each = metrics.confusions(predicted, labels, 3, ignore=255)
    kept = labels != 255
    truth, said = labels[kept], predicted[kept]
    assert np.array_equal(each.sum(0), confusion_matrix(truth, said))
    assert np.array_equal(each[2], confusion_matrix(labels[2][kept[2]], predicted[2][kept[2]], labels=[0, 1, 2]))
    scores = metrics.pixel_scores(each.sum(0))
    np.testing.assert_allclose(scores.iou, jaccard_score(truth, said, average=None))
    np.testing.assert_allclose(scores.recall, recall_score(truth, said, average=None))
    np.testing.assert_allclose(scores.precision, precision_score(truth, said, average=None))


def test_a_class_that_does_not_occur_is_left_out_and_one_never_named_has_no_precision():
    scores = metrics.pixel_scores(np.array([[3, 0, 1], [2, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(scores.iou, [0.5, 0, np.nan])
    np.testing.assert_array_equal(scores.precision, [0.6, 0, 0])
    np.testing.assert_array_equal(scores.recall, [0.75, 0, np.nan])


def test_scores_are_those_of_the_confusion(results):
    for loss in results.losses:
        for run in loss.runs:
            confusion = np.array(run.details["confusion"])
            right = np.diag(confusion)
            iou = right / (confusion.sum(0) + confusion.sum(1) - right)
            np.testing.assert_allclose(run.details["iou"], iou)
            assert run.scores["mean_iou"] == pytest.approx(iou.mean())
            assert run.scores["recall"] == pytest.approx((right / confusion.sum(1))[:BACKGROUND].mean())


def test_a_network_that_is_right_has_every_score(split):
    job = small("digits-segmentation")

    class Right(torch.nn.Module):
        def forward(self, x):
            labels = split.test.labels if len(x) == len(split.test.labels) else split.validation.labels
            return torch.nn.functional.one_hot(labels.clamp(max=BACKGROUND), 11).permute(0, 3, 1, 2).float()

    class Run:
        model, seed, train_loss, validation_score = Right(), 0, (1.0,), (0.5,)

    result = job.examine(CANDIDATES["plain"], Run(), split)
    assert set(result.scores.values()) == {1.0}
    assert job.judge(CANDIDATES["plain"], Right()(split.test.inputs), split.test.labels).score == 1


def test_the_table_has_a_column_a_class(results):
    table = by_class(results)
    iou = np.mean([run.details["iou"] for run in results["weighted"].runs], axis=0)
    row = next(row for row in table.rows if row[0] == "weighted")
    assert table.columns[:3] == ("class", "background", "0")
    assert row[1:] == (f"{100 * iou[10]:.1f}", *(f"{100 * each:.1f}" for each in iou[:10]))


# --- what is said and shown -------------------------------------------------------------------------------------------


def test_the_opening_counts_the_pixels(results, split):
    labels = split.train.labels
    background, faint = ((labels == kind).double().mean().item() for kind in (BACKGROUND, FAINT))
    said = opening(results)
    assert f"{100 * background:.1f}% of the training pixels are background, {100 * faint:.1f}% faint ink" in said
    assert f"share the other {100 * (1 - background - faint):.1f}%" in said


def test_gain_and_price_of_weights_are_told_as_they_are(results):
    two = only(results, "plain", "weighted")
    plain = {"mean_iou": 0.7, "recall": 0.8, "precision": 0.9}
    said = paragraph(told(two, plain=plain, weighted={"mean_iou": 0.6, "recall": 0.9, "precision": 0.7}))
    assert "plain has a mean IoU of 70.0%; weighted (60.0%) is clearly behind" in said
    assert (
        "change mean IoU by −10.0 ± 0.0 points, the recall of the digits' pixels by +10.0 ± 0.0 points and their precision by "
        "−20.0 ± 0.0 points" in said
    )
    said = paragraph(told(two, plain=plain, weighted={"mean_iou": 0.8, "recall": 0.7, "precision": 0.95}))
    assert "weighted has a mean IoU of 80.0%; plain (70.0%) is clearly behind" in said
    assert "change mean IoU by +10.0 ± 0.0 points, the recall of the digits' pixels by −10.0 ± 0.0 points" in said
    failed = paragraph(told(two, plain=plain, weighted={"mean_iou": 0.1}))
    assert "Class weights" not in failed


def test_a_canvas_is_written_and_painted():
    lines = written(np.array([[BACKGROUND, 3], [FAINT, 0]]))
    assert lines == (".3", "~0")
    image = painted(lines)
    assert image.shape == (2, 2, 3)
    assert image[0, 0].tolist() == [1, 1, 1]
    assert len({tuple(pixel) for pixel in image.reshape(4, 3).tolist()}) == 4
    assert len(set(INKS)) == 10
