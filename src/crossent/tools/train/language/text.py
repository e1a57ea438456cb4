"""A text as bytes, and as classes: each byte is one, or frequent pieces of the text are classes beside the bytes."""

from __future__ import annotations

import codecs
import hashlib
import platform
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

LEAST, MOST, QUICK_MOST = 4096, 8 << 20, 64 << 10  # bytes of a text
HELD_OUT = 0.1
MOST_HELD_OUT = 65536
MOST_CLASSES = 32768
PIECE = re.compile(rb" ?[A-Za-z_\x80-\xff]{1,32}|\s{1,32}(?!\S)|.", re.DOTALL)
"""A word with the space before it, white space but for the space before a word, or any other byte."""


class TextError(ValueError):
    """A text that cannot be learnt from, in one sentence."""


class Text(NamedTuple):
    """A text, cut once: the beginning is learnt from, the tail is held out."""

    name: str
    train: bytes
    tail: bytes
    sha256: str
    notes: tuple[str, ...] = ()


def read_text(path: Path | None, most: int = MOST) -> Text:
    """Read a file, or without one the documentation that comes with Python; no more of it than this.

    Raises:
        TextError: no such file, or one that is not UTF-8 text of 4096 bytes or more.
    """
    if path is None:
        name = f"the documentation in Python {platform.python_version()}, pydoc_data.topics"
        return split(name, _documentation(), most)
    try:
        if path.exists() and not path.is_file():
            raise TextError(f"--text must be a file, got {path}, which is none")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror or error}") from None
    return split(str(path), data, most)


def _documentation() -> bytes:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise TextError("this Python comes without its documentation (pydoc_data): give a text with --text") from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def split(name: str, data: bytes, most: int = MOST) -> Text:
    """Check a text and cut it; of a long one only the beginning is used."""
    cut = len(data) > most
    data = data[:most]
    if b"\0" in data:
        raise TextError(f"{name} must be text, got a byte 0: it looks like a binary file")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError as error:
        raise TextError(
            f"{name} must be UTF-8 text, got the byte 0x{data[error.start]:02x} at {error.start}: convert it to UTF-8"
        ) from None
    if len(data) < LEAST:
        raise TextError(f"{name} must have at least {LEAST} bytes to learn from, got {len(data)}")
    tail = min(round(HELD_OUT * len(data)), MOST_HELD_OUT)
    notes = (f"Only the first {most >> 10} KiB of {name} are used.",) if cut else ()
    return Text(name, data[:-tail], data[-tail:], hashlib.sha256(data).hexdigest(), notes)


class Vocabulary:
    """The classes: the 256 bytes first, then pieces of two bytes or more. Any bytes can be encoded, without an unknown class.

    A piece that is a class becomes that class, any other becomes its bytes one by one. The classes are of the training text,
    those that occur most often in it, at least twice; among equals the one whose bytes come first.

    >>> words = Vocabulary.of_words(b"the cat and the dog and the end")
    >>> words.pieces
    (b' and', b' the')
    >>> words.encode(b"a the")
    array([ 97, 257])
    >>> words.decode([97, 257])
    b'a the'
    """

    def __init__(self, pieces: Sequence[bytes] = ()) -> None:
        self.pieces = tuple(pieces)
        self._all = [bytes([byte]) for byte in range(256)] + list(pieces)
        self._index = {piece: i for i, piece in enumerate(self._all)}
        self.lengths = np.array([len(piece) for piece in self._all])

    @classmethod
    def of_words(cls, train: bytes) -> Vocabulary:
        """Count the pieces of a training text."""
        counts = Counter(piece for piece in PIECE.findall(train) if len(piece) > 1)
        often = sorted((piece for piece, n in counts.items() if n > 1), key=lambda piece: (-counts[piece], piece))
        return cls(sorted(often[: MOST_CLASSES - 256]))

    def __len__(self) -> int:
        return len(self._all)

    def encode(self, data: bytes) -> Ids:
        """Write bytes as classes."""
        if not self.pieces:
            return np.frombuffer(data, np.uint8).astype(np.int64)
        ids: list[int] = []
        for piece in PIECE.findall(data):
            known = self._index.get(piece)
            ids.extend(piece if known is None else (known,))
        return np.array(ids, np.int64)

    def decode(self, ids: Sequence[int] | Ids) -> bytes:
        """Write classes as bytes."""
        return b"".join(self._all[i] for i in ids)


def vocabulary(kind: str, train: bytes) -> Vocabulary:
    """Make the classes ``bytes`` or ``words``."""
    return Vocabulary() if kind == "bytes" else Vocabulary.of_words(train)
