"""Learned 2D positions of image features."""

import numpy as np
import torch
from torch import nn

SCALE = 0.3
"""Initial amplitude of positions, for features of unit variance."""


class Positions2D(nn.Module):
    """Add a learned vector to each feature of float[B, side * side, dim], in reading order."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.places = sine_positions(side, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.places


def sine_positions(side: int, dim: int) -> nn.Parameter:
    """Learned positions of a square grid, float[side * side, dim], initialized with sines and cosines.

    Sine and cosine of column and row (Vaswani et al. 2017, arXiv:1706.03762) take a quarter of the channels each.
    Wavelengths range from 4 positions to 4 sides; the longest are nearly linear across the image.

    Args:
        side: Positions on a side of the grid.
        dim: A multiple of 4.
    """
    rates = np.pi / 2 / side ** np.linspace(0, 1, dim // 4)
    angles = np.arange(side)[:, None] * rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = (np.broadcast_to(w, (side, side, dim // 2)) for w in (waves[None, :], waves[:, None]))
    places = np.concatenate([columns, rows], axis=2).reshape(side * side, dim)
    learned = nn.Parameter(torch.empty(side * side, dim))
    with torch.no_grad():
        learned.copy_(torch.from_numpy(SCALE * places))
    return learned
