"""Small pictures of numbers as PNG inside the page: a heat map, a handwritten digit."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence


def png(strength: Sequence[Sequence[float]], colour: tuple[int, int, int]) -> str:
    """Write numbers from 0 to 1, rows from above, as one colour that covers as much; return a data URI.

    >>> png([[0.0, 1.0]], (0, 0, 0))[:22]
    'data:image/png;base64,'
    """
    rows = b"".join(
        b"\0" + b"".join(bytes((*colour, round(255 * min(max(v, 0.0), 1.0)))) for v in row) for row in strength
    )
    head = struct.pack(">IIBBBBB", len(strength[0]), len(strength), 8, 6, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    written = b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*parts, strict=True)))
    return f"data:image/png;base64,{base64.b64encode(written).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
