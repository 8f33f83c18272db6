"""Tiny things that every room's tests may ask for. All weights are random and seeded; nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmchat.model.assembly import assemble
from mmchat.model.directory import save_assistant
from mmchat.vision import TowerConfig, build_tower
from mmchat.vision.spec import HALF, Preprocessing

DATA = Path(__file__).parent / "fixtures"
LAUNCHED = {"training", "invariants", "end_to_end"}
"""Rooms whose tests wait for launchers."""


def pytest_collection_modifyitems(items):
    """Long ones first, so that the two processes of scripts/test.sh end together."""
    items.sort(key=lambda item: item.path.parent.name not in LAUNCHED)


CLIP_28 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 32,
}

LANGUAGE = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 512},
    "mixtral": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}

TOKENIZER_OF = {"llama": "llama_like_legacy_false", "opt": "opt_like", "qwen2": "qwen_like"}
TEMPLATE_OF = {"llama": "vicuna_v1", "opt": "vary_opt", "qwen2": "chatml"}


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """tests/fixtures: tokenizers, and small outputs of the original programs."""
    return DATA


@pytest.fixture(scope="session")
def make_tower():
    """make_tower(seed=0, backbone={}, **settings): a CLIP ViT of 28 pixels and 16 patches."""

    def make(seed=0, backbone=None, **settings):
        torch.manual_seed(seed)
        settings.setdefault("family", "clip_vit")
        return build_tower(TowerConfig(backbone={**CLIP_28, **(backbone or {})}, **settings)).eval()

    return make


@pytest.fixture(scope="session")
def native_tower():
    """A SigLIP 2 that sees images of any aspect, in at most 12 patches of 7 pixels."""
    torch.manual_seed(0)
    own = {"projection_dim", "image_size"}
    backbone = {**{key: value for key, value in CLIP_28.items() if key not in own}, "num_patches": 16}
    how = Preprocessing(HALF, HALF, "bilinear", "native", max_patches=12)
    return build_tower(TowerConfig("siglip2", backbone, preprocessing=how)).eval()


@pytest.fixture(scope="session")
def language_json(tmp_path_factory):
    """language_json("llama", **changes): path of a tiny config that `assemble` takes."""

    def write(kind, **changes):
        path = tmp_path_factory.mktemp("language") / f"{kind}.json"
        path.write_text(json.dumps({"model_type": kind, **LANGUAGE[kind], **changes}))
        return str(path)

    return write


@pytest.fixture(scope="session")
def make_assistant(make_tower, language_json):
    """make_assistant("llama", towers=None, **changes of the language config): (model, processor).

    words: whose tokenizer and template it has, where not its own. The weights are spread wide, so that different inputs
    give visibly different logits.
    """

    def make(kind="llama", towers=None, projector="mlp2x_gelu", fusion="channels", words=None, **changes):
        model, processor = assemble(
            language_json(kind, **changes),
            [make_tower(layer=-2)] if towers is None else towers,
            projector,
            TEMPLATE_OF[words or kind],
            tokenizer=str(DATA / "tokenizers" / TOKENIZER_OF[words or kind]),
            fusion=fusion,
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15, generator=generator)
        return model.eval(), processor

    return make


@pytest.fixture(scope="session")
def assistant_dir(make_assistant, tmp_path_factory) -> Path:
    """A saved tiny assistant (llama, vicuna_v1, one tower of 16 slots). Read only."""
    out = tmp_path_factory.mktemp("assistant") / "model"
    save_assistant(*make_assistant(), out)
    return out


@pytest.fixture(scope="session")
def make_image():
    """image(seed, width, height): random pixels as a PIL image."""

    def make(seed=0, width=30, height=22):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def tiny_records(tmp_path, make_image) -> Path:
    """A LLaVA JSON of four samples (with no image, one, one, two) beside its PNGs."""
    for number in range(4):
        make_image(number).save(tmp_path / f"{number}.png")

    def record(name, images, question, answer):
        turns = [{"from": "human", "value": "<image>\n" * len(images) + question}, {"from": "gpt", "value": answer}]
        return {"id": name, "conversations": turns} | ({"image": images} if images else {})

    records = [
        record("text", [], "What is two and two?", "Four."),
        record("first", ["0.png"], "What is this?", "An image of noise."),
        record("second", ["1.png"], "And this?", "Noise again."),
        record("pair", ["2.png", "3.png"], "Which is brighter?", "They look the same to me."),
    ]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records, indent=1))
    return path
