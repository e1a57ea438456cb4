"""The page ``docs/tools.md``: its commands are run, and must print what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossent.tools import cli

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text("utf-8")
ENVIRON = {"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None}


def sessions() -> list[tuple[str, str]]:
    """Read every command in a console block, with what it prints."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = session.partition("\n")
            found.append((command, shown.rstrip("\n")))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make the files of the page's first block."""
    folder = tmp_path_factory.mktemp("tools")
    block = re.findall(r"```python\n((?!>>>).*?)```", PAGE, flags=re.DOTALL)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(block, "docs/tools.md", "exec"), {})
    return folder


@pytest.mark.parametrize(("command", "shown"), [pytest.param(*session, id=session[0]) for session in sessions()])
def test_a_command_prints_what_the_page_shows(command, shown, place, monkeypatch):
    monkeypatch.chdir(place)
    program, *args = command.split()
    assert program == "crossent"
    ran = CliRunner().invoke(cli.main, args, env=ENVIRON)
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    assert "\n".join(line.rstrip() for line in ran.output.rstrip("\n").splitlines()) == shown


def test_every_tool_has_commands_on_the_page():
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        tool = section.split("\n")[0]
        assert f"$ crossent {tool} " in section


def test_a_session_ends_with_a_blank_line():
    for block in re.findall(r"```python\n(>>> .*?)```", PAGE, flags=re.DOTALL):
        assert block.endswith("\n\n")
