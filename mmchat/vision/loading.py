"""Open a tower strictly from a directory, a file or the hub, in any known format."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.hub import part_of_run, resolve
from mmchat.opening import check_sizes, opening, rehearse, weight_bytes
from mmchat.pretrained import fill_module
from mmchat.vision.checkpoint_formats import CHECKPOINT_FORMATS
from mmchat.vision.checkpoint_formats.base import CheckpointFormat
from mmchat.vision.checkpoint_formats.hugging_face import MODEL_TYPES
from mmchat.vision.checkpoint_formats.weight_files import PICKLED, WeightFiles
from mmchat.vision.families import FAMILIES
from mmchat.vision.spec import Fit, TowerConfig, TowerSpec, with_fit
from mmchat.vision.tower import VisionTower
from mmchat.vision.transforms.anyres import AnyRes
from mmchat.vision.transforms.split import Split
from mmchat.vision.transforms.tiling import Tiling

SHOWN_KEYS = 5


def build_tower(config: TowerConfig) -> VisionTower:
    """Build a tower with random weights.

    Raises:
        UserError: The family is unknown, or the config is invalid.
    """
    return _family(config)(config)


def tower_spec(config: TowerConfig) -> TowerSpec:
    """The spec of a tower of this config. Allocates no weights. Raises like `build_tower`."""
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
    tiling: Tiling | AnyRes | Split | None = None,
    max_patches: int | None = None,
    **settings: Any,
) -> VisionTower:
    """Open a pretrained tower strictly: every weight that it needs exists and none is left over.

    `load_tower(source)(pixel_values).patches` are patch features float[B, N, D]; `.spec` describes the tower.

    Args:
        source: A directory or file in one of `mmchat.vision.checkpoint_formats`, recognised by content; or a `.json`
            file with a `TowerConfig`, which gives random weights. A name that is no local path is looked up on the
            Hugging Face hub.
        weights: False leaves the weights random and reads none. On the meta device none are allocated.
        image_size: Side of the images in pixels; None: the source's. Learned positions are interpolated.
        trust_torchscript: Open a TorchScript archive that OpenAI did not publish. Such an archive is a program.
        fit: How images are fitted to the input; None: as the source states. See `Preprocessing`.
        tiling: See `with_fit`.
        max_patches: See `with_fit`.
        settings: Fields of `TowerConfig` that differ from the source's (`layer=-2`, ...).

    Returns:
        The tower, with weights in the dtype on disk.

    Raises:
        UserError: The format is unknown, the weights do not fit, or the tower does not support the size or the fit.
    """

    def build(config: TowerConfig) -> VisionTower:
        config = replace(config, **settings)
        return build_tower(with_fit(config, fit or config.preprocessing.fit, tiling, max_patches))

    source = str(source)
    if source.endswith(".json"):
        path = Path(source)
        check_sizes(values := read_json_object(path), path)
        with opening(path):
            config = TowerConfig.from_dict(values)
            rehearse(lambda: build(config), path)
            tower = build(config)
    else:
        files = open_weight_files(source, weights, trust_torchscript)
        held = weight_bytes(files.path) if weights else None
        with opening(files.path, held=held):
            checkpoint = recognise_format(files).open(files, weights)
            rehearse(lambda: build(checkpoint.config), files.path, held)
            tower = build(checkpoint.config)
            if checkpoint.state is not None:
                fill_module(tower, checkpoint.state, files.path)
        if image_size is None:
            image_size = _processor_size(tower, checkpoint.image_size, files.path)
    return tower if image_size is None else tower.resized(image_size)


def open_weight_files(
    source: str, weights: bool = True, trust_torchscript: bool = False, what: str = "vision tower"
) -> WeightFiles:
    """Find the files of a model, downloading them from the hub if needed.

    Args:
        source: Directory, file or hub name.
        weights: Whether to download weights.
        trust_torchscript: See `load_tower`.
        what: What messages call the model.

    Raises:
        UserError: It does not exist, here or on the hub.
    """
    return WeightFiles(_local_or_hub(source, weights, what), trust_torchscript)


def recognise_format(files: WeightFiles) -> CheckpointFormat:
    """The format of these files.

    Raises:
        UserError: The format is unknown.
    """
    for checkpoint_format in CHECKPOINT_FORMATS:
        if checkpoint_format.recognises(files):
            return checkpoint_format
    if files.config:
        found = f"config.json of model_type {files.config.get('model_type')!r}"
    else:
        names = list(files.shapes)
        found = f"{len(names)} tensors ({', '.join(names[:SHOWN_KEYS])}{', ...' if len(names) > SHOWN_KEYS else ''})"
    known = "; ".join(checkpoint_format.name for checkpoint_format in CHECKPOINT_FORMATS)
    raise UserError(
        f"{files.path} holds no vision tower of a known format: it has {found}; expected one of: {known}. "
        f"A Hugging Face directory may have model_type {', '.join(MODEL_TYPES)}"
    )


def _processor_size(tower: VisionTower, image_size: int | None, path: Path) -> int | None:
    """Side of the images that the image processor makes, if it differs from the tower's.

    Raises:
        UserError: It differs and the family is not used at any size.
    """
    if image_size in (None, tower.spec.image_size):
        return None
    if tower.any_size:
        return image_size
    raise UserError(
        f"the tower in {path} takes images of {tower.spec.image_size} pixels, but its image processor makes "
        f"{image_size}; choose one (--image-size), or fix the files"
    )


def _local_or_hub(source: str, weights: bool, what: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix in (".safetensors", *PICKLED):
        if not path.exists():
            raise UserError(f"{what} {source!r}: no such file")
        return part_of_run(path)
    found = resolve(source, what, weights)
    if not found.is_dir():
        raise UserError(f"{what} {source!r}: no such directory")
    return found
