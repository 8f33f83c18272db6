"""CLIPs as OpenAI and open_clip publish them: recognised by what they hold, opened strictly, equal to the originals."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from mmchat.cli.main import main
from mmchat.errors import UserError
from mmchat.vision import TowerConfig, build_tower, load_tower
from mmchat.vision.checkpoint_formats import open_clip, openai
from mmchat.vision.spec import HALF, Preprocessing
from tests.conftest import LANGUAGE
from tests.vision import slow_clip

TOLERANCE = 2e-5


@pytest.fixture(scope="session")
def oracle(data_dir):
    """What OpenAI's own program made: a whole CLIP with its text half and its three numbers."""
    return data_dir / "openai_clip" / "vit_tiny.state.safetensors"


@pytest.fixture(scope="session")
def io(data_dir):
    return load_file(data_dir / "openai_clip" / "vit_tiny.io.safetensors")


@pytest.fixture(scope="session")
def variants(data_dir):
    return json.loads((data_dir / "openai_clip" / "variants.json").read_text())


def as_archive(state, path):
    """What OpenAI publishes: TorchScript, whose submodules make the keys."""
    root = nn.Module()
    for key, tensor in state.items():
        *names, last = key.split(".")
        module = root
        for name in names:
            if not hasattr(module, name):
                module.add_module(name, nn.Module())
            module = getattr(module, name)
        module.register_buffer(last, tensor)
    torch.jit.script(root).save(path)
    return path


# OpenAI


def test_openai_vit(oracle, io):
    tower = load_tower(oracle, class_token=True)
    with torch.no_grad():
        output = tower(io["image"], pooled=True)
        first = load_tower(oracle, layer=0, class_token=True)(io["image"]).patches
        before = load_tower(oracle, layer=-2)(io["image"]).patches
    torch.testing.assert_close(output.patches, io["visual.block.1(NLD)"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(before, io["visual.block.0(NLD)"][:, 1:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(first, io["visual.ln_pre"], atol=TOLERANCE, rtol=0)
    features = output.pooled @ load_file(oracle)["visual.proj"]
    torch.testing.assert_close(features, io["image_features"], atol=TOLERANCE, rtol=0)
    assert tower.config.family == "clip_vit"
    assert tower.spec.preprocessing == Preprocessing()


@pytest.mark.parametrize("wrapped", [False, True])
def test_openai_state_dict(oracle, io, tmp_path, wrapped):
    state = load_file(oracle)
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    assert torch.equal(load_tower(path)(io["image"]).patches, load_tower(oracle)(io["image"]).patches)


def test_openai_vit_at_another_size(oracle):
    state = {k.removeprefix("visual."): v for k, v in load_file(oracle).items() if k.startswith("visual.")}
    table = state["positional_embedding"]
    grid = F.interpolate(table[1:].T.reshape(1, -1, 4, 4), (6, 6), mode="bicubic").flatten(2)[0].T
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    larger = {**state, "positional_embedding": torch.cat([table[:1], grid])}
    states, pooled = slow_clip.vit(larger, pixels, 2, slow_clip.quick_gelu)
    with torch.no_grad():
        output = load_tower(oracle, image_size=48)(pixels, pooled=True)
    torch.testing.assert_close(output.patches, states[-1][:, 1:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.pooled, pooled, atol=TOLERANCE, rtol=0)


def test_half_precision_becomes_single(oracle, io, tmp_path):
    """OpenAI's archives are in half precision, but for norms and what stands alone."""
    state = load_file(oracle)
    mixed = {
        k: v.half() if k.endswith(("proj_weight", "proj.weight", "fc.weight", "conv1.weight")) else v
        for k, v in state.items()
    }
    torch.save(mixed, tmp_path / "weights.pt")
    tower = load_tower(tmp_path / "weights.pt")
    assert {tensor.dtype for tensor in tower.state_dict().values()} == {torch.float32}
    expected = load_tower(oracle)(io["image"]).patches
    torch.testing.assert_close(tower(io["image"]).patches, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.ln_post.bias": None}, r"missing: backbone\.post_layernorm\.bias$"),
        ({"visual.transformer.resblocks.0.ln_1.bias": None}, r"missing: .*\.encoder\.layers\.0\.layer_norm1\.bias$"),
        ({"visual.class_embedding": None}, r"missing: backbone\.embeddings\.class_embedding$"),
        ({"visual.conv1.weight": None}, r"holds no vision tower of a known format: it has 64 tensors"),
        ({"visual.ln_mid.bias": torch.zeros(2)}, r"left over: backbone\.ln_mid\.bias$"),
        ({"stray": torch.zeros(2)}, r"left over: backbone\.stray$"),
        ({"visual.transformer.resblocks.1.attn.in_proj_bias": torch.zeros(2)}, r"of another shape: .*bias \(1,\) for"),
        ({"visual.positional_embedding": torch.zeros(18, 128)}, r"of another shape: .*position_embedding"),
        ({"visual.positional_embedding": None}, r"do not give the size of the model: missing: positional_embedding$"),
    ],
)  # fmt: skip
def test_openai_strictness(oracle, tmp_path, change, message):
    state = {k: v for k, v in (load_file(oracle) | change).items() if v is not None}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=message):
        load_tower(tmp_path / "weights.safetensors")


def test_a_wide_vit_without_open_clips_config(tmp_path):
    some = {"conv1.weight": torch.zeros(1280, 3, 14, 14), "transformer.resblocks.0.ln_1.bias": torch.zeros(1280)}
    torch.save({f"visual.{key}": tensor for key, tensor in some.items()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"width 1280; OpenAI's have .* put its open_clip_config\.json"):
        load_tower(tmp_path / "weights.pt")


def test_torchscript_is_opened_for_who_trusts_it(oracle, io, tmp_path):
    archive = as_archive(load_file(oracle), tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"is a TorchScript archive, which is a program.*--trust-torchscript"):
        load_tower(archive)
    tower = load_tower(archive, trust_torchscript=True)
    assert torch.equal(tower(io["image"]).patches, load_tower(oracle)(io["image"]).patches)


def test_torchscript_from_the_command_line(oracle, data_dir, tmp_path, capsys):
    archive = as_archive(load_file(oracle), tmp_path / "clip.pt")
    (tmp_path / "language.json").write_text(json.dumps({"model_type": "llama", **LANGUAGE["llama"]}))
    words = ["init", "--language", tmp_path / "language.json", "--vision", archive, "--out", tmp_path / "out"]
    words += ["--tokenizer", data_dir / "tokenizers" / "llama_like_legacy_false"]
    words = [str(word) for word in words]
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "if you trust its origin, add --trust-torchscript" in capsys.readouterr().err
    main([*words, "--trust-torchscript"])
    assert "16 slots per image" in capsys.readouterr().out


# The nine that OpenAI released, and the paper's sizes


def original_shapes(config):
    """Tower and text half of a released CLIP, under their keys."""
    size, width, common = config["image_resolution"], config["vision_width"], config["embed_dim"]
    if isinstance(config["vision_layers"], list):
        tower = slow_clip.resnet_shapes(config["vision_layers"], width, size, common)
    else:
        tower = slow_clip.vit_shapes(width, config["vision_layers"], config["vision_patch_size"], size)
        tower["proj"] = (width, common)
    text = slow_clip.text_shapes(
        config["transformer_width"],
        config["transformer_layers"],
        config["context_length"],
        config["vocab_size"],
        common,
    )
    return {f"visual.{key}": shape for key, shape in tower.items()} | text


RELEASED = ["RN101", "RN50", "RN50x16", "RN50x4", "RN50x64", "ViT-B/16", "ViT-B/32", "ViT-L/14", "ViT-L/14@336px"]


@pytest.mark.parametrize("name", RELEASED)
def test_released_variants_key_by_key(variants, name, tmp_path):
    assert sorted(variants) == RELEASED
    expected = variants[name]
    shapes = original_shapes(expected["config"])
    listing = json.dumps(sorted([key, list(shape)] for key, shape in shapes.items()))
    assert hashlib.sha256(listing.encode()).hexdigest() == expected["keys_shapes_sha256"]

    # Shapes alone make the tower, and the same tensors fill it, none missing and none left over.
    with torch.device("meta"):
        tensors = {key: torch.empty(shape, dtype=torch.half) for key, shape in shapes.items()}
        config = openai.clip_config(openai.tower_part(shapes), tmp_path)
        tower = build_tower(config)
    filled = openai.clip_state(openai.tower_part(tensors))
    own = {key: tensor.shape for key, tensor in tower.state_dict().items()}
    assert {key: tensor.shape for key, tensor in filled.items()} == own
    assert tower.spec.image_size == expected["config"]["image_resolution"]
    projection = torch.Size(shapes.get("visual.proj", (0,))).numel()
    assert sum(p.numel() for p in tower.parameters()) + projection == expected["visual_params"]


@pytest.mark.parametrize(
    ("width", "blocks", "heads", "patch", "millions"),
    [(768, 12, 12, 16, 85.8), (1024, 24, 16, 16, 303.3), (1280, 32, 16, 14, 630.8)],
)
def test_sizes_of_the_paper(width, blocks, heads, patch, millions):
    """ViT-B/16, L/16, H/14 (Dosovitskiy et al. 2020, arXiv:2010.11929, table 1), without a classifier."""
    backbone = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads, "patch_size": patch}
    with torch.device("meta"):
        tower = build_tower(TowerConfig("clip_vit", {**backbone, "intermediate_size": 4 * width, "image_size": 224}))
    assert round(sum(p.numel() for p in tower.parameters()) / 1e6, 1) == millions


# open_clip


@pytest.fixture(scope="module")
def vit_state():
    return slow_clip.random_state(slow_clip.vit_shapes(160, 2, 8, 32))


def write_open_clip(folder, state, model=None, preprocess=None, prefix="visual."):
    tensors = {f"{prefix}{key}": tensor for key, tensor in state.items()} | {"logit_scale": torch.ones(())}
    save_file(tensors, folder / "open_clip_model.safetensors")
    if model is not None:
        stated = {"model_cfg": model, "preprocess_cfg": preprocess or {}}
        (folder / "open_clip_config.json").write_text(json.dumps(stated))
    return folder


VISION = {"image_size": 32, "layers": 2, "width": 160, "head_width": 40, "patch_size": 8}


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_vit(vit_state, tmp_path, quick_gelu):
    folder = write_open_clip(tmp_path, vit_state, {"quick_gelu": quick_gelu, "vision_cfg": VISION})
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    states, pooled = slow_clip.vit(vit_state, pixels, 4, slow_clip.quick_gelu if quick_gelu else F.gelu)
    for source in (folder, folder / "open_clip_model.safetensors"):
        with torch.no_grad():
            output = load_tower(source)(pixels, pooled=True)
        torch.testing.assert_close(output.patches, states[-1][:, 1:], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(output.pooled, pooled, atol=TOLERANCE, rtol=0)


def test_open_clip_positions_are_antialiased(vit_state, tmp_path):
    folder = write_open_clip(tmp_path, vit_state, {"vision_cfg": VISION})
    table = vit_state["positional_embedding"]
    square = table[1:].T.reshape(1, -1, 4, 4)
    smaller = F.interpolate(square, (2, 2), mode="bicubic", antialias=True).flatten(2)[0].T
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    state = {**vit_state, "positional_embedding": torch.cat([table[:1], smaller])}
    states, _ = slow_clip.vit(state, pixels, 4, F.gelu)
    tower = load_tower(folder, image_size=16)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels).patches, states[-1][:, 1:], atol=TOLERANCE, rtol=0)
    assert TowerConfig.from_dict(json.loads(json.dumps(tower.config.to_dict()))).antialias


def test_open_clip_with_a_text_half_of_its_own(oracle, tmp_path):
    """CustomTextCLIP; the activation is not stated, so it is open_clip's default."""
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    state = {f"text.{k}" if k.startswith(text) else k: v for k, v in load_file(oracle).items()}
    save_file(state, tmp_path / "weights.safetensors")
    tower = load_tower(tmp_path / "weights.safetensors")
    assert tower.config == replace(
        load_tower(oracle).config,
        antialias=True,
        backbone={**load_tower(oracle).config.backbone, "hidden_act": "gelu"},
    )


def test_open_clip_resnet(tmp_path):
    state = slow_clip.random_state(slow_clip.resnet_shapes((1, 1, 2, 1), 4, 32, 8))
    vision = {"image_size": 32, "layers": [1, 1, 2, 1], "width": 4, "patch_size": None}
    folder = write_open_clip(tmp_path, state, {"quick_gelu": True, "vision_cfg": vision})
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grids, pooled = slow_clip.resnet(state, pixels)
    with torch.no_grad():
        output = load_tower(folder)(pixels, pooled=True)
    torch.testing.assert_close(output.patches, grids[-1].flatten(2).transpose(1, 2), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.pooled, pooled, atol=TOLERANCE, rtol=0)


def test_open_clip_preprocessing(vit_state, tmp_path):
    stated = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 2], "interpolation": "bilinear", "resize_mode": "squash"}
    folder = write_open_clip(tmp_path, vit_state, {"vision_cfg": VISION}, stated)
    assert load_tower(folder).spec.preprocessing == Preprocessing((0.1, 0.2, 0.3), (1, 1, 2), "bilinear", "squash")
    write_open_clip(folder, vit_state, {"vision_cfg": VISION})
    assert load_tower(folder).spec.preprocessing == Preprocessing()


@pytest.mark.parametrize(
    ("vision", "preprocess", "message"),
    [
        ({"pool_type": "avg"}, {}, r"has \{'pool_type': 'avg'\}, which no tower here supports"),
        ({"norm_kwargs": {"eps": 1e-6}}, {}, r"has \{'norm_kwargs'"),
        ({}, {"resize_mode": "longest"}, "resize_mode 'longest' is unknown; expected one of shortest, squash"),
        ({"layers": 3}, {}, r"missing: backbone\.encoder\.layers\.2\."),
        ({"image_size": 64}, {}, r"of another shape: .*position_embedding"),
    ],
)
def test_open_clip_with_what_no_tower_here_has(vit_state, tmp_path, vision, preprocess, message):
    folder = write_open_clip(tmp_path, vit_state, {"vision_cfg": {**VISION, **vision}}, preprocess)
    with pytest.raises(UserError, match=message):
        load_tower(folder)


def test_usual_settings_may_be_spelt_out(vit_state, tmp_path):
    usual = {"pool_type": "tok", "attentional_pool": False, "ls_init_value": None, "patch_dropout": 0.5}
    plain = load_tower(write_open_clip(tmp_path, vit_state, {"vision_cfg": VISION})).config
    assert load_tower(write_open_clip(tmp_path, vit_state, {"vision_cfg": {**VISION, **usual}})).config == plain


def test_open_clip_with_another_tower_of_timms(tmp_path):
    model = {"vision_cfg": {"timm_model_name": "convnext_base", "image_size": 224}}
    folder = write_open_clip(tmp_path, {"trunk.stem.0.weight": torch.zeros(2)}, model)
    with pytest.raises(UserError, match=r"none with a CLIP ViT, a CLIP ResNet or timm's SigLIP; .*convnext_base"):
        load_tower(folder)


@pytest.fixture(scope="module")
def siglip_state():
    return slow_clip.random_state(slow_clip.siglip_shapes(768, 128, 2, 16, 32))


def test_open_clip_siglip(siglip_state, tmp_path):
    torch.save({f"visual.trunk.{key}": tensor for key, tensor in siglip_state.items()}, tmp_path / "weights.bin")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    states, pooled = slow_clip.siglip(siglip_state, pixels, 12)
    for layer in (-1, 1):
        tower = load_tower(tmp_path / "weights.bin", layer=layer)
        with torch.no_grad():
            output = tower(pixels, pooled=True)
        torch.testing.assert_close(output.patches, states[layer], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(output.pooled, pooled, atol=TOLERANCE, rtol=0)
    assert tower.spec.preprocessing == Preprocessing(HALF, HALF, fit="squash")
    assert (tower.config.family, tower.config.antialias) == ("siglip", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.trunk.attn_pool.kv.bias": None}, r"missing: .*\.in_proj_bias; left over: .*\.q\.bias$"),
        ({"visual.trunk.blocks.1.norm1.bias": None}, r"missing: backbone\.encoder\.layers\.1\.layer_norm1\.bias$"),
        ({"visual.head.proj.weight": torch.zeros(2, 2)}, r"left over: backbone\.head\.proj\.weight$"),
        ({"visual.trunk.pos_embed": None}, r"do not give the size of the model: missing: trunk\.pos_embed$"),
    ],
)  # fmt: skip
def test_open_clip_siglip_strictness(siglip_state, tmp_path, change, message):
    state = {f"visual.trunk.{key}": tensor for key, tensor in siglip_state.items()}
    others = {"text.token_embedding.weight": torch.zeros(3, 4), "logit_bias": torch.zeros(1)}
    torch.save({k: v for k, v in (state | others | change).items() if v is not None}, tmp_path / "weights.bin")
    with pytest.raises(UserError, match=message):
        load_tower(tmp_path / "weights.bin")


@pytest.mark.parametrize(
    ("width", "inner", "blocks", "heads", "size", "patch"),
    [
        (768, 3072, 12, 12, 224, 16),
        (1024, 4096, 24, 16, 256, 16),
        (1152, 4304, 27, 16, 384, 14),
        (1536, 6144, 40, 16, 384, 16),
    ],
)
def test_open_clip_siglips_key_by_key(tmp_path, width, inner, blocks, heads, size, patch):
    """B, L, so400m (whose patches leave a margin) and g, against transformers' own model of that size."""
    shapes = slow_clip.siglip_shapes(width, inner, blocks, patch, size)
    with torch.device("meta"):
        tensors = {f"trunk.{key}": torch.empty(shape) for key, shape in shapes.items()}
        named = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        config = open_clip.siglip_config(named, {"image_size": size}, tmp_path)
        model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=blocks,
                num_attention_heads=heads,
                image_size=size,
                patch_size=patch,
            )
        )
    assert SiglipVisionConfig(**config.backbone).to_dict() == model.config.to_dict()
    filled = {key: tensor.shape for key, tensor in open_clip.siglip_state(tensors).items()}
    assert filled == {f"backbone.{key}": tensor.shape for key, tensor in model.state_dict().items()}
