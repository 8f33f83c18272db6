"""A dual encoder: a vision tower and a text encoder with one embedding space."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPTextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from mmchat.errors import UserError
from mmchat.vision import refuse_several_views
from mmchat.vision.tower_model import TowerModel, TowerModelConfig

POOLS = ("pooled", "max")
TEXT_POOLS = ("last", "first", "mean", "padded")
MAX_LOGIT_SCALE = 100.0
"""Upper bound of CLIP's inverse temperature (arXiv:2103.00020, section 2.5)."""
INITIAL_LOGIT_SCALE = 1 / 0.07
SIGMOID_LOGIT_SCALE, SIGMOID_LOGIT_BIAS = 10.0, -10.0
"""Initial inverse temperature and bias of SigLIP (arXiv:2303.15343, section 3.2)."""


class DualEncoderConfig(TowerModelConfig):
    """Config of a dual encoder.

    Args:
        towers: One `TowerConfig.to_dict()`.
        text_config: Config of CLIPTextModel, SiglipTextModel or, by its `model_type`, another text encoder of
            transformers.
        projection_dim: Size P of the common space.
        pool: "pooled" is the tower's own pooled output (CLIP's class token). "max" is the maximum over normalised
            patches, channel by channel, so that the patches themselves learn the content of captions.
        text_pool: "last" or "first" token of a caption, or the "mean" of all. "padded" is SigLIP's: the encoder's own
            head, with the caption padded to the whole context and no mask, as in training.
        image_projection: Whether a linear layer maps the pooled image into the common space. False if it is there
            already (an attention pool's output or SigLIP's).
        text_projection: The same for texts.
        sigmoid: SigLIP's kind of model, with a bias besides the temperature and no bound on the latter.
        context_length: Largest number of tokens of a caption with special tokens; None: the encoder's positions.

    Raises:
        UserError: A value is unknown.
    """

    model_type = "mmchat_clip"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        towers: list[dict[str, Any]] | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        projection_dim: int = 512,
        pool: str = "pooled",
        text_pool: str = "last",
        image_projection: bool = True,
        text_projection: bool = True,
        sigmoid: bool = False,
        context_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (("pool", pool, POOLS), ("text_pool", text_pool, TEXT_POOLS)):
            if value not in known:
                raise UserError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
        self.text_config = text_config_from_dict(text_config) if isinstance(text_config, dict) else text_config
        self.projection_dim = projection_dim
        self.pool, self.text_pool = pool, text_pool
        self.image_projection, self.text_projection = image_projection, text_projection
        self.sigmoid = sigmoid
        if context_length is None and self.text_config is not None:
            context_length = self.text_config.max_position_embeddings
        self.context_length = context_length
        super().__init__(towers, **kwargs)


def text_config_from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    """Build the config of a text encoder; CLIP's if the values name no `model_type`.

    Raises:
        UserError: transformers does not know the type, or it has a decoder.
    """
    model_type = values.get("model_type", CLIPTextConfig.model_type)
    try:
        config = AutoConfig.for_model(
            model_type, **{key: value for key, value in values.items() if key != "model_type"}
        )
    except ValueError:
        raise UserError(f"transformers knows no model_type {model_type!r}; expected a text encoder") from None
    if config.is_encoder_decoder:
        raise UserError(f"a {model_type} has a decoder; a dual encoder takes text encoders only")
    return config


class DualEncoder(TowerModel):
    """CLIP or SigLIP around any tower. `encode_image` and `encode_text` give unit vectors float[B, P].

    Attributes:
        logit_scale: Learned logarithm of the inverse temperature: float[1].
        logit_bias: Learned bias of the logits: float[1]; None unless the model is SigLIP's kind.
    """

    config_class = DualEncoderConfig

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        self.text_encoder = without_pooler(random_text_encoder(config.text_config))
        (tower,) = self.towers
        refuse_several_views(tower.spec, "a dual encoder")
        image_dim = tower.pooled_dim if config.pool == "pooled" else tower.spec.dim
        text = config.text_config
        if config.text_pool == "padded" and not isinstance(text, SiglipTextConfig):
            raise UserError(f"text_pool 'padded' needs SigLIP's text encoder and its head, found {text.model_type!r}")
        text_dim = text.projection_size if config.text_pool == "padded" else text.hidden_size
        self.image_projection = projection(image_dim, config.projection_dim, config.image_projection)
        self.text_projection = projection(text_dim, config.projection_dim, config.text_projection)
        self.image_norm = nn.LayerNorm(image_dim) if config.pool == "max" else nn.Identity()
        # One dimension, because DeepSpeed cannot broadcast a tensor without dimensions.
        initial = SIGMOID_LOGIT_SCALE if config.sigmoid else INITIAL_LOGIT_SCALE
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(initial)))
        self.logit_bias = nn.Parameter(torch.full((1,), SIGMOID_LOGIT_BIAS)) if config.sigmoid else None
        self.post_init()

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode a batch of images.

        Args:
            pixel_values: float[B, 3, H, W], normalised as the tower's preprocessing does.

        Returns:
            Unit vectors float[B, P].
        """
        if self.config.pool == "max":
            pooled = self.image_norm(self.towers[0](pixel_values).patches).amax(dim=1)
        else:
            pooled = self.towers[0](pixel_values, pooled=True).pooled
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode a batch of texts.

        Args:
            input_ids: int[B, L], padded on the right; rows as `encode_caption` makes them.
            attention_mask: int[B, L], 0 at padding.

        Returns:
            Unit vectors float[B, P].
        """
        if self.config.text_pool == "padded":
            pooled = self.text_encoder(self._padded(input_ids, attention_mask)).pooler_output
        else:
            hidden = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            pooled = self._pooled_text(hidden, attention_mask)
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def _pooled_text(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.config.text_pool == "first":
            return hidden[:, 0]
        if self.config.text_pool == "mean":
            mask = attention_mask[..., None].to(hidden.dtype)
            return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        # The last token that is not padding. CLIP's `pooler_output` searches for an id instead: for eos id 2, which is
        # ours, transformers takes the largest id of the row.
        return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]

    def _padded(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pad to the whole context with the encoder's own padding token."""
        pad = self.config.text_config.pad_token_id
        ids = input_ids.masked_fill(attention_mask == 0, pad)
        return F.pad(ids, (0, self.config.context_length - ids.shape[1]), value=pad)

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Encode images and texts.

        Returns:
            Image vectors, text vectors, the inverse temperature (at most 100 unless SigLIP's kind) and, for SigLIP's
            kind, the bias.
        """
        images, texts = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        if self.logit_bias is not None:
            # A copy, because ZeRO 3 frees the parameter itself after the forward.
            return images, texts, self.logit_scale.exp(), self.logit_bias.clone()
        return images, texts, self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()


def random_text_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """AutoModel does not know SigLIP's text encoder alone."""
    return SiglipTextModel(config) if isinstance(config, SiglipTextConfig) else AutoModel.from_config(config)


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Remove the pooling layer of BERT and similar encoders, which would get no gradient here."""
    if "pooler" in dict(encoder.named_children()):
        encoder.pooler = None
    return encoder


def projection(width: int, common: int, wanted: bool) -> nn.Module:
    """A linear layer from `width` to `common`, or the identity if it is not wanted.

    Raises:
        UserError: It is not wanted and the widths differ.
    """
    if wanted:
        return nn.Linear(width, common, bias=False)
    if width != common:
        raise UserError(f"without a projection, projection_dim {common} must equal the pooled width, which is {width}")
    return nn.Identity()
