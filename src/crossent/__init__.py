"""The cross-entropy family for PyTorch: exact, fast, and able to explain itself.

Names are imported when first used, so that ``import crossent`` costs nothing.
"""

from importlib import import_module
from typing import Any

from crossent._version import __version__

_HOME = {
    "Asymmetric": "core.penalties",
    "BCEWithLogitsLoss": "losses.modules",
    "BalancedFocal": "core.penalties",
    "BinaryPenalty": "core.penalties",
    "CrossEntropyLoss": "losses.modules",
    "CrossEntropyStats": "losses.statistics",
    "DistillationLoss": "losses.modules",
    "Explanation": "tools.explain.explanation",
    "Finding": "tools.check.findings",
    "Focal": "core.penalties",
    "FocalLoss": "losses.modules",
    "GCE": "core.penalties",
    "LinearCrossEntropyLoss": "losses.modules",
    "LinearPlan": "losses.linear",
    "Logits": "models.defer",
    "LossReport": "tools.check.audit",
    "MAE": "core.penalties",
    "MultilabelCrossEntropyLoss": "losses.modules",
    "Penalty": "core.penalties",
    "Poly1": "core.penalties",
    "SCE": "core.penalties",
    "SigmoidFocalLoss": "losses.modules",
    "Taylor": "core.penalties",
    "Teacher": "core.target",
    "VocabShard": "core.shard",
    "binary_cross_entropy_with_logits": "losses.binary",
    "check": "tools.check.run",
    "check_loss": "tools.check.audit",
    "choose_implementation": "impl",
    "class_weights": "losses.baselines",
    "contrastive_cross_entropy": "losses.named",
    "cross_entropy": "losses.softmax",
    "cross_entropy_stats": "losses.statistics",
    "debug": "tools.check.debug",
    "defer": "models.defer",
    "distillation_loss": "losses.named",
    "double_softmax_floor": "losses.baselines",
    "expected_initial_loss": "losses.baselines",
    "explain": "tools.explain.explanation",
    "focal_loss": "losses.named",
    "implementations": "impl",
    "linear_cross_entropy": "losses.linear",
    "linear_cross_entropy_stats": "losses.linear",
    "linear_plan": "losses.linear",
    "multilabel_cross_entropy": "losses.named",
    "patch": "models.patching",
    "prior_entropy": "losses.baselines",
    "score": "tools.score.scoring",
    "shared_denominator": "parallel.denominator",
    "sigmoid_focal_loss": "losses.named",
    "undefer": "models.defer",
    "unpatch": "models.patching",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crossent' has no attribute {name!r}")
    value = getattr(import_module(f"crossent.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
