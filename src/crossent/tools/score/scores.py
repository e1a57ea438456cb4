"""The scores of a file: plain numbers, under names that state their units."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossent.tools.printable import printable_json
from crossent.tools.score.measures import Bin, ClassRow, Example

SCHEMA = "crossent.score/1"

DEFINITIONS = {
    "rows": "rows of the file",
    "decisions": "labels that count: rows, tokens or pixels; with several labels a row, rows times classes",
    "ignored": "labels equal to ignore_index, which count for nothing",
    "classes": "C",
    "nll_nats_mean": "cross entropy, the mean of -ln p(true)",
    "nll_nats_standard_error": "of that mean; a row of the file is one draw",
    "nll_bits_mean": "cross entropy in bits, -log2 p(true)",
    "nll_bits_standard_error": "of that mean",
    "infinite": "decisions whose true class has probability 0, so that the mean is infinite",
    "loss_nats_mean": "the loss as trained, with class weights and label smoothing",
    "loss_nats_standard_error": "of that mean",
    "perplexity": "e to the cross entropy",
    "bits_per_token": "cross entropy in bits of a token",
    "bits_per_byte": "the cross entropy of all tokens in bits, divided by the bytes given",
    "uniform_nll_nats": "cross entropy if all classes are equally likely: ln C, and ln 2 for yes or no",
    "prior_nll_nats": "cross entropy of these labels' own frequencies, H(prior)",
    "skill_over_uniform": "1 − cross entropy / uniform",
    "skill_over_prior": "1 − cross entropy / H(prior): 0 knows the frequencies only, 1 knows everything",
    "accuracy": "how often the most probable class is the true one",
    "accuracy_standard_error": "of that mean",
    "top5_accuracy": "how often the true class is among the five most probable",
    "exact_match": "rows of which every yes and no is right",
    "macro_f1": "the mean over classes of 2·precision·recall / (precision + recall); classes that occur or are named",
    "brier": "the mean of Σ_k (p_k − t_k)², from 0 to 2; with several labels a row of (p − t)², from 0 to 1",
    "calibration_error": "expected calibration error: of the most probable class, in 15 equal-width bins",
    "temperature": "the T with the lowest cross entropy of softmax(x / T), fitted on the even rows",
    "decisions_odd_rows": "decisions of the odd rows, on which T is tried",
    "odd_rows_nll_nats_before": "cross entropy of the odd rows as they are",
    "odd_rows_nll_nats_after": "cross entropy of the odd rows at T",
    "odd_rows_calibration_error_before": "expected calibration error of the odd rows as they are",
    "odd_rows_calibration_error_after": "expected calibration error of the odd rows at T",
    "suspected_label_errors": "estimated wrong labels: another class has most, and at least its usual probability",
}


@dataclass(frozen=True, repr=False)
class Scores:
    """The scores of a file of logits. ``Report`` says what each holds."""

    settings: dict[str, Any]
    numbers: dict[str, float | int | None]
    class_names: tuple[str, ...]
    classes: list[ClassRow]
    bins: list[Bin]
    worst: list[Example]
    suspects: list[Example]
    remarks: list[str]
    confusion: list[list[int]] | None = None
    ids: dict[int, str] = field(default_factory=dict)

    @property
    def columns(self) -> bool:
        """Whether a row has several labels, and an example is the yes or no of one class."""
        return bool(self.settings["task"] == "multilabel")

    def costliest(self, most: int) -> list[ClassRow]:
        """Return the classes; of more than so many the first ``top`` by their share of the loss."""
        if len(self.classes) <= most:
            return self.classes
        shares = np.nan_to_num([row.loss_share for row in self.classes])
        return [self.classes[k] for k in np.argsort(-shares, kind="stable")[: max(self.settings["top"], 1)]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with None for what is not finite; of more than 1000 classes the costliest."""
        document = {
            "schema": SCHEMA,
            "settings": self.settings,
            "numbers": self.numbers,
            "definitions": {key: DEFINITIONS[key] for key in self.numbers},
            "remarks": self.remarks,
            "classes": [{"name": self.class_names[row.label], **row._asdict()} for row in self.costliest(1000)],
            "confusion": self.confusion,
            "calibration_bins": [each._asdict() for each in self.bins],
            "worst": [{"id": self.ids.get(each.row), **each._asdict()} for each in self.worst],
            "suspected_label_errors": [{"id": self.ids.get(each.row), **each._asdict()} for each in self.suspects],
        }
        finite: dict[str, Any] = _finite(document)
        return finite

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON."""
        return printable_json(json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))


def places(report: Scores) -> tuple[int, ...]:
    """Give the sizes of the axes that say where in a row a decision is, beside the class it is about."""
    positions: list[int] = report.settings["positions"]
    if not report.columns:
        return tuple(positions)
    axis = report.settings["class_dim"] - 1
    return (*positions[:axis], *positions[axis + 1 :])


def class_and_place(report: Scores, example: Example) -> tuple[int, tuple[int, ...]]:
    """Say which class an example is about, its own or that of its yes or no, and where in its row it is."""
    at = tuple(int(k) for k in np.unravel_index(example.position, report.settings["positions"] or (1,)))
    if not report.columns:
        return example.true, at
    axis = report.settings["class_dim"] - 1
    return at[axis], (*at[:axis], *at[axis + 1 :])


def knows_more_than_frequencies(report: Scores) -> bool:
    """Whether the predictions say more than how frequent the classes are: by their loss, or by how many are right."""
    skill, accuracy = report.numbers["skill_over_prior"], report.numbers["accuracy"]
    frequency = [row.frequency for row in report.classes]
    guess = sum(max(f, 1 - f) for f in frequency) / len(frequency) if report.columns else max(frequency)
    return (skill is not None and skill > 0) or (accuracy is not None and accuracy > guess)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
