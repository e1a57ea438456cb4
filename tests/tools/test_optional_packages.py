"""What is said where a package is missing: a command that installs that package and no other."""

import re
from pathlib import Path

import pytest

import crossent
from crossent.tools.optional_packages import EXTRAS, install, needs, package_of

SOURCES = sorted(Path(crossent.__file__).parent.rglob("*.py"))
PAGES = sorted(Path(__file__).parents[2].glob("docs/**/*.md"))


@pytest.mark.parametrize(
    ("module", "package"), [("PIL.Image", "pillow"), ("sklearn", "scikit-learn"), ("pyarrow.parquet", "pyarrow")]
)
def test_a_package_is_called_as_it_is_installed(module, package):
    assert package_of(module) == package


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_hint_names_the_packages(extra):
    packages = EXTRAS[extra]
    assert needs("it", packages) == f"it needs {' and '.join(packages)}: pip install {' '.join(packages)}"
    assert install(packages) == f"pip install {' '.join(packages)}"


def test_an_unknown_package_is_named_without_a_hint():
    """A module's name on an index may be somebody else's."""
    assert needs("reading .parquet", ["some_module"]) == "reading .parquet needs some_module, which is not installed"
    assert "pip" not in needs("it", ["matplotlib", "some_module"])


def test_nobody_is_sent_to_an_index_for_this_package():
    command = re.compile(r"(?:pip|uv|conda)\s+(?:install|add)\s[^\n`]*?(?<![/.\w])crossent\b(?!\.)")
    assert command.search("pip install 'crossent[plot]'")
    assert [str(path) for path in [*SOURCES, *PAGES] if command.search(path.read_text("utf-8"))] == []
