"""A job from its start to its files: train every loss, choose its rate, score it, and write down what was found."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from crossent import __version__, choose_implementation
from crossent.tools.train import conclusions, figure, report, tables
from crossent.tools.train.candidates import Candidate
from crossent.tools.train.catalogue import JobEntry
from crossent.tools.train.data import Split
from crossent.tools.train.fit import Fitted, OnEpoch, Recipe, Task, choose, fit, one_thread, sweep
from crossent.tools.train.job import Job, Results, as_json
from crossent.tools.train.output import Output
from crossent.tools.train.results import LossResult, TrainSettings, Tried, settings_as_json
from crossent.tools.train.training_progress import TrainingProgress


def job_of(entry: JobEntry) -> Job:
    """Import the job that an entry of the catalogue announces."""
    job: Job = import_module(f"crossent.tools.train.{entry.module}").JOB
    return job


def run(job: Job, settings: TrainSettings, progress: TrainingProgress) -> Results:
    """Train every loss; an interrupt ends the job with the losses that were finished."""
    split_of = cache(lambda seed: job.load(settings, seed))
    first = split_of(settings.seed)
    finished: list[LossResult] = []
    started = time.perf_counter()
    try:
        with progress, one_thread():
            for name in settings.losses:
                progress.start(name)
                finished.append(train_loss(job, settings, name, split_of, progress.epoch))
                _tell(progress, finished[-1])
    except KeyboardInterrupt:
        pass
    return Results(
        job=job,
        settings=settings,
        sizes={name: len(part.labels) for name, part in first._asdict().items()},
        test_index=tuple(first.test.position.tolist()),
        losses=tuple(finished),
        complete=len(finished) == len(settings.losses),
        seconds=time.perf_counter() - started,
        versions=versions("scikit-learn"),
    )


def train_loss(
    job: Job, settings: TrainSettings, name: str, split_of: Callable[[int], Split], on_epoch: OnEpoch
) -> LossResult:
    """Sweep with the first seed, choose the rate, train with the other seeds at it; only then score the test part."""
    candidate = job.candidates[name]

    def task(seed: int) -> Task:
        split = split_of(seed)
        return Task(job.network, split.train, split.validation, job.judge, recipe(job, settings))

    tried = sweep(task(settings.seed), candidate, settings.rates, settings.seed, on_epoch)
    best = choose(tried)
    others = range(settings.seed + 1, settings.seed + settings.seeds)
    fitted = [best, *(fit(task(seed), candidate, best.rate, seed, on_epoch) for seed in others)]
    return LossResult(
        name=name,
        rate=best.rate,
        sweep=as_tried(job, candidate, tried, split_of(settings.seed)) if settings.swept else (),
        runs=tuple(job.examine(candidate, each, split_of(each.seed)) for each in fitted),
    )


def recipe(job: Job, settings: TrainSettings) -> Recipe:
    """Say how a job trains."""
    return Recipe(settings.epochs, job.batch_size)


def as_tried(job: Job, candidate: Candidate, runs: Sequence[Fitted], split: Split) -> tuple[Tried, ...]:
    """Keep of a sweep what the choice is made by, and what the job notes besides."""
    return tuple(
        Tried(run.rate, run.validation_score[-1], run.validation_cost, job.note(candidate, run, split)) for run in runs
    )


def total_runs(settings: TrainSettings) -> int:
    """Count the trainings of a whole job: the sweep's serve the first seed."""
    return len(settings.losses) * (len(settings.rates) + settings.seeds - 1)


def versions(*packages: str) -> dict[str, str]:
    """Name what the figures depend on: these packages besides."""
    return {
        "crossent": f"{__version__} ({choose_implementation(torch.zeros(1, 10))})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{package: version(package) for package in packages},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _tell(progress: TrainingProgress, loss: LossResult) -> None:
    progress.finish(loss.rate, len(loss.sweep), loss.runs[0].validation[-1])


# --- what is written --------------------------------------------------------------------------------------------------


def document(results: Results) -> dict[str, Any]:
    """Write the results for JSON; a number that is not finite is null."""
    job, settings = results.job, results.settings
    return {
        "schema": f"crossent.{job.entry.name}/1",
        "complete": results.complete,
        "settings": {**settings_as_json(settings), **asdict(recipe(job, settings)), "threads": 1},
        "versions": results.versions,
        "seconds": round(results.seconds, 2),
        "split": {**results.sizes, "test_index": list(results.test_index)},
        "definitions": list(tables.scores(results).notes),
        "losses": [as_json(job, loss) for loss in results.losses],
        "findings": conclusions.paragraph(results),
    }


def output(results: Results) -> Output:
    """Lay the results out: the sweep, the scores, the job's own tables, and what they show."""
    shown = [tables.rates(results)] if results.settings.swept else []
    shown += [tables.scores(results), *(tabulate(results) for tabulate in results.job.details)]
    return Output(
        name=results.job.entry.name,
        notices=report.notices(results),
        tables=shown,
        paragraphs=[conclusions.paragraph(results)],
        document=document(results),
        page=report.write_page(results),
        picture=figure.png(results),
    )
