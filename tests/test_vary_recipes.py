"""The recipes of configs/vary: at full size without a weight; with shrunken shapes, from SAM to the grafted model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration
from mmchat.cli.main import main
from mmchat.data.order import split_batch
from mmchat.files import read_json
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.optim.param_groups import apply_rules, optimizer_groups
from mmchat.vision import TowerConfig
from tests.conftest import DATA, TOKENIZER_OF
from tests.launching import ROOT, launch, metrics
from tests.training_fixtures import write_records

RECIPES = ROOT / "configs" / "vary"
SHAPES = DATA / "vary"
"""OPT-125M, Qwen1.5-7B and -1.8B and CLIP ViT-L/14, as their published configs have them."""

VOCABULARY = 95_569_152
"""Parameters of SAM's ViT-B and Vary's two convolutions."""
CLIP = 303_179_776
"""Of CLIP's ViT-L/14 without its output projection."""
OPT = 125_239_296 + 2048 * 768
"""OPT-125M, and as many positions again; its 50,272 rows have room for the three tokens of the slots."""
PLANS = {
    # Trained and frozen parameters by module; shapes of the language model, rate, micro-batch on 8 ranks.
    "tiny": ({"towers": (VOCABULARY, 0), "projectors": (787_200, 0), "language_model": (OPT, 0)}, "opt_125m", 5e-5, 16),
    "base": (
        {"towers": (0, CLIP + VOCABULARY), "projectors": (4_198_400, 0), "language_model": (7_721_324_544, 0)},
        "qwen_7b",
        5e-5,
        8,
    ),
    "sft": (
        {"towers": (0, CLIP + VOCABULARY), "projectors": (4_198_400, 0), "language_model": (7_721_324_544, 0)},
        "qwen_7b",
        1e-5,
        8,
    ),
    "toy": (
        {"towers": (0, CLIP + VOCABULARY), "projectors": (2_099_200, 0), "language_model": (1_836_828_672, 0)},
        "qwen_1_8b",
        5e-5,
        4,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_at_full_size_it_trains_what_the_original_trains(name):
    parameters, language, rate, micro = PLANS[name]
    config = load_settings(RunConfig, RECIPES / f"{name}.yaml", [])
    text = read_json(SHAPES / f"{language}.json") | ({"max_position_embeddings": 4096} if name == "tiny" else {})
    towers = [TowerConfig("vary_sam", {}).to_dict()]
    if name != "tiny":
        towers.insert(0, {**TowerConfig.from_dict(read_json(SHAPES / "clip_l14.json")).to_dict(), "layer": -2})
    with torch.device("meta"):
        model = MMChatForConditionalGeneration(
            MMChatConfig(text_config=text, towers=towers, projectors=["linear"] * len(towers), image_token_id=7)
        )
    groups = apply_rules(model, config.trainable)
    assert model.image_tokens == 256
    assert {g.name: tuple(sum(p.numel() for p in half.values()) for half in (g.trained, g.frozen)) for g in groups} == (
        parameters
    )
    optimizer = config.optimizer
    assert {g["lr"] for g in optimizer_groups(groups, optimizer.lr, optimizer.weight_decay)} == {rate}
    assert split_batch(config.batch_size, config.micro_batch_size, ranks=8)[0] == micro
    assert config.batch_size == (512 if name == "tiny" else 256) and config.epochs == (3 if name == "tiny" else 1)
    assert config.objective.augment_towers == [len(towers) - 1]


@pytest.mark.slow
def test_from_sam_to_an_assistant_with_two_eyes(data_dir, language_json, tmp_path):
    """The words of the recipes' headers, with small parts: the tower is trained, taken over, and then left as it is."""
    sam = {"family": "sam", "backbone": {"hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2}}
    sam["backbone"] |= {"num_attention_heads": 2, "image_size": 128, "window_size": 2, "global_attn_indexes": [1]}
    (tmp_path / "sam.json").write_text(json.dumps(sam))
    data = write_records(tmp_path / "data", 12, images=1)

    def init(out, kind, *words):
        parts = ["--language", language_json(kind), "--tokenizer", data_dir / "tokenizers" / TOKENIZER_OF[kind]]
        main([str(word) for word in ("init", *parts, *words, "--projector", "linear", "--out", tmp_path / out)])
        return tmp_path / out

    def train(name, model):
        run = tmp_path / name
        shrunken = {"model": model, "data.sources": f"{{pages: {{path: {data}}}}}", "run_dir": run}
        shrunken |= {"data.max_length": 400, "batch_size": 4, "micro_batch_size": 2, "workers": 1}
        result = launch(
            RECIPES / f"{name}.yaml", *(str(w) for k, v in shrunken.items() for w in (f"--{k}", v)), ranks=1
        )
        assert result.returncode == 0, result.stdout
        assert all("loss" in row for row in metrics(run) if "step" in row and "validation" not in row)
        return run / "model"

    new = ["--vision", tmp_path / "sam.json", "--compressor", "--template", "vary_opt"]
    tiny = init("tiny-init", "opt", "--max-positions", 1024, *new)
    grown = train("tiny", tiny)
    clip = ["--vision", data_dir / "clip_vit_tiny_hf4", "--layer", -2, "--image-size", 14]
    graft = ["--vision", grown, "--layer", -1, "--image-size", 128, "--template", "vary_qwen"]
    base = init("base-init", "qwen2", *clip, *graft)
    left = train("base", base)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, grown))
    assert not torch.equal(before["towers.0.compressor.0.weight"], after["towers.0.compressor.0.weight"])
    finished = load_file(left / "model.safetensors")
    for key in (key for key in after if key.startswith("towers.0.")):
        assert torch.equal(finished[key.replace("towers.0.", "towers.1.", 1)], after[key])
