"""Torch's own losses, by names that :func:`crossent.patch` leaves alone, so that torch computes them while a patch stands."""

from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "linear_cross_entropy"]
