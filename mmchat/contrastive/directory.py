"""A dual encoder's directory: begun, opened strictly, and never called written before it was read back and compared."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from mmchat.contrastive.captions import encode_caption, open_tokenizer, refuse_other_tokenizer
from mmchat.contrastive.dual_encoder import DualEncoder, DualEncoderConfig, text_config_of, without_pooler
from mmchat.contrastive.text_formats import open_dual_encoder
from mmchat.files import read_json
from mmchat.pretrained import check_model_type, load_strictly, open_pretrained, save_verified
from mmchat.vision import VisionTower
from mmchat.vision.checkpoint_formats.base import refuse_misfits
from mmchat.vision.loading import open_weight_files

OUTPUT_TOLERANCE = 1e-5
"""Largest difference of unit vectors between a model and its reloaded copy (fp32)."""


def load_clip(source: str | Path, dtype: str = "auto", trust_torchscript: bool = False) -> DualEncoder:
    """Open a dual encoder (evaluation mode), strictly: every weight it needs is there, and none is left over.

    Args:
        source: mmchat's own directory, one of transformers' with a `clip` or `siglip`, open_clip's directory or file,
            OpenAI's archive, or a state dict with its keys, told apart by what they hold; or a name on the hub.
        dtype: of the weights in memory, as torch names it; auto: as they were written (OpenAI's and open_clip's: fp32).
        trust_torchscript: open a TorchScript archive that is none of OpenAI's. It is a program.

    Raises:
        UserError: the source holds something else, or weights are missing, left over or of another shape.
    """
    opened = open_weight_files(str(source), trust_torchscript=trust_torchscript, what="dual encoder")
    if opened.config.get("model_type") == DualEncoderConfig.model_type:
        return load_clip_directory(opened.path, dtype)
    config, state = open_dual_encoder(opened)
    model = DualEncoder(config)
    wanted, found = ({k: tuple(t.shape) for k, t in tensors.items()} for tensors in (model.state_dict(), state))
    refuse_misfits(wanted, found, str(opened.path))
    model.load_state_dict(state, assign=True)
    return (model if dtype == "auto" else model.to(getattr(torch, dtype))).eval()


def load_clip_directory(directory: str | Path, dtype: str = "auto") -> DualEncoder:
    """Only a directory that mmchat wrote; `dtype` as in `load_strictly`.

    Raises:
        UserError: the directory holds something else, or weights are missing or left over.
    """
    return load_strictly(DualEncoder, _directory(directory), dtype=dtype)


def clip_from_config(directory: str | Path) -> DualEncoder:
    """As `load_clip_directory`, but no weight is read: they are made anew, where torch makes tensors at the moment."""
    return DualEncoder(DualEncoderConfig.from_pretrained(_directory(directory)))


def load_tokenizer(source: str | Path, model: DualEncoder) -> Any:
    """The one beside a model, or CLIP's file of merges.

    Raises:
        UserError: there is none, or it is not the one that the text encoder was made for.
    """
    tokenizer = open_tokenizer(str(source))
    refuse_other_tokenizer(tokenizer, model.config.text_config, str(source))
    return tokenizer


def _directory(source: str | Path) -> Path:
    remedy = "`mmchat clip convert` makes one of what others publish"
    return check_model_type(source, DualEncoderConfig.model_type, "a dual encoder", remedy)


def init_clip(
    tower: VisionTower,
    text: dict[str, Any] | PreTrainedModel,
    tokenizer: str,
    projection_dim: int,
    pool: str,
    out: Path,
    **settings: Any,
) -> DualEncoder:
    """Write the directory of a dual encoder around `tower`: where a contrastive run starts. Seed torch before.

    text: values of a text encoder's config, whose weights are then new and whose vocabulary and special ids are the
    tokenizer's; or an encoder with its weights, as `open_text_encoder` gives it. settings: more of `DualEncoderConfig`.
    """
    words = open_tokenizer(tokenizer)
    if isinstance(text, dict):
        special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        special["pad_token_id"] = words.eos_token_id if words.pad_token_id is None else words.pad_token_id
        config = text_config_of({**text, **special, "vocab_size": len(words)})
    else:
        config = text.config
        refuse_other_tokenizer(words, config, tokenizer)
    model = DualEncoder(DualEncoderConfig([tower.config.to_dict()], config, projection_dim, pool, **settings))
    model.towers[0] = tower
    if isinstance(text, PreTrainedModel):
        model.text_encoder = without_pooler(text)
    save_clip(model, words, out)
    return model


def open_text_encoder(source: str) -> dict[str, Any] | PreTrainedModel:
    """What `init_clip` takes: a `.json` of config values, or a directory or hub name with transformers' encoder.

    Raises:
        UserError: it is neither.
    """
    if source.endswith(".json"):
        return read_json(Path(source))
    config = open_pretrained(AutoConfig, source, "text encoder")
    if config.model_type in ("clip", "siglip"):
        return load_clip(source).text_encoder
    text_config_of(config.to_dict())  # refused here, before weights are read
    return open_pretrained(AutoModel, source, "text encoder")


def save_clip(model: DualEncoder, tokenizer: Any, directory: Path) -> None:
    """Raises RuntimeError where the written model, read back, computes something else."""
    size = model.towers[0].spec.image_size
    pixels = torch.linspace(-2, 2, 3 * size * size, device=model.device).view(1, 3, size, size)
    caption = encode_caption(tokenizer, "an image", model.config.context_length, truncate=True)
    ids = torch.tensor([caption], device=model.device)

    @torch.no_grad()
    def outputs(one: DualEncoder) -> tuple[torch.Tensor, ...]:
        return one(pixels, ids, torch.ones_like(ids))

    save_verified(model, [tokenizer], directory, load_clip_directory, outputs, OUTPUT_TOLERANCE)
