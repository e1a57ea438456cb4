"""``crossent explore``. It imports click and nothing else until it runs."""

from __future__ import annotations

from pathlib import Path

import click

from crossent.tools.errors import InputError


@click.command("explore")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="crossent-explore.html",
    metavar="FILE",
    help="Where to write the page.  [crossent-explore.html]",
)
@click.option("--no-open", is_flag=True, help="Only write the page, and print where it is.")
def explore(out: Path, no_open: bool) -> None:
    """Write a page that shows what a loss does to a model, and open it.

    The page is one file. It needs no server and no network, so it can be kept, mailed and printed.
    """
    from crossent.tools.explore.scenes import explore_page

    try:
        out.write_text(explore_page(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None
    click.echo(str(out))
    if not no_open:
        click.launch(str(out.resolve()))
