"""The words of a refusal: how a shape is written, and the messages that several arguments share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from torch import Tensor


def shape(tensor: Tensor) -> str:
    """Write a shape as a tuple, for a message."""
    return str(tuple(tensor.shape))


def type_error(name: str, rule: str, value: object) -> NoReturn:
    """Refuse a value of the wrong type."""
    raise TypeError(f"{name} must be {rule}, got {type(value).__module__}.{type(value).__qualname__}: {value!r:.60}")


def refuse_unknown(given: Iterable[str], names: Iterable[str], function: str) -> None:
    """Refuse the first keyword that is not among the names of a function's arguments, and name the likeliest one meant."""
    names = tuple(names)
    for name in given:
        if name not in names:
            meant = get_close_matches(name, names, 1)
            fix = f"did you mean {meant[0]}?" if meant else f"{function} takes {', '.join(names)}"
            raise TypeError(f"there is no argument {name!r}; {fix}")
