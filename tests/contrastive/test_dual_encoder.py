"""The dual encoder: unit vectors that padding does not touch, saved and opened as they are."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mmchat.contrastive import DualEncoder, DualEncoderConfig, load_clip
from mmchat.contrastive.directory import init_clip, load_saved, save_clip
from mmchat.errors import UserError
from tests.conftest import CLIP_28

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def words(data_dir):
    return str(data_dir / "tokenizers" / "llama_like_legacy_false")


@pytest.fixture(scope="session", params=["pooled", "max"])
def saved(request, make_tower, words, tmp_path_factory):
    """(model in memory, its directory)"""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("clip") / request.param
    return init_clip(make_tower(seed=2), TEXT, words, 16, request.param, out), out


def test_saved_and_opened(saved, words, make_tower):
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
    with pytest.raises(UserError, match=r"holds a 'clip', expected a dual encoder \(mmchat_clip\); `mmchat clip conv"):
        load_saved(directory)


def test_saving_notices_a_corrupted_copy(saved, words, tmp_path, monkeypatch):
    model = saved[0]
    original = DualEncoder.save_pretrained

    def corrupt(self, directory, **how):
        original(self, directory, **how)
        weights = load_file(directory / "model.safetensors")
        weights["text_projection.weight"][0] *= 1.1
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(DualEncoder, "save_pretrained", corrupt)
    with pytest.raises(RuntimeError, match="differs from the one in memory"):
        save_clip(model, AutoTokenizer.from_pretrained(words), tmp_path / "out")
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
