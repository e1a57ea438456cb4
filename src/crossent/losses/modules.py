"""The losses as modules, which are torch's own: subclasses, so that ``isinstance``, state dicts and pickles go on working."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from crossent.core.penalties import BinaryPenalty, Focal, Penalty
from crossent.losses.linear import MAX_BYTES, check_names, linear_cross_entropy
from crossent.losses.named import distillation_loss, multilabel_cross_entropy, sigmoid_focal
from crossent.losses.softmax import binary_cross_entropy_with_logits, cross_entropy

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from crossent.impl.head import Teacher
    from crossent.losses.linear import LinearOptions
    from crossent.losses.softmax import BinaryModuleOptions, CrossEntropyModuleOptions


class _Extras:
    """The keyword-only settings that both modules add to torch's."""

    denominator: float | Tensor | None
    empty: Literal["nan", "zero"]
    out_dtype: torch.dtype | None
    inplace_backward: bool
    impl: str | None

    def _describe_extras(self, divisor: str) -> str:
        if self.denominator is not None:
            divisor = str(self.denominator)
        said = [f"mean over {divisor}"] if self.reduction == "mean" else [f"reduction={self.reduction!r}"]  # type: ignore[attr-defined]
        said += [f"empty={self.empty!r}"] if self.empty != "nan" else []
        said += [f"out_dtype={self.out_dtype}"] if self.out_dtype is not None else []
        said += ["inplace_backward=True"] if self.inplace_backward else []
        said += [f"impl={self.impl!r}"] if self.impl is not None else []
        return ", ".join(said)


class CrossEntropyLoss(_Extras, nn.CrossEntropyLoss):
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

    logit_bias: Tensor | None
    class_mask: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        denominator: float | Tensor | None = None,
        empty: Literal["nan", "zero"] = "nan",
        out_dtype: torch.dtype | None = None,
        dim: int | None = None,
        penalty: Penalty | None = None,
        temperature: float = 1.0,
        softcap: float | None = None,
        logit_bias: Tensor | None = None,
        margin: float = 0.0,
        class_mask: Tensor | None = None,
        z_loss: float = 0.0,
        inplace_backward: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.denominator, self.empty, self.out_dtype, self.dim = denominator, empty, out_dtype, dim
        self.penalty, self.temperature, self.softcap = penalty, temperature, softcap
        self.margin, self.z_loss = margin, z_loss
        self.inplace_backward, self.impl = inplace_backward, impl
        if isinstance(logit_bias, nn.Parameter):
            self.logit_bias = logit_bias
        else:
            self.register_buffer("logit_bias", logit_bias, persistent=False)
        self.register_buffer("class_mask", class_mask, persistent=False)

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
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            denominator=self.denominator if denominator is None else denominator,
            empty=self.empty,
            out_dtype=self.out_dtype,
            dim=self.dim,
            penalty=self.penalty,
            temperature=self.temperature,
            softcap=self.softcap,
            logit_bias=self.logit_bias if logit_bias is None else logit_bias,
            margin=self.margin,
            class_mask=self.class_mask if class_mask is None else class_mask,
            z_loss=self.z_loss,
            inplace_backward=self.inplace_backward,
            impl=self.impl,
        )

    def activation(self, logits: Tensor) -> Tensor:
        """Compute the probabilities that a model trained with this loss gives, over its class dimension.

        They are ``softmax(cap · tanh(x / cap) / T)`` over the allowed classes. The bias and the margin, which make training
        harder than its use, are left out.
        """
        x = logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()
        return self._masked(x / self.temperature).softmax(self._class_dim(logits))

    def predict(self, logits: Tensor) -> Tensor:
        """Choose the most probable of the allowed classes for each row."""
        return self._masked(logits).argmax(self._class_dim(logits))

    def _masked(self, logits: Tensor) -> Tensor:
        mask = self.class_mask
        if mask is None:
            return logits
        if mask.shape != logits.shape:
            mask = mask.reshape([-1] + [1] * (logits.dim() - 1 - self._class_dim(logits)))
        return logits.masked_fill(~mask, -torch.inf)

    def _divisor(self) -> str:
        weight = "Σ weight[target] of" if self.weight is not None else "the number of"
        return f"{weight} rows not ignored (probability targets: the number of rows)"

    def _class_dim(self, logits: Tensor) -> int:
        return self.dim % logits.dim() if self.dim is not None else min(logits.dim() - 1, 1)

    def extra_repr(self) -> str:
        """Say what the mean divides by, and every setting that is not the default."""
        said = [self._describe_extras(self._divisor())]
        said += [f"weight of {len(self.weight)} classes"] if self.weight is not None else []
        said += [f"ignore_index={self.ignore_index}"] if self.ignore_index != -100 else []
        said += [f"label_smoothing={self.label_smoothing}"] if self.label_smoothing else []
        said += [f"dim={self.dim}"] if self.dim is not None else []
        said += [f"penalty={self.penalty}"] if self.penalty is not None else []
        said += [f"temperature={self.temperature}"] if self.temperature != 1 else []
        said += [f"softcap={self.softcap}"] if self.softcap is not None else []
        said += [f"logit_bias of shape {tuple(self.logit_bias.shape)}"] if self.logit_bias is not None else []
        said += [f"margin={self.margin}"] if self.margin else []
        if self.class_mask is not None:
            said += [f"class_mask of shape {tuple(self.class_mask.shape)}"]
        said += [f"z_loss={self.z_loss}"] if self.z_loss else []
        return ", ".join(said)


class BCEWithLogitsLoss(_Extras, nn.BCEWithLogitsLoss):
    """Sigmoid cross entropy as a module: torch's, computed by :func:`crossent.binary_cross_entropy_with_logits`.

    Arguments as there; ``mask``, ``sample_weight`` and ``denominator`` are given at each call.

    >>> BCEWithLogitsLoss(reduction="sum")
    BCEWithLogitsLoss(reduction='sum')
    >>> from crossent import Asymmetric
    >>> BCEWithLogitsLoss(ignore_index=-1, penalty=Asymmetric())
    BCEWithLogitsLoss(mean over the number of elements that count, ignore_index=-1,
    penalty=Asymmetric(gamma_pos=1.0, gamma_neg=4.0, clip=0.05))
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        denominator: float | Tensor | None = None,
        empty: Literal["nan", "zero"] = "nan",
        out_dtype: torch.dtype | None = None,
        ignore_index: float | None = None,
        label_smoothing: float = 0.0,
        dim: int | None = None,
        penalty: Penalty | BinaryPenalty | None = None,
        inplace_backward: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.denominator, self.empty, self.out_dtype = denominator, empty, out_dtype
        self.ignore_index, self.label_smoothing, self.dim, self.penalty = ignore_index, label_smoothing, dim, penalty
        self.inplace_backward, self.impl = inplace_backward, impl

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
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            sample_weight=sample_weight,
            denominator=self.denominator if denominator is None else denominator,
            empty=self.empty,
            out_dtype=self.out_dtype,
            ignore_index=self.ignore_index,
            mask=mask,
            label_smoothing=self.label_smoothing,
            dim=self.dim,
            penalty=self.penalty,
            inplace_backward=self.inplace_backward,
            impl=self.impl,
        )

    def activation(self, logits: Tensor) -> Tensor:
        """Compute the probabilities ``σ(logits)`` that this loss scores."""
        return logits.sigmoid()

    def predict(self, logits: Tensor) -> Tensor:
        """Say yes where the probability is at least one half."""
        return logits >= 0

    def extra_repr(self) -> str:
        """Say what the mean divides by, and every setting that is not the default."""
        said = [self._describe_extras(f"the number of elements{'' if self.ignore_index is None else ' that count'}")]
        said += [f"weight of shape {tuple(self.weight.shape)}"] if self.weight is not None else []
        said += [f"pos_weight of shape {tuple(self.pos_weight.shape)}"] if self.pos_weight is not None else []
        said += [f"ignore_index={self.ignore_index}"] if self.ignore_index is not None else []
        said += [f"label_smoothing={self.label_smoothing}"] if self.label_smoothing else []
        said += [f"dim={self.dim}"] if self.dim is not None else []
        said += [f"penalty={self.penalty}"] if self.penalty is not None else []
        return ", ".join(said)


class FocalLoss(CrossEntropyLoss):
    """The softmax focal loss as a module: :class:`CrossEntropyLoss` with ``penalty=Focal(γ)``.

    Args:
        gamma: ``γ``, at least 0.
        weight: ``(C)``, the paper's ``α``.
        options: what :class:`CrossEntropyLoss` takes by keyword.

    >>> FocalLoss(2.0, reduction="sum")
    FocalLoss(reduction='sum', penalty=Focal(gamma=2.0))
    >>> FocalLoss()(torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([1]))
    tensor(0.0321)

    See also: :func:`crossent.focal_loss`, :class:`SigmoidFocalLoss`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """

    def __init__(
        self, gamma: float = 2.0, weight: Tensor | None = None, **options: Unpack[CrossEntropyModuleOptions]
    ) -> None:
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
        return multilabel_cross_entropy(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            denominator=self.denominator if denominator is None else denominator,
            empty=self.empty,
            out_dtype=self.out_dtype,
            dim=self.dim,
            inplace_backward=self.inplace_backward,
            impl=self.impl,
            penalty=self.penalty,
            temperature=self.temperature,
            softcap=self.softcap,
            logit_bias=self.logit_bias if logit_bias is None else logit_bias,
            margin=self.margin,
            class_mask=self.class_mask if class_mask is None else class_mask,
            z_loss=self.z_loss,
        )

    def _divisor(self) -> str:
        return "the number of rows with a label"


class SigmoidFocalLoss(BCEWithLogitsLoss):
    """The focal loss of object detection as a module: :class:`BCEWithLogitsLoss` with a focal penalty.

    Args:
        alpha: ``α`` in [0, 1], the share of yes; None for none.
        gamma: ``γ``, at least 0.
        reduction: ``"none"``, as :func:`crossent.sigmoid_focal_loss`, ``"sum"`` or ``"mean"``.
        options: what :class:`BCEWithLogitsLoss` takes by keyword.

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
        reduction: str = "none",
        **options: Unpack[BinaryModuleOptions],
    ) -> None:
        super().__init__(reduction=reduction, penalty=sigmoid_focal(alpha, gamma), **options)


class DistillationLoss(nn.Module):
    """Distillation as a module: ``T² KL(teacher‖student)``, and a share of cross entropy if there is a target.

    Args:
        temperature: ``T``, positive.
        alpha: ``α`` in [0, 1], the teacher's share where a target is given too.
        weight: class weights of the hard part, ``(C)``; a buffer.
        ignore_index: rows with this index count for nothing.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        label_smoothing: ``ε`` of the hard part.
        empty: what the mean over nothing is, ``"nan"`` or ``"zero"``.
        out_dtype: dtype of the result.
        dim: the class dimension.
        teacher_grad: differentiate in the teacher's logits too.
        impl: as in :func:`crossent.cross_entropy`.

    >>> loss = DistillationLoss(temperature=4.0)
    >>> loss
    DistillationLoss(temperature=4.0, alpha=0.5, mean over the number of rows not ignored)
    >>> loss(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log())
    tensor(0.5815)

    See also: :func:`crossent.distillation_loss`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """

    weight: Tensor | None

    def __init__(
        self,
        temperature: float = 1.0,
        alpha: float = 0.5,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        empty: Literal["nan", "zero"] = "nan",
        out_dtype: torch.dtype | None = None,
        dim: int | None = None,
        teacher_grad: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.temperature, self.alpha, self.ignore_index, self.reduction = temperature, alpha, ignore_index, reduction
        self.label_smoothing, self.empty, self.out_dtype = label_smoothing, empty, out_dtype
        self.dim, self.teacher_grad, self.impl = dim, teacher_grad, impl

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see :func:`crossent.distillation_loss`."""
        return distillation_loss(
            student_logits,
            teacher_logits,
            self.temperature,
            target,
            self.alpha,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            denominator=denominator,
            empty=self.empty,
            out_dtype=self.out_dtype,
            dim=self.dim,
            teacher_grad=self.teacher_grad,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Say the settings, and what the mean divides by."""
        mean = "mean over the number of rows not ignored"
        said = [f"temperature={self.temperature}", f"alpha={self.alpha}"]
        said += [mean if self.reduction == "mean" else f"reduction={self.reduction!r}"]
        said += [f"weight of {len(self.weight)} classes"] if self.weight is not None else []
        said += [f"ignore_index={self.ignore_index}"] if self.ignore_index != -100 else []
        said += [f"label_smoothing={self.label_smoothing}"] if self.label_smoothing else []
        said += [f"empty={self.empty!r}"] if self.empty != "nan" else []
        said += [f"out_dtype={self.out_dtype}"] if self.out_dtype is not None else []
        said += [f"dim={self.dim}"] if self.dim is not None else []
        said += ["teacher_grad=True"] if self.teacher_grad else []
        said += [f"impl={self.impl!r}"] if self.impl is not None else []
        return ", ".join(said)


_TorchsLinear: Any = getattr(nn, "LinearCrossEntropyLoss", nn.modules.loss._WeightedLoss)  # torch has it from 2.13 on


class LinearCrossEntropyLoss(_TorchsLinear):
    """A linear head and its loss as a module: :class:`torch.nn.LinearCrossEntropyLoss` by :func:`crossent.linear_cross_entropy`.

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

    weight: Tensor | None
    logit_bias: Tensor | None
    class_mask: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object = None,
        shift: int = 0,
        max_bytes: int = MAX_BYTES,
        **more: Unpack[LinearOptions],
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"weight must have shape ({num_classes},), one a class, got {tuple(weight.shape)}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        check_names(more)
        nn.modules.loss._WeightedLoss.__init__(self, weight, reduction=reduction)
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        self.shift, self.max_bytes = shift, max_bytes
        self.linear = nn.Linear(
            in_features, prod(out_features, start=num_classes), bias=bias, device=device, dtype=dtype
        )
        self.register_buffer("logit_bias", more.pop("logit_bias", None), persistent=False)
        self.register_buffer("class_mask", more.pop("class_mask", None), persistent=False)
        self.more: LinearOptions = more

    def forward(self, input: Tensor, target: Tensor | Teacher, **more: Unpack[LinearOptions]) -> Tensor:
        """Compute the loss; see :func:`crossent.linear_cross_entropy`."""
        classes, bias = (self.num_classes, *self.out_features), self.linear.bias
        settings: Any = {"logit_bias": self.logit_bias, "class_mask": self.class_mask, **self.more, **more}
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*classes, -1),
            target,
            linear_bias=None if bias is None else bias.reshape(classes),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            shift=self.shift,
            max_bytes=self.max_bytes,
            **settings,
        )

    def extra_repr(self) -> str:
        """Say the settings that are not the usual ones."""
        usual = {
            "out_features": (),
            "reduction": "mean",
            "ignore_index": None,
            "label_smoothing": 0.0,
            "shift": 0,
            "max_bytes": MAX_BYTES,
        }
        said = [f"in_features={self.linear.in_features}", f"num_classes={self.num_classes}"]
        said += [f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value]
        said += [f"weight of {len(self.weight)} classes"] if self.weight is not None else []
        said += [f"{name}={value!r}" for name, value in self.more.items()]
        return ", ".join(said)
