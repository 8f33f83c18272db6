"""`last` in a trainability table: only a tower's last blocks are trained, whole or by LoRA."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from mmchat.errors import UserError
from mmchat.model.directory import comparison_logits, load_assistant, save_assistant
from mmchat.model.lora_adapter import load_adapter, merge, save_adapter
from mmchat.training.monitoring.gradient_watch import GradientWatch
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Trainable
from mmchat.training.optim.trainable_table import render_table

REST = {"projectors": "frozen", "language_model": "frozen"}
BLOCK = "towers.0.backbone.encoder.layers."


def adapt(model, **rules):
    rules = TypeAdapter(Trainable).validate_python({**REST, **rules})
    return add_adapters(model, rules), apply_rules(model, rules)


def trained_blocks(model):
    """Of which parts of tower 0 anything is trained; all else must be frozen."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {name.removeprefix(BLOCK)[0] if name.startswith(BLOCK) else name for name in trained}


def step(model, processor):
    inputs = processor.comparison_inputs()
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()


@pytest.mark.parametrize(
    ("layer", "last", "blocks"),
    [(-2, 1, {"1"}), (-2, 2, {"0", "1"}), (-1, 1, {"2"}), ((0, -2), 1, {"1"}), ((-1, 1), 2, {"1", "2"})],
)
def test_the_last_blocks_that_run(make_assistant, make_tower, layer, last, blocks):
    model, processor = make_assistant(towers=[make_tower(layer=layer)])
    _, groups = adapt(model, towers={"last": last})
    assert trained_blocks(model) == blocks
    watch = GradientWatch(groups)
    step(model, processor)
    assert watch.finish() == []


def test_the_norm_after_them_where_it_is_used(make_assistant, make_tower):
    model, processor = make_assistant(towers=[make_tower(layer=-1, final_norm=True)])
    _, groups = adapt(model, towers={"last": 1})
    norm = {f"towers.0.backbone.post_layernorm.{kind}" for kind in ("weight", "bias")}
    assert trained_blocks(model) == {"2", *norm}
    watch = GradientWatch(groups)
    step(model, processor)
    assert watch.finish() == []


def test_longer_names_win(make_assistant, make_tower):
    model, _ = make_assistant(towers=[make_tower(layer=-1), make_tower(seed=1, layer=-1)])
    positions = "towers.0.backbone.embeddings.position_embedding"
    adapt(model, **{"towers": {"last": 2}, "towers.1": "frozen", positions: "full"})
    assert trained_blocks(model) == {"1", "2", f"{positions}.weight"}


def test_the_table_counts_them(make_assistant):
    model, _ = make_assistant()
    _, groups = adapt(model, towers={"mode": "lora", "rank": 3, "last": 1})
    console = Console(width=140, record=True)
    console.print(render_table(groups, 1e-3, 0.1, "somewhere"))
    (row,) = (line for line in console.export_text().splitlines() if line.startswith("towers "))
    added = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert "lora r3 a6, last 1" in row and f" {added:,} " in row
    assert trained_blocks(model) == {"1"} and added == 3 * (4 * (32 + 32) + 2 * (32 + 64))


def test_lora_in_a_tower_from_the_table_to_the_merged_model(make_assistant, tmp_path):
    model, processor = make_assistant()
    save_assistant(model, processor, tmp_path / "base")
    adapter, groups = adapt(model, towers={"mode": "lora", "rank": 2, "last": 1, "dropout": 0})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    watch = GradientWatch(groups)
    for _ in range(3):
        step(model, processor)
        assert {name for name, p in model.named_parameters() if p.grad is not None} == set(groups[2].trained)
        optimizer.step()
        optimizer.zero_grad()
    assert watch.finish() == [] and groups[2].name == "towers"
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(groups[2].trained) and all(f"{BLOCK}1." in name for name in changed)
    save_adapter(adapter, processor, tmp_path / "adapter", tmp_path / "base")
    adapted = comparison_logits(adapter.eval(), processor)
    base = load_assistant(tmp_path / "base")[0]
    assert (comparison_logits(base, processor) - adapted).abs().max() > 1e-2
    merged, _ = merge(*load_adapter(tmp_path / "adapter"))
    torch.testing.assert_close(comparison_logits(merged, processor), adapted, rtol=0, atol=1e-4)
    old, new = base.state_dict(), merged.state_dict()
    updated = {f"{name.partition('.lora_')[0]}.weight" for name in changed}
    assert {name for name in old if not torch.equal(old[name], new[name])} == updated


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize(
    ("name", "last", "message"),
    [
        ("towers", 3, r"towers cannot train the last 3 blocks of towers\.0: up to its feature layer it has 2"),
        ("language_model", 1, "language_model covers no vision tower; `last` counts blocks of towers only"),
        ("towers.0.backbone", 1, "towers.0.backbone covers no vision tower"),
    ],
)
def test_what_has_no_such_blocks_is_refused(make_assistant, mode, name, last, message):
    with pytest.raises(UserError, match=message):
        adapt(make_assistant()[0], **{"towers": "frozen", name: {"mode": mode, "last": last}})


@pytest.mark.parametrize(
    ("rule", "message"), [({"mode": "frozen", "last": 2}, "but the mode is frozen"), ({"last": 0}, "greater than 0")]
)
def test_rules_that_contradict_themselves(rule, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Trainable).validate_python({"towers": rule})
