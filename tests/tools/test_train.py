"""The training jobs: what is split, trained, chosen and scored, and what is said about it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.metrics import accuracy_score, log_loss
from tools.training import CSP, Links, Silent
from torch import nn

from crossent import reference
from crossent.tools.terminal import draw
from crossent.tools.train import JOBS, MissingDependency, conclusions, data, fit, metrics, require, tables
from crossent.tools.train.candidates import SURE_AND_WRONG, push_curve, push_when_wrong
from crossent.tools.train.digits import CANDIDATES, JOB, gradients, opening
from crossent.tools.train.figure import png, spread_apart, svg
from crossent.tools.train.network import network
from crossent.tools.train.panel import DARK, LIGHT
from crossent.tools.train.report import command, notices, write_page
from crossent.tools.train.results import LossResult, SeedResult, TrainSettings, Tried
from crossent.tools.train.run import document
from crossent.tools.train.run import run as train

ALL = tuple(JOBS["digits"].losses)


def settings(**changed) -> TrainSettings:
    plain = {"losses": ALL, "epochs": 2, "seeds": 2, "seed": 0, "rates": (0.1, 1.0), "quick": False}
    return TrainSettings(**{**plain, **changed})


@pytest.fixture(scope="module")
def split():
    return data.load_digits(0)


def trained(split, **changed):
    """Train on this split, whatever the settings ask for."""
    return train(replace(JOB, load=lambda asked, seed: split), settings(**changed), Silent())


@pytest.fixture(scope="module")
def results():
    return train(JOB, settings(), Silent())


# --- the split --------------------------------------------------------------------------------------------------------


def test_split_is_disjoint_and_whole(split):
    positions = torch.cat([part.position for part in split])
    assert sorted(positions.tolist()) == list(range(1797))


def test_split_is_stratified(split):
    everyone = np.bincount(sklearn_digits().target)
    for part, fraction in zip(split, data.FRACTIONS, strict=True):
        assert np.abs(np.bincount(part.labels, minlength=10) - fraction * everyone).max() <= 1


def test_split_is_fixed_by_its_seed(split):
    again, other = data.load_digits(0), data.load_digits(1)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(again, name).position, getattr(split, name).position)
        assert torch.equal(getattr(again, name).inputs, getattr(split, name).inputs)
    assert not torch.equal(other.test.position, split.test.position)


def test_split_keeps_images_with_their_labels(split):
    bunch = sklearn_digits()
    for part in split:
        assert np.array_equal(bunch.target[part.position], part.labels)
        order = np.corrcoef(bunch.images[part.position[7]].ravel(), part.inputs[7].ravel())[0, 1]
        assert order == pytest.approx(1)


def test_scale_comes_from_the_training_part_alone(split):
    assert float(split.train.inputs.mean()) == pytest.approx(0, abs=1e-6)
    assert float(split.train.inputs.std()) == pytest.approx(1, abs=1e-6)
    assert abs(float(split.test.inputs.mean())) > 1e-6


# --- the scores -------------------------------------------------------------------------------------------------------


def probabilities(rows=200, classes=7, scale=3.0):
    rng = np.random.default_rng(0)
    log_p = -reference.surprisal(rng.normal(size=(rows, classes)) * scale)
    return log_p, rng.integers(0, classes, rows)


def test_nll_and_accuracy_are_sklearns():
    log_p, labels = probabilities()
    assert metrics.nll(log_p, labels) == pytest.approx(log_loss(labels, np.exp(log_p)), rel=1e-12)
    assert metrics.accuracy(log_p, labels) == accuracy_score(labels, log_p.argmax(1))


def test_calibration_error_by_hand():
    # Bins of width 1/15: .95 and .97 share the last one, .55 and .65 have one each; the .65 is wrong.
    p = np.array([[0.95, 0.05], [0.03, 0.97], [0.55, 0.45], [0.65, 0.35]])
    labels = np.array([0, 0, 0, 1])
    by_hand = (2 * abs(0.5 - 0.96) + abs(1 - 0.55) + abs(0 - 0.65)) / 4
    assert metrics.calibration_error(np.log(p), labels) == pytest.approx(by_hand)


def test_calibration_error_by_its_definition():
    log_p, labels = probabilities()
    confidence, right = np.exp(log_p.max(1)), log_p.argmax(1) == labels
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(log_p, labels) == pytest.approx(error)


def test_a_sure_and_right_model_is_calibrated():
    assert metrics.calibration_error(np.log([[1.0, 1e-300]]), np.array([0])) == 0


def test_scores_of_nan_are_nan_and_not_an_error():
    log_p = np.full((3, 4), np.nan)
    labels = np.array([0, 1, 2])
    assert math.isnan(metrics.nll(log_p, labels))
    assert math.isnan(metrics.calibration_error(log_p, labels))
    assert 0 <= metrics.accuracy(log_p, labels) <= 1


@pytest.mark.parametrize(
    ("accuracies", "epoch"), [((0.95,), 1), ((0.1, 0.9), 2), ((0.91, 0.2), 1), ((0.89, 0.899), None)]
)
def test_epochs_to_a_level(accuracies, epoch):
    assert metrics.epochs_to(accuracies, 0.9) == epoch


# --- the losses -------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_that_are_announced():
    assert tuple(CANDIDATES) == ALL


@pytest.mark.parametrize("name", ALL)
def test_what_is_trained_is_what_the_reference_defines(name):
    candidate = CANDIDATES[name]
    rng = np.random.default_rng(0)
    for x in (np.array([SURE_AND_WRONG]), rng.normal(size=(5, 10)) * 4):
        labels = rng.integers(0, x.shape[1], len(x)) if len(x) > 1 else np.array([0])
        logits = torch.tensor(x, requires_grad=True)
        loss = candidate.loss(logits, torch.from_numpy(labels))
        loss.backward()
        expected = candidate.reference(x, labels)
        np.testing.assert_allclose(loss.item(), expected.loss, rtol=1e-12)
        np.testing.assert_allclose(logits.grad, expected.grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ALL)
def test_reference_gradient_is_the_slope_of_its_loss(name):
    definition = CANDIDATES[name].reference
    x, labels, step = np.random.default_rng(1).normal(size=(3, 4)), np.array([1, 0, 3]), 1e-6
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[i] = step
        slope[i] = (definition(x + moved, labels).loss - definition(x - moved, labels).loss) / (2 * step)
    np.testing.assert_allclose(definition(x, labels).grad, slope, atol=1e-8)


def test_the_losses_are_torchs_own_where_torch_has_them():
    x, labels = torch.randn(6, 10, dtype=torch.float64) * 3, torch.tensor([0, 3, 9, 9, 1, 4])
    hot = nn.functional.one_hot(labels, 10).double()
    own = {
        "ce": nn.functional.cross_entropy(x, labels),
        "ce-smooth": nn.functional.cross_entropy(x, labels, label_smoothing=0.1),
        "bce": nn.functional.binary_cross_entropy_with_logits(x, hot),
        "hinge": nn.MultiMarginLoss()(x, labels),
        "ce-after-softmax": nn.functional.cross_entropy(x.softmax(1), labels),
        "sigmoid-difference": nn.functional.l1_loss(x.sigmoid(), hot),
    }
    for name, value in own.items():
        torch.testing.assert_close(CANDIDATES[name].loss(x, labels), value)


@pytest.mark.parametrize("name", ALL)
def test_scored_probabilities_are_probabilities(name):
    x = torch.tensor([[-1.0, 6.0, -0.25], [90.0, -90.0, 0.0]])
    p = CANDIDATES[name].log_probabilities(x).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(2, dtype=torch.float64))
    plain = x.double().sigmoid() if CANDIDATES[name].scored.startswith("σ") else x.double().exp()
    torch.testing.assert_close(p, plain / plain.sum(1, keepdim=True))


def test_the_push_on_a_sure_mistake():
    push = {name: push_when_wrong(candidate) for name, candidate in CANDIDATES.items()}
    for each in push.values():
        np.testing.assert_allclose(each.autograd, each.grad, rtol=1e-9, atol=1e-15)
    p = np.exp(SURE_AND_WRONG) / np.exp(SURE_AND_WRONG).sum()
    np.testing.assert_allclose(push["ce"].grad, p - [1, 0, 0], rtol=1e-12)
    assert push["ce"].against_undecided == pytest.approx(p[1] / (1 / 3))
    sigma = 1 / (1 + math.exp(-6))
    assert push["sigmoid-difference"].against_undecided == pytest.approx(sigma * (1 - sigma) / 0.25)


def test_the_curve_of_the_push_is_one_at_even_odds_and_collapses_where_it_must():
    logit = np.array([0.0, -7.0])
    sure = {name: push_curve(candidate, logit) for name, candidate in CANDIDATES.items()}
    assert all(curve[0] == pytest.approx(1) for curve in sure.values())
    wrong = 1 / (1 + math.exp(-7))
    assert sure["ce"][1] == pytest.approx(2 * wrong)
    assert sure["bce"][1] == pytest.approx(2 * wrong)
    assert sure["hinge"][1] == pytest.approx(1)
    assert sure["sigmoid-difference"][1] == pytest.approx(4 * wrong * (1 - wrong))
    assert sure["ce-after-softmax"][1] < 0.01


# --- training and choosing --------------------------------------------------------------------------------------------


def quiet(epoch):
    pass


def test_training_is_fixed_by_its_seed(split):
    task = fit.Task(network, split.train, split.validation, fit.by_accuracy, fit.Recipe(1))
    before = torch.get_rng_state()
    with fit.one_thread():
        first, again, other = (fit.fit(task, CANDIDATES["ce"], 0.1, seed, quiet) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert first.train_loss == again.train_loss
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert first.train_loss != other.train_loss


def test_one_thread_gives_back_the_others():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with fit.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_diverged_run_keeps_its_length_and_is_never_preferred(split):
    task = fit.Task(network, split.train, split.validation, fit.by_accuracy, fit.Recipe(3))
    told = []
    wild = fit.fit(task, CANDIDATES["ce"], 1e30, 0, told.append)
    assert math.isnan(wild.train_loss[-1])
    assert math.isnan(wild.validation_cost)
    assert len(wild.train_loss) == len(wild.validation_score) == len(told) == 3
    better = replace(wild, rate=0.1, validation_cost=5.0)
    assert fit.choose([wild, better]) is better


def fitted(rate, accuracy, nll):
    return fit.Fitted(network(), rate, 0, (1.0,), (0.99, accuracy), nll)


def test_the_choice_is_by_the_last_validation_accuracy_then_by_nll():
    runs = [fitted(0.1, 0.8, 0.1), fitted(0.3, 0.9, 0.7), fitted(1.0, 0.9, 0.5)]
    assert fit.choose(runs).rate == 1.0
    assert fit.choose(list(reversed(runs))).rate == 1.0


def test_the_choice_does_not_see_the_test_part(split, results):
    lies = split._replace(test=split.test._replace(labels=9 - split.test.labels))
    again = trained(lies, losses=("ce", "bce"))
    for loss in again.losses:
        assert loss.rate == results[loss.name].rate
        assert loss.sweep == results[loss.name].sweep
    assert again["ce"].mean("accuracy") < 0.3 < results["ce"].mean("accuracy")


def test_the_choice_follows_the_validation_part(split):
    """With validation labels that only a model gone wrong can meet, the choice goes wrong too."""
    constant = split._replace(validation=split.validation._replace(labels=torch.zeros_like(split.validation.labels)))
    chosen = trained(constant, losses=("ce",), epochs=1, seeds=1, rates=(0.1, 1e30))
    assert chosen["ce"].rate == 1e30


def test_each_loss_has_its_own_rate_and_every_seed_its_run(results):
    for loss in results.losses:
        assert [tried.rate for tried in loss.sweep] == [0.1, 1.0]
        assert loss.rate == max(loss.sweep, key=lambda tried: (tried.score, -tried.cost)).rate
        assert [run.seed for run in loss.runs] == [0, 1]
        assert loss.runs[0].validation[-1] == max(tried.score for tried in loss.sweep)
    assert len({loss.rate for loss in results.losses}) > 1


def test_the_same_job_gives_the_same_numbers(split, results):
    again = trained(split, losses=("sigmoid-difference", "ce-after-softmax"))
    assert again.losses == (results["sigmoid-difference"], results["ce-after-softmax"])


def test_wrong_positions_are_where_the_test_part_is_missed(results):
    for loss in results.losses:
        for run in loss.runs:
            wrong = run.details["wrong"]
            assert set(wrong) <= set(results.test_index)
            assert 1 - len(wrong) / len(results.test_index) == pytest.approx(run.scores["accuracy"])


def test_an_interrupt_keeps_what_was_finished(results):
    class Impatient(Silent):
        def start(self, name):
            if name == "bce":
                raise KeyboardInterrupt

    cut = train(JOB, settings(), Impatient())
    assert not cut.complete
    assert cut.losses == results.losses[:2]
    assert notices(cut) == [
        "Interrupted: only the finished losses are here. Missing: bce, sigmoid-difference, hinge, ce-after-softmax."
    ]


def test_what_is_missing_is_named(monkeypatch):
    require("sklearn", "matplotlib")
    monkeypatch.setattr("crossent.tools.train.find_spec", lambda name: None)
    with pytest.raises(
        MissingDependency, match=r"needs scikit-learn and matplotlib: pip install scikit-learn matplotlib"
    ):
        require("sklearn", "matplotlib")


# --- what is said -----------------------------------------------------------------------------------------------------


def result(name, wrong, rate=0.1, sweep=((0.1, 0.9, 0.3),), nll=0.1, loss=0.2) -> LossResult:
    """Make up a loss that gets ``wrong`` many of 400 test rows wrong with each of its seeds."""
    runs = tuple(
        SeedResult(
            seed,
            {"accuracy": 1 - n / 400, "nll": nll, "calibration_error": 0.02},
            {"accuracy": tuple([0.0] * n + [1.0] * (400 - n))},
            (loss,),
            (1 - n / 400,),
            {"epochs_to_90_percent": None, "wrong": tuple(range(n))},
        )
        for seed, n in enumerate(wrong)
    )
    return LossResult(name, rate, tuple(Tried(*t) for t in sweep), runs)


def made_up(results, *losses, **changed):
    asked = replace(results.settings, losses=tuple(loss.name for loss in losses), **changed)
    return replace(results, settings=asked, losses=losses, sizes={**results.sizes, "test": 400})


def test_losses_are_only_ranked_where_the_difference_is_clear(results):
    close = made_up(results, result("ce", (12, 13)), result("bce", (13, 14)))
    assert "of the" not in conclusions.paragraph(close).split("cannot be told")[1].split(".")[0]
    assert "bce (96.6%) cannot be told from it" in conclusions.paragraph(close)
    apart = made_up(results, result("ce", (12, 13)), result("bce", (80, 82)))
    assert "bce (79.8%) is clearly behind" in conclusions.paragraph(apart)


def test_seeds_that_disagree_make_a_difference_unclear(results):
    wild = made_up(results, result("ce", (12, 13)), result("bce", (12, 120)))
    assert "bce (83.5%) cannot be told from it" in conclusions.paragraph(wild)


def test_the_difference_counts_rows_that_one_gets_right_and_the_other_not(results):
    both = made_up(results, result("ce", (10,)), result("bce", (30,)))
    difference = conclusions.compare(both, both["ce"], both["bce"])
    assert difference.mean == pytest.approx(20 / 400)
    rows = np.repeat([1.0, 0.0], [20, 380])
    assert difference.error == pytest.approx(rows.std(ddof=1) / 20)


def test_failure_is_only_explained_by_what_is_seen(results):
    sweep = ((0.1, 0.12, 2.3), (1.0, 0.2, 2.3))
    dead = made_up(results, result("sigmoid-difference", (350, 352), sweep=sweep, loss=0.1001))
    said = conclusions.paragraph(dead)
    assert "None of the 2 rates makes sigmoid-difference learn (best validation accuracy 20.0%)" in said
    assert "settles at 0.1001" in said
    alive = made_up(results, result("sigmoid-difference", (350, 352), sweep=sweep, loss=0.3))
    assert "settles" not in conclusions.paragraph(alive)
    learnt = made_up(results, result("sigmoid-difference", (20, 30), sweep=((0.1, 0.9, 0.3),)))
    assert "None" not in conclusions.paragraph(learnt)


def test_one_rate_for_all_is_not_passed_off_as_a_comparison(results):
    given = made_up(results, result("ce", (12,)), result("hinge", (12,)), rates=(0.1,))
    assert "All were trained at the one rate 0.1" in conclusions.paragraph(given)
    own = made_up(
        results,
        result("ce", (12,), 0.1, ((0.1, 0.97, 0.1), (1.0, 0.1, 2.3))),
        result("bce", (12,), 1.0, ((0.1, 0.9, 0.3), (1.0, 0.98, 0.1))),
    )
    assert "at bce's rate of 1, ce gets 10.0% of the validation images right, and 97.0% at its own, 0.1" in (
        conclusions.paragraph(own)
    )


def test_a_quick_run_claims_nothing(results):
    said = conclusions.paragraph(replace(results, settings=replace(results.settings, quick=True)))
    assert "not meant to be compared" in said
    assert "%" not in said


@pytest.mark.parametrize("name", ALL)
def test_something_is_said_of_every_loss_alone(results, name):
    alone = replace(results, losses=(results[name],), settings=replace(results.settings, losses=(name,)))
    assert conclusions.paragraph(alone).startswith(f"Of the {results.sizes['test']} test images, {name} gets ")
    assert opening(alone).startswith("A network gives three classes the logits −1, 6 and −0.25")
    assert len(gradients(alone).rows) == len(tables.scores(alone).rows) == 1


def test_the_edge_of_the_sweep_is_admitted(results):
    edge = result("ce", (1,), 0.1, ((0.1, 0.9, 0.1), (0.3, 0.8, 0.1), (1.0, 0.7, 0.1)))
    middle = result("bce", (1,), 0.3, ((0.1, 0.9, 0.1), (0.3, 0.95, 0.1), (1.0, 0.7, 0.1)))
    note = tables.rates(made_up(results, edge, middle, rates=(0.1, 0.3, 1.0))).notes[-1]
    assert note.endswith("may lie outside it: ce.")


def test_a_diverged_seed_shows_as_a_dash_and_as_null(results):
    broken = made_up(results, result("ce", (12, 360), nll=math.nan, sweep=((0.1, 0.1, math.nan), (0.3, 0.9, 0.3))))
    assert tables.scores(broken).rows[0][3] == "–"
    assert json.loads(json.dumps(document(broken), allow_nan=False))["losses"][0]["test_nll_nats"] is None


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_report_asks_for_nothing(results):
    page = write_page(results)
    links = Links()
    links.feed(page)
    assert CSP.fullmatch(links.meta["Content-Security-Policy"])
    assert len(links.asked) == 4 + 12  # two panels in two themes, and the images
    assert all(url.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for url in links.asked)
    assert not {"link", "iframe", "object", "embed"} & set(links.tags)
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
    assert "https://" not in page


def test_the_report_holds_the_numbers_of_the_run(results):
    page = write_page(results)
    assert page.index("sure, and wrong") < page.index("∂L/∂x") < page.index(conclusions.paragraph(results)[:40])
    for table in (gradients(results), tables.scores(results), tables.rates(results)):
        assert all(f">{cell}<" in page or f">{cell}*<" in page for row in table.rows for cell in row)
    assert command(JOBS["digits"], results.settings) in page


def test_numbers_of_the_tables_are_those_of_the_runs(results):
    loss = results["ce"]
    row = tables.scores(results).rows[0]
    accuracies = [100 * run.scores["accuracy"] for run in loss.runs]
    assert row[2] == f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"
    assert row[3] == f"{np.mean([run.scores['nll'] for run in loss.runs]):.3f}"
    assert row[1] == f"{loss.rate:g}"


def test_the_chosen_rate_is_starred_in_the_sweep(results):
    table = tables.rates(results)
    for (i, j), loss in zip(sorted(table.marked), results.losses, strict=True):
        assert table.columns[j] == f"{loss.rate:g}"
        assert list(draw(table).columns[j].cells)[i].plain.endswith("*")


def test_the_document_is_versioned_and_complete(results):
    written = json.loads(json.dumps(document(results), allow_nan=False))
    assert written["schema"] == "crossent.digits/1"
    assert written["complete"] is True
    assert [loss["name"] for loss in written["losses"]] == list(ALL)
    assert written["split"]["train"] + written["split"]["validation"] + written["split"]["test"] == 1797
    first = written["losses"][0]
    assert len(first["runs"]) == 2
    assert len(first["runs"][0]["validation_accuracy"]) == 2
    assert first["gradient"]["grad"] == pytest.approx(first["gradient"]["autograd"])


def test_pictures_are_drawn_and_differ_by_theme(results):
    assert png(results).startswith(b"\x89PNG")
    for panel in JOB.panels:
        assert svg(panel, results, LIGHT) == svg(panel, results, LIGHT)
        assert svg(panel, results, LIGHT) != svg(panel, results, DARK)


def test_labels_are_spread_apart_and_moved_no_further_than_needed():
    heights = [0.0, 0.95, 0.96, 0.97]
    apart = spread_apart(heights, 0.06)
    assert np.diff(apart).min() >= 0.06 - 1e-12
    assert apart[0] == 0
    assert np.mean(apart[1:]) == pytest.approx(0.96)


def test_the_page_says_of_hinge_what_a_run_does():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "why-cross-entropy.md").read_text("utf-8")
    assert "**It may be as accurate, but its scores are not probabilities.** The hinge loss" in page
    run = train(JOB, settings(losses=("ce", "hinge"), epochs=8, rates=(0.3, 3.0)), Silent())
    ce, hinge = run["ce"], run["hinge"]
    assert abs(ce.mean("accuracy") - hinge.mean("accuracy")) < 0.03
    assert hinge.mean("calibration_error") > 2 * ce.mean("calibration_error")
    assert hinge.mean("nll") > ce.mean("nll")
