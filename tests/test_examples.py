"""Each example runs, with fewer steps, and ends where it says that it does. The whole takes half a minute."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
DISTRIBUTED = {"tensor_parallel", "fsdp"}  # which torchrun starts, and tests of their own
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - DISTRIBUTED)


@pytest.fixture
def ran(monkeypatch, capsys):
    """Run an example as its user would, in this process, and return what it prints."""

    def run(name, steps):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(steps)])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr()

    return run


def numbers(line):
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def test_weights_and_biases_find_more_of_the_rare_digits(ran):
    plain, weighted, biased = (numbers(line)[-1] for line in ran("image_classifier", 120).out.splitlines()[-3:])
    assert plain + 0.02 < weighted
    assert plain + 0.02 < biased


def test_pixels_are_labelled(ran):
    out = ran("segmentation", 100).out.splitlines()
    assert "ignore_index=255" in out[0]
    assert 0.02 < numbers(out[-2])[-1] < 0.4
    assert numbers(out[-1])[-1] > 0.2


def test_three_losses_find_several_labels(ran):
    for line in ran("multilabel", 250).out.splitlines():
        assert min(numbers(line)) > 0.2


def test_a_language_model_learns(ran):
    out = ran("language_model", 40).out.splitlines()
    assert out[0].startswith("LinearPlan(blocks=")
    assert numbers(out[-1])[-1] < 5.5 < numbers(out[1])[-1]


def test_a_student_learns_from_its_teacher(ran):
    teacher, alone, taught = (numbers(line)[-1] for line in ran("distillation", 200).out.splitlines())
    assert alone + 0.02 < taught
    assert teacher > 0.9


def test_halves_find_each_other(ran):
    first, among_ten = (numbers(line)[-1] for line in ran("contrastive", 120).out.splitlines()[-2:])
    assert first > 10 / 200
    assert among_ten > 0.5


def test_a_job_fails_where_a_condition_holds(ran):
    passed, failed, report = ran("score_in_ci", 100).out.splitlines()
    assert "exits with 0" in passed
    assert "exits with 1" in failed
    assert "--fail-if says nll>0.0001" in failed
    assert numbers(report)[0] > 0.8


def test_a_softmax_too_many_is_found(ran):
    with pytest.warns(UserWarning, match="softmax before the loss"):
        out = ran("find_a_bug", 60).out
    assert "softmax before the loss" in out
    broken, mended = (numbers(line)[-1] for line in out.splitlines() if line.startswith("loss of"))
    assert mended < broken


def test_examples_are_short_tested_and_listed():
    tested = set(re.findall(r'ran\("(\w+)"', Path(__file__).read_text("utf-8")))
    assert tested == set(NAMES)
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    for name in NAMES:
        assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 60
        assert f"[{name}.py]({name}.py)" in listed
