"""Projectors: parity with other implementations, shapes, and slots counted without weights."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Idefics3Config, InternVLConfig, LlavaConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mmchat.errors import UserError
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.model.projectors import PROJECTORS, projector_kind, slots_per_image, slots_per_tower
from mmchat.model.projectors.positions import SCALE, Positions2D
from mmchat.vision import TowerSpec

SPEC = TowerSpec(image_size=32, patch_size=8, tokens=16, dim=12)
NAMES = {
    "linear": 16,
    "mlp1x_gelu": 16,
    "mlp2x_gelu": 16,
    "mlp3x_gelu": 16,
    "pixel_shuffle": 4,
    "pixel_shuffle_2d": 4,
    "pixel_shuffle4_linear": 1,
    "avg_pool2_mlp2x_gelu": 4,
    "avg_pool4_mlp2x_gelu": 1,
    "resampler9": 9,
    "resampler25": 25,
}


def build(name, spec=SPEC, out_dim=20):
    torch.manual_seed(0)
    return projector_kind(name).build(spec, out_dim)


def test_every_kind_is_tested():
    tested = {type(projector_kind(name)) for name in NAMES}
    assert len(PROJECTORS) == 7 and len(tested) == 6  # two with one kind of pixel shuffle


@pytest.mark.parametrize("name", NAMES)
def test_shapes_agree_with_slots_and_all_weights_get_gradients(name):
    projector = build(name)
    features = torch.randn(3, SPEC.tokens, SPEC.dim, requires_grad=True)
    out = projector(features)
    assert out.shape == (3, slots_per_tower([SPEC], [name])[0], 20) == (3, NAMES[name], 20)
    out.square().sum().backward()
    # A bias that all keys share changes no attention, up to rounding.
    learning = {key for key, p in projector.named_parameters() if p.grad.abs().max() > 1e-6}
    assert learning == {key for key, _ in projector.named_parameters() if key != "k_proj.bias"}
    assert (features.grad.abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_images_are_independent(name):
    projector, features = build(name), torch.randn(3, SPEC.tokens, SPEC.dim)
    alone = torch.cat([projector(one[None]) for one in features])
    torch.testing.assert_close(projector(features), alone)


def test_mlp_matches_llava():
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 12, "num_attention_heads": 2},
        text_config={"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2},
    )
    theirs, ours = LlavaMultiModalProjector(config), build("mlp2x_gelu")
    state = theirs.state_dict()
    ours.load_state_dict({key.replace("linear_1", "0").replace("linear_2", "2"): state[key] for key in state})
    features = torch.randn(2, 16, 12)
    assert torch.equal(ours(features), theirs(features))


def test_pixel_shuffle_matches_internvl():
    config = InternVLConfig(
        vision_config={"hidden_size": 12, "num_attention_heads": 2},
        text_config={"model_type": "qwen2", "hidden_size": 20, "num_attention_heads": 2},
    )
    theirs, ours = InternVLMultiModalProjector(config), build("pixel_shuffle")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    # Names of the original's `mlp1`, which are those of ours but for the shuffle in front.
    original = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
    state = {key.partition(".") for key in theirs.state_dict()}
    found = {f"{int(original[name]) + 1}.{kind}": theirs.state_dict()[f"{name}.{kind}"] for name, _, kind in state}
    ours.load_state_dict(found)
    features = torch.randn(2, 16, 12)
    shuffled = InternVLModel.pixel_shuffle(SimpleNamespace(), features.view(2, 4, 4, 12))
    assert torch.equal(ours(features), theirs(shuffled.reshape(2, 4, 48)))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixel_shuffle_and_one_matrix_match_idefics3(factor):
    text = {"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2}
    config = Idefics3Config(vision_config={"hidden_size": 12}, text_config=text, scale_factor=factor)
    theirs, ours = Idefics3Connector(config), build(f"pixel_shuffle{factor}_linear")
    ours[1].weight = theirs.modality_projection.proj.weight
    features = torch.randn(2, 16, 12)
    assert torch.equal(ours(features), theirs(features))


def test_average_pooling_by_hand():
    projector = build("avg_pool2_mlp2x_gelu")
    features = torch.randn(2, 16, 12)
    grid = features.view(2, 4, 4, 12)
    means = [grid[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for y in (0, 2) for x in (0, 2)]
    torch.testing.assert_close(projector(features), projector[1:](torch.stack(means, dim=1)))


def test_resampler_is_attention_from_queries_to_patches():
    """Compared with torch's multi-head attention with the same weights."""
    spec, out_dim = TowerSpec(32, 8, 16, 12), 192  # heads of gcd(192, 128) = 64
    ours = build("resampler9", spec, out_dim)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = nn.MultiheadAttention(out_dim, 3, batch_first=True)
    projections = [ours.q_proj, ours.k_proj, ours.v_proj]
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.weight for layer in projections]),
            "in_proj_bias": torch.cat([layer.bias for layer in projections]),
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    features = torch.randn(2, 16, 12)
    patches = F.layer_norm(features @ ours.enter.weight.T, (192,), ours.patch_norm.weight, ours.patch_norm.bias)
    queries = F.layer_norm(ours.queries, (192,), ours.query_norm.weight, ours.query_norm.bias)
    seen, _ = theirs(queries.expand(2, -1, -1), patches + ours.patch_positions.places, patches)
    expected = F.layer_norm(seen, (192,), ours.out_norm.weight, ours.out_norm.bias) @ ours.leave.weight.T
    torch.testing.assert_close(ours(features), expected, atol=1e-5, rtol=0)


def test_positions_encode_column_and_row_and_are_learned():
    side, dim = 4, 16
    positions = Positions2D(side, dim)
    places = positions(torch.zeros(2, side * side, dim))[1].detach().view(side, side, dim)
    for y in range(side):
        for x in range(side):
            for channel in range(dim // 4):
                rate = math.pi / 2 / side ** (channel / (dim // 4 - 1))
                expected = [math.sin(x * rate), math.cos(x * rate), math.sin(y * rate), math.cos(y * rate)]
                found = places[y, x, channel :: dim // 4] / SCALE
                assert found.tolist() == pytest.approx(expected, abs=1e-6)
    features = torch.randn(2, side * side, dim)
    positions(features).sum().backward()
    assert (positions.places.grad == 2).all()


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [
        *(
            ("pixel_shuffle", tokens, f"square of patches whose side is a multiple of 2 .*; found {tokens} features")
            for tokens in (9, 17, 8)
        ),
        ("pixel_shuffle3_linear", 16, "square of patches whose side is a multiple of 3 .*; found 16 features"),
        ("avg_pool3_mlp2x_gelu", 16, "average pooling by 3 needs a square .* side is a multiple of 3 and no class tok"),
        ("resampler4", 17, "the resampler needs a square of patches and no class token; found 17 features"),
        ("resampler60", 16, "resampler60: .* 60 is not a square number; the nearest are resampler49 and resampler64"),
        ("mlp0x_gelu", 16, r"'mlp0x_gelu' is unknown; known: .*, resampler\{n\}, where \{n\} is 1 or more"),
        ("mlp2x_gelu3", 16, "is unknown"),
    ],
)
def test_towers_that_do_not_fit_are_refused(name, tokens, message):
    with pytest.raises(UserError, match=message):
        slots_per_tower([TowerSpec(32, 8, tokens, 12)], [name])


def test_a_hidden_size_that_positions_cannot_have():
    with pytest.raises(UserError, match="multiple of 4, found 18"):
        build("resampler4", out_dim=18)


def test_slots_of_several_towers():
    specs = [TowerSpec(32, 8, 16, 12), TowerSpec(64, 8, 64, 5)]
    assert slots_per_image(specs, ["linear", "pixel_shuffle"], "channels") == 16
    assert slots_per_image(specs, ["linear", "resampler16"], "channels") == 16
    assert slots_per_image(specs, ["linear", "linear"], "sequence") == 80
    with pytest.raises(UserError, match=r"equally many tokens, found \[16, 64\]; use fusion sequence"):
        slots_per_image(specs, ["linear", "linear"], "channels")


@pytest.mark.parametrize("name", ["mlp3x_gelu", "avg_pool2_mlp2x_gelu", "resampler9"])
def test_a_model_with_each_projector_is_saved_and_loaded(make_assistant, tmp_path, name):
    model, processor = make_assistant(projector=name)
    save_assistant(model, processor, tmp_path / "model")  # which compares logits
    read, _ = load_assistant(tmp_path / "model")
    assert read.image_tokens == processor.image_tokens == NAMES[name]
    written = model.projectors.state_dict()
    assert all(torch.equal(tensor, written[key]) for key, tensor in read.projectors.state_dict().items())
