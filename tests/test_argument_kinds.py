"""Every public function with each argument of a wrong kind: what is refused names the argument, and nothing else is told.

A function may take such a value, as ``options=`` takes anything. What it may not do is fail inside with the words of whatever
came across the value first, such as ``'<' not supported``.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import crossent
from crossent.core import settings

X, Y, HOT = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([[1.0, 0, 0, 1, 0]] * 4)
HIDDEN, HEAD = torch.randn(4, 3), torch.randn(5, 3)


class Odd:
    def __repr__(self):
        return "odd"


KINDS: dict[str, Any] = {
    "list": [0.3, 0.7], "empty list": [], "ragged list": [[1, [2]], 3], "texts": ["a", "b"], "text": "abc", "bytes": b"x",
    "None": None, "dict": {"a": 1}, "set": {1, 2}, "array": np.ones(3), "bools": np.array([True, False]), "object": Odd(),
    "class": int, "complex": 1j, "float": 1.5, "nan": float("nan"), "tensor": torch.ones(7),
    "meta tensor": torch.ones(5, device="meta"),
}  # fmt: skip

CALLS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"input": X, "target": Y},
    "binary_cross_entropy_with_logits": {"input": X, "target": HOT},
    "linear_cross_entropy": {"input": HIDDEN, "linear_weight": HEAD, "target": Y},
    "linear_cross_entropy_stats": {"input": HIDDEN, "linear_weight": HEAD, "target": Y},
    "linear_plan": {"input": HIDDEN, "linear_weight": HEAD, "target": Y},
    "multilabel_cross_entropy": {"input": X, "labels": HOT},
    "focal_loss": {"input": X, "target": Y},
    "sigmoid_focal_loss": {"input": X, "target": HOT},
    "distillation_loss": {"student_logits": X, "teacher_logits": X + 1},
    "contrastive_cross_entropy": {"a": HIDDEN, "b": HIDDEN + 1},
    "cross_entropy_stats": {"input": X, "target": Y},
    "class_weights": {"counts": [1, 2]},
    "prior_entropy": {"counts": [1, 2]},
    "expected_initial_loss": {"num_classes": 3},
    "double_softmax_floor": {"num_classes": 3},
    "shared_denominator": {"target": Y},
    "choose_implementation": {"logits": X},
    "check": {"logits": X, "target": Y},
    "score": {"logits": X, "labels": Y},
    "explain": {"logits": [1.0, 2.0, 0.0], "target": 0},
    "check_loss": {"fn": torch.nn.CrossEntropyLoss()},
    "debug": {},
    "defer": {"module": torch.nn.Linear(2, 2)},
    "undefer": {"module": torch.nn.Linear(2, 2)},
    "CrossEntropyLoss": {},
    "BCEWithLogitsLoss": {},
    "LinearCrossEntropyLoss": {"in_features": 3, "num_classes": 5},
    "FocalLoss": {},
    "SigmoidFocalLoss": {},
    "MultilabelCrossEntropyLoss": {},
    "DistillationLoss": {},
    "Focal": {}, "GCE": {}, "Poly1": {}, "SCE": {}, "Taylor": {}, "BalancedFocal": {}, "Asymmetric": {},
    "VocabShard": {"group": None, "start": 0, "classes": 5},
    "Teacher": {"input": HIDDEN, "weight": HEAD},
}  # fmt: skip

SAID_OTHERWISE = {
    "input": ("logits", "target"), "labels": ("logits",), "logits": ("values", "target"), "target": ("labels",), "fn": ("takes",),
    "student_logits": ("teacher_logits",), "losses": ("loss is called",), "scale": ("logits",),
}  # fmt: skip
"""Shapes that differ may be told of either of two arguments."""


def arguments(function: Callable[..., Any]) -> list[str]:
    found: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            options = str(parameter.annotation).partition("[")[2].rpartition("]")[0].rpartition(".")[2]
            found += getattr(settings, options).__annotations__ if options else ()
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def called(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Call a function, and what it made with the tensors of a batch."""
    result = function(**given)
    name = function.__name__
    if isinstance(result, torch.nn.Module) and name in CALLS and name.endswith("Loss"):
        binary = name in ("BCEWithLogitsLoss", "SigmoidFocalLoss", "MultilabelCrossEntropyLoss")
        batch = {"DistillationLoss": (X, X + 1), "LinearCrossEntropyLoss": (HIDDEN, Y)}
        result(*batch.get(name, (X, HOT if binary else Y)))
    elif name == "debug":
        result.off()
    elif name == "Teacher":
        crossent.linear_cross_entropy(HIDDEN, HEAD, result)
    elif isinstance(result, crossent.Penalty):
        crossent.cross_entropy(X, Y, penalty=result)
    elif isinstance(result, crossent.BinaryPenalty):
        crossent.binary_cross_entropy_with_logits(X, HOT, penalty=result)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_refused_is_named(name):
    function = getattr(crossent, name)
    called(function, CALLS[name])
    nameless = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for argument in arguments(function):
            for kind, value in KINDS.items():
                if (argument, kind) == ("watch", "class"):
                    continue  # a class can be called, and fails when it is
                try:
                    called(function, {**CALLS[name], argument: value})
                except Exception as error:
                    said = str(error)
                    named = any(each in said for each in (argument, *SAID_OTHERWISE.get(argument, ())))
                    if not named or len(said.splitlines()) > 5:
                        nameless.append(f"{argument}={kind}: {type(error).__name__}: {said[:200]}")
    assert not nameless, "\n".join(nameless)


def test_every_public_function_is_tried():
    functions = {name for name in crossent.__all__ if callable(getattr(crossent, name, None))}
    results = {"CrossEntropyStats", "Explanation", "Finding", "LinearPlan", "Logits", "LossReport"}  # nobody makes them
    no_arguments = {"patch", "unpatch", "implementations", "MAE", "Penalty", "BinaryPenalty"}
    assert functions - results - no_arguments == set(CALLS)
    assert len(CALLS) == len([name for name in CALLS if hasattr(sys.modules["crossent"], name)])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: crossent.sigmoid_focal_loss(X, HOT, alpha=[0.25, 0.75]), "alpha must be a number, got builtins.list"),
        (lambda: crossent.cross_entropy(X, Y, torch.ones(5, device="meta")), "weight must lie on the logits' device, cpu, got "),
        (lambda: crossent.linear_cross_entropy(HIDDEN, HEAD.to("meta"), Y), "linear_weight must lie on the logits' device"),
        (lambda: crossent.cross_entropy(X, Y, inplace_backward="no"), "inplace_backward must be True or False, got"),
        (lambda: crossent.score(X, Y, top="3"), "top must be an int, got builtins.str: '3'"),
        (lambda: crossent.check(X, Y, label_smoothing=[0.1]), "label_smoothing must be a number, got builtins.list"),
    ],
)  # fmt: skip
def test_the_argument_the_rule_and_what_came_are_told(call, said):
    with pytest.raises((TypeError, RuntimeError), match="must") as refused:
        call()
    assert said in str(refused.value)
