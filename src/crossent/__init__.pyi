from crossent._version import __version__ as __version__
from crossent.functional import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from crossent.functional import cross_entropy as cross_entropy
from crossent.impl import choose_implementation as choose_implementation
from crossent.impl import implementations as implementations
from crossent.modules import BCEWithLogitsLoss as BCEWithLogitsLoss
from crossent.modules import CrossEntropyLoss as CrossEntropyLoss
from crossent.penalties import Asymmetric as Asymmetric
from crossent.penalties import BalancedFocal as BalancedFocal
from crossent.penalties import BinaryPenalty as BinaryPenalty
from crossent.penalties import Focal as Focal
from crossent.penalties import GCE as GCE
from crossent.penalties import MAE as MAE
from crossent.penalties import Penalty as Penalty
from crossent.penalties import Poly1 as Poly1
from crossent.penalties import SCE as SCE
from crossent.penalties import Taylor as Taylor

__all__ = [
    "Asymmetric",
    "BCEWithLogitsLoss",
    "BalancedFocal",
    "BinaryPenalty",
    "CrossEntropyLoss",
    "Focal",
    "GCE",
    "MAE",
    "Penalty",
    "Poly1",
    "SCE",
    "Taylor",
    "__version__",
    "binary_cross_entropy_with_logits",
    "choose_implementation",
    "cross_entropy",
    "implementations",
]
