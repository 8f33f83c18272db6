"""`mmchat init`, `mmchat resize`: write the model directory that a training run starts from."""

import argparse
from pathlib import Path
from typing import Any

from mmchat.errors import UserError
from mmchat.vision.spec import FITS


def add_commands(add) -> None:
    init = add(
        "init",
        "join a language model and vision towers into an assistant",
        "mmchat init --language Qwen/Qwen2.5-0.5B --vision openai/clip-vit-base-patch16 --layer -2 --out runs/init",
    )
    init.add_argument("--language", required=True, help="directory, hub name, or a config .json for random weights")
    init.add_argument("--tokenizer", help="directory or hub name; not given: the language model's own")
    init.add_argument(
        "--vision", action="append", required=True, help="directory, hub name or tower config .json; repeat for several"
    )
    init.add_argument(
        "--projector",
        action="append",
        help="linear, mlp{n}x_gelu, pixel_shuffle, pixel_shuffle_2d, avg_pool{n}_mlp2x_gelu or resampler{n}; once for "
        "all towers, or once for each; not given: mlp2x_gelu",
    )
    init.add_argument("--fusion", default="channels", choices=["channels", "sequence"], help="how several towers meet")
    init.add_argument("--template", default="vicuna_v1", help="conversation template")
    init.add_argument("--system", help="default system message, may be empty; not given: the template's own")
    init.add_argument(
        "--layer",
        action="append",
        type=layers,
        help="feature layer, or several laid side by side: -2, or --layer=-2,-5; once for all, or once for each; "
        "not given: the tower's own",
    )
    init.add_argument("--class-token", action="store_true", help="keep the class token among the features")
    init.add_argument(
        "--image-size",
        action="append",
        type=int,
        help="side of what a tower sees, in pixels; once for all towers, or once for each; not given: what it was "
        "trained at",
    )
    init.add_argument("--fit", choices=FITS, help="how images come to the towers; not given: the tower's own")
    init.add_argument("--max-tiles", type=int, help="of --fit tiles: most squares an image is cut into; not given: 12")
    init.add_argument(
        "--max-patches",
        type=int,
        help="of fit native: most patches that an image has; not given: the tower's own, as a rule 256",
    )
    init.add_argument(
        "--compressor",
        action="store_true",
        help="put Vary's two convolutions, new, behind a SAM: 4,096 patches become 256; images come as Vary's do",
    )
    init.add_argument(
        "--max-positions", type=int, help="tokens that an OPT is to take; its learned positions are interpolated"
    )
    init.add_argument(
        "--trust-torchscript", action="store_true", help="open a TorchScript archive of a tower, which is a program"
    )
    init.add_argument(
        "--bare-slots", action="store_true", help="no <img> and </img> around an image's slots, as in LLaVA-1.5"
    )
    init.add_argument("--seed", type=int, default=0, help="of new weights")
    init.add_argument(
        "--without-weights", action="store_true", help="neither read nor write any: a directory for `mmchat plan` only"
    )
    init.add_argument("--out", type=Path, required=True, help="directory to write")
    init.set_defaults(run=run_init)

    resize = add(
        "resize",
        "write an assistant whose towers see larger or smaller images, to be trained on",
        "mmchat resize runs/small/model --image-size 448 --out runs/large-init",
    )
    resize.add_argument("model", metavar="CKPT", type=Path, help="model directory")
    resize.add_argument(
        "--image-size",
        action="append",
        type=int,
        required=True,
        help="side of what a tower sees, in pixels; once for all towers, or once for each",
    )
    resize.add_argument(
        "--keep-positions",
        action="store_true",
        help="for images that show more, as large as before; without it, for the same images with more pixels",
    )
    resize.add_argument("--out", type=Path, required=True, help="directory to write")
    resize.set_defaults(run=run_resize)


def run_resize(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    from mmchat.model.directory import load_assistant, save_assistant

    model, processor = load_assistant(arguments.model)
    sizes = per_tower("--image-size", arguments.image_size, len(model.towers))
    model.resize_towers(sizes, arguments.keep_positions)
    processor.set_towers(model.specs, model.image_tokens)
    save_assistant(model, processor, arguments.out)
    sides = ", ".join(f"{spec.image_size} x {spec.image_size}" for spec in model.specs)
    print(f"{arguments.out}: sees {sides} pixels, {model.image_tokens} slots per view")


def run_init(arguments: argparse.Namespace) -> None:
    claim(arguments.out)
    from contextlib import nullcontext

    import torch

    from mmchat.conversation import DEFAULT_SLOTS, SlotTokens
    from mmchat.model.assembly import assemble
    from mmchat.model.directory import save_assistant, save_shapes
    from mmchat.vision import Tiling, load_tower

    if arguments.max_tiles is not None and arguments.fit != "tiles":
        raise UserError("--max-tiles belongs to --fit tiles")
    tiling = None if arguments.max_tiles is None else Tiling(max_tiles=arguments.max_tiles)
    fitted = {"fit": arguments.fit, "tiling": tiling, "max_patches": arguments.max_patches}
    count = len(arguments.vision)
    feature_layers = per_tower("--layer", arguments.layer, count)
    sizes = per_tower("--image-size", arguments.image_size, count)
    projectors = per_tower("--projector", arguments.projector, count, "mlp2x_gelu")
    own: dict[str, Any] = {"class_token": True} if arguments.class_token else {}
    settings = [own if layer is None else {**own, "layer": layer} for layer in feature_layers]
    torch.manual_seed(arguments.seed)
    weights = not arguments.without_weights
    with nullcontext() if weights else torch.device("meta"):
        towers = [
            load_tower(source, weights, size, arguments.trust_torchscript, **fitted, **setting)
            for source, size, setting in zip(arguments.vision, sizes, settings, strict=True)
        ]
        if arguments.compressor:
            towers = compress(towers, arguments.fit)
        model, processor = assemble(
            arguments.language,
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
        )
    (save_assistant if weights else save_shapes)(model, processor, arguments.out)
    parameters = sum(p.numel() for p in model.parameters())
    view = {"tiles": "tile", "native": "patch"}.get(model.specs[0].preprocessing.fit, "image")
    slots = f"{model.image_tokens} slot{'s' * (model.image_tokens != 1)} per {view}"
    print(f"{arguments.out}: {parameters:,} parameters, {slots}, {arguments.template}")


def compress(towers: list[Any], fit: str | None) -> list[Any]:
    """Those of SAM with Vary's compressor; raises UserError where there is none."""
    from mmchat.vision.families.sam import compressed

    families = [tower.config.family for tower in towers]
    if "sam" not in families:
        raise UserError(f"--compressor belongs behind a SAM; the towers are of families {', '.join(families)}")
    return [compressed(tower, fit or "squash") if tower.config.family == "sam" else tower for tower in towers]


def layers(words: str) -> int | tuple[int, ...]:
    """What `TowerConfig.layer` takes: `-2`, or `-2,-5`."""
    numbers = tuple(int(word) for word in words.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def per_tower(option: str, given: list | None, towers: int, usual: Any = None) -> list:
    """One value for each tower, of an option that was given once for all, or once for each in their order.

    Raises:
        UserError: neither.
    """
    values = given or [usual]
    if len(values) == 1:
        return values * towers
    if len(values) != towers:
        raise UserError(
            f"{option} is given {len(values)} times for {towers} vision towers; give it once for all, "
            "or once for each --vision, in the same order"
        )
    return values


def claim(out: Path) -> None:
    """Raises UserError where `out` exists and holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; remove it or name another --out")
