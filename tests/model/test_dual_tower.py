"""Vary's two towers, CLIP and the vision vocabulary, joined by `mmchat init`."""

import pytest
import torch

from mmchat.cli.main import main
from mmchat.model.directory import load_assistant, save_assistant

CLIP_SIZE, VARY_SIZE, SLOTS = 28, 256, 16


@pytest.fixture(scope="module")
def argv(language_json, data_dir):
    """Arguments of `mmchat init` for both towers, without the settings of each."""
    towers = ["--vision", data_dir / "clip_vit_tiny_hf4", "--vision", data_dir / "vary_sam_tiny" / "state.safetensors"]
    tokenizer = data_dir / "tokenizers" / "qwen_like"
    argv = ["init", "--language", language_json("qwen2"), "--tokenizer", tokenizer, *towers, "--template", "chatml"]
    return [str(argument) for argument in argv]


@pytest.fixture(scope="module")
def dual(argv, tmp_path_factory):
    out = tmp_path_factory.mktemp("dual") / "model"
    settings = ["--layer", "-2", "--layer", "-1", "--image-size", str(CLIP_SIZE), "--image-size", str(VARY_SIZE)]
    settings += ["--projector", "linear", "--projector", "mlp2x_gelu", "--out", str(out)]
    assert main(argv + settings) == 0
    return load_assistant(out)


def test_each_tower_has_its_own_preprocessing_and_projector(dual, make_image):
    model, processor = dual
    clip, vary = (tower.spec for tower in model.towers)
    assert (clip.image_size, clip.preprocessing.fit, clip.tokens) == (CLIP_SIZE, "shortest-edge-crop", SLOTS)
    assert (vary.image_size, vary.preprocessing.fit, vary.tokens) == (VARY_SIZE, "squash", SLOTS)
    assert [tower.config.layer for tower in model.towers] == [-2, -1]
    assert model.config.projectors == ["linear", "mlp2x_gelu"]
    assert model.image_tokens == processor.image_tokens == SLOTS
    pixels = processor.image_processor([make_image(), make_image(1, 9, 40)])["pixel_values"]
    assert [seen.shape for seen in pixels] == [(2, 3, CLIP_SIZE, CLIP_SIZE), (2, 3, VARY_SIZE, VARY_SIZE)]


def test_features_are_concatenated_and_both_towers_learn(dual, make_image):
    model, processor = dual
    messages = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "Noise."}]
    rendered = processor.render(messages)
    inputs = {"input_ids": torch.tensor([rendered.input_ids]), "labels": torch.tensor([rendered.labels])}
    pixels = processor.image_processor([make_image()])["pixel_values"]
    parts = [
        projector(tower(seen).patches)
        for projector, tower, seen in zip(model.projectors, model.towers, pixels, strict=True)
    ]
    assert torch.equal(model.get_image_features(pixels), torch.cat(parts, dim=-1))
    model(**inputs, pixel_values=pixels).loss.backward()
    idle = {id(parameter) for tower in model.towers for parameter in tower.idle_parameters()}
    for part in (*model.towers, *model.projectors):
        assert all(p.grad.abs().max() > 0 for p in part.parameters() if id(p) not in idle and p.numel() > 1)


def test_saved_and_opened_again(dual, make_image, tmp_path):
    model, processor = dual
    save_assistant(model, processor, tmp_path / "model")
    again, same = load_assistant(tmp_path / "model")
    assert same.image_processor.specs == processor.image_processor.specs
    pixels = processor.image_processor([make_image()])["pixel_values"]
    with torch.no_grad():
        assert torch.equal(again.get_image_features(pixels), model.get_image_features(pixels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--projector", "linear"] * 3,
            "--projector is given 3 times for 2 vision towers; give it once for all, or once",
        ),
        (["--layer", "-1"] * 3, "--layer is given 3 times for 2 vision towers"),
        ([], "must give equally many tokens, found [16, 4]"),  # of 28 and 128 pixels, as they come
    ],
)
def test_towers_that_cannot_be_joined(argv, tmp_path, capsys, settings, message):
    with pytest.raises(SystemExit, match="2"):
        main([*argv, *settings, "--out", str(tmp_path / "model")])
    assert message in capsys.readouterr().err
