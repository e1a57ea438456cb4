"""A report as a page: findings first, then the numbers, the worst rows with their push, reliability, confusion and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from crossent.tools import html
from crossent.tools.check.findings import REMARK
from crossent.tools.check.run import check
from crossent.tools.explain.explanation import explain
from crossent.tools.explain.page import plain_logits, push_of
from crossent.tools.html import element
from crossent.tools.page.own import own_scene
from crossent.tools.page.picture import png
from crossent.tools.page.push import headline, panel
from crossent.tools.page.reliability import Tempered, reliability
from crossent.tools.page.scene import Scene, legend, page_of_scenes
from crossent.tools.page.words import OFFERED, words_of
from crossent.tools.printable import printable
from crossent.tools.score.measures import Calibration, Example, Mean
from crossent.tools.score.row_blocks import Decisions, Ints, Reader
from crossent.tools.score.scores import DEFINITIONS, Scores, class_and_place
from crossent.tools.score.tables import further_suspects, heading, report_tables, short_name
from crossent.tools.table import Table

STEPS = range(-16, 17)
TEMPERATURES = tuple(2 ** (k / 8) for k in STEPS)
"""From a quarter to four; the middle one is 1."""
SAMPLE = 1 << 22  # numbers that every temperature is tried on, evenly spread, of a file that holds more
EMBEDDED = 1 << 18  # logits of rows in a page
MATRIX = 30  # classes, up to which all confusions are shown
LIKELIEST = 30  # confusions shown of more classes
SHADES = 9


def report_page(report: Scores, reader: Reader | None, images: Any = None) -> str:
    """Write the page of scores, with rows of what was read for them, if that is there."""
    report = replace(report, class_names=tuple(map(printable, report.class_names)))
    name = report.settings["logits"]["name"]
    head = [
        html.heading(f"crossent score: {name}" if name else "crossent score", 1),
        html.paragraph(heading(report), "lead"),
        *_findings(report, reader),
        *(html.paragraph(remark, "notice") for remark in report.remarks),
    ]
    tables = report_tables(report)
    numbers = [html.table(table, sortable=False) for table in tables if table.title in ("Loss", "Scores")]
    tried = [] if reader is None else [_reliability_scene(reader)]
    rows = _rows_scene(report, tables, reader, images)
    title = f"crossent score {name}".strip()
    parts: list[Scene | str] = [*head, *numbers, rows, *tried, *_foot(report, tables), own_scene()]
    return page_of_scenes(title, parts, words_of(["ce", *OFFERED]))


def _findings(report: Scores, reader: Reader | None) -> list[str]:
    """Let the rules of check look at the same values, and pin what they find on top."""
    if reader is None:
        return []
    options, task = reader.options, reader.options.task
    try:
        found = check(
            reader.logits, reader.labels, input=options.input, task=task, dim=None if task == "multilabel" else reader.layout.axis,
            weight=options.weight, label_smoothing=options.label_smoothing, ignore_index=options.ignore_index, shift=options.shift,
        )  # fmt: skip
    except ValueError as error:
        return [html.paragraph(f"check could not look: {error}", "notice")]
    if not found:
        return [html.paragraph(f"check found nothing. {REMARK}", "note")]
    return [
        element(
            "div",
            element("strong", escape(f"{f.rule} {f.severity}: {f.title}"))
            + "".join(map(html.paragraph, (f.seen, f.why, f.fix))),
            class_="notice",
        )
        for f in found
    ]


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows_scene(report: Scores, tables: Sequence[Table], reader: Reader | None, images: Any) -> Scene:
    """Show the worst rows and the suspected labels, and open the first in Push."""
    examples = [*report.worst, *further_suspects(report)]
    opened = [] if reader is None else _opened(report, reader, examples)
    parts, first = [html.heading("The rows that cost most")], 0
    for table in (table for table in tables if table.title.startswith(("Worst", "Suspected"))):
        parts.append(_rows_table(table, first, examples, images))
        first += len(table.rows)
    place = [
        element("p", escape(opened[0]["title"]) if opened else "", class_="which"),
        *(_first_push(opened[0], report) if opened else ()),
    ]
    controls = element("div", "", class_="controls", hidden="hidden")
    parts.append(element("div", "".join(place) + controls, class_="opened", **({} if opened else {"hidden": "hidden"})))
    names = list(report.class_names) if not report.columns else ["no", "yes"]
    return Scene("rows", "", "".join(parts), {"rows": opened, "names": names, "losses": ["ce", *OFFERED]})


def _first_push(row: dict[str, Any], report: Scores) -> list[str]:
    names = row.get("names") or report.class_names
    x = [-np.inf if value is None else value for value in row["x"]]
    target = row["weights"] if "weights" in row else row["label"]
    e = explain(x, target, ["ce"], class_names=names)
    title = headline(names, e["ce"].p, row["label"])
    return [
        element("h3", escape(title), class_="headline"),
        legend(),
        element("div", panel(push_of(e, e["ce"]), "ce"), class_="panels"),
    ]


def _opened(report: Scores, reader: Reader, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Read the logits of the examples, as many as a page may hold."""
    most = EMBEDDED // max(1, reader.layout.choices)
    wanted = {(e.row, e.position) for e in examples[:most]}
    rows = np.array([row for row, _ in wanted], np.int64)

    def chosen(row: Ints, position: Ints) -> Any:
        return np.isin(row, rows)

    found = {}
    for block in reader.sample(chosen) if wanted else ():
        for k, at in enumerate(zip(block.row.tolist(), block.position.tolist(), strict=True)):
            if at in wanted:
                found[at] = (block.x[k], None if block.t is None else block.t[k])
    return [_open(report, e, *found.get((e.row, e.position), (None, None))) for e in examples]


def _open(report: Scores, e: Example, x: Any, t: Any) -> dict[str, Any]:
    where = f"row {e.row}" + (f", {report.ids[e.row]}" if e.row in report.ids else "")
    if x is None:
        return {"title": where}
    row: dict[str, Any] = {"title": where, "x": plain_logits(x.tolist()), "label": e.true}
    if t is not None and not np.isin(t, (0, 1)).all():
        row["weights"] = t.tolist()
    if report.columns:
        name = report.class_names[class_and_place(report, e)[0]]
        row["names"], row["title"] = [f"not {name}", name], f"{where}: {name}"
    return row


def _rows_table(table: Table, first: int, examples: Sequence[Example], images: Any) -> str:
    """Write a table whose rows know which example they are, with its image where there is one."""
    pictures = None if images is None else [_image(images[e.row]) for e in examples[first : first + len(table.rows)]]
    return html.table(table, sortable=True, first_row=first, pictures=pictures)


def _image(image: Any) -> str:
    """Write an image ``(H, W)`` or ``(H, W, channels)`` of any range: its darkest is paper, its brightest ink."""
    values = np.asarray(image, np.float64)
    values = values.mean(-1) if values.ndim == 3 else values
    spread = np.ptp(values)
    ink = (values - values.min()) / (spread or 1.0)
    picture = element("img", "", src=png(ink.tolist(), (0, 0, 0)), alt="").removesuffix("</img>")
    return element("span", picture, class_="digit")


# --- reliability ------------------------------------------------------------------------------------------------------


def _reliability_scene(reader: Reader) -> Scene:
    tempered = temperatures(reader)
    one = len(tempered) // 2
    rounded = [
        [
            round(t.temperature, 6),
            _finite(t.nll),
            round(t.error, 6),
            [[round(c, 4), round(a, 4), n] for c, a, n in t.bins],
        ]
        for t in tempered
    ]
    return Scene("reliability", "", reliability(tempered[one]), {"temperatures": rounded, "one": one})


def _finite(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def temperatures(reader: Reader) -> list[Tempered]:
    """Compute the cross entropy and the reliability at each temperature."""
    numbers = len(reader.logits) * reader.layout.per_row * reader.layout.choices
    stride = -(-numbers // SAMPLE)

    def chosen(row: Ints, position: Ints) -> Any:
        return (row * reader.layout.per_row + position) % stride == 0

    nll, calibration = [Mean() for _ in STEPS], [Calibration() for _ in STEPS]
    for block in reader.sample(chosen):
        for k, temperature in enumerate(TEMPERATURES):
            at = block if temperature == 1 else block.tempered(temperature)
            _add(at, nll[k], calibration[k])
    bins = ([(b.confidence, b.accuracy, b.decisions) for b in each.bins()] for each in calibration)
    return [
        Tempered(temperature, mean.value, each.error, points)
        for temperature, mean, each, points in zip(TEMPERATURES, nll, calibration, bins, strict=True)
    ]


def _add(block: Decisions, nll: Mean, calibration: Calibration) -> None:
    if len(block):
        nll.add(block.row, block.nll)
        calibration.add(block)


# --- classes ----------------------------------------------------------------------------------------------------------


def _foot(report: Scores, tables: Sequence[Table]) -> list[str]:
    others = [table for table in tables if table.title.startswith(("Temperature", "Classes"))]
    parts = [html.table(table, sortable=table.title.startswith("Classes")) for table in others]
    if report.confusion is not None and not report.columns:
        parts.append(_confusion(report.confusion, report.class_names))
    definitions = {key: DEFINITIONS[key] for key, value in report.numbers.items() if value is not None}
    meant = element("details", element("summary", "What each number means") + html.definition_list(definitions))
    return [html.heading("Classes"), *parts, meant]


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Show how often each class is predicted where each is the label: all of few classes, of many what is most often confused."""
    if len(names) > MATRIX:
        return html.table(_most_confused(counts, names), sortable=True)
    short = [short_name(names, k) for k in range(len(names))]
    head = element("tr", "".join(element("th", escape(name), scope="col") for name in ("true \\ predicted", *short)))
    rows = "".join(
        element("tr", element("th", escape(short[i]), scope="row") + "".join(_cell(row, i, j) for j in range(len(row))))
        for i, row in enumerate(counts)
    )
    caption = element("caption", "Confusion: rows are labels, columns predictions")
    table = element("table", caption + element("thead", head) + element("tbody", rows), class_="confusion")
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Confusion")


def _cell(row: Sequence[int], i: int, j: int) -> str:
    shade = -(-SHADES * row[j] // max(1, sum(row)))
    return element("td", str(row[j]) if row[j] else "", class_=f"{'right' if i == j else 'wrong'} shade{shade}")


def _most_confused(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [(names[i], names[j], f"{n:,}") for n, i, j in pairs[:LIKELIEST]]
    return Table("Most often confused", ("true", "predicted", "how often"), rows, text_columns=(0, 1))
