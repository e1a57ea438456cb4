"""What a tool cannot read, in one sentence, and the exit code 2 of a command that is given it."""

from __future__ import annotations

import click


class FileError(ValueError):
    """A file or an array that cannot be read as asked."""


class InputError(click.ClickException):
    """Input that a command cannot read."""

    exit_code = 2
