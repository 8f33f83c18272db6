"""SigLIP 2 for any aspect ratio (NaFlex; Tschannen et al. 2025, arXiv:2502.14786), on transformers'
`Siglip2VisionModel`. Here it sees squares; `vision.native` has the rule of its size for others.
"""

from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedConfig, Siglip2VisionConfig, Siglip2VisionModel

from mmchat.errors import UserError
from mmchat.vision.families.siglip import Siglip


class Siglip2(Siglip):
    """Its size is a number of patches, `num_patches`, that of the square of its learned positions."""

    config_class, backbone_class = Siglip2VisionConfig, Siglip2VisionModel
    interpolation = "bilinear"
    any_size = True

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
        embeddings, patch = self.backbone.embeddings, self.spec.patch_size
        # A pixel's colours lie together, rows of pixels in a patch one after the other.
        grid = pixel_values.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        hidden = embeddings.patch_embedding(patches.to(embeddings.patch_embedding.weight.dtype))
        places = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden + embeddings.position_embedding(places), {"attention_mask": None}
