"""Whole CLIPs and SigLIPs as others publish them: the tower as `mmchat.vision` opens it, and here the rest, which is
the text half, the way of both into the common space, temperature and bias."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, SiglipConfig, SiglipTextConfig, SiglipTextModel

from mmchat.contrastive.captions import open_tokenizer
from mmchat.contrastive.dual_encoder import DualEncoderConfig
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.pretrained import load_strictly
from mmchat.vision.checkpoint_formats import hugging_face, open_clip, openai
from mmchat.vision.checkpoint_formats.base import TowerCheckpoint
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.loading import recognise_format

Value = TypeVar("Value")

NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold besides tensors."""
TEXT = {
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
    "text_projection.": "head.",
}
"""How keys of a text half begin, in OpenAI's layout and in transformers'; the last is SigLIP's."""
TRANSPOSED = {"visual.proj": "image_projection.weight", "text_projection": "text_projection.weight"}
ALONE = ("logit_scale", "logit_bias")

UNDERSTOOD = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name")
UNDERSTOOD += ("tokenizer_kwargs",)
"""Settings of open_clip's `text_cfg` that are read, or that shapes tell, or that are the tokenizer's."""
SIGLIP_USUAL = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
CLIP_USUAL = {"pool_type": "argmax"}
"""Other settings are refused, unless they ask for this or for nothing."""

LEGACY_EOS = 2
"""What configs of CLIP said before transformers 4.31 (its pull request 24773), whatever the tokenizer had; the end of a
text was then its largest id."""


class DualEncoderCheckpoint(NamedTuple):
    """state: keys as in `DualEncoder.state_dict()`."""

    config: DualEncoderConfig
    state: dict[str, torch.Tensor]


def open_dual_encoder(source: WeightFiles) -> DualEncoderCheckpoint:
    """Strictness is the caller's, as of `mmchat.vision.checkpoint_formats`.

    Raises:
        UserError: it is no dual encoder, or in no layout that is known here.
    """
    layout = recognise_format(source)
    if layout.name not in DUAL_ENCODER_FORMATS:
        raise UserError(
            f"{source.path} is in the layout of {layout.name!r}, of which only vision towers are opened; dual encoders "
            f"are known as {', '.join(DUAL_ENCODER_FORMATS)} and mmchat's own"
        )
    return DUAL_ENCODER_FORMATS[layout.name](source, layout.open(source, weights=True))


def _open_openai(source: WeightFiles, tower: TowerCheckpoint) -> DualEncoderCheckpoint:
    return DualEncoderCheckpoint(
        clip_config(source, tower, {"hidden_act": "quick_gelu"}), clip_state(source.tensors(), tower)
    )


def _open_open_clip(source: WeightFiles, tower: TowerCheckpoint) -> DualEncoderCheckpoint:
    path = open_clip.config_of(source)
    model = read_json(path)["model_cfg"] if path.exists() else {}
    text = model.get("text_cfg", {})
    if open_clip.holds_siglip(source.shapes):
        _refuse_strange(text, SIGLIP_USUAL, source)
        return DualEncoderCheckpoint(siglip_config(source, tower), clip_state(source.tensors(), tower))
    _refuse_strange(text, CLIP_USUAL, source)
    stated: dict[str, Any] = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    if "heads" in text:
        stated["num_attention_heads"] = text["heads"]
    return DualEncoderCheckpoint(clip_config(source, tower, stated), clip_state(source.tensors(), tower))


def _open_hugging_face(source: WeightFiles, tower: TowerCheckpoint) -> DualEncoderCheckpoint:
    kind = source.config["model_type"]
    if kind not in ("clip", "siglip"):
        raise UserError(f"{source.path} holds a {kind!r}, which is no dual encoder; known: clip, siglip")
    others = ("vision_model.", "visual_projection.", *ALONE)
    shared: dict[str, Any] = {"towers": [tower.config.to_dict()]}
    if kind == "clip":
        whole = CLIPConfig.from_pretrained(source.path)
        text = load_strictly(CLIPTextModel, source.path, others=(*others, "text_projection."))
        if whole.text_config.eos_token_id == LEGACY_EOS:
            _true_special_ids(whole.text_config)
        config = DualEncoderConfig(**shared, text_config=whole.text_config, projection_dim=whole.projection_dim)
    else:
        whole = SiglipConfig.from_pretrained(source.path)
        text = load_strictly(SiglipTextModel, source.path, others=others)
        if (source.path / "tokenizer_config.json").exists():  # which alone tells what SigLIP 2 pads with
            whole.text_config.pad_token_id = open_tokenizer(str(source.path)).pad_token_id
        config = _siglip(tower, whole.text_config)
    joints = {key: tensor for key, tensor in source.tensors().items() if not key.startswith(("vision_", "text_model."))}
    renamed = {key.replace("visual_projection.", "image_projection."): tensor for key, tensor in joints.items()}
    alone = {key: renamed.pop(key).reshape(1) for key in ALONE if key in renamed}
    return DualEncoderCheckpoint(config, _joined(tower, text.state_dict(), renamed | alone))


DUAL_ENCODER_FORMATS: dict[str, Callable[[WeightFiles, TowerCheckpoint], DualEncoderCheckpoint]] = {
    hugging_face.HuggingFace.name: _open_hugging_face,
    open_clip.OpenCLIP.name: _open_open_clip,
    openai.OpenAI.name: _open_openai,
}


def without_tower(named: Mapping[str, Value]) -> dict[str, Value]:
    """The text half and what joins the two. open_clip has what is not plain CLIP's under `text.`."""
    rest = {key: value for key, value in named.items() if key.startswith(open_clip.OTHERS)}
    return {key.removeprefix("text."): value for key, value in rest.items() if key not in NUMBERS}


def clip_config(source: WeightFiles, tower: TowerCheckpoint, stated: dict[str, Any]) -> DualEncoderConfig:
    """What shapes tell. stated: values of `CLIPTextConfig` that they do not.

    Raises:
        UserError: a tensor that tells it is missing.
    """
    shapes = without_tower(source.shapes)
    openai.need(shapes, ["text_projection"], source.path)
    text = CLIPTextConfig(**{**_text_sizes(shapes, source), "layer_norm_eps": 1e-5, **stated})
    _true_special_ids(text)
    return DualEncoderConfig(
        [tower.config.to_dict()],
        text,
        shapes["text_projection"][1],
        image_projection=tower.config.family != "clip_resnet",  # its attention pool ends in the common space
    )


def siglip_config(source: WeightFiles, tower: TowerCheckpoint) -> DualEncoderConfig:
    shapes = without_tower(source.shapes)
    openai.need(shapes, ["text_projection.weight"], source.path)
    sizes = _text_sizes(shapes, source)
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
    """A whole CLIP's or SigLIP's weights, in float32 like the tower's."""
    rest = {key: tensor.float() for key, tensor in without_tower(tensors).items()}
    joints = {ours: rest.pop(theirs).T.contiguous() for theirs, ours in TRANSPOSED.items() if theirs in rest}
    joints |= {key: rest.pop(key).reshape(1) for key in ALONE if key in rest}
    return _joined(tower, openai.transformer_state(rest, TEXT), joints)


def _joined(
    tower: TowerCheckpoint, text: Mapping[str, torch.Tensor], joints: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    state = {f"towers.0.{key}": tensor for key, tensor in tower.state.items()}
    return state | {f"text_encoder.{key}": tensor for key, tensor in text.items()} | dict(joints)


def _text_sizes(shapes: Mapping[str, tuple[int, ...]], source: WeightFiles) -> dict[str, int]:
    hidden = "transformer.resblocks.0.mlp.c_fc.bias"
    openai.need(shapes, ["token_embedding.weight", "positional_embedding", hidden], source.path)
    (vocabulary, width), (positions, _) = shapes["token_embedding.weight"], shapes["positional_embedding"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[hidden][0],
        "num_hidden_layers": openai.depth(shapes, "transformer.resblocks."),
        "num_attention_heads": width // openai.HEAD_WIDTH,
        "max_position_embeddings": positions,
    }


def _true_special_ids(text: CLIPTextConfig) -> None:
    """In CLIP's vocabulary they are the last two."""
    text.bos_token_id, text.eos_token_id = text.vocab_size - 2, text.vocab_size - 1
    text.pad_token_id = text.eos_token_id


def _refuse_strange(text: dict[str, Any], usual: dict[str, Any], source: WeightFiles) -> None:
    strange = {k: v for k, v in text.items() if k not in UNDERSTOOD and v and v != usual.get(k)}
    if strange:
        raise UserError(f"the open_clip_config.json of {source.path} asks for a text half with {strange}, unknown here")
