"""Megatron's states, made here from transformers' weights by their description, give those weights' features again."""

import argparse
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionModel, InternVLVisionModel, SiglipVisionModel

from mmchat.errors import UserError
from mmchat.vision import load_tower
from mmchat.vision.spec import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing

TOLERANCE = {"atol": 2e-5, "rtol": 0}
GEOMETRY = {"image_size": 28, "patch_size": 7, "num_hidden_layers": 2, "intermediate_size": 96}
HEADS = {"clip": 2, "siglip": 2, "internvit": 5, "internvit300M": 2}
"""Of the width that each kind has in its released size."""


def original(kind):
    """(transformers' model, what it feeds a projector: pixels -> float[B, 16, width])"""
    torch.manual_seed(0)
    model_class, width, others = {
        "clip": (CLIPVisionModel, 128, {}),
        "siglip": (SiglipVisionModel, 144, {"vision_use_head": False}),
        "internvit": (InternVLVisionModel, 640, {"norm_type": "rms_norm", "use_qk_norm": True}),
        "internvit300M": (InternVLVisionModel, 128, {"attention_bias": True}),
    }[kind]
    sizes = {"hidden_size": width, "num_attention_heads": HEADS[kind], **GEOMETRY}
    model = model_class(model_class.config_class(**sizes, **others)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.05)
    return model, partial(features_of, model, kind)


def features_of(model, kind, pixels):
    if kind == "clip":
        return model(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    hidden = model(pixels).last_hidden_state
    return hidden if kind == "siglip" else hidden[:, 1:]


def interleaved(parts, heads, padded):
    """q, k and v of the first head, of the second, ...; then zeros for the heads that there are not."""
    rows = []
    for head in range(heads):
        for part in parts:
            rows.append(part.reshape(heads, -1, *part.shape[1:])[head])
    empty = torch.zeros(3 * (padded - heads) * len(rows[0]), *rows[0].shape[1:])
    return torch.cat([*rows, empty])


def padded_with_zeros(tensor, dim, size):
    missing = list(tensor.shape)
    missing[dim] = size - missing[dim]
    return torch.cat([tensor, torch.zeros(missing)], dim=dim)


def to_megatron(model, kind, ranks=1, fused=False):
    """What each rank of tensor parallelism holds.

    fused: as with Transformer Engine, where the norms of CLIP and SigLIP are parts of the matrices after them.
    """
    weights = model.state_dict()
    intern = kind.startswith("internvit")
    heads = HEADS[kind]
    padded = (heads + ranks - 1) // ranks * ranks
    shards = [{} for _ in range(ranks)]

    def put(name, tensor, split=None):
        parts = [tensor] * ranks if split is None else tensor.chunk(ranks, dim=split)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
            if fused and name.rpartition(".")[0].endswith(("qkv", "proj", "fc1", "fc2")):
                shard[name.rpartition(".")[0] + "._extra_state"] = torch.zeros(4, dtype=torch.uint8)

    conv = "embeddings.patch_embeddings.projection" if intern else "embeddings.patch_embedding"
    put("conv1.weight", weights[f"{conv}.weight"])
    if kind != "clip":
        put("conv1.bias", weights[f"{conv}.bias"])
    if kind != "siglip":
        token = weights["embeddings.cls_token" if intern else "embeddings.class_embedding"]
        put("class_token", token.reshape(1, 1, -1))
    table = weights["embeddings.position_embeddings" if intern else "embeddings.position_embedding.weight"]
    put("position_embeddings.weight", table.reshape(-1, table.shape[-1]))
    for leaf in ("weight", "bias"):
        if kind == "clip":
            put(f"ln_pre.{leaf}", weights[f"pre_layrnorm.{leaf}"])
        if kind == "siglip":
            put(f"ln_post.{leaf}", weights[f"post_layernorm.{leaf}"])
    for number in range(GEOMETRY["num_hidden_layers"]):
        theirs = f"encoder.layer.{number}." if intern else f"encoder.layers.{number}."
        attention = theirs + ("attention." if intern else "self_attn.")
        base = f"decoder.layers.{number}."
        width = len(weights[attention + "q_proj.weight"]) // heads * padded
        for leaf in ("weight", "bias"):
            if attention + f"q_proj.{leaf}" in weights:
                parts = [weights[f"{attention}{name}_proj.{leaf}"] for name in "qkv"]
                put(f"{base}self_attention.linear_qkv.{leaf}", interleaved(parts, heads, padded), 0)
            first, second = ("layernorm_before", "layernorm_after") if intern else ("layer_norm1", "layer_norm2")
            for norm, plain, inside in (
                (first, "input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
                (second, "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
            ):
                if f"{theirs}{norm}.{leaf}" in weights:
                    name = inside if fused and not intern else plain
                    put(f"{base}{name}{leaf}", weights[f"{theirs}{norm}.{leaf}"])
        out = attention + ("projection_layer" if intern else "out_proj")
        put(f"{base}self_attention.linear_proj.weight", padded_with_zeros(weights[f"{out}.weight"], 1, width), 1)
        put(f"{base}self_attention.linear_proj.bias", weights[f"{out}.bias"])
        if kind == "internvit":
            for name in "qk":
                norm = padded_with_zeros(weights[f"{attention}{name}_norm.weight"], 0, width)
                put(f"{base}self_attention.{name}_layernorm.weight", norm, 0)
        put(f"{base}mlp.linear_fc1.weight", weights[f"{theirs}mlp.fc1.weight"], 0)
        put(f"{base}mlp.linear_fc1.bias", weights[f"{theirs}mlp.fc1.bias"], 0)
        put(f"{base}mlp.linear_fc2.weight", weights[f"{theirs}mlp.fc2.weight"], 1)
        put(f"{base}mlp.linear_fc2.bias", weights[f"{theirs}mlp.fc2.bias"])
        if intern:
            put(f"{base}ls1", weights[f"{theirs}lambda_1"])
            put(f"{base}ls2", weights[f"{theirs}lambda_2"])
    return shards


def write(directory, shards, **beside):
    for rank, shard in enumerate(shards):
        folder = directory / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        torch.save({"model": shard, **beside}, folder / "model_optim_rng.pt")
    return directory


def agrees(tower, features):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(tower.eval()(pixels).patches, features(pixels), **TOLERANCE)


@pytest.mark.parametrize(("ranks", "fused"), [(1, False), (2, True)], ids=["whole", "two-ranks"])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_features_are_those_of_the_weights(tmp_path, kind, ranks, fused):
    model, features = original(kind)
    tower = load_tower(write(tmp_path, to_megatron(model, kind, ranks, fused)))
    agrees(tower, features)
    statistics = {"clip": (CLIP_MEAN, CLIP_STD), "siglip": (HALF, HALF)}.get(kind, (IMAGENET_MEAN, IMAGENET_STD))
    assert tower.spec.preprocessing == Preprocessing(*statistics, fit="squash")
    assert load_tower(tmp_path, weights=False).config == tower.config


@pytest.mark.parametrize("ranks", [3, 4, 8])
def test_heads_of_zeros(tmp_path, ranks):
    """Five heads on eight ranks: three hold none."""
    model, features = original("internvit")
    agrees(load_tower(write(tmp_path, to_megatron(model, "internvit", ranks))), features)


def test_heads_that_ought_to_be_zeros(tmp_path):
    shards = to_megatron(original("internvit")[0], "internvit", 2)
    shards[1]["decoder.layers.1.self_attention.linear_proj.weight"][3, -1] = 1.0
    with pytest.raises(
        UserError, match=r"layers\.1\..*linear_proj\.weight has 128 channels more .* they are not zeros"
    ):
        load_tower(write(tmp_path, shards))


def test_a_file_alone_and_files_side_by_side(tmp_path):
    model, features = original("internvit300M")
    (whole,) = to_megatron(model, "internvit300M")
    torch.save(whole, tmp_path / "tower.pt")
    agrees(load_tower(tmp_path / "tower.pt"), features)
    save_file(whole, tmp_path / "tower.safetensors")
    agrees(load_tower(tmp_path / "tower.safetensors"), features)
    # Heads may stand in any order, but those of zeros must come last; and by name 10 comes before 2.
    model, features = original("internvit")
    (tmp_path / "parts").mkdir()
    for rank, shard in enumerate(to_megatron(model, "internvit", 12)):
        torch.save({"model": shard}, tmp_path / "parts" / f"tp_rank_{rank}.pt")
    agrees(load_tower(tmp_path / "parts"), features)


def test_the_tower_of_an_assistant(tmp_path):
    model, features = original("internvit300M")
    shards = [
        {f"vision_model.{name}": tensor for name, tensor in shard.items()}
        | {"vision_projection.encoder.linear_fc1.weight": torch.ones(2), "language_model.output_layer.weight": None}
        for shard in to_megatron(model, "internvit300M", 2)
    ]
    # An assistant's arguments are its language model's.
    arguments = argparse.Namespace(hidden_size=512, num_layers=2, kv_channels=32, num_attention_heads=16)
    agrees(load_tower(write(tmp_path / "one", shards, args=arguments)), features)
    shards[0]["vision_head.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=r"left over: vision_head\.weight$"):
        load_tower(write(tmp_path / "two", shards))


def test_the_checkpoints_of_a_run(tmp_path):
    model, features = original("internvit300M")
    write(tmp_path / "iter_0000007", to_megatron(model, "internvit300M", 2))
    agrees(load_tower(tmp_path), features)
    shutil.copytree(tmp_path / "iter_0000007", tmp_path / "iter_0000010")
    with pytest.raises(UserError, match=r"holds 2 checkpoints and no latest_checkpointed_iteration\.txt; name one"):
        load_tower(tmp_path)
    (tmp_path / "iter_0000010" / "mp_rank_00" / "model_optim_rng.pt").write_bytes(b"")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7\n")
    agrees(load_tower(tmp_path), features)
    (tmp_path / "iter_0000007").rename(tmp_path / "release")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    agrees(load_tower(tmp_path), features)


def test_head_width_from_the_run_arguments(tmp_path):
    sizes = {"hidden_size": 96, "num_attention_heads": 2, "attention_bias": True, **GEOMETRY}
    torch.manual_seed(0)
    model = InternVLVisionModel(InternVLVisionModel.config_class(**sizes)).eval()
    shards = to_megatron(model, "internvit300M")
    with pytest.raises(UserError, match=r"does not give the number of heads, .* 96 is no multiple of .* 64; save"):
        load_tower(write(tmp_path / "without", shards))
    arguments = argparse.Namespace(hidden_size=96, num_layers=2, kv_channels=48, num_attention_heads=2)
    tower = load_tower(write(tmp_path / "with", shards, args=arguments))
    agrees(tower, lambda pixels: model(pixels).last_hidden_state[:, 1:])


def test_clip_has_no_pooled_output(tmp_path):
    tower = load_tower(write(tmp_path, to_megatron(original("clip")[0], "clip")))
    with pytest.raises(UserError, match="has no pooled output: its checkpoint comes without the norm"):
        tower(torch.randn(1, 3, 28, 28), pooled=True)
    with pytest.raises(UserError, match="final_norm: this CLIP tower comes without the norm"):
        load_tower(tmp_path, final_norm=True)
    assert tower.resized(42).spec.tokens == 36


def test_ranks_that_do_not_make_a_model(tmp_path):
    shards = to_megatron(original("internvit300M")[0], "internvit300M", 2)
    write(tmp_path, shards)
    second = tmp_path / "mp_rank_01"
    with pytest.raises(UserError, match=r"holds 64 of the 128 channels of .*: it is one rank of several; name the"):
        load_tower(second / "model_optim_rng.pt")
    second.rename(tmp_path / "mp_rank_02")
    with pytest.raises(UserError, match=r"holds mp_rank_00, mp_rank_02, expected mp_rank_00, mp_rank_01: all tensor-"):
        load_tower(tmp_path)
    (tmp_path / "mp_rank_02").rename(tmp_path / "mp_rank_00_001")
    with pytest.raises(UserError, match=r"holds mp_rank_00, mp_rank_00_001, expected .* Merge pipeline"):
        load_tower(tmp_path)
    other = to_megatron(original("internvit300M")[0], "internvit300M", 2)[1]
    other["conv1.bias"] += 1
    with pytest.raises(UserError, match=r"not of one model: conv1\.bias is replicated, but its values differ"):
        load_tower(write(tmp_path / "mixed", [shards[0], other]))
    del other["conv1.bias"]
    with pytest.raises(UserError, match=r"rank 0 and rank 1 do not both hold conv1\.bias"):
        load_tower(write(tmp_path / "half", [shards[0], other]))


def test_a_rank_that_only_mlps_miss(tmp_path):
    tower = {
        "conv1.weight": torch.zeros(1024, 3, 14, 14),
        "class_token": torch.zeros(1, 1, 1024),
        "position_embeddings.weight": torch.zeros(5, 1024),
        "decoder.layers.0.ls1": torch.zeros(1024),
        "decoder.layers.0.self_attention.linear_qkv.weight": torch.zeros(1, 1),
        "decoder.layers.0.mlp.linear_fc1.bias": torch.zeros(3584),
    }
    torch.save(tower, tmp_path / "tower.pt")
    with pytest.raises(UserError, match="holds 3584 of the 4096 MLP channels: a rank is missing"):
        load_tower(tmp_path / "tower.pt")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mlp.linear_fc2.bias": None}, r"missing: backbone\.encoder\.layer\.0\.mlp\.fc2\.bias$"),
        ({"mlp.linear_fc3.bias": torch.ones(3)}, r"left over: backbone\.decoder\.layers\.0\.mlp\.linear_fc3\.bias$"),
        ({"ls2": torch.ones(3)}, r"of another shape: backbone\.encoder\.layer\.0\.lambda_2 \(3,\) for \(128,\)$"),
        (
            {"self_attention.linear_qkv.bias": torch.ones(385)},
            r"qkv\.bias has 385 rows, which is not a multiple of a head's 3 x 64",
        ),
    ],
    ids=["missing", "left over", "another shape", "no heads"],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, named):
    (whole,) = to_megatron(original("internvit300M")[0], "internvit300M")
    whole |= {f"decoder.layers.0.{name}": tensor for name, tensor in change.items()}
    torch.save({name: tensor for name, tensor in whole.items() if tensor is not None}, tmp_path / "tower.pt")
    with pytest.raises(UserError, match=named):
        load_tower(tmp_path / "tower.pt")


def test_arguments_are_data(tmp_path):
    class Program:
        def __reduce__(self):
            return (print, ("this must not run",))

    (whole,) = to_megatron(original("internvit300M")[0], "internvit300M")
    torch.save({"model": whole, "args": argparse.Namespace(level=Program())}, tmp_path / "tower.pt")
    with pytest.raises(UserError, match=r"cannot be opened as plain tensors: .*If it is complete .* save only the ten"):
        load_tower(tmp_path / "tower.pt")
