"""What SimCLR decides besides its optimizer and data. Importable without torch."""

from typing import Literal

from pydantic import Field

from mmchat.settings import settings
from mmchat.vision.transforms.augmentation import AugmentationConfig


@settings
class SimCLRConfig:
    temperature: float = Field(0.1, gt=0, description="of the softmax over views; fixed")
    pool: Literal["mean", "max"] = Field("mean", description="of patch features, channel by channel")
    head_layers: Literal[2, 3] = Field(2, description="of the projection head, which is dropped in the end")
    head_dim: int = Field(128, gt=0, description="width of the vectors that are compared")
    augmentation: AugmentationConfig = Field(
        default_factory=AugmentationConfig, description="random views of training images"
    )
