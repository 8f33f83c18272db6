"""Options that several commands share, each defined once so that name, type and help text agree."""

import argparse
from pathlib import Path
from typing import Any

from mmchat.command_line.arguments import device_name, positive
from mmchat.errors import UserError

LABELLED_IMAGES = "a folder with one subfolder per class, or a table with an image and a label column"


def add_model_directory(parser: argparse.ArgumentParser, what: str = "model directory") -> None:
    parser.add_argument("checkpoint", metavar="MODEL", type=Path, help=what)


def add_clip_directory(parser: argparse.ArgumentParser) -> None:
    add_model_directory(parser, "directory of a CLIP or SigLIP model")


def add_new_directory(parser: argparse.ArgumentParser) -> None:
    """`--out`, checked with `require_empty`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write; must not exist yet")


def require_empty(directory: Path) -> None:
    """Check that a command may write a new directory here.

    Raises:
        UserError: it exists and is not an empty directory.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty; remove it or name another --out")


def add_seed(parser: argparse.ArgumentParser, what: str = "new weights") -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=f"random seed of {what}")


def add_batch_size(parser: argparse.ArgumentParser, default: int, items: str = "images") -> None:
    parser.add_argument("--batch-size", type=positive, default=default, metavar="N", help=f"{items} per forward pass")


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Where the weights go; see `mmchat.inference.placement`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--device",
        type=device_name,
        metavar="NAME",
        help="cpu, cuda, cuda:N, or auto for all CUDA devices; default: cuda if there is one",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights; auto: as they were saved",
    )
    group.add_argument(
        "--quantize", choices=("4bit", "8bit"), help="quantize the language model by bitsandbytes (extra `quantize`)"
    )


def placement(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Generator` from the options of `add_placement`."""
    return {name: getattr(arguments, name) for name in ("device", "dtype", "quantize")}


def add_max_new_tokens(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    parser.add_argument(
        "--max-new-tokens", type=positive, default=default, metavar="N", help=f"longest {what}, in tokens"
    )


def add_trust_torchscript(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-torchscript", action="store_true", help="also open TorchScript archives, which can run code"
    )


def add_image_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="input size of the tower; default: as it was trained"
    )


def add_image_sizes(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--image-size` of several towers; read it with `per_tower`."""
    default = "" if required else "; default: as trained"
    parser.add_argument(
        "--image-size",
        action="append",
        type=positive,
        required=required,
        metavar="PIXELS",
        help=f"input size of a tower: once for all towers, or once per tower{default}",
    )


def add_pool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pool",
        default="pooled",
        choices=["pooled", "mean", "max"],
        help="feature of an image: the tower's pooled output, or mean or maximum over its patches",
    )


def layer_indices(text: str) -> int | tuple[int, ...]:
    """Type of `--layer`: `-2` -> -2, `-2,-5` -> (-2, -5), as `TowerConfig.layer` takes it."""
    indices = tuple(int(index) for index in text.split(","))
    return indices[0] if len(indices) == 1 else indices


def per_tower(option: str, values: list | None, towers: int, default: Any = None) -> list:
    """One value per tower, of an option that may be repeated.

    Args:
        values: what was given: None, one value for all towers, or one per tower in their order.
        default: the value of every tower if none was given.

    Raises:
        UserError: neither one value nor one per tower.
    """
    values = values or [default]
    if len(values) == 1:
        return values * towers
    if len(values) != towers:
        raise UserError(
            f"{option} is given {len(values)} times for {towers} vision towers; give it once for all, "
            "or once for each --vision, in the same order"
        )
    return values
