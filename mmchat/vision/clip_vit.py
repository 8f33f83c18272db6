"""CLIP's Vision Transformer (Radford et al. 2021, arXiv:2103.00020), on transformers' `CLIPVisionModel`."""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmchat.errors import UserError
from mmchat.vision.spec import TowerConfig, TowerSpec
from mmchat.vision.tower import TowerOutput, VisionTower


class CLIPViT(VisionTower):
    """Patches after block `layer`; the pooled output is the class token after the last block and its norm."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.backbone = CLIPVisionModel(CLIPVisionConfig(**config.backbone))
        self._blocks = blocks_to_run(config.layer, len(self.backbone.encoder.layers))

    @staticmethod
    def spec_of(config: TowerConfig) -> TowerSpec:
        backbone = CLIPVisionConfig(**config.backbone)
        blocks_to_run(config.layer, backbone.num_hidden_layers)
        size, patch = backbone.image_size, backbone.patch_size
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            raise UserError(
                f"image size {size} is not a multiple of patch size {patch}; the nearest sizes are {below} and {above}"
            )
        tokens = (size // patch) ** 2 + int(config.class_token)
        return TowerSpec(size, patch, tokens, backbone.hidden_size, config.preprocessing)

    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        hidden = self.backbone.pre_layrnorm(self.backbone.embeddings(pixel_values))
        blocks = self.backbone.encoder.layers
        for block in blocks[: self._blocks]:
            hidden = block(hidden, attention_mask=None)
        patches = hidden if self.config.class_token else hidden[:, 1:]
        if not pooled:
            return TowerOutput(patches)
        for block in blocks[self._blocks :]:
            hidden = block(hidden, attention_mask=None)
        return TowerOutput(patches, self.backbone.post_layernorm(hidden[:, 0]))

    def idle_parameters(self) -> list[nn.Parameter]:
        above = self.backbone.encoder.layers[self._blocks :]
        return [*above.parameters(), *self.backbone.post_layernorm.parameters()]


def blocks_to_run(layer: int, blocks: int) -> int:
    """How many of `blocks` give hidden state number `layer`, counted as transformers does.

    Raises:
        UserError: there is no such hidden state.
    """
    index = layer if layer >= 0 else blocks + 1 + layer
    if not 0 <= index <= blocks:
        raise UserError(
            f"feature layer {layer} does not exist in a tower of {blocks} blocks; "
            f"expected {-blocks - 1} to {blocks} (-1 is the last block's output)"
        )
    return index
