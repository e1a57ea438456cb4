"""Numbers as the page writes them, sign for sign as ``numbers.js`` does."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal


def fixed(value: float, digits: int) -> str:
    """Write so many decimals; halves are rounded away from 0, as JavaScript does.

    >>> fixed(0.0625, 3), fixed(-2.5, 0), fixed(-0.0001, 2)
    ('0.063', '−3', '0.00')
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = format(Decimal(abs(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP), "f")
    return f"−{text}" if value < 0 and float(text) else text


def amount(value: float) -> str:
    """Write a size with three decimals, or with one digit of a power of ten where these would hide it.

    >>> amount(0.9975), amount(6.1e-6), amount(0.0), amount(1234.5)
    ('0.998', '6e−6', '0', '1234.500')
    """
    size = abs(value)
    if 0 < size < 0.0005:
        digits, exponent = f"{value:.0e}".split("e")
        return f"{digits}e−{abs(int(exponent))}".replace("-", "−")
    return fixed(value, 3) if value else "0"


def percent(p: float) -> str:
    """Write a probability in per cent; what is neither 0 nor 1 is not written as if it were.

    >>> percent(0.9975), percent(6e-6), percent(0.0), percent(1 - 1e-9)
    ('99.8 %', '< 0.1 %', '0 %', '> 99.9 %')
    """
    if p in (0, 1):
        return "100 %" if p else "0 %"
    if 0 < p < 0.0005:
        return "< 0.1 %"
    if 0.9995 < p < 1:
        return "> 99.9 %"
    return f"{fixed(100 * p, 1)} %"


def logit(x: float) -> str:
    """Write a logit as short as it is.

    >>> logit(-6.0), logit(0.123456), logit(-math.inf)
    ('−6', '0.123', '−∞')
    """
    text = fixed(x, 3)
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(steps: int | None, limit: int) -> str:
    """Write a number of steps, or that there are more than were tried.

    >>> counted(9854, 100_000), counted(None, 100_000), counted(1, 100_000)
    ('9,854 steps', 'more than 100,000 steps', '1 step')
    """
    if steps is None:
        return f"more than {limit:,} steps"
    return f"{steps:,} step{'' if steps == 1 else 's'}"


def at(share: float) -> str:
    """Write a place on an axis from 0 to 1 as the percentage that SVG takes.

    >>> at(0.25), at(-0.5)
    ('25.00%', '-50.00%')
    """
    return f"{fixed(100 * share, 2)}%".replace("−", "-")
