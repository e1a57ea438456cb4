from crossent._version import __version__ as __version__
from crossent.functional import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from crossent.functional import cross_entropy as cross_entropy
from crossent.impl import choose_implementation as choose_implementation
from crossent.impl import implementations as implementations
from crossent.modules import BCEWithLogitsLoss as BCEWithLogitsLoss
from crossent.modules import CrossEntropyLoss as CrossEntropyLoss

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "__version__",
    "binary_cross_entropy_with_logits",
    "choose_implementation",
    "cross_entropy",
    "implementations",
]
