"""The words of a refusal: how a shape is written, and the messages that several arguments share."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor


def shape(tensor: Tensor) -> str:
    """Write a shape as a tuple, for a message."""
    return str(tuple(tensor.shape))


def type_error(name: str, rule: str, value: object) -> NoReturn:
    """Refuse a value of the wrong type."""
    raise TypeError(f"{name} must be {rule}, got {type(value).__module__}.{type(value).__qualname__}: {value!r:.60}")
