"""InternViT (Chen et al. 2023, arXiv:2312.14238), on transformers' `InternVLVisionModel`.

The two published models differ in more than size. 6B has RMS norms, no QKV bias, and norms over the queries of all
heads and over the keys of all heads; 300M has layer norms and a QKV bias. Both have layer scale.
"""

import torch
from torch import nn
from transformers import InternVLVisionConfig, InternVLVisionModel

from mmchat.vision.block_tower import BlockTower


class InternViT(BlockTower):
    """The pooled output is the class token after the last block.

    No norm follows that block: all published models have `use_mean_pooling`.
    """

    config_class, backbone_class = InternVLVisionConfig, InternVLVisionModel
    position_table = "embeddings.position_embeddings"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layer

    @property
    def last_norm(self) -> nn.Module:
        return self.backbone.layernorm

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return self.backbone.embeddings(pixel_values), {}
