"""transformers' `LlavaForConditionalGeneration`: LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744), read and written.

The class is in transformers, models/llava/modeling_llava.py; the names of its weights in transformers 4 and 5 are
related by conversion_mapping.py there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.chat_templates import find_template, read_chat_template
from mmchat.conversion.checks import Sample, compare_processor, compare_with_transformers
from mmchat.conversion.formats.base import Exported, ImportedAssistant, open_tokenizer
from mmchat.conversion.formats.hf_class import export_class
from mmchat.conversion.formats.hf_language import LANGUAGE_KEYS, language_reasons, read_language
from mmchat.conversion.formats.hf_vision import (
    VISION_KEYS,
    class_tokens,
    export_image_processor,
    export_tower,
    fit_reasons,
    read_tower,
    select_strategy,
    tower_reasons,
)
from mmchat.conversion.key_map import KeyMap
from mmchat.errors import UserError
from mmchat.model.assembly import build_config
from mmchat.pretrained import open_pretrained
from mmchat.vision import TowerConfig, tower_spec
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

CLASS = "LlavaForConditionalGeneration"
KEYS = KeyMap(
    *VISION_KEYS,
    *LANGUAGE_KEYS,
    ("multi_modal_projector.linear_1.*", "projectors.0.0.*"),
    ("multi_modal_projector.linear_2.*", "projectors.0.2.*"),
    ("model.multi_modal_projector.linear_1.*", "projectors.0.0.*"),
    ("model.multi_modal_projector.linear_2.*", "projectors.0.2.*"),
)


class LlavaHF:
    name = "llava-hf"
    description = f"transformers' {CLASS} (LLaVA-1.5)"
    transformers_class = CLASS

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") == "llava" and any(KEYS.reads(key) for key in source.shapes)

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        config: Any = open_pretrained(LlavaConfig, str(source.path), "config")
        _check_projector(config, source)
        text, tower = read_language(config, source), read_tower(config, source)
        opened = open_tokenizer(source, tokenizer)
        pad = image_token(config.image_token_index, opened, source)
        opened.chat_template = read_chat_template(source.path, opened)
        template = find_template(opened, opened.chat_template, pad)
        ours = build_config(text, [tower], ["mlp2x_gelu"], opened, template.name, template.slots, template.system)
        return ImportedAssistant(ours, opened, KEYS.import_state(source.tensors()))

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        reasons = language_reasons(config.text_config)
        if unfit := tower_reasons(config):
            return reasons + unfit
        spec = tower_spec(TowerConfig.from_dict(config.towers[0]))
        (projector,), width = config.projectors, config.text_config.hidden_size
        if projector == "linear" and width < 2 * spec.dim:
            reasons.append(
                f"its projector is linear and the language model's width {width} is less than twice the tower's "
                f"{spec.dim}, so that it cannot be written as two matrices"
            )
        elif projector not in ("linear", "mlp2x_gelu"):
            reasons.append(f"its projector is {projector}, expected mlp2x_gelu or linear")
        return reasons + fit_reasons(spec)

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> Exported:
        (values,), state = model.config.towers, model.state_dict()
        tower = TowerConfig.from_dict(values)
        if model.config.projectors == ["linear"]:
            state |= linear_as_mlp(state.pop("projectors.0.weight"), state.pop("projectors.0.bias"))
        config_values = {
            **export_tower(tower),
            "image_token_index": model.config.image_token_id,
            "image_seq_length": model.image_tokens,
            "projector_hidden_act": "gelu",
        }
        processor_values = {
            "processor_class": "LlavaProcessor",
            "image_token": processor.slot_tokens.pad,
            "patch_size": model.specs[0].patch_size,
            "num_additional_image_tokens": class_tokens(tower),
            "vision_feature_select_strategy": select_strategy(tower),
            "image_processor": export_image_processor(model.specs[0]),
        }
        return export_class(CLASS, LlavaConfig, KEYS, model, processor, config_values, processor_values, state=state)

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        return [compare_with_transformers(directory, CLASS, samples), compare_processor(directory, samples)]


def image_token(token_id: int, tokenizer: Any, source: WeightFiles) -> str:
    """The token that stands for an image feature.

    Raises:
        UserError: The tokenizer has no such token, or it is one that typed text can contain.
    """
    for token, added in tokenizer.get_added_vocab().items():
        if added == token_id:
            return token
    raise UserError(
        f"{source.path} names {token_id} as the id of its image token, but its tokenizer has no added token of that "
        "id; name the tokenizer that the model was trained with, with --tokenizer"
    )


def linear_as_mlp(weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """A linear layer as a GELU between two: gelu(x) - gelu(-x) = x.

    Args:
        weight: float[W, D] with W at least 2 D.
        bias: float[W].

    Returns:
        The weights of an `mlp2x_gelu` of widths D, W, W.
    """
    width, dim = weight.shape
    first, second = weight.new_zeros(width, dim), weight.new_zeros(width, width)
    first[:dim], first[dim : 2 * dim] = torch.eye(dim), -torch.eye(dim)
    second[:, :dim], second[:, dim : 2 * dim] = weight, -weight
    values = {"0.weight": first, "0.bias": torch.zeros_like(bias), "2.weight": second, "2.bias": bias}
    return {f"projectors.0.{name}": value for name, value in values.items()}


def _check_projector(config: Any, source: WeightFiles) -> None:
    expected = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
    for key, value in expected.items():
        if (found := getattr(config, key)) != value:
            raise UserError(f"the config in {source.path} has {key} {found!r}; mmchat's mlp2x_gelu is {value!r}")
