"""GGUF files, read back with the gguf package: tensors, metadata, tokenizer, dtypes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmchat.conversion.formats.gguf import GGUF
from mmchat.conversion.gguf.gguf_file import Weight, write_gguf
from mmchat.conversion.gguf.language import interleave_rotary
from mmchat.conversion.gguf.llamacpp import MMPROJ_FILE, MODEL_FILE
from mmchat.errors import UserError
from mmchat.vision.spec import HALF, Preprocessing
from tests.conversion.gguf_assistants import make_assistant, make_tower

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")


class File:
    """A written file: `values` by key, `tensors` as float arrays by name, `types` by name."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.values = {key: field.contents() for key, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def written(pair, folder, **options):
    """The language model's file and the mmproj."""
    model, processor = pair
    target = GGUF(**options)
    assert target.refusals(model.config, processor) == []
    target.export(model, processor).write(folder)
    return File(folder / MODEL_FILE), File(folder / MMPROJ_FILE)


def same(array, tensor):
    np.testing.assert_array_equal(array, tensor.detach().numpy())


# Language models


def gguf_name(language, key):
    """The name that gguf's own table gives to a key of transformers."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[language.upper()], 2)
    return names.get_name(key, try_suffixes=(".weight", ".bias"))


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2(tmp_path, tied):
    model, processor = make_assistant(tmp_path, "qwen2", "qwen2", "chatml", tie_word_embeddings=tied)
    file, _ = written((model, processor), tmp_path / "out")
    state = model.language_model.state_dict()
    if tied:
        del state["lm_head.weight"]
    assert file.tensors.keys() == {gguf_name("qwen2", key) for key in state}
    for key, tensor in state.items():
        same(file.tensors[gguf_name("qwen2", key)], tensor)
    assert "blk.0.attn_q.bias" in file.tensors
    shape = {
        "context_length": 1024,
        "embedding_length": 128,
        "block_count": 2,
        "feed_forward_length": 192,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 64,
        "rope.dimension_count": 64,
        "rope.freq_base": 10000.0,
        "vocab_size": 1512,
    }
    assert {f"qwen2.{key}": value for key, value in shape.items()}.items() <= file.values.items()
    assert file.values["qwen2.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert (file.values["general.architecture"], file.values["general.type"]) == ("qwen2", "model")


def test_llama_has_its_rotary_pairs_interleaved(tmp_path):
    model, processor = make_assistant(tmp_path)
    file, _ = written((model, processor), tmp_path / "out")
    state = model.language_model.state_dict()
    assert file.tensors.keys() == {gguf_name("llama", key) for key in state}
    for key, tensor in state.items():
        array = file.tensors[gguf_name("llama", key)]
        if "q_proj" not in key and "k_proj" not in key:
            same(array, tensor)
            continue
        heads = tensor.unflatten(0, (-1, 64))
        for head, rows in zip(heads, array.reshape(len(heads), 64, -1), strict=True):
            same(rows[0::2], head[:32])
            same(rows[1::2], head[32:])


def test_interleaving_keeps_attention():
    """Scores of rotated queries and keys: transformers' halves before, llama.cpp's pairs after."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, 5, generator=generator)
    hidden = torch.randn(3, 5, generator=generator)
    angles = torch.arange(3)[:, None] / 10000 ** (torch.arange(4) / 4)

    def halves(vectors):
        first, second = vectors.unflatten(1, (2, 2, 4)).unbind(2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).flatten(1)

    def pairs(vectors):
        turns = torch.polar(torch.ones_like(angles), angles)
        turned = torch.view_as_complex(vectors.reshape(3, 2, 4, 2)) * turns[:, None]
        return torch.view_as_real(turned).flatten(1)

    expected = halves(hidden @ query.T) @ halves(hidden @ key.T).T
    query, key = interleave_rotary(query, 2), interleave_rotary(key, 2)
    torch.testing.assert_close(pairs(hidden @ query.T) @ pairs(hidden @ key.T).T, expected)


# Towers


def backbone_of(pair):
    return pair[0].towers[0].backbone


def test_siglip_up_to_its_layer(tmp_path):
    pair = make_assistant(tmp_path, tower=make_tower(layer=-2))
    _, file = written(pair, tmp_path / "out")
    backbone = backbone_of(pair)
    blocks = backbone.encoder.layers
    same(file.tensors["v.patch_embd.weight"], backbone.embeddings.patch_embedding.weight)
    same(file.tensors["v.patch_embd.bias"], backbone.embeddings.patch_embedding.bias)
    same(file.tensors["v.position_embd.weight"], backbone.embeddings.position_embedding.weight)
    for number, block in enumerate(blocks[:2]):
        parts = {
            "ln1": block.layer_norm1,
            "ln2": block.layer_norm2,
            "attn_q": block.self_attn.q_proj,
            "attn_k": block.self_attn.k_proj,
            "attn_v": block.self_attn.v_proj,
            "attn_out": block.self_attn.out_proj,
            "ffn_up": block.mlp.fc1,
            "ffn_down": block.mlp.fc2,
        }
        for name, part in parts.items():
            same(file.tensors[f"v.blk.{number}.{name}.weight"], part.weight)
            same(file.tensors[f"v.blk.{number}.{name}.bias"], part.bias)
    assert len([name for name in file.tensors if name.startswith("v.")]) == 3 + 2 * 16
    first, second = pair[0].projectors[0][0], pair[0].projectors[0][2]
    for name, layer in (("mm.0", first), ("mm.2", second)):
        same(file.tensors[f"{name}.weight"], layer.weight)
        same(file.tensors[f"{name}.bias"], layer.bias)
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.projector_type": "mlp",
        "clip.has_vision_encoder": True,
        "clip.use_gelu": True,
        "clip.vision.image_size": 56,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": 64,
        "clip.vision.feed_forward_length": 96,
        "clip.vision.block_count": 2,
        "clip.vision.feature_layer": [2],
        "clip.vision.projection_dim": 128,
        "clip.vision.attention.head_count": 1,
        "clip.vision.image_mean": [0.5] * 3,
    }
    assert expected.items() <= file.values.items()


def test_the_last_norm_is_written_if_features_are_normed(tmp_path):
    pair = make_assistant(tmp_path, tower=make_tower(final_norm=True))
    _, file = written(pair, tmp_path / "out")
    same(file.tensors["v.post_ln.weight"], backbone_of(pair).post_layernorm.weight)
    assert file.values["clip.vision.block_count"] == 3


def test_clip_in_standard_order(tmp_path):
    pair = make_assistant(tmp_path, tower=make_tower("clip_vit"))
    _, file = written(pair, tmp_path / "out", known_reader_bug=True)
    embeddings = backbone_of(pair).embeddings
    same(file.tensors["v.class_embd"], embeddings.class_embedding)
    same(file.tensors["v.position_embd.weight"], embeddings.position_embedding.weight)
    same(file.tensors["v.pre_ln.weight"], backbone_of(pair).pre_layrnorm.weight)
    assert "v.patch_embd.bias" not in file.tensors and "v.post_ln.weight" not in file.tensors
    assert not {"clip.use_gelu", "clip.use_silu"} & file.values.keys()  # quick GELU
    assert "class token" not in file.values["general.description"]


@pytest.mark.parametrize("family", ["clip_vit", "internvit"])
def test_internvl_positions_are_rolled(tmp_path, family):
    pair = make_assistant(tmp_path, tower=make_tower(family), projector="pixel_shuffle")
    _, file = written(pair, tmp_path / "out")
    embeddings = backbone_of(pair).embeddings
    rows = file.tensors["v.position_embd.weight"]
    if family == "clip_vit":
        table = embeddings.position_embedding.weight
    else:
        table = embeddings.position_embeddings[0]
        same(file.tensors["v.class_embd"], embeddings.cls_token[0, 0])
        same(file.tensors["v.blk.1.ls2.weight"], backbone_of(pair).encoder.layer[1].lambda_2)
    same(rows[:-1], table[1:])
    same(rows[-1], table[0])
    assert "class token" in file.values["general.description"]
    assert file.values["clip.vision.projector.scale_factor"] == 2
    assert file.values["clip.vision.preproc_max_tiles"] == 1
    norm, first = pair[0].projectors[0][1], pair[0].projectors[0][2]
    same(file.tensors["mm.model.mlp.0.weight"], norm.weight)
    same(file.tensors["mm.model.mlp.1.weight"], first.weight)


def test_siglip2_has_a_convolution(tmp_path):
    tower = make_tower("siglip2")
    _, file = written(make_assistant(tmp_path, tower=tower), tmp_path / "out")
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    kernel, bias = (torch.from_numpy(file.tensors[f"v.patch_embd.{part}"].copy()) for part in ("weight", "bias"))
    patches = F.conv2d(pixels, kernel, bias, stride=14).flatten(2).transpose(1, 2)
    table = torch.from_numpy(file.tensors["v.position_embd.weight"].copy())
    with torch.no_grad():
        torch.testing.assert_close(patches + table, tower.embed(pixels)[0], atol=1e-4, rtol=0)


# Projectors that are rewritten


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(
    ("projector", "kind"),
    [("linear", "mlp"), ("mlp1x_gelu", "mlp"), ("pixel_shuffle", "lfm2"), ("avg_pool2_mlp2x_gelu", "lfm2")],
)
def test_rewritten_projectors_compute_the_same(tmp_path, projector, kind, approximate):
    pair = make_assistant(tmp_path, projector=projector)
    _, file = written(pair, tmp_path / "out")
    assert file.values["clip.projector_type"] == kind
    part = {name: torch.from_numpy(array.copy()) for name, array in file.tensors.items() if name.startswith("mm.")}
    features = 3 * torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))
    hidden = features
    if kind == "lfm2":
        squares = features.view(1, 2, 2, 2, 2, 64).transpose(2, 3).reshape(1, 4, 256)
        hidden = squares
    if "mm.input_norm.weight" in part:
        hidden = F.layer_norm(hidden, (256,), part["mm.input_norm.weight"], part["mm.input_norm.bias"])
    names = ("mm.0", "mm.2") if kind == "mlp" else ("mm.1", "mm.2")
    hidden = F.linear(hidden, part[f"{names[0]}.weight"], part[f"{names[0]}.bias"])
    hidden = F.gelu(hidden, approximate=approximate)
    hidden = F.linear(hidden, part[f"{names[1]}.weight"], part[f"{names[1]}.bias"])
    with torch.no_grad():
        expected = pair[0].projectors[0](features)
    exact = approximate == "none" or names[0] == "mm.0"
    torch.testing.assert_close(hidden, expected, atol=1e-4 if exact else 0.02, rtol=0)


def test_padding_in_the_middle_of_the_range_is_janus_pros(tmp_path):
    tower = make_tower(preprocessing=Preprocessing(HALF, HALF, "bicubic", "pad"))
    pair = make_assistant(tmp_path, tower=tower)
    _, file = written(pair, tmp_path / "out")
    assert file.values["clip.projector_type"] == "janus_pro"
    same(file.tensors["mm.1.weight"], pair[0].projectors[0][2].weight)


# Types


@pytest.mark.parametrize(("dtype", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2)])
def test_dtypes(tmp_path, dtype, error):
    pair = make_assistant(tmp_path, tower=make_tower(backbone={"intermediate_size": 80}))
    language, mmproj = written(pair, tmp_path / "out", dtype=dtype)
    for file in (language, mmproj):
        matrices = {name for name, array in file.tensors.items() if array.ndim == 2}
        exact = {"v.position_embd.weight"}
        if dtype == "q8_0":
            exact |= {name for name in matrices if file.tensors[name].shape[1] % 32}
            assert any("ffn_down" in name for name in exact) == (file is mmproj)
        for name, kind in file.types.items():
            assert kind == (dtype.upper() if name in matrices - exact else "F32"), name
    weight = pair[0].language_model.model.layers[0].mlp.up_proj.weight
    largest = weight.abs().max().item()
    torch.testing.assert_close(
        torch.from_numpy(language.tensors["blk.0.ffn_up.weight"].copy()), weight.detach(), atol=error * largest, rtol=0
    )
    assert not np.array_equal(language.tensors["blk.0.ffn_up.weight"], weight.detach().numpy())


def test_the_dtype_of_the_model_is_kept(tmp_path):
    model, processor = make_assistant(tmp_path)
    language, _ = written((model.to(torch.bfloat16), processor), tmp_path / "out")
    assert language.types["output.weight"] == "BF16"
    same(language.tensors["output.weight"], model.language_model.lm_head.weight.float())


def test_values_that_f16_cannot_hold_are_refused(tmp_path):
    weights = [Weight("large.weight", torch.full((2, 32), 7e4))]
    with pytest.raises(UserError, match=r"large\.weight holds 70000, but f16 ends at 65504; choose --dtype bf16"):
        write_gguf(tmp_path / "a.gguf", "llama", {}, weights, "f16")
