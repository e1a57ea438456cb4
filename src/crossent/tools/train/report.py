"""The report of a job: first the reason, then what comes of it, then how it was measured.

It is one self-contained HTML page: no script, no request, pictures inside, readable in the dark and on a telephone.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from crossent.tools.table import Grid
from crossent.tools.train import conclusions, figure, tables
from crossent.tools.train.catalogue import JobEntry
from crossent.tools.train.fit import Recipe
from crossent.tools.train.job import Results
from crossent.tools.train.panel import THEMES, Panel
from crossent.tools.train.results import TrainSettings

QUICK = "A quick run: its figures are not meant to be compared."
_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d5dae1; --mark: #fff0c2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a3adba; --paper: #14171c; --line: #39404a; --mark: #4d3f12; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .8rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; }
p, dl { max-width: 44rem; }
.lead { font-size: 1.1rem; }
.notice { border-left: 4px solid #d55e00; padding-left: .8rem; }
figure { margin: 1rem 0 .5rem; }
figcaption { font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
@media (max-width: 32rem) { table { font-size: .84rem; } th, td { padding-right: .5rem; } th { white-space: normal; } }
td b { background: var(--mark); padding: .1rem .25rem; margin-right: -.25rem; border-radius: .2rem; }
.note, footer { color: var(--soft); font-size: .88rem; max-width: 48rem; margin: .4rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.pictures picture { flex: 1 1 19rem; min-width: 0; }
.pictures picture.wide { flex-basis: 100%; }
img { width: 100%; height: auto; display: block; }
pre { padding: .6rem .8rem; border: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere; }
dt { color: var(--soft); font-size: .88rem; margin-top: .5rem; }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
"""


def html(results: Results) -> str:
    """Lay out the report."""
    job = results.job
    names = ", ".join(loss.name for loss in results.losses)
    body = [
        heading(job.title, 1),
        prose(job.opening(results), "lead"),
        *(prose(notice, "notice") for notice in notices(results)),
        *(table(grid(results)) for grid in job.reasons),
        pictures_of(job.panels, results, names) + prose(job.caption, "note"),
        heading("What comes of it"),
        prose(conclusions.paragraph(results)),
        table(tables.scores(results)),
        *(table(grid(results)) for grid in job.details),
    ]
    if results.settings.swept:
        body += [heading("The learning rate of each loss"), table(tables.rates(results))]
    body += [heading("How this was measured"), facts(_facts(results))]
    return page(f"crossent train {job.entry.name}", body)


def _facts(results: Results) -> dict[str, str]:
    job, settings, sizes = results.job, results.settings, results.sizes
    words, recipe = job.words, Recipe(settings.epochs, job.batch_size)
    seeds = ", ".join(str(settings.seed + i) for i in range(settings.seeds))
    return {
        "Data": words.data,
        "Split": f"{sizes['train']} {words.rows} to train, {sizes['validation']} to choose the rate, {sizes['test']} to "
        f"report; {words.split}",
        "Network": ", ".join(str(layer) for layer in job.network().children()),
        "Training": f"SGD, momentum {recipe.momentum:g}, batches of {recipe.batch_size}, {recipe.epochs} epochs, the "
        "rate falling linearly to zero from epoch to epoch; the weights after the last epoch are scored",
        "Learning rate": f"chosen for each loss on the validation {words.rows}, from the sweep above"
        if settings.swept
        else f"{settings.rates[0]:g}, given, the same for every loss",
        "Seeds": f"{seeds}: each fixes {words.seeded}",
        "Losses": "; ".join(f"{loss.name}: {job.candidates[loss.name].formula}" for loss in results.losses),
        "Versions": ", ".join(f"{name} {number}" for name, number in results.versions.items()),
        "Time": f"{results.seconds:.0f} s on one thread",
        "Again": command(job.entry, settings),
    }


def notices(results: Results) -> list[str]:
    """Say what a reader must know before any number."""
    said = []
    if results.settings.quick:
        said.append(QUICK)
    if not results.complete:
        left = [name for name in results.settings.losses if name not in results]
        said.append(f"Interrupted: only the finished losses are here. Missing: {', '.join(left)}.")
    return said


def command(entry: JobEntry, settings: TrainSettings) -> str:
    """Write the command that runs the job again."""
    parts = [f"crossent train {entry.name}", f"--losses {','.join(settings.losses)}", f"--epochs {settings.epochs}"]
    parts += [f"--seeds {settings.seeds}", f"--seed {settings.seed}"]
    parts += [f"--{name} {value:g}" for name, value in settings.options.items()]
    parts += [] if settings.swept else [f"--lr {settings.rates[0]:g}"]
    return " ".join(parts + ["--quick"] * settings.quick)


# --- the parts of a page ----------------------------------------------------------------------------------------------


def page(title: str, body: list[str]) -> str:
    """Put the parts of a page together."""
    return f"""<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CSP}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{chr(10).join(body)}
</body>
</html>
"""


def heading(text: str, level: int = 2) -> str:
    """Write a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def prose(text: str, style: str = "") -> str:
    """Write a paragraph."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Write a text with its own lines."""
    return f"<pre>{escape(text)}</pre>"


def table(grid: Grid) -> str:
    """Write a grid with its notes; what is marked is bold and has its star."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in grid.columns)
    rows = "\n".join(f"<tr>{_cells(grid, i)}</tr>" for i in range(len(grid.rows)))
    notes = "\n".join(prose(note, "note") for note in grid.notes)
    return (
        f'<figure><figcaption>{escape(grid.title)}</figcaption><div class="scroll"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div></figure>\n{notes}"
    )


def _cells(grid: Grid, i: int) -> str:
    return "".join(
        f"<td><b>{escape(cell)}*</b></td>" if (i, j) in grid.marked else f"<td>{escape(cell)}</td>"
        for j, cell in enumerate(grid.rows[i])
    )


def pictures_of(panels: Sequence[Panel], results: Any, names: str = "") -> str:
    """Draw each panel in light and in dark, and show them."""
    shown = []
    for panel in panels:
        light, dark = (figure.svg(panel, results, theme) for theme in THEMES)
        shown.append((light, dark, panel.words.format(names=names), panel.wide))
    return pictures(*shown)


def pictures(*shown: tuple[bytes, bytes, str, bool]) -> str:
    """Show SVG pictures beside each other where there is room.

    Each is given for light, for dark, in words, and whether it is wide.
    """
    parts = (
        f'<picture{" class=wide" * wide}><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
        f'<img src="{_uri(light)}" alt="{escape(words)}"></picture>'
        for light, dark, words, wide in shown
    )
    return f'<div class="pictures">{"".join(parts)}</div>'


def _uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def facts(pairs: dict[str, str]) -> str:
    """List what was set and measured, term by term."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"
