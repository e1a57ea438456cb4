"""The cross-entropy family for PyTorch: exact, fast, and able to explain itself.

Names are imported when first used, so that ``import crossent`` costs nothing.
"""

from importlib import import_module
from typing import Any

from crossent._version import __version__

_HOME = {
    "Asymmetric": "penalties",
    "BCEWithLogitsLoss": "modules",
    "BalancedFocal": "penalties",
    "BinaryPenalty": "penalties",
    "CrossEntropyLoss": "modules",
    "CrossEntropyStats": "stats",
    "DistillationLoss": "modules",
    "Explanation": "explain.explanation",
    "Finding": "check.cards",
    "Focal": "penalties",
    "FocalLoss": "modules",
    "GCE": "penalties",
    "LinearCrossEntropyLoss": "modules",
    "LinearPlan": "linear",
    "LossReport": "check.audit",
    "MAE": "penalties",
    "MultilabelCrossEntropyLoss": "modules",
    "Penalty": "penalties",
    "Poly1": "penalties",
    "SCE": "penalties",
    "SigmoidFocalLoss": "modules",
    "Taylor": "penalties",
    "Teacher": "blocks",
    "binary_cross_entropy_with_logits": "functional",
    "check": "check",
    "check_loss": "check.audit",
    "choose_implementation": "impl",
    "class_weights": "helpers",
    "contrastive_cross_entropy": "family",
    "cross_entropy": "functional",
    "cross_entropy_stats": "stats",
    "debug": "check.debug",
    "distillation_loss": "family",
    "double_softmax_floor": "helpers",
    "expected_initial_loss": "helpers",
    "explain": "explain",
    "focal_loss": "family",
    "implementations": "impl",
    "linear_cross_entropy": "linear",
    "linear_cross_entropy_stats": "linear",
    "linear_plan": "linear",
    "multilabel_cross_entropy": "family",
    "prior_entropy": "helpers",
    "score": "score",
    "sigmoid_focal_loss": "family",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crossent' has no attribute {name!r}")
    value = import_module(f"crossent.{_HOME[name]}")
    if _HOME[name] != name:  # else the package is the function
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
