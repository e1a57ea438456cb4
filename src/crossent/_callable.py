"""Packages that can be called: ``crossent.explain(logits, target)``, where ``crossent.explain`` is also a package.

Importing the package sets that attribute of ``crossent``, whatever stood there. So the package itself is what users call, and the
order of imports makes no difference. The function is imported when it is first called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(module_name: str, function: str) -> None:
    """Let a package be called like one of its functions.

    Args:
        module_name: the package, which writes ``__name__``.
        function: ``"module:name"`` within the package.

    >>> import crossent.explain
    >>> crossent.explain([0.0, 0.0], 0, losses="ce").losses[0].gradient
    (-0.5, 0.5)
    """
    home, _, name = function.partition(":")

    def load() -> Any:
        return getattr(import_module(f"{module_name}.{home}"), name)

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return load()(*args, **kwargs)

        @property
        def __signature__(self) -> Any:  # for help, editors and notebooks
            from inspect import signature

            return signature(load())

    sys.modules[module_name].__class__ = CallablePackage
