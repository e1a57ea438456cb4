"""Training jobs on data that comes with a library, so that a loss can be seen at work without a download.

A job is ``digits.py`` over shared parts: ``data`` splits, ``network`` is trained with each of ``losses``, ``fit``
trains and sweeps, ``metrics`` scores, ``results`` records, ``findings`` says what the numbers show; ``tables``,
``figure``, ``report``, ``progress`` and ``terminal`` show them. Importing this package imports neither torch nor
anything optional.
"""

from __future__ import annotations

from importlib.util import find_spec

DIGITS_LOSSES = {
    "ce": "cross entropy",
    "ce-smooth": "cross entropy with label smoothing 0.1",
    "bce": "binary cross entropy, one class against the rest",
    "sigmoid-difference": "squash with a sigmoid and take the difference",
    "hinge": "multi-class hinge",
    "ce-after-softmax": "cross entropy of a softmax: the softmax twice",
}
"""The losses of ``crossent train digits`` by the name a user types, and what each is."""

_PACKAGE = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class MissingDependency(ImportError):
    """A job needs a package that is not installed."""


def require(*modules: str) -> None:
    """Refuse to start without these optional modules, in one sentence that says what to install."""
    missing = [_PACKAGE[name] for name in modules if find_spec(name) is None]
    if missing:
        raise MissingDependency(f"this job needs {' and '.join(missing)}: pip install 'crossent[demo]'")
