"""A tower that begins with random weights sees: its features differ between images, and gradients reach them."""

import pytest
import torch

from mmchat.vision import TowerConfig, build_tower
from mmchat.vision.families import FAMILIES, sam

TRANSFORMER = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SAM = {"mlp_dim": 64, "output_channels": 16, "window_size": 4, "global_attn_indexes": [1]}
BACKBONES = {
    "clip_resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]},
    "conv_vit": {**TRANSFORMER, "stem_width": 8, "stem_depth": 1},
    "sam": {**TRANSFORMER, **SAM},
    "vary_sam": {**TRANSFORMER, **SAM},
    "siglip2": {key: value for key, value in TRANSFORMER.items() if key != "image_size"} | {"num_patches": 64},
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_begins_to_see(family):
    torch.manual_seed(0)
    tower = build_tower(TowerConfig(family, BACKBONES.get(family, TRANSFORMER))).eval()
    side = tower.spec.image_size
    pixels = torch.randn(8, 3, side, side, requires_grad=True)
    features = tower(pixels).patches
    assert features.std(dim=0).mean() > 1e-3
    (features * torch.randn_like(features)).sum().backward()
    assert pixels.grad.std() > 1e-3


def test_a_sam_of_which_weights_are_elsewhere(monkeypatch):
    """ZeRO 3 leaves nothing in a module's weights as soon as it is made."""

    class Shared(sam.SamVisionModel):
        def __init__(self, config):
            super().__init__(config)
            for parameter in self.parameters():
                parameter.data = torch.empty(0)

    monkeypatch.setattr(sam, "SamVisionModel", Shared)
    tower = build_tower(TowerConfig("vary_sam", BACKBONES["vary_sam"]))
    assert tower.backbone.vision_encoder.patch_embed.projection.weight.numel() == 0
