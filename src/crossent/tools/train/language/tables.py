"""The tables of a language model's training."""

from __future__ import annotations

from crossent.tools.table import Table
from crossent.tools.train.language.conclusions import megabytes, milliseconds
from crossent.tools.train.language.heads import CALLS
from crossent.tools.train.language.run import LanguageResults


def costs(results: LanguageResults) -> Table:
    """Tabulate what a held-out byte costs the model and what it is compared with, the dearest first."""
    frequencies = results.frequencies
    rows: list[tuple[str, float | None, float]] = [
        ("all bytes alike", None, frequencies.uniform),
        ("frequencies of bytes", None, frequencies.unigram),
        ("frequencies of pairs", None, frequencies.bigram),
        *results.compressed,
        ("the model", None, results.bits),
    ]
    rows.sort(key=lambda row: -row[2])
    cells = tuple((name, "" if alone is None else f"{alone:.3f}", f"{after:.3f}") for name, alone, after in rows)
    notes: tuple[str, ...] = (
        "After the training text: how much longer the tail makes the compressed text. Frequencies are counted in the training "
        "text, each byte once more than it occurs, and scored on the tail.",
    )
    if results.settings.vocab == "words":
        notes += (
            "The model's bits are those of one way to write the tail in pieces, all its tokens counted, divided by the bytes. "
            "All ways to write it, counted together, would need no more.",
        )
    marked = frozenset((i, 2) for i, row in enumerate(rows) if row[0] == "the model")
    title = f"Bits for a byte of the held-out tail, {len(results.text.tail)} bytes"
    return Table(title, ("", "tail alone", "after the training text"), cells, notes, marked)


def ways(results: LanguageResults) -> Table:
    """Tabulate time and memory with and without the logits of all tokens."""
    shape = results.shape
    rows = tuple(
        (
            CALLS[way.name],
            milliseconds(way, "seconds"),
            milliseconds(way, "head_seconds"),
            "–" if way.peak is None else megabytes(way.peak),
        )
        for way in results.ways
    )
    logits = 4 * shape.sequences * shape.length * shape.classes
    notes = (
        f"Time: medians over the first {len(results.ways[0].steps)} steps, trained both ways in turns, on {results.threads} "
        f"thread{'s' * (results.threads > 1)}; a step without drawing its batch. Memory: how far forward and backward of head and "
        "loss raise the peak above the hidden states and the head, their gradients included, each in a fresh process. The logits "
        f"of all tokens are {megabytes(logits)} MB.",
    )
    title = f"Both ways: {shape.sequences} × {shape.length} tokens, {shape.features} features, {shape.classes} classes"
    return Table(title, ("head and loss by", "step ms", "head+loss ms", "memory MB"), rows, notes)
