"""Digits on canvases: some to name, some to find. Parts of a split share no digit, and blocks of a part do not either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from crossent.tools.train import data
from crossent.tools.train.data import Split, Subset, stratified_split
from crossent.tools.train.results import TrainSettings

BLOCKS = 20
"""The test canvases lie in so many blocks. Canvases of one block share digits; the blocks, which share none, are independent."""
BLOCKS_DEFINITION = (
    f"Test canvases lie in {BLOCKS} blocks that share no digit; standard errors are over the blocks and the seeds."
)
SPLIT = (
    "the digits are split before the canvases are drawn, so that the parts share none; test canvases the same for every loss and "
    "run"
)
SEEDED = "the training and validation canvases, the first weights and the order"
SIDE = 8

Rows = NDArray[np.int64]


class Canvas(NamedTuple):
    """What is drawn: the positions of its digits in the data set, the ink from 0 to 16, and what is to be learnt of it."""

    position: Rows
    ink: NDArray[np.float32]
    label: NDArray[np.int64] | NDArray[np.float32]


Draw = Callable[[int, Rows, np.random.Generator], Canvas]
"""Draws the canvas of this number with digits of these positions."""


@dataclass(frozen=True)
class Canvases:
    """How canvases are drawn, how many there are to train, to choose by and to report, and which ink a network sees as 0 and 1."""

    draw: Draw
    sizes: tuple[int, int, int]
    zero: float
    one: float

    def load(self, settings: TrainSettings, seed: int) -> Split:
        """Draw canvases: those to train and to choose by are the run's own, those to report are the same for all runs."""
        pools = stratified_split(data.digits()[1].numpy(), settings.seed)
        seeds = (seed, seed, settings.seed)
        blocks = (1, 1, BLOCKS)
        return Split(
            *(
                self.compose(pools[i], self.sizes[i], blocks[i], np.random.default_rng([seeds[i], 3, i]))
                for i in range(len(pools))
            )
        )

    def compose(self, pool: Rows, count: int, blocks: int, rng: np.random.Generator) -> Subset:
        """Draw this many canvases, as many a block, from digits that are dealt to the blocks."""
        dealt = np.array_split(rng.permutation(pool), blocks)
        drawn = [self.draw(i, dealt[i * blocks // count], rng) for i in range(count)]
        position, ink, label = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
        return Subset(position, (ink.unsqueeze(1) - self.zero) / (self.one - self.zero), label)
