"""The errors for what a tool cannot read. Each is one sentence, and a command that raises one exits with 2."""

from __future__ import annotations

import click

from crossent.tools.printable import printable


class FileError(ValueError):
    """A file or an array that cannot be read as asked; what it says may be shown in a terminal."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(click.ClickException):
    """Input that a command cannot read."""

    exit_code = 2
