"""``crossent train`` and its jobs. It imports click and nothing else until a job runs."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossent.tools.train import JOBS
from crossent.tools.train.catalogue import JobEntry, Option
from crossent.tools.train.command_options import files, ready, seed, show
from crossent.tools.train.language.command import bytes_

if TYPE_CHECKING:
    from crossent.tools.train.job import Job
    from crossent.tools.train.results import TrainSettings

QUICK_EPOCHS, QUICK_SEEDS = 3, 1


@click.group()
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


def _training(entry: JobEntry) -> click.Command:
    """Make the command of a job from its entry in the catalogue."""
    whole = click.IntRange(1)
    losses = "\n".join(f"  {name:<20}{what}" for name, what in entry.losses.items())
    options = [
        click.Option(
            ["--losses"],
            callback=_loss_names,
            default=",".join(entry.losses),
            metavar="NAME,NAME,...",
            help="Some of the losses below.  [all]",
        ),
        *(_own(option) for option in entry.options),
        click.Option(["--epochs"], type=whole, metavar="N", help=f"Times through the training rows.  [{entry.epochs}]"),
        click.Option(["--seeds"], type=whole, metavar="N", help=f"Runs at the chosen rate.  [{entry.seeds}]"),
        seed("The seed of the split and of the first run."),
        click.Option(
            ["--lr"],
            type=float,
            callback=_rate,
            metavar="RATE",
            help="One learning rate for all, instead of a sweep for each.",
        ),
        *files(entry.name),
    ]
    return click.Command(
        entry.name,
        params=list[click.Parameter](options),
        callback=partial(_train, entry),
        help=f"{entry.summary}\n\n{entry.about}",
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


def _train(entry: JobEntry, as_json: bool, out: Path, html: Path | None, **asked: Any) -> None:
    """Run a job, write its files and print its results."""
    ready(out, "sklearn", "matplotlib")

    from crossent.tools.train.run import job_of, output, run, total_runs
    from crossent.tools.train.training_progress import TrainingProgress

    job = job_of(entry)
    settings = _settings(job, **asked)
    progress = TrainingProgress(total_runs(settings), settings.epochs)
    usual = (settings.epochs, settings.seeds, settings.rates) == (entry.epochs, entry.seeds, job.rates)
    everything = usual and len(settings.losses) == len(entry.losses)
    takes = "Takes" + entry.about.rpartition("Takes")[2] if everything else ""
    progress.announce(len(settings.losses), takes)
    results = run(job, settings, progress)
    if not results.losses:
        raise click.ClickException("interrupted before the first loss was finished: nothing was kept")
    show(output(results), out, as_json, html)
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
) -> TrainSettings:
    from crossent.tools.train.results import TrainSettings

    return TrainSettings(
        losses=losses,
        epochs=epochs or (QUICK_EPOCHS if quick else job.entry.epochs),
        seeds=seeds or (QUICK_SEEDS if quick else job.entry.seeds),
        seed=seed,
        rates=(lr,) if lr is not None else job.quick_rates if quick else job.rates,
        quick=quick,
        options=options,
    )


for _entry in JOBS.values():
    train.add_command(_training(_entry))
train.add_command(bytes_)
