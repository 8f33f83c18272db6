"""The two files of an assistant for llama.cpp: the language model, and the mmproj with tower and projector."""

from pathlib import Path

from mmchat.auto import MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversion.gguf.chat_template import llamacpp_template
from mmchat.conversion.gguf.gguf_file import Value, write_gguf
from mmchat.conversion.gguf.language import language_metadata, language_weights
from mmchat.conversion.gguf.llamacpp import MMPROJ_FILE, MODEL_FILE
from mmchat.conversion.gguf.projectors import (
    INTERNVL,
    MLP_TYPE,
    ProjectorType,
    merged_patches,
    projector_weights,
)
from mmchat.conversion.gguf.tokenizer import stop_ids, tokenizer_metadata
from mmchat.conversion.gguf.vision import tower_metadata, tower_weights

READER = "Compared with llama.cpp of 2026-10 (xllamacpp 2026.10.11549)."
"""The reader that this writer is tested with; files say so, because readers change."""


def write_language_file(
    model: MMChatForConditionalGeneration,
    processor: MMChatProcessor,
    projector: ProjectorType,
    directory: Path,
    dtype: str,
) -> None:
    """Write the language model with tokenizer and chat template.

    Args:
        model: An assistant without refusals.
        processor: Its processor.
        projector: The type of its mmproj file.
        directory: An existing directory.
        dtype: One of `gguf_file.DTYPES`.
    """
    language, slots = model.language_model, processor.slot_tokens
    renamed = {}
    if projector.markers and slots.start and slots.end:
        renamed = dict(zip((slots.start, slots.end), projector.markers, strict=True))
    rows = model.get_input_embeddings().num_embeddings
    metadata = {
        **_general("model", model, READER),
        **language_metadata(language.config),
        **tokenizer_metadata(processor.tokenizer, rows, stop_ids(model.generation_config), renamed),
        "tokenizer.chat_template": llamacpp_template(processor, writes_slots=projector.markers is None),
    }
    write_gguf(directory / MODEL_FILE, language.config.model_type, metadata, language_weights(language), dtype)


def write_mmproj_file(
    model: MMChatForConditionalGeneration, projector: ProjectorType, directory: Path, dtype: str
) -> None:
    """Write tower and projector. Arguments as in `write_language_file`."""
    (tower,), (module,), (name,) = model.towers, model.projectors, model.config.projectors
    note = (
        " The position of the class token is the last row, as this reader adds positions." if projector.rolled else ""
    )
    metadata = {
        **_general("mmproj", model, READER + note),
        **tower_metadata(tower),
        "clip.has_vision_encoder": True,
        "clip.projector_type": projector.name,
        "clip.vision.projection_dim": model.get_input_embeddings().embedding_dim,
    }
    if projector is MLP_TYPE:
        # Without this key llama.cpp runs one block less than there are.
        metadata["clip.vision.feature_layer"] = [tower.blocks_to_run]
    if projector is INTERNVL:
        # Without these, an image larger than the tower becomes up to 13 views.
        metadata |= {"clip.vision.preproc_min_tiles": 1, "clip.vision.preproc_max_tiles": 1}
    if (merged := merged_patches(name)) > 1:
        metadata["clip.vision.projector.scale_factor"] = merged
    weights = [*tower_weights(tower, projector.rolled), *projector_weights(projector, name, module)]
    write_gguf(directory / MMPROJ_FILE, "clip", metadata, weights, dtype)


def _general(kind: str, model: MMChatForConditionalGeneration, description: str) -> dict[str, Value]:
    name = f"mmchat assistant of {model.language_model.config.model_type} and {model.towers[0].config.family}"
    return {"general.type": kind, "general.name": name, "general.description": description}
