"""Towers of transformer blocks give transformers' features: any layer, at any size, with their gradients."""

import json
from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from torch.nn.functional import unfold
from transformers import (
    CLIPVisionModel,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.training.optim.frozen_weights import ROUNDED_BY_AUTOCAST
from mmchat.vision import TowerConfig, build_tower, load_tower
from mmchat.vision.families import FAMILIES
from mmchat.vision.spec import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing

TOLERANCE = 2e-5
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
MLP = {"intermediate_size": 64}
DINO = {"layerscale_value": 0.7}
ORIGINALS = {
    "clip_vit": (CLIPVisionModel, {**TINY, **MLP, "projection_dim": 32}, "post_layernorm"),
    "siglip": (SiglipVisionModel, {**TINY, **MLP}, "post_layernorm"),
    "siglip2": (Siglip2VisionModel, {**TINY, **MLP, "num_patches": 16}, "post_layernorm"),
    "dinov2": (Dinov2Model, {**TINY, **DINO, "mlp_ratio": 2, "use_swiglu_ffn": True}, "layernorm"),
    "dinov2_with_registers": (Dinov2WithRegistersModel, {**TINY, **DINO, "mlp_ratio": 2}, "layernorm"),
    "dinov3_vit": (DINOv3ViTModel, {**TINY, **MLP, **DINO, "num_register_tokens": 2, "use_gated_mlp": True}, "norm"),
}
ORIGINALS["siglip2"][1].pop("image_size")
PREFIX = {"clip_vit": 1, "siglip": 0, "siglip2": 0, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 3}
BICUBIC_CALLS = {"clip_vit": {"interpolate_pos_encoding": True}, "siglip": {"interpolate_pos_encoding": True}}
SQUARES = {"siglip2": {"fit": "squash"}}
"""Settings that a tower needs to see them (tests/vision/test_native_aspect.py)."""
FAMILY = pytest.mark.parametrize("family", sorted(ORIGINALS))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """original(family): (a directory that transformers wrote, its model). No weight is at its first value."""
    made = {}

    def make(family):
        if family not in made:
            model_class, backbone, _ = ORIGINALS[family]
            model = model_class(model_class.config_class(**backbone)).eval()
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            directory = tmp_path_factory.mktemp(family)
            model.save_pretrained(directory)
            made[family] = (directory, model)
        return made[family]

    return make


def images(size=28):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


def run(family, model, pixels):
    """What transformers makes of squares, at their size."""
    if family != "siglip2":
        return model(pixels, output_hidden_states=True, **BICUBIC_CALLS.get(family, {}))
    patch, side = 7, pixels.shape[-1] // 7
    # unfold gives channel, row, column; this model wants row, column, channel.
    patches = unfold(pixels, patch, stride=patch).transpose(1, 2).unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
    return model(
        patches,
        torch.ones(patches.shape[:2], dtype=torch.long),
        torch.tensor([[side, side]] * len(pixels)),
        output_hidden_states=True,
    )


def expected_features(family, model, pixels, layer, class_token=False, final_norm=False):
    states = run(family, model, pixels).hidden_states
    norm = attrgetter(ORIGINALS[family][2])(model) if final_norm else torch.nn.Identity()
    kept = []
    for one in [layer] if isinstance(layer, int) else layer:
        state = norm(states[one])
        kept.append(torch.cat([state[:, : int(class_token)], state[:, PREFIX[family] :]], dim=1))
    return torch.cat(kept, dim=-1)


def assert_close(mine, theirs):
    torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@FAMILY
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("layer", [-4, -1, 2, (-1, 0, 1)])
def test_features(original, family, layer, final_norm):
    directory, model = original(family)
    for class_token in [False, True][: 1 + FAMILIES[family].class_tokens]:
        settings = {"layer": layer, "class_token": class_token, "final_norm": final_norm, **SQUARES.get(family, {})}
        tower = load_tower(directory, **settings).eval()
        patches = tower(images()).patches
        assert_close(patches, expected_features(family, model, images(), layer, class_token, final_norm))
        assert patches.shape == (2, tower.spec.tokens, tower.spec.dim)


@torch.no_grad()
@FAMILY
@pytest.mark.parametrize("size", [14, 49])
def test_another_size(original, family, size):
    directory, model = original(family)
    tower = load_tower(directory, image_size=size, **SQUARES.get(family, {})).eval()
    output = tower(images(size), pooled=True)
    expected = run(family, model, images(size))
    final_norm = family.startswith("dino")
    assert_close(output.patches, expected_features(family, model, images(size), -1, final_norm=final_norm))
    assert_close(output.pooled, expected.pooler_output)
    assert (tower.spec.image_size, tower.spec.tokens) == (size, (size // 7) ** 2)


@FAMILY
def test_sizes_that_the_patch_does_not_divide(original, family):
    directory, _ = original(family)
    with pytest.raises(UserError, match=r"40 is not a multiple of patch size 7; the nearest sizes are 35 and 42$"):
        load_tower(directory, image_size=40, **SQUARES.get(family, {}))
    with pytest.raises(UserError, match=r"image size 5 is not a multiple of patch size 7; the nearest size is 7$"):
        load_tower(directory, image_size=5, **SQUARES.get(family, {}))


@FAMILY
def test_gradients(original, family):
    directory, model = original(family)
    tower = load_tower(directory, layer=(1, -1), final_norm=True, **SQUARES.get(family, {}))
    (tower.train()(images()).patches.square().sum()).backward()
    model.zero_grad()
    expected_features(family, model, images(), (1, -1), final_norm=True).square().sum().backward()
    idle = {id(parameter) for parameter in tower.idle_parameters()}
    theirs = dict(model.named_parameters())
    for name, parameter in tower.backbone.named_parameters():
        if id(parameter) in idle:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)
    assert len(idle) < len(theirs) / 3


@torch.no_grad()
@FAMILY
def test_layers_that_are_kept_rounded(original, family):
    """A frozen tower's are in training; the features are those that autocast makes of the originals."""
    tower = load_tower(original(family)[0], **SQUARES.get(family, {})).eval()
    with torch.autocast("cpu", torch.bfloat16):
        before = tower(images()).patches
        for module in tower.modules():
            if type(module) in ROUNDED_BY_AUTOCAST:
                module.bfloat16()
        assert torch.equal(tower(images()).patches, before)


def test_a_siglip_may_have_no_head_or_a_margin():
    """Released at 384 pixels with patches of 14: 27 of them, and six pixels that nobody sees."""
    headless = {**ORIGINALS["siglip"][1], "vision_use_head": False, "image_size": 33}
    tower = build_tower(TowerConfig("siglip", headless)).eval()
    assert tower.spec.tokens == 16
    pixels = images(33)
    changed = pixels.clone()
    changed[:, :, 28:] = changed[:, :, :, 28:] = 9
    assert torch.equal(tower(pixels).patches, tower(changed).patches)
    with pytest.raises(ValueError, match="a siglip without a pooling head has no pooled output"):
        tower(pixels, pooled=True)


def test_towers_of_larger_models(tmp_path):
    vision, text = ORIGINALS["siglip"][1], {**TINY, **MLP, "vocab_size": 40}
    whole = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
    whole.save_pretrained(tmp_path / "siglip")
    classifier = Dinov2ForImageClassification(Dinov2Model.config_class(**ORIGINALS["dinov2"][1])).eval()
    classifier.save_pretrained(tmp_path / "dinov2")
    with torch.no_grad():
        siglip = load_tower(tmp_path / "siglip").eval()(images(), pooled=True).pooled
        assert_close(siglip, whole.vision_model(images()).pooler_output)
        dino = load_tower(tmp_path / "dinov2").eval()(images()).patches
        assert_close(dino, classifier.dinov2(images()).last_hidden_state[:, 1:])


def test_a_training_dinov3_sees_what_it_saw(original):
    """transformers would stretch its positions at random."""
    directory, model = original("dinov3_vit")
    tower = load_tower(directory)
    assert_close(tower.train()(images()).patches, tower.eval()(images()).patches)
    assert not torch.allclose(model.train()(images())[0], model.eval()(images())[0], atol=1e-3)


CLIP_SAYS = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}}
DINO_SAYS = {**CLIP_SAYS, "size": {"shortest_edge": 32}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
NULLS = dict.fromkeys(["crop_size", "do_center_crop", "do_convert_rgb"])
SAID = {
    "siglip": (
        {"size": {"height": 28, "width": 28}, "resample": 2, "image_mean": HALF, "image_std": HALF},
        Preprocessing(HALF, HALF, "bilinear", "squash"),
        28,
    ),
    "siglip2": ({"size": {"height": 35, "width": 35}}, Preprocessing(HALF, HALF, "bilinear", "squash"), 35),
    "dinov2": (DINO_SAYS, Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=28 / 32), 28),
    "dinov2_with_registers": (
        {"crop_size": 14, "size": 14},
        Preprocessing(IMAGENET_MEAN, IMAGENET_STD),
        14,
    ),
    "dinov3_vit": (
        {"size": {"height": 56, "width": 56}, **NULLS},
        Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "bilinear", "squash"),
        56,
    ),
    "clip_vit": ({**CLIP_SAYS, "do_center_crop": False, "size": 28}, Preprocessing(fit="squash"), 28),
}


def process(directory, values, name="preprocessor_config.json"):
    (directory / name).write_text(json.dumps(values))


@FAMILY
@pytest.mark.parametrize("nested", [False, True])
def test_what_the_image_processor_says(original, tmp_path, family, nested):
    directory, _ = original(family)
    for file in directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    said, preprocessing, size = SAID[family]
    if nested:  # as transformers 5 writes it, and reads it before the other
        process(tmp_path, {"image_processor": said, "processor_class": "Any"}, "processor_config.json")
        process(tmp_path, {"size": {"height": 7, "width": 7}, "do_center_crop": False})
    else:
        process(tmp_path, said)
    whole = load_tower(tmp_path)
    with torch.device("meta"):
        shape = load_tower(tmp_path, weights=False)
    for tower in (whole, shape):
        assert (tower.spec.preprocessing, tower.spec.image_size) == (preprocessing, size)
        assert tower.spec.tokens == (size // 7) ** 2
    assert load_tower(tmp_path, image_size=21).spec.image_size == 21


@pytest.mark.parametrize("family", ["clip_vit", "siglip"])
def test_an_image_processor_that_contradicts_the_network(original, tmp_path, family):
    for file in original(family)[0].iterdir():
        (tmp_path / file.name).symlink_to(file)
    process(tmp_path, {"do_center_crop": False, "size": {"height": 56, "width": 56}})
    with pytest.raises(UserError, match="takes images of 28 pixels, but its image processor makes 56"):
        load_tower(tmp_path)
    assert load_tower(tmp_path, image_size=28).spec.image_size == 28


@pytest.mark.parametrize(
    "said",
    [
        {"do_center_crop": False, "size": {"shortest_edge": 28}},
        {"do_center_crop": False, "size": {"height": 28, "width": 56}},
        {"do_center_crop": True, "size": {"height": 32, "width": 32}, "crop_size": 28},
        {"do_center_crop": True, "size": 28, "crop_size": {"height": 28, "width": 14}},
    ],
)
def test_an_image_processor_that_makes_no_squares(original, tmp_path, said):
    (tmp_path / "config.json").symlink_to(original("clip_vit")[0] / "config.json")
    process(tmp_path, said)
    with pytest.raises(UserError, match=r"preprocessor_config.json does not make square images"):
        load_tower(tmp_path, weights=False)


@FAMILY
def test_a_key_that_the_backbone_does_not_have(family):
    backbone = {**ORIGINALS[family][1], "hiden_size": 16}
    with pytest.raises(UserError, match=f"the backbone of a {family} has no 'hiden_size'; did you mean 'hidden_size'"):
        build_tower(TowerConfig(family, backbone))
    backbone = {**ORIGINALS[family][1], "hidden_size": "wide"}
    with pytest.raises(UserError, match=f"the backbone of a {family} is invalid: .*'hidden_size'.*expected int"):
        build_tower(TowerConfig(family, backbone))


def test_a_published_config_may_have_other_keys(original, tmp_path):
    """OpenAI's CLIP on the hub has those of transformers 4.21, with which it was written."""
    values = json.loads((original("clip_vit")[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "dropout": 0.0, "bad_words_ids": None}))
    backbone = load_tower(tmp_path, weights=False).config.backbone
    assert backbone["hidden_size"] == 32 and not {"dropout", "bad_words_ids"} & backbone.keys()


def test_num_patches_that_make_no_square():
    backbone = {**ORIGINALS["siglip2"][1], "num_patches": 17}
    with pytest.raises(UserError, match="num_patches is 17; expected a square number, such as 16"):
        build_tower(TowerConfig("siglip2", backbone))


@pytest.mark.parametrize("family", sorted(set(ORIGINALS) - {"clip_vit"}))
def test_init_with_a_tower_of_json(family, tmp_path, language_json, data_dir):
    config = TowerConfig(family, ORIGINALS[family][1], layer=(-2, -1), preprocessing=Preprocessing(HALF, HALF))
    (tmp_path / "tower.json").write_text(json.dumps(config.to_dict()))
    words = ["--language", language_json("llama"), "--vision", tmp_path / "tower.json", "--template", "vicuna_v1"]
    words += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false", "--out", tmp_path / "model"]
    main(["init", *map(str, words)])
    tower = load_tower(tmp_path / "model")
    assert replace(tower.config, backbone=config.backbone) == config
    assert (tower.spec.tokens, tower.spec.dim) == (16, 64)


WIDE = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "so400m": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304},
    "giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24},
}
RELEASED = {
    "siglip-base-patch16-224": ("siglip", {**WIDE["base"], "patch_size": 16}, 92_884_224, 196),
    "siglip-so400m-patch14-384": ("siglip", {**WIDE["so400m"], "patch_size": 14, "image_size": 384}, 428_225_600, 729),
    "siglip2-so400m-patch16-naflex": ("siglip2", WIDE["so400m"], 427_888_064, 256),
    "dinov2-base": ("dinov2", {**WIDE["base"], "image_size": 518}, 86_580_480, 1369),
    "dinov2-large": ("dinov2", {**WIDE["large"], "image_size": 518}, 304_368_640, 1369),
    "dinov2-giant": ("dinov2", {**WIDE["giant"], "image_size": 518, "use_swiglu_ffn": True}, 1_136_480_768, 1369),
}


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_parameters_of_released_shapes(name):
    family, backbone, parameters, tokens = RELEASED[name]
    with torch.device("meta"):
        tower = build_tower(TowerConfig(family, backbone))
    assert (sum(p.numel() for p in tower.parameters()), tower.spec.tokens) == (parameters, tokens)
