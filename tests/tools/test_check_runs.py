"""Broken runs of the kinds that people report, by what they would have saved; and the healthy and merely bad ones beside them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import crossent
from crossent import reference

RNG = np.random.default_rng(7)
C, N = 11, 400
Y = RNG.integers(0, C, N)
GOOD = RNG.normal(size=(N, C)) + 5 * np.eye(C)[Y]
BAD = RNG.normal(size=(N, C)) + 0.7 * np.eye(C)[Y]  # hardly better than chance, and not sure either


def found(*args, **options):
    return {finding.rule: finding for finding in crossent.check(*args, **options)}


# --- healthy, and merely bad ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [GOOD, BAD, 0.01 * BAD, 3 * GOOD], ids=["good", "bad", "barely trained", "sure"])
@pytest.mark.parametrize("sort", [False, True])
def test_healthy_and_merely_bad_models_are_left_in_peace(x, sort):
    order = np.argsort(Y, kind="stable") if sort else slice(None)
    assert found(x[order], Y[order]) == {}


def test_a_model_that_confuses_two_classes_is_left_in_peace():
    y = RNG.integers(0, 5, 300)
    x = RNG.normal(size=(300, 5)) + 4 * np.eye(5)[np.where(y == 3, 4, y)]
    assert found(x, y) == {}


def test_an_imbalanced_model_is_left_in_peace():
    y = (RNG.random(2000) < 0.04) * 1
    x = np.stack([np.full(2000, 2.0), -1 + 1.5 * y], 1) + 0.5 * RNG.normal(size=(2000, 2))
    assert found(x, y) == {}
    frequencies = np.bincount(y, minlength=2)
    assert found(x, y, weight=2000 / (2 * frequencies)) == {}


def test_ordinary_segmentation_and_text_are_left_in_peace():
    masks = np.zeros((6, 12, 12), int)
    masks[:, 3:7, 3:7] = RNG.integers(1, 4, (6, 4, 4))
    x = np.moveaxis(4 * np.eye(4)[masks] + RNG.normal(size=(6, 12, 12, 4)), -1, 1)
    assert found(x, masks) == {}
    assert found(x[:, :1] * 0.7, (masks == 0)[:, None] * 1.0, task="binary") == {}
    tokens = RNG.integers(0, 9, (20, 16))
    assert found(2 * np.eye(9)[tokens] + RNG.normal(size=(20, 16, 9)), tokens, task="lm") == {}
    flat = np.zeros((20, 16), int)
    flat[:, 4:9] = 1  # a signal whose end is background, as its beginning is
    assert found(np.moveaxis(3 * np.eye(2)[flat] + RNG.normal(size=(20, 16, 2)), -1, 1), flat) == {}


def chain(steps=3000, kinds=5, seed=0):
    """A text whose every letter depends on the one before, and the probabilities of each."""
    random = np.random.default_rng(seed)
    follows = random.dirichlet(np.full(kinds, 0.6), kinds)
    text = [0]
    for _ in range(steps):
        text.append(int(random.choice(kinds, p=follows[text[-1]])))
    return np.array(text), follows


def test_texts_and_series_whose_rows_know_those_before_them_are_left_in_peace():
    text, follows = chain()
    random = np.random.default_rng(1)
    assert found(np.log(follows[text[:-1]]) + 0.3, text[1:]) == {}  # a bigram model, its rows one after the other
    slow = np.cumsum(random.normal(size=3000))
    y = np.digitize(slow, np.quantile(slow, [0.25, 0.5, 0.75]))
    late = np.roll(y, 1)
    assert found(4 * np.eye(4)[late] + random.normal(size=(3000, 4)), y) == {}  # a forecast that nothing changes
    both = np.eye(4)[y] + 0.5 * np.eye(4)[late] + 0.5 * np.eye(4)[np.roll(y, -1)]
    assert found(2 * both + random.normal(size=(3000, 4)), y) == {}  # a tagger that looks both ways


@pytest.mark.parametrize("seed", range(6))
def test_logits_with_outliers_say_nothing_about_other_rows(seed):
    random = np.random.default_rng(seed)
    classes, n = int(random.integers(2, 30)), int(random.integers(200, 1200))
    y = random.choice(classes, n, p=random.dirichlet(np.full(classes, 0.5)))
    x = random.standard_t(2, size=(n, classes)) + random.uniform(0, 6, (n, 1)) * np.eye(classes)[y]
    assert "CE125" not in found(x, y)


@pytest.mark.parametrize(
    "losses", [[2.4, 2.9, 2.2, 1.8, 1.9, 1.2, 0.9, 0.5], [0.7] * 3 + [0.69], [1e-9, 0.0, 0.0, 1e-8, 1e-9]]
)
def test_ordinary_courses_are_left_in_peace(losses):
    assert found(GOOD, Y, losses=losses) == {}


# --- stuck ------------------------------------------------------------------------------------------------------------


def test_logits_that_do_not_depend_on_the_row():
    row = np.array([-0.3, 1, -0.5, 0.8])
    for x in (
        np.tile(row, (500, 1)),
        np.tile(row, (500, 1)) + 1e-7 * RNG.normal(size=(500, 4)),
        np.tile(40 * row, (60, 1)),
    ):
        y = RNG.integers(0, 4, len(x))
        assert "in all" in found(x, y)["CE122"].seen
    assert "CE122" in found(np.full((40, 1), 1.3), RNG.integers(0, 2, (40, 1)).astype(float), task="binary")
    assert "CE122" not in found(np.tile(row, (500, 1)) + 0.1 * RNG.normal(size=(500, 4)), RNG.integers(0, 4, 500))
    assert set(found(np.zeros((100, 4)), RNG.integers(0, 4, 100))) == {"CE118"}  # a model before its first step


def test_one_class_takes_all_predictions():
    x = GOOD + 30 * np.eye(C)[3]
    assert "class 3 is predicted in 100.0% of 400 rows" in found(x, Y)["CE123"].seen
    assert "CE123" not in found(x, np.where(np.arange(N) % 20, 3, Y))  # as it should be
    t = RNG.integers(0, 2, (200, 1)).astype(float)
    assert "no is predicted in 100.0%" in found(t + RNG.normal(size=(200, 1)) - 9, t, task="binary")["CE123"].seen
    named = found(x, Y, class_names=[f"c{k}" for k in range(C)])["CE123"].seen
    assert "class 3 (c3)" in named


def test_labels_of_one_kind():
    masks = np.full((4, 12, 12), 10)
    x = RNG.normal(size=(4, 11, 12, 12))
    assert "all 576 labels are class 10, of 11 classes" in found(x, masks)["CE124"].seen
    z = RNG.normal(size=(4, 1, 12, 12))
    for value in (0.0, 1.0):
        assert f"all 576 targets are {value:.0f}" in found(z, np.full(z.shape, value), task="binary")["CE124"].seen
    scaled = (RNG.random(z.shape) < 0.3) / 255
    assert "about 1/255" in found(z, scaled, task="binary")["CE124"].seen
    assert "divided by 255" in found(z, scaled, task="binary")["CE124"].fix


# --- labels of others -------------------------------------------------------------------------------------------------

MIXED = {
    "shifted classes": (GOOD, (Y + 1) % C, "label − 1 modulo C"),
    "shifted by 3": (GOOD, (Y - 3) % C, r"label + 3 modulo C"),
    "text order": (GOOD, np.argsort(sorted(range(C), key=str))[Y], "the order of the numbers as text, 0, 1, 10"),
    "text order, the other way": (GOOD[:, sorted(range(C), key=str)], Y, "the order of the numbers as text, 0, 1, 10"),
    "reversed classes": (GOOD, C - 1 - Y, "the reverse order"),
    "two swapped and one moved": (GOOD, np.array([1, 2, 0, 4, 3, 6, 5, 8, 7, 10, 9])[Y], "0 → 2, 1 → 0, 2 → 1, 3 → 4"),
    "a row down": (GOOD, np.roll(Y, 1), "labels 1 row up"),
    "two rows up": (GOOD, np.roll(Y, -2), "labels 2 rows down"),
    "reversed rows": (GOOD, Y[::-1], "labels in reverse"),
    "rows as text": (GOOD, Y[sorted(range(N), key=str)], "labels sorted as numbers"),
    "negated": (-GOOD, Y, "logits of the opposite sign"),
}


@pytest.mark.parametrize("name", MIXED)
def test_labels_that_belong_elsewhere_are_found_with_the_way_back(name):
    x, y, said = MIXED[name]
    findings = found(x, y)
    assert said in findings["CE125"].seen, findings["CE125"].seen
    assert f"{reference.cross_entropy(x, y).loss:.4f}" in findings["CE125"].seen
    assert "CE127" not in findings
    if "labels = np.array(" in findings["CE125"].fix:
        order = eval(findings["CE125"].fix.split("np.array(")[1].split(")")[0])
        assert (x.argmax(1) == np.array(order)[y]).mean() > 0.9


def test_transposed_labels_are_found():
    y = RNG.integers(0, 7, (12, 12))
    x = 5 * np.eye(7)[y] + RNG.normal(size=(12, 12, 7))
    assert "transposed, labels.T" in found(x, y.T, task="lm")["CE125"].seen
    assert "CE125" not in found(x, y, task="lm")


def test_binary_logits_of_the_opposite_sign():
    t = RNG.integers(0, 2, (200, 1)).astype(float)
    x = 4 * t - 2 + RNG.normal(size=(200, 1))
    assert "opposite sign" in found(-x, t, task="binary")["CE125"].seen
    assert found(x, t, task="binary") == {}


def test_a_mean_loss_above_ln_c_is_told_with_what_is_right():
    found_here = found(GOOD, RNG.permutation(Y))["CE127"]
    assert "the mean loss is" in found_here.seen
    assert "ln 11 = 2.3979" in found_here.seen
    assert "of rows are right" in found_here.seen
    assert (
        "ln 2" in found(9 * RNG.normal(size=(200, 1)), np.arange(200)[:, None] % 2 * 1.0, task="binary")["CE127"].seen
    )


# --- what counts ------------------------------------------------------------------------------------------------------


def padded(pad, seed=3):
    random = np.random.default_rng(seed)
    y = random.integers(1, 9, (40, 20))
    lengths = random.integers(6, 18, 40)
    for row, length in zip(y, lengths, strict=True):
        row[length:] = pad
    x = random.normal(size=(40, 20, 9)) + 1.0 * np.eye(9)[y] + 6 * np.eye(9)[y] * (y == pad)[..., None]
    return x, y


@pytest.mark.parametrize("pad", [0, 5])
def test_padding_that_is_counted_as_text(pad):
    x, y = padded(pad)
    seen = found(x, y, task="lm")["CE126"].seen
    text = reference.cross_entropy(x.reshape(-1, 9), np.where(y == pad, -100, y).reshape(-1)).loss
    assert f"are a {pad} at the end of a row" in seen
    if pad == 0:
        assert f"the others {text:.4f}" in seen
    assert "CE126" in found(np.moveaxis(x, -1, 1), y)  # (N, C, T)
    assert "CE126" not in found(x, np.where(y == pad, -100, y), task="lm")
    assert "CE126" not in found(x, y, task="lm", ignore_index=pad)
    assert "CE126" in found(x, y, task="lm", shift=True)


def test_class_weights_that_drown_the_rest():
    weight = np.where(np.arange(C) == 3, 1000.0, 1.0)
    assert "class 3 weighs 1000" in found(GOOD, Y, weight=weight)["CE131"].seen
    assert "CE131" not in found(GOOD, Y, weight=np.where(np.arange(C) == 3, 5.0, 1.0))
    t = (RNG.random((400, 1)) < 0.3) * 1.0
    x = 4 * t - 2 + RNG.normal(size=(400, 1))
    assert "pos_weight 1000 gives yes" in found(x, t, task="binary", pos_weight=1000.0)["CE131"].seen
    assert "CE131" not in found(x, t, task="binary", pos_weight=7.0)


WEIGHED = np.random.default_rng(134)
SKEWED = np.repeat(np.arange(5), [600, 250, 100, 40, 10])
COUNTS = np.bincount(SKEWED)


@pytest.mark.parametrize(
    "weight",
    [COUNTS, COUNTS / COUNTS.sum(), np.sqrt(COUNTS), COUNTS / COUNTS.max(), np.array([5.0, 4, 3, 2, 1])],
    ids=["counts", "frequencies", "square roots", "of the largest", "ranks"],
)
def test_class_weights_that_are_inverted(weight):
    x = WEIGHED.normal(size=(len(SKEWED), 5)) + 3 * np.eye(5)[SKEWED]
    finding = found(x, SKEWED, weight=weight)["CE134"]
    assert finding.severity == "note"
    assert "class 0, which has 600 labels" in finding.seen
    assert "class 4, which has 10" in finding.seen


def test_inverted_weights_of_two_classes():
    y = np.repeat([0, 1], [950, 50])
    x = WEIGHED.normal(size=(1000, 2)) + 3 * np.eye(2)[y]
    assert "CE134" in found(x, y, weight=[0.95, 0.05])
    assert "CE134" not in found(x, y, weight=[0.05, 0.95])


def test_healthy_class_weights_are_not_inverted():
    x = WEIGHED.normal(size=(len(SKEWED), 5)) + 3 * np.eye(5)[SKEWED]
    healthy = [
        1 / COUNTS,
        1 / np.sqrt(COUNTS),
        crossent.class_weights(torch.tensor(COUNTS)).numpy(),
        np.ones(5),
        np.array([1.5, 1.2, 1.0, 1.0, 1.0]),  # less than a factor of two
        np.array([0.0, 1, 2, 4, 8]),  # the most frequent is left out
        np.array([3.0, 1.0, 9.0, 2.0, 8.0]),  # in no order
    ]
    for weight in healthy:
        assert "CE134" not in found(x, SKEWED, weight=weight)
    assert "CE134" not in found(x, SKEWED)
    for seed in range(40):  # weights of their own on classes that are equally frequent, and small batches
        random = np.random.default_rng(seed)
        y = random.integers(0, 4, 32)
        assert "CE134" not in found(random.normal(size=(32, 4)), y, weight=random.uniform(0.2, 5, 4))


def test_pos_weights_that_are_inverted():
    share = np.array([0.5, 0.2, 0.05])
    t = (WEIGHED.random((1000, 3)) < share) * 1.0
    x = 4 * t - 2 + WEIGHED.normal(size=t.shape)
    assert "pos_weight is" in found(x, t, task="binary", pos_weight=share / (1 - share))["CE134"].seen
    assert "CE134" not in found(x, t, task="binary", pos_weight=(1 - share) / share)


def test_debug_notes_inverted_weights():
    x = WEIGHED.normal(size=(len(SKEWED), 5)) + 3 * np.eye(5)[SKEWED]
    assert "CE134" in seen_by_debug((x, SKEWED), weight=torch.tensor(COUNTS / COUNTS.sum()))
    assert "CE134" not in seen_by_debug((x, SKEWED), weight=crossent.class_weights(torch.tensor(COUNTS)).double())


def test_a_class_that_was_ignored_in_training():
    masks = np.where(RNG.random((4, 12, 12)) < 0.8, 10, RNG.integers(0, 10, (4, 12, 12)))
    guess = np.where(masks == 10, RNG.integers(0, 10, masks.shape), masks)
    x = np.moveaxis(4 * np.eye(11)[guess] - 9 * np.eye(11)[10] + RNG.normal(size=(4, 12, 12, 11)), -1, 1)
    findings = found(x, masks)
    assert "class 10 is the label of 7" in findings["CE132"].seen
    assert "CE127" in findings
    ignored = found(x + 12 * np.eye(11)[10][:, None, None], masks, ignore_index=10)
    assert "class 10 is ignore_index and is predicted in" in ignored["CE133"].seen
    assert found(x, masks, ignore_index=10) == {}


# --- the course -------------------------------------------------------------------------------------------------------


def test_the_course_of_a_run():
    assert "from 2.3 to 355 at value 1 of 4" in found(GOOD, Y, losses=[2.3, 355, 2.55, 2.4])["CE128"].seen
    assert "-0.25 at value 2" in found(GOOD, Y, losses=[0.3, 0.1, -0.25])["CE129"].seen
    assert "exactly 0 in 5 of 5" in found(GOOD, Y, losses=[0.0] * 5)["CE129"].seen
    assert "all 9 values of the loss are 1.75" in found(GOOD, Y, losses=[1.75] * 9)["CE130"].seen
    for rule in ("CE128", "CE129", "CE130"):
        assert rule not in found(GOOD, Y, losses=list(np.linspace(2.4, 0.3, 20)))


def test_rounded_percentages_are_probabilities():
    p = np.round(reference.softmax(BAD), 2)
    assert np.abs(p.sum(1) - 1).max() > 0.01
    assert set(found(p, Y)) == {"CE101"}
    assert "percentages" in found(np.round(100 * p), Y)["CE101"].seen
    assert "CE101" not in found(reference.sigmoid(BAD), Y)


# --- while it trains --------------------------------------------------------------------------------------------------


def seen_by_debug(*batches, **options):
    with warnings.catch_warnings(), crossent.debug() as watching:
        warnings.simplefilter("ignore")
        for x, y in batches:
            crossent.cross_entropy(torch.tensor(x), torch.tensor(y), **options)
    return {finding.rule for finding in watching.findings}


def test_debug_names_them_too():
    assert "CE131" in seen_by_debug(
        (GOOD, Y), weight=torch.tensor([1.0] * 3 + [1000.0] + [1.0] * 7, dtype=torch.float64)
    )
    assert "CE124" in seen_by_debug((RNG.normal(size=(4, 11, 8, 8)), np.full((4, 8, 8), 10)))
    x, y = padded(0)
    assert "CE126" in seen_by_debug((np.moveaxis(x, -1, 1), y))
    assert "CE125" in seen_by_debug((GOOD, np.roll(Y, 1)))
    assert "CE125" in seen_by_debug((0.3 * GOOD + 9 * np.eye(C)[np.roll(Y, 1)], np.roll(Y, 1)))  # learned by heart
    untrained = 0.1 * RNG.normal(size=(N, C))
    assert seen_by_debug((untrained, Y), (untrained * 0, Y)) == set()
    with warnings.catch_warnings(), crossent.debug() as watching:
        warnings.simplefilter("ignore")
        for k in range(100):
            crossent.cross_entropy(torch.tensor(GOOD * (-9.0 if k == 1 else 0.3)), torch.tensor(Y))
    assert "CE128" in {finding.rule for finding in watching.findings}


def test_an_order_that_only_knows_the_frequencies_is_no_better_match():
    masks = np.where(RNG.random((4, 20, 20)) < 0.88, 10, RNG.integers(0, 10, (4, 20, 20)))
    guess = np.where(masks == 10, RNG.integers(0, 10, masks.shape), masks)
    x = np.moveaxis(3 * np.eye(11)[guess] - 12 * np.eye(11)[10] + RNG.normal(size=(4, 20, 20, 11)), -1, 1)
    assert (x.argmin(1) == masks).mean() > 0.8  # of the opposite sign nearly all are right, all of them the same class
    assert set(found(x, masks)) == {"CE127", "CE132"}


def test_masks_of_255_for_two_classes_are_told_to_be_divided():
    masks = np.where(RNG.random((4, 8, 8)) < 0.3, 255, 0)
    x = RNG.normal(size=(4, 2, 8, 8))
    assert "labels // 255" in found(x, masks)["CE114"].fix
    assert "ignore_index=255" in found(x, np.where(RNG.random(masks.shape) < 0.5, 1, masks))["CE114"].fix
