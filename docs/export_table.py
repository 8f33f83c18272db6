"""Writes the tables of docs/exports.md that say which shapes each format takes. They are what the formats refuse.

python docs/export_table.py            writes them
python docs/export_table.py --check    exit status 1 if the page has others
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the page describes this copy, not an installed one

from transformers import AutoConfig  # noqa: E402

from mmchat.auto import MMChatConfig  # noqa: E402
from mmchat.conversation import DEFAULT_SLOTS, SlotTokens  # noqa: E402
from mmchat.conversion.formats import TARGETS  # noqa: E402
from mmchat.conversion.formats.base import option_names, with_options  # noqa: E402
from mmchat.conversion.vllm.check import vllm_refusals  # noqa: E402
from mmchat.vision import LLAVA_ONEVISION, NANOVLM_MARKERS, Split, TowerConfig  # noqa: E402
from mmchat.vision.spec import Preprocessing  # noqa: E402

PAGE = ROOT / "docs" / "exports.md"
BEGIN, END = "<!-- written by docs/export_table.py -->", "<!-- end -->"
VIT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIZES: dict[str, dict[str, Any]] = {
    "clip_vit": {**VIT, "image_size": 336, "patch_size": 14},
    "siglip": {**VIT, "image_size": 224, "patch_size": 14},
    "siglip2": {**VIT, "num_patches": 256, "patch_size": 14},
    "internvit": {**VIT, "image_size": [448, 448], "patch_size": [14, 14]},
    "dinov2": {**VIT, "image_size": 224, "patch_size": 14},
    "dinov3_vit": {**VIT, "image_size": 224, "patch_size": 16},
    "clip_resnet": {},
    "conv_vit": {**VIT, "image_size": 224, "patch_size": 16, "stem_width": 64, "stem_depth": 2},
    "sam": {},
    "vary_sam": {},
}
"""Family -> values of its backbone; the families' own sizes where there are none."""
SQUARES = ("squash", "shortest-edge-crop", "pad")
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3", "opt", "gemma2")


@dataclass(frozen=True)
class Shape:
    """A kind of assistant.

    Attributes:
        tower: What the table calls the tower and its features.
        families: Its towers.
        projector: Projector of each.
        fits: Fits for which formats decide alike.
        tower_settings: Fields of `TowerConfig`.
        tiling: As in `Preprocessing`.
        language: `model_type` of the language model.
    """

    tower: str
    families: tuple[str, ...]
    projector: str
    fits: tuple[str, ...] = SQUARES
    tower_settings: tuple[tuple[str, Any], ...] = ()
    tiling: Any = None
    language: str = "llama"

    def config(self, fit: str, slots: SlotTokens = DEFAULT_SLOTS) -> MMChatConfig:
        """The config of an assistant of this shape."""
        towers = [
            TowerConfig(
                family,
                SIZES[family],
                preprocessing=Preprocessing(fit=fit, tiling=self.tiling),
                **dict(self.tower_settings),
            )
            for family in self.families
        ]
        return MMChatConfig(
            text_config=AutoConfig.for_model(self.language, num_hidden_layers=1),  # formats look at its modules
            towers=[tower.to_dict() for tower in towers],
            projectors=[self.projector] * len(towers),
            slots=slots.to_dict(),
            template="vicuna_v1",
        )


NORMED, INNER = (("final_norm", True),), (("layer", -2),)
SPLIT_LIKE_NANOVLM = Split(rule="nanovlm", global_view="first", markers=NANOVLM_MARKERS)
SHAPES = (
    Shape("CLIP", ("clip_vit",), "mlp2x_gelu", tower_settings=INNER),
    Shape("CLIP", ("clip_vit",), "linear", tower_settings=INNER),
    Shape("CLIP with class token", ("clip_vit",), "mlp2x_gelu", tower_settings=(*INNER, ("class_token", True))),
    Shape("CLIP, two layers", ("clip_vit",), "mlp2x_gelu", tower_settings=(("layer", (-2, -5)),)),
    Shape("CLIP", ("clip_vit",), "mlp2x_gelu", ("anyres",), INNER),
    Shape("CLIP", ("clip_vit",), "pixel_shuffle", tower_settings=INNER),
    Shape("SigLIP", ("siglip",), "mlp2x_gelu"),
    Shape("SigLIP", ("siglip",), "linear"),
    Shape("SigLIP, normed", ("siglip",), "mlp2x_gelu", tower_settings=NORMED),
    Shape("SigLIP", ("siglip",), "mlp2x_gelu", ("anyres",), tiling=LLAVA_ONEVISION),
    Shape("SigLIP", ("siglip",), "pixel_shuffle"),
    Shape("SigLIP", ("siglip",), "avg_pool2_mlp2x_gelu"),
    Shape("SigLIP, normed", ("siglip",), "pixel_shuffle2_linear", ("split",), NORMED),
    Shape(
        "SigLIP, normed, nanoVLM's markers",
        ("siglip",),
        "pixel_shuffle2_linear",
        ("split",),
        NORMED,
        SPLIT_LIKE_NANOVLM,
    ),
    Shape("SigLIP", ("siglip",), "mlp3x_gelu"),
    Shape("SigLIP", ("siglip",), "pixel_shuffle_2d"),
    Shape("SigLIP", ("siglip",), "resampler64"),
    Shape("SigLIP 2 with squares", ("siglip2",), "mlp2x_gelu"),
    Shape("SigLIP 2", ("siglip2",), "mlp2x_gelu", ("native",)),
    Shape("InternViT", ("internvit",), "pixel_shuffle", ("squash",)),
    Shape("InternViT", ("internvit",), "pixel_shuffle", ("tiles",)),
    Shape("DINOv2", ("dinov2",), "mlp2x_gelu"),
    Shape("DINOv3", ("dinov3_vit",), "mlp2x_gelu"),
    Shape("CLIP's ResNet", ("clip_resnet",), "mlp2x_gelu"),
    Shape("`conv_vit`", ("conv_vit",), "mlp2x_gelu"),
    Shape("SAM", ("sam",), "mlp2x_gelu", ("longest-edge-pad",)),
    Shape("CLIP and Vary's SAM", ("clip_vit", "vary_sam"), "linear", ("squash",)),
)
WAYS: dict[str, tuple[SlotTokens, dict[str, Any]]] = {
    "yes": (DEFAULT_SLOTS, {}),
    "`--bare-slots`": (SlotTokens(DEFAULT_SLOTS.pad), {}),
    "`--known-reader-bug`": (DEFAULT_SLOTS, {"known_reader_bug": True}),
}
"""What a cell says -> slot tokens and options with which the format takes the shape. The first that works is shown."""


def way(target: Any, shape: Shape, fit: str) -> str:
    """What a cell says for one fit; empty if the format refuses the shape."""
    for name, (slots, options) in WAYS.items():
        if not options.keys() <= option_names(target):
            continue
        reasons = with_options(target, options).refusals(shape.config(fit, slots))
        if not reasons:
            return name
        if len(reasons) > 1:  # each other way removes one reason at most
            return ""
    return ""


def cell(target: Any, shape: Shape) -> str:
    """What a format says to a shape: to each fit, if not to all the same."""
    ways = {fit: way(target, shape, fit) for fit in shape.fits}
    if len(set(ways.values())) == 1:
        return ways[shape.fits[0]] or "-"
    return ", ".join(f"{fit}: {said}" for fit, said in ways.items() if said)


def vllm_cell(shape: Shape) -> str:
    """Whether vLLM takes what `--to hf` writes."""
    config = shape.config(shape.fits[0])
    able = [one for one in TARGETS if one.transformers_class and not one.refusals(config)]
    return "yes" if able and not vllm_refusals(config, able[0].transformers_class) else "-"


def rows(first: tuple[str, ...], shapes: dict[tuple[str, ...], Shape]) -> Iterator[str]:
    """A Markdown table: cells of the first columns -> shape."""
    names = [*first, *(target.name for target in TARGETS), "vLLM"]
    yield from (f"| {' | '.join(names)} |", "|---" * len(names) + "|")
    for cells, shape in shapes.items():
        yield f"| {' | '.join([*cells, *(cell(target, shape) for target in TARGETS), vllm_cell(shape)])} |"


def language_rows() -> Iterator[str]:
    """A Markdown table: language models, each in a shape that the format takes with a Llama."""
    fitting = {target.name: next(shape for shape in SHAPES if way(target, shape, shape.fits[0])) for target in TARGETS}
    names = ["language model", *(target.name for target in TARGETS)]
    yield from (f"| {' | '.join(names)} |", "|---" * len(names) + "|")
    for language in LANGUAGE_MODELS:
        said = [
            way(target, replace(fitting[target.name], language=language), fitting[target.name].fits[0])
            for target in TARGETS
        ]
        yield f"| {language} | {' | '.join('yes' if one else '-' for one in said)} |"


def tables() -> str:
    """Both tables, as Markdown."""
    shapes = {(shape.tower, f"`{shape.projector}`", fits(shape)): shape for shape in SHAPES}
    return "\n".join([*rows(("tower", "projector", "fit"), shapes), "", *language_rows()])


def fits(shape: Shape) -> str:
    """The cell of the fits."""
    return "squares" if shape.fits == SQUARES else ", ".join(f"`{fit}`" for fit in shape.fits)


def page() -> str:
    """docs/exports.md with the tables of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return page() != PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
