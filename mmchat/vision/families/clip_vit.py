"""CLIP's Vision Transformer (Radford et al. 2021, arXiv:2103.00020), on transformers' `CLIPVisionModel`."""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmchat.vision.block_tower import BlockTower


class CLIPViT(BlockTower):
    """The pooled output is the class token after the last block and its norm."""

    config_class, backbone_class = CLIPVisionConfig, CLIPVisionModel
    position_table = "embeddings.position_embedding.weight"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layers

    @property
    def last_norm(self) -> nn.Module:
        return self.backbone.post_layernorm

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return self.backbone.pre_layrnorm(self.backbone.embeddings(pixel_values)), {"attention_mask": None}
