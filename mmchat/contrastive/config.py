"""What a contrastive run decides beside its optimizer and data."""

from typing import Literal

from pydantic import Field

from mmchat.settings import settings


@settings
class ContrastiveConfig:
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="softmax: CLIP's InfoNCE; sigmoid: SigLIP's, of a model that has a logit_bias"
    )
