"""The report of a job: first the reason, then what comes of it, then how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossent.tools import html
from crossent.tools.page.document import page
from crossent.tools.page.scene import page_of_scenes
from crossent.tools.page.words import WORDS, words_of
from crossent.tools.train import conclusions, figure, tables
from crossent.tools.train.catalogue import JobEntry
from crossent.tools.train.fit import Recipe
from crossent.tools.train.job import Results
from crossent.tools.train.panel import THEMES, Panel
from crossent.tools.train.results import TrainSettings

QUICK = "A quick run: its figures are not meant to be compared."


def write_page(results: Results) -> str:
    """Lay out the report."""
    job = results.job
    names = ", ".join(loss.name for loss in results.losses)
    head = [
        html.heading(job.title, 1),
        html.paragraph(job.opening(results), "lead"),
        *(html.paragraph(notice, "notice") for notice in notices(results)),
        *(html.table(tabulate(results)) for tabulate in job.reasons),
        pictures(job.panels, results, names) + html.paragraph(job.caption, "note"),
        html.heading("What comes of it"),
        html.paragraph(conclusions.paragraph(results)),
        html.table(tables.scores(results)),
        *(html.table(tabulate(results)) for tabulate in job.details),
    ]
    swept = [html.heading("The learning rate of each loss"), html.table(tables.rates(results))]
    measured = [html.heading("How this was measured"), html.definition_list(_facts(results))]
    foot = [*(swept if results.settings.swept else ()), *measured]
    title = f"crossent train {job.entry.name}"
    if job.scene is None:
        return page(title, ["<main>", *head, *foot, "</main>"])
    with_words = [name for name in job.candidates if name in WORDS]
    return page_of_scenes(title, [*head, job.scene(results), *foot], words_of(with_words))


def pictures(panels: Sequence[Panel], results: Any, names: str = "") -> str:
    """Draw each panel in light and in dark, and show them."""
    shown = []
    for panel in panels:
        light, dark = (figure.svg(panel, results, theme) for theme in THEMES)
        shown.append((light, dark, panel.alt_text.format(names=names), panel.wide))
    return html.pictures(*shown)


def _facts(results: Results) -> dict[str, str]:
    job, settings, sizes = results.job, results.settings, results.sizes
    wording, recipe = job.wording, Recipe(settings.epochs, job.batch_size)
    seeds = ", ".join(str(settings.seed + i) for i in range(settings.seeds))
    return {
        "Data": wording.data,
        "Split": f"{sizes['train']} {wording.rows} to train, {sizes['validation']} to choose the rate, {sizes['test']} to "
        f"report; {wording.split}",
        "Network": ", ".join(str(layer) for layer in job.network().children()),
        "Training": f"SGD, momentum {recipe.momentum:g}, batches of {recipe.batch_size}, {recipe.epochs} epochs, the "
        "rate falling linearly to zero from epoch to epoch; the weights after the last epoch are scored",
        "Learning rate": f"chosen for each loss on the validation {wording.rows}, from the sweep above"
        if settings.swept
        else f"{settings.rates[0]:g}, given, the same for every loss",
        "Seeds": f"{seeds}: each fixes {wording.seeded}",
        "Losses": "; ".join(f"{loss.name}: {job.candidates[loss.name].formula}" for loss in results.losses),
        "Versions": ", ".join(f"{name} {number}" for name, number in results.versions.items()),
        "Time": f"{results.seconds:.0f} s on one thread",
        "Again": command(job.entry, settings),
    }


def notices(results: Results) -> list[str]:
    """Say what a reader must know before any number."""
    sentences = []
    if results.settings.quick:
        sentences.append(QUICK)
    if not results.complete:
        left = [name for name in results.settings.losses if name not in results]
        sentences.append(f"Interrupted: only the finished losses are here. Missing: {', '.join(left)}.")
    return sentences


def command(entry: JobEntry, settings: TrainSettings) -> str:
    """Write the command that runs the job again."""
    parts = [f"crossent train {entry.name}", f"--losses {','.join(settings.losses)}", f"--epochs {settings.epochs}"]
    parts += [f"--seeds {settings.seeds}", f"--seed {settings.seed}"]
    parts += [f"--{name} {value:g}" for name, value in settings.options.items()]
    parts += [] if settings.swept else [f"--lr {settings.rates[0]:g}"]
    return " ".join(parts + ["--quick"] * settings.quick)
