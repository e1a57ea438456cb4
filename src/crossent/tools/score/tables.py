"""The report as tables of text: the same for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

from crossent.tools.printable import brief
from crossent.tools.score.measures import ClassRow, Example
from crossent.tools.score.scores import Scores, class_and_place, knows_more_than_frequencies, places
from crossent.tools.shared_options import SUSPECTS
from crossent.tools.table import Table

WIDEST_NAME, WIDEST_ID = 16, 32  # letters
MANY = 1000  # classes, beyond which short names are not compared with each other
FEW = 30  # classes, up to which all are shown


def report_tables(report: Scores) -> list[Table]:
    """Tabulate a report, the most important first."""
    tables = [_loss(report), _scores(report)]
    if report.numbers["odd_rows_nll_nats_after"] is not None:
        tables.append(_temperature(report))
    tables.append(_classes(report))
    if report.worst:
        suspects = report.suspects if knows_more_than_frequencies(report) else ()
        tables.append(
            _examples(report, "Worst examples, by loss", report.worst, {(e.row, e.position) for e in suspects})
        )
    if report.numbers["suspected_label_errors"] is not None:
        tables.append(_suspects(report))
    return tables


def heading(report: Scores) -> str:
    """Say of what the scores are, in a line."""
    n = report.numbers
    each = "token" if report.settings["task"] == "lm" else "decision"
    counted = [_count(n["rows"], "row")]
    counted += [_count(n["decisions"], each)] if n["decisions"] != n["rows"] else []
    counted += [f"{n['ignored']:,} ignored"] if n["ignored"] else []
    counted.append(_count(n["classes"], "class"))
    return f"{', '.join(counted)}; the values are read as {report.settings['input']}"


def _count(number: float | None, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _loss(report: Scores) -> Table:
    n = report.numbers

    def line(name: str, nats: float | None, error: float | None = None, skill: float | None = None) -> tuple[str, ...]:
        nats = math.nan if nats is None else nats
        cells = [
            number(scale * nats, 4)
            + ("" if error is None or not math.isfinite(error) else f" ± {number(scale * error, 4)}")
            for scale in (1.0, 1 / math.log(2))
        ]
        return (name, *cells, "" if skill is None else percent(skill, 1))

    rows = [line("cross entropy", n["nll_nats_mean"], n["nll_nats_standard_error"])]
    if n["loss_nats_mean"] is not None:
        rows.append(line("as trained", n["loss_nats_mean"], n["loss_nats_standard_error"]))
    uniform = "all classes alike, ln 2" if report.columns else "all classes alike, ln C"
    rows.append(line(uniform, n["uniform_nll_nats"], None, n["skill_over_uniform"]))
    rows.append(line("class frequencies, H(prior)", n["prior_nll_nats"], None, n["skill_over_prior"]))
    notes = ["± one standard error over rows. Skill: 1 − cross entropy / this line."]
    if n["loss_nats_mean"] is not None:
        notes.append(
            "As trained: with the class weights and label smoothing given. All other numbers are without them."
        )
    return Table("Loss", ("", "nats", "bits", "skill"), rows, tuple(notes))


def _scores(report: Scores) -> Table:
    n: dict[str, Any] = report.numbers
    error = n["accuracy_standard_error"]
    spread = f" ± {100 * error:.2f}" if math.isfinite(error) else ""
    several = report.columns
    lines: list[tuple[str, str, Callable[[float], str], str]] = [
        ("perplexity", "perplexity", _plain, "e to the cross entropy"),
        ("bits per token", "bits_per_token", _plain, "the cross entropy in bits"),
        ("bits per byte", "bits_per_byte", _plain, "of all tokens, over the bytes given"),
        (
            "accuracy",
            "accuracy",
            lambda share: percent(share, 2) + spread,
            "of every yes and no" if several else "the most probable class is the label",
        ),
        ("top-5 accuracy", "top5_accuracy", _share, "the label is among the five most probable"),
        ("exact match", "exact_match", _share, "every yes and no of a row is right"),
        ("macro-F1", "macro_f1", _plain, "the mean of the classes' F1"),
        (
            "Brier score",
            "brier",
            _plain,
            "mean of (p − t)², 0 to 1" if several else "mean of Σ (p − t)² over classes, 0 to 2",
        ),
        (
            "calibration error",
            "calibration_error",
            _plain,
            f"{'yes or no' if several else 'most probable class'}, 15 equal-width bins",
        ),
    ]
    rows = [(name, write(n[key]), what) for name, key, write, what in lines if n[key] is not None]
    return Table("Scores", ("", "", ""), rows, text_columns=(0, 2))


def _temperature(report: Scores) -> Table:
    n: dict[str, Any] = report.numbers
    at = f"at {n['temperature']:.3f}"
    named = (("cross entropy, nats", "odd_rows_nll_nats"), ("calibration error", "odd_rows_calibration_error"))
    return Table(
        f"Temperature {n['temperature']:.3f} (a model that is too sure needs more than 1)",
        (f"the {n['decisions_odd_rows']:,} decisions of odd rows", "as they are", at),
        [(name, _plain(n[f"{key}_before"]), _plain(n[f"{key}_after"])) for name, key in named],
        ("Fitted on the even rows (0, 2, ...), tried on the odd. It changes no decision.",),
    )


def _classes(report: Scores) -> Table:
    shown, title = report.costliest(FEW), "Classes"
    if len(shown) < len(report.classes):
        title = f"Classes: the {len(shown)} of {len(report.classes):,} with the largest share of the loss"
    taken = any(row.taken_for is not None for row in shown)
    labels = "yes" if report.columns else "labels"
    columns = ("class", labels, "recall", "precision", "F1", "nats", "of loss", "p − freq.", "confused with")
    notes = ["Nats: mean cross entropy" + (" of its yes and no." if report.columns else " where it is the label.")]
    notes.append("p − freq.: mean probability − frequency, above 0 if it is predicted too often.")
    notes += ["Confused with: the class that is most often predicted in its place."] * taken
    rows = [_class(report, row)[: 8 + taken] for row in shown]
    return Table(title, columns[: 8 + taken], rows, tuple(notes), text_columns=(0, 8))


def _class(report: Scores, row: ClassRow) -> tuple[str, ...]:
    return (
        _name(report, row.label),
        f"{row.decisions:,}",
        percent(row.recall, 1),
        percent(row.precision, 1),
        number(row.f1, 3),
        number(row.nll_nats_mean, 4),
        percent(row.loss_share, 1),
        f"{row.p_mean - row.frequency:+.4f}".replace("-", "−") if math.isfinite(row.p_mean) else "–",
        "" if row.taken_for is None else _name(report, row.taken_for),
    )


def further_suspects(report: Scores) -> list[Example]:
    """Return the suspected labels that are not among the worst examples, where they are marked."""
    if not knows_more_than_frequencies(report):
        return []
    worst = {(e.row, e.position) for e in report.worst}
    return [e for e in report.suspects if (e.row, e.position) not in worst]


def _suspects(report: Scores) -> Table:
    found = report.numbers["suspected_label_errors"] or 0
    if not knows_more_than_frequencies(report):
        note = "The model is not better than the class frequencies alone, so it cannot tell which labels are wrong."
        return Table("Suspected label errors: not shown", (), (), (note,))
    if not found:
        return Table("Suspected label errors: none", (), ())
    shown, further = len(report.suspects), further_suspects(report)
    likeliest = f", of which the {shown} likeliest" if 0 < shown < found else ""
    above = shown - len(further)
    notes = {
        SUSPECTS[
            0
        ]: "Estimated number of wrong labels (confident learning): rows where another class gets at least its usual "
        "probability. Listed are that many rows, those with the lowest probability of their own label first.",
        SUSPECTS[
            1
        ]: "Rows where another class gets at least its usual probability: the mean that it has where it is the label "
        "(confident learning).",
    }
    marked = (
        f" {above:,} of them {'is' if above == 1 else 'are'} among the worst examples and marked there."
        if above
        else ""
    )
    note = (
        f"{notes[report.settings['suspects']]}{marked} Only worth reading if the model was not trained on these rows."
    )
    title = f"Suspected label errors: {found:,}{likeliest}"
    if not further:
        return Table(title, (), (), (note,))
    return replace(_examples(report, title, further), notes=(note,))


def _examples(report: Scores, title: str, examples: list[Example], marked: Set[tuple[int, int]] = frozenset()) -> Table:
    """Tabulate examples; those that are marked have a suspected label."""
    marks = ["?" if (e.row, e.position) in marked else "" for e in examples]
    ids = bool(report.ids)
    place = "token" if report.settings["task"] == "lm" else "at"
    several = bool(places(report))
    columns = ["row"] + [place] * several + ["id"] * ids + ["class"] * report.columns + ["true", "p(true)"]
    columns += [] if report.columns else ["predicted", "p(predicted)"]
    columns += ["loss, nats"] + ["?"] * any(marks)
    rows = []
    for e, mark in zip(examples, marks, strict=True):
        k, at = class_and_place(report, e)
        cells = [str(e.row)] + [",".join(map(str, at))] * several + [brief(report.ids.get(e.row, ""), WIDEST_ID)] * ids
        if report.columns:
            cells += [_name(report, k), "yes" if e.true else "no", number(e.p_true, 4)]
        else:
            cells += [_name(report, e.true), number(e.p_true, 4), _name(report, e.predicted), number(e.p_predicted, 4)]
        rows.append((*cells, number(e.loss_nats, 4), *([mark] if any(marks) else ())))
    text_columns = tuple(k for k, name in enumerate(columns) if name in ("id", "class", "true", "predicted", "?"))
    notes = ("?: a suspected label error.",) if any(marks) else ()
    return Table(title, tuple(columns), rows, notes, text_columns=text_columns)


def short_name(names: Sequence[str], k: int) -> str:
    """Shorten the name of a class, unless another would be called the same."""
    short = brief(names[k], WIDEST_NAME)
    if short == names[k] or len(names) > MANY:
        return short
    return short if sum(brief(name, WIDEST_NAME) == short for name in names) == 1 else names[k]


def _name(report: Scores, k: int) -> str:
    return short_name(report.class_names, k)


# --- cells ------------------------------------------------------------------------------------------------------------


def number(value: float, digits: int) -> str:
    """Write a number with so many decimals, or in powers of ten where these would hide it.

    >>> number(0.15565, 4), number(1.2e-7, 4), number(float("nan"), 4), number(250000.0, 4)
    ('0.1557', '1.2e-07', '–', '250,000')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "inf"
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.3e}"


def _plain(value: float) -> str:
    return number(value, 4)


def _share(value: float) -> str:
    return percent(value, 2)


def percent(value: float | None, digits: int) -> str:
    """Write a share in per cent.

    >>> percent(0.97037, 1)
    '97.0%'
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f}%"
