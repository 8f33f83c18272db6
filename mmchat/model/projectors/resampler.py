"""The resampler: learned queries attend to all patches, which gives any square number of slots."""

from dataclasses import dataclass
from math import gcd, isqrt

import torch
from torch import nn
from torch.nn import functional as F

from mmchat.errors import UserError
from mmchat.model.projectors.positions import Positions2D, sine_positions
from mmchat.model.projectors.projector import grid_side
from mmchat.vision import TowerSpec

HEAD_DIM = 128
"""Head dimension of Qwen-VL. If it does not divide the hidden size, the greatest common divisor of both is used."""


@dataclass(frozen=True)
class ResamplerKind:
    """`queries` slots per view, a square number (Qwen-VL: 256)."""

    queries: int

    def __post_init__(self) -> None:
        side = isqrt(self.queries)
        if side**2 != self.queries:
            raise UserError(
                f"projector resampler{self.queries}: queries start as positions of a square grid, but {self.queries} "
                f"is not a square number; the nearest are resampler{side**2} and resampler{(side + 1) ** 2}"
            )

    def slots(self, spec: TowerSpec) -> int:
        grid_side(spec, 1, "the resampler")
        return self.queries

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        if out_dim % 4:
            raise UserError(f"the resampler needs a hidden size that is a multiple of 4, found {out_dim}")
        return Resampler(spec.dim, out_dim, isqrt(spec.tokens), isqrt(self.queries))


class Resampler(nn.Module):
    """One layer of cross-attention from learned queries to the patches (Qwen-VL, arXiv:2308.12966, section 2.1).

    float[B, grid * grid, in_dim] -> float[B, side * side, dim]. Queries and patches have positions; those of
    patches are added to keys only. Unlike in Qwen-VL, positions are learned, starting from sines and cosines.
    """

    def __init__(self, in_dim: int, dim: int, grid: int, side: int) -> None:
        super().__init__()
        self.heads = dim // gcd(dim, HEAD_DIM)
        self.enter = nn.Linear(in_dim, dim, bias=False)
        self.patch_norm = nn.LayerNorm(dim)
        self.patch_positions = Positions2D(grid, dim)
        self.queries = sine_positions(side, dim)
        self.query_norm = nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.out_norm = nn.LayerNorm(dim)
        self.leave = nn.Linear(dim, dim, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        patches = self.patch_norm(self.enter(patches))
        queries = self.q_proj(self.query_norm(self.queries)).expand(len(patches), -1, -1)
        keys, values = self.k_proj(self.patch_positions(patches)), self.v_proj(patches)
        heads = (states.unflatten(-1, (self.heads, -1)).transpose(1, 2) for states in (queries, keys, values))
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.leave(self.out_norm(self.out_proj(attended)))
