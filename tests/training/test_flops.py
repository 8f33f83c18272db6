"""The analytic count of a step's operations against what torch counts while it runs one."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmchat.constants import IGNORE_INDEX
from mmchat.contrastive.dual_encoder import DualEncoder, DualEncoderConfig
from mmchat.data.collate import Batch
from mmchat.model.assembly import assemble
from mmchat.training.monitoring.flops import LANGUAGE_MODELS, causal_pairs, model_flops
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Rule
from mmchat.vision import TowerConfig, build_tower
from mmchat.vision.block_tower import BlockTower
from mmchat.vision.families import FAMILIES
from tests.conftest import CLIP_28, DATA
from tests.language_kinds import KINDS, SHAPE

FULL, FROZEN = Rule(), Rule(mode="frozen")
LORA = Rule(mode="lora", rank=4)
ALL_FULL = {"towers": FULL, "projectors": FULL, "language_model": FULL}
ALL_FROZEN = dict.fromkeys(ALL_FULL, FROZEN)

TABLES = {
    "everything": ALL_FULL,
    "projector only": {**ALL_FROZEN, "projectors": FULL},
    "tower frozen": {**ALL_FULL, "towers": FROZEN},
    "language model only": {**ALL_FROZEN, "language_model": FULL},
    "embeddings frozen": {**ALL_FROZEN, "language_model": FULL, "language_model.model.embed_tokens": FROZEN},
    "LM head only": {**ALL_FROZEN, "language_model.lm_head": FULL},
    "second block only": {**ALL_FROZEN, "language_model.model.layers.1": FULL},
    "LoRA everywhere": {"towers": LORA, "projectors": FULL, "language_model": LORA},
    "LoRA alone": {**ALL_FROZEN, "language_model": LORA},
    "LoRA in parts": {**ALL_FULL, "language_model": Rule(mode="lora", rank=3, targets=["q_proj", "down_proj"])},
}


BESIDES = {"conv_vit": {"stem_width": 8, "stem_depth": 2}, "siglip2": {"num_patches": 16}}
"""What a family needs to be tiny besides the values that all have."""


def batch_of(model, *samples, supervised=5):
    """Samples of (length, images), padded; the last positions of each are supervised."""
    longest = max(length for length, _ in samples)
    ids = torch.full((len(samples), longest), 3)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for row, (length, images) in enumerate(samples):
        ids[row, : images * model.image_tokens] = model.config.image_token_id
        mask[row, :length] = 1
        labels[row, length - supervised : length] = 7
    images = sum(images for _, images in samples)
    sides = [tower.spec.image_size for tower in model.towers]
    pixels = [torch.randn(images, 3, side, side) for side in sides] if images else None
    return Batch(ids, mask, labels, pixels, ids=[str(row) for row in range(len(samples))], images=images)


def with_features(model, batch):
    """The same with random features instead of pixels."""
    shapes = [(batch.images, tower.spec.tokens, tower.spec.dim) for tower in model.towers]
    return replace(batch, pixel_values=None, tower_features=list(map(torch.randn, shapes)))


def seen_by_torch(model, batch):
    """Operations of a real step on one sample. Eager attention is ordinary matrix products, which torch can count."""
    model.set_attn_implementation("eager")
    keep = F.pad(batch.labels[:, 1:] != IGNORE_INDEX, (0, 1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        images = {"pixel_values": batch.pixel_values, "tower_features": batch.tower_features}
        outputs = model(input_ids=batch.input_ids, **images, logits_to_keep=keep, use_cache=False)
        outputs.logits.logsumexp(-1).sum().backward()
    return counter.get_total_flops()


def expected_by_torch(model, batch):
    """Our count, and the pairs that a mask hides, which eager attention computes all the same."""
    counted, length = model_flops(model, towers_run=batch.tower_features is None), batch.tokens
    masked = sum(cost * (length**2 - causal_pairs(length, window)) for window, cost in counted.pair.items())
    return counted.of(batch) + masked


def test_dora_with_dropout_multiplies_the_frozen_weight_twice(make_assistant):
    """Once by the input and once by the dropped input, in the forward and for the gradient of the input."""
    counts = {}
    for name, rule in {
        "lora": Rule(mode="lora", rank=4, dropout=0.1, targets=["q_proj"]),
        "dora": Rule(mode="lora", rank=4, dropout=0.1, targets=["q_proj"], dora=True),
        "without dropout": Rule(mode="lora", rank=4, dropout=0.0, targets=["q_proj"], dora=True),
    }.items():
        model, _ = make_assistant()
        rules = {**ALL_FROZEN, "projectors": FULL, "language_model": rule}
        add_adapters(model, rules)
        apply_rules(model, rules)
        counts[name] = model_flops(model).token
    assert counts["without dropout"] == counts["lora"]
    assert counts["dora"] - counts["lora"] == 2 * (2 * 32 * 32) * 2  # two blocks of 32 -> 32, forward and backward


@pytest.mark.parametrize("table", TABLES)
def test_whatever_is_trained(make_assistant, table):
    model, _ = make_assistant()
    add_adapters(model, TABLES[table])
    apply_rules(model, TABLES[table])
    batch = batch_of(model, (24, 1))
    assert expected_by_torch(model, batch) == seen_by_torch(model, batch)


@pytest.mark.parametrize("table", ["tower frozen", "projector only"])
def test_features_that_are_read_cost_nothing(make_assistant, table):
    model, _ = make_assistant()
    apply_rules(model, TABLES[table])
    batch = batch_of(model, (40, 2))
    read = with_features(model, batch)
    assert expected_by_torch(model, read) == seen_by_torch(model, read) < seen_by_torch(model, batch)


@pytest.mark.parametrize("fusion", ["channels", "sequence"])
def test_two_towers_of_different_kinds(make_assistant, make_tower, fusion):
    size = {"image_size": 32, "patch_size": 8}
    conv = make_tower(family="conv_vit", layer=-1, backbone={**size, "stem_width": 8, "stem_depth": 2})
    model, _ = make_assistant("opt", [make_tower(layer=-2, backbone=size), conv], "pixel_shuffle", fusion)
    apply_rules(model, {**ALL_FULL, "towers.0": FROZEN})
    batch = batch_of(model, (100, 2))
    assert expected_by_torch(model, batch) == seen_by_torch(model, batch)


@pytest.mark.parametrize("kind", sorted(LANGUAGE_MODELS))
def test_every_kind_of_language_model(tmp_path, make_tower, kind):
    config = tmp_path / "language.json"
    config.write_text(json.dumps({"model_type": kind, **SHAPE, **KINDS[kind]}))
    words = str(DATA / "tokenizers" / "llama_like_legacy_false")
    model, _ = assemble(str(config), [make_tower(layer=-2)], "linear", "vicuna_v1", tokenizer=words)
    apply_rules(model, ALL_FULL)
    batch = batch_of(model.eval(), (24, 1))
    assert expected_by_torch(model, batch) == seen_by_torch(model, batch)
    windows = {"mistral": {8}, "qwen2": {8, None}}
    assert model_flops(model).pair.keys() == windows.get(kind, {None})


def test_a_padded_batch_costs_what_its_samples_cost_alone(make_assistant):
    model, _ = make_assistant("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1)
    apply_rules(model, ALL_FULL)
    samples = [(60, 2), (9, 0), (40, 1)]
    counted = model_flops(model)
    assert counted.of(batch_of(model, *samples)) == sum(counted.of(batch_of(model, one)) for one in samples)
    assert counted.of(Batch(torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), IGNORE_INDEX), None)) == 0


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (3, 7), (7, 7), (2, 1)])
def test_pairs_are_those_that_a_mask_shows(length, window):
    at = torch.arange(length)
    back = at[:, None] - at
    shown = (back >= 0) & (back < (window or length))
    assert causal_pairs(length, window) == shown.sum()


@pytest.mark.parametrize(("pool", "dropped"), [("max", 0.0), ("pooled", 0.0), ("pooled", 0.5)])
def test_dual_encoder(make_tower, pool, dropped):
    tower = make_tower(layer=-2)
    text = {**SHAPE, "vocab_size": 100, "max_position_embeddings": 32}
    model = DualEncoder(DualEncoderConfig([tower.config.to_dict()], text, 16, pool)).train()
    model.towers[0].patch_dropout = dropped
    model.set_attn_implementation("eager")
    apply_rules(model, dict.fromkeys([name for name, _ in model.named_children()] + ["logit_scale"], FULL))
    ids, mask = torch.full((1, 12), 3), torch.ones(1, 12, dtype=torch.int64)
    batch = Batch(ids, mask, torch.full_like(ids, IGNORE_INDEX), [torch.randn(1, 3, 28, 28)], ids=["a"])
    with FlopCounterMode(display=False) as counter:
        images, texts, scale = model(batch.pixel_values[0], ids, mask)
        (scale * (images * texts)).sum().backward()
    counted = model_flops(model)
    masked = counted.pair[None] * (12**2 - causal_pairs(12, None))
    assert counted.of(batch) + masked == counter.get_total_flops()


@pytest.mark.parametrize("family", sorted(name for name in FAMILIES if issubclass(FAMILIES[name], BlockTower)))
def test_every_family_of_blocks(make_assistant, family):
    known = FAMILIES[family].config_class().to_dict()
    shape = {**CLIP_28, "image_size": 32, "patch_size": 8}
    backbone = {key: value for key, value in shape.items() if key in known} | BESIDES.get(family, {})
    # Two layers side by side: the features are wider than the tower.
    tower = build_tower(TowerConfig(family, backbone, layer=(1, 2)))
    model, _ = make_assistant(towers=[tower])
    for table in (ALL_FULL, TABLES["projector only"], {**ALL_FROZEN, "towers": Rule(last=1)}):
        apply_rules(model, table)
        batch = batch_of(model, (24, 1))
        assert expected_by_torch(model, batch) == seen_by_torch(model, batch)


@pytest.mark.parametrize("table", ["everything", "projector only", "tower frozen", "language model only"])
@pytest.mark.parametrize("name", ["mlp3x_gelu", "pixel_shuffle_2d", "avg_pool2_mlp2x_gelu", "resampler9"])
def test_every_projector(make_assistant, name, table):
    model, _ = make_assistant(projector=name)
    apply_rules(model, TABLES[table])
    batch = batch_of(model, (24, 1))
    seen = seen_by_torch(model, batch)
    if name == "resampler9":  # its queries pass a matrix once a forward
        projection = model.projectors[0].q_proj.weight
        seen -= 2 * 9 * projection.numel() * (3 if projection.requires_grad else 1)
    assert expected_by_torch(model, batch) == seen


def test_what_is_not_known_is_not_guessed(make_assistant, make_tower):
    model, _ = make_assistant()
    model.config.text_config.model_type = "mixtral"
    assert model_flops(model) is None
    assert model_flops(torch.nn.Linear(2, 2)) is None
    model, _ = make_assistant(towers=[make_tower()])
    model.towers[0] = torch.nn.Identity()
    assert model_flops(model) is None


def test_shapes_do_not_come_from_parameters(make_assistant):
    """As ZeRO 3 leaves them."""
    model, _ = make_assistant()
    add_adapters(model, TABLES["LoRA everywhere"])
    apply_rules(model, TABLES["LoRA everywhere"])
    before = model_flops(model)
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    assert model_flops(model) == before


def test_the_rule_of_thumb(make_assistant, language_json):
    """6 operations a weight and token (Kaplan et al. 2020, arXiv:2001.08361), 2 of them forward."""
    model, _ = make_assistant()
    apply_rules(model, ALL_FULL)
    blocks = model.language_model.model.layers
    weights = sum(p.numel() for p in blocks.parameters() if p.ndim == 2)
    counted = model_flops(model)
    assert counted.token == 6 * weights
    assert counted.supervised == 6 * model.get_output_embeddings().weight.numel()
    assert (
        replace(counted, pair={}).of(batch_of(model, (20, 0), supervised=4))
        == 20 * 6 * weights + 4 * counted.supervised
    )
    assert counted.view > 6 * CLIP_28["hidden_size"] ** 2
