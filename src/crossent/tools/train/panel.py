"""A part of a picture, and the colours that it is drawn in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 4.9


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink, and the tints of the losses; dashes differ besides, for the colour-blind."""

    paper: str
    ink: str
    faint: str
    tints: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1b1f24", "#c9ced6", ("#0072b2", "#3aa0dc", "#009e73", "#d55e00", "#b0609a", "#d99600"))
DARK = Theme("#14171c", "#e6e9ee", "#3a414c", ("#4aa3f0", "#a5d8ff", "#2cc79b", "#ff8145", "#e79fd0", "#f4c542"))
THEMES = (LIGHT, DARK)


class Panel(NamedTuple):
    """A part of the picture: how it is drawn, and what it shows for those who do not see it."""

    draw: Callable[[Axes, Any, Theme], None]
    alt_text: str
    wide: bool = False
    height: float = HEIGHT
