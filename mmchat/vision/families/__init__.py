"""Families of towers. A new one is a file here and a line below."""

from mmchat.vision.families.clip_resnet import CLIPResNet
from mmchat.vision.families.clip_vit import CLIPViT
from mmchat.vision.families.clip_vit_headless import HeadlessCLIPViT
from mmchat.vision.families.conv_vit import ConvViT
from mmchat.vision.families.dino import Dinov2, Dinov2WithRegisters, Dinov3
from mmchat.vision.families.internvit import InternViT
from mmchat.vision.families.sam import Sam, VarySam
from mmchat.vision.families.siglip import Siglip
from mmchat.vision.families.siglip2 import Siglip2
from mmchat.vision.tower import VisionTower

FAMILIES: dict[str, type[VisionTower]] = {
    "clip_resnet": CLIPResNet,
    "clip_vit": CLIPViT,
    "clip_vit_headless": HeadlessCLIPViT,
    "conv_vit": ConvViT,
    "dinov2": Dinov2,
    "dinov2_with_registers": Dinov2WithRegisters,
    "dinov3_vit": Dinov3,
    "internvit": InternViT,
    "sam": Sam,
    "siglip": Siglip,
    "siglip2": Siglip2,
    "vary_sam": VarySam,
}
