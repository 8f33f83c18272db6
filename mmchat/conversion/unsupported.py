"""Assistants of others that cannot be opened: which they are, and why.

Each reason was read in transformers' models/<name>/modeling_<name>.py; the test looks for it there.
"""

from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.hub import resolve
from mmchat.opening import CONFIG, read_model_config
from mmchat.pretrained import refuse_quantized

REMEDY = (
    "use it with transformers, or join the text-only release of its language model and a vision tower with "
    "`mmchat init`"
)

_MROPE = "it numbers image tokens by time, row and column (M-RoPE), and here every token has one position"
_BOTH_WAYS = "its image tokens attend to later image tokens, and here attention is causal"
_CROSS_ATTENTION = (
    "its language model reads images through cross-attention layers, and here image features are part of the token "
    "sequence"
)
_Q_FORMER = "a Q-Former stands between tower and language model, and no projector here is one"
_LATENTS = "learned queries that attend to the patches stand between tower and language model, in a form not known here"
_ENCODER_DECODER = "it is an encoder-decoder, and language models here are decoders alone"
_VQ = "it holds a VQ image tokenizer whose tokens it also generates, and here images are read as tower features"
_PIXTRAL = "its tower, Pixtral, has rotary positions for images of any size, and no tower here does"
_ROTARY_TOWER = "its tower has rotary positions for images of any size, and no tower here does"
_TIMM = "its tower is a model of timm that no tower here is"
_GATED = "its projector is a gated MLP (SwiGLU), and none here is"
_VIDEO = "it is made for videos, and here only images are read"

_REASONS: dict[str, tuple[str, ...]] = {
    _MROPE: (
        "ernie4_5_vl_moe",
        "glm46v",
        "glm4v",
        "glm4v_moe",
        "glm_ocr",
        "hunyuan_vl",
        "minicpmv4_7",
        "paddleocr_vl",
        "qwen2_5_omni",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_omni_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
    ),
    _BOTH_WAYS: ("gemma3", "gemma4", "git", "molmo2", "shieldgemma2"),
    "its attention runs both ways over the prompt, and here it is causal": ("paligemma",),
    _CROSS_ATTENTION: ("blip", "idefics", "mllama"),
    _Q_FORMER: ("blip-2", "granite4_vision", "instructblip", "instructblipvideo"),
    _LATENTS: ("aria", "idefics2", "kosmos-2", "kosmos-2.5"),
    _ENCODER_DECODER: ("florence2", "pix2struct", "t5gemma2", "udop", "vision-encoder-decoder"),
    _VQ: ("chameleon", "emu3", "janus"),
    "its image features are mixtures of the rows of a visual vocabulary, and no projector here has one": ("ovis2",),
    "it has no vision tower: patches enter the language model through one linear layer": ("fuyu",),
    _PIXTRAL: ("lighton_ocr", "mistral3", "pixtral"),
    _ROTARY_TOWER: ("llama4", "video_llama_3"),
    _TIMM: ("fast_vlm", "gemma3n", "perception_lm"),
    _GATED: ("aya_vision", "cohere2_vision"),
    "its MLP projector begins with a norm, and none here does without pixel shuffle": ("vipllava",),
    "it joins the crops of an image with learned separators before its projector": ("phi4_multimodal",),
    "its projector maps a SAM and a SigLIP tower together, and here every tower has its own": ("deepseek_vl_hybrid",),
    "its tower merges patches between its blocks, and none here does": ("minicpmv4_6",),
    "it merges patches of images of any aspect ratio, and here only squares are merged": ("lfm2_vl",),
    _VIDEO: ("llava_next_video", "video_llava"),
}

UNSUPPORTED = {model_type: reason for reason, model_types in _REASONS.items() for model_type in model_types}
"""`model_type` of transformers -> why no assistant of that type can be opened."""


def refuse_unsupported(config: dict[str, Any], where: str | Path) -> None:
    """Raise UserError if a `config.json` describes an assistant that cannot be opened.

    Args:
        config: The values of `config.json`.
        where: Its directory or name, for the message.
    """
    model_type = config.get("model_type")
    if model_type in UNSUPPORTED:
        raise UserError(
            f"{where} holds an assistant of type {model_type}, which mmchat cannot express: {UNSUPPORTED[model_type]}; "
            f"{REMEDY}"
        )


def refuse_unsupported_source(source: str) -> None:
    """As `refuse_unsupported`, for a directory or hub name. Nothing is said if there is no config.

    Raises:
        UserError: It cannot be opened, its weights are quantized, or it is a hub name that cannot be fetched.
    """
    directory = resolve(source, weights=False)
    if (directory / CONFIG).exists():
        config = read_model_config(directory)
        refuse_unsupported(config, source)
        refuse_quantized(config, source)
