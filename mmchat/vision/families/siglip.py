"""SigLIP's Vision Transformer (Zhai et al. 2023, arXiv:2303.15343), on transformers' `SiglipVisionModel`.

SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786) at fixed resolutions is the same network.
"""

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from mmchat.vision.block_tower import BlockTower


class Siglip(BlockTower):
    """No class token. The pooled output is attention of a learned query over the normed patches of the last block.

    Towers taken from an assistant often lack that head (`vision_use_head: false`) and then have no pooled output.
    """

    config_class, backbone_class = SiglipVisionConfig, SiglipVisionModel
    class_tokens = 0
    margin = True  # so400m/14 at 384 uses 378 x 378 pixels
    position_table = "embeddings.position_embedding.weight"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layers

    @property
    def last_norm(self) -> nn.Module:
        return self.backbone.post_layernorm

    @property
    def pooling(self) -> nn.Module | None:
        return self.backbone.head if self.backbone.use_head else None

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return self.backbone.embeddings(pixel_values), {"attention_mask": None}
