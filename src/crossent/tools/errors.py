"""What a command says about input that it cannot read: one sentence, and exit code 2."""

from __future__ import annotations

import click


class Unreadable(click.ClickException):
    """Input that a command cannot read."""

    exit_code = 2
