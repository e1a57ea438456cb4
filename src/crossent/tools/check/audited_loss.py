"""A loss that somebody wrote, as an audit sees it: through NumPy, by its values and gradients alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossent.reference import Array
from crossent.tools.check.findings import NotApplicable
from crossent.tools.check.recognise import CLOSE, Member, recognise

INDICES, ONE_LABEL, LABELS = "class indices", "one-hot rows", "several labels a row"


class Derivatives(NamedTuple):
    """What a loss gives: its value as it is, and the gradient of its sum."""

    value: Array
    grad: Array


class AuditedLoss:
    """A loss under audit. The rules see it through NumPy: what it takes, what it returns, what its gradient is.

    Attributes:
        classes: ``C``.
        x: logits ``(N, C)``.
        targets: what it takes, of those that were tried, by name; the first is used where one is enough.
        reduction: ``"mean"``, ``"sum"``, ``"none"``, or ``""`` if it is neither.
        twice: the loss of all rows twice, divided by their loss.
        binary: whether every logit is treated by itself.
        eps: the rounding of its values.
        measured: what the rules measured.
    """

    def __init__(self, fn: Callable[..., Any], classes: int, rows: int, ignore_index: int) -> None:
        is_function = isinstance(fn, type) and issubclass(fn, torch.autograd.Function)
        self.fn: Callable[..., Any] = fn.apply if is_function else fn  # type: ignore[attr-defined]
        self.classes, self.ignore_index = classes, ignore_index
        self.random = np.random.default_rng(0)
        self.x = self.random.normal(size=(rows, classes)) * 2
        y = np.arange(rows) % classes
        one_hot = np.eye(classes)[y]
        several = np.minimum(one_hot + np.eye(classes)[(y + 2) % classes] + one_hot[::-1], 1.0)
        self.targets: dict[str, Any] = {}
        self.refused = ""
        for name, target in ((INDICES, y), (ONE_LABEL, one_hot), (LABELS, several)):
            try:
                value = self.value(self.x, target)
            except NotApplicable as error:
                self.refused = self.refused or str(error)
                continue
            if value.size in (1, rows, rows * classes) and np.isfinite(value).all():
                self.targets[name] = target
        if not self.targets:
            return
        self.eps = self._rounding()
        self.measured: dict[str, str] = {}
        self.reduction, self.twice = self._reduction()
        self.binary = self._binary()

    @property
    def target(self) -> Any:
        """The target that is used where one is enough."""
        return next(iter(self.targets.values()))

    @property
    def indices(self) -> Array | None:
        """The class indices that were tried, if the loss takes such."""
        return self.targets.get(INDICES)

    @cached_property
    def member(self) -> Member | None:
        """The member of the family that it is, as far as its gradient tells."""
        if not self.reduction:
            return None
        y = np.arange(len(self.x)) % self.classes
        try:
            gradient = self.derivatives(self.x, self.labels(y)).grad * (len(y) if self.reduction == "mean" else 1)
        except NotApplicable:
            return None
        close = max(CLOSE, 100 * self.eps)
        return recognise(self.x, np.eye(self.classes)[y], gradient, binary=self.binary, close=close)

    def labels(self, y: Any) -> Any:
        """Write class indices as the loss takes them."""
        return np.asarray(y) if INDICES in self.targets else np.eye(self.classes)[np.asarray(y)]

    def call(self, x: Any, target: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        """Call the loss on fresh tensors."""
        return self.apply(torch.tensor(x, dtype=dtype, device="cpu", requires_grad=True), self.tensor(target, dtype))

    def apply(self, leaf: Tensor, target: Tensor) -> Tensor:
        """Call the loss as a model would: with logits that are no leaf, so that even writing to them is possible."""
        try:
            loss: Any = self.fn(leaf * 1, target)
        except Exception as error:  # whatever a stranger's code raises
            raise NotApplicable(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            ) from None
        if not isinstance(loss, Tensor):
            raise NotApplicable(f"it returns {type(loss).__name__}, not a tensor")
        return loss

    @staticmethod
    def tensor(target: Any, dtype: torch.dtype) -> Tensor:
        """Make a tensor of a target, class indices as integers."""
        values = torch.as_tensor(np.array(target), device="cpu")
        return values.to(dtype) if values.is_floating_point() else values.long()

    def value(self, x: Any, target: Any) -> Array:
        """Compute the loss, of whatever shape it is."""
        return np.asarray(self.call(x, target).detach().double().numpy())

    def total(self, x: Any, target: Any) -> float:
        """Compute the sum of what it returns."""
        return float(self.value(x, target).sum())

    def derivatives(self, x: Any, target: Any, dtype: torch.dtype | None = None, factor: float = 1.0) -> Derivatives:
        """Compute the loss and the gradient of ``factor`` times its sum."""
        dtype = dtype or torch.float64
        leaf = torch.tensor(x, dtype=dtype, device="cpu", requires_grad=True)
        loss = self.apply(leaf, self.tensor(target, dtype))
        try:
            (grad,) = torch.autograd.grad(factor * loss.sum(), leaf, allow_unused=True)
        except RuntimeError as error:
            raise NotApplicable(f"its gradient cannot be computed: {str(error).splitlines()[0]}") from None
        grad = torch.zeros_like(leaf) if grad is None else grad
        return Derivatives(loss.detach().double().numpy(), grad.double().numpy())

    def in_float32(self, x: Any, target: Any) -> Derivatives:
        """Compute both in float32."""
        return self.derivatives(x, target, torch.float32)

    def hessian_times(self, target: Any, v: Array) -> tuple[Array, Array]:
        """Compute the second derivative of ``L²/2`` in a direction, by autograd and by differences of the gradient."""

        def gradient(x: Any, create_graph: bool) -> tuple[Tensor, Tensor]:
            leaf = torch.tensor(x, dtype=torch.float64, device="cpu", requires_grad=True)
            half = self.apply(leaf, self.tensor(target, torch.float64)).sum() ** 2 / 2
            return leaf, torch.autograd.grad(half, leaf, create_graph=create_graph)[0]

        h = self.step
        try:
            differences = (gradient(self.x + h * v, False)[1] - gradient(self.x - h * v, False)[1]) / (2 * h)
            leaf, grad = gradient(self.x, True)
            (grad * torch.from_numpy(v)).sum().backward()
        except RuntimeError as error:
            raise NotApplicable(f"raises: {str(error).splitlines()[0][:80]}") from None
        second = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return second.numpy(), differences.numpy()

    @property
    def step(self) -> float:
        """The step of a central difference, between rounding and curvature."""
        return float(self.eps ** (1 / 3))

    @property
    def tolerance(self) -> float:
        """The error that a central difference may have."""
        return float(3000 * self.eps ** (2 / 3))

    def by_differences(self, x: Array, target: Any) -> Array:
        """Differentiate the loss by central differences."""
        grad = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            bump = np.zeros_like(x)
            bump[at] = self.step
            grad[at] = (self.total(x + bump, target) - self.total(x - bump, target)) / (2 * self.step)
        return grad

    def writes(self) -> list[str]:
        """Name the inputs that change while the loss runs forward and backward."""
        target = self.tensor(self.target, torch.float64)
        given, kept = torch.tensor(self.x, device="cpu", requires_grad=True) * 1, target.clone()
        before = given.detach().clone()
        with suppress(RuntimeError):  # autograd may notice, which is another finding
            self.fn(given, target).sum().backward()
        pairs = (("the logits", given.detach(), before), ("the target", target, kept))
        return [name for name, now, then in pairs if not torch.equal(now, then)]

    def measure(self, rule: str, result: str) -> None:
        """Keep what a rule measured."""
        self.measured[rule] = result

    def _rounding(self) -> float:
        """Find out with which precision it computes, which may be less than that of the dtype it returns."""
        eps = float(torch.finfo(self.call(self.x, self.target).dtype).eps)
        value = self.value(self.x, self.target)
        for _ in range(3):  # float32 loses so small a step, unless a logit lies just between two of its numbers
            if np.array_equal(self.value(self.x + 1e-10 * self.random.normal(size=self.x.shape), self.target), value):
                return max(eps, float(torch.finfo(torch.float32).eps))
        return eps

    @property
    def exact(self) -> float:
        """The rounding by which two ways to compute the same number may differ, after a few hundred operations."""
        return 1e-9 if self.eps < 1e-12 else 1e-4

    @staticmethod
    def far_apart(a: Array, b: Array) -> float:
        """Compute the largest difference, relative to the larger of 1e-3 and the largest value."""
        return float(np.abs(a - b).max() / max(1e-3, np.abs(b).max()))

    def _reduction(self) -> tuple[str, float]:
        """Find out how rows are put together, by giving them twice."""
        once, target = self.value(self.x, self.target), self.target
        if once.size > 1:
            return "none", 1.0
        try:
            both = self.total(np.concatenate([self.x, self.x]), np.concatenate([target, target]))
        except NotApplicable:
            return "", math.nan
        twice = both / float(once.sum())
        for name, ratio in (("mean", 1), ("sum", 2)):
            if abs(twice - ratio) < 1e-3:
                return name, twice
        return "", twice

    def _binary(self) -> bool:
        """Find out whether the gradient of a logit depends on the others of its row."""
        bumped = self.x.copy()
        bumped[:, 0] += 1.5
        try:
            change = self.derivatives(bumped, self.target).grad - self.derivatives(self.x, self.target).grad
        except NotApplicable:
            return False
        return bool(np.abs(change[:, 1:]).max() <= 1e-9 and np.abs(change[:, 0]).max() > 1e-9)
