from crossent._version import __version__ as __version__
from crossent.core.penalties import GCE as GCE
from crossent.core.penalties import MAE as MAE
from crossent.core.penalties import SCE as SCE
from crossent.core.penalties import Asymmetric as Asymmetric
from crossent.core.penalties import BalancedFocal as BalancedFocal
from crossent.core.penalties import BinaryPenalty as BinaryPenalty
from crossent.core.penalties import Focal as Focal
from crossent.core.penalties import Penalty as Penalty
from crossent.core.penalties import Poly1 as Poly1
from crossent.core.penalties import Taylor as Taylor
from crossent.core.shard import VocabShard as VocabShard
from crossent.core.target import Teacher as Teacher
from crossent.impl import choose_implementation as choose_implementation
from crossent.impl import implementations as implementations
from crossent.losses.baselines import class_weights as class_weights
from crossent.losses.baselines import double_softmax_floor as double_softmax_floor
from crossent.losses.baselines import expected_initial_loss as expected_initial_loss
from crossent.losses.baselines import prior_entropy as prior_entropy
from crossent.losses.binary import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from crossent.losses.linear import LinearPlan as LinearPlan
from crossent.losses.linear import linear_cross_entropy as linear_cross_entropy
from crossent.losses.linear import linear_cross_entropy_stats as linear_cross_entropy_stats
from crossent.losses.linear import linear_plan as linear_plan
from crossent.losses.modules import BCEWithLogitsLoss as BCEWithLogitsLoss
from crossent.losses.modules import CrossEntropyLoss as CrossEntropyLoss
from crossent.losses.modules import DistillationLoss as DistillationLoss
from crossent.losses.modules import FocalLoss as FocalLoss
from crossent.losses.modules import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from crossent.losses.modules import MultilabelCrossEntropyLoss as MultilabelCrossEntropyLoss
from crossent.losses.modules import SigmoidFocalLoss as SigmoidFocalLoss
from crossent.losses.named import contrastive_cross_entropy as contrastive_cross_entropy
from crossent.losses.named import distillation_loss as distillation_loss
from crossent.losses.named import focal_loss as focal_loss
from crossent.losses.named import multilabel_cross_entropy as multilabel_cross_entropy
from crossent.losses.named import sigmoid_focal_loss as sigmoid_focal_loss
from crossent.losses.softmax import cross_entropy as cross_entropy
from crossent.losses.statistics import CrossEntropyStats as CrossEntropyStats
from crossent.losses.statistics import cross_entropy_stats as cross_entropy_stats
from crossent.models.defer import Logits as Logits
from crossent.models.defer import defer as defer
from crossent.models.defer import undefer as undefer
from crossent.models.patching import patch as patch
from crossent.models.patching import unpatch as unpatch
from crossent.parallel.denominator import shared_denominator as shared_denominator
from crossent.tools.check.audit import LossReport as LossReport
from crossent.tools.check.audit import check_loss as check_loss
from crossent.tools.check.debug import debug as debug
from crossent.tools.check.findings import Finding as Finding
from crossent.tools.check.run import check as check
from crossent.tools.explain.explanation import Explanation as Explanation
from crossent.tools.explain.explanation import explain as explain
from crossent.tools.score.scoring import score as score

__all__ = [
    "GCE",
    "MAE",
    "SCE",
    "Asymmetric",
    "BCEWithLogitsLoss",
    "BalancedFocal",
    "BinaryPenalty",
    "CrossEntropyLoss",
    "CrossEntropyStats",
    "DistillationLoss",
    "Explanation",
    "Finding",
    "Focal",
    "FocalLoss",
    "LinearCrossEntropyLoss",
    "LinearPlan",
    "Logits",
    "LossReport",
    "MultilabelCrossEntropyLoss",
    "Penalty",
    "Poly1",
    "SigmoidFocalLoss",
    "Taylor",
    "Teacher",
    "VocabShard",
    "__version__",
    "binary_cross_entropy_with_logits",
    "check",
    "check_loss",
    "choose_implementation",
    "class_weights",
    "contrastive_cross_entropy",
    "cross_entropy",
    "cross_entropy_stats",
    "debug",
    "defer",
    "distillation_loss",
    "double_softmax_floor",
    "expected_initial_loss",
    "explain",
    "focal_loss",
    "implementations",
    "linear_cross_entropy",
    "linear_cross_entropy_stats",
    "linear_plan",
    "multilabel_cross_entropy",
    "patch",
    "prior_entropy",
    "score",
    "shared_denominator",
    "sigmoid_focal_loss",
    "undefer",
    "unpatch",
]
