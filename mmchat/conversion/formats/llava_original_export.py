"""An assistant in LLaVA's original layout, which haotian-liu/LLaVA opens (`mmchat export --to llava`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration, MMChatProcessor
from mmchat.conversation import SlotTokens, get_template
from mmchat.conversion.card import Usage
from mmchat.conversion.checks import TOLERANCE, Sample
from mmchat.conversion.formats.base import Exported
from mmchat.conversion.formats.llava_original import KEYS, SLOTS, LlavaOriginal
from mmchat.files import read_json
from mmchat.model.assembly import build_processor
from mmchat.model.projectors import projector_kind
from mmchat.model.projectors.mlp import MLP, Linear
from mmchat.pretrained import load_state_strictly
from mmchat.vision import TowerConfig, TowerSpec, tower_spec
from mmchat.vision.checkpoint_formats.weight_files import WeightFiles
from mmchat.vision.families import FAMILIES

LANGUAGE_MODELS = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}
"""`model_type` of the language model -> that of LLaVA, and its class (llava/model/language_model/)."""
ASPECT_RATIOS = {"pad": "pad", "shortest-edge-crop": "square", "squash": "square"}
"""Fit -> `image_aspect_ratio`; "square" leaves all to the image processor."""
CONVERSATIONS = {"vicuna_v1": "v1", "llama_2": "llava_llama_2", "mpt": "mpt", "plain": "plain"}
"""Template -> the original's `--conv-mode` (llava/conversation.py `conv_templates`)."""
TOWER_DIRECTORY = "vision_tower"
TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
_USAGE = """\
In a checkout of haotian-liu/LLaVA, which was not run when this was written:
```bash
python -m llava.eval.run_llava --model-path path/of/this/directory --conv-mode {mode} \\
  --image-file image.png --query "What is this?"
```
The directory's name must contain `llava`, it needs the language model's `tokenizer.model`, and `mm_vision_tower` in
`config.json` the path of `vision_tower` from where the program runs. mmchat opens it as it is:
```python
from mmchat.conversion import import_model

model, processor = import_model("path/of/this/directory", template="{template}")
```"""


@dataclass(frozen=True)
class ExportedWithTower:
    """The model, and its tower alone in a directory of transformers, from which the original opens it."""

    model: Exported
    tower: Exported

    def write(self, directory: Path) -> None:
        """Write the files into a new directory."""
        self.model.write(directory)
        self.tower.write(directory / TOWER_DIRECTORY)


class LlavaOriginalTarget:
    name = "llava"
    description = "LLaVA's original layout (haotian-liu/LLaVA)"
    transformers_class = None

    def refusals(self, config: MMChatConfig, processor: MMChatProcessor | None = None) -> list[str]:
        return [
            *_language_reasons(config.text_config),
            *_tower_reasons(config),
            *_projector_reasons(config),
            *_conversation_reasons(config),
        ]

    def export(self, model: MMChatForConditionalGeneration, processor: MMChatProcessor) -> ExportedWithTower:
        (tower,), config, state = model.towers, model.config, dict(model.state_dict())
        if config.text_config.tie_word_embeddings:
            state.pop(TABLES[1], None)
        slots, rows = processor.slot_tokens, len(state[TABLES[0]])
        # The original has no token for an image. The row that was added for one is left out if it is the last.
        added = slots.pad != SLOTS.pad and config.image_token_id == rows - 1 == len(processor.tokenizer) - 1
        if added:
            state |= {key: state[key][:-1] for key in TABLES if key in state}
        stated = {
            **_language_values(config.text_config, rows - added),
            "torch_dtype": str(model.dtype).removeprefix("torch."),
            "mm_vision_tower": TOWER_DIRECTORY,
            "mm_hidden_size": tower.spec.dim,
            "mm_projector_type": config.projectors[0],
            "mm_vision_select_layer": tower.config.layer,
            "mm_vision_select_feature": "cls_patch" if tower.config.class_token else "patch",
            "mm_patch_merge_type": "flat",
            "mm_use_im_patch_token": slots.pad == SLOTS.pad,
            "mm_use_im_start_end": slots.end is not None,
            "image_aspect_ratio": ASPECT_RATIOS[tower.spec.preprocessing.fit],
            "use_mm_proj": True,
        }
        files = _tokenizer_files(processor.tokenizer, slots.pad if added else None)
        return ExportedWithTower(Exported(stated, KEYS.export_state(state), files=files), _export_tower(tower))

    def usage(self, model: MMChatForConditionalGeneration) -> Usage:
        return Usage("llava", _USAGE.format(mode=CONVERSATIONS[model.config.template], template=model.config.template))

    def check(self, directory: Path, samples: Sequence[Sample], processor: MMChatProcessor) -> list[str]:
        files = WeightFiles(directory)
        imported = LlavaOriginal().open(files, None)
        imported.config.template = processor.template  # the original's config does not name it
        model = load_state_strictly(MMChatForConditionalGeneration, imported.config, imported.state, directory)
        again = build_processor(model.float(), imported.tokenizer)
        largest = max(_difference(model, again, sample, directory) for sample in samples)
        if not largest <= TOLERANCE:  # negated, so that NaN fails too
            raise RuntimeError(f"opened again, {directory} gives other logits: {largest:g}")
        mode = CONVERSATIONS[processor.template]
        return [
            f"opened again by mmchat: equal token ids, logits within {largest:.1g}",
            "NOT opened by the original program, which is not installed here",
            f"it needs --conv-mode {mode}, the language model's tokenizer.model, and `{TOWER_DIRECTORY}` in "
            "mm_vision_tower as a path from where it runs",
        ]


@torch.no_grad()
def _difference(
    model: MMChatForConditionalGeneration, processor: MMChatProcessor, sample: Sample, directory: Path
) -> float:
    """Largest difference of a sample's logits, from its messages and images on, over the rows that were written."""
    layouts = processor.layouts([image.size for image in sample.images])
    ids = torch.tensor([processor.render(sample.messages, layouts, add_generation_prompt=True).input_ids])
    if not torch.equal(ids, sample.inputs["input_ids"]):
        raise RuntimeError(f"opened again, {directory} asks {sample.name} with other token ids")
    pixels = processor.image_processor(sample.images) if sample.images else {}
    rows = read_json(directory / "config.json")["vocab_size"]
    return (model(input_ids=ids, **pixels).logits - sample.logits)[..., :rows].abs().max().item()


def _language_reasons(text: PreTrainedConfig) -> list[str]:
    if text.model_type not in LANGUAGE_MODELS:
        return [f"its language model is a {text.model_type}, expected {' or '.join(LANGUAGE_MODELS)}"]
    kind = text.rope_parameters.get("rope_type", "default")
    return [] if kind == "default" else [f"its rotary positions are of type {kind!r}, expected the default"]


def _tower_reasons(config: MMChatConfig) -> list[str]:
    if len(config.towers) != 1:
        return [f"it has {len(config.towers)} vision towers, expected one"]
    tower = TowerConfig.from_dict(config.towers[0])
    if tower.family != "clip_vit":
        return [f"its tower is a {tower.family}, expected a clip_vit"]
    reasons = []
    if not isinstance(tower.layer, int):
        reasons.append(f"it takes the features of several layers, {tower.layer}, expected one")
    if tower.final_norm:
        reasons.append("its tower's last norm is applied to the features (final_norm)")
    if (fit := tower_spec(tower).preprocessing.fit) not in ASPECT_RATIOS:
        reasons.append(f"its fit is {fit!r}, expected {', '.join(ASPECT_RATIOS)}")
    return reasons


def _projector_reasons(config: MMChatConfig) -> list[str]:
    unfit = [name for name in config.projectors if not isinstance(projector_kind(name), Linear | MLP)]
    return [f"its projector is {name}, expected linear or mlp2x_gelu" for name in unfit]


def _conversation_reasons(config: MMChatConfig) -> list[str]:
    reasons, slots = [], SlotTokens(**config.slots)
    if (slots.start, slots.end) not in ((None, None), (SLOTS.start, SLOTS.end)):
        reasons.append(
            f"its images stand between {slots.start} and {slots.end}, and the original writes {SLOTS.start} and "
            f"{SLOTS.end} or nothing (`mmchat init --bare-slots`)"
        )
    if config.template not in CONVERSATIONS:
        reasons.append(f"its template is {config.template}, expected {', '.join(CONVERSATIONS)}")
    elif config.system not in (None, get_template(config.template).default_system):
        reasons.append("its system message is its own, and the original writes the template's")
    return reasons


def _language_values(text: PreTrainedConfig, rows: int) -> dict[str, Any]:
    """The language model's part of `config.json`, as transformers 4 reads it."""
    values: dict[str, Any] = text.to_dict()
    rope = values.pop("rope_parameters")
    values.pop("dtype", None)
    model_type, architecture = LANGUAGE_MODELS[text.model_type]
    return {
        **values,
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": rows,
        "rope_theta": rope["rope_theta"],
    }


def _export_tower(tower: Any) -> Exported:
    config = FAMILIES["clip_vit"].backbone_config(tower.config).to_dict()
    return Exported(
        {**config, "model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]},
        {f"vision_model.{key.removeprefix('backbone.')}": tensor for key, tensor in tower.state_dict().items()},
        files={"preprocessor_config.json": _image_processor(tower.spec)},
    )


def _image_processor(spec: TowerSpec) -> dict[str, Any]:
    """`CLIPImageProcessor`, which gets images that the original has padded already if the fit is `pad`."""
    how, side = spec.preprocessing, spec.image_size
    square, crops = {"height": side, "width": side}, how.fit != "squash"
    edge = round(side / how.crop_fraction) if how.fit == "shortest-edge-crop" else side
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": crops,
        "size": {"shortest_edge": edge} if crops else square,
        "crop_size": square,
        "resample": Image.Resampling[how.resample.upper()].value,
        "rescale_factor": 1 / 255,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }


def _tokenizer_files(tokenizer: Any, without: str | None) -> dict[str, Any]:
    """Name -> content of a tokenizer's files, without an added token."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(Path(folder).iterdir())
        files = {path.name: read_json(path) if path.suffix == ".json" else path.read_text("utf-8") for path in paths}
    if without is not None:
        tokens, settings = files["tokenizer.json"], files["tokenizer_config.json"]
        tokens["added_tokens"] = [one for one in tokens["added_tokens"] if one["content"] != without]
        decoder = settings.get("added_tokens_decoder", {})
        settings |= {
            "added_tokens_decoder": {key: one for key, one in decoder.items() if one["content"] != without},
            "extra_special_tokens": [one for one in settings.get("extra_special_tokens", []) if one != without],
        }
    return files
