"""What a language model's training shows, in sentences made from its numbers."""

from __future__ import annotations

from crossent.tools.train.conclusions import QUICK, joined
from crossent.tools.train.language.compressors import Compressed
from crossent.tools.train.language.run import LanguageResults, Way

ALIKE = 0.02
"""Bits per byte, and shares of a time or a memory, that are not worth a word."""
ROUNDING = 1e-4
"""Bits per byte by which float32 may make two ways to the same loss differ."""


def paragraph(results: LanguageResults) -> str:
    """Say what the run shows."""
    if results.settings.quick:
        return QUICK
    parts = (learnt(results), against_compressors(results), agreement(results), memory(results), time(results))
    return " ".join(filter(None, parts))


def learnt(results: LanguageResults) -> str:
    """Say what a held-out byte costs, beside what frequencies make of it."""
    bits, known, end = results.bits, results.frequencies, results.curve[-1]
    sentences = (
        f"After {end.step} steps, {end.seconds:.0f} s of training, the model needs {bits:.3f} bits for a byte of the held-out "
        f"text. The frequencies of single bytes give {known.unigram:.3f}, those of pairs {known.bigram:.3f}: "
    )
    if abs(bits - known.bigram) <= ALIKE:
        return sentences + "no clear difference to the pairs."
    if bits < known.bigram:
        return sentences + f"it has learnt {known.bigram - bits:.3f} bits more than which byte follows which."
    return sentences + "it has not yet learnt which byte follows which."


def against_compressors(results: LanguageResults) -> str:
    """Say which compressors need more bits, and which fewer, for the same bytes after the same text."""
    bits = results.bits
    more = [each for each in results.compressed if each.after > bits + ALIKE]
    fewer = [each for each in results.compressed if each.after < bits - ALIKE]
    level = [each for each in results.compressed if each not in more and each not in fewer]
    parts = []
    for found, verb in ((more, "more"), (fewer, "fewer"), (level, "about as many")):
        if found:
            parts.append(f"{_listed(found)} {'needs' if len(found) == 1 else 'need'} {verb}")
    return f"Of the compressors, given the training text too, {joined(parts)}."


def _listed(compressed: list[Compressed]) -> str:
    return joined(f"{each.name} ({each.after:.3f})" for each in compressed)


def agreement(results: LanguageResults) -> str:
    """Say how far the two ways agree: from the same weights, and each trained by itself."""
    steps, difference = len(results.ways[0].steps), results.difference
    rounding = "rounding" if difference <= ROUNDING else "more than rounding explains"
    return (
        f"From the same weights the losses with and without logits differ by at most {difference:.1g} bits per byte in the first "
        f"{steps} steps, {rounding}; trained each by itself from the same seed, where rounding grows from step to step, by at "
        f"most {results.drift:.1g}."
    )


def memory(results: LanguageResults) -> str:
    """Say what each way takes above the hidden states and the head."""
    torch, ours = (way.peak for way in results.ways)
    if not torch or not ours:
        return "The memory of head and loss was not measured: this system does not tell."
    return (
        f"Head and loss, forward and backward, raise the peak memory by {megabytes(torch)} MB with the logits of all "
        f"{results.shape.sequences * results.shape.length} tokens and by {megabytes(ours)} MB with linear_cross_entropy"
        f"{_times(torch, ours, 'as much')}."
    )


def time(results: LanguageResults) -> str:
    """Say what each way takes of a step."""
    torch, ours = results.ways
    parts = [f"{milliseconds(way, 'head_seconds')} ms" for way in (torch, ours)]
    ratio = _times(torch.median("head_seconds"), ours.median("head_seconds"), "as long")
    share = ours.median("head_seconds") / ours.median("seconds")
    return f"They take {parts[0]} of a step with the logits and {parts[1]} without{ratio}, which is {share:.0%} of that step."


def _times(torch: float, ours: float, what: str) -> str:
    """Compare the second with the first."""
    return "" if abs(ours / torch - 1) <= ALIKE else f", {ours / torch:.2f} times {what}"


def megabytes(size: float) -> str:
    """Write a number of bytes."""
    return f"{size / 1e6:.1f}"


def milliseconds(way: Way, what: str) -> str:
    """Write a median time."""
    return f"{1000 * way.median(what):.1f}"
