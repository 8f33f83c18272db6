"""The contract that every vision tower keeps."""

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


@dataclass
class TowerOutput(ModelOutput):
    """patches: float[B, N, D], the selected layer's features; pooled: float[B, P] where it was asked for.

    A `ModelOutput`, so that DeepSpeed's ZeRO 3 finds the tensors in it.
    """

    patches: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


class VisionTower(nn.Module, ABC):
    """`tower(pixel_values: float[B, 3, H, W]) -> TowerOutput`. A leaf wraps one family's `backbone`.

    Where `spec.native`, B counts the patches of all images, one image after another in reading order, H and W are a
    patch's, and `forward` has to be told the images' `grids` as well.
    """

    backbone: nn.Module
    config_class: type[PreTrainedConfig]
    """Of the backbone."""
    extra_keys: tuple[str, ...] = ()
    """What `TowerConfig.backbone` may hold besides `config_class`'s values."""
    takes_attention = False
    """Whether the backbone's attention can be computed by any function that is registered with transformers."""
    any_size = False
    """Whether the original is used at other sizes than its positions were learned at (DINOv2), so that of two sizes
    that a source names the one of its image processor is taken."""
    any_aspect = False
    """Whether images may keep their aspect (fit native); `forward` then takes `grids`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = self.spec_of(config)

    @classmethod
    def backbone_config(cls, config: TowerConfig) -> PreTrainedConfig:
        """Raises UserError: a key that the family does not have, a value of another type, a fit that it cannot have."""
        if config.preprocessing.fit == "native" and not cls.any_aspect:
            raise UserError(
                f"fit native needs a tower for any aspect ratio, which is siglip2; found {config.family}, which sees "
                "squares: choose another fit"
            )
        known = config_keys(cls.config_class) | set(cls.extra_keys)
        for key in sorted(config.backbone.keys() - known):
            near = get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise UserError(f"the backbone of a {config.family} has no {key!r}{meant}")
        try:
            return cls.config_class(**config.backbone)
        except StrictDataclassError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the backbone of a {config.family} cannot be made: {reason}") from None

    def set_fit(self, fit: Fit) -> None:
        """Be a tower that was trained on images fitted in this way. Raises UserError: the family cannot have it."""
        self.config = with_fit(self.config, fit)
        self.spec = self.spec_of(self.config)

    @classmethod
    @abstractmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        """What a tower of this configuration promises, known before any weight exists."""

    @abstractmethod
    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        """Features of a batch; `pooled=True` also runs what the family's own pooled output needs."""

    @property
    def pooled_dim(self) -> int:
        """P, the width of `pooled`.

        Raises:
            UserError: the family has no pooled output.
        """
        raise UserError(f"a {self.config.family} has no pooled output")

    @abstractmethod
    def idle_parameters(self, pooled: bool = False) -> list[nn.Parameter]:
        """Parameters that `forward(pixel_values, pooled)` does not use: blocks above the feature layer, heads."""

    def last_parameters(self, blocks: int, pooled: bool = False) -> list[nn.Parameter]:
        """Those of the last `blocks` blocks that `forward(pixel_values, pooled)` runs, and of what it runs after them.

        Raises:
            UserError: the tower has not so many blocks, or none at all.
        """
        raise UserError(f"a {self.config.family} is no row of blocks")

    @abstractmethod
    def resized(self, image_size: int, keep_positions: bool = False) -> "VisionTower":
        """A tower with the same weights for images of another size, as the original does it: learned positions are
        stretched over the new grid, for the same images with more pixels.

        keep_positions: patches keep the positions that they have, counted from the upper left, and those beyond take
        the nearest; for images that show more, as large as before (pages that grow).

        Raises:
            UserError: the original cannot, or not to this size.
        """


def config_keys(config_class: type[PreTrainedConfig]) -> set[str]:
    """Its settings; transformers itself would also take, and ignore, any other."""
    return set(config_class().to_dict())
