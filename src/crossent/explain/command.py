"""``crossent explain``: the losses of one row, typed in or taken from a file. It imports click and nothing else until it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from crossent.explain.catalogue import ALIASES, CARDS, DEFAULT

if TYPE_CHECKING:
    from crossent.files import Table

_LOSSES = "\n".join(f"  {name:<20}{card.about}" for name, card in CARDS.items())
_EXAMPLES = """\
  crossent explain --logits 2,1,.1 --target 0
  crossent explain --logits -6,6,0 --target 0 --losses ce,bce,mnist
  crossent explain preds.npz --row 17"""
_ALIASES = "\n".join(f"  {alias:<20}{name}" for alias, name in ALIASES.items())


def reading(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Make a callback that reads an option's text, and refuses it in the words of the ValueError."""

    def callback(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def read_numbers(text: str) -> list[float]:
    """Read numbers.

    >>> read_numbers("-6,6, -inf")
    [-6.0, 6.0, -inf]
    """
    return [float(word) for word in text.replace(",", " ").split()]


def read_target(text: str) -> Any:
    """Read a class index, several, or weights; what is no number is a class name.

    >>> read_target("2"), read_target("0,2"), read_target("0.5,0.5,0"), read_target("cat")
    (2, [0, 2], [0.5, 0.5, 0.0], 'cat')
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    values: list[Any]
    try:
        values = [int(word) for word in words]
    except ValueError:
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = words
    return values[0] if len(values) == 1 else values


def read_names(text: str) -> list[str]:
    """Read names with commas between them."""
    return [name.strip() for name in text.split(",")]


@click.command(epilog=f"\b\nLosses:\n{_LOSSES}\n\n\b\nOther names:\n{_ALIASES}\n\n\b\nExamples:\n{_EXAMPLES}")
@click.argument("file", required=False)
@click.argument("labels", required=False)
@click.option(
    "--logits", callback=reading(read_numbers), metavar="X,X,...", help="The logits of one row, instead of a FILE."
)
@click.option(
    "--target",
    callback=reading(read_target),
    metavar="T",
    help="A class index or name; several: 0,2; or one weight for each class: 0.9,0.1,0.",
)
@click.option("--row", type=click.IntRange(0), metavar="N", help="The row of the FILE, the first being 0.")
@click.option("--losses", metavar="NAME,...", help=f"Some of the losses below, or all.  [the first {len(DEFAULT)}]")
@click.option("--class-names", callback=reading(read_names), metavar="NAME,...", help="One name for each class.")
@click.option("--step", type=float, default=1.0, metavar="X", help="Size of the gradient step.  [1]")
@click.option(
    "--prior",
    callback=reading(read_numbers),
    metavar="N,N,...",
    help="How many examples each class has.  [counted in the labels of the FILE]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of tables.")
def explain(
    file: str | None, labels: str | None, row: int | None, losses: str | None, as_json: bool, **said: Any
) -> None:
    """Show what each loss tells each class of one row.

    For every class: the probability p, the target t, its term of the loss, the gradient, which way that pushes the logit, and p
    after one gradient step.

    Give the row as --logits and --target, or a FILE with logits, and LABELS unless they are in the same file, and --row.
    """
    from crossent.explain.explanation import explain as compute
    from crossent.files import FileError

    given = (said["logits"] is not None) + (file is not None)
    if given != 1:
        raise click.UsageError("give either --logits or a FILE" + (", not both" if given else ""))
    try:
        if file is not None:
            said = {**said, **{key: value for key, value in _from_file(file, labels, row).items() if said[key] is None}}
        elif row is not None:
            raise click.UsageError("--row is the row of a FILE")
        if said["target"] is None:
            raise click.UsageError("which class is true? Give --target, or a file with labels")
        explanation = compute(losses=losses, **said)
    except (FileError, ValueError) as error:
        raise Unreadable(str(error)) from None
    _show(explanation, as_json)


class Unreadable(click.ClickException):
    """Input that cannot be explained: one sentence, and exit code 2."""

    exit_code = 2


def _from_file(path: str, labels: str | None, row: int | None) -> dict[str, Any]:
    """Read a row's logits and its label, and how often each label occurs; say what was chosen."""
    from crossent.files import FileError, open_pair

    pair = open_pair(path, labels)
    for note in pair.notes:
        click.echo(note, err=True)
    if len(pair.logits.shape) != 2:
        raise FileError(f"{pair.logits.name} must have shape (N, C) to be explained, got {pair.logits.shape}")
    count = len(pair.logits)
    if row is None or row >= count:
        got = "none" if row is None else row
        raise FileError(f"--row must name one of the {count} rows of {pair.logits.name}, counted from 0, got {got}")
    found = {"logits": pair.logits.rows(row, row + 1)[0], "class_names": pair.logits.columns or None}
    if pair.labels is not None:
        found["target"] = pair.labels.rows(row, row + 1)[0]
        found["prior"] = _counts(pair.labels, pair.logits.shape[1])
    return found


def _counts(labels: Table, num_classes: int) -> Any:
    """Count class indices a block at a time, those in range; None where labels are something else."""
    import numpy as np

    if len(labels.shape) != 1:
        return None
    counts = np.zeros(num_classes, np.int64)
    for start in range(0, len(labels), 1 << 20):
        block = labels.rows(start, start + (1 << 20))
        with np.errstate(invalid="ignore"):
            index = block.astype(np.int64)
        if (index != block).any():
            return None
        counts += np.bincount(index[(index >= 0) & (index < num_classes)], minlength=num_classes)
    return counts if counts.any() else None


def _show(explanation: Any, as_json: bool) -> None:
    if as_json:
        click.echo(explanation.to_json())
        return
    from rich.console import Console

    from crossent.explain.terminal import show

    show(explanation, Console(highlight=False))
