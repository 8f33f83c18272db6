"""Directories of CLIP as they are published: torch's files alone, shards, open_clip's weights beside transformers'."""

import json
import logging
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from mmchat.cli.main import main
from mmchat.contrastive import load_clip
from mmchat.errors import UserError
from mmchat.vision import load_tower

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 60}
TEXT |= {"bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 59, "max_position_embeddings": 12}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 4}
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(directory, features of the last hidden state) of a whole CLIP, with the key that version 4 also saved."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=20)).eval()
    directory = tmp_path_factory.mktemp("clip")
    model.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors") | {"vision_model.embeddings.position_ids": torch.arange(17)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        return directory, model.vision_model(PIXELS).last_hidden_state[:, 1:]


@pytest.fixture
def copy(clip, tmp_path):
    return shutil.copytree(clip[0], tmp_path / "clip")


def pickled_alone(directory, shards=1):
    """Replace model.safetensors by what torch.save writes: one file, or shards with their index."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    if shards == 1:
        torch.save(weights, directory / "pytorch_model.bin")
        return directory
    names = [f"pytorch_model-{number:05d}-of-{shards:05d}.bin" for number in range(1, shards + 1)]
    place = {key: names[number % shards] for number, key in enumerate(weights)}
    for name in names:
        torch.save({key: weights[key] for key in weights if place[key] == name}, directory / name)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    return directory


@torch.no_grad()
def assert_is_the_clip(directory, clip):
    """The tower gives the original's features, and the dual encoder has the original's weights."""
    torch.testing.assert_close(load_tower(directory).eval()(PIXELS).patches, clip[1], atol=2e-5, rtol=0)
    expected = load_clip(clip[0]).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load_clip(directory).state_dict().items())


@pytest.mark.parametrize("shards", [1, 2])
def test_files_of_torch_alone(copy, clip, shards):
    pickled_alone(copy, shards)
    # Trainers and stage 1 of LLaVA write such files to the directory of the weights.
    torch.save({"model.mm_projector.weight": torch.zeros(2)}, copy / "mm_projector.bin")
    assert_is_the_clip(copy, clip)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_trainers_write_beside_the_weights_is_not_read(copy, clip, kind):
    if kind == "bin":
        pickled_alone(copy)
    else:
        save_file({"stray": torch.zeros(2)}, copy / "stray.safetensors")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        torch.save({"code": shutil.copytree}, copy / name)
    assert_is_the_clip(copy, clip)


def test_a_tower_of_version_4_in_a_file_of_torch(data_dir, tmp_path):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    source = data_dir / "clip_vit_tiny_hf4"
    alone = pickled_alone(shutil.copytree(source, tmp_path / "tower"))
    with torch.no_grad():
        found, expected = (load_tower(one, layer=-2).eval()(pixels).patches for one in (alone, source))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("theirs", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("ours", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_open_clip_beside_those_of_transformers(copy, clip, ours, theirs):
    if ours.endswith(".bin"):
        pickled_alone(copy)
    strays = {"visual.conv1.weight": torch.zeros(24, 3, 4, 4), "logit_scale": torch.zeros(())}
    save = save_file if theirs.endswith(".safetensors") else torch.save
    save(strays, copy / theirs)
    (copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 20}}))
    assert_is_the_clip(copy, clip)


def test_code_in_a_file_of_torch_is_not_run(copy):
    pickled_alone(copy)
    torch.save({"model": torch.nn.Linear(2, 2)}, copy / "pytorch_model.bin")
    for load in (load_tower, load_clip):
        with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be opened as plain tensors"):
            load(copy)


def test_shards_that_are_not_there_are_named(copy):
    pickled_alone(copy, shards=2)
    (copy / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"names files that are not beside it: pytorch_model-00002-of-00002\.bin;"):
        load_tower(copy)
    (copy.parent / "outside.bin").write_bytes((copy / "pytorch_model-00001-of-00002.bin").read_bytes())
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "../outside.bin"}}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"not beside it: \.\./outside\.bin;"):
        load_tower(copy)


def test_a_weight_that_a_file_of_torch_lacks_is_named(copy):
    pickled_alone(copy)
    weights = torch.load(copy / "pytorch_model.bin", weights_only=True)
    del weights["vision_model.encoder.layers.1.mlp.fc1.bias"], weights["text_model.final_layer_norm.bias"]
    torch.save(weights | {"stray": torch.zeros(1)}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.1\.mlp\.fc1\.bias; left over: stray$"):
        load_tower(copy)


def test_transformers_reports_nothing_about_other_parts(clip, caplog, monkeypatch):
    """A library of others is used here: its logger does not reach pytest's handler by itself."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    load_tower(clip[0])
    load_clip(clip[0])
    assert [record.message for record in caplog.records if record.name.startswith("transformers")] == []


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_hub_gives_the_files_that_are_read(copy, clip, tmp_path, monkeypatch, kind):
    """A stand-in for the hub hands out what the patterns ask for."""
    if kind == "torch":
        pickled_alone(copy)
    for name in ("tf_model.h5", "training_args.bin", "open_clip_pytorch_model.bin"):
        (copy / name).write_bytes(b"not read")
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(name, revision, allow_patterns):
        assert name == "openai/clip"
        for pattern in allow_patterns:
            for file in copy.glob(pattern):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_is_the_clip("openai/clip", clip)
    weights = "pytorch_model.bin" if kind == "torch" else "model.safetensors"
    assert sorted(file.name for file in cache.iterdir()) == ["config.json", weights]


def test_init_takes_a_tower_in_a_file_of_torch(copy, language_json, data_dir, tmp_path):
    pickled_alone(copy)
    words = ["init", "--language", language_json("llama"), "--vision", copy, "--out", tmp_path / "out"]
    words += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false"]
    main([str(word) for word in words])
    tower = load_tower(copy).state_dict()
    assert all(torch.equal(tensor, tower[key]) for key, tensor in load_tower(tmp_path / "out").state_dict().items())
