"""What kind of value an argument takes, checked where a function is called. No torch is needed.

Losses check their arguments where they read them, since a call must cost nothing. The tools say in one line what they take, and
whatever is of another kind is refused by its name, before it fails somewhere inside with words about something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from typing_extensions import ParamSpec

from crossent.core.messages import type_error

_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain(value: Any) -> Any:
    """Read a number of NumPy's, or the one element of an array or a tensor, as Python's; anything else stays what it is."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        return value.item()
    if hasattr(value, "detach") and hasattr(value, "item") and value.numel() == 1 and not value.is_meta:
        return value.item()
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    if isinstance(value, (str, bytes, dict)) or getattr(value, "is_meta", False) or not isinstance(value, Iterable):
        return False
    try:
        return all(of(plain(each)) for each in value)
    except TypeError:  # an array without dimensions
        return False


KINDS: dict[str, Callable[[Any], bool]] = {
    "a number": _is_number,
    "an int": lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    "a text": lambda value: isinstance(value, str),
    "True or False": lambda value: isinstance(value, bool),
    "a function": callable,
    "a list of numbers": lambda value: _is_list(value, lambda each: _is_number(each) or each is None),
    "a text or a list of texts": lambda value: isinstance(value, str) or _is_list(value, KINDS["a text"]),
    "a list of names": lambda value: _is_list(value, lambda each: isinstance(each, str) or _is_number(each)),
    "a name or a list of names": lambda value: isinstance(value, str) or KINDS["a list of names"](value),
}


def read(name: str, value: Any, rule: str) -> Any:
    """Read a value of a kind.

    Args:
        name: of the argument.
        value: what came.
        rule: one of :data:`KINDS`, with `` or None`` behind it where None is allowed too.

    Raises:
        TypeError: it is of another kind.

    >>> read("top", np.int64(3), "an int")
    3
    >>> read("top", "3", "an int or None")
    Traceback (most recent call last):
    TypeError: top must be an int or None, got builtins.str: '3'
    """
    value = plain(value)
    if value is None and rule.endswith(" or None"):
        return None
    if not KINDS[rule.removesuffix(" or None")](value):
        type_error(name, rule, value)
    return value


def argument_kinds(**rules: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function refuse arguments of another kind than their names' rules say."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = signature.bind(*args, **kwargs)
            for name, value in given.arguments.items():
                if name in rules:
                    given.arguments[name] = read(name, value, rules[name])
            return function(*given.args, **given.kwargs)

        return checked

    return decorate
