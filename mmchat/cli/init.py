"""`mmchat init`: an assistant from a language model and vision towers, for a training run to start from."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmchat.command_line.options import (
    add_image_sizes,
    add_new_directory,
    add_seed,
    add_trust_torchscript,
    layer_indices,
    per_tower,
    require_empty,
)
from mmchat.command_line.quick_imports import quick_imports
from mmchat.errors import UserError
from mmchat.hub import check_exists
from mmchat.vision.spec import FITS

EXAMPLE = "mmchat init --language Qwen/Qwen2.5-0.5B --vision openai/clip-vit-base-patch16 --layer -2 --out runs/init"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    language = parser.add_argument_group("language model and conversation")
    language.add_argument(
        "--language",
        required=True,
        metavar="DIR_OR_NAME",
        help="directory (also of an assistant: its language model), hub name, or config .json (random weights)",
    )
    language.add_argument(
        "--tokenizer", metavar="DIR_OR_NAME", help="directory or hub name; default: the language model's own"
    )
    language.add_argument(
        "--template",
        metavar="NAME",
        help="conversation template; default: the one that fits the language model and its tokenizer",
    )
    language.add_argument(
        "--system", metavar="TEXT", help="default system message, may be empty; default: the template's own"
    )
    language.add_argument(
        "--max-positions",
        type=int,
        metavar="N",
        help="context length of an OPT; its learned positions are interpolated",
    )
    language.add_argument(
        "--bare-slots", action="store_true", help="no <img> and </img> around an image's slots, as in LLaVA-1.5"
    )
    add_tower_arguments(parser.add_argument_group("vision towers (options marked * are given once, or once per tower)"))
    other = parser.add_argument_group("output")
    add_seed(other)
    other.add_argument(
        "--without-weights", action="store_true", help="neither load nor write weights: a directory for `mmchat plan`"
    )
    add_new_directory(other)


def add_tower_arguments(group: Any) -> None:
    group.add_argument(
        "--vision",
        action="append",
        required=True,
        metavar="TOWER",
        help="directory, hub name or tower config .json; repeat for several towers",
    )
    group.add_argument(
        "--projector",
        action="append",
        metavar="KIND",
        help="* linear, mlp{n}x_gelu, pixel_shuffle, pixel_shuffle_2d, pixel_shuffle{n}_linear, "
        "avg_pool{n}_mlp2x_gelu or resampler{n}; "
        "default: mlp2x_gelu",
    )
    group.add_argument(
        "--projector-weights",
        action="append",
        type=Path,
        metavar="FILE",
        help="* weights of a trained projector, such as LLaVA's mm_projector.bin; once per tower",
    )
    group.add_argument(
        "--fusion",
        default="channels",
        choices=["channels", "sequence"],
        help="concatenate the features of several towers on channels, or their tokens in sequence",
    )
    group.add_argument(
        "--layer",
        action="append",
        type=layer_indices,
        metavar="INDEX",
        help="* hidden layer to take features from, or several (--layer=-2,-5), concatenated; default: the tower's",
    )
    group.add_argument("--class-token", action="store_true", help="keep the class token among the features")
    add_image_sizes(group)
    group.add_argument("--fit", choices=FITS, help="how an image is fitted to the input size; default: the tower's own")
    group.add_argument(
        "--max-tiles",
        type=int,
        metavar="N",
        help="with --fit tiles: most tiles of an image; default: 12. With --fit anyres: as LLaVA-OneVision instead of "
        "LLaVA-1.6, with features of about N tiles at most",
    )
    group.add_argument(
        "--longest-edge",
        type=int,
        metavar="PIXELS",
        help="with --fit split: to which the longer side is resized before the image is cut; default: 4 tiles",
    )
    group.add_argument(
        "--max-patches",
        type=int,
        metavar="N",
        help="with fit native: most patches of an image; default: the tower's own, usually 256",
    )
    group.add_argument(
        "--compressor",
        action="store_true",
        help="append Vary's two convolutions, untrained, to a SAM tower: 4,096 patches become 256",
    )
    add_trust_torchscript(group)


def run(arguments: argparse.Namespace) -> None:
    require_empty(arguments.out)
    files = arguments.projector_weights or []
    if files and (len(files) != len(arguments.vision) or arguments.without_weights):
        raise UserError("--projector-weights is given once for each --vision, and not with --without-weights")
    check_sources(arguments)
    from contextlib import nullcontext

    from mmchat.conversation import DEFAULT_SLOTS, SlotTokens
    from mmchat.hub import hub_repos

    with quick_imports():  # mistakes have been found
        import torch

        from mmchat.conversion.unsupported import refuse_unsupported_source
        from mmchat.model.assembly import assemble
        from mmchat.model.directory import save_assistant, save_without_weights
        from mmchat.model.projector_weights import load_projector

    if not arguments.language.endswith(".json"):
        refuse_unsupported_source(arguments.language)
    language = open_language(arguments)
    torch.manual_seed(arguments.seed)
    weights = not arguments.without_weights
    with nullcontext() if weights else torch.device("meta"):
        towers, projectors = load_towers(arguments)
        model, processor = assemble(
            language,
            towers,
            projectors,
            arguments.template,
            system=arguments.system,
            tokenizer=arguments.tokenizer,
            slots=SlotTokens(DEFAULT_SLOTS.pad) if arguments.bare_slots else None,
            fusion=arguments.fusion,
            seed=arguments.seed,
            weights=weights,
            max_positions=arguments.max_positions,
            report=print,
        )
    model.config.base_models = hub_repos(arguments.language, *arguments.vision)
    for projector, file in zip(model.projectors, files, strict=False):
        load_projector(projector, file)
    (save_assistant if weights else save_without_weights)(model, processor, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    views = {"tiles": "tile", "anyres": "tile", "split": "tile", "native": "patch"}
    view = views.get(model.specs[0].preprocessing.fit, "image")
    what = "feature" if model.uses_slot_maps else "slot"
    slots = f"{model.image_tokens} {what}{'s' * (model.image_tokens != 1)} per {view}"
    print(f"{arguments.out}: {parameters:,} parameters, {slots}, template {model.config.template}")
    print(next_commands(arguments.out, is_aligned=bool(files), weights=weights))


def next_commands(out: Path, is_aligned: bool, weights: bool) -> str:
    """What to type next: the recipe of the first stage for a new projector, else of the second.

    Args:
        out: The assistant.
        is_aligned: Whether its projectors have trained weights.
        weights: Whether it has weights at all.
    """
    recipe = "sft" if is_aligned else "pretrain"
    command = "train" if weights else "plan"
    return (
        f"next: mmchat recipe write own/{recipe} --out {recipe}.yaml\n"
        f"      mmchat {command} {recipe}.yaml --model {shlex.quote(str(out))} --data.path DATA"
    )


def check_sources(arguments: argparse.Namespace) -> None:
    """Check what can be checked without torch: paths, the template's name, options for several towers.

    Raises:
        UserError: One of them is wrong.
    """
    from mmchat.conversation import get_template

    for source in arguments.vision:
        check_exists(source, "vision tower")
    check_exists(arguments.language, "language model")
    if arguments.tokenizer:
        check_exists(arguments.tokenizer, "tokenizer")
    for file in arguments.projector_weights or ():
        if not Path(file).is_file():
            raise UserError(f"projector weights {file} do not exist; expected a file with a projector alone")
    if arguments.template is not None:
        get_template(arguments.template)
    for option, values in (("layer", arguments.layer), ("image-size", arguments.image_size)):
        per_tower(f"--{option}", values, len(arguments.vision))
    per_tower("--projector", arguments.projector, len(arguments.vision))
    chosen_tiling(arguments)


def open_language(arguments: argparse.Namespace) -> Any:
    """What `assemble` takes: the language model of an assistant, or the name that was given.

    Raises:
        UserError: an assistant cannot be opened, or weights are not wanted.
    """
    from mmchat.conversion.language import language_of_assistant

    found = language_of_assistant(arguments.language, arguments.vision[0], arguments.tokenizer)
    if found and arguments.without_weights:
        raise UserError(
            f"--language {arguments.language} is a whole assistant, whose weights must be read; leave out "
            "--without-weights or name a language model"
        )
    return found or arguments.language


def load_towers(arguments: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """The towers, and the kind of projector of each.

    Raises:
        UserError: an option does not fit the number or the kind of towers, or a tower cannot be loaded.
    """
    from mmchat.vision import load_tower

    count = len(arguments.vision)
    layers = per_tower("--layer", arguments.layer, count)
    sizes = per_tower("--image-size", arguments.image_size, count)
    projectors = per_tower("--projector", arguments.projector, count, "mlp2x_gelu")
    settings: dict[str, Any] = {
        "fit": arguments.fit,
        "tiling": chosen_tiling(arguments),
        "max_patches": arguments.max_patches,
    }
    if arguments.class_token:
        settings["class_token"] = True
    towers = []
    for source, size, layer in zip(arguments.vision, sizes, layers, strict=True):
        layer_setting = {} if layer is None else {"layer": layer}
        weights, trust = not arguments.without_weights, arguments.trust_torchscript
        towers.append(load_tower(source, weights, size, trust, **settings, **layer_setting))
    return compress(towers, arguments.fit) if arguments.compressor else towers, projectors


def chosen_tiling(arguments: argparse.Namespace) -> Any:
    """The tiling that the options ask for; None: the fit's own.

    Raises:
        UserError: an option belongs to another fit.
    """
    from mmchat.vision import LLAVA_ONEVISION, Split, Tiling

    fit, most, longest = arguments.fit, arguments.max_tiles, arguments.longest_edge
    if most is not None and fit not in ("tiles", "anyres"):
        raise UserError("--max-tiles belongs to --fit tiles or anyres")
    if longest is not None and fit != "split":
        raise UserError("--longest-edge belongs to --fit split")
    if most is not None:
        return Tiling(max_tiles=most) if fit == "tiles" else replace(LLAVA_ONEVISION, max_tiles=most)
    return None if longest is None else Split(longest_edge=longest)


def compress(towers: list[Any], fit: str | None) -> list[Any]:
    """Append Vary's compressor to the SAM towers.

    Raises:
        UserError: none of the towers is a SAM.
    """
    from mmchat.vision.families.sam import compressed

    families = [tower.config.family for tower in towers]
    if "sam" not in families:
        raise UserError(f"--compressor needs a SAM tower; the towers are of families {', '.join(families)}")
    return [compressed(tower, fit or "squash") if tower.config.family == "sam" else tower for tower in towers]
