"""Towers: equal to transformers' own, opened strictly, and never running more than they must."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from mmchat.contrastive import DualEncoder, DualEncoderConfig
from mmchat.errors import UserError
from mmchat.vision import TowerConfig, TowerSpec, build_tower, load_tower
from mmchat.vision.spec import Preprocessing

TOLERANCE = 2e-5


@pytest.fixture(scope="session")
def oracle(data_dir):
    return data_dir / "clip_vit_tiny_hf4"


@pytest.fixture(scope="session")
def theirs(oracle):
    model = CLIPVisionModel.from_pretrained(oracle).eval()
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return pixels, model(pixels, output_hidden_states=True)


@pytest.fixture
def copy(oracle, tmp_path):
    return shutil.copytree(oracle, tmp_path / "tower")


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layer", [-5, -2, -1, 0, 3, 4])
def test_patches_are_the_hidden_state(oracle, theirs, layer, class_token):
    pixels, expected = theirs
    tower = load_tower(oracle, layer=layer, class_token=class_token).eval()
    with torch.no_grad():
        patches = tower(pixels).patches
    torch.testing.assert_close(
        patches, expected.hidden_states[layer][:, 0 if class_token else 1 :], atol=TOLERANCE, rtol=0
    )
    assert patches.shape[1:] == (tower.spec.tokens, tower.spec.dim)


@pytest.mark.parametrize("layer", [-2, -1])
def test_pooled_output(oracle, theirs, layer):
    pixels, expected = theirs
    tower = load_tower(oracle, layer=layer).eval()
    with torch.no_grad():
        assert tower(pixels).pooled is None
        output = tower(pixels, pooled=True)
    torch.testing.assert_close(output.pooled, expected.pooler_output, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.patches, expected.hidden_states[layer][:, 1:], atol=TOLERANCE, rtol=0)


def test_blocks_above_the_layer_do_not_run(oracle, theirs):
    tower = load_tower(oracle, layer=-2)
    ran = []
    for number, block in enumerate(tower.backbone.encoder.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    tower(theirs[0])
    assert ran == [0, 1, 2]
    idle = {id(parameter) for parameter in tower.idle_parameters()}
    tower(theirs[0]).patches.sum().backward()
    without = {id(p) for p in tower.parameters() if p.grad is None}
    assert without == idle


def test_settings_come_from_the_directory(copy):
    tower = load_tower(copy, layer=-2)
    assert tower.spec == TowerSpec(28, 7, 16, 64, Preprocessing())
    assert (tower.config.family, tower.config.layer) == ("clip_vit", -2)
    values = {"do_center_crop": False, "resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 1]}
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    assert load_tower(copy).spec.preprocessing == Preprocessing((0.5, 0.4, 0.3), (1, 1, 1), "bilinear", "squash")
    (copy / "preprocessor_config.json").unlink()
    assert load_tower(copy).spec.preprocessing == Preprocessing()


def test_a_missing_weight_is_named(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["vision_model.encoder.layers.2.mlp.fc1.bias"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: encoder\.layers\.2\.mlp\.fc1\.bias$"):
        load_tower(copy)


def test_a_left_over_weight_is_named(copy):
    weights = load_file(copy / "model.safetensors")
    weights["vision_model.encoder.layers.9.mlp.fc1.bias"] = torch.zeros(3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"left over: .*layers\.9\.mlp\.fc1\.bias$"):
        load_tower(copy)


def test_a_weight_of_another_shape_is_a_user_error(copy):
    weights = load_file(copy / "model.safetensors")
    weights["vision_model.post_layernorm.weight"] = torch.zeros(3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="post_layernorm"):
        load_tower(copy)


def test_weights_that_are_absent_or_cut_off(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"the weights in .* are damaged or cut off: "):
        load_tower(copy)
    path.unlink()
    with pytest.raises(UserError, match=r"holds no weights; expected model\.safetensors or pytorch_model\.bin"):
        load_tower(copy)


def test_tower_of_a_whole_clip(tmp_path, make_tower):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**text, "vocab_size": 50}, vision_config=make_tower().config.backbone)
    clip = CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    tower = load_tower(tmp_path, layer=-2).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = clip.vision_model(pixels, output_hidden_states=True)
        output = tower(pixels, pooled=True)
    torch.testing.assert_close(output.patches, expected.hidden_states[-2][:, 1:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.pooled, expected.pooler_output, atol=TOLERANCE, rtol=0)


def test_tower_of_an_assistant(assistant_dir, make_image):
    from mmchat.model.directory import load_assistant

    assistant, processor = load_assistant(assistant_dir)
    tower = load_tower(assistant_dir).eval()
    assert tower.config == assistant.towers[0].config
    pixels = processor.image_processor([make_image()])["pixel_values"]
    with torch.no_grad():
        assert torch.equal(tower(pixels).patches, assistant.towers[0](pixels).patches)
    assert load_tower(assistant_dir, layer=1).config.layer == 1


def test_tower_of_a_dual_encoder(tmp_path, make_tower):
    tower = make_tower(seed=3)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = DualEncoder(DualEncoderConfig([tower.config.to_dict()], {**text, "vocab_size": 50}, 16))
    clip.towers[0] = tower
    clip.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(load_tower(tmp_path).eval()(pixels).patches, tower(pixels).patches)
    # Both ways to be incomplete.
    weights = load_file(tmp_path / "model.safetensors")
    moved = weights.pop("towers.0.backbone.pre_layrnorm.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit its config: missing: backbone\.pre_layrnorm\.bias$"):
        load_tower(tmp_path)
    extra = {"towers.0.backbone.pre_layrnorm.bias": moved, "towers.0.backbone.stray": moved.clone()}
    save_file(weights | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit its config: left over: backbone\.stray$"):
        load_tower(tmp_path)


def test_bad_geometry_and_layer(make_tower):
    with pytest.raises(UserError, match="30 is not a multiple of patch size 7; the nearest sizes are 28 and 35"):
        make_tower(backbone={"image_size": 30})
    with pytest.raises(UserError, match=r"feature layer -5 does not exist in a tower of 3 blocks; expected -4 to 3"):
        make_tower(layer=-5)
    with pytest.raises(UserError, match="feature layer 4 does not exist"):
        make_tower(layer=4)


def test_unknown_sources(tmp_path):
    with pytest.raises(UserError, match="'no/such/dir': no such directory"):
        load_tower("no/such/dir")
    with pytest.raises(UserError, match=r"no vision tower of a known format: it has 0 tensors"):
        load_tower(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UserError,
        match=r"no vision tower of a known format: it has config\.json of model_type 'bert'; expected one of: mmchat",
    ):
        load_tower(tmp_path)
    with pytest.raises(UserError, match="family 'vit' is unknown; known: clip_resnet, clip_vit, "):
        build_tower(TowerConfig("vit", {}))


def test_configs_survive_json(make_tower, tmp_path):
    odd = Preprocessing(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), resample="bilinear", fit="pad")
    tower = make_tower(layer=-2, class_token=True, preprocessing=odd)
    written = json.loads(json.dumps(tower.config.to_dict()))
    assert TowerConfig.from_dict(written) == tower.config
    assert TowerSpec.from_dict(json.loads(json.dumps(tower.spec.to_dict()))) == tower.spec
    path = tmp_path / "tower.json"
    path.write_text(json.dumps(written))
    assert load_tower(path).config == tower.config
    assert load_tower(path, layer=1).config == replace(tower.config, layer=1)


@pytest.mark.parametrize("blocks", [0, 2])
def test_conv_vit(make_tower, blocks):
    stem = {"patch_size": 4, "stem_width": 8, "stem_depth": 3, "num_hidden_layers": blocks}
    tower = make_tower(family="conv_vit", backbone=stem, layer=-1)
    pixels = torch.randn(2, 3, 28, 28)
    output = tower(pixels, pooled=True)
    assert (tower.spec.tokens, tower.spec.dim) == (49, 32)
    assert output.patches.shape == (2, 49, 32)
    assert output.pooled.shape == (2, 32)
    stem = tower.backbone.embeddings.patch_embedding
    assert sum(isinstance(m, torch.nn.Conv2d) and m.out_channels == 32 for m in stem.layers) == 3
    output.patches.square().sum().backward()
    assert all(p.grad is not None for p in stem.parameters())
    with pytest.raises(UserError, match=r"patch size that is a power of two and a hidden size .* found 7 and 32"):
        make_tower(family="conv_vit", backbone={"patch_size": 7, "stem_width": 8, "stem_depth": 2})
    with pytest.raises(UserError, match="backbone needs stem_depth, stem_width"):
        make_tower(family="conv_vit", backbone={"patch_size": 4})


def test_conv_vit_with_two_layers_side_by_side(make_tower):
    stem = {"patch_size": 4, "stem_width": 8, "stem_depth": 1}
    tower = make_tower(family="conv_vit", backbone=stem, layer=(1, -1))
    assert tower(torch.randn(1, 3, 28, 28)).patches.shape == (1, tower.spec.tokens, tower.spec.dim) == (1, 49, 64)
