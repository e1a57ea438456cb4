"""The files that a code host and its readers take: they parse, and they name targets, versions and files that exist."""

import re
from pathlib import Path

import pytest

import crossent

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(set(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
PROSE = [
    ROOT / name
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/api-policy.md")
]
TARGETS = set(
    re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].replace("\\", "").split()
)


def load(path):
    return yaml.safe_load(path.read_text("utf-8"))


def jobs(path):
    return load(path)["jobs"].values()


def targets(path):
    """List the make targets that a workflow's steps call, those of a matrix too."""
    for job in jobs(path):
        for step in job["steps"]:
            for words in re.findall(r"^make (.*)$", step.get("run", ""), re.MULTILINE):
                named = [
                    word for word in re.sub(r"\w+=(\"[^\"]*\"|\S*)", "", words).split() if not word.startswith("-")
                ]
                if "matrix.target" in words:
                    yield from job["strategy"]["matrix"]["target"]
                else:
                    assert named, words
                    yield from named


def test_all_kinds_of_workflow_are_there():
    assert {path.stem for path in WORKFLOWS} >= {"lint", "tests", "docs", "sanitizers", "wheels", "bench"}
    assert len(FORMS) == 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_make_targets_that_exist(path):
    called = set(targets(path))
    assert called
    assert called <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_ends_in_time(path):
    assert load(path)["permissions"] == {"contents": "read"}
    for job in jobs(path):
        assert 0 < job["timeout-minutes"] <= 120
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
        assert not any("${{ inputs" in step.get("run", "") for step in job["steps"])  # a shell would run what it holds


def test_every_phony_target_of_the_local_check_is_called_somewhere():
    """What ``.ci/run`` holds a change to, the workflows do too."""
    local = set(re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert local <= {target for path in WORKFLOWS for target in targets(path)}


def test_the_promised_versions_of_python_are_tested():
    matrix = load(ROOT / ".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text("utf-8")
    systems = {*matrix["os"], *(each["os"] for each in matrix["include"])}
    assert any("arm" in system for system in systems)
    assert any("macos" in system for system in systems)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_a_form_needs(path):
    form = load(path)
    assert form.keys() >= {"name", "description", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_citation_is_that_of_this_version():
    citation = load(ROOT / "CITATION.cff")
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert str(citation["version"]) == crossent.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_what_is_a_placeholder_says_so():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    urls = re.search(r"^(#[^\n]*)\n\[project\.urls\]\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    if "example.invalid" in urls[2]:
        assert "PLACEHOLDER" in urls[1]
        assert "example.invalid" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_a_page_links_to_files_that_exist(path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_the_changelog_is_kept_in_the_usual_form():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version) for version in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
