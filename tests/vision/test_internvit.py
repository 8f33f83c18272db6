"""InternViT: in OpenGVLab's layout and in transformers', both shapes, equal to what the originals compute."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, interpolate
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, InternVLVisionModel

from mmchat.errors import UserError
from mmchat.vision import TowerConfig, build_tower, load_tower
from mmchat.vision.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests.conftest import LANGUAGE

TOLERANCE = {"atol": 2e-5, "rtol": 0}
SQUASH = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, fit="squash")

TINY_6B = {
    "hidden_size": 40,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "image_size": 28,
    "patch_size": 7,
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "qkv_bias": False,
    "qk_normalization": True,
}
TINY_HF = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": [28, 28],
    "patch_size": [7, 7],
}


@pytest.fixture
def original(data_dir, tmp_path):
    return shutil.copytree(data_dir / "internvit_tiny", tmp_path / "internvit")


def write(directory, config, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def random_6b(seed=0):
    """A state in OpenGVLab's layout, whose weights are spread wide enough for every part to be seen in the output."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden, patch = TINY_6B["hidden_size"], TINY_6B["intermediate_size"], TINY_6B["patch_size"]
    shapes = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, 17, width),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
    }
    for number in range(TINY_6B["num_hidden_layers"]):
        block = {
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (hidden, width),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden),
            "mlp.fc2.bias": (width,),
        }
        block |= dict.fromkeys(
            ("norm1.weight", "norm2.weight", "ls1", "ls2", "attn.q_norm.weight", "attn.k_norm.weight"), (width,)
        )
        shapes |= {f"encoder.layers.{number}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape, generator=generator) * 0.3 + 0.1 for name, shape in shapes.items()}


def reference_6b(state, pixels, positions=None):
    """Hidden states of InternViT-6B by its description (arXiv:2312.14238) and its layout, head by head."""

    def rms(x, weight):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight

    width, heads = TINY_6B["hidden_size"], TINY_6B["num_attention_heads"]
    each, patch = width // heads, TINY_6B["patch_size"]
    flat = state["embeddings.patch_embedding.weight"].reshape(width, -1)
    rows = []
    for top in range(0, pixels.shape[2], patch):
        for left in range(0, pixels.shape[3], patch):
            square = pixels[:, :, top : top + patch, left : left + patch].flatten(1)
            rows.append(square @ flat.T + state["embeddings.patch_embedding.bias"])
    first = state["embeddings.class_embedding"][0].expand(len(pixels), -1)
    x = torch.stack([first, *rows], dim=1)
    x = x + (state["embeddings.position_embedding"] if positions is None else positions)
    states = [x]
    for number in range(TINY_6B["num_hidden_layers"]):
        block = {
            name.removeprefix(f"encoder.layers.{number}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"encoder.layers.{number}.")
        }
        qkv = rms(x, block["norm1.weight"]) @ block["attn.qkv.weight"].T
        q, k, v = qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]
        q, k = rms(q, block["attn.q_norm.weight"]), rms(k, block["attn.k_norm.weight"])
        mixed = []
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            scores = q[..., own] @ k[..., own].transpose(1, 2) / each**0.5
            mixed.append(scores.softmax(-1) @ v[..., own])
        attended = torch.cat(mixed, dim=-1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        x = x + block["ls1"] * attended
        inner = gelu(rms(x, block["norm2.weight"]) @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
        x = x + block["ls2"] * (inner @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"])
        states.append(x)
    return states


def test_the_original_of_300m(original, data_dir):
    told = load_file(data_dir / "internvit_tiny.io.safetensors")
    tower = load_tower(original).eval()
    assert (tower.config.family, tower.config.layer, tower.spec.tokens) == ("internvit", -1, 16)
    assert tower.spec.preprocessing == SQUASH
    with torch.no_grad():
        output = tower(told["pixel_values"], pooled=True)
        early = load_tower(original, layer=(1, -2), class_token=True)(told["pixel_values"]).patches
    torch.testing.assert_close(output.patches, told["last_hidden_state"][:, 1:], **TOLERANCE)
    torch.testing.assert_close(output.pooled, told["last_hidden_state"][:, 0], **TOLERANCE)
    expected = torch.cat([told["hidden_states.1"], told["hidden_states.2"]], dim=-1)
    torch.testing.assert_close(early, expected, **TOLERANCE)


def test_6b_against_a_slow_reference(tmp_path):
    state = random_6b()
    tower = load_tower(write(tmp_path / "tower", {"model_type": "intern_vit_6b", **TINY_6B}, state)).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = reference_6b(state, pixels)
        torch.testing.assert_close(tower(pixels).patches, expected[-1][:, 1:], **TOLERANCE)
        resized = tower.resized(42)
        table = state["embeddings.position_embedding"]
        grid = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        grid = interpolate(grid, (6, 6), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        larger = torch.randn(2, 3, 42, 42)
        expected = reference_6b(state, larger, torch.cat([table[:, :1], grid], dim=1))
        torch.testing.assert_close(resized(larger).patches, expected[-1][:, 1:], **TOLERANCE)


def test_gradients_are_those_of_the_reference(tmp_path):
    state = random_6b()
    tower = load_tower(write(tmp_path / "tower", {"model_type": "intern_vit_6b", **TINY_6B}, state))
    pixels = torch.randn(2, 3, 28, 28)
    tower(pixels).patches.square().mean().backward()
    leaves = {name: tensor.requires_grad_() for name, tensor in state.items()}
    reference_6b(leaves, pixels)[-1][:, 1:].square().mean().backward()
    block, theirs = tower.backbone.encoder.layer[1], "encoder.layers.1."
    mine = torch.cat([getattr(block.attention, f"{name}_proj").weight.grad for name in "qkv"])
    torch.testing.assert_close(mine, leaves[theirs + "attn.qkv.weight"].grad, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(block.lambda_2.grad, leaves[theirs + "ls2"].grad, atol=2e-5, rtol=1e-4)
    table = tower.backbone.embeddings.position_embeddings.grad
    torch.testing.assert_close(table, leaves["embeddings.position_embedding"].grad, atol=2e-5, rtol=1e-4)


def test_a_whole_internvl_chat(tmp_path):
    state = {f"vision_model.{name}": tensor for name, tensor in random_6b().items()}
    others = {"language_model.model.norm.weight": torch.ones(4), "mlp1.0.weight": torch.ones(160)}
    config = {
        "model_type": "internvl_chat",
        "force_image_size": 28,
        "select_layer": -2,
        "vision_config": {"model_type": "intern_vit_6b", **TINY_6B},
    }
    # Image processors are those of CLIP in such directories, and used by nothing there.
    directory = write(tmp_path / "chat", config, state | others)
    (directory / "preprocessor_config.json").write_text(json.dumps({"do_center_crop": True, "image_mean": [0, 0, 0]}))
    tower = load_tower(directory).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = reference_6b(random_6b(), pixels)[-2][:, 1:]
        torch.testing.assert_close(tower(pixels).patches, expected, **TOLERANCE)
    assert tower.spec.preprocessing == SQUASH
    (directory / "config.json").write_text(json.dumps(config | {"pad2square": True}))
    assert load_tower(directory, weights=False).spec.preprocessing.fit == "pad"
    (directory / "config.json").write_text(json.dumps(config | {"force_image_size": 56}))
    with pytest.raises(UserError, match="force_image_size 56, but its tower has positions for 28 pixels"):
        load_tower(directory)
    write(directory, config, state | others | {"vision_head.weight": torch.ones(1)})
    with pytest.raises(UserError, match=r"left over: vision_head\.weight$"):
        load_tower(directory)


def test_weights_of_older_releases(tmp_path):
    """Those are files that torch wrote."""
    state = random_6b()
    directory = tmp_path / "tower"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "intern_vit_6b", **TINY_6B}))
    names = sorted(state)
    torch.save({name: state[name] for name in names[:20]}, directory / "pytorch_model-00001-of-00002.bin")
    torch.save({name: state[name] for name in names[20:]}, directory / "pytorch_model-00002-of-00002.bin")
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = reference_6b(state, pixels)[-1][:, 1:]
        torch.testing.assert_close(load_tower(directory).eval()(pixels).patches, expected, **TOLERANCE)
    torch.save(state, directory / "again.bin")
    with pytest.raises(UserError, match=r"several files in .* hold embeddings\.class_embedding; name one of the files"):
        load_tower(directory)


def test_what_a_config_leaves_out_is_that_of_6b(original):
    (original / "config.json").write_text(json.dumps({"model_type": "intern_vit_6b", "num_hidden_layers": 45}))
    with torch.device("meta"):
        tower = load_tower(original, weights=False, image_size=448)
    assert sum(parameter.numel() for parameter in tower.parameters()) == parameters(45, 3200, 12800, 6)


def parameters(layers, width, hidden, vectors, qkv_bias=0, patch=14, positions=1025):
    """By hand. vectors: of a block that are as wide as the tower, biases apart."""
    block = 4 * width**2 + 2 * width * hidden + hidden + (2 + qkv_bias + vectors) * width
    return layers * block + (3 * patch**2 + 2 + positions) * width


@pytest.mark.parametrize(
    ("backbone", "expected", "told"),
    [
        ({"attention_bias": True}, parameters(24, 1024, 4096, 6, qkv_bias=3), 304_012_288),
        (
            {
                "hidden_size": 3200,
                "intermediate_size": 12800,
                "num_hidden_layers": 45,
                "num_attention_heads": 25,
                "norm_type": "rms_norm",
                "use_qk_norm": True,
            },
            parameters(45, 3200, 12800, 6),
            5_536_496_000,
        ),
    ],
    ids=["300m", "6b"],
)
def test_parameters_of_the_published_shapes(backbone, expected, told):
    with torch.device("meta"):
        tower = build_tower(TowerConfig("internvit", {"image_size": 448, "patch_size": 14, **backbone}))
    assert sum(parameter.numel() for parameter in tower.parameters()) == expected == told
    assert tower.spec.tokens == 1024


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_weights_that_do_not_fit_are_named(original, change):
    tensors = load_file(original / "model.safetensors")
    if change == "missing":
        del tensors["encoder.layers.1.attn.qkv.bias"]
        named = r"missing: backbone\.encoder\.layer\.1\.attention\.k_proj\.bias, .*q_proj\.bias, .*v_proj\.bias$"
    elif change == "left over":
        tensors["encoder.layers.1.attn.q_norm.weight"] = torch.ones(64)
        named = r"left over: backbone\.encoder\.layer\.1\.attention\.q_norm\.weight$"
    else:
        tensors["encoder.layers.1.attn.qkv.bias"] = torch.ones(4)
        named = r"of another shape: backbone\.encoder\.layer\.1\.attention\.k_proj\.bias \(1,\) for \(64,\)"
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=named):
        load_tower(original)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    text = {"model_type": "qwen2", **LANGUAGE["qwen2"], "vocab_size": 60}
    model = InternVLForConditionalGeneration(
        InternVLConfig(vision_config=TINY_HF, text_config=text, image_token_id=7)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def rename(directory, old, new):
    tensors = load_file(directory / "model.safetensors")
    assert any(name.startswith(old) for name in tensors)
    renamed = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("keys", ["vision_tower.", "model.vision_tower."])
def test_the_tower_of_transformers_internvl(theirs, tmp_path, keys):
    theirs.save_pretrained(tmp_path)
    written = next(name for name in load_file(tmp_path / "model.safetensors") if "vision_tower." in name)
    rename(tmp_path, written[: written.index("vision_tower.")] + "vision_tower.", keys)
    tower = load_tower(tmp_path).eval()
    assert tower.spec.preprocessing == SQUASH
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = theirs.model.vision_tower(pixels).last_hidden_state
        output = tower(pixels, pooled=True)
    torch.testing.assert_close(output.patches, expected[:, 1:], **TOLERANCE)
    torch.testing.assert_close(output.pooled, expected[:, 0], **TOLERANCE)
    # What the projector is fed is what the whole model makes its features of.
    with torch.no_grad():
        side = output.patches.reshape(2, 4, 4, -1)
        mine = theirs.model.multi_modal_projector(theirs.model.pixel_shuffle(side).reshape(2, 4, -1))
        torch.testing.assert_close(mine, theirs.model.get_image_features(pixels).pooler_output, **TOLERANCE)


def test_a_stranger_in_transformers_internvl(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"ln_head.weight": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"left over: ln_head\.weight$"):
        load_tower(tmp_path)


@pytest.mark.parametrize("layer", [-1, -2])
def test_layer_and_norm_of_transformers_internvl(theirs, tmp_path, layer):
    config = {**theirs.config.to_dict(), "vision_feature_layer": layer, "vision_feature_select_strategy": "full"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower = load_tower(tmp_path, weights=False)
    assert (tower.config.layer, tower.config.class_token, tower.spec.tokens) == (layer, True, 17)
    assert tower.config.final_norm is (layer == -1)


@pytest.mark.parametrize("mean_pooling", [False, True])
@pytest.mark.parametrize("size", [28, 42])
def test_transformers_vision_model_alone(tmp_path, mean_pooling, size):
    torch.manual_seed(0)
    alone = InternVLVisionModel(InternVLVisionConfig(**TINY_HF, use_mean_pooling=mean_pooling)).eval()
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.normal_(0, 0.2)
    alone.save_pretrained(tmp_path)
    tower = load_tower(tmp_path, image_size=size).eval()
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels).patches, alone(pixels).last_hidden_state[:, 1:], **TOLERANCE)
    idle = sum(parameter.numel() for parameter in tower.idle_parameters())
    assert idle == 0
