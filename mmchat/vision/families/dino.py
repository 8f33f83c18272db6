"""Self-supervised Vision Transformers, on transformers' classes.

DINOv2 (Oquab et al. 2023, arXiv:2304.07193), the same with registers (Darcet et al. 2023, arXiv:2309.16588), DINOv3
(Siméoni et al. 2025, arXiv:2508.10104). Usual features are the normed output of the last block (`final_norm`).
"""

import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from mmchat.vision.block_tower import BlockTower


class Dinov2(BlockTower):
    """The pooled output is the class token after the last block and its norm."""

    config_class, backbone_class = Dinov2Config, Dinov2Model
    position_table = "embeddings.position_embeddings"
    any_size = True

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.encoder.layer

    @property
    def last_norm(self) -> nn.Module:
        return self.backbone.layernorm

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return self.backbone.embeddings(pixel_values), {"attention_mask": None}

    def idle_parameters(self, pooled: bool = False) -> list[nn.Parameter]:
        """The mask token is for pretraining only."""
        mask_token = self.backbone.embeddings.mask_token
        return super().idle_parameters(pooled) + ([] if mask_token is None else [mask_token])


class Dinov2WithRegisters(Dinov2):
    """DINOv2 with register tokens between class token and patches."""

    config_class, backbone_class = Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    @property
    def registers(self) -> int:
        return self.backbone.config.num_register_tokens


class Dinov3(Dinov2WithRegisters):
    """Rotary positions, computed for any image size."""

    config_class, backbone_class = DINOv3ViTConfig, DINOv3ViTModel
    position_table = None

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.model.layer

    @property
    def last_norm(self) -> nn.Module:
        return self.backbone.norm

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict]:
        # The dtype of the norm: a frozen patch embedding may be bf16 while positions are fp32.
        pixel_values = pixel_values.to(self.last_norm.weight.dtype)
        block_kwargs = {"attention_mask": None, "position_embeddings": self.backbone.rope_embeddings(pixel_values)}
        return self.backbone.embeddings(pixel_values), block_kwargs

    def train(self, mode: bool = True) -> "Dinov3":
        """Keep positions in evaluation mode. In training transformers rescales them at random, as in pretraining."""
        super().train(mode)
        self.backbone.rope_embeddings.train(False)
        return self
