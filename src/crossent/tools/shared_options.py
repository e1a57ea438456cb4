"""The options that check, score and explain share. The check, the error message and the flag of each are here, once.

Only click is imported, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import click

from crossent.tools.printable import printable

INPUTS = ("logits", "probs", "logprobs")
TASKS = ("multiclass", "binary", "multilabel", "lm")
SUSPECTS = ("self-confidence", "confident-learning")
IGNORE_INDEX = -100


class OptionError(ValueError):
    """An option that is not allowed, or does not fit the values; a command ends with exit code 2.

    Attributes:
        option: its name.
        problem: the rest of the sentence.
    """

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option} {problem}")
        self.option, self.problem = option, problem

    @property
    def usage(self) -> click.BadParameter:
        """What a command says about its flag."""
        return click.BadParameter(printable(self.problem), param_hint=f"'--{self.option.replace('_', '-')}'")


# --- what an option may be --------------------------------------------------------------------------------------------


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices.

    >>> check_choice("task", "ordinal", TASKS)
    Traceback (most recent call last):
    crossent.tools.shared_options.OptionError: task must be one of multiclass, binary, multilabel, lm, got 'ordinal'
    """
    if value not in choices:
        raise OptionError(name, f"must be one of {', '.join(choices)}, got {value!r}")


def check_label_smoothing(value: float) -> None:
    """Refuse an ``ε`` outside of [0, 1]."""
    if not 0 <= value <= 1:
        raise OptionError("label_smoothing", f"must lie in [0, 1], got {value}")


def check_class_weights(weight: Any, *, infinite: bool = False) -> None:
    """Refuse an array of class weights that is not ``(C)``, or holds nan, a negative number or, if it may not, an infinite one."""
    if weight.ndim != 1:
        raise OptionError("weight", f"must have shape (C,), got {weight.shape}")
    if not all(0 <= w < inf or (infinite and w == inf) for w in weight):
        raise OptionError(
            "weight",
            f"must hold finite numbers, none negative, got {weight.tolist()!s:.60}: 0 leaves a class out, no negative number does",
        )


def check_weight_count(weight: Any, num_classes: int, logits: str) -> None:
    """Refuse class weights whose number is not that of the classes; ``logits`` is the name of the logits."""
    if len(weight) != num_classes:
        raise OptionError(
            "weight", f"has {len(weight)} numbers, but {logits} has {num_classes} classes: it needs one a class"
        )


def class_axis(name: str, dim: int | None, shape: tuple[int, ...], usual: int, *, rows_first: bool = False) -> int:
    """Find the axis of the classes, counted from the first.

    Args:
        name: of the option that says ``dim``.
        dim: the axis, counted from the last where it is negative; None is the usual one.
        shape: of the logits.
        usual: the axis where nothing is said.
        rows_first: whether axis 0 holds the rows, so that it cannot hold the classes.

    >>> class_axis("dim", -1, (8, 3, 5), 1), class_axis("dim", None, (8, 3, 5), 1)
    (2, 1)
    """
    axis, axes = usual if dim is None else dim, len(shape)
    if not -axes <= axis < axes:
        raise OptionError(name, f"must lie in [{-axes}, {axes}) for logits of shape {shape}, got {axis}")
    if rows_first and axis % axes == 0:
        raise OptionError(
            name,
            f"must lie between 1 and {axes - 1} for logits of shape {shape}, where axis 0 holds the rows, got {axis}",
        )
    return axis % axes


# --- help ------------------------------------------------------------------------------------------------------------


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups.

    Args:
        groups: the names of the parameters under each title; what is in none comes last.
    """

    def __init__(self, *args: Any, groups: dict[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one group after the other."""
        records = {
            str(param.name): record
            for param in self.get_params(ctx)
            if (record := param.get_help_record(ctx)) is not None
        }
        # --json, --csv and --md are three flags of one parameter.
        formats = [param for param in self.get_params(ctx) if param.name == "output_format"]
        grouped = {name for names in self.groups.values() for name in names}
        groups = {**self.groups, "Options": [name for name in records if name not in grouped]}
        for title, names in groups.items():
            rows = [records[name] for name in names if name in records and name != "output_format"]
            if "output_format" in names:
                rows += [record for param in formats if (record := param.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


# --- flags ------------------------------------------------------------------------------------------------------------

Flag = Callable[[Any], Any]

task_flag: Flag = click.option(
    "--task",
    type=click.Choice(TASKS),
    default="multiclass",
    help="One label a row, yes or no for each logit (binary, multilabel), or one a token.  [multiclass]",
)
shift_flag: Flag = click.option(
    "--shift", is_flag=True, help="The logits of a token are about the next one (--task lm)."
)
weight_flag: Flag = click.option(
    "--weight", metavar="W,W,...", help="Class weights of the training loss, or a file of them."
)
label_smoothing_flag: Flag = click.option(
    "--label-smoothing", type=float, default=0.0, metavar="E", help="Label smoothing of the training loss.  [0]"
)
class_names_flag: Flag = click.option(
    "--class-names", metavar="A,B,...", help="Names of the classes, or a file with one a line."
)
class_dim_flag: Flag = click.option(
    "--class-dim", "--dim", "class_dim", type=int, metavar="N", help="The axis of the classes.  [1; the last for lm]"
)
ignore_index_flag: Flag = click.option(
    "--ignore-index", type=int, default=IGNORE_INDEX, metavar="N", help="The label that counts for nothing.  [-100]"
)
_column_flags: tuple[Flag, ...] = (
    click.option(
        "--classes",
        "--columns",
        "classes",
        metavar="A,B,...",
        help="The columns that are classes, or patterns such as 'p_*'.",
    ),
    click.option("--drop", metavar="A,B,...", help="Columns that are no classes."),
    click.option(
        "--id", "id_column", metavar="NAME", help="The column that names the rows; NAME,NAME where the files differ."
    ),
)


def column_flags(command: Any) -> Any:
    """Add the options that say what the columns of a table are."""
    for flag in reversed(_column_flags):
        command = flag(command)
    return command


def take_selection(options: dict[str, Any]) -> Any:
    """Take what was said about columns out of the options of a command, with the names of the classes."""
    from crossent.tools.files import Selection
    from crossent.tools.files.class_names import read_names

    names = options.pop("class_names", None)
    classes, drop = (
        tuple(each.strip() for each in (options.pop(option) or "").split(",") if each.strip())
        for option in ("classes", "drop")
    )
    return Selection(classes, drop, options.pop("id_column"), read_names(names) if names is not None else ())


input_flag: Flag = click.option(
    "--input", type=click.Choice(INPUTS), default="logits", help="What the values are; never guessed.  [logits]"
)
