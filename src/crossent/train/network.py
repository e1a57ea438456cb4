"""The networks that are trained: small, and the same for every loss."""

from __future__ import annotations

from torch import nn


def network() -> nn.Module:
    """Build the network for 8×8 images: two convolutions and a linear layer, 6 090 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
