"""``crossent explain``: the losses of one row, typed in or taken from a file. It imports click and nothing else until it runs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from crossent.tools import shared_options
from crossent.tools.errors import InputError
from crossent.tools.explain.catalogue import ALIASES, DEFAULT, LOSSES
from crossent.tools.printable import printable

if TYPE_CHECKING:
    from crossent.tools.files import RowArray, Selection

_LOSSES = "\n".join(f"  {name:<20}{description.about}" for name, description in LOSSES.items())
_EXAMPLES = """\
  crossent explain --logits 2,1,.1 --target 0
  crossent explain --probs .1,.7,.2 --target 0
  crossent explain --logits -6,6,0 --target 0 --losses ce,bce,mnist
  crossent explain preds.npz --row 17
  crossent explain preds.csv --row img0362"""
_ALIASES = "\n".join(f"  {alias:<20}{name}" for alias, name in ALIASES.items())


def read_target(text: str) -> Any:
    """Read a class index, several, or weights; what is no number is a class name.

    >>> read_target("2"), read_target("0,2"), read_target("0.5,0.5,0"), read_target("cat")
    (2, [0, 2], [0.5, 0.5, 0.0], 'cat')
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for kind in (int, float, str):
        with suppress(ValueError):
            values = [kind(word) for word in words]
            return values[0] if len(values) == 1 else values


@click.command(
    "explain", epilog=f"\b\nLosses:\n{_LOSSES}\n\n\b\nOther names:\n{_ALIASES}\n\n\b\nExamples:\n{_EXAMPLES}"
)
@click.argument("file", required=False)
@click.argument("labels", required=False)
@click.option("--logits", metavar="X,X,...", help="The logits of one row, instead of a FILE.")
@click.option("--probs", metavar="P,P,...", help="Its probabilities: the same as --logits with --input probs.")
@click.option(
    "--target",
    metavar="T",
    help="A class index or name; several: 0,2; or one weight for each class: 0.9,0.1,0.  [the label in the FILE]",
)
@click.option(
    "--row", metavar="ROW", help="The row of the FILE: its number, as in the column row of crossent score, or its id."
)
@click.option("--losses", metavar="NAME,...", help=f"Some of the losses below, or all.  [the first {len(DEFAULT)}]")
@shared_options.class_names_flag
@shared_options.column_flags
@shared_options.class_dim_flag
@shared_options.ignore_index_flag
@shared_options.input_flag
@click.option("--step", type=float, default=1.0, metavar="X", help="Size of the gradient step.  [1]")
@click.option("--prior", metavar="N,N,...", help="Counts of the classes, or a file of them.  [counted in the FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of tables.")
def explain(
    file: str | None, labels: str | None, row: str | None, class_dim: int | None, as_json: bool, **options: Any
) -> None:
    """Show what each loss tells each class of one row.

    For every class: the probability p, the target t, its term of the loss, the gradient, which way that pushes the logit, and p
    after one gradient step.

    Give the row as --logits and --target. Or give a FILE with logits and name the row with --row; give LABELS as well, unless they
    are in the same file. Files are read as by crossent score.
    """
    from crossent.tools.explain.explanation import explain as compute

    probs = options.pop("probs")
    given = [
        name
        for name, value in (("a FILE", file), ("--logits", options["logits"]), ("--probs", probs))
        if value is not None
    ]
    if len(given) != 1:
        raise click.UsageError("give either --logits, --probs or a FILE" + f", not {' and '.join(given)}" * bool(given))
    if probs is not None:
        options |= {"logits": probs, "input": "probs"}
    if file is None and row is not None:
        raise click.UsageError("--row is the row of a FILE")
    try:
        selection = shared_options.take_selection(options)
        read = {key: value for key, value in _read(**options).items() if value is not None}
        if file is None:
            arguments: dict[str, Any] = {"dim": class_dim, "class_names": selection.class_names or None}
        else:
            arguments = _from_file((file, labels, selection), row, class_dim, options["ignore_index"])
        arguments |= read
        if arguments.get("target") is None:
            raise click.UsageError("which class is true? Give --target, or a file with labels")
        explanation = compute(**arguments)
    except shared_options.OptionError as error:
        raise error.usage from None
    except ValueError as error:  # FileError is one
        raise InputError(str(error)) from None
    _show(explanation, as_json)


def _read(logits: str | None, target: str | None, prior: str | None, **others: Any) -> dict[str, Any]:
    """Read the texts of the options."""
    from crossent.tools.files.values import WEIGHTS, read_numbers

    return {
        "logits": None if logits is None else read_numbers(logits).reshape(-1),
        "target": None if target is None else read_target(target),
        "prior": None if prior is None else read_numbers(prior, WEIGHTS).reshape(-1),
        **others,
    }


def _from_file(
    files: tuple[str, str | None, Selection], row: str | None, dim: int | None, ignore_index: int
) -> dict[str, Any]:
    """Read a row's logits and its label, and how often each label occurs; say what was chosen."""
    from crossent.tools.files import FileError, open_pair

    pair = open_pair(*files)
    for note in pair.notes:
        click.echo(printable(note), err=True)
    if len(pair.logits.shape) != 2:
        raise FileError(
            f"{pair.logits.name} must have shape (N, C) to be explained, got {pair.logits.shape}: "
            "give the logits of one token or pixel to --logits, or save each as a row"
        )
    shared_options.class_axis("dim", dim, pair.logits.shape, 1, rows_first=True)
    at = _row(pair.logits, row)
    given = {
        "logits": pair.logits.rows(at, at + 1)[0],
        "class_names": pair.logits.columns or files[2].class_names or None,
    }
    if pair.labels is not None:
        given["target"] = pair.labels.rows(at, at + 1)[0]
        given["prior"] = _counts(pair.labels, pair.logits.shape[1], ignore_index)
    return given


def _row(logits: RowArray, row: str | None) -> int:
    """Find a row by its number, counted from 0, or by the id that the file gives it."""
    from crossent.tools.files import FileError

    count = len(logits)
    if row is not None and row.strip().isdecimal() and int(row) < count:
        return int(row)
    places = [k for k, name in enumerate(logits.ids) if row is not None and name == row.strip()]
    if len(places) == 1:
        return places[0]
    if places:
        raise FileError(
            f"--row {row}: {len(places)} rows of {logits.name} have this id: give the number of one, as {places[0]}"
        )
    ids = f", or by an id such as {logits.ids[0]}" if len(logits.ids) else ""
    got = "none: say --row 0 for the first" if row is None else row
    raise FileError(f"--row must name one of the {count} rows of {logits.name}, counted from 0{ids}, got {got}")


def _counts(labels: RowArray, num_classes: int, ignore_index: int) -> Any:
    """Count class indices a block at a time, those in range and not ignored; None where labels are something else."""
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
        counted = (index >= 0) & (index < num_classes) & (index != ignore_index)
        counts += np.bincount(index[counted], minlength=num_classes)
    return counts if counts.any() else None


def _show(explanation: Any, as_json: bool) -> None:
    if as_json:
        click.echo(explanation.to_json())
        return
    from rich.console import Console

    from crossent.tools.explain.terminal import show

    show(explanation, Console(highlight=False))
