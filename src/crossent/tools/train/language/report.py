"""The results of a language model's training as they are shown and written."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from crossent.tools import html
from crossent.tools.page.document import page
from crossent.tools.train import figure, report
from crossent.tools.train.language import conclusions, model, tables
from crossent.tools.train.language.panels import PANELS
from crossent.tools.train.language.run import COMPARED, SEQUENCES, TEMPERATURE, LanguageResults, LanguageSettings
from crossent.tools.train.output import Output
from crossent.tools.train.results import plain

NAME = "bytes"
TITLE = "How many bits for the next byte?"
OPENING = (
    "A model that gives the next byte the probability p lets it be stored in −log2 p bits: cross entropy, divided by ln 2, is a "
    "compression rate. So a language model can be compared with compressors, which measure the same bytes in another way."
)


def output(results: LanguageResults) -> Output:
    """Lay the results out."""
    return Output(
        name=NAME,
        notices=notices(results),
        tables=[tables.costs(results), tables.ways(results)],
        paragraphs=[conclusions.paragraph(results), f"{continuation(results)}\n\n{results.sample}"],
        document=document(results),
        page=write_page(results),
        picture=figure.together(PANELS, results),
    )


def notices(results: LanguageResults) -> list[str]:
    """Say what a reader must know before any number."""
    sentences = [report.QUICK] if results.settings.quick else []
    if not results.complete:
        sentences.append(f"Interrupted after {len(results.steps)} steps: the model is scored as it was then.")
    return [*sentences, *results.text.notes]


def continuation(results: LanguageResults) -> str:
    """Say what the sample is."""
    return f"The training text, continued by the model at temperature {TEMPERATURE:g}:"


def write_page(results: LanguageResults) -> str:
    """Lay out the report."""
    body = [
        html.heading(TITLE, 1),
        html.paragraph(OPENING, "lead"),
        *(html.paragraph(notice, "notice") for notice in notices(results)),
        report.pictures(PANELS, results),
        html.heading("What comes of it"),
        html.paragraph(conclusions.paragraph(results)),
        html.table(tables.costs(results)),
        html.table(tables.ways(results)),
        html.heading("What it writes"),
        html.paragraph(continuation(results)),
        html.preformatted(results.sample),
        html.heading("How this was measured"),
        html.definition_list(_facts(results)),
    ]
    return page(f"crossent train {NAME}", ["<main>", *body, "</main>"])


def _facts(results: LanguageResults) -> dict[str, str]:
    text, shape = results.text, results.shape
    classes = "the 256 bytes"
    if results.settings.vocab == "words":
        classes += f" and the {shape.classes - 256} pieces that occur twice or more in the training text"
    return {
        "Text": f"{text.name}; SHA-256 {text.sha256}",
        "Split": f"the first {len(text.train)} bytes to learn from ({results.tokens[0]} tokens), the last {len(text.tail)} held "
        f"out ({results.tokens[1]} tokens); scored during training, and no run chooses anything by it",
        "Classes": f"{shape.classes}: {classes}",
        "Model": f"causal transformer, {model.LAYERS} layers of {model.FEATURES} features and {model.HEADS} heads, context "
        f"{model.CONTEXT}, its inputs the last {model.RECENT} classes; {results.parameters} weights",
        "Training": f"{len(results.steps)} steps of {SEQUENCES} sequences; the layers' matrices by Muon at {model.MATRIX_RATE:g}, "
        f"all else by Adam at {model.RATE:g}, rates falling linearly. The first {min(COMPARED, len(results.ways[0].steps))} steps "
        "both ways, the others by linear_cross_entropy",
        "Scoring": f"each held-out token once, with {model.CONTEXT // 2} or more before it, the training text's end included",
        "Versions": ", ".join(f"{name} {number}" for name, number in results.versions.items()),
        "Time": f"{results.seconds:.0f} s in all, on {results.threads} thread{'s' * (results.threads > 1)}",
        "Again": command(results.settings),
    }


def command(settings: LanguageSettings) -> str:
    """Write the command that runs the job again."""
    length = f"--steps {settings.steps}" if settings.minutes is None else f"--minutes {settings.minutes:g}"
    parts = [f"crossent train {NAME} --vocab {settings.vocab} {length} --seed {settings.seed}"]
    parts += [] if settings.text is None else [f"--text {shlex.quote(settings.text)}"]
    return " ".join(parts + ["--quick"] * settings.quick)


def document(results: LanguageResults) -> dict[str, Any]:
    """Write the results for JSON; a number that is not finite is null."""
    text = results.text
    written: dict[str, Any] = plain(
        {
            "schema": f"crossent.{NAME}/1",
            "complete": results.complete,
            "settings": {**asdict(results.settings), "threads": results.threads},
            "versions": results.versions,
            "seconds": round(results.seconds, 2),
            "text": {
                "name": text.name,
                "sha256": text.sha256,
                "train_bytes": len(text.train),
                "tail_bytes": len(text.tail),
                "train_tokens": results.tokens[0],
                "tail_tokens": results.tokens[1],
            },
            "shape": results.shape,
            "parameters": results.parameters,
            "bits_per_byte": results.bits,
            "frequencies": results.frequencies,
            "compressors": results.compressed,
            "ways": [
                {
                    "name": way.name,
                    "median_step_seconds": way.median("seconds"),
                    "median_head_seconds": way.median("head_seconds"),
                    "peak_bytes": way.peak,
                    "steps": way.steps,
                }
                for way in results.ways
            ],
            "largest_difference": results.difference,
            "largest_drift": results.drift,
            "curve": results.curve,
            "training": results.steps,
            "sample": results.sample,
            "findings": conclusions.paragraph(results),
        }
    )
    return written
