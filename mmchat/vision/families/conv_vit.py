"""A CLIP ViT with a convolutional stem instead of a linear patch embedding.

Early convolutions let a transformer learn from few images and few steps (Xiao et al. 2021, arXiv:2106.14881);
docs/lab_log.md has measurements for the quickstart's tower. No released checkpoint has this architecture. With no
transformer blocks, features are local.
"""

import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.vision.families.clip_vit import CLIPViT
from mmchat.vision.spec import TowerConfig, TowerSpec


class ConvViT(CLIPViT):
    """A CLIP ViT with a `ConvStem`.

    `TowerConfig.backbone` holds CLIPVisionConfig's values, `stem_width` (channels after the first convolution) and
    `stem_depth` (convolutions at full width).
    """

    extra_keys = ("stem_width", "stem_depth")

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        width = self.backbone.config.hidden_size
        self.backbone.embeddings.patch_embedding = ConvStem(
            self.spec.patch_size, config.backbone["stem_width"], width, config.backbone["stem_depth"]
        )

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        spec = super().spec_of(config)
        if missing := set(cls.extra_keys) - config.backbone.keys():
            raise UserError(f"a conv_vit's backbone needs {', '.join(sorted(missing))}; found {config.backbone}")
        width = cls.config_class(**config.backbone).hidden_size
        if spec.patch_size & (spec.patch_size - 1) or width % 8:
            raise UserError(
                f"a conv_vit needs a patch size that is a power of two and a hidden size that is a multiple of 8, "
                f"found {spec.patch_size} and {width}"
            )
        return spec


class ConvStem(nn.Module):
    """Convolutional patch embedding: float[B, 3, H, W] -> float[B, dim, H / patch_size, W / patch_size].

    3x3 convolutions of stride 2 with doubling channels down to one pixel per patch, then `depth` convolutions at full
    width. Group norm and GELU between them.
    """

    def __init__(self, patch_size: int, width: int, dim: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(patch_size.bit_length() - 1):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            channels, width = width, width * 2
        for _ in range(depth - 1):
            layers += [nn.Conv2d(channels, dim, 3, padding=1), nn.GroupNorm(8, dim), nn.GELU()]
            channels = dim
        layers.append(nn.Conv2d(channels, dim, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    @property
    def weight(self) -> torch.Tensor:
        """CLIPVisionEmbeddings reads its compute dtype here."""
        return self.layers[-1].weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values)
