"""Towers of transformer blocks: selection of hidden states, unused parameters, patch dropout, resizing."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmchat.errors import UserError
from mmchat.vision.position_embeddings import resize_positions
from mmchat.vision.spec import TowerConfig, TowerSpec
from mmchat.vision.tower import TowerOutput, VisionTower


class BlockTower(VisionTower):
    """A transformers model over square patches: embeddings, `blocks`, `last_norm`, perhaps a pooling head.

    A subclass names its classes and the places of its parts.
    """

    backbone_class: type[PreTrainedModel]
    class_tokens = 1
    """Number of class tokens before the patches: 0 or 1."""
    margin = False
    """Whether released towers have image sizes that are not a multiple of the patch size. Pixels right and below are
    then ignored."""
    position_table: str | None = None
    """Key of the learned positions in `backbone.state_dict()`, [.., class tokens + patches, width]; None: none are
    learned."""
    interpolation = "bicubic"
    """Mode in which learned positions are interpolated."""
    patch_dropout = 0.0
    """Fraction of each image's patches that is dropped before the blocks in training, at random (FLIP, Li et al. 2022,
    arXiv:2212.00794)."""
    backbone: PreTrainedModel
    takes_attention = True

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.backbone = self.backbone_class(self.backbone_config(config))
        self._layers = hidden_state_indices(config.layer, len(self.blocks))

    @classmethod
    def spec_of(cls, config: TowerConfig) -> TowerSpec:
        backbone = cls.backbone_config(config)
        layers = hidden_state_indices(config.layer, backbone.num_hidden_layers)
        if config.class_token and not cls.class_tokens:
            raise UserError(f"class_token: a {config.family} has no class token to keep")
        size, patch = cls.size_of(backbone), _side(backbone.patch_size)
        if not cls.margin:
            refuse_indivisible_size(size, patch)
        tokens = (size // patch) ** 2 + int(config.class_token)
        return TowerSpec(size, patch, tokens, backbone.hidden_size * len(layers), config.preprocessing)

    @classmethod
    def size_of(cls, backbone: PreTrainedConfig) -> int:
        """Side of the images in pixels."""
        return _side(backbone.image_size)

    @classmethod
    def with_size(cls, backbone: dict[str, Any], image_size: int) -> dict[str, Any]:
        """`TowerConfig.backbone` for another image size."""
        return {**backbone, "image_size": image_size}

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The backbone's blocks, in order."""

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module:
        """The norm after the last block."""

    @abstractmethod
    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Input of the first block, float[B, prefix + patches, width], and keyword arguments of all blocks."""

    @property
    def registers(self) -> int:
        """Number of register tokens between class token and patches. They are never features."""
        return 0

    @property
    def pooling(self) -> nn.Module | None:
        """The head that pools the normed last hidden state; None: the class token is the pooled output, if there is
        one."""
        return None

    @property
    def blocks_to_run(self) -> int:
        """Number of blocks that patch features need. The pooled output needs all."""
        return max(self._layers)

    def forward(self, pixel_values: torch.Tensor, pooled: bool = False) -> TowerOutput:
        hidden, block_kwargs = self.embed(pixel_values)
        if self.training and self.patch_dropout:
            hidden = self._drop_patches(hidden)
        patches, normed = self.run_blocks(hidden, block_kwargs, pooled)
        return TowerOutput(patches, self._pooled(normed) if pooled else None)

    def run_blocks(
        self, hidden: torch.Tensor, block_kwargs: dict[str, Any], all_blocks: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the blocks on the output of `embed`.

        Returns:
            Patch features float[B, N, D]; and if `all_blocks`, the normed output of the last block, else None.
        """
        run = len(self.blocks) if all_blocks else self.blocks_to_run
        states = {0: hidden}
        for number, block in enumerate(self.blocks[:run], start=1):
            hidden = block(hidden, **block_kwargs)
            if number in self._layers:
                states[number] = hidden
        patches = torch.cat([self._features(states[layer]) for layer in self._layers], dim=-1)
        return patches, self.last_norm(hidden) if all_blocks else None

    def patches_kept(self, patches: int) -> int:
        """Number of patches left of `patches` after patch dropout."""
        return max(1, round(patches * (1 - self.patch_dropout)))

    def _drop_patches(self, hidden: torch.Tensor) -> torch.Tensor:
        prefix_length = self.class_tokens + self.registers
        prefix, patches = hidden[:, :prefix_length], hidden[:, prefix_length:]
        order = torch.rand(patches.shape[:2], device=hidden.device).argsort(dim=1)
        kept = order[:, : self.patches_kept(patches.shape[1]), None].expand(-1, -1, patches.shape[2])
        return torch.cat([prefix, patches.gather(1, kept)], dim=1)

    def _features(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.config.final_norm:
            hidden = self.last_norm(hidden)
        patches = hidden[:, self.class_tokens + self.registers :]
        return torch.cat([hidden[:, :1], patches], dim=1) if self.config.class_token else patches

    @property
    def pooled_dim(self) -> int:
        if self.pooling is None and not self.class_tokens:
            return super().pooled_dim
        return self.backbone.config.hidden_size

    def _pooled(self, normed: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
        """mask: bool[B, N], patches that the head attends to; none: all."""
        if self.pooling is not None:
            return self.pooling(normed, *mask)
        if not self.class_tokens:
            raise ValueError(f"a {self.config.family} without a pooling head has no pooled output")
        return normed[:, 0]

    def _used(self, pooled: bool) -> tuple[int, list[nn.Module]]:
        """Number of blocks that run, and the modules after them that run."""
        norm = [self.last_norm] if pooled or self.config.final_norm else []
        head = [self.pooling] if pooled and self.pooling is not None else []
        return len(self.blocks) if pooled else self.blocks_to_run, norm + head

    def idle_parameters(self, pooled: bool = False) -> list[nn.Parameter]:
        run, used = self._used(pooled)
        heads = [part for part in (self.last_norm, self.pooling) if part is not None and part not in used]
        return [parameter for module in [*self.blocks[run:], *heads] for parameter in module.parameters()]

    def last_parameters(self, blocks: int, pooled: bool = False) -> list[nn.Parameter]:
        run, used = self._used(pooled)
        if blocks > run:
            raise UserError(f"it has {run}" if pooled else f"up to its feature layer it has {run}")
        return [parameter for module in [*self.blocks[run - blocks : run], *used] for parameter in module.parameters()]

    def resized(self, image_size: int, keep_positions: bool = False) -> "BlockTower":
        """Interpolates learned positions as transformers' `interpolate_pos_encoding`, antialiased if the config says
        so."""
        if image_size == self.spec.image_size:
            return self
        refuse_indivisible_size(image_size, self.spec.patch_size)
        config = replace(self.config, backbone=self.with_size(self.config.backbone, image_size))
        other = type(self)(config).to(next(self.parameters()).dtype)
        state = self.backbone.state_dict()
        if self.position_table is not None:
            table, side = state[self.position_table], image_size // self.spec.patch_size
            state[self.position_table] = resize_positions(
                table, self.class_tokens, (side, side), self.interpolation, config.antialias, keep_positions
            )
        other.backbone.load_state_dict(state)
        return other.train(self.training)


def refuse_indivisible_size(size: int, patch: int, merged: int = 1) -> None:
    """Raise UserError unless the image size is a multiple of `merged` patches; names the nearest valid sizes. In
    pixels."""
    step = patch * merged
    if size < step or size % step:
        below, above = size // step * step, (size // step + 1) * step
        nearest = f"the nearest sizes are {below} and {above}" if below else f"the nearest size is {above}"
        patches = f"patch size {patch}" if merged == 1 else f"{merged} x patch size {patch}"
        raise UserError(f"image size {size} is not a multiple of {patches}; {nearest}")


def hidden_state_indices(layer: int | tuple[int, ...], blocks: int) -> list[int]:
    """Indices from 0 of the hidden states that `TowerConfig.layer` selects.

    Args:
        layer: See `TowerConfig`.
        blocks: Number of blocks.

    Raises:
        UserError: There is no such hidden state.
    """
    layers = [layer] if isinstance(layer, int) else layer
    indices = [number if number >= 0 else blocks + 1 + number for number in layers]
    for number, index in zip(layers, indices, strict=True):
        if not 0 <= index <= blocks:
            raise UserError(
                f"feature layer {number} does not exist in a tower of {blocks} blocks; "
                f"expected {-blocks - 1} to {blocks} (-1 is the last block's output)"
            )
    return indices


def _side(size: int | list[int] | tuple[int, int]) -> int:
    """Some configs of transformers give height and width; all released towers are square."""
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise UserError(f"a tower takes square images, but its config has {height} x {width}")
    return height
