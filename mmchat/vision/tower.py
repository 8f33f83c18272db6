"""The interface of all vision towers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from mmchat.errors import UserError
from mmchat.vision.spec import Fit, TowerConfig, TowerSpec, with_fit

RGB = 3
"""Number of channels of an image."""


@dataclass
class TowerOutput(ModelOutput):
    """Output of a tower. A `ModelOutput`, so that DeepSpeed's ZeRO 3 finds its tensors.

    Attributes:
        patches: Features of the selected layers: float[B, N, D].
        pooled: float[B, P] if requested, else None.
    """

    patches: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


class VisionTower(nn.Module, ABC):
    """A vision tower: `tower(pixel_values: float[B, 3, H, W]) -> TowerOutput`. A subclass wraps one family's backbone.

    If `spec.native`, B counts the patches of all images, concatenated in reading order; H and W are a patch's; and
    `forward` needs the images' `grids`.

    Attributes:
        config: The config, which is saved with the weights.
        spec: Input and output.
    """

    backbone: nn.Module
    config_class: type[PreTrainedConfig]
    """Config class of the backbone."""
    extra_keys: tuple[str, ...] = ()
    """Keys of `TowerConfig.backbone` that `config_class` does not have."""
    takes_attention = False
    """Whether the backbone accepts any attention function registered with transformers."""
    any_size = False
    """Whether the original is used at other image sizes than its positions were learned at (DINOv2). Then the size of
    the image processor wins over the config's."""
    any_aspect = False
    """Whether fit "native" is supported. `forward` then takes `grids`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = self.spec_of(config)

    @classmethod
    def backbone_config(cls, config: TowerConfig) -> PreTrainedConfig:
        """The backbone's transformers config.

        Raises:
            UserError: A key is unknown, a value has another type, its images have other channels than red, green and
                blue, or the family does not support the fit.
        """
        if config.preprocessing.fit == "native" and not cls.any_aspect:
            raise UserError(
                f"fit native needs a tower for any aspect ratio, which is siglip2; found {config.family}, which sees "
                "squares; choose another fit"
            )
        known = config_keys(cls.config_class) | set(cls.extra_keys)
        for key in sorted(config.backbone.keys() - known):
            similar = get_close_matches(key, known, n=1)
            hint = f"; did you mean {similar[0]!r}?" if similar else f"; known: {', '.join(sorted(known))}"
            raise UserError(f"the backbone of a {config.family} has no {key!r}{hint}")
        try:
            found = cls.config_class(**config.backbone)
        except (StrictDataclassError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the backbone of a {config.family} is invalid: {reason}") from None
        if (channels := getattr(found, "num_channels", RGB)) != RGB:
            raise UserError(f"the backbone of a {config.family} has num_channels {channels}; images here have {RGB}")
        return found

    def set_fit(self, fit: Fit) -> None:
        """Change the fit of this tower.

        Raises:
            UserError: The family does not support it.
        """
        self.config = with_fit(self.config, fit)
        self.spec = self.spec_of(self.config)

    @classmethod
    @abstractmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        """The spec of a tower with this config. Allocates no weights.

        Raises:
            UserError: The config is invalid for the family.
        """

    @abstractmethod
    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        """Compute the features of a batch.

        Args:
            pixel_values: float[B, 3, H, W], normalised.
            pooled: Whether to compute the family's pooled output too.
        """

    @property
    def pooled_dim(self) -> int:
        """P, the width of `pooled`.

        Raises:
            UserError: The family has no pooled output.
        """
        raise UserError(f"a {self.config.family} has no pooled output")

    @abstractmethod
    def idle_parameters(self, pooled: bool = False) -> list[nn.Parameter]:
        """Parameters that `forward(pixel_values, pooled)` does not use: blocks above the feature layer, heads."""

    def last_parameters(self, blocks: int, pooled: bool = False) -> list[nn.Parameter]:
        """Parameters of the last `blocks` blocks that `forward(pixel_values, pooled)` runs, and of all modules after
        them.

        Raises:
            UserError: The tower runs fewer blocks, or is not built of blocks.
        """
        raise UserError(f"a {self.config.family} is not a sequence of blocks")

    @abstractmethod
    def resized(self, image_size: int, keep_positions: bool = False) -> "VisionTower":
        """A tower with the same weights for another image size.

        Learned positions are interpolated as in the original: for the same images at another resolution.

        Args:
            image_size: Side of the images in pixels.
            keep_positions: Do not interpolate: patches keep their positions, counted from the upper left, and those
                beyond the old grid get the nearest. For images that show more at the same scale (larger pages).

        Raises:
            UserError: The family does not support it, or not this size.
        """


def config_keys(config_class: type[PreTrainedConfig]) -> set[str]:
    """The settings of a config class. transformers accepts and ignores others."""
    return set(config_class().to_dict())
