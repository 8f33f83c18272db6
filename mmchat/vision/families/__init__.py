"""The families of towers, a leaf each. A new one is a file here and a line below."""

from mmchat.vision.families.clip_resnet import CLIPResNet
from mmchat.vision.families.clip_vit import CLIPViT
from mmchat.vision.families.clip_vit_headless import HeadlessCLIPViT
from mmchat.vision.families.conv_vit import ConvViT
from mmchat.vision.families.internvit import InternViT
from mmchat.vision.families.siglip import Siglip
from mmchat.vision.tower import VisionTower

FAMILIES: dict[str, type[VisionTower]] = {
    "clip_resnet": CLIPResNet,
    "clip_vit": CLIPViT,
    "conv_vit": ConvViT,
    "siglip": Siglip,
    "internvit": InternViT,
    "clip_vit_headless": HeadlessCLIPViT,
}
