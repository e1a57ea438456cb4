"""The packages that only some tools need, by the names that people install them by. Importing this needs none of them."""

from __future__ import annotations

from collections.abc import Iterable

EXTRAS = {
    "plot": ("matplotlib",),
    "files": ("safetensors", "pyarrow", "pillow"),
    "demo": ("matplotlib", "scikit-learn"),
    "triton": ("triton",),
}
"""What each extra of ``pyproject.toml`` brings beside torch."""

_INSTALLED_AS = {"sklearn": "scikit-learn", "PIL": "pillow"}
_KNOWN = {package for packages in EXTRAS.values() for package in packages} | {"pandas"}


def package_of(module: str) -> str:
    """Return what the package of a module is called by those who install it: ``pillow`` for ``PIL.Image``."""
    name = module.partition(".")[0]
    return _INSTALLED_AS.get(name, name)


def needs(subject: str, packages: Iterable[str]) -> str:
    """Say that something needs packages, and how to install them.

    The hint names the packages themselves, because ``crossent[plot]`` would be looked up in an index, where the name may be
    another project's. A package that is not among those known here is named without a hint, for the same reason.

    >>> needs("plot", ["matplotlib"])
    'plot needs matplotlib: pip install matplotlib'
    """
    packages = list(packages)
    sentence = f"{subject} needs {' and '.join(packages)}"
    return f"{sentence}: {install(packages)}" if _KNOWN.issuperset(packages) else f"{sentence}, which is not installed"


def install(packages: Iterable[str]) -> str:
    """Write the command that installs packages."""
    return f"pip install {' '.join(packages)}"
