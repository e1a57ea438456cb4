"""The command line. It imports click and nothing else until a command runs, so that ``--help`` answers at once.

Results go to the standard output, progress and notices to the standard error. Exit codes: 0 fine, 1 failed or
interrupted, 2 used wrongly.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from errno import EPIPE
from typing import Any

import click

from crossent._version import __version__
from crossent.tools.check.command import check, rule
from crossent.tools.errors import InputError
from crossent.tools.explain.command import explain
from crossent.tools.explore.command import explore
from crossent.tools.optional_packages import EXTRAS, install
from crossent.tools.scale import scale
from crossent.tools.score.command import score
from crossent.tools.train.command import train


class _Commands(click.Group):
    """The commands. Each wrong variable of the environment and each mistyped command is answered by one sentence."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = get_close_matches(args[0], self.list_commands(ctx), 1)
            if not meant or "No such command" not in error.message:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}. Did you mean {meant[0]}?", ctx) from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno == EPIPE:  # the reader has closed the pipe; click ends the program without a message
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing fails again at exit
            raise InputError(f"the output cannot be written: {error.strerror}") from None
        except ValueError as error:
            if not str(error).startswith("CROSSENT_"):
                raise
            raise click.ClickException(str(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="crossent")
def main() -> None:
    """The cross-entropy family for PyTorch: exact, fast, and able to explain itself."""
    # A terminal that cannot write σ shows an s; that is no reason to lose a result.
    from crossent.tools.printable import HANDLER

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)


# --- info -------------------------------------------------------------------------------------------------------------


@main.command()
def info() -> None:
    """Say which versions, implementations and extras are here, and why others are not."""
    sections = (
        ("", _versions()), ("implementations", _implementations()), ("a plain call runs", _chosen()),
        ("torch's losses in this process", _patched()), ("deferred heads in this process", _deferred()),
        ("extras", _extras()),
    )  # fmt: skip
    for title, facts in sections:
        if title:
            click.echo(f"\n{title}")
        for name, fact in facts.items():
            click.echo(f"{'  ' if title else ''}{name:<{12 - 2 * bool(title)}}  {fact}")


def _versions() -> dict[str, str]:
    import platform

    import numpy as np
    import torch

    cuda = torch.cuda.is_available()
    return {
        "crossent": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} CPUs",
        "GPU": torch.cuda.get_device_name() if cuda else "none that torch can use",
    }


def _implementations() -> dict[str, str]:
    from crossent import implementations

    return {name: "available" if why is None else f"no: {why}" for name, why in implementations().items()}


def _chosen() -> dict[str, str]:
    """Say what a plain call runs on which device."""
    import torch

    from crossent import choose_implementation, implementations

    meaning = {
        "native": "native, the compiled kernels",
        "triton": "triton, the kernels for GPUs",
        "eager": "eager, torch operations in blocks of rows",
        "torch": "torch, its own operator, with torch's accuracy",
    }
    elsewhere = choose_implementation(torch.empty(2, 3, device="meta"))
    on_gpu = "triton" if implementations()["triton"] is None else elsewhere
    on_cpu = choose_implementation(torch.zeros(2, 3))
    return {"on the CPU": meaning[on_cpu], "on a GPU": meaning[on_gpu], "elsewhere": meaning[elsewhere]}


def _patched() -> dict[str, str]:
    """Say which of torch's losses crossent.patch() has replaced, and in which modules."""
    from crossent.models.patching import patched_places

    places = patched_places()
    replaced = {name: f"crossent's, by crossent.patch(), in {', '.join(modules)}" for name, modules in places.items()}
    return replaced or {"all": "torch's own: crossent.patch() was not called"}


def _deferred() -> dict[str, str]:
    """Say of each deferred head whether its logits were formed."""
    from crossent.models.logits import Logits

    lines = Logits.report().splitlines()[1 : 1 + len(Logits.heads)]
    heads = dict(line.strip().split(": ", 1) for line in lines)
    return heads or {"all": "none was called; call crossent.Logits.report() in the process that trains a model"}


def _extras() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    def missing(package: str) -> bool:
        try:
            version(package)
        except PackageNotFoundError:
            return True
        return False

    extras = {}
    for extra, packages in EXTRAS.items():
        lacking = [package for package in packages if missing(package)]
        extras[extra] = f"lacks {', '.join(lacking)}: {install(lacking)}" if lacking else "installed"
    return extras


for command in (explain, explore, check, rule, score, scale, train):
    main.add_command(command)
