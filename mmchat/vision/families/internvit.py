"""InternViT (Chen et al. 2023, arXiv:2312.14238), on transformers' `InternVLVisionModel`.

Its two published shapes differ in more than size: 6B has RMS norms, no bias at queries, keys and values, and norms of
all heads' queries together, and of their keys; 300M has layer norms and biases. Both scale what a block adds.
"""

import torch
from torch import nn
from transformers import InternVLVisionConfig, InternVLVisionModel

from mmchat.vision.block_tower import BlockTower


class InternViT(BlockTower):
    """The pooled output is the class token after the last block.

    `use_mean_pooling`, as all published ones have it, means that no norm follows that block.
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
