"""Every tower family end to end: an assistant with a tiny tower learns to tell sixteen images apart."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmchat.vision.families import FAMILIES
from tests.conftest import CLIP_28, LANGUAGE
from tests.end_to_end.test_path import run
from tests.launching import launch, write_config

BIN = Path(sys.executable).parent
ANSWERS = [
    f"{colour} {thing}" for colour in ("red", "green", "blue", "white") for thing in ("cat", "sun", "tree", "house")
]
INTERNVIT_28 = {
    "hidden_size": 40,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "image_size": 28,
    "patch_size": 7,
    "norm_type": "rms_norm",
    "use_qk_norm": True,
}
"""Five heads, as 6B has twenty-five."""
VIT_28 = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
NAFLEX_28 = {**{k: v for k, v in VIT_28.items() if k != "image_size"}, "num_patches": 16}
MLP = {"intermediate_size": 64}
REGISTERS = {**MLP, "num_register_tokens": 2}
SAM = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "window_size": 3,
    "global_attn_indexes": [1],
    "initializer_range": 0.1,  # transformers' is 1e-10
}
PADDED, SQUASHED = ({"fit": fit, "resample": "bilinear"} for fit in ("longest-edge-pad", "squash"))
VARY = {"family": "vary_sam", "backbone": {**SAM, "patch_size": 4}, "preprocessing": SQUASHED}
SETUPS: dict[str, dict] = {
    "clip_resnet": {
        "towers": [
            {"family": "clip_resnet", "backbone": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}, "layer": 3}
        ]
    },
    "conv_vit": {
        "towers": [{"family": "conv_vit", "backbone": {**CLIP_28, "patch_size": 4, "stem_width": 8, "stem_depth": 2}}]
    },
    "clip_vit_headless": {"towers": [{"family": "clip_vit_headless", "backbone": CLIP_28, "layer": -2}]},
    "clip_vit": {"towers": [{"family": "clip_vit", "backbone": CLIP_28, "layer": -2}]},
    "internvit": {
        "towers": [{"family": "internvit", "backbone": INTERNVIT_28}],
        "words": ["--projector", "pixel_shuffle"],
    },
    "dinov2": {"towers": [{"family": "dinov2", "backbone": VIT_28, "final_norm": True}]},
    "dinov2_with_registers": {
        "towers": [{"family": "dinov2_with_registers", "backbone": {**VIT_28, "num_register_tokens": 2}}]
    },
    "dinov3_vit": {"towers": [{"family": "dinov3_vit", "backbone": {**VIT_28, **REGISTERS}, "final_norm": True}]},
    "siglip": {"towers": [{"family": "siglip", "backbone": {**VIT_28, **MLP}}]},
    "siglip2": {"towers": [{"family": "siglip2", "backbone": {**NAFLEX_28, **MLP}}]},
    "siglip2, native": {
        "towers": [{"family": "siglip2", "backbone": {**NAFLEX_28, **MLP}}],
        "words": ["--fit", "native", "--max-patches", "20"],
    },
    "clip_vit, resampled, its last block trained": {
        "towers": [{"family": "clip_vit", "backbone": CLIP_28, "layer": -2}],
        "words": ["--projector", "resampler16"],
        "trainable": {"towers": {"mode": "full", "last": 1}},
    },
    "sam": {"towers": [{"family": "sam", "backbone": {**SAM, "patch_size": 8}, "preprocessing": PADDED}]},
    "clip_vit and vary_sam": {
        "towers": [{"family": "clip_vit", "backbone": CLIP_28, "layer": -2}, VARY],
        "words": ["--projector", "linear", "--projector", "mlp2x_gelu"],
    },
    # Its features are small, and no norm follows them: at the others' rate the language model learns to do without.
    "vary_sam": {"towers": [VARY], "lr": 1e-3, "steps": 300},
    "tiles": {
        "towers": [{"family": "clip_vit", "backbone": CLIP_28, "layer": -2}],
        "words": ["--fit", "tiles", "--max-tiles", "4"],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Sixteen mosaics in four shapes, each with its own answer."""
    folder = tmp_path_factory.mktemp("mosaics")
    records = []
    for number, answer in enumerate(ANSWERS):
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        size = [(64, 64), (96, 64), (64, 96), (128, 40)][number % 4]
        Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records))
    (folder / "language.json").write_text(json.dumps({"model_type": "llama", **LANGUAGE["llama"], "hidden_size": 64}))
    return folder


def test_every_tower_family_is_tested_here():
    assert {tower["family"] for setup in SETUPS.values() for tower in setup["towers"]} == FAMILIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("setup", sorted(SETUPS))
def test_a_trained_assistant_tells_sixteen_images_apart(data, data_dir, tmp_path, setup):
    words: list[object] = [*SETUPS[setup].get("words", ())]
    for number, tower in enumerate(SETUPS[setup]["towers"]):
        path = tmp_path / f"tower{number}.json"
        path.write_text(json.dumps(tower))
        words += ["--vision", path]
    tokenizer = data_dir / "tokenizers" / "llama_like_legacy_false"
    words += ["--language", data / "language.json", "--tokenizer", tokenizer, "--out", tmp_path / "init"]
    run(BIN / "mmchat", "init", *words, cwd=tmp_path)
    config = write_config(
        tmp_path / "config.yaml",
        run_dir=str(tmp_path / "run"),
        model=str(tmp_path / "init"),
        data={"path": str(data / "records.json")},
        trainable={
            "towers": "full",
            "projectors": "full",
            "language_model": "full",
            **SETUPS[setup].get("trainable", {}),
        },
        optimizer={"lr": SETUPS[setup].get("lr", 3e-3), "warmup": 10},
        steps=SETUPS[setup].get("steps", 200),
        batch_size=16,
        precision="fp32",
        workers=0,
    )
    result = launch(config)
    assert result.returncode == 0, result.stdout
    run(
        BIN / "mmchat",
        "eval",
        tmp_path / "run" / "model",
        data / "records.json",
        "--out",
        tmp_path / "run",
        cwd=tmp_path,
    )
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["overall"] == 1.0
    assert scores["overall/blind"] <= 0.4
