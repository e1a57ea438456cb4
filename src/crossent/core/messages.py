"""The words of a refusal: how a shape is written, and the messages that several arguments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # tools that read arrays use these messages without torch
    from torch import Tensor


def shape(tensor: Tensor) -> str:
    """Write a shape as a tuple, for a message."""
    return str(tuple(tensor.shape))


def type_error(name: str, rule: str, value: object) -> NoReturn:
    """Refuse a value of the wrong type."""
    raise TypeError(f"{name} must be {rule}, got {type(value).__module__}.{type(value).__qualname__}: {value!r:.60}")


def layout_fix(name: str, given: Sequence[int], wanted: Sequence[int]) -> str | None:
    """Say how a tensor of one shape gets another with every number in its place; None where only its owner can know.

    Dimensions of size 1 may come and go. Neighbours may be split or joined, if the numbers lie in that order. Others have to
    change places, which a reshape would do to the shape alone: ``(T, N)`` is no ``(N, T)``.
    """
    given, wanted = tuple(given), tuple(wanted)
    given_sizes, wanted_sizes = ([size for size in each if size != 1] for each in (given, wanted))
    if given_sizes == wanted_sizes:
        return (
            f"reshape with {name}.reshape{wanted}" if wanted else f"drop the dimensions of size 1 with {name}.squeeze()"
        )
    if sorted(given_sizes) == sorted(wanted_sizes) and len(set(given_sizes)) == len(given_sizes):
        order = (*(given.index(size) for size in wanted_sizes), *(axis for axis, size in enumerate(given) if size == 1))
        then = f".reshape{wanted}" if 1 in given or 1 in wanted else ""
        return f"the dimensions lie in another order, and a reshape would mix them up; use {name}.permute{order}{then}"
    if _joins(given_sizes, wanted_sizes) or _joins(wanted_sizes, given_sizes):
        return f"if the numbers lie in this order, reshape with {name}.reshape{wanted}"
    return None


def _joins(long: Sequence[int], short: Sequence[int]) -> bool:
    """Whether the sizes of ``short`` are products of neighbours in ``long``."""
    rest = list(short)
    product = 1
    for size in long:
        product *= size
        if rest and product == rest[0]:
            rest.pop(0)
            product = 1
    return not rest and product == 1
