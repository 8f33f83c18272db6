"""LLaVA-1.5-7B's plan against the computation by hand in docs/guides/planning.md: full size, no weight."""

from dataclasses import replace

import numpy as np
import pytest

from mmchat.cli.main import main
from mmchat.data.lengths import LengthIndex
from mmchat.files import read_json, write_json
from mmchat.planning.activations import Activations, measure_activations
from mmchat.planning.fake_model import open_fake_model
from mmchat.planning.memory import plan_memory
from mmchat.planning.plan import fake_batch
from mmchat.planning.steps import PlannedMicroBatch
from mmchat.settings import load_settings
from mmchat.training.config import DistributedConfig, RunConfig
from mmchat.training.monitoring.flops import model_flops
from mmchat.training.optim.trainable import Rule
from tests.conftest import DATA
from tests.launching import ROOT

DOCS = (ROOT / "docs" / "guides" / "planning.md").read_text()
H, F, BLOCKS, WORDS = 4096, 11_008, 32, 32_001
SAMPLES, LENGTH, SUPERVISED = 16, 704, 96
POSITIONS = SAMPLES * LENGTH
MATRICES = BLOCKS * (4 * H * H + 3 * H * F)
PROJECTOR = 1024 * H + H + H * H + H
TRAINED, FROZEN = 6_738_423_808 + PROJECTOR, 303_507_456
ROUNDED = 24 * (12 * 1024**2 + 9 * 1024) + 3 * 14**2 * 1024
"""Of the frozen: weights and biases of the tower's linear layers and its convolution."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava-7b") / "shapes"
    shapes = DATA / "llava15"
    parts = ["--language", shapes / "language.json", "--vision", shapes / "tower.json"]
    parts += ["--tokenizer", DATA / "tokenizers" / "llama_like_legacy_false"]
    header = ["--layer", "-2", "--bare-slots", "--template", "vicuna_v1", "--without-weights", "--out", folder]
    main([str(word) for word in ("init", *parts, *header)])
    values = read_json(folder / "config.json")
    values["text_config"]["vocab_size"] = WORDS  # Vicuna's, not the small tokenizer's
    write_json(folder / "config.json", values)
    return load_settings(RunConfig, ROOT / "configs/llava15/sft.yaml", ["--model", str(folder)])


def activations_of(config, stage):
    shapes = open_fake_model(config)
    lengths = LengthIndex(*(np.full(SAMPLES, value) for value in (LENGTH, SUPERVISED, 1, 1, 576, 576)))
    numbers = list(range(SAMPLES))
    micro = PlannedMicroBatch(
        1, 0, numbers, [LENGTH] * SAMPLES, POSITIONS, SAMPLES, SAMPLES, SAMPLES * 576, SAMPLES * SUPERVISED
    )
    with shapes.running():
        batch = fake_batch(micro, lengths, shapes.objective.collator)
        return shapes, measure_activations(shapes.objective, batch, 1, 1, bf16=True, zero_stage=stage)


def test_states_by_zero_stage(config):
    shapes, activations = activations_of(config, stage=3)
    below = open_fake_model(replace(config, distributed=replace(config.distributed, zero_stage=2)))
    whole, share = 4 * (TRAINED + FROZEN), 4 * TRAINED // 8
    held = whole - 2 * ROUNDED
    by_hand = [
        (held, 4 * TRAINED, 8 * TRAINED, 0, 0),
        (held, 4 * TRAINED, 3 * share, 4_000_000_000, 0),
        (held, share, 3 * share, 4_000_000_000, 0),
        (whole // 8, share, 3 * share, 3_000_000_000, 4_000_000_000),
    ]
    for stage, figures in enumerate(by_hand):
        opened = shapes if stage == 3 else below
        planned = plan_memory(config, opened.objective, opened.groups, stage, 8, activations)
        found = (planned.parameters, planned.gradients, planned.optimizer, planned.buckets, planned.gathered)
        assert found == figures
        assert all(f"{figure:,}" in DOCS for figure in figures if figure)
    three = plan_memory(
        replace(config, distributed=replace(config.distributed, offload="all")),
        shapes.objective,
        shapes.groups,
        3,
        8,
        activations,
    )
    assert (three.parameters, three.gradients, three.optimizer) == (0, 0, 0)
    assert three.on_cpu == whole // 8 + 4 * share
    two = plan_memory(
        replace(config, distributed=replace(config.distributed, offload="optimizer")),
        below.objective,
        below.groups,
        2,
        8,
        activations,
    )
    assert (two.parameters, two.gradients, two.optimizer, two.on_cpu) == (held, 0, 0, 5 * share)
    kept = 34 * 4 * H * POSITIONS + 0.17e9
    assert activations.kept == pytest.approx(kept, rel=0.02)
    assert activations.weight_copies < 0.1 * 2 * MATRICES


def test_activations_without_checkpointing(config):
    _, activations = activations_of(replace(config, distributed=DistributedConfig(zero_stage=2)), stage=2)
    by_hand = BLOCKS * (34 * H + 8 * F) * POSITIONS
    assert f"{34 * H + 8 * F:,}" in DOCS and f"{by_hand / 1e9:.1f}e9" in DOCS
    assert activations.kept == pytest.approx(by_hand, rel=0.02)
    assert activations.weight_copies == pytest.approx(2 * (MATRICES + WORDS * H + PROJECTOR), rel=1e-3)


def test_operations_of_a_step(config):
    counted = model_flops(open_fake_model(config).objective.model).count(128, [LENGTH] * 128, 128 * SUPERVISED)
    tower = 2 * 577 * 23 * 12 * 1024**2 + 577**2 * 23 * 4 * 1024 + 576 * 2 * 3 * 14**2 * 1024
    by_hand = (
        128 * LENGTH * 6 * MATRICES
        + 128 * LENGTH * (LENGTH + 1) // 2 * 12 * H * BLOCKS
        + 128 * SUPERVISED * 6 * WORDS * H
        + 128 * tower
        + 128 * 576 * (4 * 1024 * H + 6 * H * H)
    )
    assert counted == by_hand
    assert f"{counted:.3e}".replace("e+", "e") in DOCS
    assert f"{counted * 5198 / (8 * 989e12 * 0.4) / 3600:.2f} hours" in DOCS


QLORA = (ROOT / "docs" / "guides" / "one_gpu.md").read_text()


@pytest.fixture(scope="module")
def qlora(config):
    """LoRA of rank 128 on every linear layer of a language model in 4 bits, one rank, 4 samples per forward."""
    lora = {"language_model": Rule(mode="lora", rank=128, dropout=0.0), "projectors": Rule()}
    distributed = DistributedConfig(activation_checkpointing={"language_model": "all"})
    return replace(
        config, quantize="nf4", trainable={**config.trainable, **lora}, distributed=distributed, micro_batch_size=4
    )


def qlora_by_hand():
    blocks = 32 * (4 * H * H + 3 * H * F) // 64
    scales = blocks + BLOCKS * (4 * 4 * H * H // 64 // 256 + 3 * 4 * H * F // 64 // 256)
    constants = BLOCKS * 7 * (256 * 4 + 4)
    return {
        "packed": MATRICES // 2,
        "scales": scales + constants,
        "head": 2 * WORDS * H,
        "words": 4 * WORDS * H,
        "norms": 4 * (2 * BLOCKS + 1) * H,
        "tower": 4 * FROZEN - 2 * ROUNDED,
        "trained": 4 * ADAPTED,
    }


RANK = 128
ADAPTED = BLOCKS * RANK * (4 * 2 * H + 3 * (H + F)) + PROJECTOR


def test_qlora_by_hand(qlora):
    """Model states with each optimizer; activations: a state per block is kept."""
    shapes = open_fake_model(qlora)
    parts = qlora_by_hand()
    for name, moments in (
        ("adamw", 8 * ADAPTED),
        ("adamw_8bit", 2 * ADAPTED + 8 * ADAPTED // 256),
        ("paged_adamw", 8 * ADAPTED),
    ):
        config = replace(qlora, optimizer=replace(qlora.optimizer, name=name))
        planned = plan_memory(config, shapes.objective, shapes.groups, 0, 1, Activations(0, 0, 0, 0))
        assert planned.parameters == sum(parts.values())
        assert (planned.gradients, planned.optimizer) == (4 * ADAPTED, moments)
        for figure in (*parts.values(), sum(parts.values()), 4 * ADAPTED, moments):
            assert f"{figure:,}" in QLORA, figure
    lengths = LengthIndex(*(np.full(4, value) for value in (LENGTH, SUPERVISED, 1, 1, 576, 576)))
    micro = PlannedMicroBatch(1, 0, [0, 1, 2, 3], [LENGTH] * 4, 4 * LENGTH, 4, 4, 4 * 576, 4 * SUPERVISED)
    with shapes.running():
        batch = fake_batch(micro, lengths, shapes.objective.collator)
        activations = measure_activations(shapes.objective, batch, 1, 1, bf16=True, zero_stage=0)
    assert activations.kept == pytest.approx(34 * 4 * H * 4 * LENGTH, rel=0.02)
    assert activations.weight_copies == 2 * ADAPTED
    assert activations.working > 2 * H * F  # the largest dequantized matrix
    total = sum(parts.values()) + 12 * ADAPTED + activations.total
    for figure in (activations.kept, activations.total, total):
        assert f"{figure / 1e9:.1f}e9" in QLORA
    assert total < 24 * 2**30
