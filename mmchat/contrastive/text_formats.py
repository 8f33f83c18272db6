"""Published formats of CLIP and SigLIP: text encoder, projections, temperature and bias.

`mmchat.vision.checkpoint_formats` opens the tower.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, SiglipConfig, SiglipTextConfig, SiglipTextModel

from mmchat.contrastive.captions import open_tokenizer
from mmchat.contrastive.dual_encoder import DualEncoderConfig
from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.vision.checkpoint_formats import hugging_face, open_clip, openai
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint, count_blocks, require_keys
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.loading import recognise_format

Value = TypeVar("Value")

NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold besides weights."""
TEXT_PREFIXES = {
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
    "text_projection.": "head.",
}
"""Prefixes of a text encoder's keys, OpenAI's -> transformers'; the last is SigLIP's."""
TRANSPOSED = {"visual.proj": "image_projection.weight", "text_projection": "text_projection.weight"}
SCALARS = ("logit_scale", "logit_bias")

ACCEPTED = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name")
ACCEPTED += ("tokenizer_kwargs",)
"""Settings of open_clip's `text_cfg` that are read, follow from shapes, or belong to the tokenizer."""
SIGLIP_DEFAULTS = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
CLIP_DEFAULTS = {"pool_type": "argmax"}
"""Other settings are refused, unless they have these values or are false."""

LEGACY_EOS = 2
"""eos_token_id in configs of CLIP before transformers 4.31 (its pull request 24773), whatever the tokenizer's was. The
end of a text was then its largest id."""


class DualEncoderCheckpoint(NamedTuple):
    """A dual encoder read from a checkpoint. state: keys as in `DualEncoder.state_dict()`."""

    config: DualEncoderConfig
    state: dict[str, torch.Tensor]


def open_dual_encoder(files: WeightFiles) -> DualEncoderCheckpoint:
    """Read a dual encoder. The caller finds missing and unexpected keys when it fills the model.

    Raises:
        UserError: The files hold no dual encoder, or one of an unknown format.
    """
    found = recognise_format(files)
    if found.name not in DUAL_ENCODER_FORMATS:
        raise UserError(
            f"{files.path} has the format {found.name!r}, of which only vision towers are opened; dual encoders may "
            f"have the formats {', '.join(DUAL_ENCODER_FORMATS)} and mmchat's model directory"
        )
    return DUAL_ENCODER_FORMATS[found.name](files, found.open(files, weights=True))


def _open_openai(files: WeightFiles, tower: TowerCheckpoint) -> DualEncoderCheckpoint:
    return DualEncoderCheckpoint(
        clip_config(files, tower, {"hidden_act": "quick_gelu"}), clip_state(files.tensors(), tower)
    )


def _open_open_clip(files: WeightFiles, tower: TowerCheckpoint) -> DualEncoderCheckpoint:
    path = open_clip.config_path(files)
    model = read_json_object(path)["model_cfg"] if path.exists() else {}
    text = model.get("text_cfg", {})
    if open_clip.holds_siglip(files.shapes):
        _refuse_unsupported(text, SIGLIP_DEFAULTS, files)
        return DualEncoderCheckpoint(siglip_config(files, tower), clip_state(files.tensors(), tower))
    _refuse_unsupported(text, CLIP_DEFAULTS, files)
    stated: dict[str, Any] = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    if "heads" in text:
        stated["num_attention_heads"] = text["heads"]
    return DualEncoderCheckpoint(clip_config(files, tower, stated), clip_state(files.tensors(), tower))


def _open_hugging_face(files: WeightFiles, tower: TowerCheckpoint) -> DualEncoderCheckpoint:
    model_type = files.config["model_type"]
    if model_type not in ("clip", "siglip"):
        raise UserError(f"{files.path} holds a {model_type!r}, which is no dual encoder; known: clip, siglip")
    others = ("vision_model.", "visual_projection.", *SCALARS)
    shared: dict[str, Any] = {"towers": [tower.config.to_dict()]}
    if model_type == "clip":
        whole = CLIPConfig.from_pretrained(files.path)
        text = hugging_face.load_part(CLIPTextModel, files, (*others, "text_projection."))
        if whole.text_config.eos_token_id == LEGACY_EOS:
            _set_special_ids(whole.text_config)
        config = DualEncoderConfig(**shared, text_config=whole.text_config, projection_dim=whole.projection_dim)
    else:
        whole = SiglipConfig.from_pretrained(files.path)
        text = hugging_face.load_part(SiglipTextModel, files, others)
        if (files.path / "tokenizer_config.json").exists():  # the config does not give SigLIP 2's padding token
            whole.text_config.pad_token_id = open_tokenizer(str(files.path)).pad_token_id
        config = _siglip(tower, whole.text_config)
    projections = files.tensors(without=("vision_", "text_model."))
    renamed = {key.replace("visual_projection.", "image_projection."): tensor for key, tensor in projections.items()}
    scalars = {key: renamed.pop(key).reshape(1) for key in SCALARS if key in renamed}
    return DualEncoderCheckpoint(config, _full_state(tower, text.state_dict(), renamed | scalars))


DUAL_ENCODER_FORMATS: dict[str, Callable[[WeightFiles, TowerCheckpoint], DualEncoderCheckpoint]] = {
    hugging_face.HuggingFace.name: _open_hugging_face,
    open_clip.OpenCLIP.name: _open_open_clip,
    openai.OpenAI.name: _open_openai,
}


def without_tower(named: Mapping[str, Value]) -> dict[str, Value]:
    """Drop the tower's keys. open_clip has text encoders that are not plain CLIP's under `text.`."""
    rest = {key: value for key, value in named.items() if key.startswith(open_clip.OTHERS)}
    return {key.removeprefix("text."): value for key, value in rest.items() if key not in NUMBERS}


def clip_config(files: WeightFiles, tower: TowerCheckpoint, stated: dict[str, Any]) -> DualEncoderConfig:
    """Derive the config of a CLIP from shapes.

    Args:
        files: The whole model.
        tower: Its tower.
        stated: Values of `CLIPTextConfig` that do not follow from shapes.

    Raises:
        UserError: A tensor is missing that this needs.
    """
    shapes = without_tower(files.shapes)
    require_keys(shapes, ["text_projection"], files.path)
    text = CLIPTextConfig(**{**_text_sizes(shapes, files), "layer_norm_eps": 1e-5, **stated})
    _set_special_ids(text)
    return DualEncoderConfig(
        [tower.config.to_dict()],
        text,
        shapes["text_projection"][1],
        image_projection=tower.config.family != "clip_resnet",  # its attention pool ends in the common space
    )


def siglip_config(files: WeightFiles, tower: TowerCheckpoint) -> DualEncoderConfig:
    """Derive the config of a SigLIP from shapes. Raises like `clip_config`."""
    shapes = without_tower(files.shapes)
    require_keys(shapes, ["text_projection.weight"], files.path)
    sizes = _text_sizes(shapes, files)
    sizes["num_attention_heads"] = open_clip.SIGLIP_HEADS[tower.config.backbone["hidden_size"]]
    text = SiglipTextConfig(
        **sizes,
        projection_size=shapes["text_projection.weight"][0],
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    return _siglip(tower, text)


def _siglip(tower: TowerCheckpoint, text: SiglipTextConfig) -> DualEncoderConfig:
    return DualEncoderConfig(
        [tower.config.to_dict()],
        text,
        text.projection_size,
        text_pool="padded",
        image_projection=False,
        text_projection=False,
        sigmoid=True,
    )


def clip_state(tensors: Mapping[str, torch.Tensor], tower: TowerCheckpoint) -> dict[str, torch.Tensor]:
    """All weights of a CLIP or SigLIP in float32, as the tower's."""
    rest = {key: tensor.float() for key, tensor in without_tower(tensors).items()}
    projections = {ours: rest.pop(theirs).T.contiguous() for theirs, ours in TRANSPOSED.items() if theirs in rest}
    projections |= {key: rest.pop(key).reshape(1) for key in SCALARS if key in rest}
    return _full_state(tower, openai.transformer_state(rest, TEXT_PREFIXES), projections)


def _full_state(
    tower: TowerCheckpoint, text: Mapping[str, torch.Tensor], projections: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    state = {f"towers.0.{key}": tensor for key, tensor in tower.state.items()}
    return state | {f"text_encoder.{key}": tensor for key, tensor in text.items()} | dict(projections)


def _text_sizes(shapes: Mapping[str, tuple[int, ...]], files: WeightFiles) -> dict[str, int]:
    hidden = "transformer.resblocks.0.mlp.c_fc.bias"
    require_keys(shapes, ["token_embedding.weight", "positional_embedding", hidden], files.path)
    (vocabulary, width), (positions, _) = shapes["token_embedding.weight"], shapes["positional_embedding"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[hidden][0],
        "num_hidden_layers": count_blocks(shapes, "transformer.resblocks."),
        "num_attention_heads": width // openai.HEAD_WIDTH,
        "max_position_embeddings": positions,
    }


def _set_special_ids(text: CLIPTextConfig) -> None:
    """The last two ids of CLIP's vocabulary."""
    text.bos_token_id, text.eos_token_id = text.vocab_size - 2, text.vocab_size - 1
    text.pad_token_id = text.eos_token_id


def _refuse_unsupported(text: dict[str, Any], defaults: dict[str, Any], files: WeightFiles) -> None:
    unsupported = {k: v for k, v in text.items() if k not in ACCEPTED and v and v != defaults.get(k)}
    if unsupported:
        raise UserError(
            f"the open_clip_config.json of {files.path} has text_cfg {unsupported}, which no text encoder here supports"
        )
