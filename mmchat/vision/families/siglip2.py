"""SigLIP 2 for any aspect ratio (NaFlex; Tschannen et al. 2025, arXiv:2502.14786), on transformers'
`Siglip2VisionModel`. It sees images of native aspect or, with any other fit, squares.
"""

from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedConfig, Siglip2VisionConfig, Siglip2VisionModel
from transformers.masking_utils import create_bidirectional_mask

from mmchat.errors import UserError
from mmchat.vision.block_tower import resize_positions
from mmchat.vision.families.siglip import Siglip
from mmchat.vision.spec import Grid, TowerConfig, TowerSpec
from mmchat.vision.tower import TowerOutput


class Siglip2(Siglip):
    """Its size is a number of patches, `num_patches`, that of the square of its learned positions."""

    config_class, backbone_class = Siglip2VisionConfig, Siglip2VisionModel
    interpolation = "bilinear"
    any_size = True
    any_aspect = True

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        spec = super().spec_of(config)
        if not spec.native:
            return spec
        how = spec.preprocessing
        return replace(spec, tokens=1, preprocessing=replace(how, max_patches=how.max_patches or spec.tokens))

    @classmethod
    def size_of(cls, backbone: PreTrainedConfig) -> int:
        side = isqrt(backbone.num_patches)
        if side**2 != backbone.num_patches:
            raise UserError(f"num_patches is {backbone.num_patches}; learned positions make a square, as {side**2} do")
        return side * backbone.patch_size

    @classmethod
    def with_size(cls, backbone: dict[str, Any], image_size: int) -> dict[str, Any]:
        patch = cls.config_class(**backbone).patch_size
        return {**backbone, "num_patches": (image_size // patch) ** 2}

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict]:
        patch = self.spec.patch_size
        grid = pixel_values.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return self._patches(patches) + self._positions(), {"attention_mask": None}

    def forward(self, pixel_values: torch.Tensor, pooled: bool = False, grids: list[Grid] | None = None) -> TowerOutput:
        """grids: of all images, in order; for native aspect, and only there.

        Raises:
            ValueError: there are none where they are needed, or they have more or fewer patches than `pixel_values`.
        """
        if grids is None and not self.spec.native:
            return super().forward(pixel_values, pooled)
        counts = [rows * columns for rows, columns in grids or ()]
        if not self.spec.native or sum(counts) != len(pixel_values):
            raise ValueError(
                f"a {self.config.family} of fit {self.spec.preprocessing.fit} was given {len(pixel_values)} views and "
                f"grids of {sum(counts)} patches"
            )
        return self._native(pixel_values, grids, counts, pooled)

    def _native(self, pixel_values: torch.Tensor, grids: list[Grid], counts: list[int], pooled: bool) -> TowerOutput:
        """Images side by side, each padded to the longest: float[patches of all, 3, p, p] -> float[.., 1, D].

        Positions, padding and mask are transformers' (`Siglip2VisionEmbeddings`, `Siglip2VisionModel.forward`).
        """
        table = self._positions()
        by_grid = {grid: resize_positions(table, 0, grid, self.interpolation, antialias=True) for grid in set(grids)}
        flat = self._patches(pixel_values) + torch.cat([by_grid[grid] for grid in grids])
        # Where things go is known on the CPU, so that the accelerator is not waited for.
        there = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        places = there.flatten().nonzero()[:, 0].to(flat.device, non_blocking=True)
        padded = flat.new_zeros(there.numel(), flat.shape[1]).index_copy(0, places, flat).unflatten(0, there.shape)
        mask = create_bidirectional_mask(self.backbone.config, padded.new_empty((*there.shape, 0), device="cpu"), there)
        told = {"attention_mask": mask if mask is None else mask.to(flat.device, non_blocking=True)}
        patches, normed = self.run_blocks(padded, told, pooled)
        vectors = self._pooled(normed, there.to(flat.device)) if pooled else None
        return TowerOutput(patches.flatten(0, 1)[places, None], vectors)

    def resized(self, image_size: int, keep_positions: bool = False) -> "Siglip2":
        if self.spec.native:
            raise UserError(
                "a tower of fit native has no image size: say how many patches an image has at most (max_patches), or "
                "choose a fit that makes squares"
            )
        return super().resized(image_size, keep_positions)

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """float[.., 3, p, p] -> float[.., width]. A pixel's colours lie together, rows of pixels one after another."""
        embedding = self.backbone.embeddings.patch_embedding
        return embedding(pixels.movedim(-3, -1).flatten(-3).to(embedding.weight.dtype))

    def _positions(self) -> torch.Tensor:
        """Learned ones, float[num_patches, width]; by way of their module, which ZeRO 3 watches."""
        table = self.backbone.embeddings.position_embedding
        return table(torch.arange(self.backbone.config.num_patches, device=table.weight.device))
