"""A tower from a directory: Hugging Face CLIP, or any directory that mmchat wrote, told apart by content."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.pretrained import load_strictly
from mmchat.vision.clip_vit import CLIPViT
from mmchat.vision.conv_vit import ConvViT
from mmchat.vision.spec import Preprocessing, TowerConfig
from mmchat.vision.tower import VisionTower

FAMILIES: dict[str, type[VisionTower]] = {"clip_vit": CLIPViT, "conv_vit": ConvViT}

_PIL_RESAMPLING = {2: "bilinear", 3: "bicubic"}


def build_tower(config: TowerConfig) -> VisionTower:
    """A tower with random weights.

    Raises:
        UserError: the family is unknown, or its configuration contradicts itself.
    """
    if config.family not in FAMILIES:
        raise UserError(f"vision tower family {config.family!r} is unknown; known: {', '.join(FAMILIES)}")
    return FAMILIES[config.family](config)


def load_tower(source: str | Path, weights: bool = True, **settings: Any) -> VisionTower:
    """Open a pretrained tower, strictly: every weight it needs is there, and nothing else of it is left over.

    Args:
        source: a directory (Hugging Face `clip` or `clip_vision_model` layout of transformers 4 or 5, or an
            mmchat model directory, whose first tower is taken), or a `.json` file holding a `TowerConfig`,
            which gives random weights. A name that is no local path is looked up on the Hugging Face hub.
        weights: False reads none and makes them anew, where torch makes tensors at the moment: for shapes only.
        settings: fields of `TowerConfig` to set otherwise than the source does (`layer=-2`, ...).

    Raises:
        UserError: the source is not recognised, or its weights do not fit.
    """
    source = str(source)
    if source.endswith(".json"):
        return build_tower(replace(TowerConfig.from_dict(read_json(Path(source))), **settings))
    directory = _local_or_hub(source, ["*.json", "*.safetensors"] if weights else ["*.json"])
    config = read_json(directory / "config.json")
    model_type = config.get("model_type")
    try:
        if model_type in ("clip", "clip_vision_model"):
            return _load_hugging_face_clip(directory, weights, settings)
        if model_type in ("mmchat", "mmchat_clip"):
            return _load_own(directory, config["towers"][0], "towers.0.", weights, settings)
    except SafetensorError as error:
        raise UserError(f"the weights in {directory} are damaged or cut off: {error}") from None
    raise UserError(
        f"{directory}/config.json has model_type {model_type!r}, which holds no vision tower known here; "
        "expected clip, clip_vision_model, mmchat or mmchat_clip"
    )


def _load_hugging_face_clip(directory: Path, weights: bool, settings: dict[str, Any]) -> VisionTower:
    preprocessing = _clip_preprocessing(directory / "preprocessor_config.json")
    backbone = CLIPVisionConfig.from_pretrained(directory).to_diff_dict()
    tower = build_tower(replace(TowerConfig("clip_vit", backbone, preprocessing=preprocessing), **settings))
    if weights:
        # A whole CLIP also holds its text half.
        tower.backbone = load_strictly(CLIPVisionModel, directory, others=("text_", "visual_projection", "logit_"))
    return tower


def _clip_preprocessing(path: Path) -> Preprocessing:
    if not path.exists():
        return Preprocessing()
    values = read_json(path)
    return Preprocessing(
        mean=values.get("image_mean", Preprocessing.mean),
        std=values.get("image_std", Preprocessing.std),
        resample=_PIL_RESAMPLING[values.get("resample", 3)],
        fit="shortest-edge-crop" if values.get("do_center_crop", True) else "squash",
    )


def _load_own(directory: Path, tower: dict, prefix: str, weights: bool, settings: dict[str, Any]) -> VisionTower:
    loaded = build_tower(replace(TowerConfig.from_dict(tower), **settings))
    if not weights:
        return loaded
    state = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            own = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118  (no dict)
            state |= {key.removeprefix(prefix): tensors.get_tensor(key) for key in own}
    try:
        loaded.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the tower in {directory} does not fit its config: {error}") from None
    return loaded


def _local_or_hub(source: str, patterns: list[str]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"vision tower {source!r}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise UserError(f"vision tower {source!r} is no directory here, and the hub did not give it: {error}") from None
