"""Idefics3 (Laurençon et al. 2024, arXiv:2408.12637) and SmolVLM (arXiv:2504.05299) in transformers' layout, read.

A SigLIP tower, pixel shuffle and one matrix, a causal language model; images are split, with row and column markers.
The classes are in transformers, models/idefics3/modeling_idefics3.py and models/smolvlm/modeling_smolvlm.py; they
compute the same and differ in how their processors read the tokenizer.
"""

from typing import Any

import torch
from transformers import Idefics3Config, SiglipVisionConfig, SmolVLMConfig

from mmchat.conversation import SlotTokens
from mmchat.conversion.chat_templates import matching_template, read_chat_template
from mmchat.conversion.formats.base import ImportedAssistant, check_token_ids, open_tokenizer
from mmchat.conversion.formats.hf_language import read_language
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.model.assembly import build_config
from mmchat.pretrained import open_pretrained
from mmchat.vision import Markers, Split, TowerConfig
from mmchat.vision.checkpoint_formats.image_processor import (
    PIL_RESAMPLING,
    find_processor,
    per_channel,
    refuse_other_steps,
)
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.spec import HALF, Preprocessing
from mmchat.vision.tower import config_keys

CONFIGS = {"idefics3": Idefics3Config, "smolvlm": SmolVLMConfig}
"""`model_type` -> config."""
KEYS = KeyMap(
    ("*.rotary_emb.inv_freq", None),
    ("model.vision_model.*", "towers.0.backbone.*"),
    ("model.connector.modality_projection.proj.*", "projectors.0.1.*"),
    ("model.text_model.*", "language_model.model.*"),
    ("lm_head.*", "language_model.lm_head.*"),
)
POSITIONS = "towers.0.backbone.embeddings.position_embedding.weight"
DEFAULT_TILE = 364
"""`max_image_size` of both image processors; `size` is four times as much."""


class Idefics3:
    name = "idefics3"
    description = "transformers' Idefics3ForConditionalGeneration or SmolVLMForConditionalGeneration"

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") in CONFIGS and any(KEYS.reads(key) for key in source.shapes)

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        config: Any = open_pretrained(CONFIGS[source.config["model_type"]], str(source.path), "config")
        text = read_language(config, source)
        opened = open_tokenizer(source, tokenizer)
        image, fake, whole = _image_tokens(config, opened, source)
        tower = _tower_config(
            config, Markers(f"{fake}<row_{{row}}_col_{{column}}>", "\n", f"\n{whole}", whole, fake), source
        )
        _check_image_seq_len(config, source)
        slots = SlotTokens(image)
        template, system = _template(opened, slots, source)
        projector = f"pixel_shuffle{config.scale_factor}_linear"
        ours = build_config(text, [tower], [projector], opened, template, slots, system)
        state = KEYS.import_state(source.tensors())
        if POSITIONS in state:
            state[POSITIONS] = looked_up_positions(state[POSITIONS])
        return ImportedAssistant(ours, opened, state)


def looked_up_positions(table: torch.Tensor) -> torch.Tensor:
    """The positions of a whole square, patch by patch: float[n * n, D] -> float[n * n, D].

    The class finds a patch's row of the table by comparing fractions of the side in fp32
    (`Idefics3VisionEmbeddings.forward`). For some sides, such as 19 and 25, rounding gives a neighbour's row.
    """
    return table[position_rows(len(table))]


def position_rows(count: int) -> torch.Tensor:
    """The row of the position table that the class gives each of `count` patches of a square: int64[count]."""
    side = round(count**0.5)
    starts = torch.arange(1 / side, 1.0, 1 / side)
    places = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor([side]))
    found = torch.bucketize(places.clamp(max=1.0 - 1e-6), starts, right=True)
    return (found[:, None] * side + found).flatten()


def _tower_config(config: Any, markers: Markers, source: WeightFiles) -> TowerConfig:
    vision = config.vision_config
    known = config_keys(SiglipVisionConfig)
    values = {key: value for key, value in vision.to_dict().items() if key in known}
    return TowerConfig(
        "siglip",
        values | {"vision_use_head": False},
        final_norm=True,
        preprocessing=_preprocessing(vision.image_size, markers, source),
    )


def _preprocessing(side: int, markers: Markers, source: WeightFiles) -> Preprocessing:
    """What `Idefics3ImageProcessor` makes, if it makes squares of the tower's side."""
    path, values = find_processor(source.path)
    refuse_other_steps(path, values)
    tile = values.get("max_image_size", {}).get("longest_edge", DEFAULT_TILE)
    if tile != side:
        raise UserError(f"{path} makes squares of {tile} pixels, but the tower in {source.path} has {side}")
    size = values.get("size", {"longest_edge": 4 * DEFAULT_TILE})
    if "longest_edge" not in size:
        raise UserError(f"{path} has size {size}, expected a longest_edge")
    resample = values.get("resample", 1)
    if resample not in PIL_RESAMPLING:
        raise UserError(f"{path} uses Pillow's resampling filter {resample}; known are {PIL_RESAMPLING}")
    return Preprocessing(
        per_channel(values.get("image_mean", HALF)),
        per_channel(values.get("image_std", HALF)),
        PIL_RESAMPLING[resample],
        fit="split",
        tiling=Split(size["longest_edge"], markers=markers, cut=values.get("do_image_splitting", True)),
    )


def _image_tokens(config: Any, tokenizer: Any, source: WeightFiles) -> tuple[str, str, str]:
    """The slot token, the token around images, and what both write before a whole image.

    Names are those of `Idefics3Processor`; `SmolVLMProcessor` first looks for attributes of the tokenizer.
    """
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    if config.model_type == "smolvlm":
        names = {name: getattr(tokenizer, name, None) or token for name, token in names.items()}
    image, fake, whole = names.values()
    if missing := {image, fake} - tokenizer.get_added_vocab().keys():
        raise UserError(
            f"the tokenizer of {source.path} has no token {', '.join(sorted(missing))}, which stands for or around "
            "images; name the one that the model was trained with, with --tokenizer"
        )
    check_token_ids(tokenizer, {image: config.image_token_id}, source)
    return image, fake, fake + whole


def _check_image_seq_len(config: Any, source: WeightFiles) -> None:
    path = source.path / "processor_config.json"
    stated = read_json_object(path).get("image_seq_len") if path.exists() else None
    vision = config.vision_config
    expected = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    if stated not in (None, expected):
        raise UserError(f"{path} has image_seq_len {stated}, but the model makes {expected} features of a square")


def _template(tokenizer: Any, slots: SlotTokens, source: WeightFiles) -> tuple[str, str | None]:
    """Name and system message of the template here that writes the same; `auto` would hand the Jinja no parts."""
    jinja = read_chat_template(source.path, tokenizer)
    if jinja is None:
        raise UserError(f"{source.path} has no chat template; add the chat_template.jinja that was published with it")
    found = matching_template(tokenizer, slots, jinja, slots.group)
    if found[0] == "auto":
        raise UserError(
            f"no template of mmchat writes what the chat template in {source.path} writes; the published models' are "
            "idefics3 and smolvlm"
        )
    return found
