"""Training jobs on data that comes with a library, so that a loss can be seen at work without a download.

``catalogue`` lists the jobs. A job is one file, such as ``noisy.py``: its rows, its losses, its scores, what is said and
shown of them. All else is shared: ``data`` and ``canvases`` make the rows, ``network`` is trained with each of the ``candidates``,
``fit`` trains and sweeps, ``metrics`` scores, ``results`` records, ``conclusions`` says what the numbers show, ``job`` puts
these in order; ``tables``, ``panel``, ``figure``, ``report``, ``training_progress`` and ``terminal`` show them.
Importing this package imports neither torch nor anything optional.
"""

from __future__ import annotations

from importlib.util import find_spec

from crossent.tools.optional_packages import needs, package_of
from crossent.tools.train.catalogue import JOBS

__all__ = ["JOBS", "MissingDependency", "require"]


class MissingDependency(ImportError):
    """A job needs a package that is not installed."""


def require(*modules: str) -> None:
    """Refuse to start without these optional modules, in one sentence that says what to install."""
    missing = [package_of(name) for name in modules if find_spec(name) is None]
    if missing:
        raise MissingDependency(needs("this job", missing))
