"""`load_tower`: a tower from a directory, a file or the hub, whatever its layout, strictly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.vision.checkpoint_formats import CHECKPOINT_FORMATS
from mmchat.vision.checkpoint_formats.base import CheckpointFormat, refuse_misfits
from mmchat.vision.checkpoint_formats.hugging_face import KINDS
from mmchat.vision.checkpoint_formats.weight_files import PICKLED, WeightFiles
from mmchat.vision.families import FAMILIES
from mmchat.vision.spec import Fit, TowerConfig, TowerSpec, with_fit
from mmchat.vision.tower import VisionTower
from mmchat.vision.transforms.tiling import Tiling

SHOWN_KEYS = 5


def build_tower(config: TowerConfig) -> VisionTower:
    """A tower with random weights.

    Raises:
        UserError: the family is unknown, or its configuration contradicts itself.
    """
    return _family(config)(config)


def tower_spec(config: TowerConfig) -> TowerSpec:
    """What such a tower promises; raises as `build_tower`, and makes no weight."""
    return _family(config).spec_of(config)


def _family(config: TowerConfig) -> type[VisionTower]:
    if config.family not in FAMILIES:
        raise UserError(f"vision tower family {config.family!r} is unknown; known: {', '.join(FAMILIES)}")
    return FAMILIES[config.family]


def load_tower(
    source: str | Path,
    weights: bool = True,
    image_size: int | None = None,
    trust_torchscript: bool = False,
    fit: Fit | None = None,
    tiling: Tiling | None = None,
    max_patches: int | None = None,
    **settings: Any,
) -> VisionTower:
    """Open a pretrained tower, strictly: every weight it needs is there, and nothing else of it is left over.

    Args:
        source: a directory or a file with weights in one of `mmchat.vision.checkpoint_formats`, told apart by what
            they hold; or a `.json` file holding a `TowerConfig`, which gives random weights. A name that is no local
            path is looked up on the Hugging Face hub.
        weights: False reads none and makes them anew, where torch makes tensors at the moment: for shapes only.
        image_size: side of the images in pixels, where it is to be another than the source's; learned positions are
            interpolated.
        trust_torchscript: open a TorchScript archive that is none of OpenAI's. It is a program.
        fit, tiling, max_patches: how images come to it, where not as the source says (`with_fit`).
        settings: fields of `TowerConfig` to set otherwise than the source does (`layer=-2`, ...).

    Raises:
        UserError: the source is not recognised, its weights do not fit, or the size does not suit it.
    """

    def built(config: TowerConfig) -> VisionTower:
        wanted = replace(config, **settings)
        return build_tower(with_fit(wanted, fit or wanted.preprocessing.fit, tiling, max_patches))

    source = str(source)
    if source.endswith(".json"):
        tower = built(TowerConfig.from_dict(read_json(Path(source))))
    else:
        opened = open_weight_files(source, weights, trust_torchscript)
        found = recognise_format(opened).open(opened, weights)
        tower = built(found.config)
        if found.state is not None:
            _fill(tower, found.state, opened.path)
        if image_size is None:
            image_size = processed_size(tower, found.image_size, opened.path)
    return tower if image_size is None else tower.resized(image_size)


def open_weight_files(
    source: str, weights: bool = True, trust_torchscript: bool = False, what: str = "vision tower"
) -> WeightFiles:
    """Where a tower comes from; arguments as of `load_tower`, but no `.json`. what: how messages call it.

    Raises:
        UserError: it is not there, and the hub does not give it.
    """
    return WeightFiles(_local_or_hub(source, weights, what), trust_torchscript)


def recognise_format(source: WeightFiles) -> CheckpointFormat:
    """Raises UserError where the source is in no layout that is known."""
    for layout in CHECKPOINT_FORMATS:
        if layout.recognises(source):
            return layout
    if source.config:
        found = f"config.json of model_type {source.config.get('model_type')!r}"
    else:
        names = list(source.shapes)
        found = f"{len(names)} tensors ({', '.join(names[:SHOWN_KEYS])}{', ...' if len(names) > SHOWN_KEYS else ''})"
    known = "; ".join(layout.name for layout in CHECKPOINT_FORMATS)
    raise UserError(
        f"{source.path} holds no vision tower known here: it has {found}; expected one of: {known}. "
        f"Hugging Face's may be of model_type {', '.join(KINDS)}"
    )


def processed_size(tower: VisionTower, image_size: int | None, path: Path) -> int | None:
    """Side of the images that an image processor makes, where it is not the one that the network was made for.

    Raises:
        UserError: it does, and the family is not one that is used at any size.
    """
    if image_size in (None, tower.spec.image_size):
        return None
    if tower.any_size:
        return image_size
    raise UserError(
        f"the tower in {path} is made for images of {tower.spec.image_size} pixels and its image processor makes "
        f"{image_size}; say which it is to be (--image-size), or mend the files"
    )


def _fill(tower: VisionTower, state: dict[str, torch.Tensor], path: Path) -> None:
    """Take the tensors as they are, in their own precision."""
    wanted = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
    refuse_misfits(wanted, {key: tuple(tensor.shape) for key, tensor in state.items()}, str(path))
    tower.load_state_dict(state, assign=True)


def _local_or_hub(source: str, weights: bool, what: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix in (".safetensors", *PICKLED):
        if not path.exists():
            raise UserError(f"{what} {source!r}: no such file")
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{what} {source!r}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise UserError(f"{what} {source!r} is no directory here, and the hub did not give it: {error}") from None
