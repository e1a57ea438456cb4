"""What others make of the held-out bytes: compressors, and models that know frequencies alone; all in bits per byte."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent import reference
from crossent.reference import Array
from crossent.tools.train.language.text import Text

LEVEL = 9
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": lambda data: zlib.compress(data, LEVEL),
    "bz2": lambda data: bz2.compress(data, LEVEL),
    "lzma": lambda data: lzma.compress(data, preset=LEVEL),
}


class Compressed(NamedTuple):
    """Bits that a compressor needs for a byte of the tail: alone, and after the training text."""

    name: str
    alone: float
    after: float


class Frequencies(NamedTuple):
    """Bits for a byte of the tail, by what was counted in the training text: nothing, bytes, and pairs of bytes."""

    uniform: float
    unigram: float
    bigram: float


def compressors(text: Text) -> tuple[Compressed, ...]:
    """Compress the tail alone, and measure how much longer it makes the compressed training text."""
    found = []
    for name, compress in COMPRESSORS.items():
        more = len(compress(text.train + text.tail)) - len(compress(text.train))
        bits = 8 / len(text.tail)
        found.append(Compressed(name, bits * len(compress(text.tail)), bits * more))
    return tuple(found)


def frequencies(text: Text) -> Frequencies:
    """Score the tail by the frequencies of the training text.

    A byte counts once more than it occurred, so that none is impossible; after each byte, all together as often as one byte
    that occurred, by their frequencies::

        p(b) = (n_b + 1) / (n + 256)        p(b | a) = (n_ab + p(b)) / (n_a + 1)
    """
    joined = np.frombuffer(text.train + text.tail, np.uint8).astype(np.int64)
    cut = len(text.train)
    counts = np.bincount(joined[:cut], minlength=256)
    unigram = (counts + 1) / (counts.sum() + 256)
    pairs = _pairs(joined[:cut])
    bigram = (pairs + unigram) / (pairs.sum(1, keepdims=True) + 1)
    return Frequencies(
        uniform=8.0,
        unigram=_bits(unigram, np.bincount(joined[cut:], minlength=256)),
        bigram=_bits(bigram, _pairs(joined[cut - 1 :])),
    )


def _pairs(data: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count which byte follows which, ``(256, 256)``."""
    return np.bincount(256 * data[:-1] + data[1:], minlength=65536).reshape(256, 256)


def _bits(p: Array, counts: NDArray[np.int64]) -> float:
    """Average the surprisal over what was counted, in bits."""
    total = reference.cross_entropy(np.log(p), counts.astype(float), reduction="sum").loss
    return float(total / counts.sum() / np.log(2))
