"""Frozen weights kept in bf16 change no bit of what is computed and come back as they were; and what is frozen costs no
backward."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from mmchat.errors import UserError
from mmchat.model.assembly import assemble
from mmchat.model.directory import save_assistant
from mmchat.training.optim.frozen_weights import restore_frozen, round_frozen
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Rule
from tests.conftest import DATA
from tests.language_kinds import KINDS, SHAPE

FULL, FROZEN = Rule(), Rule(mode="frozen")
LORA = Rule(mode="lora", rank=4, dropout=0.0)
PROJECTORS = {"towers": FROZEN, "projectors": FULL, "language_model": FROZEN}


@pytest.fixture
def assistant(tmp_path, make_tower):
    """assistant(kind, rules, tower=...): a saved one and its directory, with adapters as the rules say."""

    def make(kind, rules, **tower):
        config = tmp_path / "language.json"
        config.write_text(json.dumps({"model_type": kind, **SHAPE, **KINDS[kind]}))
        words = str(DATA / "tokenizers" / "llama_like_legacy_false")
        towers = [make_tower(layer=-2, **tower)]
        model, processor = assemble(str(config), towers, "mlp2x_gelu", "vicuna_v1", tokenizer=words)
        model.set_attn_implementation("eager")
        save_assistant(model, processor, tmp_path / "model")
        add_adapters(model, rules)
        apply_rules(model, rules)
        return model.train(), tmp_path / "model"

    return make


def step(model):
    """Loss and gradients in bf16 autocast for two padded rows, one with an image."""
    torch.manual_seed(0)  # of dropout, too
    ids = torch.randint(3, 100, (2, 24))
    ids[0, : model.image_tokens] = model.config.image_token_id
    side = model.towers[0].spec.image_size
    pixels = torch.randn(1, 3, side, side)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, pixel_values=pixels, labels=ids, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_bf16(model):
    return {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}


def frozen_matrices(model):
    """Those in the blocks of towers and language model."""
    in_block = re.compile(r"\.(layers|h)\.")
    named = model.named_parameters()
    return {name for name, p in named if p.ndim == 2 and in_block.search(name) and not p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_keep_every_bit(assistant, kind):
    model, directory = assistant(kind, PROJECTORS)
    before = step(model)
    round_frozen(model, directory)
    # Every matrix of the towers' blocks and of the language model's, but no norm, no embedding and nothing trained.
    rounded = in_bf16(model)
    assert frozen_matrices(model) <= rounded and "towers.0.backbone.embeddings.patch_embedding.weight" in rounded
    assert not any(word in name for name in rounded for word in ("norm", "ln_", "embed_", "wte", "wpe", "projectors"))
    after = step(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "rules",
    [
        {"towers": LORA, "projectors": FULL, "language_model": LORA},
        {**PROJECTORS, "language_model.model.layers.1": FULL},
        {**PROJECTORS, "language_model.model.layers.0.mlp": FULL, "towers.0.backbone.encoder.layers.0": FULL},
    ],
    ids=["LoRA", "a block", "parts of blocks"],
)
def test_so_they_do_beside_what_is_trained(assistant, rules):
    model, directory = assistant("llama", rules)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # an update of zero would hide what it is added to
            torch.nn.init.normal_(parameter, std=0.1)
    before = step(model)
    round_frozen(model, directory)
    assert frozen_matrices(model) <= in_bf16(model) and not in_bf16(model) & before.keys()
    after = step(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_layers_with_dora_stay_as_they_are(assistant):
    """Their norms are those of the exact weights."""
    dora = Rule(mode="lora", rank=4, dropout=0.0, dora=True, targets=["q_proj", "down_proj"])
    model, directory = assistant("llama", {**PROJECTORS, "language_model": dora})
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    before = step(model)
    round_frozen(model, directory)
    after = step(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    exact = frozen_matrices(model) - in_bf16(model)
    assert {name.split(".")[-3] for name in exact} == {"q_proj", "down_proj"} and len(exact) == 4


def test_a_tower_with_a_stem_of_convolutions(assistant):
    backbone = {"image_size": 32, "patch_size": 8, "stem_width": 8, "stem_depth": 2}
    model, directory = assistant("llama", PROJECTORS, family="conv_vit", backbone=backbone)
    before = step(model)
    round_frozen(model, directory)
    assert any("patch_embedding.layers" in name for name in in_bf16(model))
    after = step(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("language_model", [FROZEN, LORA], ids=["frozen", "LoRA"])
def test_the_originals_come_back(assistant, kind, language_model):
    model, directory = assistant(kind, {**PROJECTORS, "language_model": language_model})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    round_frozen(model, directory)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    restore_frozen(model, directory)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("change", ["gone", "others"])
def test_originals_that_are_no_longer_there_are_missed(assistant, change):
    model, directory = assistant("llama", PROJECTORS)
    round_frozen(model, directory)
    path = directory / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    if change == "others":
        save_file(weights | {"language_model.lm_head.weight": weights["language_model.lm_head.weight"] + 1}, path)
    with pytest.raises(UserError, match=r"no longer holds the frozen weights .* language_model.lm_head.weight and"):
        restore_frozen(model, directory)


def test_a_weight_that_the_directory_does_not_have_by_its_name_stays(assistant):
    model, directory = assistant("llama", PROJECTORS)
    model.language_model.model.layers[1].mlp.other = torch.nn.Linear(2, 2).requires_grad_(False)
    round_frozen(model, directory)
    assert not any("other" in name for name in in_bf16(model))


def test_a_head_that_is_tied_to_an_embedding_stays(assistant):
    model, directory = assistant("llama", PROJECTORS)
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    head.weight = words.weight
    round_frozen(model, directory)
    assert in_bf16(model) and words.weight.dtype == torch.float32


def test_nothing_goes_back_below_the_first_trained_tensor_or_into_a_frozen_weight(assistant):
    """The last of two blocks is trained: its backward takes twice its forward, the head's once, all else none."""
    model, _ = assistant("llama", {**PROJECTORS, "projectors": FROZEN, "language_model.model.layers.1": FULL})
    below = []
    for part in (*model.towers, *model.projectors, model.language_model.model.layers[0]):
        part.register_forward_hook(lambda *call: below.append(call[-1]))
    pixels = torch.randn(1, 3, 28, 28)
    ids = torch.full((1, 24), 7)
    ids[0, : model.image_tokens] = model.config.image_token_id
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    with backward:
        logits.sum().backward()
    patches, features, hidden = below
    assert not any(tensor.requires_grad for tensor in (patches.patches, features, hidden))
    took = {name.partition(".")[2]: sum(counts.values()) for name, counts in forward.get_flop_counts().items()}
    block, head = took["language_model.model.layers.1"], took["language_model.lm_head"]
    assert backward.get_total_flops() == 2 * block + head
