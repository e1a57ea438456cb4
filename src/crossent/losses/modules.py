"""The losses as modules, which are torch's own: subclasses, so that ``isinstance``, state dicts and pickles go on working.

A module keeps every option of its function as an attribute of that name and hands all of them over by going through the names.
Annotations are evaluated here: fastai and others read them off an instance, where the names in a string mean nothing.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from crossent.core.checks import as_python, check_tensor, class_axis, flag, integer, number, smoothing
from crossent.core.messages import shape, type_error
from crossent.core.penalties import BinaryPenalty, Focal, Penalty
from crossent.core.reduction import check_deprecated
from crossent.core.settings import (
    NUMBERS,
    BinaryModuleOptions,
    CrossEntropyModuleOptions,
    DistillationModuleOptions,
    FocalModuleOptions,
    LinearModuleOptions,
    MultilabelModuleOptions,
    Settings,
    SigmoidFocalModuleOptions,
    SoftmaxModuleOptions,
    check_names,
    default_of,
    names_of,
)
from crossent.core.shard import VocabShard
from crossent.core.target import Teacher
from crossent.losses.binary import binary_cross_entropy_with_logits
from crossent.losses.heads import head_of
from crossent.losses.linear import linear_cross_entropy
from crossent.losses.named import distillation_loss, multilabel_cross_entropy, sigmoid_focal
from crossent.losses.softmax import cross_entropy

_OF_THE_LOSS = ("logit_bias", "class_mask")  # tensors that say which loss it is, and no checkpoint is to change that


class _Options(nn.Module):
    """A loss with options: kept as attributes, handed over by name, and shown where they are not the default."""

    takes: ClassVar[type]
    defaults: ClassVar[dict[str, Any]] = {}
    shown_first: ClassVar[tuple[str, ...]] = ("reduction", "denominator")
    reduction: str
    denominator: float | Tensor | None
    empty: Literal["nan", "zero"]
    out_dtype: torch.dtype | None
    impl: str | None

    def _keep(self, given: Any) -> None:
        """Keep the options that are given, and of the others the default."""
        check_names(given, self.takes, type(self).__name__)
        for name in names_of(self.takes):
            value = given.get(name, self.default(name))
            value = as_python(value) if name in NUMBERS else value
            if name == "weight" and "weight" not in self._buffers:
                self.register_buffer(name, value)
            elif name in _OF_THE_LOSS and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            elif name in given or name not in self.__dict__:
                setattr(self, name, value)

    @classmethod
    def default(cls, name: str) -> Any:
        """Return the default of an option."""
        return cls.defaults[name] if name in cls.defaults else default_of(name)

    def _call(self, **of_the_batch: Any) -> dict[str, Any]:
        """Return the options of a call: those kept, with what the batch brings in their place."""
        kept = {name: getattr(self, name) for name in names_of(self.takes)}
        return kept | {name: value for name, value in of_the_batch.items() if value is not None}

    def _divisor(self) -> str:
        """Say what the mean divides by."""
        raise NotImplementedError

    def _first_words(self) -> list[str]:
        """Say what is always shown."""
        denominator = getattr(self, "denominator", None)
        if self.reduction == "mean":
            return [f"mean over {self._divisor() if denominator is None else denominator}"]
        unused = [] if denominator is None else [f"denominator={denominator}"]  # which the call will refuse
        return [f"reduction={self.reduction!r}", *unused]

    def extra_repr(self) -> str:
        """Say what the mean divides by, and every option that is not the default."""
        shown = self._first_words()
        for name in dict.fromkeys(("weight", "pos_weight", "ignore_index", "label_smoothing", *names_of(self.takes))):
            value, default = getattr(self, name, None), self.default(name)
            if name in self.shown_first or value is None or value is default:
                continue
            if isinstance(value, Tensor):
                classes = name == "weight" and value.dim() == 1
                shown.append(f"{name} of {len(value)} classes" if classes else f"{name} of shape {shape(value)}")
            elif value != default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


class _SoftmaxOptions(_Options):
    """The options of every softmax loss, declared for editors and type checkers."""

    penalty: Penalty | None
    temperature: float
    softcap: float | None
    logit_bias: Tensor | None
    margin: float
    class_mask: Tensor | None
    z_loss: float
    softcap_after_temperature: bool
    shard: VocabShard | None


class CrossEntropyLoss(_SoftmaxOptions, nn.CrossEntropyLoss):
    """Softmax cross entropy as a module: :class:`torch.nn.CrossEntropyLoss` computed by :func:`crossent.cross_entropy`.

    ``weight`` is a buffer and ``reduction`` may be changed at any time, as every other attribute. Arguments as in
    :func:`crossent.cross_entropy`; what belongs to a batch may also be given anew at each call: ``sample_weight``,
    ``denominator``, ``logit_bias`` and ``class_mask``.

    ``logit_bias`` and ``class_mask`` move with the module and are not in its state dict: they say which loss it is, like the
    numbers beside them, and a checkpoint must not change that. A ``logit_bias`` that is an ``nn.Parameter`` is one of the module.

    >>> CrossEntropyLoss(label_smoothing=0.1)
    CrossEntropyLoss(mean over the number of rows not ignored (probability targets: the number of rows), label_smoothing=0.1)
    >>> CrossEntropyLoss()(torch.zeros(4, 27), torch.tensor([1, 5, 9, 26]))
    tensor(3.2958)
    >>> from crossent import Focal
    >>> CrossEntropyLoss(reduction="sum", temperature=2.0, penalty=Focal())
    CrossEntropyLoss(reduction='sum', penalty=Focal(gamma=2.0), temperature=2.0)
    """

    takes: ClassVar[type] = CrossEntropyModuleOptions
    weight: Tensor | None
    dim: int | None
    inplace_backward: bool
    inplace_forward: bool

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Literal["none", "mean", "sum"] = "mean",
        label_smoothing: float = 0.0,
        **options: Unpack[CrossEntropyModuleOptions],
    ) -> None:
        check_deprecated(size_average, reduce)
        super().__init__(weight, size_average, as_python(ignore_index), reduce, reduction, as_python(label_smoothing))
        self._keep(options)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
        logit_bias: Tensor | None = None,
        class_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see :func:`crossent.cross_entropy`."""
        options = self._call(
            reduction=self.reduction, sample_weight=sample_weight, denominator=denominator, logit_bias=logit_bias,
            class_mask=class_mask,
        )  # fmt: skip
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing, **options
        )

    def activation(self, logits: Tensor) -> Tensor:
        """Compute the probabilities that a model trained with this loss gives, over its class dimension.

        They are ``softmax(cap · tanh(x / cap) / T)`` over the allowed classes, or what ``softcap_after_temperature`` makes of it.
        The bias and the margin, which make training harder than its use, are left out.
        """
        names = ("temperature", "softcap", "softcap_after_temperature")
        cap = Settings.of(**{name: getattr(self, name) for name in names}).softcap
        x = logits if cap is None else cap * (logits / cap).tanh()
        return self._masked(x / number("temperature", self.temperature)).softmax(self._class_dim(logits))

    def predict(self, logits: Tensor) -> Tensor:
        """Choose the most probable of the allowed classes for each row."""
        return self._masked(logits).argmax(self._class_dim(logits))

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Choose the most probable class from what :meth:`activation` gives, which is how fastai asks."""
        return probabilities.argmax(self._class_dim(probabilities))

    def _masked(self, logits: Tensor) -> Tensor:
        mask = self.class_mask
        if mask is None:
            return logits
        if mask.shape != logits.shape:
            mask = mask.reshape([-1] + [1] * (logits.dim() - 1 - self._class_dim(logits)))
        return logits.masked_fill(~mask, -torch.inf)

    def _class_dim(self, logits: Tensor) -> int:
        return class_axis(logits, self.dim)

    def _divisor(self) -> str:
        weight = "Σ weight[target] of" if self.weight is not None else "the number of"
        return f"{weight} rows not ignored (probability targets: the number of rows)"


class BCEWithLogitsLoss(_Options, nn.BCEWithLogitsLoss):
    """Sigmoid cross entropy as a module: torch's, computed by :func:`crossent.binary_cross_entropy_with_logits`.

    Arguments as there; ``mask``, ``sample_weight`` and ``denominator`` are given at each call.

    >>> BCEWithLogitsLoss(reduction="sum")
    BCEWithLogitsLoss(reduction='sum')
    >>> from crossent import Asymmetric
    >>> BCEWithLogitsLoss(ignore_index=-1, penalty=Asymmetric())
    BCEWithLogitsLoss(mean over the number of elements that count, ignore_index=-1,
    penalty=Asymmetric(gamma_pos=1.0, gamma_neg=4.0, clip=0.05))
    """

    takes = BinaryModuleOptions
    defaults: ClassVar[dict[str, Any]] = {"ignore_index": None}
    weight: Tensor | None
    pos_weight: Tensor | None
    dim: int | None
    inplace_backward: bool
    inplace_forward: bool
    ignore_index: float | None
    label_smoothing: float
    penalty: Penalty | BinaryPenalty | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Literal["none", "mean", "sum"] = "mean",
        pos_weight: Tensor | None = None,
        **options: Unpack[BinaryModuleOptions],
    ) -> None:
        check_deprecated(size_average, reduce)
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self._keep(options)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see :func:`crossent.binary_cross_entropy_with_logits`."""
        options = self._call(reduction=self.reduction, sample_weight=sample_weight, denominator=denominator, mask=mask)
        return binary_cross_entropy_with_logits(input, target, self.weight, pos_weight=self.pos_weight, **options)

    def activation(self, logits: Tensor) -> Tensor:
        """Compute the probabilities ``σ(logits)`` that this loss scores."""
        return logits.sigmoid()

    def predict(self, logits: Tensor) -> Tensor:
        """Say yes where the probability is at least one half."""
        return logits >= 0

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Say yes where what :meth:`activation` gives is at least one half, which is how fastai asks."""
        return probabilities >= 0.5

    def _divisor(self) -> str:
        return f"the number of elements{'' if self.ignore_index is None else ' that count'}"


class FocalLoss(CrossEntropyLoss):
    """The softmax focal loss as a module: :class:`CrossEntropyLoss` with ``penalty=Focal(γ)``.

    Args:
        gamma: ``γ``, at least 0.
        weight: ``(C)``, the paper's ``α``.
        options: what :class:`CrossEntropyLoss` takes by keyword, but for the penalty.

    >>> FocalLoss(2.0, reduction="sum")
    FocalLoss(reduction='sum', penalty=Focal(gamma=2.0))
    >>> FocalLoss()(torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([1]))
    tensor(0.0321)

    See also: :func:`crossent.focal_loss`, :class:`SigmoidFocalLoss`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, **options: Unpack[FocalModuleOptions]) -> None:
        check_names(options, FocalModuleOptions, "FocalLoss")
        super().__init__(weight, penalty=Focal(gamma), **options)


class MultilabelCrossEntropyLoss(CrossEntropyLoss):
    """Softmax cross entropy of rows with several labels as a module: ``t = 1/M`` on each of a row's M labels.

    Arguments as in :class:`CrossEntropyLoss`, without ``ignore_index``: rows without a label are ignored.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]).log()
    >>> MultilabelCrossEntropyLoss()(logits, [[0, 2], []])
    tensor(1.9560)

    See also: :func:`crossent.multilabel_cross_entropy`; :class:`BCEWithLogitsLoss`, in which classes do not compete.

    Source: Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining", 2018.
    """

    takes = SoftmaxModuleOptions

    def __init__(self, weight: Tensor | None = None, **options: Unpack[MultilabelModuleOptions]) -> None:
        check_names(options, MultilabelModuleOptions, "MultilabelCrossEntropyLoss")
        super().__init__(weight, **options)

    def forward(
        self,
        input: Tensor,
        target: Tensor | Sequence[Iterable[int]],
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
        logit_bias: Tensor | None = None,
        class_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see :func:`crossent.multilabel_cross_entropy`."""
        options = self._call(
            reduction=self.reduction, sample_weight=sample_weight, denominator=denominator, logit_bias=logit_bias,
            class_mask=class_mask,
        )  # fmt: skip
        return multilabel_cross_entropy(input, target, self.weight, label_smoothing=self.label_smoothing, **options)

    def _divisor(self) -> str:
        return "the number of rows with a label"


class SigmoidFocalLoss(BCEWithLogitsLoss):
    """The focal loss of object detection as a module: :class:`BCEWithLogitsLoss` with a focal penalty.

    Args:
        alpha: ``α`` in [0, 1], the share of yes; None for none.
        gamma: ``γ``, at least 0.
        reduction: ``"none"``, as :func:`crossent.sigmoid_focal_loss`, ``"sum"`` or ``"mean"``.
        options: what :class:`BCEWithLogitsLoss` takes by keyword, but for the penalty.

    >>> SigmoidFocalLoss(reduction="sum")
    SigmoidFocalLoss(reduction='sum', penalty=BalancedFocal(gamma=2.0, alpha=0.25))
    >>> SigmoidFocalLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
    tensor([0.0433, 1.2376])

    See also: :func:`crossent.sigmoid_focal_loss`, :class:`FocalLoss`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """

    def __init__(
        self,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        reduction: Literal["none", "mean", "sum"] = "none",
        **options: Unpack[SigmoidFocalModuleOptions],
    ) -> None:
        check_names(options, SigmoidFocalModuleOptions, "SigmoidFocalLoss")
        super().__init__(reduction=reduction, penalty=sigmoid_focal(alpha, gamma), **options)


class DistillationLoss(_Options):
    """Distillation as a module: ``T² KL(teacher‖student)``, and a share of cross entropy if there is a target.

    Args:
        temperature: ``T``, positive.
        alpha: ``α`` in [0, 1], the teacher's share where a target is given too.
        options: what :func:`crossent.distillation_loss` takes by keyword; ``weight`` is a buffer, and what belongs to a batch,
            ``sample_weight``, ``denominator`` and ``class_mask``, may be given at each call.

    >>> loss = DistillationLoss(temperature=4.0)
    >>> loss
    DistillationLoss(temperature=4.0, alpha=0.5, mean over the number of rows not ignored)
    >>> loss(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log())
    tensor(0.5815)

    See also: :func:`crossent.distillation_loss`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """

    takes = DistillationModuleOptions
    temperature: float
    alpha: float
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    dim: int | None
    teacher_grad: bool
    reverse: bool
    penalty: Penalty | None
    class_mask: Tensor | None
    z_loss: float

    def __init__(
        self, temperature: float = 1.0, alpha: float = 0.5, **options: Unpack[DistillationModuleOptions]
    ) -> None:
        super().__init__()
        self.temperature, self.alpha = as_python(temperature), as_python(alpha)
        self._keep(options)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
        class_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see :func:`crossent.distillation_loss`."""
        options = self._call(sample_weight=sample_weight, denominator=denominator, class_mask=class_mask)
        return distillation_loss(student_logits, teacher_logits, self.temperature, target, self.alpha, **options)

    def _first_words(self) -> list[str]:
        return [f"temperature={self.temperature}", f"alpha={self.alpha}", *super()._first_words()]

    def _divisor(self) -> str:
        return "the number of rows not ignored"


class LinearCrossEntropyLoss(_SoftmaxOptions, nn.LinearCrossEntropyLoss):
    """A linear head and its loss as a module: torch's, computed by :func:`crossent.linear_cross_entropy`.

    The head is ``linear``, an :class:`torch.nn.Linear` whose weight may be tied to an embedding. Arguments as in torch and in
    :func:`crossent.linear_cross_entropy`; what belongs to a batch may be given anew at each call.

    >>> loss = LinearCrossEntropyLoss(8, 27, shift=1)
    >>> loss
    LinearCrossEntropyLoss(
      in_features=8, num_classes=27, shift=1
      (linear): Linear(in_features=8, out_features=27, bias=False)
    )
    >>> hidden, tokens = torch.zeros(2, 5, 8), torch.randint(27, (2, 5))
    >>> round(loss(hidden, tokens).item(), 4)
    3.2958
    """

    takes = LinearModuleOptions
    defaults: ClassVar[dict[str, Any]] = {
        "ignore_index": None, "max_bytes": None, "max_rows": None, "out_features": (),
    }  # fmt: skip
    weight: Tensor | None
    label_smoothing: float
    sample_weight: Tensor | None
    shift: int
    max_bytes: int | None
    max_rows: int | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **more: Unpack[LinearModuleOptions],
    ) -> None:
        in_features, num_classes = integer("in_features", in_features), integer("num_classes", num_classes)
        rule = "a tuple of ints"
        if not isinstance(out_features, (tuple, list)):
            type_error("out_features", rule, out_features)
        out_features = tuple(integer("out_features", size, rule) for size in out_features)
        bias = flag("bias", bias)
        weight, label_smoothing = more.get("weight"), as_python(more.get("label_smoothing", 0.0))
        if weight is not None and check_tensor("weight", weight, "a torch.Tensor of shape (C,) or None").shape != (
            num_classes,
        ):
            raise RuntimeError(f"weight must have shape ({num_classes},), one a class, got {tuple(weight.shape)}")
        smoothing("label_smoothing", label_smoothing)
        if not label_smoothing >= 0.0:
            raise RuntimeError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        reduction = more.get("reduction", "mean")
        nn.modules.loss._WeightedLoss.__init__(self, weight, reduction=reduction)
        self.num_classes, self.out_features = num_classes, out_features
        self.linear = nn.Linear(
            in_features, prod(out_features, start=num_classes), bias=bias, device=device, dtype=dtype
        )
        self._keep(more)

    def forward(self, input: Tensor, target: Tensor | Teacher, **of_the_batch: Any) -> Tensor:
        """Compute the loss; see :func:`crossent.linear_cross_entropy`."""
        classes = (self.num_classes, *self.out_features)
        input, weight, bias = head_of(self.linear, input)
        options = self._call() | of_the_batch
        return linear_cross_entropy(
            input,
            weight.reshape(*classes, -1),
            target,
            linear_bias=None if bias is None else bias.reshape(classes),
            **options,
        )

    def _first_words(self) -> list[str]:
        first = [f"in_features={self.linear.in_features}", f"num_classes={self.num_classes}"]
        first += [f"out_features={self.out_features}"] if self.out_features else []
        first += [f"reduction={self.reduction!r}"] if self.reduction != "mean" else []
        return first + ([f"denominator={self.denominator}"] if self.denominator is not None else [])
