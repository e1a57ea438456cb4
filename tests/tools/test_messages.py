"""What the tools say when something is wrong: a fix that is safe, and no riddle."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import crossent
from crossent.tools.cli import main
from crossent.tools.files import FileError

RNG = np.random.default_rng(3)


def ran(*args):
    return CliRunner().invoke(main, list(args))


@pytest.mark.parametrize(
    ("logits", "target", "options"),
    [
        ((5, 3, 7), (3, 5), {}),
        ((2, 7, 5, 4), (2, 4, 5), {}),
        ((2, 3, 5, 4), (2, 5, 4, 3), {"task": "binary"}),
        ((8, 3), (3, 8), {"task": "binary"}),
        ((4, 3, 5), (5, 4), {"task": "lm", "dim": 1}),
    ],
)
def test_a_reshape_is_advised_only_where_the_sizes_keep_their_order(logits, target, options):
    t = RNG.integers(0, 2, target)
    found = crossent.check(RNG.normal(size=logits), t * 1.0 if options.get("task") == "binary" else t, **options)
    fixes = [finding.fix for finding in found if finding.rule in ("CE103", "CE116")]
    assert fixes
    for fix in fixes:
        assert "target.reshape" not in fix or "permute" in fix, fix


def test_labels_that_start_at_1_are_said_to_only_where_0_is_missing():
    x = RNG.normal(size=(9, 3))
    for y, said in (([1, 2, 3] * 3, True), ([0, 2, 3] * 3, False)):
        with pytest.raises(FileError, match=r"label 3, but the 3 classes are 0 to 2") as caught:
            crossent.score(x, y)
        assert ("start at 1" in str(caught.value)) == said


def test_numbers_agree_with_their_nouns():
    report = crossent.score(RNG.normal(size=(20, 11)), np.arange(20) % 10)
    assert any(remark == "1 of the 11 classes does not occur among the labels." for remark in report.remarks)
    with pytest.raises(
        ValueError, match=r"^target must name one class, and 'wolf' is none of the classes \(cat, dog\)$"
    ):
        crossent.explain([1.0, 2.0], "wolf", class_names=["cat", "dog"])


def test_no_message_lists_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.arange(5))
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "d.csv").write_text("id,text\n1,a\n2,b\n")
    for name in ("a.npz", "b.pt", "c.jsonl", "d.csv"):
        said = ran("score", str(tmp_path / name))
        assert said.exit_code == 2
        assert not re.search(r"one of ,|only ,|only $| , as|\b0 classes|\b0 are", said.stderr), said.stderr


@pytest.mark.parametrize("tool", [crossent.check, crossent.score])
def test_ragged_lists_are_refused_in_words(tool):
    with pytest.raises(ValueError, match="logits: holds lists of different lengths, which are no array"):
        tool([[1.0, 2.0], [3.0]], [0, 1])


def test_an_empty_batch_that_counts_as_zero_is_not_told_to_do_so():
    x, y = torch.randn(4, 3), torch.full((4,), -100)
    with crossent.debug() as seen, pytest.warns(UserWarning, match="CE106 note"):
        crossent.cross_entropy(x, y, empty="zero")
    assert "empty=" not in seen.findings[0].fix
    with crossent.debug() as seen, pytest.warns(UserWarning, match="CE106 error"):
        crossent.cross_entropy(x, y)
    assert "empty=" in seen.findings[0].fix


def test_misspelt_options_and_commands_get_a_suggestion():
    for args, meant in (
        (("scor",), "score"),
        (("score", "--inptu", "probs"), "--input"),
        (("check", "--label-smooting", "0.1"), "--label-smoothing"),
        (("explain", "--logit", "1,2"), "--logits"),
    ):
        said = ran(*args)
        assert said.exit_code == 2
        assert meant in said.stderr
        assert "Did you mean" in said.stderr or "Possible options" in said.stderr
    with pytest.raises(TypeError, match="did you mean num_classes"):
        crossent.check_loss(torch.nn.functional.cross_entropy, num_class=4)
    with pytest.raises(TypeError, match="did you mean first_n"):
        crossent.debug(firstn=2)
    with pytest.raises(TypeError, match=r"there is no argument 'inputs'; did you mean input\?"):
        crossent.score([[1.0, 2.0]], [0], inputs="probs")


def test_an_option_of_check_that_is_called_nearly_as_another_says_which_is_meant():
    with pytest.raises(
        ValueError, match="inputs must be token ids, got 'probs': use input= to say what the logits are"
    ):
        crossent.check([[0.1, 0.9]] * 3, [0, 1, 1], inputs="probs")


@pytest.mark.parametrize("command", ["score", "check"])
def test_help_groups_its_options(command):
    said = ran(command, "--help").stdout
    titles = [line for line in said.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert titles[:4] == ["What the files hold:", "Columns and names:", "The loss in training:", "What is printed:"]
    for param in main.commands[command].params:
        for flag in param.opts:
            assert not flag.startswith("--") or flag in said
