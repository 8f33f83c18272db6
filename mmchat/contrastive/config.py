"""What SimCLR decides besides its optimizer and data. Importable without torch."""

from typing import Literal

from pydantic import Field

from mmchat.settings import settings
from mmchat.vision.transforms.augmentation import AugmentationConfig


@settings
class SimCLRConfig:
    """Settings of the SimCLR objective."""

    temperature: float = Field(0.1, gt=0, description="temperature of the softmax over views; not learned")
    pool: Literal["mean", "max"] = Field("mean", description="pooling of patch features, channel by channel")
    head_layers: Literal[2, 3] = Field(2, description="layers of the projection head, which is dropped after training")
    head_dim: int = Field(128, gt=0, description="size of the embeddings that are compared")
    augmentation: AugmentationConfig = Field(
        default_factory=AugmentationConfig, description="random views of training images"
    )
