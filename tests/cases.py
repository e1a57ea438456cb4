"""The inputs on which every law is tried: logits, target and settings of the softmax losses and of the sigmoid losses.

They are flat and peaky, contain infinities, huge logits, ignored rows, one class, odd sizes and no rows at all.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch

import crossent
from crossent import reference
from crossent.core import penalties
from crossent.core.settings import LogitOptions, Settings
from crossent.core.target import SPECIAL as SPECIAL_NAMES
from crossent.impl import load


def _runs_here(name: str) -> bool:
    """Whether an implementation is there, takes tensors of a CPU, as Triton's does in its interpreter, and is exact.

    Torch's own operators, for devices without kernels, keep torch's corners: tests/impl/test_builtin.py.
    """
    there = crossent.implementations()[name] is None and load(name).refuses(torch.zeros(1, 1)) is None
    return there and not load(name).differentiable


IMPLEMENTATIONS = [name for name in crossent.implementations() if _runs_here(name)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF = float("inf")


class Case(NamedTuple):
    """A call: numbers in float64, integers as int64, and the keyword arguments (arrays for tensors)."""

    name: str
    logits: np.ndarray
    target: np.ndarray
    settings: dict[str, Any]


def _logits(shape: tuple[int, ...], scale: float = 2.0, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


def _labels(shape: tuple[int, ...], num_classes: int, ignored: float = 0.0, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape)
    labels[rng.random(shape) < ignored] = -100
    return labels


def _weights(shape: tuple[int, ...], seed: int = 2) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).random(shape))


def _one_hot(num_rows: int, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[_labels((num_rows,), num_classes)]


def softmax_cases() -> list[Case]:
    """List the calls of ``cross_entropy`` on which laws are tried, without a reduction."""
    c5 = _weights((5,))
    masked = _logits((6, 5))
    masked[:, 1:3] = -INF
    masked_labels = np.array([0, 3, 4, 0, 3, -100])
    unwanted, wanted, unknown = c5.copy(), _weights((7, 5)), np.zeros((7, 5))
    unwanted[0], wanted[:, 0], unknown[:, 0] = INF, 0.0, [np.nan, INF, -INF, 0, 1, np.nan, INF]
    garbage = _logits((6, 5))
    garbage[1], garbage[4, 2] = np.nan, INF
    confident = np.zeros((6, 5))
    confident[np.arange(6), np.arange(6) % 5] = [5, 10, 15, 20, 30, 60]
    return [
        Case("flat", _logits((7, 5), 0.01), _labels((7,), 5), {}),
        Case("plain", _logits((7, 5)), _labels((7,), 5), {}),
        Case("peaky", _logits((33, 65), 12), _labels((33,), 65), {}),
        Case("wide", _logits((3, 4099), 3), _labels((3,), 4099), {}),
        Case("unbatched", _logits((5,)), np.array(3), {}),
        Case("unbatched probabilities", _logits((5,)), _weights((5,)), {}),
        Case("one class", _logits((4, 1)), np.zeros(4, np.int64), {}),
        Case("one class, one ignored", _logits((4, 1)), np.array([0, -100, 0, 0]), {}),
        Case("two classes", _logits((9, 2)), _labels((9,), 2), {}),
        Case("no rows", _logits((0, 5)), _labels((0,), 5), {}),
        Case("no rows, probabilities", _logits((0, 5)), _weights((0, 5)), {"label_smoothing": 0.1}),
        Case("pixels", _logits((2, 5, 3, 4)), _labels((2, 3, 4), 5, 0.3), {}),
        Case("no pixels", _logits((2, 5, 0)), _labels((2, 0), 5), {}),
        Case("sequence", _logits((2, 5, 7)), _labels((2, 7), 5), {"weight": c5}),
        Case("volume", _logits((2, 5, 2, 3, 2)), _weights((2, 5, 2, 3, 2)), {"weight": c5, "label_smoothing": 0.2}),
        Case("ignored", _logits((7, 5)), _labels((7,), 5, 0.5), {}),
        Case("ignored class", _logits((7, 5)), _labels((7,), 5), {"ignore_index": 2}),
        Case("ignored 255", _logits((4, 5)), np.array([255, 1, 2, 255]), {"ignore_index": 255}),
        Case("all ignored", _logits((3, 5)), np.full(3, -100), {}),
        Case("all ignored, smoothed", _logits((3, 5)), np.full(3, -100), {"weight": c5, "label_smoothing": 0.1}),
        Case("ignored rows of garbage", garbage, np.array([0, -100, 1, 2, -100, 3]), {}),
        Case(
            "ignored rows of garbage, smoothed",
            garbage,
            np.array([0, -100, 1, 2, -100, 3]),
            {"label_smoothing": 0.1, "weight": c5},
        ),
        Case("weighted", _logits((7, 5)), _labels((7,), 5, 0.3), {"weight": c5}),
        Case("zero weights", _logits((7, 5)), _labels((7,), 5), {"weight": c5 * (np.arange(5) > 1)}),
        Case("smoothed", _logits((7, 5)), _labels((7,), 5, 0.3), {"label_smoothing": 0.1}),
        Case("smoothed, weighted", _logits((7, 5)), _labels((7,), 5, 0.3), {"label_smoothing": 0.3, "weight": c5}),
        Case("smoothed to uniform", _logits((7, 5)), _labels((7,), 5), {"label_smoothing": 1.0}),
        Case("probabilities", _logits((7, 5)), _weights((7, 5)), {}),
        Case("probabilities, peaky", _logits((33, 65), 12), _weights((33, 65)), {}),
        Case("probabilities, weighted", _logits((7, 5)), _weights((7, 5)), {"weight": c5}),
        Case("probabilities, smoothed", _logits((7, 5)), _weights((7, 5)), {"weight": c5, "label_smoothing": 0.1}),
        Case("probabilities of any sign", _logits((7, 5)), _logits((7, 5), 1, 5), {}),
        Case("one-hot", _logits((7, 5)), _one_hot(7, 5), {}),
        Case("rows without a label", _logits((7, 5)), _one_hot(7, 5) * (np.arange(7) % 2)[:, None], {}),
        Case("masked classes", masked, masked_labels, {}),
        Case("masked classes, one-hot", masked, np.eye(5)[[0, 3, 4, 0, 3, 4]], {}),
        Case("masked classes without weight", masked, masked_labels, {"weight": np.array([1, 0, 0, 2, 0.5])}),
        Case(
            "masked classes without weight, smoothed",
            masked,
            masked_labels,
            {"weight": np.array([1, 0, 0, 2, 0.5]), "label_smoothing": 0.1},
        ),
        Case("infinite weight of no label", _logits((7, 5)), 1 + _labels((7,), 4), {"weight": unwanted}),
        Case("infinite weight that nobody wants", _logits((7, 5)), wanted, {"weight": unwanted}),
        Case("garbage target without weight", _logits((7, 5)), wanted + unknown, {"weight": c5 * (np.arange(5) > 0)}),
        Case("impossible target", masked, np.array([1, 3, 2, 0, 1, 4]), {}),
        Case("impossible target, smoothed", masked, masked_labels, {"label_smoothing": 0.1}),
        Case("nothing possible", np.full((2, 3), -INF), np.array([0, 1]), {}),
        Case("too possible", np.array([[INF, 0.0, 1.0], [0.0, 1.0, 2.0]]), np.array([0, 1]), {}),
        Case("not a number", np.array([[np.nan, 0.0, 1.0], [0.0, 1.0, 2.0]]), np.array([1, 1]), {}),
        Case("huge", _logits((7, 5), 1e4), _labels((7,), 5), {}),
        Case("far away", _logits((7, 5)) - 1e4, _labels((7,), 5), {"label_smoothing": 0.1}),
        Case("confident", confident, np.arange(6) % 5, {}),
        Case("confident and wrong", confident, (np.arange(6) + 1) % 5, {}),
        Case("confident, one-hot", confident, np.eye(5)[np.arange(6) % 5], {}),
        Case("sample weights", _logits((7, 5)), _labels((7,), 5, 0.3), {"sample_weight": _weights((7,)), "weight": c5}),
        Case("pixel weights", _logits((2, 5, 3)), _weights((2, 5, 3)), {"sample_weight": _weights((2, 3))}),
        Case("last dimension", _logits((2, 3, 5)), _labels((2, 3), 5, 0.3), {"dim": -1}),
        Case(
            "last dimension, probabilities", _logits((2, 3, 5)), _weights((2, 3, 5)), {"dim": 2, "label_smoothing": 0.1}
        ),
        Case("first dimension", _logits((5, 2, 3)), _labels((2, 3), 5), {"dim": 0, "weight": c5}),
        Case("own denominator", _logits((7, 5)), _labels((7,), 5, 0.3), {"denominator": 11.0}),
        Case("zero for nothing", _logits((3, 5)), np.full(3, -100), {"empty": "zero"}),
    ]


def sigmoid_cases() -> list[Case]:
    """List the calls of ``binary_cross_entropy_with_logits`` on which laws are tried, without a reduction."""
    extreme = np.array([INF, -INF, INF, -INF, 1e4, -1e4, 120.0, -120.0, 0.0])
    sure, of_sure = np.round(_weights((7, 5))), _logits((7, 5))
    of_sure[sure == 1] = np.resize([np.nan, INF, -INF, 0.5], int(sure.sum()))
    return [
        Case("plain", _logits((7, 5)), _weights((7, 5)), {}),
        Case("number", _logits(()), _weights(()), {}),
        Case("no rows", _logits((0, 5)), _weights((0, 5)), {}),
        Case("hard", _logits((7, 5), 30), np.round(_weights((7, 5))), {}),
        Case("extreme", extreme, np.array([1.0, 0, 0, 1, 1, 0, 0, 1, 0.5]), {}),
        Case("any target", _logits((7, 5)), _logits((7, 5), 3, 5), {}),
        Case("weighted", _logits((7, 5)), _weights((7, 5)), {"weight": _weights((5,))}),
        Case("weighted rows", _logits((7, 5)), _weights((7, 5)), {"weight": _weights((7, 1))}),
        Case("pos_weight", _logits((7, 5)), _weights((7, 5)), {"pos_weight": 3 * _weights((5,))}),
        Case("pos_weight 0", _logits((7, 5)), _weights((7, 5)), {"pos_weight": np.zeros(1)}),
        Case("pos_weight 0 and garbage", of_sure, sure, {"pos_weight": np.zeros(1)}),
        Case("infinite pos_weight of no yes", _logits((7, 5)), np.zeros((7, 5)), {"pos_weight": np.full(1, INF)}),
        Case(
            "both", _logits((2, 5, 3)), _weights((2, 5, 3)), {"weight": _weights((3,)), "pos_weight": _weights((5, 1))}
        ),
        Case("sample weights", _logits((7, 5)), _weights((7, 5)), {"sample_weight": _weights((7,))}),
        Case("element weights", _logits((7, 5)), _weights((7, 5)), {"sample_weight": _weights((7, 5))}),
        Case("own denominator", _logits((7, 5)), _weights((7, 5)), {"denominator": 11.0}),
        Case("zero for nothing", _logits((0, 5)), _weights((0, 5)), {"empty": "zero"}),
    ]


PENALTIES = {
    "focal 2": crossent.Focal(2.0),
    "focal 0.5": crossent.Focal(0.5),
    "focal 1.5": crossent.Focal(1.5),
    "focal 0": crossent.Focal(0.0),
    "poly1": crossent.Poly1(2.0),
    "poly1 -0.5": crossent.Poly1(-0.5),
    "gce": crossent.GCE(0.7),
    "gce 0": crossent.GCE(0.0),
    "mae": crossent.MAE(),
    "sce": crossent.SCE(0.3, 0.7),
    "sce, only reverse": crossent.SCE(0.0, 1.0),
    "taylor": crossent.Taylor(3),
    "taylor 1": crossent.Taylor(1),
}
PENALTY_NAMES = [
    name
    for name, each in vars(penalties).items()
    if isinstance(each, type) and issubclass(each, crossent.Penalty) and name != "Penalty" and not name.startswith("_")
]
"""The penalties of the softmax losses that the library has."""


def special_settings() -> dict[str, dict[str, Any]]:
    """List what ``cross_entropy`` takes and torch's does not, for logits of shape (7, 5); class 2 may be masked."""
    some = np.array([True, True, False, True, True])
    each = (np.random.default_rng(8).random((7, 5)) < 0.7) | (np.arange(5) == np.arange(7)[:, None] % 5)
    return {
        **{name: {"penalty": penalty} for name, penalty in PENALTIES.items()},
        "hot": {"temperature": 2.5},
        "cold": {"temperature": 0.3},
        "soft cap": {"softcap": 1.5},
        "soft cap after the temperature": {"softcap": 1.5, "temperature": 2.5, "softcap_after_temperature": True},
        "bias": {"logit_bias": _logits((5,), 1, 3)},
        "bias of every logit": {"logit_bias": _logits((7, 5), 1, 3)},
        "impossible class": {"logit_bias": np.array([0.0, 0.5, -INF, 0.0, 0.0])},
        "margin": {"margin": 0.7},
        "class mask": {"class_mask": some},
        "class mask of every row": {"class_mask": each},
        "z-loss": {"z_loss": 0.3},
        "margin under a cap": {"margin": 0.7, "softcap": 2.0, "temperature": 0.5},
        "everything": {
            "temperature": 1.7, "softcap": 3.0, "logit_bias": _logits((7, 5), 1, 3), "margin": 0.4, "class_mask": some,
            "z_loss": 0.2, "penalty": crossent.Focal(1.5),
        },
        "margin and bias under a cap after the temperature": {
            "margin": 0.7, "softcap": 2.0, "temperature": 0.5, "softcap_after_temperature": True,
            "logit_bias": _logits((5,), 1, 3),
        },
        "everything else": {
            "temperature": 0.6, "logit_bias": _logits((5,), 1, 3), "class_mask": each, "z_loss": 0.01,
            "penalty": crossent.GCE(0.4),
        },
    }  # fmt: skip


SPECIAL = special_settings()
NUMBER_VALUES: dict[str, Any] = {"temperature": 2.0, "softcap": 4.0, "margin": 0.5, "z_loss": 0.25}
"""For each number of a softmax loss that torch does not have a value that changes results, and is exact in every dtype."""


def own_numbers() -> list[str]:
    """List the numbers of a softmax loss that people give and torch does not have, beside the penalty."""
    said = {*LogitOptions.__annotations__}
    rows = dataclasses.fields(Settings)
    return [row.name for row in rows if row.name in said and row.metadata["schema"] is not None]


def _hold_to_the_record() -> None:
    """Say what is missing here: every law, and every table of values in other files, is made of what stands in this file."""
    tried = {name for settings in SPECIAL.values() for name in settings}
    for what, missing in (
        ("a case in special_settings()", {*SPECIAL_NAMES["cross_entropy"]} - tried),
        (
            "a case in PENALTIES",
            {*PENALTY_NAMES} - {type(each).__name__ for each in PENALTIES.values()},
        ),
        ("a value in NUMBER_VALUES", {*own_numbers()} - {*NUMBER_VALUES}),
    ):
        if missing:
            raise AssertionError(f"tests/cases.py needs {what} for {', '.join(sorted(missing))}")


_hold_to_the_record()


def family_cases() -> list[Case]:
    """List the calls of ``cross_entropy`` with every special setting, on indices and probabilities, plain and weighted."""
    c5, u = _weights((5,)), _weights((7,), 6)
    y = np.array([0, 1, -100, 3, 4, 0, 1])
    t = _weights((7, 5)) * (np.arange(5) != 2)
    more = {"weight": c5, "label_smoothing": 0.2, "sample_weight": u}
    cases = []
    for name, settings in SPECIAL.items():
        cases += [
            Case(name, _logits((7, 5)), y, settings),
            Case(f"{name}, probabilities", _logits((7, 5)), t, settings),
        ]
        if name != "impossible class":
            cases.append(Case(f"{name}, weighted", _logits((7, 5)), y, settings | more))
        cases.append(
            Case(f"{name}, probabilities, weighted", _logits((7, 5)), t, settings | more | {"label_smoothing": 0.0})
        )
        if name != "impossible class":
            cases.append(Case(f"{name}, probabilities, smoothed", _logits((7, 5)), t, settings | more))
    garbage = _logits((7, 5))
    garbage[2], garbage[:, 2] = np.nan, [INF, -INF, np.nan, 1e30, np.nan, 0, INF]
    mask = {"class_mask": np.arange(5) != 2}
    sure = np.zeros((6, 5))
    sure[np.arange(6), np.arange(6) % 5] = [5, 10, 15, 20, 30, 60]
    cases += [
        Case("garbage in masked classes and ignored rows", garbage, y, mask | {"label_smoothing": 0.1}),
        Case(
            "garbage, everything",
            garbage,
            y,
            mask | {"softcap": 5.0, "margin": 0.1, "z_loss": 0.1, "penalty": crossent.Focal()},
        ),
        Case("peaky everything", _logits((7, 5), 12), y, SPECIAL["everything"]),
        Case("a row wants what it does not allow", _logits((4, 5)), np.array([2, 0, -100, 2]), mask),
        Case("and pays little", _logits((4, 5)), np.array([2, 0, -100, 2]), mask | {"penalty": crossent.MAE()}),
        Case(
            "a row allows nothing",
            _logits((2, 5)),
            np.array([1, 0]),
            {"class_mask": np.array([[False] * 5, [True] * 5])},
        ),
        Case(
            "one class is left",
            _logits((3, 5)),
            np.array([1, 1, 1]),
            {"class_mask": np.arange(5) == 1, "penalty": crossent.Focal(0.5)},
        ),
        Case(
            "all ignored",
            _logits((3, 5)),
            np.full(3, -100),
            {"z_loss": 0.1, "penalty": crossent.GCE(), "label_smoothing": 0.1},
        ),
        Case("no rows", _logits((0, 5)), _labels((0,), 5), {"temperature": 2.0, "logit_bias": c5}),
        Case(
            "no rows, probabilities",
            _logits((0, 5)),
            _weights((0, 5)),
            {"class_mask": np.ones((0, 5), bool), "z_loss": 0.1},
        ),
        Case(
            "unbatched", _logits((5,)), np.array(3), {"logit_bias": c5, "class_mask": np.arange(5) > 0, "margin": 0.5}
        ),
        Case("unbatched probabilities", _logits((5,)), _weights((5,)), {"logit_bias": c5, "margin": 0.5}),
        Case("one class", _logits((4, 1)), np.zeros(4, np.int64), {"penalty": crossent.Focal(0.5), "z_loss": 0.1}),
        Case(
            "pixels",
            _logits((2, 5, 3, 4)),
            _labels((2, 3, 4), 5, 0.3),
            {
                "logit_bias": _logits((2, 5, 3, 4), 1, 3),
                "class_mask": _weights((2, 5, 3, 4)) < 0.9,
                "penalty": crossent.MAE(),
                "weight": c5,
            },
        ),
        Case(
            "last dimension",
            _logits((2, 3, 5)),
            _labels((2, 3), 5, 0.3),
            {
                "dim": -1,
                "logit_bias": _logits((2, 3, 5), 1, 3),
                "class_mask": np.arange(5) > -1,
                "penalty": crossent.Focal(),
            },
        ),
        Case(
            "first dimension, probabilities",
            _logits((5, 2, 3)),
            _weights((5, 2, 3)),
            {"dim": 0, "logit_bias": c5, "class_mask": _weights((5, 2, 3)) < 2, "margin": 0.3, "label_smoothing": 0.1},
        ),
        Case("own denominator", _logits((7, 5)), y, {"denominator": 11.0, "penalty": crossent.Poly1(), "z_loss": 0.1}),
        Case(
            "zero for nothing",
            _logits((3, 5)),
            np.full(3, -100),
            {"empty": "zero", "penalty": crossent.Focal(), "margin": 1.0},
        ),
        Case(
            "hopeless under a cap", np.array([[1e9, -1e9, 0.0], [-INF, 0.0, 1.0]]), np.array([1, 2]), {"softcap": 2.0}
        ),
        Case(
            "infinitely far",
            np.array([[0.0, -INF, 1.0], [1e4, 0.0, -1e4]]),
            np.array([2, 0]),
            {"penalty": crossent.Taylor(), "z_loss": 0.1},
        ),
    ]
    for name, penalty in PENALTIES.items():
        cases += [
            Case(f"confident, {name}", sure, np.arange(6) % 5, {"penalty": penalty}),
            Case(f"confident and wrong, {name}", sure, (np.arange(6) + 1) % 5, {"penalty": penalty}),
            Case(f"confident, one-hot, {name}", sure, np.eye(5)[np.arange(6) % 5], {"penalty": penalty}),
            Case(
                f"extreme, {name}", _logits((7, 5), 1e4), np.arange(7) % 5, {"penalty": penalty, "label_smoothing": 0.1}
            ),
        ]
    return cases


BINARY_SPECIAL = {
    **{name: {"penalty": penalty} for name, penalty in PENALTIES.items()},
    "asymmetric": {"penalty": crossent.Asymmetric(0.5, 3.0, 0.05)},
    "asymmetric, not clipped": {"penalty": crossent.Asymmetric(0.0, 1.0, 0.0)},
    "asymmetric, only clipped": {"penalty": crossent.Asymmetric(0.0, 0.0, 0.3)},
    "balanced focal": {"penalty": crossent.BalancedFocal(2.0, 0.25)},
    "smoothed": {"label_smoothing": 0.2},
    "masked": {"mask": _weights((4, 5), 9) < 0.6},
    "masked rows": {"mask": np.array([[True], [False], [True], [True]])},
    "ignored": {"ignore_index": -1.0},
    "along dim": {"dim": 0, "pos_weight": 3 * _weights((4,))},
    "binary everything": {
        "label_smoothing": 0.1,
        "mask": _weights((4, 5), 9) < 0.6,
        "ignore_index": -1.0,
        "weight": _weights((5,)),
        "dim": 1,
        "pos_weight": 3 * _weights((5,)),
        "penalty": crossent.Asymmetric(),
        "sample_weight": _weights((4,)),
    },
}


def binary_family_cases() -> list[Case]:
    """List the calls of ``binary_cross_entropy_with_logits`` with every special setting."""
    extreme = np.array([[INF, -INF, 1e4, -1e4, 40.0]] * 4)
    cases = []
    for name, settings in BINARY_SPECIAL.items():
        t = _weights((4, 5))
        if "ignore_index" in settings:
            t[0, 1:3] = -1
        cases += [
            Case(name, _logits((4, 5)), t, settings),
            Case(f"{name}, extreme", extreme, np.array([[1.0, 0.0, 0.0, 1.0, 1.0]] * 4), settings),
        ]
    garbage = _logits((4, 5))
    garbage[0, 1], garbage[2] = np.nan, INF
    ignored = _weights((4, 5))
    ignored[0, 1] = ignored[2] = 255
    everything = {
        "ignore_index": 255.0,
        "label_smoothing": 0.1,
        "penalty": crossent.Focal(0.5),
        "pos_weight": np.full(1, 2.0),
    }
    return [
        *cases,
        Case("ignored garbage", garbage, ignored, {"ignore_index": 255.0}),
        Case("ignored garbage, everything", garbage, ignored, everything),
        Case("all ignored", garbage, np.full((4, 5), 255.0), everything),
        Case("all ignored, zero", garbage, np.full((4, 5), 255.0), everything | {"empty": "zero"}),
        Case("number", _logits(()), _weights(()), {"penalty": crossent.Focal(), "mask": np.array(True)}),
        Case("no rows", _logits((0, 5)), _weights((0, 5)), {"mask": np.ones(5, bool)}),
        Case("channels", _logits((2, 5, 3)), _weights((2, 5, 3)), {"dim": 1, "pos_weight": _weights((5,)), "denominator": 7.0}),
    ]  # fmt: skip


def to_reference(settings: dict[str, Any]) -> dict[str, Any]:
    """Write settings as the reference takes them: with its own penalties."""
    penalty = settings.get("penalty")
    if penalty is None:
        return settings
    if isinstance(penalty, crossent.BalancedFocal):
        f = reference.focal(penalty.gamma)
        theirs: Any = reference.BinaryPenalty(
            reference.scaled(f, penalty.alpha), reference.scaled(f, 1 - penalty.alpha)
        )
    else:
        numbers = [int(v) if isinstance(penalty, crossent.Taylor) else v for v in penalty.parameters]
        theirs = getattr(reference, type(penalty).__name__.lower())(*numbers)
    return settings | {"penalty": theirs}


SOFTMAX, SIGMOID = softmax_cases(), sigmoid_cases()
FAMILY, BINARY_FAMILY = family_cases(), binary_family_cases()


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """Round the numbers of a case to a dtype, so that the reference sees what an implementation sees."""

    def through(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            return torch.from_numpy(value).to(dtype).double().numpy()
        return value

    settings = {k: through(v) for k, v in case.settings.items()}
    return case._replace(logits=through(case.logits), target=through(case.target), settings=settings)


def tensors(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Make tensors of a case: logits that require grad, target, settings."""

    def make(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(value.copy())
            return tensor.to(dtype) if tensor.is_floating_point() else tensor
        return value

    settings = {k: make(v) for k, v in case.settings.items()}
    return make(case.logits).requires_grad_(), make(case.target), settings


def law(cases: list[Case]) -> Any:
    """Parametrise a test over cases, by their names."""
    import pytest

    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


class _Custom(crossent.Penalty):
    def f(self, log_p):
        return -2 * log_p


LEFT_TO_TORCH: dict[str, dict[str, Any]] = {
    "a penalty of one's own": {"penalty": _Custom()},
    "a margin with probabilities": {"margin": 0.5, "soft": True},
    "a bias of the logits' shape": {"logit_bias": torch.zeros(4, 3)},
    "a mask of the logits' shape": {"class_mask": torch.ones(4, 3, dtype=torch.bool)},
    "a bias that requires grad": {"logit_bias": torch.zeros(3, requires_grad=True)},
}
"""What no kernel takes, for logits (4, 3): its settings, of which "soft" asks for probabilities."""
