"""The names of a function's arguments: one that does not exist is refused, with the likeliest one meant. No torch is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import TypeVar

from typing_extensions import ParamSpec

_P = ParamSpec("_P")
_R = TypeVar("_R")


def refuse_unknown(given: Iterable[str], names: Iterable[str], function: str) -> None:
    """Refuse the first keyword that is not among the names of a function's arguments, and name the likeliest one meant."""
    names = tuple(names)
    for name in given:
        if name not in names:
            meant = get_close_matches(name, names, 1)
            fix = f"did you mean {meant[0]}?" if meant else f"{function} takes {', '.join(names)}"
            raise TypeError(f"there is no argument {name!r}; {fix}")


def only_its_keywords(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function refuse a keyword that its signature does not have in the words of :func:`refuse_unknown`."""
    names = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        refuse_unknown(kwargs, names, function.__name__)
        return function(*args, **kwargs)

    return checked
