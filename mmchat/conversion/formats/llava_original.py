"""LLaVA in its original layout (haotian-liu/LLaVA): a whole model, or a projector or a LoRA adapter beside its base.

The original opens these in llava/model/builder.py, its tower in llava/model/multimodal_encoder/clip_encoder.py, its
projector in llava/model/multimodal_projector/builder.py. Token ids follow llava/mm_utils.py `tokenizer_image_token`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig

from mmchat.conversation import DEFAULT_SLOTS, SlotTokens
from mmchat.conversion import lora
from mmchat.conversion.clip_tower import clip_config
from mmchat.conversion.formats.base import (
    ImportedAssistant,
    directory_named,
    open_tokenizer,
    require_config,
    tower_state,
)
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.model.projectors import projector_kind
from mmchat.vision import TowerConfig, load_tower
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.loading import open_weight_files
from mmchat.vision.spec import with_fit

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
KEYS = KeyMap(
    ("*.rotary_emb.inv_freq", None),
    ("*.embeddings.position_ids", None),
    (f"{TOWER}*", "towers.0.backbone.*"),
    (f"{PROJECTOR}*", "projectors.0.*"),
    ("lm_head.*", "language_model.lm_head.*"),
    ("model.*", "language_model.model.*"),
)
TEMPLATE = "vicuna_v1"
"""LLaVA-1.5's. The original guesses the template from the name of the folder."""
TRAINED_BESIDE_LORA = "non_lora_trainables.bin"
LANGUAGE_MODELS = {"llava": LlamaConfig, "llava_llama": LlamaConfig, "llava_mistral": MistralConfig}
"""`model_type` -> class of the language model's config."""
SLOTS = SlotTokens("<im_patch>", "<im_start>", "<im_end>")
"""llava/constants.py."""
FITS = {"pad": "pad", "square": None, None: None}
"""`image_aspect_ratio` -> fit; None: the image processor's own (llava/mm_utils.py `process_images`)."""
FEATURES = {"patch": False, "cls_patch": True}
"""`mm_vision_select_feature` -> whether the class token is kept."""
OPENAI = "openai/"
"""Hub names of towers that need no config: all heads of OpenAI's ViTs are 64 wide."""


@dataclass(frozen=True)
class LlavaOriginal:
    """The format, with what its files may leave out.

    Attributes:
        base: Directory or hub name of the language model, or of the whole LLaVA, that a projector or an adapter was
            trained on. None: the directory that the config names.
        vision: Directory, file or hub name of the vision tower. None: the directory that the config names. If the files
            hold the tower's weights, only its config is read there.
    """

    base: str | None = None
    vision: str | None = None

    name = "llava"
    description = "LLaVA's original layout (model.mm_projector.* beside model.layers.*, beside a base, or with a LoRA)"

    def recognises(self, source: WeightFiles) -> bool:
        if lora.holds_adapter(source.shapes):
            return "mm_projector_type" in source.config or (source.path / TRAINED_BESIDE_LORA).exists()
        has_projector = any(key.startswith(PROJECTOR) for key in source.shapes)
        return has_projector and not any(key.startswith("model.decoder.") for key in source.shapes)  # Vary's OPT

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        values = require_config(source, "model_type", "mm_vision_tower")
        _refuse_unsupported(values, source)
        tensors, where = self._tensors(source)
        opened = open_tokenizer(source if where is None else WeightFiles(where), tokenizer)
        slots = _add_slots(opened, values, source)
        tower, tower_weights = self._tower(values, tensors, source)
        state = KEYS.import_state(tensors) | tower_weights
        rows = _grow(state, len(opened))
        language = language_config(values, rows)
        projector = values.get("mm_projector_type", "linear")
        config = build_config(language, [tower], [projector], opened, TEMPLATE, slots)
        return ImportedAssistant(config, opened, state)

    def _tensors(self, source: WeightFiles) -> tuple[dict[str, torch.Tensor], Path | None]:
        """All weights under the original's keys, and the directory of their base; None for a whole model."""
        if any(key.startswith("model.layers.") for key in source.shapes):
            if self.base is not None:
                raise UserError(f"{source.path} is a whole model, which has no base; leave out --base {self.base}")
            return source.tensors(), None
        base = self._open_base(source)
        if not lora.holds_adapter(source.shapes):
            return base.tensors() | source.tensors(), base.path
        tensors = base.tensors()
        if (source.path / TRAINED_BESIDE_LORA).exists():
            trained = WeightFiles(source.path / TRAINED_BESIDE_LORA).tensors()
            tensors |= {_without_peft(key): tensor for key, tensor in trained.items()}
        adapter = {_without_peft(key): tensor for key, tensor in source.tensors().items()}
        return lora.merge(tensors, adapter, source.path), base.path

    def _open_base(self, source: WeightFiles) -> WeightFiles:
        what = "base of the assistant"
        if self.base is not None:
            return open_weight_files(self.base, what=what)
        named = source.config.get("_name_or_path")
        if found := directory_named(named, source.path):
            return WeightFiles(found)
        raise UserError(
            f"{source.path} holds what was trained beside a base language model, and not the base; name its directory "
            f"or hub name with --base (config.json: {named!r})"
        )

    def _tower(
        self, values: dict[str, Any], tensors: dict[str, torch.Tensor], source: WeightFiles
    ) -> tuple[TowerConfig, dict[str, torch.Tensor]]:
        """The tower's config, and its weights under our keys unless `tensors` has them."""
        is_inside = any(key.startswith(TOWER) for key in tensors)
        named = values["mm_vision_tower"]
        settings = {
            "layer": values.get("mm_vision_select_layer", -1),
            "class_token": FEATURES[values.get("mm_vision_select_feature", "patch")],
        }
        fit = FITS[values.get("image_aspect_ratio")]
        place = self.vision or directory_named(named, source.path)
        if place is not None:
            with torch.device("meta" if is_inside else "cpu"):
                tower = load_tower(place, weights=not is_inside, fit=fit, **settings)
            return tower.config, {} if is_inside else tower_state(0, tower.state_dict())
        if is_inside and str(named).startswith(OPENAI):
            config = clip_config(source, TOWER, **settings)
            return with_fit(config, fit or config.preprocessing.fit), {}
        missing = "do not say how many heads it has" if is_inside else "do not hold it"
        raise UserError(
            f"the files in {source.path} {missing}: its vision tower is {named!r}, which is no directory here; add "
            f"--vision {named}, or name its directory"
        )


def language_config(values: dict[str, Any], rows: int) -> PreTrainedConfig:
    """The language model's part of LLaVA's config.

    Args:
        values: `config.json`; its `model_type` is a key of `LANGUAGE_MODELS`.
        rows: Number of embeddings.
    """
    config_class = LANGUAGE_MODELS[values["model_type"]]
    others = PreTrainedConfig().to_dict().keys() - {"tie_word_embeddings", "bos_token_id", "eos_token_id"}
    # Training writes `use_cache: false`, which the original overrides when it generates (llava/eval/run_llava.py).
    known = (config_class().to_dict().keys() | {"rope_theta", "rope_scaling"}) - others - {"use_cache"}
    stated = {key: value for key, value in values.items() if key in known and value is not None}
    return config_class(**{**stated, "vocab_size": rows})


def _refuse_unsupported(values: dict[str, Any], source: WeightFiles) -> None:
    """Raise UserError that lists every setting that mmchat does not compute."""
    ratio, merge = values.get("image_aspect_ratio"), values.get("mm_patch_merge_type", "flat")
    feature, kind = values.get("mm_vision_select_feature", "patch"), values["model_type"]
    projector = values.get("mm_projector_type", "linear")
    problems = []
    if kind not in LANGUAGE_MODELS:
        problems.append(f"model_type {kind!r}, expected one of {', '.join(LANGUAGE_MODELS)}")
    if ratio not in FITS:
        problems.append(f"image_aspect_ratio {ratio!r}, expected pad or square")
    if merge != "flat":
        problems.append(f"mm_patch_merge_type {merge!r}, expected flat")
    if feature not in FEATURES:
        problems.append(f"mm_vision_select_feature {feature!r}, expected {' or '.join(FEATURES)}")
    if values.get("s2"):
        problems.append("s2 (several scales of an image)")
    if projector != "linear" and not projector.endswith("x_gelu"):
        problems.append(f"mm_projector_type {projector!r}, expected linear or mlp2x_gelu")
    else:
        projector_kind(projector)
    if problems:
        hint = ""
        if str(ratio).startswith("anyres"):
            hint = "; LLaVA-1.6 opens in transformers' layout, as llava-hf publishes it"
        raise UserError(f"mmchat cannot compute the LLaVA in {source.path}: it has {'; '.join(problems)}{hint}")


def _add_slots(tokenizer: Any, values: dict[str, Any], source: WeightFiles) -> SlotTokens:
    """Add the tokens of an image that the tokenizer lacks.

    The original puts features in place of `<image>` and has no token for them, unless `<im_patch>` was added.

    Raises:
        UserError: There are tokens around an image, and the original encodes the text after them otherwise than mmchat.
    """
    has_patch = values.get("mm_use_im_patch_token", True)
    slots = SlotTokens(SLOTS.pad if has_patch else DEFAULT_SLOTS.pad)
    if values.get("mm_use_im_start_end", False):
        slots = SlotTokens(slots.pad, SLOTS.start, SLOTS.end)
    # The original adds them in this order.
    ordered = [token for token in (slots.pad, slots.start, slots.end) if token]
    tokenizer.add_tokens(ordered, special_tokens=True)
    if slots.end is not None:
        _refuse_other_ids(tokenizer, slots.end, source)
    return slots


def _refuse_other_ids(tokenizer: Any, end: str, source: WeightFiles) -> None:
    """mmchat encodes what follows an image's end token alone; the original encodes both in one call."""
    text = "\nWhat?"
    together, alone = tokenizer(end + text).input_ids, tokenizer(text).input_ids
    if together[-len(alone) + 1 :] != alone[1:] or len(together) != len(alone) + 1:
        raise UserError(
            f"the LLaVA in {source.path} has mm_use_im_start_end, and its tokenizer encodes text after {end} otherwise "
            "than at the beginning; mmchat would ask with other token ids"
        )


def _grow(state: dict[str, torch.Tensor], size: int) -> int:
    """Append rows for new tokens to the embeddings and the head, each the mean of the others, and count the rows."""
    rows = 0
    for key in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if key in state:
            weight, missing = state[key], max(0, size - len(state[key]))
            mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
            state[key] = torch.cat([weight, mean.expand(missing, -1)]) if missing else weight
            rows = len(state[key])
    return rows


def _without_peft(key: str) -> str:
    """The original's key of a weight of the model that PEFT wrapped."""
    key = key.removeprefix("base_model.")
    return key.removeprefix("model.") if key.startswith(("model.model.", "model.lm_head.")) else key
