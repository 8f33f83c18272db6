"""The dual encoder: unit vectors that padding does not touch, saved and opened as they are."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel

from mmchat.contrastive import DualEncoder, DualEncoderConfig, load_clip
from mmchat.contrastive.directory import init_clip, load_clip_directory, open_text_encoder, save_clip
from mmchat.errors import UserError
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Rule
from mmchat.vision import TowerConfig, build_tower
from tests.conftest import CLIP_28
from tests.training_fixtures import run_values

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def tokenizer_dir(data_dir):
    return str(data_dir / "tokenizers" / "llama_like_legacy_false")


@pytest.fixture(scope="session", params=["pooled", "max"])
def saved(request, make_tower, tokenizer_dir, tmp_path_factory):
    """(model in memory, its directory)"""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("clip") / request.param
    return init_clip(make_tower(seed=2), TEXT, tokenizer_dir, 16, request.param, out), out


def test_saved_and_opened(saved, tokenizer_dir, make_tower):
    model, directory = saved
    reloaded = load_clip(directory)
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(3, 90, (2, 6))
    with torch.no_grad():
        for mine, again in zip(
            model.eval()(pixels, ids, torch.ones_like(ids)),
            reloaded.eval()(pixels, ids, torch.ones_like(ids)),
            strict=True,
        ):
            assert torch.equal(mine, again)
    # The tower is the one that was given, and the special ids are the tokenizer's.
    tower = make_tower(seed=2)
    assert torch.equal(reloaded.towers[0](pixels).patches, tower(pixels).patches)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert reloaded.config.text_config.eos_token_id == tokenizer.eos_token_id
    assert reloaded.config.text_config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    "tower",
    [
        {"family": "clip_resnet", "backbone": {"layers": [1, 1, 1, 1], "width": 4, "image_size": 32, "output_dim": 24}},
        {"family": "clip_vit", "backbone": {**CLIP_28, "image_size": 35}, "layer": (-2, -1)},
    ],
    ids=["clip_resnet", "two layers"],
)
@pytest.mark.parametrize("pool", ["max", "pooled"])
def test_pooled_output_of_another_width_than_the_patches(tower, pool):
    model = DualEncoder(DualEncoderConfig([tower], {**TEXT, "vocab_size": 50}, 16, pool))
    spec = model.towers[0].spec
    assert spec.dim != model.towers[0].pooled_dim
    vectors = model.encode_image(torch.randn(2, 3, spec.image_size, spec.image_size))
    assert vectors.shape == (2, 16)


def test_opened_strictly(saved, tmp_path):
    directory = shutil.copytree(saved[1], tmp_path / "copy")
    weights = load_file(directory / "model.safetensors")
    scale = weights.pop("logit_scale")
    for change, text in (({}, "missing: logit_scale"), ({"logit_scale": scale, "stray": scale.clone()}, "stray")):
        save_file(weights | change, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"do not fit its config.*{text}"):
            load_clip(directory)
    (directory / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(
        UserError, match=r"holds a model of type 'clip', expected a dual encoder \(mmchat_clip\); `mmchat clip conv"
    ):
        load_clip_directory(directory)


def test_saving_notices_a_corrupted_copy(saved, tokenizer_dir, tmp_path, monkeypatch):
    model = saved[0]
    original = DualEncoder.save_pretrained

    def corrupt(self, directory, **how):
        original(self, directory, **how)
        weights = load_file(directory / "model.safetensors")
        weights["text_projection.weight"][0] *= 1.1
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(DualEncoder, "save_pretrained", corrupt)
    with pytest.raises(RuntimeError, match="differs from the one in memory"):
        save_clip(model, AutoTokenizer.from_pretrained(tokenizer_dir), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_text_ignores_padding(saved):
    model = saved[0].eval()
    rows = [[1, 20, 30, 2], [1, 40, 50, 60, 70, 2], [1, 2]]
    length = 9
    # Padding ids of every size, so that none is mistaken for an end.
    for pad in (0, 2, 90):
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        vectors = model.encode_text(ids, mask)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        for row, vector in zip(rows, vectors, strict=True):
            alone = model.encode_text(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0]
            torch.testing.assert_close(vector, alone, atol=1e-6, rtol=0)
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


@torch.no_grad()
def test_pools(make_tower):
    tower = make_tower()
    text = {**TEXT, "vocab_size": 50}
    pixels = torch.randn(2, 3, 28, 28)
    for pool in ("pooled", "max"):
        model = DualEncoder(DualEncoderConfig([tower.config.to_dict()], text, 16, pool)).eval()
        model.towers[0] = tower
        seen = tower(pixels, pooled=True)
        summary = seen.pooled if pool == "pooled" else model.image_norm(seen.patches).max(dim=1).values
        expected = torch.nn.functional.normalize(model.image_projection(summary), dim=-1)
        torch.testing.assert_close(model.encode_image(pixels), expected)
    with pytest.raises(UserError, match="pool 'mean' is unknown; expected one of pooled, max"):
        DualEncoderConfig(pool="mean")


def test_the_scale_stops_at_a_hundred(saved):
    model = saved[0]
    inputs = torch.randn(1, 3, 28, 28), torch.tensor([[1, 5, 2]]), torch.ones(1, 3, dtype=torch.long)
    assert model(*inputs)[2].item() == pytest.approx(1 / 0.07)
    before = model.logit_scale.data.clone()
    model.logit_scale.data.fill_(9.0)
    assert model(*inputs)[2].item() == pytest.approx(100)
    model.logit_scale.data.copy_(before)


# Text encoders of others


def dual(make_tower, text, **settings):
    torch.manual_seed(1)
    return DualEncoder(DualEncoderConfig([make_tower().config.to_dict()], text, 16, **settings))


BERT = {"model_type": "bert", **TEXT, "vocab_size": 50, "max_position_embeddings": 20}


@torch.no_grad()
@pytest.mark.parametrize("text_pool", ["first", "last", "mean"])
def test_text_pools(make_tower, text_pool):
    model = dual(make_tower, BERT, text_pool=text_pool).eval()
    ids, mask = torch.randint(3, 50, (2, 7)), torch.tensor([[1] * 4 + [0] * 3, [1] * 7])
    hidden = model.text_encoder(ids, mask).last_hidden_state
    token_rows = [hidden[0, :4], hidden[1]]
    pooled = {"first": lambda row: row[0], "last": lambda row: row[-1], "mean": lambda row: row.mean(dim=0)}[text_pool]
    expected = model.text_projection(torch.stack([pooled(row) for row in token_rows]))
    torch.testing.assert_close(model.encode_text(ids, mask), torch.nn.functional.normalize(expected, dim=-1))
    assert model.config.context_length == 20


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (BERT, {"text_pool": "padded"}, r"'padded' needs SigLIP's text encoder and its head, found 'bert'"),
        (BERT, {"text_pool": "end"}, r"text_pool 'end' is unknown; expected one of last, first, mean, padded"),
        (
            BERT,
            {"text_projection": False},
            r"projection_dim 16 must equal the pooled width, which is 32",
        ),
        ({"model_type": "t5"}, {}, r"a t5 has a decoder; a dual encoder takes text encoders only"),
        ({"model_type": "none such"}, {}, r"transformers knows no model_type 'none such'; expected a text encoder"),
    ],
)
def test_what_makes_no_dual_encoder(make_tower, text, settings, message):
    with pytest.raises(UserError, match=message):
        dual(make_tower, text, **settings)


def test_a_pretrained_text_encoder_keeps_its_weights(make_tower, tokenizer_dir, tmp_path):
    torch.manual_seed(3)
    theirs = BertModel(BertConfig(**{**BERT, "vocab_size": 1604, "model_type": "bert"}))
    theirs.save_pretrained(tmp_path / "bert")
    arguments = make_tower(), open_text_encoder(str(tmp_path / "bert")), tokenizer_dir, 16, "max"
    made = init_clip(*arguments, tmp_path / "clip", text_pool="mean", sigmoid=True, context_length=9)
    opened = load_clip(tmp_path / "clip")
    for name, tensor in opened.text_encoder.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])
    # Its own pooler is not used and would get no gradient.
    assert opened.text_encoder.pooler is None
    assert (opened.config.context_length, opened.config.text_pool) == (9, "mean")
    assert opened.logit_bias.item() == -10 and opened.logit_scale.exp().item() == pytest.approx(10)
    *_, scale, bias = made(torch.randn(1, 3, 28, 28), torch.tensor([[1, 5, 2]]), torch.ones(1, 3).long())
    assert (scale.item(), bias.item()) == (pytest.approx(10), -10)


# What is trained


def trained(model):
    """Every parameter that `apply_rules` trains where the table says full."""
    rules = {name.partition(".")[0]: Rule() for name, _ in model.named_parameters()}
    apply_rules(model, rules)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


SIGLIP_28 = {"family": "siglip", "backbone": {key: CLIP_28[key] for key in CLIP_28 if key != "projection_dim"}}
RESNET = {"family": "clip_resnet", "backbone": {"layers": [1, 1, 1, 1], "width": 4, "image_size": 32, "output_dim": 24}}


@pytest.mark.parametrize("pool", ["pooled", "max"])
@pytest.mark.parametrize(
    "tower",
    [{"family": "clip_vit", "backbone": CLIP_28, "layer": -2}, {**SIGLIP_28, "final_norm": True}, SIGLIP_28, RESNET],
    ids=["clip_vit", "normed siglip", "siglip", "clip_resnet"],
)
def test_exactly_what_gets_a_gradient_is_trained(tower, pool):
    """Of a tower whose pooled output is used, what follows the feature layer is not idle."""
    torch.manual_seed(0)
    tower = {**tower, "layer": tower.get("layer", 3)}
    model = DualEncoder(DualEncoderConfig([tower], {**BERT, "num_hidden_layers": 1}, 16, pool))
    expected = trained(model)
    size = model.towers[0].spec.image_size
    images, texts, scale = model(torch.randn(2, 3, size, size), torch.tensor([[1, 5, 2]] * 2), torch.ones(2, 3).long())
    (scale * images @ texts.T)[0, 1].backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == expected


def test_the_last_blocks_of_a_tower_that_pools(make_tower):
    model = dual(make_tower, BERT)
    model.towers[0] = make_tower(layer=-2)
    parts = ["text_encoder", "image_projection", "text_projection", "logit_scale"]
    apply_rules(model, {"towers": Rule(last=1), **dict.fromkeys(parts, Rule())})
    names = {name for name, p in model.towers[0].backbone.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0] for name in names} >= {"post_layernorm", "encoder.layers.2.mlp.fc1"}
    assert all(name.startswith(("post_layernorm.", "encoder.layers.2.")) for name in names)


def test_a_locked_tower(make_tower):
    """LiT (arXiv:2111.07991): the table says frozen, and nothing of the tower is trained, the rest is."""
    model = dual(make_tower, BERT)
    rules = {name: Rule() for name in ("text_encoder", "image_projection", "text_projection", "logit_scale")}
    apply_rules(model, {"towers": Rule(mode="frozen"), **rules})
    images, texts, scale = model(torch.randn(2, 3, 28, 28), torch.tensor([[1, 5, 2]] * 2), torch.ones(2, 3).long())
    (scale * images @ texts.T)[0, 1].backward()
    assert all(parameter.grad is None for parameter in model.towers.parameters())
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "towers" not in name)


@pytest.mark.parametrize("family", ["sam", "siglip"])
def test_a_tower_without_a_pooled_output(family, tokenizer_dir, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    more = {"sam": {"output_channels": 8, "global_attn_indexes": [0]}, "siglip": {"vision_use_head": False}}[family]
    tower = build_tower(TowerConfig(family, {**sizes, **more}))
    with pytest.raises(UserError, match=f"a {family} has no pooled output"):
        init_clip(tower, TEXT, tokenizer_dir, 16, "pooled", tmp_path / "clip")
    init_clip(tower, TEXT, tokenizer_dir, 16, "max", tmp_path / "clip")


# Patch dropout


def test_patch_dropout(make_tower):
    tower = make_tower().train()
    seen = []
    tower.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    pixels = torch.randn(2, 3, 28, 28)
    tower(pixels)
    tower.patch_dropout = 0.75
    tower(pixels), tower(pixels)
    tower.eval()(pixels)
    whole, some, others, evaluated = seen
    assert [one.shape[1] for one in seen] == [17, 5, 5, 17] and torch.equal(whole, evaluated)
    # The class token stays; the patches are a new random subset of the image's own, with their positions.
    assert torch.equal(some[:, 0], whole[:, 0])
    found = [(some[row, 1:, None] == whole[row, None, 1:]).all(dim=-1).nonzero()[:, 1] for row in (0, 1)]
    assert [len(set(one.tolist())) for one in found] == [4, 4]
    assert not torch.equal(some, others) and not torch.equal(*found)


def test_patch_dropout_and_checkpointing_of_a_run(saved, tmp_path):
    values = run_values(tmp_path, saved[1], tmp_path, distributed={"activation_checkpointing": ["text_encoder"]})
    parts = ("towers", "text_encoder", "image_norm", "image_projection", "text_projection", "logit_scale")
    values |= {"objective": {"kind": "contrastive", "patch_dropout": 0.5}, "trainable": dict.fromkeys(parts, "full")}
    model = build_model(validate(RunConfig, values, "run.yaml")).objective.model
    assert model.towers[0].patch_dropout == 0.5
    assert model.text_encoder.is_gradient_checkpointing and not model.towers[0].backbone.is_gradient_checkpointing
    with pytest.raises(UserError, match="objective assistant has no text_encoder"):
        validate(RunConfig, values | {"objective": "assistant"}, "run.yaml")
    values["objective"]["kind"] = "assistant"
    with pytest.raises(
        UserError, match=r"'objective\.patch_dropout' belongs to kinds contrastive, simclr, classify, but"
    ):
        validate(RunConfig, values, "run.yaml")
