"""CLIP's ViT without the norm after its last block, which Megatron checkpoints lack."""

import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.vision.families.clip_vit import CLIPViT
from mmchat.vision.spec import TowerConfig, TowerSpec

NOT_POOLED = (
    "this CLIP tower has no pooled output: its checkpoint comes without the norm after the last block, which "
    "Megatron does not save; open OpenAI's or the Hugging Face weights instead"
)


class HeadlessCLIPViT(CLIPViT):
    """A CLIP ViT without pooled output, which would need the norm. Patch features are unchanged."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.backbone.post_layernorm = nn.Identity()

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        if config.final_norm:
            raise UserError("final_norm: this CLIP tower comes without the norm after its last block")
        return super().spec_of(config)

    @property
    def pooled_dim(self) -> int:
        raise UserError(NOT_POOLED)

    def _pooled(self, normed: torch.Tensor) -> torch.Tensor:
        raise UserError(NOT_POOLED)
