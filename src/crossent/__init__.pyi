from crossent._version import __version__ as __version__
from crossent.blocks import Teacher as Teacher
from crossent.check.audit import LossReport as LossReport
from crossent.check.audit import check_loss as check_loss
from crossent.check.cards import Finding as Finding
from crossent.check.debug import debug as debug
from crossent.check.run import check as check
from crossent.explain.explanation import Explanation as Explanation
from crossent.explain.explanation import explain as explain
from crossent.family import contrastive_cross_entropy as contrastive_cross_entropy
from crossent.family import distillation_loss as distillation_loss
from crossent.family import focal_loss as focal_loss
from crossent.family import multilabel_cross_entropy as multilabel_cross_entropy
from crossent.family import sigmoid_focal_loss as sigmoid_focal_loss
from crossent.functional import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from crossent.functional import cross_entropy as cross_entropy
from crossent.helpers import class_weights as class_weights
from crossent.helpers import double_softmax_floor as double_softmax_floor
from crossent.helpers import expected_initial_loss as expected_initial_loss
from crossent.helpers import prior_entropy as prior_entropy
from crossent.impl import choose_implementation as choose_implementation
from crossent.impl import implementations as implementations
from crossent.linear import LinearPlan as LinearPlan
from crossent.linear import linear_cross_entropy as linear_cross_entropy
from crossent.linear import linear_cross_entropy_stats as linear_cross_entropy_stats
from crossent.linear import linear_plan as linear_plan
from crossent.modules import BCEWithLogitsLoss as BCEWithLogitsLoss
from crossent.modules import CrossEntropyLoss as CrossEntropyLoss
from crossent.modules import DistillationLoss as DistillationLoss
from crossent.modules import FocalLoss as FocalLoss
from crossent.modules import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from crossent.modules import MultilabelCrossEntropyLoss as MultilabelCrossEntropyLoss
from crossent.modules import SigmoidFocalLoss as SigmoidFocalLoss
from crossent.penalties import GCE as GCE
from crossent.penalties import MAE as MAE
from crossent.penalties import SCE as SCE
from crossent.penalties import Asymmetric as Asymmetric
from crossent.penalties import BalancedFocal as BalancedFocal
from crossent.penalties import BinaryPenalty as BinaryPenalty
from crossent.penalties import Focal as Focal
from crossent.penalties import Penalty as Penalty
from crossent.penalties import Poly1 as Poly1
from crossent.penalties import Taylor as Taylor
from crossent.score.scoring import score as score
from crossent.stats import CrossEntropyStats as CrossEntropyStats
from crossent.stats import cross_entropy_stats as cross_entropy_stats

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
    "LossReport",
    "MultilabelCrossEntropyLoss",
    "Penalty",
    "Poly1",
    "SigmoidFocalLoss",
    "Taylor",
    "Teacher",
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
    "prior_entropy",
    "score",
    "sigmoid_focal_loss",
]
