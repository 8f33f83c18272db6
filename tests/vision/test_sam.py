"""SAM's encoder and Vary's vocabulary: equal to the originals, from all files that hold them, at other sizes too."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel, SamVisionConfig, SamVisionModel
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention

from mmchat.errors import UserError
from mmchat.vision import TowerConfig, TowerSpec, build_tower, load_tower
from mmchat.vision.checkpoint_formats.sam import PREPROCESSING as SAM
from mmchat.vision.checkpoint_formats.vary import PREPROCESSING as VARY
from mmchat.vision.families.sam import extend_distances
from mmchat.vision.sam_attention import DecomposedAttention

TOLERANCE = 2e-5
EXACTLY = {"atol": 1e-10, "rtol": 1e-10}
TINY = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 3,
    "global_attn_indexes": [1],
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def oracle(data_dir):
    """Vary's own ImageEncoderViT with reduced channels: its weights, its input and what came out of its parts."""
    folder = data_dir / "vary_sam_tiny"
    return folder, load_file(folder / "state.safetensors"), load_file(folder / "io.safetensors")


def spread(module, seed=0):
    """Relative positions and biases are zeros in a new model, which would hide what is wrong with them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.eval()


@pytest.fixture(scope="session")
def sam():
    """transformers' own, and the same as a tower."""
    theirs = spread(SamVisionModel._from_config(SamVisionConfig(**TINY), attn_implementation="eager"))
    ours = build_tower(TowerConfig("sam", TINY, preprocessing=SAM)).eval()
    ours.backbone.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("gradient", [False, True])
def test_vary_gives_what_the_original_gave(oracle, gradient):
    folder, _, expected = oracle
    tower = load_tower(folder / "state.safetensors").eval()
    assert tower.spec == TowerSpec(128, 64, 4, 128, VARY)
    encoder, found = tower.backbone.vision_encoder, {}
    for name, part in (("block.0", encoder.layers[0]), ("block.1", encoder.layers[1]), ("neck", encoder.neck)):
        part.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    with torch.set_grad_enabled(gradient):
        found["tokens"] = tower(expected["input"]).patches
    for name, output in found.items():
        torch.testing.assert_close(output, expected[name], atol=TOLERANCE, rtol=0)
    assert len(found) == 4


def test_sam_gives_what_transformers_gives(sam):
    theirs, ours = sam
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        neck = theirs(pixels).last_hidden_state
        patches = ours(pixels).patches
    assert ours.spec == TowerSpec(64, 8, 64, 8, SAM)
    assert patches.shape == (2, 64, 8)
    torch.testing.assert_close(patches, neck.flatten(2).mT, atol=TOLERANCE, rtol=0)
    assert ours.idle_parameters() == []
    ours(pixels).patches.square().sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize("side", [3, 12])  # narrower than a head together, and wider; 12 rows are more than go at once
def test_attention_without_the_bias(side):
    config = SamVisionConfig(hidden_size=32, num_attention_heads=4, image_size=side * 16, window_size=side)
    theirs = spread(SamVisionSdpaAttention(config, side)).double()
    ours = DecomposedAttention(config, side).double()
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(2, side, side, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for attention in (theirs, ours):
        given = hidden.clone().requires_grad_()
        output = attention(given)[0]
        output.square().sum().backward()
        results.append({"output": output, "input": given.grad} | {n: p.grad for n, p in attention.named_parameters()})
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, msg=lambda m, n=name: f"{n}: {m}", **EXACTLY)
    with torch.no_grad():
        torch.testing.assert_close(ours(hidden)[0], results[0]["output"], **EXACTLY)


OTHERS_OF = {
    "": [],
    "model.vision_tower.": ["model.decoder.embed_tokens.weight", "model.mm_projector.weight", "lm_head.weight"],
    "model.vision_tower_2.": ["model.decoder.layers.0.fc1.weight", "model.mm_projector.bias", "lm_head.weight"],
    "transformer.vision_tower_high.": [
        "transformer.wte.weight",
        "transformer.h.0.mlp.w1.weight",
        "transformer.vision_tower.vision_model.post_layernorm.weight",
        "transformer.mm_projector_vary.weight",
    ],
    "visual_encoder.": ["model.decoder.embed_tokens.weight", "opt_proj.weight"],
}


@pytest.mark.parametrize("prefix", OTHERS_OF)
def test_vary_wherever_an_assistant_keeps_it(oracle, tmp_path, prefix):
    folder, state, _ = oracle
    others = {key: torch.zeros(1) for key in OTHERS_OF[prefix]}
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()} | others, tmp_path / "pytorch_model.bin")
    tower, alone = load_tower(tmp_path), load_tower(folder / "state.safetensors")
    assert tower.config == alone.config
    assert tower.config.backbone["global_attn_indexes"] == [1, 3]
    for mine, same in zip(tower.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, same)
    assert load_tower(tmp_path, weights=False).spec == tower.spec


def test_metas_file(oracle, tmp_path):
    _, state, expected = oracle
    encoder = {f"image_encoder.{key}": tensor for key, tensor in state.items() if not key.startswith("net_")}
    others = {"prompt_encoder.no_mask_embed.weight": torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(1)}
    torch.save(encoder | others, tmp_path / "sam.pth")
    tower = load_tower(tmp_path / "sam.pth").eval()
    assert (tower.config.family, tower.spec) == ("sam", TowerSpec(128, 16, 64, 32, SAM))
    with torch.no_grad():
        patches = tower(expected["input"]).patches
    torch.testing.assert_close(patches, expected["neck"].flatten(2).mT, atol=TOLERANCE, rtol=0)
    with pytest.raises(UserError, match="missing: backbone"):
        torch.save({key: encoder[key] for key in encoder if "blocks.2.norm1" not in key}, tmp_path / "sam.pth")
        load_tower(tmp_path / "sam.pth")


def test_what_does_not_fit_is_named(oracle, tmp_path):
    _, state, _ = oracle
    path = tmp_path / "tower.safetensors"
    save_file({key: tensor for key, tensor in state.items() if key != "net_3.weight"}, path)
    with pytest.raises(UserError, match=r"missing: compressor\.1\.weight$"):
        load_tower(path)
    save_file(state | {"head.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"left over: backbone\.vision_encoder\.head\.weight$"):
        load_tower(path)
    save_file({key: tensor for key, tensor in state.items() if key != "pos_embed"}, path)
    with pytest.raises(UserError, match=r"do not give the size of the model: missing: pos_embed$"):
        load_tower(path)


@pytest.mark.parametrize("whole", [False, True])
def test_directories_of_transformers(sam, tmp_path, whole):
    theirs, ours = sam
    saved = theirs
    if whole:
        prompt = {"hidden_size": 8, "image_size": 64, "patch_size": 8, "image_embedding_size": 8}
        mask = {"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 1, "iou_head_hidden_dim": 8}
        saved = SamModel(SamConfig(vision_config=TINY, prompt_encoder_config=prompt, mask_decoder_config=mask))
        saved.vision_encoder.load_state_dict(theirs.vision_encoder.state_dict())
    saved.save_pretrained(tmp_path)
    tower = load_tower(tmp_path).eval()
    assert tower.spec == ours.spec
    for (name, mine), same in zip(tower.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(mine, same), name


@pytest.mark.parametrize(("family", "millions"), [("sam", 89.67), ("vary_sam", 95.57)])
def test_parameters_of_vit_b(family, millions):
    with torch.device("meta"):
        tower = build_tower(TowerConfig(family, {}))
    assert round(sum(parameter.numel() for parameter in tower.parameters()) / 1e6, 2) == millions
    tokens, width = {"sam": (4096, 256), "vary_sam": (256, 1024)}[family]
    assert (tower.spec.image_size, tower.spec.tokens, tower.spec.dim) == (1024, tokens, width)


def test_what_there_is_not(sam):
    with pytest.raises(UserError, match="needs relative positions"):
        build_tower(TowerConfig("sam", {"use_rel_pos": False}))
    with pytest.raises(
        UserError, match=r"so layer, class_token and final_norm cannot be changed; found layer -2, class_token"
    ):
        build_tower(TowerConfig("sam", TINY, layer=-2))
    with pytest.raises(UserError, match="class_token True"):
        build_tower(TowerConfig("vary_sam", TINY, class_token=True))
    with pytest.raises(NotImplementedError, match="a sam has no pooled output"):
        sam[1](torch.zeros(1, 3, 64, 64), pooled=True)


@pytest.mark.parametrize("size", [40, 64, 96])
def test_another_size(sam, size):
    """As a model of transformers of that size computes it with the old tables, which it stretches in each forward."""
    theirs, ours = sam
    config = SamVisionConfig(**{**TINY, "image_size": size}, attn_implementation="eager")
    reference = SamVisionModel(config).eval()
    state = theirs.state_dict()
    for name in state:
        if "rel_pos" in name:
            module, _, attribute = name.rpartition(".")
            setattr(reference.get_submodule(module), attribute, nn.Parameter(state[name]))
    positions = "vision_encoder.pos_embed"
    cubic = bicubic(state[positions][0].numpy(), size // TINY["patch_size"])
    reference.load_state_dict(state | {positions: torch.from_numpy(cubic).float()[None]})
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    tower = ours.resized(size)
    assert (tower.spec.image_size, tower.spec.tokens) == (size, (size // 8) ** 2)
    with torch.no_grad():
        expected = reference(pixels).last_hidden_state.flatten(2).mT
        torch.testing.assert_close(tower(pixels).patches, expected, atol=TOLERANCE, rtol=0)
    assert not tower.training


@torch.no_grad()
def test_pages_that_grow():
    """A tower of windows alone sees in the upper left of a larger page what it saw before; where a block sees
    the whole page, each distance keeps its position."""
    windowed = {**TINY, "global_attn_indexes": [], "window_size": 4}
    tower = spread(build_tower(TowerConfig("sam", windowed))).eval()
    small = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    large = F.pad(small, (0, 64, 0, 64))
    before, after = tower.grid(small), tower.resized(128, keep_positions=True).grid(large)
    # The neck's second convolution looks one patch beyond the old edge.
    torch.testing.assert_close(after[..., :7, :7], before[..., :7, :7], atol=1e-5, rtol=0)
    assert (tower.resized(128).grid(large)[..., :7, :7] - before[..., :7, :7]).abs().max() > 1e-2
    table = torch.arange(7.0)[:, None]
    assert extend_distances(table, 11).flatten().tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6]
    assert extend_distances(table, 3).flatten().tolist() == [2, 3, 4]


def bicubic(grid, side):
    """float[n, n, c] -> float[side, side, c] by cubic convolution with a = -3/4 (Keys 1981), edges repeated."""

    def weight(x):
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    old = len(grid)
    matrix = np.zeros((side, old))
    for new in range(side):
        centre = (new + 0.5) * old / side - 0.5
        for near in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[new, min(max(near, 0), old - 1)] += weight(centre - near)
    return np.einsum("ip,jq,pqc->ijc", matrix, matrix, grid)


def test_sizes_that_do_not_suit(sam, oracle):
    with pytest.raises(UserError, match="50 is not a multiple of patch size 8; the nearest sizes are 48 and 56"):
        sam[1].resized(50)
    vary = load_tower(oracle[0] / "state.safetensors")
    with pytest.raises(UserError, match="200 is not a multiple of 4 x patch size 16; the nearest sizes are 192"):
        vary.resized(200)
    assert vary.resized(192).spec.tokens == 9


def test_unknown_backbone_keys_are_named():
    with pytest.raises(UserError, match=r"the backbone of a sam has no 'hiden_size'; did you mean 'hidden_size'\?"):
        build_tower(TowerConfig("sam", {"hiden_size": 32}))
    with pytest.raises(UserError, match=r"the backbone of a clip_resnet has no 'widht'; did you mean 'width'\?"):
        build_tower(TowerConfig("clip_resnet", {"widht": 8}))
