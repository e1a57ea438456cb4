"""The losses as modules, which are torch's own: subclasses, so that ``isinstance``, state dicts and pickles go on working."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from crossent.functional import binary_cross_entropy_with_logits, cross_entropy


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

    ``weight`` is a buffer and ``reduction`` may be changed at any time. Arguments as in :func:`crossent.cross_entropy`;
    ``denominator`` may also be given anew at each call, with ``sample_weight``.

    >>> CrossEntropyLoss(label_smoothing=0.1)
    CrossEntropyLoss(mean over the number of rows not ignored (probability targets: the number of rows), label_smoothing=0.1)
    >>> CrossEntropyLoss()(torch.zeros(4, 27), torch.tensor([1, 5, 9, 26]))
    tensor(3.2958)
    """

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
        inplace_backward: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.denominator, self.empty, self.out_dtype, self.dim = denominator, empty, out_dtype, dim
        self.inplace_backward, self.impl = inplace_backward, impl

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
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
            inplace_backward=self.inplace_backward,
            impl=self.impl,
        )

    def activation(self, logits: Tensor) -> Tensor:
        """Compute the probabilities ``softmax(logits)`` that this loss scores, over its class dimension."""
        return logits.softmax(self._class_dim(logits))

    def predict(self, logits: Tensor) -> Tensor:
        """Choose the most probable class of each row."""
        return logits.argmax(self._class_dim(logits))

    def _class_dim(self, logits: Tensor) -> int:
        return self.dim if self.dim is not None else min(logits.dim() - 1, 1)

    def extra_repr(self) -> str:
        """Say what the mean divides by, and every setting that is not the default."""
        weight = "Σ weight[target] of" if self.weight is not None else "the number of"
        said = [self._describe_extras(f"{weight} rows not ignored (probability targets: the number of rows)")]
        said += [f"weight of {len(self.weight)} classes"] if self.weight is not None else []
        said += [f"ignore_index={self.ignore_index}"] if self.ignore_index != -100 else []
        said += [f"label_smoothing={self.label_smoothing}"] if self.label_smoothing else []
        said += [f"dim={self.dim}"] if self.dim is not None else []
        return ", ".join(said)


class BCEWithLogitsLoss(_Extras, nn.BCEWithLogitsLoss):
    """Sigmoid cross entropy as a module: torch's, computed by :func:`crossent.binary_cross_entropy_with_logits`.

    >>> BCEWithLogitsLoss(reduction="sum")
    BCEWithLogitsLoss(reduction='sum')
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
        inplace_backward: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.denominator, self.empty, self.out_dtype = denominator, empty, out_dtype
        self.inplace_backward, self.impl = inplace_backward, impl

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
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
        said = [self._describe_extras("the number of elements")]
        said += [f"weight of shape {tuple(self.weight.shape)}"] if self.weight is not None else []
        said += [f"pos_weight of shape {tuple(self.pos_weight.shape)}"] if self.pos_weight is not None else []
        return ", ".join(said)
