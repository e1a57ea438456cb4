"""What holds for every training job; what is shown and said of ``digits`` is held in ``test_train.py``."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tools.training import CSP, Links, Silent, only, settings, small, told, trained

from crossent.tools.train import JOBS, conclusions, metrics, tables
from crossent.tools.train.conclusions import Difference, compare
from crossent.tools.train.figure import TINTS, png, svg
from crossent.tools.train.panel import DARK, LIGHT
from crossent.tools.train.report import command, notices, write_page
from crossent.tools.train.run import document, job_of, run

NAMES = tuple(JOBS)
OWN = tuple(name for name in NAMES if name != "digits")
EACH = [(name, loss) for name in NAMES for loss in JOBS[name].losses]

_ran = {}


@pytest.fixture(scope="module", params=OWN)
def results(request):
    return _results(request.param)


def _results(name):
    if name not in _ran:
        _ran[name] = trained(name)
    return _ran[name]


def _positions(part):
    return set(part.position.flatten().tolist()) - {-1}


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_digit_is_in_two_parts(name):
    split = small(name).load(settings(name), 3)
    parts = [_positions(part) for part in split]
    assert all(parts)
    assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])


@pytest.mark.parametrize("name", NAMES)
def test_every_run_is_tested_on_the_same_rows(name):
    job, asked = small(name), settings(name)
    one, other = job.load(asked, 0).test, job.load(asked, 5).test
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    elsewhere = job.load(replace(asked, seed=5), 5).test
    assert not torch.equal(one.position, elsewhere.position)


@pytest.mark.parametrize("name", OWN)
def test_a_runs_seed_changes_what_is_trained_on_and_fixes_it(name):
    job, asked = small(name), settings(name)
    one, again, other = (job.load(asked, seed).train for seed in (1, 1, 2))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.labels, again.labels)
    assert (
        one.labels.shape != other.labels.shape
        or not torch.equal(one.labels, other.labels)
        or not torch.equal(one.inputs, other.inputs)
    )


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_are_those_that_are_announced_and_have_a_colour(name):
    assert tuple(job_of(JOBS[name]).candidates) == tuple(JOBS[name].losses)
    tints = [TINTS[loss] for loss in JOBS[name].losses]
    assert len(set(tints)) == len(tints)


@pytest.mark.parametrize(("name", "loss"), EACH)
def test_what_is_trained_is_what_the_reference_defines(name, loss):
    job = small(name)
    candidate, part = job.candidates[loss], job.load(settings(name), 0).train
    given = {key: value.double() if torch.is_tensor(value) else value for key, value in candidate.given(part).items()}
    labels = part.labels[:6].double() if part.labels.is_floating_point() else part.labels[:6]
    x = np.random.default_rng(0).normal(size=job.network()(part.inputs[:6]).shape) * 4
    logits = torch.tensor(x, requires_grad=True)
    loss_of_part = candidate.on(part)
    assert set(loss_of_part.keywords) == set(given)
    value = candidate.loss(logits, labels, **given)
    value.backward()
    expected = candidate.reference(x, labels.numpy(), **given)
    np.testing.assert_allclose(value.item(), expected.loss, rtol=1e-9)
    np.testing.assert_allclose(logits.grad, expected.grad, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(
        loss_of_part(logits.detach().float(), labels).double(), value.detach(), rtol=1e-5, atol=0
    )


LEARNT = {
    "digits": ("accuracy", 0.6, (0.1, 1.0)),
    "digits-multilabel": ("map", 0.35, (0.1, 1.0)),
    "digits-segmentation": ("recall", 0.12, (0.3, 1.0)),
    "digits-noisy": ("accuracy", 0.6, (0.03, 0.1)),
    "digits-imbalanced": ("balanced_accuracy", 0.4, (0.03, 0.1)),
}
"""A score that no guessing reaches (it gets 0.1, 0.15, 0, 0.1 and 0.1), and rates of which one is good for each loss."""


@pytest.mark.parametrize(("name", "loss"), [each for each in EACH if each[1] != "sigmoid-difference"])
def test_every_loss_learns(name, loss):
    job, (key, level, rates) = small(name, sizes=(500, 48, 80)), LEARNT[name]
    result = run(job, settings(name, losses=(loss,), epochs=8, seeds=1, rates=rates), Silent())[loss]
    assert result.mean(key) > level
    assert result.runs[0].train_loss[-1] < result.runs[0].train_loss[0]


# --- choosing and scoring ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_the_choice_does_not_see_the_test_part(name):
    job, loss = small(name), next(iter(JOBS[name].losses))

    def lies(asked, seed):
        split = job.load(asked, seed)
        return split._replace(test=split.test._replace(labels=split.test.labels.flip(0)))

    honest = _results(name)[loss]
    again = run(replace(job, load=lies), settings(name, losses=(loss,)), Silent())[loss]
    assert again.sweep == honest.sweep
    assert again.rate == honest.rate
    assert [each.validation for each in again.runs] == [each.validation for each in honest.runs]
    assert again.runs[0] != honest.runs[0]


def test_the_same_job_gives_the_same_numbers(results):
    loss = results.losses[0].name
    again = trained(results.job.entry.name, losses=(loss,))
    assert again.losses == (results[loss],)


def test_each_seed_has_its_run(results):
    for loss in results.losses:
        assert [each.seed for each in loss.runs] == [0, 1]
        assert loss.rate == max(loss.sweep, key=lambda tried: (tried.score, -tried.cost)).rate


def test_shares_make_up_the_score(results):
    for loss in results.losses:
        for each in loss.runs:
            assert results.job.measures[0].key in each.shares
            for key, shares in each.shares.items():
                # where a score is no mean, the mean of the jackknife's shares is off by about 1/B for B blocks
                within = 0.2 if key in ("map", "mean_iou", "recall", "precision") else 1e-12
                assert np.mean(shares) == pytest.approx(each.scores[key], abs=within)


def test_every_measure_is_scored(results):
    for loss in results.losses:
        for measure in results.job.measures:
            assert all(0 <= each.scores[measure.key] <= 1 for each in loss.runs)


# --- comparing --------------------------------------------------------------------------------------------------------


def test_a_difference_is_paired_by_piece_and_by_seed():
    results = only(_results("digits-noisy"), "ce", "gce")
    shifted = told(results, ce={"accuracy": (0.9, 0.7)}, gce={"accuracy": (0.8, 0.6)})
    assert compare(shifted, shifted["ce"], shifted["gce"]) == Difference(pytest.approx(0.1), pytest.approx(0))
    crossed = told(results, ce={"accuracy": (0.9, 0.7)}, gce={"accuracy": (0.6, 0.8)})
    difference = compare(crossed, crossed["ce"], crossed["gce"])
    assert difference == Difference(pytest.approx(0.1), pytest.approx(np.std([0.3, -0.1], ddof=1) / math.sqrt(2)))
    assert not difference.clear


def test_failures_are_named_and_not_compared(results):
    name = results.losses[-1].name
    failed = told(results, **{name.replace("-", "_"): {results.job.measures[0].key: 0.01}})
    assert f"{name} (1.0%) did not learn the task" in conclusions.paragraph(failed)
    assert name not in {loss.name for loss in failed.learnt}


# --- what is said and shown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "loss"), EACH)
def test_something_is_said_of_every_loss_alone(name, loss):
    alone = only(_results(name), loss)
    said = conclusions.paragraph(alone)
    assert f"{loss} " in said.split(".")[0]
    assert alone.job.opening(alone)
    for table in (*(make(alone) for make in alone.job.details), tables.scores(alone), tables.rates(alone)):
        assert len({len(table.columns), *map(len, table.rows)}) == 1


def test_without_a_sweep_everything_is_shown_all_the_same(results):
    given = replace(results, settings=replace(results.settings, rates=(0.1,)))
    given = replace(given, losses=tuple(replace(loss, sweep=(), rate=0.1) for loss in results.losses))
    assert "All were trained at the one rate 0.1" in conclusions.paragraph(given)
    assert png(given).startswith(b"\x89PNG")
    assert "The learning rate of each loss" not in write_page(given)
    assert "--lr 0.1" in command(given.job.entry, given.settings)


def test_a_quick_run_claims_nothing(results):
    said = conclusions.paragraph(replace(results, settings=replace(results.settings, quick=True)))
    assert "not meant to be compared" in said
    assert "%" not in said


def test_an_interrupted_run_says_what_is_missing(results):
    cut = replace(results, losses=results.losses[:1], complete=False)
    missing = ", ".join(loss.name for loss in results.losses[1:])
    assert notices(cut) == [f"Interrupted: only the finished losses are here. Missing: {missing}."]
    assert png(cut).startswith(b"\x89PNG")
    assert results.losses[0].name in write_page(cut)


def test_the_document_is_versioned_and_holds_every_score(results):
    written = json.loads(json.dumps(document(results), allow_nan=False))
    name = results.job.entry.name
    assert written["schema"] == f"crossent.{name}/1"
    assert written["findings"] == conclusions.paragraph(results)
    assert written["split"]["test"] == len(written["split"]["test_index"])
    for option in JOBS[name].options:
        assert written["settings"][option.name] == option.default
    for loss, found in zip(results.losses, written["losses"], strict=True):
        for measure in results.job.measures:
            key = f"test_{measure.key}{measure.unit}"
            assert found[key] == pytest.approx(np.mean([each.scores[measure.key] for each in loss.runs]))
            assert found[f"{key}_sd"] == pytest.approx(np.std([each[measure.key] for each in found["runs"]], ddof=1))
        assert len(found["sweep"]) == 2


def test_the_report_asks_for_nothing_and_holds_the_numbers(results):
    page = write_page(results)
    links = Links()
    links.feed(page)
    assert CSP.fullmatch(links.meta["Content-Security-Policy"])
    assert len(links.asked) == 2 * len(results.job.panels)
    assert all(url.startswith("data:image/svg+xml;base64,") for url in links.asked)
    assert not {"script", "link", "iframe", "object", "embed"} & set(links.tags)
    assert not any(word in page for word in ("url(", "@import", "http://", "https://"))
    for table in (tables.scores(results), tables.rates(results), *(make(results) for make in results.job.details)):
        assert all(f">{cell}<" in page or f">{cell}*<" in page for row in table.rows for cell in row)
    assert command(results.job.entry, results.settings) in page


def test_pictures_are_drawn_and_differ_by_theme(results):
    assert png(results).startswith(b"\x89PNG")
    for panel in results.job.panels:
        assert svg(panel, results, LIGHT) != svg(panel, results, DARK)


# --- pieces of a test part --------------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_blocks_and_of_a_square_is_its_error():
    values = np.random.default_rng(0).normal(1, 1, 400)
    shares = metrics.jackknife(lambda keep: float(values[keep].mean()), 20, 400)
    np.testing.assert_allclose(shares, values.reshape(20, 20).mean(1))
    squares = metrics.jackknife(lambda keep: float(values[keep].mean() ** 2), 20, 400)
    expected = 2 * values.mean() * shares.std(ddof=1) / math.sqrt(20)
    assert squares.std(ddof=1) / math.sqrt(20) == pytest.approx(expected, rel=0.05)
