"""The projector of an mmproj file: each of our kinds as one of llama.cpp's projector types, by exact rewriting.

Types and tensor names: ggml-org/llama.cpp, tools/mtmd/clip-impl.h, and the graphs in tools/mtmd/models/.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mmchat.conversion.gguf.gguf_file import Weight
from mmchat.conversion.gguf.vision import CLASS_TOKEN_FAMILIES
from mmchat.model.projectors import projector_kind
from mmchat.model.projectors.mlp import MLP, Linear
from mmchat.model.projectors.pixel_shuffle import SHUFFLE, PixelShuffleMLP
from mmchat.model.projectors.pooling import AveragePoolMLP
from mmchat.vision import TowerConfig, TowerSpec
from mmchat.vision.spec import HALF

LFM2_TOKENS = (64, 256)
"""Smallest and largest number of image tokens to which llama.cpp resizes an image of the `lfm2` type by default."""


@dataclass(frozen=True)
class ProjectorType:
    """One of llama.cpp's projector types.

    Attributes:
        name: `clip.projector_type`.
        layers: Names of the first and the last matrix.
        norm: Name of the norm before them.
        rolled: Whether the position table is written with the class token's position last. The graph puts the class
            token last, but adds positions in the order of the file.
        markers: The tokens that llama.cpp itself writes before and after an image; None: none.
    """

    name: str
    layers: tuple[str, str]
    norm: str | None = None
    rolled: bool = False
    markers: tuple[str, str] | None = None


MLP_TYPE = ProjectorType("mlp", ("mm.0", "mm.2"))
JANUS_PRO = ProjectorType("janus_pro", ("mm.0", "mm.1"))
INTERNVL = ProjectorType(
    "internvl", ("mm.model.mlp.1", "mm.model.mlp.3"), "mm.model.mlp.0", rolled=True, markers=("<img>", "</img>")
)
LFM2 = ProjectorType("lfm2", ("mm.1", "mm.2"), "mm.input_norm", markers=("<|image_start|>", "<|image_end|>"))
PROJECTOR_TYPES = {one.name: one for one in (MLP_TYPE, JANUS_PRO, INTERNVL, LFM2)}


def projector_type(tower: TowerConfig, projector: str) -> ProjectorType | None:
    """The type that a projector is written as, or None if there is none.

    Args:
        tower: The config of its tower, whose family is one of `vision`'s.
        projector: The projector's name.
    """
    kind, has_class_token = projector_kind(projector), tower.family in CLASS_TOKEN_FAMILIES
    if isinstance(kind, Linear) or (isinstance(kind, MLP) and kind.depth <= 2):
        if tower.family == "internvit":
            return None
        # Both types hold the same MLP. They pad images that are not square with other colours: mlp with CLIP's mean,
        # janus_pro with the middle of the range.
        middle = tower.preprocessing.fit == "pad" and tower.preprocessing.mean == HALF and not has_class_token
        return JANUS_PRO if middle else MLP_TYPE
    if isinstance(kind, PixelShuffleMLP) and not kind.positions:
        return INTERNVL if has_class_token else LFM2
    return LFM2 if isinstance(kind, AveragePoolMLP) and not has_class_token else None


def loses_class_token(tower: TowerConfig, found: ProjectorType) -> bool:
    """Whether llama.cpp puts the class token in the wrong place (its issue 25814)."""
    return tower.family in CLASS_TOKEN_FAMILIES and not found.rolled


def merged_patches(projector: str) -> int:
    """Side of the square of patches that becomes one slot."""
    kind = projector_kind(projector)
    if isinstance(kind, PixelShuffleMLP):
        return SHUFFLE
    return kind.window if isinstance(kind, AveragePoolMLP) else 1


def projector_refusals(tower: TowerConfig, spec: TowerSpec, projector: str) -> list[str]:
    """Reasons why a projector cannot be written."""
    found, step = projector_type(tower, projector), spec.patch_size * merged_patches(projector)
    if found is None:
        return [f"llama.cpp has no projector for {projector} on a {tower.family}"]
    if found is INTERNVL and tower.final_norm:
        return ["its tower's features are normed (final_norm: true), those of llama.cpp's internvl are not"]
    if found is LFM2 and spec.image_size % step:
        return [f"its image size {spec.image_size} is not a multiple of {step} pixels, to which llama.cpp would resize"]
    return []


def image_tokens_to_force(found: ProjectorType, slots: int) -> int | None:
    """Slots per image if llama.cpp would make another number of them by default, else None.

    Its programs take the number as `--image-min-tokens` and `--image-max-tokens`.
    """
    smallest, largest = LFM2_TOKENS
    return slots if found is LFM2 and not smallest <= slots <= largest else None


def projector_weights(found: ProjectorType, projector: str, module: nn.Module) -> list[Weight]:
    """The tensors of a projector without refusals."""
    kind, layers = projector_kind(projector), [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    first, last = layers[0], layers[-1]
    matrices = [(first.weight, first.bias), (last.weight, last.bias)]
    if len(layers) == 1:
        matrices = linear_as_mlp(first)
    if isinstance(kind, AveragePoolMLP):
        matrices[0] = (pooled_first_layer(first.weight, kind.window), first.bias)
    weights = [
        Weight(f"{name}.{part}", tensor)
        for name, pair in zip(found.layers, matrices, strict=True)
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    ]
    if isinstance(kind, PixelShuffleMLP):
        norm = cast(nn.LayerNorm, module[1])
        weights += [Weight(f"{found.norm}.weight", norm.weight), Weight(f"{found.norm}.bias", norm.bias)]
    return weights


def linear_as_mlp(linear: nn.Linear) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A linear layer as two with a GELU between them: W x = [I, -I] gelu([W; -W] x), since gelu(x) - gelu(-x) = x.

    The identity holds for the exact GELU and for its tanh approximation. The bias goes with W.
    """
    identity = torch.eye(linear.out_features, dtype=linear.weight.dtype)
    first = torch.cat([linear.weight, -linear.weight]), torch.cat([linear.bias, -linear.bias])
    return [first, (torch.cat([identity, -identity], dim=1), torch.zeros_like(linear.bias))]


def pooled_first_layer(weight: torch.Tensor, window: int) -> torch.Tensor:
    """The first matrix after average pooling, for the concatenated features of the window's patches.

    Args:
        weight: float[out, D].
        window: Side of the window.

    Returns:
        float[out, window * window * D].
    """
    return (weight / window**2).repeat(1, window**2)
