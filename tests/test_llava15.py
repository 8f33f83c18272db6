"""The recipes of configs/llava15: planned at full size without a weight, then run as they are with shrunken shapes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration
from mmchat.cli.main import main
from mmchat.data.epoch_plan import EpochPlan
from mmchat.data.order import split_batch
from mmchat.files import read_json
from mmchat.inference import Generator
from mmchat.model.directory import load_processor
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import batch_order
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import apply_rules, optimizer_groups
from mmchat.vision import TowerConfig
from tests.conftest import DATA, LANGUAGE, TOKENIZER_OF
from tests.launching import ROOT, launch, metrics
from tests.training_fixtures import write_records

RECIPES = ROOT / "configs" / "llava15"
SHAPES = DATA / "llava15"
"""Vicuna-7B v1.5 and CLIP ViT-L/14 at 336 pixels, as their published configs have them."""

PROJECTOR = (1024 * 4096 + 4096) + (4096 * 4096 + 4096)
TOWER = 303_507_456
"""Parameters of CLIP's ViT-L/14 at 336 pixels without its output projection."""
LLAMA = 6_738_415_616 + 2 * 4096
"""Of Llama-2-7B; Vicuna's vocabulary of 32,000 gains the slot token, at the input and at the output."""
LORA = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
"""Rank 128 beside the seven linear layers of each of 32 blocks."""

PLANS = {
    # Trained and frozen parameters by module, rate by module; records of the data, steps of an epoch, micro-batch on 8.
    "pretrain": (
        {"towers": (0, TOWER), "projectors": (PROJECTOR, 0), "language_model": (0, LLAMA)},
        {"projectors": 1e-3},
        (558_128, 2181, 32),
    ),
    "sft": (
        {"towers": (0, TOWER), "projectors": (PROJECTOR, 0), "language_model": (LLAMA, 0)},
        {"projectors": 2e-5, "language_model": 2e-5},
        (665_298, 5198, 16),
    ),
    "lora": (
        {"towers": (0, TOWER), "projectors": (PROJECTOR, 0), "language_model": (LORA, LLAMA)},
        {"projectors": 2e-5, "language_model": 2e-4},
        (665_298, 5198, 16),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_at_full_size_it_trains_what_the_original_trains(name):
    parameters, rates, (records, steps, micro) = PLANS[name]
    config = load_settings(RunConfig, RECIPES / f"{name}.yaml", [])
    language = {**read_json(SHAPES / "language.json"), "vocab_size": 32_001}
    tower = TowerConfig.from_dict(read_json(SHAPES / "tower.json")).to_dict()
    with torch.device("meta"):
        model = MMChatForConditionalGeneration(
            MMChatConfig(text_config=language, towers=[tower], projectors=["mlp2x_gelu"], image_token_id=32_000)
        )
        add_adapters(model, config.trainable)
    groups = apply_rules(model, config.trainable)
    assert model.image_tokens == 576
    assert {g.name: tuple(sum(p.numel() for p in half.values()) for half in (g.trained, g.frozen)) for g in groups} == (
        parameters
    )
    optimizer = config.optimizer
    assert {g["name"]: g["lr"] for g in optimizer_groups(groups, optimizer.lr, optimizer.weight_decay)} == rates
    mixture = SimpleNamespace(plan=EpochPlan((records,), (records,)))
    assert batch_order(config, mixture).steps_in_total == steps
    assert split_batch(config.batch_size, config.micro_batch_size, ranks=8) == (micro, 1)
    assert f"{steps:,} steps" in (RECIPES / f"{name}.yaml").read_text()


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """What `mmchat init` makes of tiny parts with the words of pretrain.yaml's header."""
    folder = tmp_path_factory.mktemp("llava15")
    tower = read_json(SHAPES / "tower.json")
    tower["backbone"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower["backbone"]["image_size"] = 56
    (folder / "tower.json").write_text(json.dumps(tower))
    (folder / "language.json").write_text(json.dumps({"model_type": "llama", **LANGUAGE["llama"]}))
    parts = ["--language", folder / "language.json", "--vision", folder / "tower.json"]
    parts += ["--tokenizer", DATA / "tokenizers" / TOKENIZER_OF["llama"]]
    header = ["--layer", "-2", "--bare-slots", "--template", "vicuna_v1", "--out", folder / "init"]
    main([str(word) for word in ("init", *parts, *header)])
    return folder / "init"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """stage -> records like those of the original: captions of wide images; conversations, a third without any."""
    folder = tmp_path_factory.mktemp("llava15-data")
    captions = []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "Describe the image.\n<image>"}, {"from": "gpt", "value": "red and green"}]
        captions.append({"id": f"c{number}", "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(captions))
    mix = write_records(folder / "mix", 12)
    return {"pretrain": folder / "captions.json", "sft": mix, "lora": mix}


def train(name, model, data, run_dir, ranks=1):
    shrunken = {"model": model, "data.path": data[name], "run_dir": run_dir, "batch_size": 4, "micro_batch_size": 2}
    words = [str(word) for key, value in shrunken.items() for word in (f"--{key}", value)]
    result = launch(RECIPES / f"{name}.yaml", *words, ranks=ranks, COLUMNS="120")
    assert result.returncode == 0, result.stdout
    assert "no gradient" not in result.stdout
    return run_dir


def changed(before, after):
    """Which parts of a model differ in any weight."""
    old, new = (load_file(directory / "model.safetensors") for directory in (before, after))
    assert old.keys() == new.keys()
    return {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}


def fits(model):
    return [spec.preprocessing.fit for spec in load_processor(model).image_processor.specs]


def test_init_makes_slots_as_llava_has_them(init):
    processor = load_processor(init)
    assert processor.image_tokens == 16
    assert processor.slot_tokens.group == "<imgpad>"
    assert fits(init) == ["shortest-edge-crop"]


@pytest.mark.slow
def test_sft_on_two_ranks_pads_its_images_ever_after(init, data, tmp_path):
    run = train("sft", init, data, tmp_path / "sft", ranks=2)
    assert sum("loss" in row for row in metrics(run)) == 3
    assert changed(init, run / "model") == {"projectors", "language_model"}
    assert fits(run / "model") == ["pad"]
    assert read_json(run / "model" / "config.json")["towers"][0]["preprocessing"]["fit"] == "pad"


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_each_stage_is_planned(name, init, data, tmp_path):
    words = [
        "plan",
        RECIPES / f"{name}.yaml",
        "--model",
        init,
        "--data.path",
        data[name],
        "--run_dir",
        tmp_path / "run",
    ]
    words += ["--batch_size", "8", "--micro_batch_size", "2", "--ranks", "2", "--json", tmp_path / "plan.json"]
    main([str(word) for word in words])
    plan = read_json(tmp_path / "plan.json")
    assert [module["mode"] for module in plan["modules"].values()] == {
        "pretrain": ["frozen", "full", "frozen"],
        "sft": ["frozen", "full", "full"],
        "lora": ["frozen", "full", "lora"],
    }[name]
    assert plan["problems"] == [] and plan["cache"]["images"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_stages_follow_each_other(init, data, tmp_path):
    pretrained = train("pretrain", init, data, tmp_path / "pretrain") / "model"
    assert changed(init, pretrained) == {"projectors"}
    assert fits(pretrained) == ["shortest-edge-crop"]
    sft = train("sft", pretrained, data, tmp_path / "sft") / "model"
    assert changed(pretrained, sft) == {"projectors", "language_model"}
    lora = train("lora", pretrained, data, tmp_path / "lora")
    assert changed(pretrained, lora / "model") == {"projectors", "language_model"}
    main(["merge", str(lora / "adapter"), "--out", str(tmp_path / "merged")])
    image = data["pretrain"].parent / "0.png"
    answers = [Generator(model).chat("What is this?", image) for model in (lora / "model", tmp_path / "merged")]
    assert answers[0] == answers[1]
    assert fits(sft) == fits(lora / "model") == fits(tmp_path / "merged") == ["pad"]
