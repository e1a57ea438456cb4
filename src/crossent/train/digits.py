"""``crossent train digits``: losses side by side on handwritten digits, each at the learning rate that suits it."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossent import __version__, choose_implementation
from crossent.train import digits_report, figure, findings, metrics, tables
from crossent.train.data import Part, Split
from crossent.train.fit import Fitted, OnEpoch, Recipe, Task, choose, fit, one_thread, predict, sweep
from crossent.train.losses import CANDIDATES, SURE_AND_WRONG, Candidate, push_when_wrong
from crossent.train.network import network
from crossent.train.progress import Watch
from crossent.train.results import LossResult, Results, SeedResult, Settings, Tried, as_json

SCHEMA = "crossent.digits/1"
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
QUICK_RATES = (0.1, 1.0)


def run(settings: Settings, split: Split, watch: Watch) -> Results:
    """Train every loss; an interrupt ends the job with the losses that were finished."""
    task = Task(network, split.train, split.validation, Recipe(settings.epochs))
    finished: list[LossResult] = []
    started = time.perf_counter()
    try:
        with watch, one_thread():
            for name in settings.losses:
                watch.start(name)
                finished.append(train_loss(task, settings, CANDIDATES[name], split.test, watch.epoch))
                _tell(watch, finished[-1])
    except KeyboardInterrupt:
        pass
    return Results(
        settings=settings,
        sizes={name: len(part.labels) for name, part in split._asdict().items()},
        test_index=tuple(split.test.position.tolist()),
        losses=tuple(finished),
        complete=len(finished) == len(settings.losses),
        seconds=time.perf_counter() - started,
        versions=versions(),
    )


def train_loss(task: Task, settings: Settings, candidate: Candidate, test: Part, on_epoch: OnEpoch) -> LossResult:
    """Sweep with the first seed, choose the rate, train with the other seeds at it; only then score the test part."""
    tried = sweep(task, candidate, settings.rates, settings.seed, on_epoch)
    best = choose(tried)
    others = range(settings.seed + 1, settings.seed + settings.seeds)
    fitted = [best, *(fit(task, candidate, best.rate, seed, on_epoch) for seed in others)]
    return LossResult(
        name=candidate.name,
        rate=best.rate,
        sweep=as_tried(tried) if settings.swept else (),
        runs=tuple(examine(candidate, each, test) for each in fitted),
        push=push_when_wrong(candidate),
    )


def as_tried(runs: Sequence[Fitted]) -> tuple[Tried, ...]:
    """Keep of a sweep what the choice is made by."""
    return tuple(Tried(run.rate, run.validation_accuracy[-1], run.validation_nll) for run in runs)


def examine(candidate: Candidate, fitted: Fitted, test: Part) -> SeedResult:
    """Score a trained model on the test part."""
    log_p, labels = predict(fitted.model, candidate, test)
    wrong = test.position.numpy()[log_p.argmax(1) != labels]
    return SeedResult(
        fitted.seed,
        metrics.score(log_p, labels),
        tuple(wrong.tolist()),
        fitted.train_loss,
        fitted.validation_accuracy,
    )


def total_runs(settings: Settings) -> int:
    """Count the trainings of a whole job: the sweep's serve the first seed."""
    return len(settings.losses) * (len(settings.rates) + settings.seeds - 1)


def versions() -> dict[str, str]:
    """Name what the figures depend on."""
    return {
        "crossent": f"{__version__} ({choose_implementation(torch.zeros(1, 10))})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _tell(watch: Watch, loss: LossResult) -> None:
    watch.finish(loss.rate, len(loss.sweep), loss.runs[0].validation_accuracy[-1])


# --- what is written --------------------------------------------------------------------------------------------------


def document(results: Results) -> dict[str, Any]:
    """Write the results for JSON; a number that is not finite is null."""
    return {
        "schema": SCHEMA,
        "complete": results.complete,
        "settings": {**asdict(results.settings), **asdict(Recipe(results.settings.epochs)), "threads": 1},
        "versions": results.versions,
        "seconds": round(results.seconds, 2),
        "split": {**results.sizes, "test_index": list(results.test_index)},
        "definitions": list(tables.definitions(results)),
        "gradient_logits": list(SURE_AND_WRONG),
        "gradient_label": 0,
        "losses": [as_json(loss) for loss in results.losses],
        "findings": findings.paragraph(results),
    }


def write(results: Results, out: Path) -> list[Path]:
    """Write the report, the picture and the numbers; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("report.html", "digits.png", "results.json")]
    paths[0].write_text(digits_report.html(results), encoding="utf-8")
    paths[1].write_bytes(figure.png(results))
    paths[2].write_text(json.dumps(document(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return paths
