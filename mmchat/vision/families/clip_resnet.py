"""CLIP's ResNet (Radford et al. 2021, arXiv:2103.00020, section 2.4) as a tower; the network is in modified_resnet."""

from dataclasses import replace

import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.vision.block_tower import hidden_state_indices, refuse_indivisible_size
from mmchat.vision.modified_resnet import CHANNELS, STAGES, STRIDES, ModifiedResNet, ResNetConfig
from mmchat.vision.position_embeddings import resize_positions
from mmchat.vision.spec import TowerConfig, TowerSpec
from mmchat.vision.tower import TowerOutput, VisionTower


class CLIPResNet(VisionTower):
    """CLIP's ResNet. `TowerConfig.backbone` holds `ResNetConfig`'s values.

    Hidden state 0 is the stem's output, 1 to 4 are the outputs of the stages. Patches are a stage's grid in reading
    order. The pooled output is that of the attention pool: CLIP's embedding, with another width than the patches.
    """

    config_class = ResNetConfig

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.backbone = ModifiedResNet(self.backbone_config(config))
        self._layers = hidden_state_indices(config.layer, STAGES)

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        backbone = cls.backbone_config(config)
        if config.class_token or config.final_norm:
            raise UserError("class_token, final_norm: a clip_resnet has neither a class token nor a last norm")
        if len(backbone.layers) != STAGES or backbone.width % 2:
            raise UserError(
                f"a clip_resnet has {STAGES} stages and an even width, found layers {backbone.layers} and width "
                f"{backbone.width}"
            )
        refuse_indivisible_size(backbone.image_size, STRIDES[-1])
        layers = hidden_state_indices(config.layer, STAGES)
        strides = sorted({STRIDES[layer] for layer in layers})
        if len(strides) > 1:
            raise UserError(
                f"layers {config.layer} of a clip_resnet have grids of different sizes, a feature every {strides} "
                "pixels, and cannot be concatenated; choose one layer"
            )
        dim = sum(backbone.width * CHANNELS[layer] for layer in layers)
        return TowerSpec(
            backbone.image_size, strides[0], (backbone.image_size // strides[0]) ** 2, dim, config.preprocessing
        )

    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        hidden = self.backbone.stem(pixel_values)
        states = {0: hidden}
        run = STAGES if pooled else max(self._layers)
        for number, stage in enumerate(self.backbone.stages[:run], start=1):
            hidden = states[number] = stage(hidden)
        patches = torch.cat([states[layer] for layer in self._layers], dim=1).flatten(2).transpose(1, 2)
        return TowerOutput(patches, self.backbone.attnpool(hidden) if pooled else None)

    @property
    def pooled_dim(self) -> int:
        return self.backbone.config.output_dim

    def idle_parameters(self, pooled: bool = False) -> list[nn.Parameter]:
        if pooled:
            return []
        idle = [*self.backbone.stages[max(self._layers) :], self.backbone.attnpool]
        return [parameter for module in idle for parameter in module.parameters()]

    def resized(self, image_size: int, keep_positions: bool = False) -> "CLIPResNet":
        """Only the attention pool depends on the image size. Its positions are interpolated like a ViT's."""
        if image_size == self.spec.image_size:
            return self
        config = replace(self.config, backbone={**self.config.backbone, "image_size": image_size})
        other = type(self)(config).to(next(self.parameters()).dtype)
        state = self.backbone.state_dict()
        table, side = "attnpool.positional_embedding", image_size // STRIDES[-1]
        state[table] = resize_positions(
            state[table], 1, (side, side), antialias=config.antialias, keep_positions=keep_positions
        )
        other.backbone.load_state_dict(state)
        return other.train(self.training)
