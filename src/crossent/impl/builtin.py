"""Torch's own operators, for plain calls on devices for which there are no kernels here.

There the exact formulas would move several times as many bytes as torch's operator does, and nobody is to be made worse. What
comes with it: a confident row loses its relative accuracy in float32 as it does in torch, and the gradient of an ignored row is
nan where its logits are. Sums and means over rows are still formed in float32 or wider. On the CPU they run only
where they are named. They take what torch takes, and give losses that autograd differentiates: no gradients, statistics or blocks
of a head.
"""

from __future__ import annotations

from torch import Tensor

from crossent.core import torchs
from crossent.core.reduction import compute_dtype, divide, ordered_sum
from crossent.core.target import BinaryTarget, Target, stand_in
from crossent.impl.protocol import Forward, Implementation


class Builtin(Implementation):
    """``torch.nn.functional.cross_entropy`` and ``binary_cross_entropy_with_logits``."""

    name = "torch"
    differentiable = True

    def refuses(
        self, logits: Tensor, target: Tensor | None = None, described: Target | BinaryTarget | None = None
    ) -> str | None:
        """Say what torch does not take."""
        if described is None:
            return None
        if not described.plain:
            return f"torch's own operators do not take {described.special[0]}"
        for name, tensor in zip(described._fields, described.tensors, strict=False):
            if tensor is not None and tensor.is_floating_point() and tensor.numel() and tensor.dtype != logits.dtype:
                what = "target" if name == "values" else name
                return f"torch's own operators take {what} in {logits.dtype} for such logits, not in {tensor.dtype}"
        return None

    def chosen_for(self, logits: Tensor) -> bool:
        """Not on the CPU, where there is something exact that is as fast."""
        return logits.device.type != "cpu"

    def cross_entropy_forward(self, logits: Tensor, target: Target, reduction: str) -> Forward:
        """Compute the losses of rows and sum them in float32 or wider; there is no lse, and losses stand in its place."""
        dtype, settings = compute_dtype(logits), target.settings
        losses = torchs.cross_entropy(
            logits, target.values, target.weight, ignore_index=settings.ignore_index, reduction="none",
            label_smoothing=settings.label_smoothing,
        )  # fmt: skip
        if reduction == "none":
            return Forward(losses, target.row_weights(stand_in(logits, dtype)).squeeze(1), losses)
        total, divisor = ordered_sum(losses.to(dtype)), target.divisor(logits)
        return Forward(divide(total, divisor, "nan") if reduction == "mean" else total, divisor, losses)

    def binary_cross_entropy_forward(
        self, logits: Tensor, target: BinaryTarget, reduce: bool, divisor: float = 1.0
    ) -> Tensor:
        """Compute the losses of elements, or their sum over the divisor."""
        losses = torchs.binary_cross_entropy_with_logits(
            logits, target.values, target.weight, reduction="none", pos_weight=target.pos_weight
        )
        return divide(losses.sum(dtype=compute_dtype(logits)), divisor, "nan") if reduce else losses


IMPLEMENTATION = Builtin()
