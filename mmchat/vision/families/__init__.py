"""The families of towers, a leaf each. A new one is a file here and a line below."""

from mmchat.vision.families.clip_vit import CLIPViT
from mmchat.vision.families.conv_vit import ConvViT
from mmchat.vision.families.sam import Sam, VarySam
from mmchat.vision.tower import VisionTower

FAMILIES: dict[str, type[VisionTower]] = {
    "clip_vit": CLIPViT,
    "conv_vit": ConvViT,
    "sam": Sam,
    "vary_sam": VarySam,
}
