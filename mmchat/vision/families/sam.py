"""SAM's image encoder (Kirillov et al. 2023, arXiv:2304.02643), on transformers' `SamVisionModel`, and the vision
vocabulary of Vary (Wei et al. 2023, arXiv:2312.06109), which is that encoder and two convolutions.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SamVisionConfig, SamVisionModel

from mmchat.errors import UserError
from mmchat.vision.block_tower import refuse_indivisible_size
from mmchat.vision.position_embeddings import resize_positions
from mmchat.vision.sam_attention import DecomposedAttention
from mmchat.vision.spec import Fit, TowerConfig, TowerSpec, with_fit
from mmchat.vision.tower import TowerOutput, VisionTower


class Sam(VisionTower):
    """The features are the neck's output: 1024 pixels give 4,096 patches of width 256. No class token, no pooled
    output."""

    config_class, backbone_class = SamVisionConfig, SamVisionModel
    halvings = 0
    """Number of convolutions after the neck, each of which halves the grid's sides and doubles its channels."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        backbone = self.backbone_config(config)
        self.backbone = SamVisionModel(backbone)
        for block in self.blocks:
            block.attn = DecomposedAttention(backbone, block.window_size)
        # transformers initialises SAM's weights with standard deviation 1e-10: features are then near 1e-13 for any
        # image and gradients vanish. The original (segment_anything/modeling) uses PyTorch's initialisation. Under ZeRO
        # 3 weights are empty here and are loaded later.
        for module in self.backbone.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.numel():
                module.reset_parameters()

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        backbone = cls.backbone_config(config)
        if config.layer != -1 or config.class_token or config.final_norm:
            raise UserError(
                f"the features of a {config.family} are the output of its neck, so layer, class_token and final_norm "
                f"cannot be changed; found layer {config.layer}, class_token "
                f"{config.class_token}, final_norm {config.final_norm}"
            )
        if not backbone.use_rel_pos:
            raise UserError(f"a {config.family} needs relative positions; remove use_rel_pos, or set it to true")
        merged = 2**cls.halvings
        refuse_indivisible_size(backbone.image_size, backbone.patch_size, merged)
        side = backbone.image_size // (backbone.patch_size * merged)
        width = backbone.output_channels * merged
        return TowerSpec(backbone.image_size, backbone.patch_size * merged, side**2, width, config.preprocessing)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.backbone.vision_encoder.layers

    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        """Raises NotImplementedError for `pooled`: SAM has no vector for the whole image."""
        if pooled:
            raise NotImplementedError(f"a {self.config.family} has no pooled output")
        return TowerOutput(self.grid(pixel_values).flatten(2).transpose(1, 2))

    def grid(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features as a grid: float[B, 3, H, W] -> float[B, dim, side, side]."""
        encoder = self.backbone.vision_encoder
        # Weights may be bf16 and pixels fp32. transformers casts in CLIP, but not in SAM.
        pixel_values = pixel_values.to(encoder.patch_embed.projection.weight.dtype)
        hidden = encoder.patch_embed(pixel_values) + encoder.pos_embed
        for block in self.blocks:
            hidden = block(hidden)
        return encoder.neck(hidden)

    def idle_parameters(self, pooled: bool = False) -> list[nn.Parameter]:
        return []

    def resized(self, image_size: int, keep_positions: bool = False) -> "Sam":
        """Interpolates absolute positions bicubically, and the relative positions of blocks with global attention
        linearly (segment_anything/modeling/image_encoder.py `get_rel_pos`; SAM itself keeps its absolute positions at
        1024). Windows are unchanged."""
        if image_size == self.spec.image_size:
            return self
        config = replace(self.config, backbone={**self.config.backbone, "image_size": image_size})
        other = type(self)(config).to(next(self.parameters()).dtype)
        state, shapes = self.state_dict(), {key: tensor.shape for key, tensor in other.state_dict().items()}
        for key, tensor in state.items():
            if tensor.shape == shapes[key]:
                continue
            if key.endswith("pos_embed"):
                side = shapes[key][1]
                moved = resize_positions(tensor.flatten(1, 2), 0, (side, side), keep_positions=keep_positions)
                state[key] = moved.unflatten(1, (side, side))
            else:
                state[key] = (extend_distances if keep_positions else interpolate_distances)(tensor, shapes[key][0])
        other.load_state_dict(state)
        return other.train(self.training)


class VarySam(Sam):
    """SAM's encoder and two convolutions of stride 2 without bias: 1024 pixels give 256 tokens of width 1024
    (Vary, vary/model/vision_encoder/sam.py `net_2`, `net_3`)."""

    halvings = 2

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        width = self.backbone.config.output_channels
        self.compressor = nn.Sequential(
            nn.Conv2d(width, width * 2, 3, stride=2, padding=1, bias=False),
            nn.Conv2d(width * 2, width * 4, 3, stride=2, padding=1, bias=False),
        )

    def grid(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.compressor(super().grid(pixel_values))


def compressed(tower: Sam, fit: Fit = "squash") -> VarySam:
    """A SAM tower with a new, random compressor as Vary's. It shares the backbone of `tower`."""
    new = VarySam(with_fit(replace(tower.config, family="vary_sam"), fit))
    new.backbone = tower.backbone
    new.compressor.to(next(tower.parameters()).dtype)
    return new.train(tower.training)


def interpolate_distances(table: torch.Tensor, length: int) -> torch.Tensor:
    """Interpolate relative positions linearly: float[n, c] -> float[length, c]."""
    return F.interpolate(table.T[None].float(), length, mode="linear")[0].T.to(table.dtype)


def extend_distances(table: torch.Tensor, length: int) -> torch.Tensor:
    """Crop or extend relative positions: float[n, c] -> float[length, c]. Each distance keeps its vector, and longer
    distances get that of the longest. The middle row is distance 0."""
    margin = (length - len(table)) // 2
    return table[(torch.arange(length, device=table.device) - margin).clamp(0, len(table) - 1)]
