"""Where a program's rows lie, and how it reads and writes a block of their classes.

Logits are seen as ``(N, C, P)`` with any three strides of which the last or that of the classes is 1. A program takes ``ROWS`` of
the ``N · P`` rows, and a block of ``LANES · E`` of their classes at a time. E classes of a row are what a thread loads at once.

Where the classes lie side by side a row may begin anywhere, and a load of 16 bytes may not. So with ``CHUNKS`` a row is walked in
chunks of E elements that are aligned in memory. Example: C = 10, E = 4, and row 1 begins at element 10. The chunks begin at 8, 12
and 16; of the first one classes 0 and 1 are elements 10 and 11, and the two elements before them belong to row 0 and are
replaced. ``phase`` is 2 here: how far a row begins behind its first chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from crossent.impl.triton.numbers import rounded


class Layout(NamedTuple):
    """How tensors of the logits' shape lie: ``x`` is the logits, ``g`` everything else."""

    classes: Any
    inner: Any  # P
    tiles: Any  # programs for P rows
    x_outer: Any
    x_inner: Any
    x_class: Any
    g_outer: Any
    g_inner: Any
    g_class: Any


class Tile(NamedTuple):
    """The shape of what a program works on, and whether it walks in aligned chunks; a row may reach ``SLACK`` elements further."""

    ROWS: Any
    LANES: Any
    E: Any
    CHUNKS: Any
    SLACK: Any
    APART: Any  # whether the classes lie apart, and rows side by side
    TIES: Any  # whether the largest logits are kept out of the sums in the loop
    KEEP: Any  # whether what is read first is to stay in the cache, and what is read last is not
    BITS: Any  # whether results are rounded to bfloat16 by their bits
    UNREAD: Any  # what the logits of a row that is not read are in the inner blocks
    EXACT: Any
    R: Any  # the dtype of the computation


class Rows(NamedTuple):
    """A program's rows: their numbers, where they begin in x and in g, their phase, and which of them exist."""

    number: Any
    at_x: Any
    at_g: Any
    phase: Any
    inside: Any


@triton.jit
def rows_of_program(layout, tile):
    """Find the rows of this program."""
    return rows_of(tl.program_id(0), layout, tile)


@triton.jit
def rows_of(program, layout, tile):
    """Find the rows of the program with this number; there may be more than 2³¹ of them."""
    n, i = (program // layout.tiles).to(tl.int64), (program % layout.tiles).to(tl.int64) * tile.ROWS
    i += tl.arange(0, tile.ROWS)
    inside = i < layout.inner
    at_x, at_g = n * layout.x_outer + i * layout.x_inner, n * layout.g_outer + i * layout.g_inner
    phase = at_x * 0
    if tile.CHUNKS:
        first = at_x // tile.E * tile.E
        phase = at_x - first
        at_x, at_g = first, (at_g - phase) // tile.E * tile.E
    return Rows(n * layout.inner + i, at_x, at_g, phase.to(tl.int32), inside)


@triton.jit
def chunks(k, tile):
    """Tell where the chunks of the block that begins at k begin, counted from the rows' first chunk."""
    return k + (tl.arange(0, tile.LANES) * tile.E)[None, :, None]


@triton.jit
def inner_blocks(layout, tile):
    """Tell where the blocks begin that hold nothing but classes of every row, and where they end.

    The blocks before and behind them are at the edge, where every element is to be looked at.
    """
    step: tl.constexpr = tile.LANES * tile.E
    first: tl.constexpr = step if tile.SLACK > 0 else 0
    return first, max(layout.classes // step * step, first)


@triton.jit
def edge_blocks(layout, tile):
    """Tell how many blocks at the edge there are, of which those before the inner ones come first."""
    step: tl.constexpr = tile.LANES * tile.E
    first, last = inner_blocks(layout, tile)
    return (layout.classes + tile.SLACK - last + step - 1) // step + first // step


@triton.jit
def edge_block(i, layout, tile):
    """Tell where the edge block with this number begins."""
    step: tl.constexpr = tile.LANES * tile.E
    first, last = inner_blocks(layout, tile)
    k = i * step
    if k >= first:
        k += last - first
    return k


@triton.jit
def classes_of(chunk, rows, tile):
    """Tell the class of each element; those before a row's begin are below 0."""
    cls = chunk + tl.arange(0, tile.E)[None, None, :]
    if tile.CHUNKS:
        cls = cls - rows.phase[:, None, None]
    return cls


@triton.jit
def are_classes(chunk, rows, layout, tile):
    """Mark the elements that are classes of their row, compared in one chunk."""
    e, before = tl.arange(0, tile.E)[None, None, :], chunk
    if tile.CHUNKS:
        before = chunk - rows.phase[:, None, None]
        return (e >= -before) & (e < layout.classes - before)
    return e < layout.classes - before


@triton.jit
def load(source, at, stride, chunk, EDGE: tl.constexpr, rows, live, other, layout, tile, STAY: tl.constexpr = ""):
    """Load chunks of the rows that are live, with ``other`` for what is no class of theirs, as it happens at an edge.

    Where the classes lie apart, other rows are loaded too.
    """
    position, mask = chunk + tl.arange(0, tile.E)[None, None, :], live[:, None, None]
    if tile.APART:  # rows that lie side by side are loaded together
        mask = rows.inside[:, None, None]
    if tile.CHUNKS:
        if EDGE:
            mask = mask & (chunk < layout.classes + rows.phase[:, None, None])
        mask = tl.broadcast_to(mask, [tile.ROWS, tile.LANES, tile.E])
        where = source + (at[:, None, None] + position)
        x = tl.load(where, mask=mask, other=other, eviction_policy=STAY).to(tile.R)
        if EDGE:
            x = tl.where(are_classes(chunk, rows, layout, tile), x, other)
    else:
        if EDGE:
            mask = mask & are_classes(chunk, rows, layout, tile)
        x = tl.load(source + (at[:, None, None] + position.to(tl.int64) * stride), mask=mask, other=other).to(tile.R)
    return x


@triton.jit
def store(to, at, stride, chunk, EDGE: tl.constexpr, value, rows, layout, tile, BITS: tl.constexpr = False):
    """Store chunks of the rows that exist, rounded by their bits if that is said."""
    position, value = chunk + tl.arange(0, tile.E)[None, None, :], rounded(value, to.dtype.element_ty, BITS)
    inside = tl.broadcast_to(rows.inside[:, None, None], [tile.ROWS, tile.LANES, tile.E])
    if tile.CHUNKS:
        where = to + (at[:, None, None] + position)
        if EDGE:
            tl.store(where, value, mask=inside & are_classes(chunk, rows, layout, tile))
        else:
            tl.store(where, value, mask=inside)
    else:
        if EDGE:
            inside = inside & are_classes(chunk, rows, layout, tile)
        tl.store(to + (at[:, None, None] + position.to(tl.int64) * stride), value, mask=inside)
