"""A vision tower and a text transformer that meet in one embedding space."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedConfig, PreTrainedModel

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.pretrained import load_strictly, open_pretrained, save_verified
from mmchat.vision import TowerConfig, VisionTower, build_tower

POOLS = ("pooled", "max")
MAX_LOGIT_SCALE = 100.0
"""CLIP clips its inverse temperature here (arXiv:2103.00020, section 2.5)."""
INITIAL_LOGIT_SCALE = 1 / 0.07
OUTPUT_TOLERANCE = 1e-5
"""Largest difference of unit vectors between a model and its reloaded copy (fp32)."""


class DualEncoderConfig(PreTrainedConfig):
    """towers: one `TowerConfig.to_dict()` (a list, as in every directory that holds towers).

    pool: "pooled" is the tower's own (CLIP's class token); "max" is the maximum over normalised patches, channel
    by channel, which makes the patches themselves carry what the caption tells.
    """

    model_type = "mmchat_clip"
    sub_configs = {"text_config": CLIPTextConfig}

    def __init__(
        self,
        towers: list[dict[str, Any]] | None = None,
        text_config: dict[str, Any] | CLIPTextConfig | None = None,
        projection_dim: int = 512,
        pool: str = "pooled",
        **kwargs: Any,
    ) -> None:
        self.towers = towers or []
        self.text_config = CLIPTextConfig(**text_config) if isinstance(text_config, dict) else text_config
        self.projection_dim = projection_dim
        self.pool = pool
        if pool not in POOLS:
            raise UserError(f"pool {pool!r} is unknown; expected one of {', '.join(POOLS)}")
        super().__init__(**kwargs)


class DualEncoder(PreTrainedModel):
    """`encode_image` and `encode_text` give unit vectors float[B, P]; `logit_scale` is a learned logarithm."""

    config_class = DualEncoderConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleList(build_tower(TowerConfig.from_dict(tower)) for tower in config.towers)
        self.text_encoder = CLIPTextModel(config.text_config)
        (tower,) = self.towers
        if tower.spec.native:
            raise UserError("a dual encoder's tower sees a square of each picture: give it another fit than native")
        image_dim = tower.pooled_dim if config.pool == "pooled" else tower.spec.dim
        self.image_projection = nn.Linear(image_dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.image_norm = nn.LayerNorm(image_dim) if config.pool == "max" else nn.Identity()
        # One element, not none: DeepSpeed cannot broadcast a tensor without dimensions.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(INITIAL_LOGIT_SCALE)))
        self.post_init()

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[B, 3, H, W] -> float[B, P], unit length."""
        if self.config.pool == "max":
            pooled = self.image_norm(self.towers[0](pixel_values).patches).amax(dim=1)
        else:
            pooled = self.towers[0](pixel_values, pooled=True).pooled
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int[B, L], padded on the right, each row ending with EOS -> float[B, P], unit length."""
        hidden = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        # Read at the last real token. `pooler_output` looks for an id instead, and for eos id 2 (ours)
        # transformers takes the largest id of the row.
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]
        return F.normalize(self.text_projection(last).float(), dim=-1)

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit vectors of images and texts, and the inverse temperature, at most 100."""
        scale = self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()
        return self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask), scale


def load_clip(source: str | Path, dtype: str = "auto") -> DualEncoder:
    """Open a dual encoder that mmchat saved; `dtype` as in `load_strictly`.

    Raises:
        UserError: the directory holds something else, or weights are missing or left over.
    """
    return load_strictly(DualEncoder, _checked(source), dtype=dtype)


def shape_clip(source: str | Path) -> DualEncoder:
    """As `load_clip`, but no weight is read: they are made anew, where torch makes tensors at the moment."""
    return DualEncoder(DualEncoderConfig.from_pretrained(_checked(source)))


def _checked(source: str | Path) -> Path:
    directory = Path(source)
    found = read_json(directory / "config.json").get("model_type")
    if found != DualEncoderConfig.model_type:
        raise UserError(f"{directory} holds a {found!r}, expected a dual encoder ({DualEncoderConfig.model_type})")
    return directory


def encode_caption(tokenizer: Any, caption: str, context_length: int) -> list[int]:
    """BOS, caption cut to fit, EOS."""
    ids = tokenizer(caption, add_special_tokens=False).input_ids[: context_length - 2]
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


def init_clip(
    tower: VisionTower, text: dict[str, Any], tokenizer: str, projection_dim: int, pool: str, out: Path
) -> DualEncoder:
    """Write the directory of a dual encoder around `tower`, its other half new: where a contrastive run starts.

    text: `CLIPTextConfig` values; vocabulary and special ids are the tokenizer's. Seed torch before.
    """
    words = open_pretrained(AutoTokenizer, tokenizer, "tokenizer")
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text_config = CLIPTextConfig(**{**text, **special, "vocab_size": len(words)})
    model = DualEncoder(DualEncoderConfig([tower.config.to_dict()], text_config, projection_dim, pool))
    model.towers[0] = tower
    save_clip(model, words, out)
    return model


def save_clip(model: DualEncoder, tokenizer: Any, directory: Path) -> None:
    """Raises RuntimeError where the written model, read back, computes something else."""
    size = model.towers[0].spec.image_size
    pixels = torch.linspace(-2, 2, 3 * size * size, device=model.device).view(1, 3, size, size)
    ids = torch.tensor([encode_caption(tokenizer, "a picture", 77)], device=model.device)

    @torch.no_grad()
    def outputs(one: DualEncoder) -> tuple[torch.Tensor, ...]:
        return one(pixels, ids, torch.ones_like(ids))

    save_verified(model, [tokenizer], directory, load_clip, outputs, OUTPUT_TOLERANCE)
