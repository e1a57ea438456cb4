"""The command line. It imports click and nothing else until a command runs, so that ``--help`` answers at once.

Results go to the standard output, progress and notices to the standard error. Exit codes: 0 fine, 1 failed or
interrupted, 2 used wrongly.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossent._version import __version__
from crossent.train import DIGITS_LOSSES, MissingDependency

if TYPE_CHECKING:
    from crossent.train.results import Results, Settings

EXTRAS = {"plot": ("matplotlib",), "demo": ("matplotlib", "scikit-learn")}
DIGITS_EPOCHS, DIGITS_SEEDS = 15, 3
QUICK_EPOCHS, QUICK_SEEDS = 3, 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="crossent")
def main() -> None:
    """The cross-entropy family for PyTorch: exact, fast, and able to explain itself."""
    # A terminal that cannot write σ shows a question mark; that is no reason to lose a result.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


# --- info -------------------------------------------------------------------------------------------------------------


@main.command()
def info() -> None:
    """Say which versions, implementations and extras are here, and why others are not."""
    for title, facts in (("", _versions()), ("implementations", _implementations()), ("extras", _extras())):
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


def _extras() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    def missing(package: str) -> bool:
        try:
            version(package)
        except PackageNotFoundError:
            return True
        return False

    said = {}
    for extra, packages in EXTRAS.items():
        lacking = [package for package in packages if missing(package)]
        said[extra] = f"lacks {', '.join(lacking)}: pip install 'crossent[{extra}]'" if lacking else "installed"
    return said


# --- train ------------------------------------------------------------------------------------------------------------


@main.group()
def train() -> None:
    """Train losses side by side on data that needs no download."""


def _loss_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Read comma-separated names, each once and in the order given."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    unknown = [name for name in names if name not in DIGITS_LOSSES]
    if unknown or not names:
        what = f"no loss is called {', '.join(map(repr, unknown))}" if unknown else "no loss is named"
        raise click.BadParameter(f"{what}; choose from {', '.join(DIGITS_LOSSES)}")
    return names


def _rate(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse what cannot be a learning rate."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"a learning rate is a number above 0, got {value:g}")
    return value


_LOSS_LIST = "\b\nLosses:\n" + "\n".join(f"  {name:<20}{what}" for name, what in DIGITS_LOSSES.items())


@train.command(epilog=_LOSS_LIST)
@click.option(
    "--losses",
    callback=_loss_names,
    default=",".join(DIGITS_LOSSES),
    metavar="NAME,NAME,...",
    help="Some of the losses below.  [all]",
)
@click.option("--epochs", type=click.IntRange(1), metavar="N", help=f"Times through the images.  [{DIGITS_EPOCHS}]")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help=f"Runs at the chosen rate.  [{DIGITS_SEEDS}]")
@click.option(
    "--seed", type=click.IntRange(0, 1_000_000), default=0, metavar="N", help="Fixes the split; the first run's.  [0]"
)
@click.option(
    "--lr", type=float, callback=_rate, metavar="RATE", help="One learning rate for all, instead of a sweep for each."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of tables.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="crossent-digits",
    metavar="DIR",
    help="For report.html, digits.png, results.json.  [crossent-digits]",
)
@click.option("--quick", is_flag=True, help="A few seconds, to see that it works; the figures mean nothing.")
def digits(as_json: bool, out: Path, **asked: Any) -> None:
    """Train a small network on handwritten digits with several losses, and show what each loss does to it.

    Each loss has its learning rate chosen on validation images; accuracy, likelihood and calibration are of test images
    that nothing has seen. Takes about a minute.
    """
    from crossent.train import require

    try:
        require("sklearn", "matplotlib")
    except MissingDependency as error:
        raise click.ClickException(str(error)) from None
    _check_writable(out)

    from crossent.train import data
    from crossent.train.digits import run, total_runs
    from crossent.train.progress import Watch

    settings = _settings(**asked)
    results = run(settings, data.load_digits(settings.seed), Watch(total_runs(settings), settings.epochs))
    if not results.losses:
        raise click.ClickException("interrupted before the first loss was finished: nothing was kept")
    _show(results, out, as_json)
    if not results.complete:
        kept = ", ".join(loss.name for loss in results.losses)
        raise click.ClickException(f"interrupted: what was finished is kept ({kept}), the rest is missing")


def _settings(
    losses: tuple[str, ...], epochs: int | None, seeds: int | None, seed: int, lr: float | None, quick: bool
) -> Settings:
    from crossent.train.digits import QUICK_RATES, RATES
    from crossent.train.results import Settings

    return Settings(
        losses=losses,
        epochs=epochs or (QUICK_EPOCHS if quick else DIGITS_EPOCHS),
        seeds=seeds or (QUICK_SEEDS if quick else DIGITS_SEEDS),
        seed=seed,
        rates=(lr,) if lr is not None else QUICK_RATES if quick else RATES,
        quick=quick,
    )


def _check_writable(out: Path) -> None:
    """Refuse before the training what would fail after it."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise click.ClickException(f"cannot write into {out}: {there} is not a directory that may be written to")


def _show(results: Results, out: Path, as_json: bool) -> None:
    """Write the files and print the results; the paths go with the results, or beside the JSON."""
    from crossent.train.digits import document, write
    from crossent.train.digits_report import notices
    from crossent.train.terminal import show

    paths = write(results, out)
    if as_json:
        click.echo(json.dumps(document(results), indent=1, allow_nan=False))
    else:
        show(results, notices(results))
    click.echo("\n".join(["Written:", *(f"  {path}" for path in paths)]), err=as_json)
