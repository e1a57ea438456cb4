"""What the commands of all jobs share: options, what is refused before a start, and what is done at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossent.tools.train import MissingDependency, require

if TYPE_CHECKING:
    from crossent.tools.train.output import Output


def seed(fixes: str) -> click.Option:
    """Make the option of the seed."""
    return click.Option(["--seed"], type=click.IntRange(0, 1_000_000), default=0, metavar="N", help=f"{fixes}  [0]")


def files(name: str) -> list[click.Option]:
    """Make the options of what is written, and of a quick run."""
    default = f"crossent-{name}"
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="Print the results as JSON instead of tables."),
        click.Option(
            ["--out"],
            type=click.Path(file_okay=False, path_type=Path),
            default=default,
            metavar="DIR",
            help=f"Where report.html, {name}.png and results.json go.  [{default}]",
        ),
        click.Option(
            ["--html"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Where the page goes instead.  [DIR/report.html]",
        ),
        click.Option(["--quick"], is_flag=True, help="A few seconds, to see that it works; the figures mean nothing."),
    ]


def ready(out: Path, *modules: str) -> None:
    """Refuse before the training whatever would make the command fail after it."""
    try:
        require(*modules)
    except MissingDependency as error:
        raise click.ClickException(str(error)) from None
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise click.ClickException(f"cannot write into {out}: {there} is not a directory that may be written to")


def show(output: Output, out: Path, as_json: bool, html: Path | None = None) -> None:
    """Write the files and print the results; the paths go with the results, or beside the JSON."""
    from crossent.tools.train import terminal
    from crossent.tools.train.output import as_text, write

    paths = write(output, out, html)
    if as_json:
        click.echo(as_text(output.document))
    else:
        terminal.show(output)
    click.echo("\n".join(["Written:", *(f"  {path}" for path in paths)]), err=as_json)
