"""What towers of transformer blocks share: which hidden states are the features, and what is then left unused."""

from abc import abstractmethod
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmchat.errors import UserError
from mmchat.vision.spec import TowerConfig, TowerSpec
from mmchat.vision.tower import TowerOutput, VisionTower


class BlockTower(VisionTower):
    """A transformers model over square patches: embeddings, `blocks`, a `last_norm`, perhaps a pooling head.

    A leaf names its classes and where its parts are; everything else is here.
    """

    config_class: type[PreTrainedConfig]
    backbone_class: type[PreTrainedModel]
    class_tokens = 1
    """Before the patches there are so many class tokens (0 or 1) ..."""
    position_table: str | None = None
    """Key in `backbone.state_dict()` of learned positions, [.., class tokens + patches, width]; None: computed ones."""
    backbone: PreTrainedModel
    takes_attention = True

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.backbone = self.backbone_class(self.config_class(**config.backbone))
        self._layers = hidden_states(config.layer, len(self.blocks))

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        backbone = cls.config_class(**config.backbone)
        layers = hidden_states(config.layer, backbone.num_hidden_layers)
        if config.class_token and not cls.class_tokens:
            raise UserError(f"class_token: a {config.family} has no class token to keep")
        size, patch = _side(backbone.image_size), _side(backbone.patch_size)
        tokens = patches_per_side(size, patch) ** 2 + int(config.class_token)
        return TowerSpec(size, patch, tokens, backbone.hidden_size * len(layers), config.preprocessing)

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The backbone's own, in order."""

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module:
        """What the backbone does after its last block."""

    @abstractmethod
    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """What enters the first block, float[B, prefix + patches, width], and what every block is told besides."""

    @property
    def registers(self) -> int:
        """... and so many tokens between them and the patches, which are never features."""
        return 0

    @property
    def pooling(self) -> nn.Module | None:
        """The head that makes `pooled` of the normed last hidden state; None: its class token is that."""
        return None

    @property
    def blocks_to_run(self) -> int:
        return max(self._layers)

    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        hidden, told = self.embed(pixel_values)
        run = len(self.blocks) if pooled else self.blocks_to_run
        states = {0: hidden}
        for number, block in enumerate(self.blocks[:run], start=1):
            hidden = block(hidden, **told)
            if number in self._layers:
                states[number] = hidden
        patches = torch.cat([self._features(states[layer]) for layer in self._layers], dim=-1)
        return TowerOutput(patches, self._pooled(self.last_norm(hidden)) if pooled else None)

    def _features(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.config.final_norm:
            hidden = self.last_norm(hidden)
        patches = hidden[:, self.class_tokens + self.registers :]
        return torch.cat([hidden[:, :1], patches], dim=1) if self.config.class_token else patches

    def _pooled(self, normed: torch.Tensor) -> torch.Tensor:
        return normed[:, 0] if self.pooling is None else self.pooling(normed)

    def idle_parameters(self) -> list[nn.Parameter]:
        idle: list[nn.Module] = list(self.blocks[self.blocks_to_run :])
        if not self.config.final_norm:
            idle.append(self.last_norm)
        if self.pooling is not None:
            idle.append(self.pooling)
        return [parameter for module in idle for parameter in module.parameters()]

    def resized(self, image_size: int) -> "BlockTower":
        """The same weights for pictures of another size: learned positions are interpolated (bicubic, without
        antialiasing, as transformers' `interpolate_pos_encoding`)."""
        if image_size == self.spec.image_size:
            return self
        config = replace(self.config, backbone={**self.config.backbone, "image_size": image_size})
        other = type(self)(config).to(next(self.parameters()).dtype)
        state = self.backbone.state_dict()
        if self.position_table is not None:
            side = image_size // self.spec.patch_size
            state[self.position_table] = interpolated(state[self.position_table], self.class_tokens, side)
        other.backbone.load_state_dict(state)
        return other.train(self.training)


def patches_per_side(size: int, patch: int, merged: int = 1) -> int:
    """How many squares of `merged` x `merged` patches lie along a picture's side; both sizes in pixels.

    Raises:
        UserError: not a whole number of them.
    """
    step = patch * merged
    if size % step:
        below, above = size // step * step, (size // step + 1) * step
        patches = f"patch size {patch}" if merged == 1 else f"{merged} x patch size {patch}"
        raise UserError(f"image size {size} is not a multiple of {patches}; the nearest sizes are {below} and {above}")
    return size // step


def interpolated(table: torch.Tensor, class_tokens: int, side: int, antialias: bool = False) -> torch.Tensor:
    """Positions float[.., class_tokens + n * n, width] -> float[.., class_tokens + side * side, width]."""
    rows = table.reshape(-1, table.shape[-1])
    first, grid = rows[:class_tokens], rows[class_tokens:]
    old = isqrt(len(grid))
    square = grid.float().T.reshape(1, -1, old, old)
    square = nn.functional.interpolate(square, (side, side), mode="bicubic", antialias=antialias)
    resized = torch.cat([first, square.flatten(2)[0].T.to(table.dtype)])
    return resized.reshape(*table.shape[:-2], *resized.shape)


def hidden_states(layer: int | tuple[int, ...], blocks: int) -> list[int]:
    """Numbers of the hidden states that a `TowerConfig.layer` means in a tower of so many blocks, counted from 0.

    Raises:
        UserError: there is no such hidden state.
    """
    layers = [layer] if isinstance(layer, int) else layer
    found = [one if one >= 0 else blocks + 1 + one for one in layers]
    for one, index in zip(layers, found, strict=True):
        if not 0 <= index <= blocks:
            raise UserError(
                f"feature layer {one} does not exist in a tower of {blocks} blocks; "
                f"expected {-blocks - 1} to {blocks} (-1 is the last block's output)"
            )
    return found


def _side(size: int | list[int] | tuple[int, int]) -> int:
    """Some configs of transformers give height and width, and all released ones are square."""
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise UserError(f"a tower takes squares, but its config says {height} x {width}")
    return height
