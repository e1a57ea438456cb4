"""Scoring: the parts that look at every block of decisions, and how their numbers become a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crossent.core.messages import type_error
from crossent.core.names import only_its_keywords
from crossent.reference import expected_initial_loss
from crossent.tools.arrays import read_array, read_pair
from crossent.tools.errors import FileError
from crossent.tools.files import RowArray
from crossent.tools.kinds import argument_kinds
from crossent.tools.score.layout import class_axes, decision_layout
from crossent.tools.score.measures import (
    Accuracy,
    Brier,
    Calibration,
    Classes,
    ExactMatch,
    Example,
    Largest,
    Loss,
    Suspects,
)
from crossent.tools.score.options import ScoreOptions
from crossent.tools.score.report import Report
from crossent.tools.score.row_blocks import Reader
from crossent.tools.score.temperature import LIMITS, BeforeAndAfter, fit
from crossent.tools.shared_options import OptionError, check_weight_count

OnProgress = Callable[[str, int, int], None]  # what is being done, how much of it is, of how much


@only_its_keywords
@argument_kinds(
    watch="a function or None", input="a text", task="a text", shift="True or False", dim="an int or None",
    class_dim="an int or None", ignore_index="an int", label_smoothing="a number", class_names="a list of names or None",
    top="an int", suspects="a text", bytes="an int or None",
)  # fmt: skip
def score(
    logits: ArrayLike | RowArray,
    labels: ArrayLike | RowArray,
    watch: OnProgress | None = None,
    *,
    input: str = "logits",
    task: str = "multiclass",
    shift: bool = False,
    dim: int | None = None,
    class_dim: int | None = None,
    ignore_index: int = -100,
    weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    class_names: Sequence[str] | None = None,
    top: int = 10,
    suspects: str = "self-confidence",
    bytes: int | None = None,
) -> Report:
    """Score logits against labels.

    Args:
        logits: ``(N, C)``, ``(N, C, d1, ...)``, or ``(N, T, V)`` of a language model; an array, or a table of a file.
        labels: class numbers ``(N)``, ``(N, d1, ...)``, ``(N, T)``; or zeros and ones of the shape of the logits, which are one-hot
            rows, or with ``task="multilabel"`` any number of labels a row.
        watch: a function that is called with what is being done, how much of it is done, and of how much.
        input: what the values are: ``"logits"``, ``"probs"`` or ``"logprobs"``. It is never guessed.
        task: ``"multiclass"``, one label a row; ``"multilabel"`` or ``"binary"``, any number of labels a row; ``"lm"``, one label a
            token.
        shift: whether the logits of a token are about the next one: the first label and the last logits are dropped.
        dim: the class axis; by default 1, and the last for language models.
        class_dim: the same as ``dim``.
        ignore_index: what has this label counts for nothing.
        weight: class weights ``(C)`` of the training loss.
        label_smoothing: ``ε`` of the training loss, in [0, 1].
        class_names: C names.
        top: how many of the worst examples, suspected label errors and, of many, classes to keep.
        suspects: how suspected label errors are chosen: ``"self-confidence"``, the lowest probabilities of a label that is not
            predicted, or ``"confident-learning"``, those by which their number is estimated.
        bytes: how many bytes the text of the tokens has, for the loss per byte.

    Returns:
        A :class:`Report`, whose ``numbers`` are explained by ``DEFINITIONS``.

    Raises:
        TypeError: an argument that does not exist.
        FileError: shapes that do not belong together, labels that are no classes, rows without a softmax.
        OptionError: an option that is not allowed.

    >>> report = score(np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), [0, 1, 1])
    >>> round(report.numbers["nll_nats_mean"], 4), report.worst[0].row
    (0.4149, 2)
    """
    if dim is not None and class_dim is not None:
        raise OptionError("class_dim", "is the same as dim: give one of them")
    try:
        options = ScoreOptions(
            input=input, task=task, shift=shift, class_dim=dim if class_dim is None else class_dim,
            ignore_index=ignore_index, weight=None if weight is None else read_array("weight", weight).astype(np.float64),
            label_smoothing=label_smoothing, class_names=class_names, top=top, suspects=suspects, bytes=bytes,
        )  # fmt: skip
        first, second = read_pair(("logits", "labels"), logits, labels, class_names)
        if second is None:
            type_error("labels", "an array or a list", labels)
        _refuse_empty(first, second)
        return Scoring(first, second, options, watch or _unwatched).report()
    except OptionError as error:
        if error.option == "class_dim" and dim is not None:  # a refusal names the argument that was given
            raise OptionError("dim", error.problem) from None
        raise


def _unwatched(doing: str, done: int, of: int) -> None:
    pass


def _refuse_empty(*tables: RowArray) -> None:
    for name, table in zip(("logits", "labels"), tables, strict=True):
        if 0 in table.shape:
            raise FileError(f"{name}: must hold at least one row, got shape {table.shape}")


class Scoring:
    """One scoring: the parts that look at every block, and how their numbers become a report."""

    def __init__(self, logits: RowArray, labels: RowArray, options: ScoreOptions, watch: OnProgress) -> None:
        self.options, self.layout = options, decision_layout(logits, labels, options)
        self.reader, self.watch = Reader(logits, labels, self.layout, options), watch
        self.columns = self.layout.axis is None
        self.size = self.layout.classes
        self.names = _class_names(logits, options, self.size)
        if options.weight is not None:
            check_weight_count(options.weight, self.size, logits.name)
        self.loss, self.accuracy, self.brier, self.calibration = Loss(options), Accuracy(), Brier(), Calibration()
        self.classes, self.worst = (
            Classes(self.size, self.layout.class_of if self.columns else None),
            Largest(options.top),
        )
        self.exact = ExactMatch() if self.columns else None
        # The label of a token is the text itself, which cannot be wrong.
        self.suspects = Suspects(options.suspects) if options.task != "lm" else None
        self.tempered: BeforeAndAfter | None = None

    def report(self) -> Report:
        """Read the file and make the report."""
        rows = len(self.reader.logits)
        temperature = fit(self.reader, lambda step: self.watch("fitting the temperature", step, 0))
        self.tempered = None if temperature is None else BeforeAndAfter(temperature)
        parts: list[Any] = [self.loss, self.accuracy, self.brier, self.calibration, self.classes]
        parts += filter(None, (self.exact, self.suspects, self.tempered))
        with np.errstate(over="ignore"):  # logits further apart than float64 reaches cost inf
            for block in self.reader.blocks(lambda done: self.watch("scoring", done, rows)):
                for part in parts:
                    part.add(block)
                self.worst.add(block, block.nll)
        if not self.loss.decisions:
            raise FileError(
                f"{self.reader.labels.name}: every label is missing or ignore_index={self.options.ignore_index}; nothing to score"
            )
        suspects = self.suspects.examples(self.classes) if self.suspects else []
        worst = self.worst.examples()
        numbers = {**self._counts(), **self._losses(), **self._decisions(), **self._probabilities()}
        numbers["suspected_label_errors"] = len(suspects) if self.suspects else None
        return Report(
            settings=self._settings(),
            numbers=numbers,
            class_names=self.names,
            classes=self.classes.rows(),
            bins=self.calibration.bins(),
            worst=worst,
            suspects=suspects[: self.options.top],
            confusion=self.classes.confusion,
            ids=self._ids((*worst, *suspects[: self.options.top])),
            remarks=self.reader.value_range.warnings() + self._remarks(numbers),
            source=self.reader,
        )

    def _ids(self, examples: Sequence[Example]) -> dict[int, str]:
        """Name the rows that are mentioned."""
        names = self.reader.logits.ids
        return {example.row: names[example.row] for example in examples} if len(names) else {}

    def _settings(self) -> dict[str, Any]:
        options = asdict(self.options)
        del options["class_names"]
        options["class_dim"] = self.layout.of_class if self.columns else self.layout.axis
        options["positions"] = list(self.layout.positions)
        options["weight"] = None if self.options.weight is None else self.options.weight.tolist()
        return {"logits": _described(self.reader.logits), "labels": _described(self.reader.labels), **options}

    def _counts(self) -> dict[str, float | int | None]:
        return {
            "rows": len(self.reader.logits),
            "decisions": self.loss.decisions,
            "ignored": self.reader.ignored,
            "classes": self.size,
        }

    def _losses(self) -> dict[str, float | int | None]:
        plain, trained, bit = self.loss.plain, self.loss.trained, math.log(2)
        nll, prior = plain.value, self.classes.prior_entropy
        uniform = expected_initial_loss(self.layout.choices)
        lm, length = self.options.task == "lm", self.options.bytes
        return {
            "nll_nats_mean": nll,
            "nll_nats_standard_error": plain.standard_error,
            "nll_bits_mean": nll / bit,
            "nll_bits_standard_error": plain.standard_error / bit,
            "infinite": self.loss.infinite,
            "loss_nats_mean": trained.value if trained else None,
            "loss_nats_standard_error": trained.standard_error if trained else None,
            "perplexity": None if self.columns else math.exp(nll) if nll < 709 else math.inf,
            "bits_per_token": nll / bit if lm else None,
            "bits_per_byte": nll * self.loss.decisions / bit / length if length else None,
            "uniform_nll_nats": uniform,
            "prior_nll_nats": prior,
            "skill_over_uniform": 1 - nll / uniform if uniform else None,
            "skill_over_prior": 1 - nll / prior if prior else None,
        }

    def _decisions(self) -> dict[str, float | int | None]:
        accuracy = self.accuracy
        return {
            "accuracy": accuracy.first.value,
            "accuracy_standard_error": accuracy.first.standard_error,
            "top5_accuracy": accuracy.top5.value if self.layout.choices > 5 else None,
            "exact_match": self.exact.share if self.exact else None,
            "macro_f1": self.classes.macro_f1,
        }

    def _probabilities(self) -> dict[str, float | int | None]:
        tried = self.tempered if self.tempered and self.tempered.decisions else None
        scale = 0.5 if self.columns else 1.0  # the two classes of a yes or no give the same square twice
        return {
            "brier": scale * self.brier.mean.value,
            "calibration_error": self.calibration.error,
            "temperature": self.tempered.temperature if self.tempered else None,
            "decisions_odd_rows": tried.decisions if tried else None,
            "odd_rows_nll_nats_before": tried.nll[0].value if tried else None,
            "odd_rows_nll_nats_after": tried.nll[1].value if tried else None,
            "odd_rows_calibration_error_before": tried.calibration[0].error if tried else None,
            "odd_rows_calibration_error_after": tried.calibration[1].error if tried else None,
        }

    def _remarks(self, numbers: dict[str, Any]) -> list[str]:
        remarks = []
        if numbers["infinite"]:
            remarks.append(
                f"{numbers['infinite']} decisions give their true class probability 0, so the cross entropy is infinite."
            )
        elif numbers["nll_nats_mean"] > numbers["uniform_nll_nats"]:
            remarks.append("The cross entropy is above that of finding all classes equally likely.")
        elif numbers["nll_nats_mean"] > numbers["prior_nll_nats"]:
            remarks.append("The cross entropy is above H(prior): the class frequencies alone would do better.")
        temperature = numbers["temperature"]
        if len(self.reader.logits) < 2 or numbers["infinite"]:
            pass  # nothing to fit
        elif temperature is None:
            remarks.append("No temperature could be fitted: the even rows hold no labels that count.")
        elif not LIMITS[0] * 1.001 < temperature < LIMITS[1] * 0.999:
            why = "surer predictions always cost less" if temperature < 1 else "equal probabilities would cost less"
            remarks.append(f"The temperature ran into its limit of {temperature:g}: on the even rows {why}.")
        axes = [axis for axis in class_axes(self.reader.logits, self.reader.labels) if axis > 0]
        if len(axes) > 1 and self.options.class_dim is None and self.layout.axis is not None:
            remarks.append(
                f"The classes could lie in axis {' or '.join(map(str, axes))}; axis {self.layout.axis} was taken."
            )
        missing = self.classes.missing
        if missing and self.options.task != "lm":
            remarks.append(
                f"{missing} of the {self.size} classes {'does' if missing == 1 else 'do'} not occur among the labels."
            )
        if self.reader.soft:
            remarks.append(
                "The labels are soft: the cross entropy is −Σ t ln p, and the label of a row its likeliest class."
            )
        if self.suspects and not self.suspects.complete:
            remarks.append("There are more suspected label errors than were counted.")
        return remarks


def _described(table: RowArray) -> dict[str, Any]:
    return {"name": table.name, "shape": list(table.shape), "dtype": table.dtype}


def _class_names(logits: RowArray, options: ScoreOptions, size: int) -> tuple[str, ...]:
    names = (logits.columns if len(logits.columns) == size else None) or options.class_names
    if names is None:
        return tuple(map(str, range(size)))
    if len(names) != size:
        raise OptionError("class_names", f"names {len(names)}, but {logits.name} has {size} classes")
    return tuple(names)
