"""transformers' `LlavaOnevisionForConditionalGeneration`: LLaVA-OneVision (Li et al. 2024, arXiv:2408.03326), read and
written.

The class is in transformers, models/llava_onevision/modeling_llava_onevision.py. Videos are not read.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaOnevisionConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.checks import Inputs, Sample, compare_processor, compare_with_transformers
from mmchat.conversion.formats.base import Exported, ImportedAssistant
from mmchat.conversion.formats.internvl_processor import video_token
from mmchat.conversion.formats.llava_next import (
    anyres_reasons,
    export_anyres,
    foreign_inputs,
    open_anyres,
    read_grids,
)
from mmchat.errors import UserError
from mmchat.pretrained import open_pretrained
from mmchat.vision import AnyRes
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles

CLASS = "LlavaOnevisionForConditionalGeneration"
VIDEO_TOKEN = "<video>"


class LlavaOnevision:
    name = "llava-onevision"
    description = f"transformers' {CLASS} (LLaVA-OneVision)"
    transformers_class = CLASS

    def recognises(self, source: WeightFiles) -> bool:
        return source.config.get("model_type") == "llava_onevision"

    def open(self, source: WeightFiles, tokenizer: str | None) -> ImportedAssistant:
        config: Any = open_pretrained(LlavaOnevisionConfig, str(source.path), "config")
        limit = re.fullmatch(r"anyres_max_(\d+)", config.vision_aspect_ratio)
        if limit is None:
            raise UserError(
                f"the config in {source.path} has vision_aspect_ratio {config.vision_aspect_ratio!r}; expected "
                "anyres_max_N, which every published LLaVA-OneVision has"
            )
        anyres = AnyRes(read_grids(config, source), int(limit[1]), one_view_if_several=True)
        return open_anyres(config, anyres, source, tokenizer)

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        return anyres_reasons(config, onevision=True)

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> Exported:
        (spec,) = model.specs
        limit = f"anyres_max_{spec.preprocessing.tiling.max_tiles}"
        # The class needs a token for videos, which no prompt of ours has. vLLM writes it once, to measure videos.
        video = video_token(processor) or VIDEO_TOKEN
        last = model.config.text_config.vocab_size - 1
        values = {
            "vision_aspect_ratio": limit,
            "video_token_index": processor.tokenizer.get_vocab().get(video, last),
        }
        square = {"height": spec.image_size, "width": spec.image_size}
        statistics = {"image_mean": list(spec.preprocessing.mean), "image_std": list(spec.preprocessing.std)}
        processor_values = {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": model.image_tokens,
            "video_token": video,
            "vision_aspect_ratio": limit,
            "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": square, **statistics},
        }
        how = {"image_processor_type": "LlavaOnevisionImageProcessor"}
        return export_anyres(model, processor, LlavaOnevisionConfig, CLASS, values, processor_values, how)

    def inputs(self, sample: Sample, processor: MMChatProcessor) -> Inputs:
        several = {"batch_num_images": torch.tensor([len(sample.images)])} if sample.images else {}
        return foreign_inputs(sample, processor) | several

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        inputs = partial(self.inputs, processor=processor)
        return [
            compare_with_transformers(directory, CLASS, samples, inputs),
            compare_processor(directory, samples, inputs),
        ]
