"""``crossent.debug`` and ``CROSSENT_DEBUG``: the first batches of a run are looked at, and nothing else changes."""

from __future__ import annotations

import linecache
import subprocess
import sys
import warnings

import pytest
import torch

import crossent
from crossent.core import watch
from crossent.tools.check.debug import CheckWarning, from_environment


@pytest.fixture(autouse=True)
def _off():
    yield
    assert watch.watcher is None  # every test leaves it as it was


def batch(n=64, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def seen(call, first_n=3, times=1):
    """Call something while it is looked at; give the warnings' text and the findings' rules."""
    with warnings.catch_warnings(record=True) as warned, crossent.debug(first_n) as debug:
        warnings.simplefilter("always")
        for _ in range(times):
            call()
    assert all(issubclass(each.category, CheckWarning) for each in warned)
    return [str(each.message) for each in warned], [finding.rule for finding in debug.findings]


def test_a_finding_is_a_warning_at_the_line_of_the_call():
    x, y = batch()
    with warnings.catch_warnings(record=True) as warned, crossent.debug():
        warnings.simplefilter("always")
        crossent.cross_entropy(x.softmax(1), y)
    (warning,) = warned
    assert warning.filename == __file__
    line = linecache.getline(__file__, warning.lineno)
    assert line.strip() == "crossent.cross_entropy(x.softmax(1), y)"
    assert "CE101 error: softmax before the loss" in str(warning.message)


def test_each_is_said_once_a_line():
    x, y = batch()
    said, rules = seen(lambda: crossent.cross_entropy(x.softmax(1), y), times=20)
    assert len(said) == 1
    assert rules == ["CE101"]


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda x, y: crossent.CrossEntropyLoss()(x.softmax(1), y), "CE101"),
        (lambda x, y: crossent.focal_loss(x.softmax(1), y), "CE101"),
        (lambda x, y: crossent.cross_entropy(x.softmax(1), y, reduction="none"), "CE101"),
        (lambda x, y: crossent.cross_entropy(x.softmax(1), y, sample_weight=torch.ones(64)), "CE101"),
        (lambda x, y: crossent.cross_entropy(x.bfloat16(), y), "CE113"),
        (lambda x, y: crossent.cross_entropy(x, torch.full_like(y, -100)), "CE106"),
        (lambda x, y: crossent.cross_entropy(x, y, torch.logspace(0, 3, 10), label_smoothing=0.1), "CE109"),
        (lambda x, y: crossent.cross_entropy(20 * x, y), "CE117"),
        (lambda x, y: crossent.cross_entropy(x, 2 * x.softmax(1)), "CE105"),
        (lambda x, y: crossent.binary_cross_entropy_with_logits(x, 255.0 * (x > 0)), "CE111"),
        (lambda x, y: crossent.BCEWithLogitsLoss()(x, 255.0 * (x > 0)), "CE111"),
        (lambda x, y: crossent.sigmoid_focal_loss(x.sigmoid(), (x > 0).float()), "CE110"),
        (lambda x, y: crossent.multilabel_cross_entropy(x.softmax(1), (x > 0).float()), "CE101"),
        (lambda x, y: crossent.distillation_loss(x.softmax(1), x), "CE101"),
        (lambda x, y: crossent.linear_cross_entropy(20 * x, torch.eye(10), y), "CE117"),
        (lambda x, y: crossent.linear_cross_entropy(20 * x, torch.eye(10), y, max_bytes=1), "CE117"),
        (
            lambda x, y: crossent.linear_cross_entropy(x.softmax(1), torch.eye(10), y, max_bytes=1, reduction="none"),
            "CE101",
        ),
        (lambda x, y: crossent.linear_cross_entropy(x, torch.eye(10), torch.full_like(y, -100), max_bytes=1), "CE106"),
    ],
)
def test_every_loss_is_looked_at(call, rule):
    x, y = batch()
    assert rule in seen(lambda: call(x, y))[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: crossent.cross_entropy(x, y),
        lambda x, y: crossent.cross_entropy(0.001 * x, y),
        lambda x, y: crossent.cross_entropy(x, y, reduction="sum"),
        lambda x, y: crossent.cross_entropy(x, y, denominator=2.0),
        lambda x, y: crossent.cross_entropy(x, y.masked_fill(y > 5, -100)),
        lambda x, y: crossent.cross_entropy(x.bfloat16(), y, out_dtype=torch.float32),
        lambda x, y: crossent.cross_entropy(20 * x, y, temperature=20.0),
        lambda x, y: crossent.cross_entropy(x, y, class_mask=torch.arange(10) > -1, label_smoothing=0.1),
        lambda x, y: crossent.multilabel_cross_entropy(x, (x > 1).float()),
        lambda x, y: crossent.binary_cross_entropy_with_logits(x, 2.0 * (x > 0), mask=x <= 0),
        lambda x, y: crossent.binary_cross_entropy_with_logits(x, (x > 0).float(), pos_weight=torch.ones(10), dim=1),
        lambda x, y: crossent.cross_entropy(x.reshape(8, 8, 10)[:, :, :8], y.reshape(8, 8).clamp(max=7), dim=-1),
        lambda x, y: crossent.contrastive_cross_entropy(x, x),
        lambda x, y: crossent.linear_cross_entropy(x, torch.eye(10), y.masked_fill(y > 1, -100), max_bytes=1),
        lambda x, y: crossent.linear_cross_entropy(x[:0], torch.eye(10), y[:0], max_bytes=1),
        lambda x, y: crossent.cross_entropy(x[:0], y[:0]),
    ],
)
def test_what_is_right_is_left_in_peace(call):
    x, y = batch()
    assert seen(lambda: call(x, y), times=4) == ([], [])


def test_nothing_found_is_said_once_and_is_no_proof(capsys):
    x, y = batch()
    seen(lambda: crossent.cross_entropy(x, y), first_n=2, times=9)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "found nothing in the first 2 batches. Finding nothing is no proof" in said


def test_only_the_first_batches_are_looked_at():
    x, y = batch()
    calls = iter([x, x, x.softmax(1), x.softmax(1)])
    assert seen(lambda: crossent.cross_entropy(next(calls), y), first_n=2, times=4)[1] == []


def test_the_first_batch_with_nan_is_looked_at():
    x, y = batch()
    broken = x.clone()
    broken[17] = float("nan")
    calls = iter([x] * 6 + [broken] * 3)
    said, rules = seen(lambda: crossent.cross_entropy(next(calls), y), first_n=2, times=9)
    assert rules == ["CE115"]
    assert "row 17" in said[0]


def test_a_loss_that_stays_is_seen_later():
    _, y = batch(256)
    quiet = torch.zeros(256, 10)
    assert seen(lambda: crossent.cross_entropy(quiet + 1e-3 * torch.randn(256, 10), y), times=99)[1] == []
    said, rules = seen(lambda: crossent.cross_entropy(quiet + 1e-3 * torch.randn(256, 10), y), times=250)
    assert rules == ["CE118"]
    assert "the last 50 of 100 values" in said[0].replace("\n        ", " ")


def test_a_loss_that_goes_up_is_seen_later():
    x, y = batch(256)
    scale = iter([0.1] * 10 + [30.0] * 90)
    said, rules = seen(lambda: crossent.cross_entropy(next(scale) * x, y), times=100)
    assert rules == ["CE117", "CE128"]
    assert "learning rate" in said[0]


def test_a_loss_that_falls_is_not():
    x, y = batch(256)
    x.requires_grad_()
    optimizer = torch.optim.SGD([x], lr=100.0)

    def step():
        optimizer.zero_grad()
        crossent.cross_entropy(x, y).backward()
        optimizer.step()

    assert seen(step, times=130)[1] == []


def test_training_and_evaluation_are_kept_apart():
    x, y = batch()

    def one_line(grad):
        with torch.set_grad_enabled(grad):
            crossent.cross_entropy(x.softmax(1), y)

    modes = iter([True, False])
    assert seen(lambda: one_line(next(modes)), times=2)[1] == ["CE101", "CE101"]


def test_results_and_gradients_do_not_change():
    x, y = batch()
    x.requires_grad_()
    outcomes = []
    for on in (False, True):
        loss = crossent.cross_entropy(x, y)
        if on:
            with crossent.debug():
                loss = crossent.cross_entropy(x, y)
        outcomes.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(outcomes[0], outcomes[1])


def test_on_and_off():
    x, y = batch()
    first = crossent.debug(1)
    with crossent.debug(1) as inner:
        assert watch.watcher is inner
    assert watch.watcher is first
    first.off()
    crossent.cross_entropy(x.softmax(1), y)  # a warning would be an error
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="first_n"):
            crossent.debug(wrong)


def test_compiled_graphs_and_transforms_are_left_alone():
    x, y = batch()
    with crossent.debug() as debug:
        compiled = torch.compile(lambda a, b: crossent.cross_entropy(a.softmax(1), b), fullgraph=True, backend="eager")
        compiled(x, y)
        torch.func.vmap(crossent.cross_entropy)(x.softmax(1), y)
        torch.func.grad(crossent.cross_entropy)(x.softmax(1), y)
        crossent.cross_entropy(x.to("meta"), y.to("meta"))
    assert debug.findings == []


def test_compiled_graphs_without_it():
    x, y = batch()
    compiled = torch.compile(lambda a, b: crossent.cross_entropy(a, b), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y), crossent.cross_entropy(x, y))


@pytest.mark.parametrize(("value", "first_n"), [("1", 3), ("5", 5), ("yes", 3), ("0", None), ("", None), ("off", None)])
def test_the_environment_is_read(monkeypatch, value, first_n):
    monkeypatch.setenv("CROSSENT_DEBUG", value)
    debug = from_environment()
    assert (debug and debug.first_n) == first_n
    if debug:
        debug.off()


SCRIPT = """
import torch, crossent
x, y = torch.randn(64, 10), torch.randint(10, (64,))
for _ in range(5):
    crossent.cross_entropy(x.softmax(1), y)
compiled = torch.compile(lambda a, b: crossent.cross_entropy(a, b), fullgraph=True, backend="eager")
compiled(x, y)
"""


def test_a_run_with_the_environment(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setenv("CROSSENT_DEBUG", "1")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr.count("CheckWarning") == 1
    assert "train.py:5: CheckWarning" in ran.stderr
    monkeypatch.delenv("CROSSENT_DEBUG")
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120).stderr == ""
