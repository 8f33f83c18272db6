"""Where on the image a feature lies."""

import numpy as np
import torch
from torch import nn

SCALE = 0.3
"""Amplitude of the first positions, beside features of unit variance."""


class Positions2D(nn.Module):
    """float[B, side * side, dim], in reading order, plus a learned vector for each place."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.places = sine_places(side, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.places


def sine_places(side: int, dim: int) -> nn.Parameter:
    """float[side * side, dim], dim a multiple of 4: a vector for each place of a square, to be learned from there.

    Sines and cosines (Vaswani et al. 2017, arXiv:1706.03762) of column and row, a quarter of the channels each, from
    a wavelength of 4 places to one of 4 sides: along the long ones left and right, above and below are nearly
    straight lines.
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
