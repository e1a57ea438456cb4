"""The networks that are trained: small, and the same for every loss."""

from __future__ import annotations

from torch import nn


def network() -> nn.Module:
    """Build the network for 8×8 images: two convolutions and a linear layer, 6 090 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )


def wide_network() -> nn.Module:
    """Build a network for 8×8 images that can learn every label by heart: three linear layers, 85 002 weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def canvas_network() -> nn.Module:
    """Build the network for 16×16 canvases: two convolutions and a linear layer, 16 330 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10)
    )


def pixel_network() -> nn.Module:
    """Build the network that gives 11 logits to each pixel and sees 14 pixels around it: four convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 44, 1), nn.PixelShuffle(2),
    )  # fmt: skip
