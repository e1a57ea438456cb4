"""Where ``crossent.debug`` looks in: whoever watches is shown every call of a loss.

The environment is read at the first call. ``CROSSENT_DEBUG`` then starts the watcher of :mod:`crossent.tools.check.debug`, which
is imported by its name, since the library knows no tool.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

Watcher = Callable[[Tensor, Tensor, Any, Tensor, bool], None]

_STARTED_BY_ENVIRONMENT = "crossent.tools.check.debug"


def _unread(*_: Any) -> None:
    """Stand for an environment that has not been read: as this is not None, the first call asks ``current``, which reads it."""


watcher: Watcher | None = _unread
"""Shown every call: input, the same laid out, its :class:`~crossent.core.target.Target`, loss, and whether that is a mean."""


def current() -> Watcher | None:
    """Return the watcher, or None."""
    if watcher is _unread:
        _read_environment()
    return watcher


def _read_environment() -> None:
    global watcher
    watcher = None
    if os.environ.get("CROSSENT_DEBUG"):
        import_module(_STARTED_BY_ENVIRONMENT).from_environment()
