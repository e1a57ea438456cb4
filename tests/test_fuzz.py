"""A short run of the fuzz target, always over the same problems: ``make fuzz`` runs it over others."""

import os
import subprocess
import sys

import fuzz
import fuzz_modes
import pytest
import torch
from contexts import CONTEXTS

from crossent.core.target import SPECIAL

PART = 40


@pytest.mark.parametrize("part", range(8))
def test_random_problems(part, capsys):
    first = part * PART
    tried, failed = fuzz.run(iter(range(first, first + PART)), seconds=600)
    assert tried == PART
    assert not failed, capsys.readouterr().out


def test_a_seed_draws_the_same_problem():
    for seed in range(40):
        a, b = fuzz.draw(seed), fuzz.draw(seed)
        assert repr(a) == repr(b)
        assert all(x.same(y) for x, y in zip(a.given, b.given, strict=True))


def test_every_kind_of_problem_is_drawn():
    problems = [fuzz.draw(seed) for seed in range(600)]
    layouts = {x.layout for p in problems for x in p.given}
    assert layouts == {"contiguous", "class last", "permuted", "sliced", "offset", "expanded", "anything"}
    assert {p.target.view.dtype for p in problems} == {*fuzz.FLOATS, *fuzz.INTEGERS}
    assert {p.logits.view.dtype for p in problems} == set(fuzz.FLOATS)
    for what in ("binary", "needs_target", "inplace", "out_of_range", "weight", "pos_weight", "grad"):
        assert {bool(getattr(p, what)) for p in problems} == {True, False}
    numbers = [p.logits.view for p in problems]
    assert any(x.isnan().any() for x in numbers)
    assert any(x.isneginf().any() for x in numbers)
    assert any(x.numel() * x.element_size() > 2**20 for x in numbers)


@pytest.mark.parametrize("what", ["value", "neighbour", "written", "threads"])
def test_what_is_wrong_is_found(what, monkeypatch):
    """Let the call return something slightly wrong, read next to its logits, write there, or depend on the threads."""
    found = 0
    original = fuzz.crossent.cross_entropy

    def wrong(logits, target, **options):
        loss = original(logits, target, **options)
        if what == "value":
            return loss * (1 + 2 * torch.finfo(loss.dtype).eps * fuzz.K)
        memory = logits.data.as_strided((logits.untyped_storage().nbytes() // logits.element_size(),), (1,), 0)
        if what == "neighbour":
            return loss + 0 * memory.to(loss.dtype).nan_to_num(posinf=0, neginf=0, nan=torch.inf).sum()
        if what == "written":
            memory[memory.isnan()] = 0
            return loss
        return loss + torch.get_num_threads()

    monkeypatch.setattr(fuzz.crossent, "cross_entropy", wrong)
    for seed in range(60):
        problem = fuzz.draw(seed)
        if problem.binary or problem.out_of_range:
            continue
        try:
            fuzz.check(problem)
        except AssertionError:
            found += 1
    assert found >= 5


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="for make sanitize")
def test_the_sanitizers_watch():
    too_small = """
import torch
from crossent import _native
x, loss, lse = torch.zeros(100, 100), torch.zeros(()), torch.zeros(2, 100)
x.untyped_storage().resize_(4)  # behind the back of the tensor, which still says that it has 10,000 numbers
_native.softmax_forward(x, torch.zeros(100, dtype=torch.long), None, -100, 0.0, 1, loss, None, lse)
"""
    done = subprocess.run([sys.executable, "-c", too_small], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


# --- modes and orders of derivative -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_random_modes(part, capsys):
    first = part * PART
    run = fuzz.run(iter(range(first, first + PART)), 600, draw=fuzz_modes.draw, check=fuzz_modes.check)
    assert run == (PART, []), capsys.readouterr().out


def test_every_mode_order_and_option_is_drawn():
    problems = [fuzz_modes.draw(seed) for seed in range(1500)]
    assert {p.around for p in problems} == set(CONTEXTS)
    assert {p.through for p in problems} == {*fuzz_modes.THROUGH, "compiled"}
    assert {p.backend for p in problems} == {"", "eager", "aot_eager", "inductor"}
    assert {p.order for p in problems} == set(fuzz_modes.ORDERS)
    drawn = {name for p in problems for name in p.options}
    assert drawn >= {*SPECIAL["cross_entropy"], "mask", "weight", "pos_weight", "sample_weight", "label_smoothing"}


@pytest.mark.parametrize("what", ["value", "derivative", "dropped"])
def test_what_is_wrong_in_a_mode_is_found(what, monkeypatch):
    original = fuzz_modes.crossent.cross_entropy

    def wrong(logits, target, **options):
        loss = original(logits, target, **options)
        if what == "value":
            return loss * 1.01
        if what == "derivative":
            return loss + 1e-3 * (logits - logits.detach()).square().sum()  # which only second derivatives see
        return loss.detach() + 0 * logits.sum()

    monkeypatch.setattr(fuzz_modes.crossent, "cross_entropy", wrong)
    _, failed = fuzz.run(iter(range(150)), 600, 3, fuzz_modes.draw, fuzz_modes.check)
    assert len(failed) == 3
