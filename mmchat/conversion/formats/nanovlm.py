"""nanoVLM (huggingface/nanoVLM): SigLIP, pixel shuffle and one matrix, a Llama under keys of its own, read.

The original's files: models/config.py (the whole config.json), models/vision_transformer.py, models/language_model.py,
models/modality_projector.py, models/vision_language_model.py; of the images and their text data/processors.py and
data/custom_transforms.py.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig

from mmchat.conversation import SlotTokens
from mmchat.conversion.chat_templates import writes_alike
from mmchat.conversion.formats.base import (
    TOKENIZER_FILES,
    ImportedAssistant,
    directory_named,
    open_tokenizer,
    require_config,
)
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.vision import Markers, Split, TowerConfig
from mmchat.vision.checkpoint_formats.base import split_qkv
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import Preprocessing

TEMPLATE = "nanovlm"
TOWER, LANGUAGE = "towers.0.backbone.", "language_model.model."
EMBEDDINGS, HEAD = f"{LANGUAGE}embed_tokens.weight", "language_model.lm_head.weight"
POSITIONS = f"{TOWER}embeddings.position_embedding.weight"
KEYS = KeyMap(
    ("*.rotary_embd.inv_freq", None),
    ("vision_encoder.patch_embedding.conv.*", f"{TOWER}embeddings.patch_embedding.*"),
    ("vision_encoder.patch_embedding.position_embedding", POSITIONS),
    ("vision_encoder.blocks.#.ln1.*", f"{TOWER}encoder.layers.#.layer_norm1.*"),
    ("vision_encoder.blocks.#.ln2.*", f"{TOWER}encoder.layers.#.layer_norm2.*"),
    ("vision_encoder.blocks.#.attn.*", f"{TOWER}encoder.layers.#.self_attn.*"),
    ("vision_encoder.blocks.#.mlp.*", f"{TOWER}encoder.layers.#.mlp.*"),
    ("vision_encoder.layer_norm.*", f"{TOWER}post_layernorm.*"),
    ("MP.proj.*", "projectors.0.1.*"),
    ("decoder.token_embedding.*", f"{LANGUAGE}embed_tokens.*"),
    ("decoder.blocks.#.norm1.*", f"{LANGUAGE}layers.#.input_layernorm.*"),
    ("decoder.blocks.#.norm2.*", f"{LANGUAGE}layers.#.post_attention_layernorm.*"),
    ("decoder.blocks.#.attn.out_proj.*", f"{LANGUAGE}layers.#.self_attn.o_proj.*"),
    ("decoder.blocks.#.attn.*", f"{LANGUAGE}layers.#.self_attn.*"),
    ("decoder.blocks.#.mlp.*", f"{LANGUAGE}layers.#.mlp.*"),
    ("decoder.norm.*", f"{LANGUAGE}norm.*"),
    ("decoder.head.*", "language_model.lm_head.*"),
)
PARTS = ("vision_encoder.", "MP.", "decoder.")
FUSED = re.compile(r"(vision_encoder\.blocks\.\d+\.attn\.)qkv_proj\.(weight|bias)")
VISION_VALUES = {
    "vit_hidden_dim": "hidden_size",
    "vit_inter_dim": "intermediate_size",
    "vit_patch_size": "patch_size",
    "vit_img_size": "image_size",
    "vit_n_heads": "num_attention_heads",
    "vit_n_blocks": "num_hidden_layers",
    "vit_ln_eps": "layer_norm_eps",
}
"""Key of the config -> key of SigLIP's."""
LANGUAGE_VALUES = {
    "lm_hidden_dim": "hidden_size",
    "lm_inter_dim": "intermediate_size",
    "lm_rms_eps": "rms_norm_eps",
    "lm_re_base": "rope_theta",
    "lm_max_position_embeddings": "max_position_embeddings",
    "lm_vocab_size": "vocab_size",
    "lm_n_heads": "num_attention_heads",
    "lm_n_kv_heads": "num_key_value_heads",
    "lm_n_blocks": "num_hidden_layers",
}
"""Key of the config -> key of Llama's."""
NEEDED = (*VISION_VALUES, *LANGUAGE_VALUES, "lm_tie_weights", "lm_tokenizer", "mp_pixel_shuffle_factor")
EXPECTED = {
    "vit_cls_flag": False,
    "vit_dropout": 0.0,
    "lm_dropout": 0.0,
    "lm_attn_scaling": 1.0,
    "lm_use_tokens": False,
}
"""Settings that have no counterpart, with the value that all published models have."""
OF_IMAGES = ("mp_image_token_length", "max_img_size", "resize_to_max_side_len", "vlm_extra_tokens", "lm_chat_template")
OF_TRAINING = (
    "vit_model_type",
    "lm_model_type",
    "lm_base_vocab_size",
    "extra_token_amount",
    "lm_max_length",
    "lm_eos_token_id",
    "vlm_load_backbone_weights",
    "vlm_checkpoint_path",
    "hf_repo_name",
)
"""Keys that say how a model was made, and change nothing in it."""
ZERO_TO_ONE: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""torchvision's `ToTensor` alone."""


@dataclass(frozen=True)
class ExtraTokens:
    """`vlm_extra_tokens`: what the tokens of an image are called.

    Attributes:
        tokens: Name -> token, in the order in which they are added to the tokenizer.
    """

    tokens: dict[str, str]

    @property
    def image(self) -> str | None:
        """The token that stands for a feature."""
        return self.tokens.get("image_token")

    @property
    def whole(self) -> str | None:
        """The token before the view of the whole image; None if there is no such view."""
        return self.tokens.get("global_image_token")

    def markers(self, side: int, source: WeightFiles) -> Markers:
        """The markers of grids of up to `side` x `side` tiles.

        Raises:
            UserError: A place has no token, or the tokens do not follow one pattern.
        """
        names = [(row, column) for row in range(1, side + 1) for column in range(1, side + 1)]
        found = {place: self.tokens.get("r{}c{}".format(*place)) for place in names}
        if missing := ["r{}c{}".format(*place) for place, token in found.items() if token is None]:
            raise UserError(
                f"{source.path} has images of up to {side} x {side} tiles, but its vlm_extra_tokens lack "
                f"{', '.join(missing)}"
            )
        if other := [f"r{row}c{column}" for (row, column), token in found.items() if token != _place(row, column)]:
            raise UserError(
                f"in {source.path} the token {other[0]} is {self.tokens[other[0]]!r}; expected it to be written as "
                f"{_place(1, 1)}"
            )
        whole = self.whole or ""
        return Markers("<row_{row}_col_{column}>", "", whole, whole, "", "<image: {number}>")


class NanoVLM:
    name = "nanovlm"
    description = "nanoVLM (vision_encoder.*, MP.* and decoder.*)"

    def recognises(self, source: WeightFiles) -> bool:
        return all(any(key.startswith(part) for key in source.shapes) for part in PARTS)

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values = require_config(source, *NEEDED)
        _refuse_unsupported(values, source)
        extra = ExtraTokens(values.get("vlm_extra_tokens") or {})
        if extra.image is None:
            raise UserError(
                f"{source.path} has no image_token in vlm_extra_tokens: it is of nanoVLM's first version, which puts "
                "the features of its one image before the prompt, and here images are inside the user's message; open "
                "a later release, or start from its parts with `mmchat init`"
            )
        opened = _open_tokenizer(values["lm_tokenizer"], extra, source, tokenizer)
        _check_template(values.get("lm_chat_template"), opened, source)
        tower = TowerConfig(
            "siglip",
            {ours: values[theirs] for theirs, ours in VISION_VALUES.items()} | {"vision_use_head": False},
            final_norm=True,
            preprocessing=_preprocessing(values, extra, source),
        )
        _check_token_length(values, source)
        projector = f"pixel_shuffle{values['mp_pixel_shuffle_factor']}_linear"
        language = _language_config(values, opened)
        config = build_config(language, [tower], [projector], opened, TEMPLATE, SlotTokens(extra.image))
        return ImportedAssistant(config, opened, _state(source.tensors(), values["lm_tie_weights"]))


def _refuse_unsupported(values: dict[str, Any], source: WeightFiles) -> None:
    """Raise UserError that lists every setting that is unknown or that mmchat does not compute."""
    problems = [
        f"{key} {values[key]!r}, expected {expected!r}"
        for key, expected in EXPECTED.items()
        if values.get(key, expected) != expected
    ]
    if problems:
        raise UserError(f"mmchat cannot compute the nanoVLM in {source.path}: it has {'; '.join(problems)}")
    known = {*NEEDED, *EXPECTED, *OF_IMAGES, *OF_TRAINING}
    if unknown := sorted(values.keys() - known):
        raise UserError(
            f"the config.json in {source.path} has keys that nanoVLM's published versions do not have: "
            f"{', '.join(unknown)}; remove them if they change nothing in the model"
        )


def _open_tokenizer(named: Any, extra: ExtraTokens, source: WeightFiles, tokenizer: str | None) -> Any:
    """The language model's tokenizer with the tokens of images.

    `get_tokenizer` of data/processors.py hands them to transformers, which adds them in the order of the dict.

    Raises:
        UserError: The tokenizer that the config names is not here. It is not fetched unasked.
    """
    if tokenizer is None and not any((source.path / name).exists() for name in TOKENIZER_FILES):
        found = directory_named(named, source.path)
        if found is None:
            raise UserError(
                f"{source.path} holds no tokenizer; its config names {named!r}, which is no directory here: add "
                f"--tokenizer {named}, or name its directory"
            )
        tokenizer = str(found)
    opened = open_tokenizer(source, tokenizer)
    opened.add_tokens(list(extra.tokens.values()), special_tokens=True)
    rows = source.config["lm_vocab_size"]
    if len(opened) > rows:
        raise UserError(
            f"this tokenizer is not the one that {source.path} was trained with: it has {len(opened)} tokens with "
            f"those of images, and the model has {rows} embeddings; name that one, {named!r}, with --tokenizer"
        )
    return opened


def _check_template(jinja: str | None, tokenizer: Any, source: WeightFiles) -> None:
    if jinja is None or not writes_alike(tokenizer, TEMPLATE, jinja):
        raise UserError(
            f"the lm_chat_template of {source.path} is not the one that nanoVLM's published versions have, ChatML "
            f"without a default system message, or the tokenizer lacks a token that it writes; found {jinja!r}"
        )


def _preprocessing(values: dict[str, Any], extra: ExtraTokens, source: WeightFiles) -> Preprocessing:
    """One square as torchvision's `Resize` makes it, or tiles as `GlobalAndSplitImages` and `get_image_string` do.

    Without a token for it there is no view of the whole image (eval/lmms_eval_wrapper.py of later versions).
    """
    if "max_img_size" not in values:
        return Preprocessing(**ZERO_TO_ONE, resample="bilinear", fit="squash")
    longest, tile = values["max_img_size"], values["vit_img_size"]
    if longest % tile:
        raise UserError(f"{source.path} has max_img_size {longest}, which is not a multiple of vit_img_size {tile}")
    split = Split(
        longest,
        rule="nanovlm",
        enlarge=values.get("resize_to_max_side_len", False),
        global_view="first" if extra.whole else "none",
        global_resample="bilinear",
        markers=extra.markers(longest // tile, source),
    )
    return Preprocessing(**ZERO_TO_ONE, resample="bicubic", fit="split", tiling=split)


def _check_token_length(values: dict[str, Any], source: WeightFiles) -> None:
    side = values["vit_img_size"] // values["vit_patch_size"] // values["mp_pixel_shuffle_factor"]
    stated = values.get("mp_image_token_length", side**2)
    if stated != side**2:
        raise UserError(
            f"{source.path} has mp_image_token_length {stated}, but the model makes {side**2} features of a square"
        )


def _language_config(values: dict[str, Any], tokenizer: Any) -> PreTrainedConfig:
    stated = {ours: values[theirs] for theirs, ours in LANGUAGE_VALUES.items()}
    return LlamaConfig(
        **stated,
        tie_word_embeddings=values["lm_tie_weights"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _state(tensors: dict[str, torch.Tensor], tied: bool) -> dict[str, torch.Tensor]:
    """The weights under our keys.

    Of tied weights safetensors' `save_model`, which nanoVLM calls, keeps the first by name: `decoder.head.weight`.
    """
    split: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        fused = FUSED.fullmatch(key)
        split |= split_qkv(fused[1], fused[2], tensor) if fused else {key: tensor}
    state = KEYS.import_state(split)
    if POSITIONS in state:
        state[POSITIONS] = state[POSITIONS].squeeze(0)
    if tied and HEAD in state:
        state.setdefault(EMBEDDINGS, state[HEAD])
    return state


def _place(row: int, column: int) -> str:
    return f"<row_{row}_col_{column}>"
