"""``crossent train bytes``. It imports click and nothing else until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossent.tools.errors import InputError
from crossent.tools.train.command_options import files, ready, seed, show

MOST_MINUTES = 600


def _minutes(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse what never ends, or cannot begin."""
    if value is not None and not 0 < value <= MOST_MINUTES:
        raise click.BadParameter(f"minutes are a number above 0, at most {MOST_MINUTES}, got {value:g}")
    return value


def _bytes(
    text: Path | None,
    vocab: str,
    steps: int | None,
    minutes: float | None,
    as_json: bool,
    out: Path,
    html: Path | None,
    quick: bool,
    **asked: Any,
) -> None:
    """Read the text, train, write the files and print the results."""
    if steps is not None and minutes is not None:
        raise click.UsageError("give --steps or --minutes, not both")
    ready(out, "matplotlib")

    from crossent.tools.progress import ProgressBar
    from crossent.tools.train.language.report import output
    from crossent.tools.train.language.run import QUICK_STEPS, STEPS, LanguageSettings, run
    from crossent.tools.train.language.text import MOST, QUICK_MOST, TextError, read_text

    steps = steps or (QUICK_STEPS if quick else STEPS[vocab])
    settings = LanguageSettings(vocab, None if text is None else str(text), steps, minutes, quick=quick, **asked)
    try:
        results = run(settings, read_text(text, QUICK_MOST if quick else MOST), ProgressBar(patience=0, counted=False))
    except TextError as error:
        raise InputError(str(error)) from None
    if results is None:
        raise click.ClickException("interrupted before both ways were compared: nothing was kept")
    show(output(results), out, as_json, html)
    if not results.complete:
        raise click.ClickException(f"interrupted after {len(results.steps)} steps: the model is scored as it was then")


bytes_ = click.Command(
    "bytes",
    callback=_bytes,
    short_help="A small language model, with and without its logits.",
    params=[
        click.Option(
            ["--text"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="UTF-8 text to learn from.  [Python's documentation]",
        ),
        click.Option(
            ["--vocab"],
            type=click.Choice(["bytes", "words"]),
            default="bytes",
            help="Classes: the 256 bytes, or thousands of words besides.  [bytes]",
        ),
        click.Option(["--steps"], type=click.IntRange(1), metavar="N", help="Steps of training.  [1000; 300 of words]"),
        click.Option(
            ["--minutes"],
            type=float,
            callback=_minutes,
            metavar="X",
            help="Minutes of training, instead of --steps; then the machine's speed decides the figures.",
        ),
        seed("Fixes the first weights, the batches and the sample."),
        *files("bytes"),
    ],
    help="""A small language model, with and without its logits.

A causal transformer learns the documentation that comes with Python, or a text of your own, and is scored on the last tenth: how
many bits it needs for a byte, beside what zlib, bz2 and lzma need, and what the frequencies of bytes and of pairs tell.

The first steps are trained twice, with the logits of all tokens (F.linear and F.cross_entropy) and with linear_cross_entropy: the
losses agree, and time and memory of the two are shown side by side. Takes about two minutes.

Words are pieces of the text that occur twice or more in the part to learn from; what is no such piece is written byte by byte, so
that bits per byte can be compared. With --vocab words the logits are large enough for the memory to matter.""",
)
