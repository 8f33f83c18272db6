"""The directory of a dual encoder: created, opened strictly, written and verified."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from mmchat.contrastive.captions import encode_caption, open_tokenizer, refuse_other_tokenizer
from mmchat.contrastive.dual_encoder import (
    DualEncoder,
    DualEncoderConfig,
    random_text_encoder,
    text_config_from_dict,
    without_pooler,
)
from mmchat.contrastive.text_formats import open_dual_encoder
from mmchat.files import read_json_object
from mmchat.model_kinds import DUAL_ENCODER
from mmchat.opening import check_sizes, opening, rehearse, weight_bytes
from mmchat.pretrained import ModelDirectory, fill_module, open_pretrained
from mmchat.vision import VisionTower
from mmchat.vision.loading import open_weight_files

DIRECTORY = ModelDirectory(DUAL_ENCODER, DualEncoder, tolerance=1e-5)


def load_clip(source: str | Path, dtype: str = "auto", trust_torchscript: bool = False) -> DualEncoder:
    """Open a dual encoder strictly: every weight that it needs exists and none is left over.

    The format is recognised by the contents of the files, never by their names.

    Args:
        source: A directory of mmchat, a directory of transformers with a `clip` or `siglip`, a directory or file of
            open_clip, an archive of OpenAI, or a state dict with its keys. A name that is no local path is looked up on
            the Hugging Face hub.
        dtype: Of the weights in memory, as torch names it. "auto" is the dtype on disk; weights of OpenAI and open_clip
            become float32.
        trust_torchscript: Open a TorchScript archive that OpenAI did not publish. Such an archive is a program.

    Returns:
        The model in evaluation mode. `encode_image` and `encode_text` give unit vectors.

    Raises:
        UserError: The source holds something else, or weights are missing, left over or of another shape.
    """
    files = open_weight_files(str(source), trust_torchscript=trust_torchscript, what="dual encoder")
    if files.config.get("model_type") == DualEncoderConfig.model_type:
        return load_clip_directory(files.path, dtype)
    held = weight_bytes(files.path)
    with opening(files.path, held=held):
        config, state = open_dual_encoder(files)
        rehearse(lambda: DualEncoder(config), files.path, held)
        model = DualEncoder(config)
        fill_module(model, state, files.path)
    return (model if dtype == "auto" else model.to(getattr(torch, dtype))).eval()


def load_clip_directory(directory: str | Path, dtype: str = "auto") -> DualEncoder:
    """Open a directory that mmchat wrote, and no other format; see `ModelDirectory.load`."""
    return DIRECTORY.load(directory, dtype)


def clip_from_config(directory: str | Path) -> DualEncoder:
    """Build a dual encoder without reading weights; see `ModelDirectory.from_config`."""
    return DIRECTORY.from_config(directory)


def load_tokenizer(source: str | Path, model: DualEncoder) -> Any:
    """Open the tokenizer of a dual encoder.

    Args:
        source: The model's directory, or CLIP's file of merges.
        model: The model, whose text encoder the tokenizer must fit.

    Raises:
        UserError: There is no tokenizer, or the text encoder was made for another.
    """
    tokenizer = open_tokenizer(str(source))
    refuse_other_tokenizer(tokenizer, model.config.text_config, str(source))
    return tokenizer


def init_clip(
    tower: VisionTower,
    text: dict[str, Any] | PreTrainedModel,
    tokenizer: str,
    projection_dim: int,
    pool: str,
    out: Path,
    **settings: Any,
) -> DualEncoder:
    """Write the directory of a dual encoder around `tower`: the start of a contrastive run. Seed torch before.

    Args:
        tower: The vision tower; random or pretrained.
        text: Config values of a text encoder, which gets random weights and the vocabulary and special ids of the
            tokenizer; or a pretrained encoder (see `open_text_encoder`).
        tokenizer: See `open_tokenizer`.
        projection_dim: Size of the common space.
        pool: See `DualEncoderConfig`.
        out: The directory.
        settings: More arguments of `DualEncoderConfig`.

    Raises:
        UserError: Tower, text encoder, tokenizer and settings do not fit together.
    """
    opened = open_tokenizer(tokenizer)
    if isinstance(text, dict):
        pad = opened.eos_token_id if opened.pad_token_id is None else opened.pad_token_id
        special = {"bos_token_id": opened.bos_token_id, "eos_token_id": opened.eos_token_id, "pad_token_id": pad}
        config = text_config_from_dict({**text, **special, "vocab_size": len(opened)})
        rehearse(lambda: random_text_encoder(config), out)
    else:
        config = text.config
        refuse_other_tokenizer(opened, config, tokenizer)
    model = DualEncoder.around(tower, config, projection_dim, pool, **settings)
    if isinstance(text, PreTrainedModel):
        model.text_encoder = without_pooler(text)
    save_clip(model, opened, out)
    return model


def open_text_encoder(source: str) -> dict[str, Any] | PreTrainedModel:
    """Open the `text` argument of `init_clip`.

    Args:
        source: A `.json` file of config values; or a directory or hub name with a text encoder of transformers, a CLIP
            or a SigLIP.

    Returns:
        Config values, or an encoder with its weights.

    Raises:
        UserError: It is none of these.
    """
    if source.endswith(".json"):
        check_sizes(values := read_json_object(Path(source)), Path(source))
        return values
    config = open_pretrained(AutoConfig, source, "text encoder")
    if config.model_type in ("clip", "siglip"):
        return load_clip(source).text_encoder
    text_config_from_dict(config.to_dict())  # refuses before weights are read
    return open_pretrained(AutoModel, source, "text encoder")


def save_clip(model: DualEncoder, tokenizer: Any, directory: Path) -> None:
    """Write a dual encoder and its tokenizer as a model directory.

    Raises:
        RuntimeError: The written model, reloaded, computes something else.
    """
    caption = encode_caption(tokenizer, "an image", model.config.context_length, truncate=True)
    ids = torch.tensor([caption], device=model.device)

    @torch.no_grad()
    def outputs(dual_encoder: DualEncoder) -> tuple[torch.Tensor, ...]:
        return dual_encoder(dual_encoder.comparison_pixels(), ids, torch.ones_like(ids))

    DIRECTORY.save(model, [tokenizer], directory, outputs)
