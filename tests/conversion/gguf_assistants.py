"""Tiny random assistants of the shapes that are written as GGUF. Heads have 64 values, as llama.cpp was tested with."""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, TokenizersBackend

from mmchat.auto import MMChatProcessor
from mmchat.conversion.gguf.tokenizer import QWEN2_SPLIT
from mmchat.model.assembly import assemble
from mmchat.vision import TowerConfig, VisionTower, build_tower
from mmchat.vision.spec import HALF, Preprocessing

TOKENIZERS = Path(__file__).parents[1] / "fixtures" / "tokenizers"
LANGUAGE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
SQUASH = Preprocessing(HALF, HALF, "bicubic", "squash")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
SENTENCEPIECE = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, REPLACE]}


def metaspace(scheme):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}


def byte_level(regex):
    """The pre-tokenizer of Qwen2, with any regular expression."""
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


TOKENIZER_KINDS = {
    "llama 2": ("llama_like_legacy_false", SENTENCEPIECE, None),
    "metaspace always": ("llama_like_legacy_false", None, metaspace("always")),
    "metaspace first": ("llama_like_legacy_false", None, metaspace("first")),
    "metaspace never": ("llama_like_legacy_false", None, metaspace("never")),
    "gpt-2": ("opt_like", None, None),
    "qwen2": ("qwen_like", {"type": "NFC"}, byte_level(QWEN2_SPLIT)),
}
"""Kind -> fixture whose vocabulary and merges it has, normalizer, pre-tokenizer (None: as in the fixture)."""


def make_tokenizer(kind, folder):
    """A tokenizer of one of `TOKENIZER_KINDS`, saved in a folder. Returns the folder."""
    name, normalizer, split = TOKENIZER_KINDS[kind]
    fixture = AutoTokenizer.from_pretrained(TOKENIZERS / name)
    state = json.loads(fixture.backend_tokenizer.to_str())
    state["normalizer"] = normalizer
    if split is not None or normalizer is not None:
        state["pre_tokenizer"] = split
    path = Path(folder) / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(state))
    special = {key: value for key, value in fixture.special_tokens_map.items() if isinstance(value, str)}
    TokenizersBackend(tokenizer_file=str(path), **special).save_pretrained(path.parent)
    return path.parent


def make_tower(family="siglip", size=56, patch=14, layers=3, width=64, backbone=None, **settings) -> VisionTower:
    """A tower of 16 patches of 14 pixels."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": width,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "patch_size": patch,
    }
    shape |= {"num_patches": (size // patch) ** 2} if family == "siglip2" else {"image_size": size}
    settings.setdefault("preprocessing", SQUASH)
    return build_tower(TowerConfig(family, {**shape, **(backbone or {})}, **settings)).eval()


def make_assistant(folder, language="llama", tokenizer="metaspace first", template="vicuna_v1", **parts):
    """(model, processor).

    parts: `tower`, `projector`, `slots`; any other key changes the language model's config.
    """
    folder = Path(folder)
    words = make_tokenizer(tokenizer, folder / "tokenizer")
    config = folder / "language.json"
    tower, projector = parts.pop("tower", None) or make_tower(), parts.pop("projector", "mlp2x_gelu")
    slots = parts.pop("slots", None)
    config.write_text(json.dumps({"model_type": language, **LANGUAGE, **parts}))
    towers = tower if isinstance(tower, list) else [tower]
    model, processor = assemble(str(config), towers, projector, template, tokenizer=str(words), slots=slots)
    spread(model)
    return model.eval(), processor


@torch.no_grad()
def spread(model):
    """Weights spread wide and no bias of zero, so that everything changes the logits."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15, generator=generator)
        else:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def with_template(processor: MMChatProcessor, template: str, tokenizer=None) -> MMChatProcessor:
    """The same processor with another conversation template, and perhaps another tokenizer that has its tokens."""
    return MMChatProcessor(
        processor.image_processor,
        tokenizer or processor.tokenizer,
        template=template,
        slots=processor.slots,
        image_tokens=processor.image_tokens,
    )
