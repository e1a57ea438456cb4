"""``crossent check`` and ``crossent rule``. It imports click and nothing else until one runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from crossent.tools import shared_options
from crossent.tools.errors import InputError
from crossent.tools.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossent.tools.check.facts import Facts
    from crossent.tools.check.findings import Findings
    from crossent.tools.files import Pair

EPILOG = """\b
Exit codes: 0 nothing wrong was found, 1 an error was (with --strict a warning
is enough), 2 wrong use or a file that cannot be read.

\b
Examples:
  crossent check preds.npz
  crossent check logits.npy labels.npy --weight 1,1,200 --label-smoothing 0.1
  crossent check mask_logits.npy masks.npy --task binary
  crossent check lm.safetensors --task lm --shift --losses losses.csv
  crossent rule CE101
"""


GROUPS = {
    "What the files hold": ("input", "task", "shift", "ignore_index", "class_dim", "inputs"),
    "Columns and names": ("classes", "drop", "id_column", "class_names"),
    "The loss in training": ("weight", "pos_weight", "label_smoothing", "micro_batch", "losses", "loss_dtype"),
    "What is printed": ("strict", "as_json"),
}


@click.command("check", cls=shared_options.GroupedCommand, groups=GROUPS, epilog=EPILOG)
@click.argument("logits", metavar="LOGITS")
@click.argument("labels", metavar="[LABELS]", required=False)
@shared_options.input_flag
@shared_options.task_flag
@shared_options.class_dim_flag
@click.option(
    "--ignore-index", type=float, metavar="N", help="The label that counts for nothing.  [-100; none for binary]"
)
@shared_options.weight_flag
@click.option("--pos-weight", metavar="W,W,...", help="Weights of the positives in the binary loss, or a file of them.")
@shared_options.label_smoothing_flag
@shared_options.shift_flag
@shared_options.class_names_flag
@shared_options.column_flags
@click.option("--inputs", metavar="FILE", help="The token ids that the model saw (lm).")
@click.option(
    "--micro-batch", type=click.IntRange(1), metavar="N", help="Rows that the loss is averaged over at a time."
)
@click.option("--losses", metavar="FILE", help="Values of the loss in the order of training.")
@click.option("--loss-dtype", metavar="NAME", help="The dtype in which the loss is computed.  [that of the logits]")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(logits: str, labels: str | None, strict: bool, as_json: bool, **options: Any) -> None:
    """Find the usual mistakes around a cross entropy in the values it is given.

    LOGITS and LABELS are files as crossent score takes them. One file may hold both, under
    their usual names or as FILE::NAME. A file larger than memory is fine. What is found was seen.
    Finding nothing is no proof.
    """
    from crossent.tools.files import FileError, open_pair

    try:
        pair = open_pair(logits, labels, shared_options.take_selection(options))
        for note in pair.notes:
            click.echo(printable(note), err=True)
        facts, findings = _checked(pair, options)
    except FileError as error:
        raise InputError(str(error)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if pair.labels is None:
        click.echo("There are no labels: only rules about the logits alone can find anything.", err=True)
    _print(pair, facts, findings, as_json)
    failed = findings.errors or (strict and findings.count("warning") > 0)
    click.get_current_context().exit(int(failed))


def _checked(pair: Pair, options: dict[str, Any]) -> tuple[Facts, Findings]:
    from crossent.tools.check.findings import apply_rules
    from crossent.tools.check.options import read_options
    from crossent.tools.check.rules import VALUE_RULES
    from crossent.tools.check.survey import survey
    from crossent.tools.progress import ProgressBar

    options = _read(class_names=pair.logits.columns, stored=True, **options)
    with ProgressBar() as progress:
        facts = survey(pair.logits, pair.labels, read_options(options), progress)
    return facts, apply_rules(VALUE_RULES.values(), facts)


def _read(
    class_dim: int | None,
    weight: str | None,
    pos_weight: str | None,
    inputs: str | None,
    losses: str | None,
    **others: Any,
) -> dict[str, Any]:
    """Read the options that are numbers, as they stand or in a file."""
    from crossent.tools.files.losses import read_losses
    from crossent.tools.files.roles import LABELS
    from crossent.tools.files.values import WEIGHTS, read_numbers

    return {
        "dim": class_dim,
        "weight": None if weight is None else read_numbers(weight, WEIGHTS).reshape(-1),
        "pos_weight": None if pos_weight is None else read_numbers(pos_weight, WEIGHTS),
        "inputs": None if inputs is None else read_numbers(inputs, ("input_ids", "inputs", *LABELS)),
        "losses": None if losses is None else read_losses(losses),
        **others,
    }


def _print(pair: Pair, facts: Facts, findings: Findings, as_json: bool) -> None:
    from crossent.tools.check.rules import VALUE_RULES
    from crossent.tools.check.terminal import show

    if as_json:
        click.echo(json.dumps(document(pair, facts, findings), indent=1, allow_nan=False))
        return
    size = f"{facts.rows:,} row{'s' * (facts.rows != 1)}" + (f" of {facts.C:,} classes" if facts.C > 1 else "")
    ignored = f" ({facts.target.ignored:,} labels ignored)" if facts.target.ignored else ""
    show(findings, size + ignored, len(VALUE_RULES))


def document(pair: Pair, facts: Facts, findings: Findings) -> dict[str, Any]:
    """Give findings and the numbers behind them as one object of plain data."""
    from crossent.tools.check.findings import REMARK, SEVERITIES
    from crossent.tools.check.rules import VALUE_RULES
    from crossent.tools.check.rules.loss_curve import levels

    of_labels = levels(facts)
    return {
        "schema": "crossent.check/1",
        "logits": {"name": pair.logits.name, "shape": list(pair.logits.shape), "dtype": pair.logits.dtype},
        "labels": None
        if pair.labels is None
        else {"name": pair.labels.name, "shape": list(pair.labels.shape), "dtype": pair.labels.dtype},
        "task": facts.options.task,
        "rows": facts.rows,
        "classes": facts.C,
        "ignored": facts.target.ignored,
        "nll_nats_mean": _finite(facts.loss.loss.value),
        "ln_classes": _finite(of_labels.start),
        "prior_entropy": _finite(of_labels.prior),
        "double_softmax_floor": _finite(of_labels.floor),
        "rules": list(VALUE_RULES),
        "counts": {kind: findings.count(kind) for kind in SEVERITIES},
        "findings": [finding.to_dict() for finding in findings],
        "remark": REMARK,
    }


def _finite(value: float | None) -> float | None:
    from math import isfinite

    return value if value is not None and isfinite(value) else None


@click.command("rule")
@click.argument("name", metavar="[ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rule(name: str | None, as_json: bool) -> None:
    """Explain a rule of check or check_loss, or list them all."""
    from crossent.tools.check.rules import RULE_DESCRIPTIONS

    if name is not None and name.upper() not in RULE_DESCRIPTIONS:
        raise click.BadParameter(
            f"no rule is called {name!r}; there are {', '.join(RULE_DESCRIPTIONS)}", param_hint="ID"
        )
    descriptions = list(RULE_DESCRIPTIONS.values()) if name is None else [RULE_DESCRIPTIONS[name.upper()]]
    if as_json:
        from dataclasses import asdict

        rules = [asdict(description) for description in descriptions]
        click.echo(json.dumps({"schema": "crossent.rule/1", "rules": rules}, indent=1))
        return
    _print_rules(descriptions, all=name is None)


def _print_rules(descriptions: Sequence[Any], all: bool) -> None:
    from crossent.tools.check.terminal import show_rule, show_rules

    if all:
        show_rules(descriptions)
    else:
        show_rule(descriptions[0])
