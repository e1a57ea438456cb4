"""The page ``docs/score-in-ci.md``: its script makes the file, and its commands say and return what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossent.tools import cli

PAGE = (Path(__file__).parents[2] / "docs" / "score-in-ci.md").read_text("utf-8")
CONSOLE = re.findall(r"^\$ crossent (.*)\n((?:[^`$].*\n)*)", PAGE, re.MULTILINE)
STEPS = re.findall(r"^- run: crossent (.*)$", PAGE, re.MULTILINE)
NAMED = re.findall(r"^crossent (.*?) +# (one run|two runs)", PAGE, re.MULTILINE)
NAMES = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Make the file of the page."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile("\n".join(blocks), "docs/score-in-ci.md", "exec"), {})


def run(command: str) -> Result:
    """Run a command as a shell does, but for where its output goes."""
    words = shlex.split(re.sub(r" >>? .*", "", command))
    return CliRunner().invoke(cli.main, words, env={"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None})


@pytest.mark.parametrize(("command", "shown"), CONSOLE)
def test_what_failed_is_said_and_returned(command, shown):
    ran = run(command)
    assert ran.exit_code == 1
    assert ran.stderr == shown


@pytest.mark.parametrize(("command", "runs"), NAMED)
def test_labels_that_are_named_say_how_many_runs_there_are(command, runs):
    ran = run(command + " --json")
    assert ran.exit_code == 0, ran.stderr
    assert ("crossent.comparison/1" in ran.stdout) == (runs == "two runs")


@pytest.mark.parametrize("command", STEPS)
def test_the_steps_of_the_workflow_pass(command):
    assert run(command).exit_code == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_names_can_stand_in_a_condition(name):
    assert run(f"score preds.npz --fail-if {name}>1e9").exit_code == 0
    assert run(f"score preds.npz --fail-if {name}>-1e9").exit_code == 1


def test_there_is_something_to_run():
    assert (len(CONSOLE), len(STEPS), len(NAMES), len(NAMED)) == (2, 2, 4, 2)
