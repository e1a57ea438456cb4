"""``crossent score``. It imports click and nothing else until it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from crossent.tools import shared_options
from crossent.tools.errors import InputError
from crossent.tools.optional_packages import needs
from crossent.tools.printable import printable

if TYPE_CHECKING:
    from crossent.tools.files import Pair, Selection
    from crossent.tools.score.comparison import Comparison
    from crossent.tools.score.fail_if import Condition
    from crossent.tools.score.report import Report

EPILOG = """\b
The numbers, under the names they have in --json and --fail-if:
  nll_nats_mean      cross entropy, the mean of -ln p(true); its standard
                     error counts a row of the file as one draw
  skill_over_prior   1 - cross entropy / H(prior), the entropy of the labels'
                     own frequencies; skill_over_uniform the same with ln C
  brier              mean of the sum over classes of (p - t)^2, from 0 to 2
  calibration_error  expected calibration error: of the most probable class,
                     in 15 equal-width bins
  temperature        T with the lowest cross entropy of softmax(x / T), fitted
                     on the even rows; odd_rows_... are before and after, on
                     the others
  --fail-if also knows nll, loss, bits, top5, f1, ece, skill; of two runs
  nll_nats_difference, accuracy_difference and brier_difference.

\b
Exit codes: 0 fine, 1 a --fail-if holds, 2 wrong use or a file that cannot
be read.

\b
Examples:
  crossent score preds.npz
  crossent score logits.npy labels.npy --class-names cat,dog,bird
  crossent score preds.csv --input probs --fail-if "nll>0.5" --json
  crossent score lm.safetensors --task lm --shift --bytes 51234
  crossent score preds.csv --labels truth.csv::species --plot scores.png
  crossent score before.csv after.csv truth.csv
  crossent score before.csv after.csv
"""


def _format_flag(name: str, what: str) -> Callable[[Any], Any]:
    return click.option(f"--{name}", "output_format", flag_value=name, help=what)


GROUPS = {
    "What the files hold": ("labels_file", "input", "task", "shift", "ignore_index", "class_dim"),
    "Columns and names": ("classes", "drop", "id_column", "class_names", "ids"),
    "The loss in training": ("weight", "label_smoothing"),
    "What is printed": ("top", "suspects", "bytes", "plot", "html", "output_format", "fail_if"),
}


@click.command("score", cls=shared_options.GroupedCommand, groups=GROUPS, epilog=EPILOG)
@click.argument("files", metavar="LOGITS [LOGITS2] [LABELS]", nargs=-1, required=True)
@click.option("--labels", "labels_file", metavar="FILE::NAME", help="The labels, instead of a last FILE.")
@shared_options.input_flag
@shared_options.task_flag
@shared_options.shift_flag
@shared_options.class_dim_flag
@shared_options.ignore_index_flag
@shared_options.weight_flag
@shared_options.label_smoothing_flag
@shared_options.class_names_flag
@shared_options.column_flags
@click.option("--ids", metavar="FILE", help="Names of the rows: a text with one a line, or FILE.csv::COLUMN.")
@click.option("--top", type=click.IntRange(0), default=10, metavar="N", help="How many examples to show.  [10]")
@click.option(
    "--suspects",
    type=click.Choice(shared_options.SUSPECTS),
    default=shared_options.SUSPECTS[0],
    help="How suspected label errors are chosen.  [self-confidence]",
)
@click.option("--bytes", type=click.IntRange(1), metavar="N", help="The length of the tokens' text, for bits per byte.")
@click.option("--fail-if", multiple=True, metavar="CONDITION", help="Such as 'nll>0.5': exit with 1 if it holds.")
@click.option("--plot", metavar="FILE", help="Draw reliability and confusion into a picture.")
@click.option("--html", metavar="FILE", help="Write a page with the worst rows, reliability, confusion and classes.")
@_format_flag("json", "Print one JSON object.")
@_format_flag("csv", "Print comma-separated values.")
@_format_flag("md", "Print Markdown.")
def score(
    files: tuple[str, ...],
    labels_file: str | None,
    fail_if: tuple[str, ...],
    ids: str | None,
    plot: str | None,
    html: str | None,
    output_format: str | None,
    **options: Any,
) -> None:
    """Score predictions against labels: cross entropy, accuracy, calibration, and the examples that hurt.

    LOGITS and LABELS are .npy, .npz, .csv, .tsv, .txt, .json, .jsonl, .safetensors, .pt, .parquet or .png files, or .gz or .zip.
    One file may hold both, under their usual names or as FILE::NAME. A file larger than memory is fine. With LOGITS2 two runs are
    compared on the same rows, and so are two files that each hold predictions and labels.
    """
    from crossent.tools.files import FileError

    if len(files) + (labels_file is not None) > 3:
        raise click.UsageError("two runs and their labels are three files at most")
    labels = labels_file or (files[-1] if len(files) > 1 else None)
    runs = files if labels_file is not None or len(files) == 1 else files[:-1]
    try:
        conditions = _conditions(fail_if)
        report = _scored(runs[0], labels, ids, options, labels_file is not None) if len(runs) == 1 else None
        if report is None:  # two files without labels are two runs with labels of their own
            _refuse_for_two_runs({"--html": html, "--plot": plot, "--ids": ids})
            comparison = _compare(
                runs if len(runs) > 1 else files, labels if len(runs) > 1 else None, output_format, options
            )
        failed = [condition for condition in conditions if condition.holds(report or comparison)]
        if report is not None and plot is not None:
            _draw(report, plot)
        if report is not None and html is not None:
            _write_page(report, html)
    except shared_options.OptionError as error:
        raise error.usage from None
    except FileError as error:
        raise InputError(str(error)) from None
    if report is None:
        _print_comparison(comparison, output_format)
    else:
        shown = output_format is None and sys.stdout.isatty()  # the report itself says them as well
        for remark in () if shown else report.remarks:
            click.echo(printable(f"Warning: {remark}"), err=True)
        _print(report, output_format)
    for condition in failed:
        number = (report or comparison).numbers[condition.key]
        click.echo(f"Failed: {condition.key} is {number:.6g}, and --fail-if says {condition.text}", err=True)
    click.get_current_context().exit(1 if failed else 0)


def _scored(run: str, labels: str | None, ids: str | None, options: dict[str, Any], labels_only: bool) -> Report | None:
    """Score a run; None if the file given for its labels holds a run of its own, and nobody said that it is for the labels."""
    from crossent.tools.files.two_runs import TwoRunsError

    try:
        return _report(run, labels, ids, dict(options), labels_only)
    except TwoRunsError:
        return None


def _refuse_for_two_runs(given: dict[str, str | None]) -> None:
    from crossent.tools.files import FileError

    for option, value in given.items():
        if value is not None:
            raise FileError(f"{option} is for one run, not for two")


def _draw(report: Report, path: str) -> None:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        report.plot().figure_.savefig(path)  # type: ignore[union-attr]
    except ImportError:
        raise InputError(needs("--plot", ["matplotlib"])) from None
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path}: {error}") from None


def _write_page(report: Report, path: str) -> None:
    try:
        report.to_html(path)
    except OSError as error:
        raise InputError(f"--html {path}: {error.strerror}") from None
    click.echo(f"Written: {printable(path)}", err=True)


def _compare(
    runs: tuple[str, ...], labels: str | None, output_format: str | None, options: dict[str, Any]
) -> Comparison:
    """Compare two runs, each paired with the labels by its own names, and with the other by the names of its rows.

    Without labels each run has its own, which must be the same.
    """
    from crossent.tools.files import FileError, open_pair
    from crossent.tools.score.comparison import compare, one_truth

    if output_format == "csv":
        raise FileError("two runs are printed as text, --json or --md")
    if options["weight"] is not None or options["label_smoothing"]:
        raise FileError("two runs are compared by their plain cross entropy: leave out --weight and --label-smoothing")
    selection = shared_options.take_selection(options)
    first, second = (open_pair(run, labels, selection, labels_only=True) for run in runs)
    for note in dict.fromkeys((*first.notes, *second.notes)):
        click.echo(printable(note), err=True)
    if first.labels is None or second.labels is None:
        raise FileError(f"{labels or runs[first.labels is not None]}: holds no labels")
    one, two, truth = one_truth(first, second)
    for unused in ("suspects", "bytes"):
        options.pop(unused)
    names = one.columns or selection.class_names or None
    return compare(one, two, truth, names=(runs[0], runs[1]), **{**options, "class_names": names})


def _print_comparison(comparison: Comparison, output_format: str | None) -> None:
    from crossent.tools.score import show

    if output_format == "json":
        click.echo(comparison.to_json())
    elif output_format == "md":
        click.echo(show.markdown_tables(comparison.heading.replace("\n", ", "), comparison.tables()).rstrip("\n"))
    else:
        show.show_tables(comparison.heading, comparison.tables())


def _conditions(conditions: tuple[str, ...]) -> list[Condition]:
    from crossent.tools.score.fail_if import parse_condition

    return [parse_condition(condition) for condition in conditions]


def _report(
    logits: str, labels: str | None, ids: str | None, options: dict[str, Any], labels_only: bool = False
) -> Report:
    from dataclasses import replace

    from crossent.tools.files.class_names import read_ids
    from crossent.tools.files.values import WEIGHTS, read_numbers
    from crossent.tools.progress import ProgressBar
    from crossent.tools.score.scoring import score as scored

    if options["weight"] is not None:
        options["weight"] = read_numbers(options["weight"], WEIGHTS).reshape(-1)
    pair, selection = _open(logits, labels, options, labels_only)
    options["class_names"] = pair.logits.columns or selection.class_names or None
    table = pair.logits if ids is None else replace(pair.logits, ids=read_ids(ids, len(pair.logits)))
    with ProgressBar() as progress:
        assert pair.labels is not None
        return scored(table, pair.labels, watch=progress, **options)


def _open(logits: str, labels: str | None, options: dict[str, Any], labels_only: bool) -> tuple[Pair, Selection]:
    from crossent.tools.files import FileError, open_pair

    selection = shared_options.take_selection(options)
    pair = open_pair(logits, labels, selection, labels_only=labels_only)
    for note in pair.notes:
        click.echo(printable(note), err=True)
    if pair.labels is None:
        raise FileError(f"{logits}: holds no labels: name their file as well, or the array as {logits}::NAME")
    return pair, selection


def _print(report: Report, output_format: str | None) -> None:
    from crossent.tools.score import show

    if output_format is None:
        show.show(report)
    else:
        write = {"json": report.to_json, "csv": lambda: show.separated(report), "md": lambda: show.markdown(report)}
        click.echo(write[output_format]().rstrip("\n"))
