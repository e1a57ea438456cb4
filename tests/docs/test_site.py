"""The site that ``make docs`` builds: what its pages are made of, without MkDocs, which checks the anchors when it builds them."""

from __future__ import annotations

import importlib
import posixpath
import re
import sys
from pathlib import Path

import click
import pytest

import crossent
from crossent.core.settings import DOCUMENTATION
from crossent.models import huggingface
from crossent.tools import cli

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site():
    """Write every page into memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
        return importlib.import_module("write_site").Site()


@pytest.fixture(scope="module")
def reference(site):
    return {page: text for page, text in site.pages.items() if page.startswith("reference/")}


def prose(text: str) -> str:
    """Leave blocks of code out."""
    return re.sub(r"^(```+).*\n(?:.*\n)*?\1$", "", text, flags=re.MULTILINE)


def headings(pages: dict[str, str]) -> list[str]:
    return [name for text in pages.values() for name in re.findall(r"^##+ `([^`]+)`", prose(text), re.MULTILINE)]


def test_every_public_name_has_one_entry(reference):
    rooms = {page: text for page, text in reference.items() if not page.endswith(("specification.md", "options.md"))}
    written = headings(rooms)
    names = {*crossent.__all__, *huggingface.__all__} - {"__version__"}
    wrong = [name for name in sorted(names) if written.count(name) != 1]
    assert wrong == [], "each public name stands once in ROOMS of scripts/reference_pages.py"


def test_a_link_to_an_entry_finds_it_alone(reference):
    ids = {page: re.findall(r"^##+ .*\{ #(\S+) \}$", text, re.MULTILINE) for page, text in reference.items()}
    assert all(len(set(names)) == len(names) for names in ids.values())
    for page, text in reference.items():
        for file, name in re.findall(r"\]\(([\w-]*(?:\.md)?)#(\w+)\)", prose(text)):
            assert name in ids[f"reference/{file}" if file else page], (page, name)


def test_every_public_signature_is_of_a_name_with_an_entry(reference):
    """The file of signatures has what public functions return, too."""
    owners = {
        line.split(".")[0] for line in (ROOT / "tests/api.txt").read_text("utf-8").splitlines() if line[:1].isalpha()
    }
    assert owners - {"models"} <= set(headings(reference))


def test_every_function_of_the_specification_has_an_entry(reference):
    written = headings({"": reference["reference/specification.md"]})
    functions = re.findall(r"^def (?!_)(\w+)", (ROOT / "src/crossent/reference.py").read_text("utf-8"), re.MULTILINE)
    assert set(functions) <= set(written)


def test_every_option_is_described_once(reference):
    page = reference["reference/options.md"]
    others = " ".join("".join(text for name, text in reference.items() if text is not page).split())
    assert sorted(headings({"": page})) == sorted(DOCUMENTATION)
    for name, words in DOCUMENTATION.items():
        words = " ".join(words.replace("``", "`").split())
        if ":class:" not in words and ":func:" not in words and len(words) > 60:
            assert words.rstrip(".") in page, name
            assert words.rstrip(".") not in others, name
    linked = {name for text in reference.values() for name in re.findall(r"\(options\.md#(\w+)\)", text)}
    assert linked <= DOCUMENTATION.keys()
    assert {"temperature", "sample_weight", "shift", "impl"} <= linked


def test_what_docstrings_write_for_other_tools_is_gone(reference):
    for page, text in reference.items():
        left = re.findall(r":(?:func|class|meth|mod|attr|data):|``|::$|\{options\}", prose(text), re.MULTILINE)
        assert left == [], page
    text = reference["reference/losses.md"]
    assert "```text\nloss = Σ_k c_k t_k (-log p_k)" in text
    assert "`target` *Tensor*\n:   class indices in [0, C)" in text
    assert "[`Focal`](penalties.md#Focal)" in text
    assert "```pycon\n>>> focal_loss(" in text


def test_every_command_and_option_is_there(reference):
    page = reference["reference/command-line.md"]

    def walk(path: str, command: click.Command) -> None:
        section = page[page.index(f" `{path}`\n") :].split("\n##")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{', '.join(parameter.opts)}" in section, (path, parameter.opts)
        for name, each in getattr(command, "commands", {}).items():
            walk(f"{path} {name}", each)

    for name, command in cli.main.commands.items():
        walk(f"crossent {name}", command)


def test_every_link_leads_to_a_page_or_a_file(site):
    places = {*site.pages, *site.files, "explore-page.html"}
    for page, text in site.pages.items():
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", prose(text)):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) in places, (page, link)


def test_every_page_is_in_the_navigation(site):
    class Loader(yaml.SafeLoader):
        """It makes nothing of what only MkDocs can make."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    assert config["strict"] is True
    assert config["theme"]["font"] is False  # which would be fetched

    def leaves(nav):
        return (
            [nav]
            if isinstance(nav, str)
            else [x for each in (nav.values() if isinstance(nav, dict) else nav) for x in leaves(each)]
        )

    assert sorted(leaves(config["nav"])) == sorted(page for page in site.pages if not page.startswith("source/"))
    parts = [title for each in config["nav"] for title in each]
    assert parts == ["Home", "Tutorials", "How-to", "Explanation", "Reference"]


def test_a_warning_stops_the_build():
    """Strict MkDocs counts the warnings that it prints, and quiet it prints none."""
    (command,) = re.findall(r"^\t.*mkdocs build(.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert "-q" not in command
    levels = re.findall(r"(?:anchors|not_found|omitted_files): (\w+)", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert levels == ["warn"] * 4


def test_sessions_are_coloured_and_lists_begin_paragraphs(site):
    assert "```python\n>>>" not in site.pages["why-cross-entropy.md"]
    assert "\n\n1. `reference." in site.pages["contributing.md"]
    assert "[Why cross entropy?](why-cross-entropy.md)" in site.pages["examples.md"]
    assert "docs/" not in "".join(re.findall(r"\]\([^)]*\)", site.pages["index.md"]))
