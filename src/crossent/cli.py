"""The command line. It imports click and nothing else until a command runs, so that ``--help`` answers at once.

Results go to the standard output, progress and notices to the standard error. Exit codes: 0 fine, 1 failed or
interrupted, 2 used wrongly.
"""

from __future__ import annotations

import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossent._version import __version__
from crossent.check.command import check, rule
from crossent.explain.command import explain
from crossent.score.command import score
from crossent.train import JOBS, MissingDependency
from crossent.train.catalogue import Card, Option

if TYPE_CHECKING:
    from crossent.train.job import Job
    from crossent.train.results import Results, Settings

EXTRAS = {"plot": ("matplotlib",), "files": ("safetensors", "pyarrow"), "demo": ("matplotlib", "scikit-learn")}
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


# --- explain, check, score --------------------------------------------------------------------------------------------

main.add_command(explain)
main.add_command(check)
main.add_command(rule)
main.add_command(score)

# --- train ------------------------------------------------------------------------------------------------------------


@main.group()
def train() -> None:
    """Train losses side by side on data that needs no download."""


def _loss_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Read comma-separated names, each once and in the order given."""
    known = JOBS[ctx.command.name or ""].losses
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"no loss is called {', '.join(map(repr, unknown))}" if unknown else "no loss is named"
        raise click.BadParameter(f"{what}; choose from {', '.join(known)}")
    return names


def _rate(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse what cannot be a learning rate."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"a learning rate is a number above 0, got {value:g}")
    return value


def _training(card: Card) -> click.Command:
    """Make the command of a job from its card."""
    whole, default = click.IntRange(1), f"crossent-{card.name}"
    losses = "\n".join(f"  {name:<20}{what}" for name, what in card.losses.items())
    options = [
        click.Option(
            ["--losses"],
            callback=_loss_names,
            default=",".join(card.losses),
            metavar="NAME,NAME,...",
            help="Some of the losses below.  [all]",
        ),
        *(_own(option) for option in card.options),
        click.Option(["--epochs"], type=whole, metavar="N", help=f"Times through the training rows.  [{card.epochs}]"),
        click.Option(["--seeds"], type=whole, metavar="N", help=f"Runs at the chosen rate.  [{card.seeds}]"),
        click.Option(
            ["--seed"],
            type=click.IntRange(0, 1_000_000),
            default=0,
            metavar="N",
            help="Fixes the split; the first run's.  [0]",
        ),
        click.Option(
            ["--lr"],
            type=float,
            callback=_rate,
            metavar="RATE",
            help="One learning rate for all, instead of a sweep for each.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the results as JSON instead of tables."),
        click.Option(
            ["--out"],
            type=click.Path(file_okay=False, path_type=Path),
            default=default,
            metavar="DIR",
            help=f"For report.html, {card.name}.png, results.json.  [{default}]",
        ),
        click.Option(["--quick"], is_flag=True, help="A few seconds, to see that it works; the figures mean nothing."),
    ]
    return click.Command(
        card.name,
        params=list[click.Parameter](options),
        callback=partial(_train, card),
        help=f"{card.summary}\n\n{card.about}",
        epilog=f"\b\nLosses:\n{losses}",
    )


def _own(option: Option) -> click.Option:
    """Make an option that one job alone takes."""
    return click.Option(
        [f"--{option.name}"],
        type=click.FloatRange(option.least, option.most),
        default=option.default,
        metavar="X",
        help=f"{option.help}  [{option.default:g}]",
    )


def _train(card: Card, as_json: bool, out: Path, **asked: Any) -> None:
    """Run a job, write its files and print its results."""
    from crossent.train import require

    try:
        require("sklearn", "matplotlib")
    except MissingDependency as error:
        raise click.ClickException(str(error)) from None
    _check_writable(out)

    from crossent.train.progress import Watch
    from crossent.train.run import job_of, run, total_runs

    job = job_of(card)
    settings = _settings(job, **asked)
    results = run(job, settings, Watch(total_runs(settings), settings.epochs))
    if not results.losses:
        raise click.ClickException("interrupted before the first loss was finished: nothing was kept")
    _show(results, out, as_json)
    if not results.complete:
        kept = ", ".join(loss.name for loss in results.losses)
        raise click.ClickException(f"interrupted: what was finished is kept ({kept}), the rest is missing")


def _settings(
    job: Job,
    losses: tuple[str, ...],
    epochs: int | None,
    seeds: int | None,
    seed: int,
    lr: float | None,
    quick: bool,
    **options: float,
) -> Settings:
    from crossent.train.results import Settings

    return Settings(
        losses=losses,
        epochs=epochs or (QUICK_EPOCHS if quick else job.card.epochs),
        seeds=seeds or (QUICK_SEEDS if quick else job.card.seeds),
        seed=seed,
        rates=(lr,) if lr is not None else job.quick_rates if quick else job.rates,
        quick=quick,
        options=options,
    )


def _check_writable(out: Path) -> None:
    """Refuse before the training what would fail after it."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise click.ClickException(f"cannot write into {out}: {there} is not a directory that may be written to")


def _show(results: Results, out: Path, as_json: bool) -> None:
    """Write the files and print the results; the paths go with the results, or beside the JSON."""
    from crossent.train.report import notices
    from crossent.train.run import document, write
    from crossent.train.terminal import show

    paths = write(results, out)
    if as_json:
        click.echo(json.dumps(document(results), indent=1, allow_nan=False))
    else:
        show(results, notices(results))
    click.echo("\n".join(["Written:", *(f"  {path}" for path in paths)]), err=as_json)


for _card in JOBS.values():
    train.add_command(_training(_card))
