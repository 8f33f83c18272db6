"""Learned position embeddings for another grid of patches: interpolated, or kept and extended."""

from math import isqrt

import torch
from torch import nn


def resize_positions(
    table: torch.Tensor,
    class_tokens: int,
    grid: tuple[int, int],
    mode: str = "bicubic",
    antialias: bool = False,
    keep_positions: bool = False,
) -> torch.Tensor:
    """Adapt learned position embeddings to another grid of patches.

    Args:
        table: float[.., class_tokens + n * n, width].
        class_tokens: Number of leading positions that are not on the grid.
        grid: Rows and columns of patches.
        mode: "bilinear" or "bicubic".
        antialias: Whether the interpolation is antialiased.
        keep_positions: Do not interpolate: row 3, column 5 keeps its embedding in any grid. Positions beyond the table
            get the nearest one.

    Returns:
        float[.., class_tokens + rows * columns, width].
    """
    positions = table.reshape(-1, table.shape[-1])
    first, learned = positions[:class_tokens], positions[class_tokens:]
    side = isqrt(len(learned))
    square = learned.float().T.reshape(1, -1, side, side)
    if keep_positions:
        rows, columns = (torch.arange(count, device=table.device).clamp(max=side - 1) for count in grid)
        other = square[:, :, rows][..., columns]
    else:
        other = _interpolate(square, grid, mode, antialias)
    resized = torch.cat([first, other.flatten(2)[0].T.to(table.dtype)])
    return resized.reshape(*table.shape[:-2], *resized.shape)


def _interpolate(square: torch.Tensor, grid: tuple[int, int], mode: str, antialias: bool) -> torch.Tensor:
    """`F.interpolate`: float[1, C, n, n] -> float[1, C, rows, columns].

    With antialiasing and one column, torch's CPU kernel gives all rows the weights of the first (torch 2.13,
    aten/src/ATen/native/cpu/UpSampleKernel.cpp `basic_loop_aa_vertical`). The transposed problem is computed correctly.
    """
    if antialias and grid[1] == 1:
        return nn.functional.interpolate(square.mT, grid[::-1], mode=mode, antialias=True).mT
    return nn.functional.interpolate(square, grid, mode=mode, antialias=antialias)
