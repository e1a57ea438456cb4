"""What an implementation is: an object that says what it refuses and why, and computes losses, gradients and statistics.

Logits are ``(N, C, d1, ...)``, rows are ``(N, d1, ...)``. All that a call says beside its logits comes as one
:class:`~crossent.core.target.Target` or :class:`~crossent.core.target.BinaryTarget`. An implementation knows neither autograd nor
another implementation. To add one, write a file with a subclass of :class:`Implementation` and an instance of it called
``IMPLEMENTATION``, and name the file in ``crossent.impl``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from crossent.core.reduction import times
from crossent.core.settings import TORCHS
from crossent.core.target import BinaryTarget, Target


class Forward(NamedTuple):
    """The loss of each row, or its sum or mean, and what belongs to it.

    ``row_weight`` is what each row adds to the divisor of a mean, or the sum of that where the loss is summed; ``lse`` is the
    pair (top, log_sum) of the transformed logits, ``(2, N, d1, ...)``, whose sum is ``log Σ_k e^{x_k}``.
    """

    loss: Tensor
    row_weight: Tensor | float
    lse: Tensor


class Gradients(NamedTuple):
    """The gradients of a softmax loss, None where they were not asked for."""

    logits: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None
    logit_bias: Tensor | None = None


class Partials(NamedTuple):
    """What a shard of the classes tells of each row, ``(N, d1, ...)``.

    ``lse`` is the pair (top, log_sum) of its own classes, (-inf, 0) where none of them is possible; ``loss`` is
    ``L_s = Σ w (lse_s - x)`` and ``mass`` is ``M_s = Σ w``. The loss is ``Σ_s [L_s + M_s (lse - lse_s)]``.
    """

    lse: Tensor
    loss: Tensor
    mass: Tensor

    @classmethod
    def of_nothing(cls, logits: Tensor, dtype: torch.dtype) -> Partials:
        """Return what a shard without classes tells, or without rows."""
        lse = logits.new_zeros((2, *logits.shape[:1], *logits.shape[2:]), dtype=dtype)
        lse[0] = -torch.inf
        return cls(lse, torch.zeros_like(lse[0]), torch.zeros_like(lse[0]))

    @classmethod
    def of_rows(cls, lse: Tensor, loss: Tensor, mass: Tensor) -> Partials:
        """Correct what kernels give: to them a row whose classes here are all impossible is one without a softmax."""
        nothing = lse[0] == -torch.inf
        lse[1].masked_fill_(nothing, 0.0)
        loss.masked_fill_(nothing, 0.0).masked_fill_(nothing & (mass != 0), torch.inf)
        return cls(lse, loss, mass)


class Costs(NamedTuple):
    """``Σ w f(p)`` and ``Σ w s(p)`` over the classes of a shard, of each row."""

    loss: Tensor
    mass: Tensor


class Sum(NamedTuple):
    """A sum or a mean, the sum of what the rows weigh, and the gradient for the logits; None what was not asked for."""

    loss: Tensor | None
    total: float | Tensor
    gradient: Tensor | None


class RowStatistics(NamedTuple):
    """What each row's logits tell, ``(N, d1, ...)`` in float32 or wider; the first four are differentiable.

    ``correct`` is 0 or 1. ``predicted`` is the first of the largest classes as int64, or ``NO_CLASS``.
    """

    loss: Tensor
    lse: Tensor
    target_log_prob: Tensor
    entropy: Tensor
    row_weight: Tensor
    correct: Tensor
    predicted: Tensor

    @classmethod
    def made_by(cls, new: Callable[[torch.dtype], Tensor], dtype: torch.dtype) -> RowStatistics:
        """Make a tensor for each of them by its dtype."""
        return cls(*(new(torch.int64 if name == "predicted" else dtype) for name in cls._fields))


NO_CLASS = -100
"""What is predicted for a row that is ignored or has no softmax, whatever index is ignored; ``NOT_PREDICTED`` in csrc/row.h."""


class Implementation:
    """One way to compute the family."""

    name: str
    numbers: frozenset[str] = frozenset(TORCHS)
    """The numbers of :class:`~crossent.core.settings.Settings` that it computes with, by name: those that torch has too.

    A call in which another is not its default is refused, whatever ``refuses`` says. So no number is ever ignored, and a new one
    runs nowhere until an implementation names it here.
    """
    binary_numbers: frozenset[str] = frozenset()
    """The same of :class:`~crossent.core.settings.BinarySettings`, of which torch has none."""
    waits = True
    """Whether the host may wait for the device, to read a number off it.

    One that does not wait takes the factor of ``cross_entropy_sum``, ``binary_cross_entropy_sum`` and ``scale`` as a tensor too.
    The sums take one argument more, ``formed``: the gradient for a factor of 1, which is to become that for the factor.
    """
    has_short_way = False
    """Whether it has ``short_ways`` and what belongs to them."""
    differentiable = False
    """Whether it gives losses that autograd differentiates, and nothing else: no gradients, statistics or blocks of a head."""
    weighs_samples = False
    """Whether ``cross_entropy_sum`` takes an argument more by its name, ``sample_weight``: one number a row in the dtype of sums.

    It multiplies the loss of the row and what the row adds to the divisor. It is given where ``fuses`` says so.
    """
    workspace = 0
    """How many tensors in float32, as large as a block of logits, the operations on a head's block make on their way."""

    def refuses(
        self, logits: Tensor, target: Tensor | None = None, described: Target | BinaryTarget | None = None
    ) -> str | None:
        """Say why it cannot take these logits, this target and what else the call says, or None if it can."""
        return None

    def reason_against(
        self, logits: Tensor, target: Tensor | None = None, described: Target | BinaryTarget | None = None
    ) -> str | None:
        """Say why it does not run such a call: what ``refuses`` says, or a number that it does not know."""
        reason = self.refuses(logits, target, described)
        if reason is None and described is not None and not described.plain:
            unknown = described.settings.unknown_to(
                self.numbers if isinstance(described, Target) else self.binary_numbers
            )
            if unknown is not None:
                reason = f"the implementation {self.name!r} does not know the number {unknown}"
        return reason

    def chosen_for(self, logits: Tensor) -> bool:
        """Whether it is chosen for such logits where no name is given."""
        return True

    def fuses(self, logits: Tensor) -> bool:
        """Whether ``cross_entropy_sum`` and ``binary_cross_entropy_sum`` form the gradient of such logits with the loss."""
        return False

    # --- softmax ------------------------------------------------------------------------------------------------------

    def cross_entropy_forward(self, logits: Tensor, target: Target, reduction: str) -> Forward:
        """Compute the loss and weight of each row, or the sum of both, or the mean and its divisor."""
        raise NotImplementedError

    def cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Target,
        lse: Tensor,
        needs: tuple[bool, ...] = (True, False, False, False),
        divisor: float | Tensor = 1.0,
        inplace: bool = False,
        elsewhere: Tensor | None = None,
    ) -> Gradients:
        """Compute the gradients for logits and target, as far as they are needed, from that of the loss.

        ``grad`` is one number, or one for each row; ``divisor`` is what a mean was divided by. ``inplace`` allows to write the
        gradient over the logits. ``elsewhere`` is the mass of each row on other shards of the classes, whose ``lse`` is that of
        all.
        """
        raise NotImplementedError

    def partials(self, logits: Tensor, target: Target) -> Partials:
        """Compute what a shard of the classes tells of each row, without penalty and z-loss."""
        raise NotImplementedError

    def cross_entropy_sum(
        self,
        logits: Tensor,
        target: Target,
        mean: bool,
        dtype: torch.dtype | None,
        factor: float | None,
        inplace: bool = False,
    ) -> Sum:
        """Compute a sum or mean and a factor times its gradient in one pass.

        There is no loss where ``dtype``, its dtype, is None, and no gradient where ``factor`` is. ``inplace`` allows to write the
        gradient over the logits.
        """
        raise NotImplementedError

    def holds(self, tensor: Tensor, value: float) -> bool:
        """Whether it sees at once that a plain 0-d tensor holds this number; False where it would have to look longer."""
        return False

    def scale(self, gradient: Tensor, factor: float) -> None:
        """Multiply a gradient in its place; what is 0, such as that of an ignored row, stays 0 whatever the factor."""
        if isfinite(factor):
            gradient.mul_(factor)
        else:
            gradient.copy_(times(gradient, gradient.new_tensor(factor)))

    def statistics(self, logits: Tensor, target: Target) -> RowStatistics:
        """Compute the statistics of each row without a derivative."""
        raise NotImplementedError

    # --- sigmoid ------------------------------------------------------------------------------------------------------

    def binary_cross_entropy_forward(
        self, logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0
    ) -> Tensor:
        """Compute the loss of each element, or their sum over the divisor."""
        raise NotImplementedError

    def binary_cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        target: BinaryTarget,
        needs: tuple[bool, bool] = (True, False),
        divisor: float = 1.0,
        inplace: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the gradients for logits and target from that of the loss, one number or one an element."""
        raise NotImplementedError

    def binary_cross_entropy_sum(
        self,
        logits: Tensor,
        target: BinaryTarget,
        divisor: float,
        dtype: torch.dtype | None,
        factor: float | None,
        inplace: bool = False,
    ) -> Sum:
        """Compute a sum over a divisor and a factor times its gradient in one pass, as ``cross_entropy_sum`` does."""
        raise NotImplementedError

    # --- the short way of plain calls ---------------------------------------------------------------------------------

    short_ways: ClassVar[dict[str, Any]] = {}
    """By the name of a loss: what takes the names and defaults of its arguments, and returns a function of all of them.

    That function takes them as a tuple, just as a caller gave them. It gives the loss, attached to its logits, or None: the
    arguments have to be looked at.
    """

    def know_torch(self, questions: Any) -> None:
        """Learn what to ask: whether anything looks on, transforms or decides dtypes."""
        raise NotImplementedError

    def know_functions(
        self, sum: Any, rows: Any, binary_sum: Any, elements: Any, expected: dict[torch.dtype, float | None]
    ) -> None:
        """Learn what runs the Functions of these losses, and where the factor is noted that backward is likely to bring."""
        raise NotImplementedError

    attach: Any = None
    """The forward of these Functions."""
    sum_gradient: Any = None
    rows_gradient: Any = None
    elements_gradient: Any = None
    """Their backward, as methods of the node; whatever is not a plain training step goes to the backward in Python."""

    def kept_lse(self, kept: Any, logits: Tensor) -> Tensor:
        """Return what was kept of rows as the lse of forward."""
        raise NotImplementedError

    # --- what a head needs --------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an empty tensor, in new memory or in memory that was used before."""
        return torch.empty(shape, dtype=dtype, device=like.device)

    def accumulate(self, g: Tensor, x: Tensor, sums: Tensor, first: bool) -> bool:
        """Add ``gᵀ x`` of half precision to sums in float32, or put it there; False where it has no such product."""
        return False

    def multiplies_in(self, dtype: torch.dtype) -> bool:
        """Whether torch's products of this dtype are fast here and take no more memory than their result."""
        return True
