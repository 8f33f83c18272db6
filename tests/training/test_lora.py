"""LoRA rules of the trainability table: which layers they adapt, what is counted, what gets a gradient."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from peft.tuners.lora import LoraLayer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from mmchat.errors import UserError
from mmchat.training.config import OptimizerConfig
from mmchat.training.monitoring.gradient_watch import GradientWatch
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.optimizer import build_optimizer
from mmchat.training.optim.param_groups import apply_rules, optimizer_groups
from mmchat.training.optim.trainable import Trainable
from mmchat.training.optim.trainable_table import render_table

ROOT = Path(__file__).parents[2]
BLOCK = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapt(model, **rules):
    rules = TypeAdapter(Trainable).validate_python({"towers": "frozen", "projectors": "full", **rules})
    return add_adapters(model, rules), apply_rules(model, rules)


def adapted_layers(model, groups):
    """Names of the layers that have an update, each of which is trained."""
    found = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    trained = {name for group in groups for name in group.trained if ".lora_" in name}
    assert {name.partition(".lora_")[0] for name in trained} == found and len(trained) == 2 * len(found)
    return found


def inputs_of(processor):
    inputs = processor.comparison_inputs()
    return {**inputs, "labels": inputs["input_ids"]}


def test_null_targets_are_all_linear_layers_but_the_head(make_assistant):
    model, _ = make_assistant()
    model_class = type(model)
    _, groups = adapt(model, language_model={"mode": "lora", "rank": 2})
    layers = [f"language_model.model.layers.{i}." for i in range(2)]
    found = adapted_layers(model, groups)
    assert {name.rpartition(".")[2] for name in found} == BLOCK
    assert len(found) == len(BLOCK) * 2 and all(name.startswith(tuple(layers)) for name in found)
    assert type(model) is model_class


def test_named_targets_a_tied_head_and_longer_rules(make_assistant):
    model, _ = make_assistant("opt")  # whose head is tied to the words
    rules = {
        "language_model": {"mode": "lora", "rank": 2, "targets": ["q_proj", "self_attn.v_proj"]},
        "language_model.model.decoder.layers.0": "frozen",
        "language_model.model.decoder.embed_tokens": "full",
    }
    _, groups = adapt(model, **rules)
    block = "language_model.model.decoder.layers.1.self_attn"
    assert adapted_layers(model, groups) == {f"{block}.q_proj", f"{block}.v_proj"}
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.requires_grad


def test_a_tower_is_adapted_where_a_forward_goes(make_assistant):
    model, _ = make_assistant()
    _, groups = adapt(model, towers={"mode": "lora", "rank": 4, "dropout": 0}, language_model="frozen")
    found = adapted_layers(model, groups)
    # Feature layer -2 of three blocks: the last one is idle.
    assert {name.split(".layers.")[1][0] for name in found} == {"0", "1"}
    assert {name.rpartition(".")[2] for name in found} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_counts_in_the_table(make_assistant):
    model, _ = make_assistant()
    whole = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    rule = {"mode": "lora", "rank": 4, "alpha": 6, "targets": ["q_proj", "v_proj"]}
    _, groups = adapt(model, language_model=rule)
    console = Console(width=140, record=True)
    console.print(render_table(groups, 1e-3, 0.1, "somewhere"))
    rows = [line for line in console.export_text().splitlines() if "language_model" in line]
    added = 2 * (4 * (32 + 32) + 4 * (32 + 16))  # two blocks; q: 32 -> 32, v: 32 -> 16
    assert "lora r4 a6" in rows[0]
    assert f" {added:,} " in rows[0] and f" {whole['language_model']:,} " in rows[0]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == added + whole["projectors"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"language_model": {"mode": "lora", "targets": ["q_porj"]}},
            "no linear layer 'q_porj' to adapt; there are: q_p",
        ),
        ({"language_model": {"mode": "lora", "targets": ["q_proj", "lm_head"]}}, "no linear layer 'lm_head' to adapt"),
        ({"language_model": {"mode": "lora", "targets": ["proj"]}}, "no linear layer 'proj' to adapt"),
        ({"language_model": "frozen", "language_model.lm_head": "lora"}, "language_model.lm_head has no linear layer"),
        ({"langauge_model": "lora"}, "no module 'langauge_model'; the nearest is 'language_model', top level: towers"),
        (
            {"language_model": {"mode": "lora", "dropout": 0.1}, "towers": "lora"},
            "the lora rules have dropout 0.05 and 0.1; PEFT has one",
        ),
        (
            {"language_model": {"mode": "lora", "dora": True}, "towers": "lora"},
            "the lora rules have dora false and true; PEFT has one dora per adapter",
        ),
        (
            {"language_model": {"mode": "lora", "rslora": True}, "towers": "lora"},
            "the lora rules have rslora false and true; PEFT has one",
        ),
    ],
)
def test_mistakes_say_what_there_is(make_assistant, rules, message):
    with pytest.raises(UserError, match=message):
        adapt(make_assistant()[0], **rules)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"mode": "full", "rank": 4}, "rank belong to mode lora, but the mode is full"),
        ({"rank": 4, "targets": ["q_proj"]}, "rank, targets belong to mode lora"),
        ({"mode": "full", "dora": True, "lora_plus_ratio": 4}, "dora, lora_plus_ratio belong to mode lora"),
        ({"mode": "frozen", "rslora": True}, "rslora belong to mode lora, but the mode is frozen"),
        ({"mode": "lora", "lora_plus_ratio": 0}, "greater than 0"),
        ({"mode": "lora", "rank": 0}, "greater than 0"),
        ({"mode": "lora", "targets": []}, "at least 1 item"),
        ({"mode": "lora", "dropout": 1}, "less than 1"),
        ({"mode": "lora", "rnak": 4}, r"rnak\n  Unexpected keyword argument"),
        ("lore", "'frozen', 'full' or 'lora'"),
    ],
)
def test_rules_that_contradict_themselves(rule, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Trainable).validate_python({"language_model": rule})


def test_defaults_and_shapes_of_several_rules(make_assistant):
    model, _ = make_assistant()
    adapter, _ = adapt(model, language_model="lora", towers={"mode": "lora", "rank": 3, "alpha": 9})
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {(m.r["default"], m.scaling["default"]) for n, m in layers.items() if n.startswith("lang")} == {(128, 2.0)}
    assert {(m.r["default"], m.scaling["default"]) for n, m in layers.items() if n.startswith("tow")} == {(3, 3.0)}
    assert adapter.peft_config["default"].lora_dropout == 0.05


def test_dora_trains_a_norm_per_output_and_changes_nothing_at_first(make_assistant):
    """W scaled to norm m per output, where m is |W| at first (Liu et al. 2024, equation 5)."""
    model, processor = make_assistant()
    before = model(**processor.comparison_inputs()).logits
    rule = {"mode": "lora", "rank": 2, "dora": True, "targets": ["q_proj", "fc1"]}
    _, groups = adapt(model, language_model=rule | {"targets": ["q_proj"]}, towers=rule | {"targets": ["fc1"]})
    trained = {name: p for group in groups for name, p in group.trained.items() if "magnitude" in name}
    assert len(trained) == 2 + 2 and all(p.requires_grad and p.ndim == 1 for p in trained.values())
    name = "language_model.model.layers.0.self_attn.q_proj"
    norms = trained[f"{name}.lora_magnitude_vector.default.weight"]
    torch.testing.assert_close(norms, model.get_submodule(name).get_base_layer().weight.norm(dim=1))
    torch.testing.assert_close(model.eval()(**processor.comparison_inputs()).logits, before, rtol=0, atol=1e-5)
    console = Console(width=140, record=True)
    console.print(render_table(groups, 1e-3, 0.1, "somewhere"))
    assert "dora r2 a4" in console.export_text()


def test_rslora_scales_by_the_root_of_the_rank(make_assistant):
    model, _ = make_assistant()
    rules = {"language_model": {"mode": "lora", "rank": 16, "alpha": 8, "rslora": True, "targets": ["q_proj"]}}
    rules["towers"] = {"mode": "lora", "rank": 4, "alpha": 8, "rslora": True}
    adapter, _ = adapt(model, **rules)
    assert model.language_model.model.layers[0].self_attn.q_proj.scaling["default"] == 8 / 4
    assert model.towers[0].backbone.encoder.layers[0].mlp.fc1.scaling["default"] == 8 / 2
    assert adapter.peft_config["default"].use_rslora


def test_lora_plus_gives_the_second_factors_their_own_rate(make_assistant):
    rule = {"mode": "lora", "rank": 2, "lr": 5e-3, "lora_plus_ratio": 16, "dora": True, "targets": ["q_proj"]}
    model, _ = make_assistant()
    _, groups = adapt(model, language_model=rule)
    names = {id(p): name for name, p in model.named_parameters()}
    told = [
        (g["lr"], g["weight_decay"], {names[id(p)].rpartition(".default")[0].rpartition(".")[2] for p in g["params"]})
        for g in optimizer_groups(groups, 1e-3, 0.1)
        if g["name"] == "language_model"
    ]
    assert told == [
        (5e-3, 0.1, {"lora_A"}),
        (5e-3, 0.0, {"lora_magnitude_vector"}),
        (pytest.approx(8e-2), 0.1, {"lora_B"}),
    ]
    console = Console(width=140, record=True)
    console.print(render_table(groups, 1e-3, 0.1, "somewhere"))
    assert "dora r2 a4, B x16" in console.export_text()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("variant", [{}, {"dora": True, "rslora": True, "lora_plus_ratio": 4}], ids=["lora", "dora"])
def test_three_steps_move_adapters_and_projector_and_nothing_else(make_assistant, optimizer, variant):
    model, processor = make_assistant()
    rule = {"mode": "lora", "rank": 2, **variant}
    rules = {"language_model": {**rule, "lr": 5e-3}, "towers": rule}
    _, groups = adapt(model, **rules)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    watch = GradientWatch(groups)
    stepper = build_optimizer(model, groups, OptimizerConfig(name=optimizer, lr=1e-3, weight_decay=0.1))
    for _ in range(3):
        model.train()(**inputs_of(processor)).loss.backward()
        stepper.step()
        stepper.zero_grad()
    assert watch.finish() == []
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for group in groups for name in group.trained}
    assert all(".lora_" in name or name.startswith("projectors.") for name in changed)
    if optimizer == "muon":  # the projector's matrices only
        assert sum(len(group["params"]) for group in stepper.parts["muon"].param_groups) == 2


def test_groups_for_the_optimizer(make_assistant):
    rule = {"mode": "lora", "rank": 2, "lr": 5e-3, "weight_decay": 0.0}
    _, groups = adapt(make_assistant()[0], language_model=rule)
    found = optimizer_groups(groups, 1e-3, 0.1)
    told = [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in found]
    assert told == [("projectors", 1e-3, 0.1, 2), ("projectors", 1e-3, 0.0, 2), ("language_model", 5e-3, 0.0, 28)]


def test_an_untrained_adapter_changes_nothing(make_assistant):
    model, processor = make_assistant()
    before = model(**processor.comparison_inputs()).logits
    adapt(model, language_model="lora", towers="lora")
    torch.testing.assert_close(model.eval()(**processor.comparison_inputs()).logits, before, rtol=0, atol=0)


def test_the_table_in_the_docs_works(make_assistant):
    text = (ROOT / "docs" / "guides" / "lora.md").read_text()
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    model, _ = make_assistant()
    _, groups = adapt(model, **shown["trainable"])
    assert {name.rpartition(".")[2] for name in adapted_layers(model, groups)} == {"q_proj", "v_proj"}
    rates = {group["name"]: group["lr"] for group in optimizer_groups(groups, 1.0, 0.0)}
    assert rates == {"language_model": 2e-4, "projectors": 2e-5}
