"""The penalties ``(f, s)``: what a class with probability ``p`` costs, and how hard it is pulled, ``s(p) = -f'(p) p``.

With them the one identity of this library is the whole family::

    loss = Σ_k c_k t_k f(p_k)        w = c ∘ s(p)        mass = Σ_k w_k t_k        ∂loss/∂x = mass · p - w ∘ t

Both are functions of ``log p``, since ``p`` itself rounds to 0 for a hopeless class and to 1 for a confident one; ``s`` is minus
the slope of ``f`` with respect to ``log p``. They hold for every ``log p`` from -inf to 0 and are differentiable there as often
as one likes. To the operators a penalty is its name and its parameters, plain numbers: a :class:`NamedPenalty`, which makes it
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from crossent.core.checks import as_python

_KNOWN: dict[str, type[Penalty] | type[BinaryPenalty]] = {}
_HOPELESS = -1e4  # a log p whose p is 0 in every dtype
_LARGEST = 1.7976931348623157e308


class _Named:
    """What has a name and numbers for parameters, so that an operator can carry it."""

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        built_in = cls.__module__ == __name__
        cls.name = cls.__name__ if built_in else f"{cls.__module__}.{cls.__qualname__}"
        _KNOWN[cls.name] = cls  # type: ignore[assignment]

    @property
    def parameters(self) -> tuple[float, ...]:
        """The numbers of which it can be made again."""
        return tuple(float(as_python(value)) for value in self.__dict__.values())


class Penalty(_Named):
    """A penalty ``f`` for the probability given to a class; subclass it to write your own.

    Give ``f``, and ``s`` too if you can: without it ``s`` is minus the derivative of ``f`` that autograd finds, which costs
    a second pass and is as finite as yours. Parameters are numbers, the fields of a frozen dataclass: a tensor would get no
    gradient. It then works with weights, smoothing, soft targets, reductions and transforms like those that are built in,
    in torch operations on any device.

    >>> @dataclass(frozen=True)
    ... class Brier(Penalty):
    ...     scale: float = 1.0
    ...     def f(self, log_p):
    ...         return self.scale * torch.expm1(log_p) ** 2
    >>> from crossent import cross_entropy
    >>> logits = torch.tensor([[0.1, 0.7, 0.2]]).log()
    >>> cross_entropy(logits, torch.tensor([0]), penalty=Brier())
    tensor(0.8100)

    See also: :class:`Focal`, :class:`Poly1`, :class:`GCE`, :class:`MAE`, :class:`SCE`, :class:`Taylor`.
    """

    def f(self, log_p: Tensor) -> Tensor:
        """Compute what a class with probability ``p`` costs, from ``log p``, element by element."""
        raise NotImplementedError(f"{type(self).__name__} must define f(log_p)")

    def s(self, log_p: Tensor) -> Tensor:
        """Compute how hard a class with probability ``p`` is pulled: minus the slope of ``f`` in ``log p``."""

        def total(z: Tensor) -> Tensor:
            return self.f(z).sum()

        slope: Tensor = torch.func.grad(total)(log_p.clamp_min(_HOPELESS))
        return -slope


class BinaryPenalty(_Named):
    """A penalty for the probability ``σ(x)`` of yes, and one for the probability ``σ(-x)`` of no."""

    @property
    def positive(self) -> Penalty:
        """The penalty of yes."""
        raise NotImplementedError

    @property
    def negative(self) -> Penalty:
        """The penalty of no."""
        raise NotImplementedError


class NamedPenalty(NamedTuple):
    """A penalty as an operator can carry it: its name, "" for ``-log p``, and its parameters."""

    name: str = ""
    parameters: tuple[float, ...] = ()

    def make(self) -> Any:
        """Make the penalty again; of no name, None."""
        return _KNOWN[self.name](*self.parameters) if self.name else None

    def sides(self) -> tuple[Penalty, Penalty] | tuple[None, None]:
        """Make the penalties of yes and of no for a binary loss; of no name, None."""
        penalty = self.make()
        return (penalty.positive, penalty.negative) if isinstance(penalty, BinaryPenalty) else (penalty, penalty)


def named_penalty(penalty: object, *, binary: bool) -> NamedPenalty:
    """Check that what was given is a penalty which the loss takes, and write it as a name and numbers."""
    if penalty is None:
        return NamedPenalty()
    if isinstance(penalty, Penalty) or (binary and isinstance(penalty, BinaryPenalty)):
        wrong = [
            k
            for k, v in penalty.__dict__.items()
            if type(v) is not float and not isinstance(as_python(v), (int, float))
        ]
        if wrong:
            raise TypeError(
                f"a penalty's parameters must be plain numbers, got {type(penalty.__dict__[wrong[0]]).__name__} for "
                f"{wrong[0]} of {penalty.name}: the loss is not differentiable in them"
            )
        if _KNOWN[penalty.name] is not type(penalty):
            raise TypeError(f"penalty {penalty!r} is of a class that was defined anew since: make it again")
        if type(penalty) is Focal and penalty.gamma == 0:
            return NamedPenalty()  # Focal(0) is cross entropy, to the last bit
        return NamedPenalty(penalty.name, penalty.parameters)
    rule = "penalty must be None or a crossent.Penalty such as Focal(gamma=2.0)"
    if isinstance(penalty, BinaryPenalty):
        fix = "this one has two sides and belongs to binary_cross_entropy_with_logits"
    elif isinstance(penalty, type) and issubclass(penalty, _Named):
        fix = f"make one, {penalty.__name__}()"
    elif isinstance(penalty, str):
        builtin = {name.lower(): name for name in _KNOWN if "." not in name}
        name = builtin.get(penalty.lower())
        fix = f"import it, crossent.{name}()" if name else f"there are {', '.join(sorted(builtin.values()))}"
    elif callable(penalty):
        fix = "write a subclass of crossent.Penalty whose method f is that function of log p"
    else:
        fix = "see crossent.Penalty"
    raise TypeError(f"{rule}, got {penalty!r:.60}: {fix}")


def _check(penalty: Any, name: str, low: float, high: float | None = None) -> None:
    """Check that a parameter lies in ``[low, high]``, and keep it as a number of Python's, whatever it came as."""
    given = getattr(penalty, name)
    value = as_python(given)
    if value is not given:
        object.__setattr__(penalty, name, value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not max(low, -_LARGEST) <= value <= (_LARGEST if high is None else high):
        where = "" if low == -torch.inf else f" of at least {low:g}" if high is None else f" in [{low:g}, {high:g}]"
        raise ValueError(f"{name} of {type(penalty).__name__} must be a number{where}, got {value!r:.60}")


# --- pieces that stay finite, and so do their derivatives -------------------------------------------------------------


def complement(log_p: Tensor) -> Tensor:
    """Compute ``1 - p`` as exactly as ``log p`` is given."""
    return 0.0 - torch.expm1(log_p)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Compute a power of a number in [0, 1], whose derivatives at 0 are taken as 0 where they are infinite.

    It is made of products, roots and exponentials, since the last bit of torch.pow depends on how threads share the elements.
    """
    n, square = int(exponent), base
    rest = exponent - n
    factors = [] if n or rest else [1 + 0 * base]
    while n:
        factors += [square] if n % 2 else []
        n //= 2
        square = square * square if n else square
    if rest:
        nothing = base < torch.finfo(base.dtype).smallest_normal  # the inverse of a smaller number is infinite
        some = base.masked_fill(nothing, 1.0)
        root = some.sqrt() if rest == 0.5 else (rest * some.log()).exp()
        factors.append(root.masked_fill(nothing, 0.0))
    return prod(factors[1:], start=factors[0])


def _surprisal_by_lack(log_p: Tensor, lack: Tensor) -> Tensor:
    """Compute ``-log p / (1 - p)``, near ``p = 1`` by its expansion, since the derivatives of the quotient divide by its square."""
    sure = log_p > -1e-3
    return torch.where(sure, 1 - log_p / 2 + log_p.square() / 12, -log_p / lack.masked_fill(sure, 1.0))


# --- the penalties of one probability ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Focal(Penalty):
    """Care less about what is known already: ``f = -(1-p)^γ log p`` and ``s = (1-p)^γ - γ p (1-p)^(γ-1) log p``.

    ``γ = 0`` is cross entropy. Class weights multiply the loss and leave ``p`` what it is. For ``γ < 1`` the power in ``s`` is
    infinite at ``p = 1``, but ``s`` tends to 0 there and is computed so.

    Args:
        gamma: ``γ``, at least 0.

    >>> Focal(2.0).f(torch.tensor([0.1, 0.5]).log())
    tensor([1.8651, 0.1733])

    See also: :func:`crossent.focal_loss`; :class:`Poly1`, which does the opposite.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        _check(self, "gamma", 0.0)

    def f(self, log_p: Tensor) -> Tensor:
        """Compute ``-(1-p)^γ log p``."""
        return _power(complement(log_p), self.gamma) * (0.0 - log_p)

    def s(self, log_p: Tensor) -> Tensor:
        """Compute ``(1-p)^γ (1 + γ p r)`` with ``r = -log p / (1-p)``, which tends to 1 as p tends to 1."""
        log_p = log_p.clamp_min(_HOPELESS)
        lack = complement(log_p)
        return _power(lack, self.gamma) * (1 + self.gamma * log_p.exp() * _surprisal_by_lack(log_p, lack))


@dataclass(frozen=True)
class Poly1(Penalty):
    """Change the first coefficient of the expansion of ``-log p`` in ``1 - p``: ``f = -log p + ε (1-p)`` and ``s = 1 + ε p``.

    Args:
        epsilon: ``ε``; 0 is cross entropy, and below -1 the loss pushes a confident class away.

    >>> Poly1(2.0).s(torch.tensor([0.1, 0.9]).log())
    tensor([1.2000, 2.8000])

    Source: Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", 2022.
    """

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "epsilon", -torch.inf)

    def f(self, log_p: Tensor) -> Tensor:
        """Compute ``-log p + ε (1-p)``."""
        return -log_p + self.epsilon * complement(log_p)

    def s(self, log_p: Tensor) -> Tensor:
        """Compute ``1 + ε p``."""
        return 1 + self.epsilon * log_p.exp()


@dataclass(frozen=True)
class GCE(Penalty):
    """Generalise cross entropy: ``f = (1 - p^q) / q`` and ``s = p^q``; cross entropy as ``q → 0`` and MAE at ``q = 1``.

    A class that the model finds impossible is hardly pulled. So wrong labels are not learned, and neither are hard ones.

    Args:
        q: in [0, 1].

    >>> GCE(0.5).f(torch.tensor([0.25, 1.0]).log()), GCE(0.5).s(torch.tensor([0.25, 1.0]).log())
    (tensor([1., 0.]), tensor([0.5000, 1.0000]))

    See also: :class:`MAE`, :class:`SCE`, :class:`Taylor`, which are for wrong labels too.

    Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", 2018.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        _check(self, "q", 0.0, 1.0)

    def f(self, log_p: Tensor) -> Tensor:
        """Compute ``(1 - p^q) / q``."""
        return complement(self.q * log_p) / self.q if self.q else -log_p

    def s(self, log_p: Tensor) -> Tensor:
        """Compute ``p^q``."""
        return (self.q * log_p).exp() if self.q else 1 + 0 * log_p.clamp_min(_HOPELESS)


@dataclass(frozen=True)
class MAE(Penalty):
    """Take the mean absolute error, ``f = 1 - p`` and ``s = p``: half of ``Σ_k |t_k - p_k|`` for a one-hot target.

    It is what "squash and take the difference" comes to. ``s`` switches off a class that the model finds impossible. So the loss is
    robust against wrong labels, and slow to learn from right ones.

    >>> MAE().f(torch.tensor([0.1, 0.9]).log())
    tensor([0.9000, 0.1000])

    See also: :class:`GCE`, between this and cross entropy.

    Source: Ghosh et al., "Robust Loss Functions under Label Noise for Deep Neural Networks", 2017.
    """

    def f(self, log_p: Tensor) -> Tensor:
        """Compute ``1 - p``."""
        return complement(log_p)

    def s(self, log_p: Tensor) -> Tensor:
        """Compute ``p``."""
        return log_p.exp()


@dataclass(frozen=True)
class SCE(Penalty):
    """Make cross entropy symmetric: ``f = -α log p - βA (1-p)`` and ``s = α - βA p``, ``α`` times Poly-1 with ``ε = -βA/α``.

    The second term is the reverse cross entropy ``-Σ_k p_k log t_k`` of a one-hot target with ``log 0 := A``; for any other
    target the penalty stays this ``f``, weighted by ``t``.

    Args:
        alpha: ``α``, of cross entropy, at least 0.
        beta: ``β``, of the reverse cross entropy, at least 0.
        A: what stands for ``log 0``, at most 0. The authors' code clips the target at 1e-4, which is -9.21.

    >>> SCE(0.1, 1.0).f(torch.tensor([0.5]).log())
    tensor([2.0693])

    Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019.
    """

    alpha: float = 0.1
    beta: float = 1.0
    A: float = -4.0

    def __post_init__(self) -> None:
        _check(self, "alpha", 0.0)
        _check(self, "beta", 0.0)
        _check(self, "A", -torch.inf)
        if self.A > 0:
            raise ValueError(f"A of SCE must be at most 0, as it stands for log 0, got {self.A!r}")

    def f(self, log_p: Tensor) -> Tensor:
        """Compute ``-α log p - βA (1-p)``."""
        reverse = (-self.beta * self.A) * complement(log_p)
        return reverse - self.alpha * log_p if self.alpha else reverse

    def s(self, log_p: Tensor) -> Tensor:
        """Compute ``α - βA p``."""
        return self.alpha + (-self.beta * self.A) * log_p.exp()


@dataclass(frozen=True)
class Taylor(Penalty):
    """Stop the expansion of ``-log p`` after n terms: ``f = Σ_{k=1..n} (1-p)^k / k`` and ``s = p Σ_{k=1..n} (1-p)^(k-1)``.

    MAE for one term, cross entropy for infinitely many.

    Args:
        order: n, at least 1.

    >>> Taylor(2).f(torch.tensor([0.5]).log()), Taylor(2).s(torch.tensor([0.5]).log())
    (tensor([0.6250]), tensor([0.7500]))

    Source: Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", 2020.
    """

    order: int = 2

    def __post_init__(self) -> None:
        _check(self, "order", 1)
        if self.order != int(self.order):
            raise ValueError(f"order of Taylor must be a whole number, got {self.order!r}")

    def f(self, log_p: Tensor) -> Tensor:
        """Compute ``(1-p) (1 + (1-p) (1/2 + (1-p) (1/3 + ...)))``."""
        n, lack = int(self.order), complement(log_p)
        total = lack / n
        for k in range(n - 1, 0, -1):
            total = lack * (1 / k + total)
        return total

    def s(self, log_p: Tensor) -> Tensor:
        """Compute ``p (1 + (1-p) (1 + (1-p) (1 + ...)))``."""
        p, lack = log_p.exp(), complement(log_p)
        total = torch.ones_like(p)
        for _ in range(int(self.order) - 1):
            total = 1 + lack * total
        return p * total


# --- the penalties of yes and no --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asymmetric(BinaryPenalty):
    """Focus on the negatives more than on the positives, and leave the easiest negatives out.

    With ``p = σ(x)``: yes costs ``-(1-p)^γ+ log p`` and no costs ``-p_m^γ- log(1-p_m)``, where ``p_m = max(p - clip, 0)``.
    The gradient is that of this loss; the authors' code can hold the powers constant, which is that of another.

    Args:
        gamma_pos: ``γ+``, at least 0.
        gamma_neg: ``γ-``, at least 0.
        clip: by how much the probability of yes is lowered for a negative, in [0, 1].

    >>> Asymmetric().negative.f(torch.tensor([0.99, 0.5]).log())
    tensor([0.0000, 0.0245])

    Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021.
    """

    gamma_pos: float = 1.0
    gamma_neg: float = 4.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        _check(self, "gamma_pos", 0.0)
        _check(self, "gamma_neg", 0.0)
        _check(self, "clip", 0.0, 1.0)

    @property
    def positive(self) -> Penalty:
        """``Focal(γ+)``."""
        return Focal(self.gamma_pos)

    @property
    def negative(self) -> Penalty:
        """``Focal(γ-)`` of a probability that is ``clip`` larger."""
        return _Shifted(self.gamma_neg, self.clip) if self.clip else Focal(self.gamma_neg)


@dataclass(frozen=True)
class BalancedFocal(BinaryPenalty):
    """The focal penalty with the share ``α`` for yes and ``1 - α`` for no, as in object detection.

    Args:
        gamma: ``γ``, at least 0.
        alpha: ``α``, in [0, 1].

    >>> BalancedFocal().positive.f(torch.tensor([0.5]).log())
    tensor([0.0433])

    See also: :func:`crossent.sigmoid_focal_loss`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """

    gamma: float = 2.0
    alpha: float = 0.25

    def __post_init__(self) -> None:
        _check(self, "gamma", 0.0)
        _check(self, "alpha", 0.0, 1.0)

    @property
    def positive(self) -> Penalty:
        """``α`` times ``Focal(γ)``."""
        return _Scaled(self.gamma, self.alpha)

    @property
    def negative(self) -> Penalty:
        """``1 - α`` times ``Focal(γ)``."""
        return _Scaled(self.gamma, 1 - self.alpha)


@dataclass(frozen=True)
class _Shifted(Focal):
    """The focal penalty of ``p' = min(p + clip, 1)``, with ``s(p') p / p'``; where p' has reached 1 nothing pulls."""

    clip: float = 0.05

    def f(self, log_p: Tensor) -> Tensor:
        return super().f((log_p.exp() + self.clip).clamp_max(1.0).log())

    def s(self, log_p: Tensor) -> Tensor:
        p = log_p.exp()
        q = (p + self.clip).clamp_max(1.0)
        return (super().s(q.log()) * (p / q)).masked_fill(q == 1, 0.0)


@dataclass(frozen=True)
class _Scaled(Focal):
    """The focal penalty times a number; a factor of 0 gives 0 even where the penalty is infinite or nan."""

    factor: float = 1.0

    def f(self, log_p: Tensor) -> Tensor:
        return self.factor * super().f(log_p) if self.factor else torch.zeros_like(log_p)

    def s(self, log_p: Tensor) -> Tensor:
        return self.factor * super().s(log_p) if self.factor else torch.zeros_like(log_p)


def costs_nothing(penalty: Penalty | None) -> bool:
    """Whether a penalty is 0 whatever the probability, and so leaves its side of a binary loss out."""
    return isinstance(penalty, _Scaled) and penalty.factor == 0
