"""What transformers' file of an image processor says about the squares that a tower sees, or the patches."""

from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.vision.spec import Preprocessing

_PIL_RESAMPLING = {2: "bilinear", 3: "bicubic"}


def read_preprocessing(directory: Path, usual: Preprocessing) -> tuple[Preprocessing, int | None]:
    """What the image processor of a directory does, and the side of its squares in pixels; `usual` and None where it
    says nothing, or there is none.

    Raises:
        UserError: it resamples as no tower here does, or makes no squares.
    """
    path, values = find_processor(directory)
    resample = values.get("resample")
    if resample is not None and resample not in _PIL_RESAMPLING:
        raise UserError(f"{path} resamples by Pillow's filter {resample}; known here: {_PIL_RESAMPLING}")
    fit, fraction, side = read_geometry(values, usual, path)
    preprocessing = Preprocessing(
        mean=values.get("image_mean", usual.mean),
        std=values.get("image_std", usual.std),
        resample=usual.resample if resample is None else _PIL_RESAMPLING[resample],
        fit=fit,
        crop_fraction=fraction,
        max_patches=values.get("max_num_patches") if fit == "native" else None,
    )
    return preprocessing, side


def find_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """(file, values). transformers 5 writes an image processor into the file of the whole processor, and reads it there
    first. Null stands for what is left to transformers."""
    whole, alone = directory / "processor_config.json", directory / "preprocessor_config.json"
    nested = read_json(whole).get("image_processor") if whole.exists() else None
    path = alone if nested is None else whole
    values = nested or (read_json(alone) if alone.exists() else {})
    return path, {key: value for key, value in values.items() if value is not None}


def read_geometry(values: dict[str, Any], usual: Preprocessing, path: Path) -> tuple[str, float, int | None]:
    """(`Preprocessing.fit`, `.crop_fraction`, side of the square or None) of an image processor's values."""
    if "max_num_patches" in values:  # SigLIP 2
        return "native", usual.crop_fraction, None
    if not values.keys() & {"size", "do_center_crop"}:
        return usual.fit, usual.crop_fraction, None
    if longest := longest_edge_of(values):  # SAM
        return "longest-edge-pad", usual.crop_fraction, longest
    crops = values.get("do_center_crop", usual.fit == "shortest-edge-crop")
    size, crop = values.get("size"), values.get("crop_size") if crops else None
    keeps_proportions = "shortest_edge" in size if isinstance(size, dict) else crops  # before 4.21 sizes were numbers
    resized, cropped = numbers_of(size), numbers_of(crop)
    if len(resized) < 2 and len(cropped) < 2:
        if keeps_proportions and crops:
            fraction = cropped[0] / resized[0] if cropped and resized else usual.crop_fraction
            return "shortest-edge-crop", fraction, cropped[0] if cropped else None
        if not keeps_proportions and (not crops or resized == cropped):
            return "squash", usual.crop_fraction, resized[0] if resized else None
    raise UserError(f"{path} does not make squares of images, which a tower takes: size {size}, crop_size {crop}")


def numbers_of(size: int | dict[str, int | None] | None) -> list[int]:
    """Those in which an image processor gives a size, each once."""
    values = size.values() if isinstance(size, dict) else [size]
    return sorted({value for value in values if value is not None})


def longest_edge_of(values: dict[str, Any]) -> int | None:
    """Side of the square that images are padded to, their long side resized to it; None where they are not."""
    size, padded = values.get("size"), numbers_of(values.get("pad_size"))
    longest = size.get("longest_edge") if isinstance(size, dict) else None
    return longest if padded == [longest] else None
