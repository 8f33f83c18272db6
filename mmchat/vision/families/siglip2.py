"""SigLIP 2 for any aspect ratio (NaFlex; Tschannen et al. 2025, arXiv:2502.14786), on transformers'
`Siglip2VisionModel`. With fit native it takes images of any aspect ratio, with other fits squares.
"""

from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedConfig, Siglip2VisionConfig, Siglip2VisionModel
from transformers.masking_utils import create_bidirectional_mask

from mmchat.errors import UserError
from mmchat.vision.families.siglip import Siglip
from mmchat.vision.position_embeddings import resize_positions
from mmchat.vision.spec import Grid, TowerConfig, TowerSpec
from mmchat.vision.tower import TowerOutput


class Siglip2(Siglip):
    """Its size is `num_patches`, the number of learned positions, which form a square."""

    config_class, backbone_class = Siglip2VisionConfig, Siglip2VisionModel
    interpolation = "bilinear"
    any_size = True
    any_aspect = True

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        spec = super().spec_of(config)
        if not spec.native:
            return spec
        preprocessing = replace(spec.preprocessing, max_patches=spec.preprocessing.max_patches or spec.tokens)
        return replace(spec, tokens=1, preprocessing=preprocessing)

    @classmethod
    def size_of(cls, backbone: PreTrainedConfig) -> int:
        side = isqrt(backbone.num_patches)
        if side**2 != backbone.num_patches:
            raise UserError(f"num_patches is {backbone.num_patches}; expected a square number, such as {side**2}")
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
        """Compute the features of a batch.

        Args:
            pixel_values: float[B, 3, H, W]; for fit native the patches of all images, float[B, 3, p, p].
            pooled: Whether to compute the pooled output too.
            grids: Rows and columns of all images in order; for fit native only.

        Raises:
            ValueError: Grids are missing or not expected, or their number of patches differs from B.
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
        """Pad images to the longest and run them as a batch: float[B, 3, p, p] -> float[B, 1, D].

        Positions, padding and mask are as in transformers (`Siglip2VisionEmbeddings`, `Siglip2VisionModel.forward`).
        """
        table = self._positions()
        by_grid = {grid: resize_positions(table, 0, grid, self.interpolation, antialias=True) for grid in set(grids)}
        flat = self._patches(pixel_values) + torch.cat([by_grid[grid] for grid in grids])
        # Indices are computed on the CPU, so that nothing waits for the accelerator.
        is_patch = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        indices = is_patch.flatten().nonzero()[:, 0].to(flat.device, non_blocking=True)
        padded = (
            flat.new_zeros(is_patch.numel(), flat.shape[1]).index_copy(0, indices, flat).unflatten(0, is_patch.shape)
        )
        mask = create_bidirectional_mask(
            self.backbone.config, padded.new_empty((*is_patch.shape, 0), device="cpu"), is_patch
        )
        block_kwargs = {"attention_mask": mask if mask is None else mask.to(flat.device, non_blocking=True)}
        patches, normed = self.run_blocks(padded, block_kwargs, pooled)
        vectors = self._pooled(normed, is_patch.to(flat.device)) if pooled else None
        return TowerOutput(patches.flatten(0, 1)[indices, None], vectors)

    def resized(self, image_size: int, keep_positions: bool = False) -> "Siglip2":
        if self.spec.native:
            raise UserError(
                "a tower of fit native has no image size; set the largest number of patches (max_patches), or choose a "
                "fit that makes squares"
            )
        return super().resized(image_size, keep_positions)

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch embedding: float[.., 3, p, p] -> float[.., width]. The weights expect channels last."""
        embedding = self.backbone.embeddings.patch_embedding
        return embedding(pixels.movedim(-3, -1).flatten(-3).to(embedding.weight.dtype))

    def _positions(self) -> torch.Tensor:
        """Learned positions float[num_patches, width]. Calls their module, because ZeRO 3 gathers weights in its
        forward."""
        table = self.backbone.embeddings.position_embedding
        return table(torch.arange(self.backbone.config.num_patches, device=table.weight.device))
