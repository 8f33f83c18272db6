"""Read a tower's preprocessing from transformers' image processor files."""

from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.files import read_json_object
from mmchat.vision.spec import Preprocessing

PIL_RESAMPLING = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Number of a filter in Pillow -> `Preprocessing.resample`."""
_PADDING = ("LlavaImageProcessor", "LlavaImageProcessorFast", "LlavaImageProcessorPil")
"""Image processors whose `do_pad` pads to a square with the mean colour before resizing (models/llava there)."""
_STEPS = ("do_resize", "do_rescale", "do_normalize")


def read_preprocessing(directory: Path, default: Preprocessing) -> tuple[Preprocessing, int | None]:
    """Read the preprocessing of a directory.

    Args:
        directory: Directory that may hold an image processor.
        default: Values for what the file does not state.

    Returns:
        The preprocessing, and the side of its squares in pixels; None if the file does not state it.

    Raises:
        UserError: The resampling filter is unknown, or the image processor makes no squares, leaves out a step or has
            another `rescale_factor`.
    """
    path, values = find_processor(directory)
    refuse_other_steps(path, values)
    resample = values.get("resample")
    if resample is not None and resample not in PIL_RESAMPLING:
        raise UserError(f"{path} uses Pillow's resampling filter {resample}; known are {PIL_RESAMPLING}")
    fit, fraction, side = read_geometry(values, default, path)
    preprocessing = Preprocessing(
        mean=per_channel(values.get("image_mean", default.mean)),
        std=per_channel(values.get("image_std", default.std)),
        resample=default.resample if resample is None else PIL_RESAMPLING[resample],
        fit=fit,
        crop_fraction=fraction,
        max_patches=values.get("max_num_patches") if fit == "native" else None,
    )
    return preprocessing, side


def refuse_other_steps(path: Path, values: dict[str, Any]) -> None:
    """Raise UserError if an image processor leaves out a step, or does not map bytes to numbers from 0 to 1."""
    if left_out := [step for step in _STEPS if values.get(step) is False]:
        raise UserError(f"{path} turns {', '.join(left_out)} off; towers need all of {', '.join(_STEPS)}")
    factor = values.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise UserError(
            f"{path} has rescale_factor {factor}, expected 1/255: mmchat normalises values from 0 to 1; change "
            "image_mean and image_std so that they fit"
        )


def per_channel(value: Any) -> Any:
    """The values of three channels; transformers takes one number for all of them."""
    return (value,) * 3 if isinstance(value, int | float) else value


def find_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the image processor, and its values without nulls, which mean transformers' defaults.

    transformers 5 writes the image processor into the file of the processor, and reads it there first.
    """
    processor, image_processor = directory / "processor_config.json", directory / "preprocessor_config.json"
    nested = read_json_object(processor).get("image_processor") if processor.exists() else None
    path = image_processor if nested is None else processor
    values = nested or (read_json_object(image_processor) if image_processor.exists() else {})
    if not isinstance(values, dict):
        raise UserError(f"{path} has image_processor {values!r}, expected an object")
    return path, {key: value for key, value in values.items() if value is not None}


def read_geometry(values: dict[str, Any], default: Preprocessing, path: Path) -> tuple[str, float, int | None]:
    """`Preprocessing.fit`, `Preprocessing.crop_fraction`, and the side of the square or None."""
    if "max_num_patches" in values:  # SigLIP 2
        return "native", default.crop_fraction, None
    if not values.keys() & {"size", "do_center_crop"}:
        return default.fit, default.crop_fraction, None
    if longest := padded_side(values):  # SAM
        return "longest-edge-pad", default.crop_fraction, longest
    crops = values.get("do_center_crop", default.fit == "shortest-edge-crop")
    size, crop = values.get("size"), values.get("crop_size") if crops else None
    pads = values.get("image_processor_type") in _PADDING and values.get("do_pad", False)
    keeps_proportions = "shortest_edge" in size if isinstance(size, dict) else crops  # numbers before 4.21
    resized, cropped = distinct_numbers(size), distinct_numbers(crop)
    if pads and len(resized) < 2 and (not crops or resized == cropped):
        return "pad", default.crop_fraction, resized[0] if resized else None
    if not pads and len(resized) < 2 and len(cropped) < 2:
        if keeps_proportions and crops:
            fraction = cropped[0] / resized[0] if cropped and resized else default.crop_fraction
            return "shortest-edge-crop", fraction, cropped[0] if cropped else None
        if not keeps_proportions and (not crops or resized == cropped):
            return "squash", default.crop_fraction, resized[0] if resized else None
    raise UserError(f"{path} does not make square images, which towers need: size {size}, crop_size {crop}")


def distinct_numbers(size: int | dict[str, int | None] | None) -> list[int]:
    """The distinct numbers in an image processor's size."""
    values = size.values() if isinstance(size, dict) else [size]
    return sorted({value for value in values if value is not None})


def padded_side(values: dict[str, Any]) -> int | None:
    """Side of the square if the long side is resized to it and the rest padded (SAM); else None."""
    size, padded = values.get("size"), distinct_numbers(values.get("pad_size"))
    longest = size.get("longest_edge") if isinstance(size, dict) else None
    return longest if padded == [longest] else None
