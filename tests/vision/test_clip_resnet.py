"""CLIP's ResNets: equal to a slow reference, and whatever is frozen in them stays as it was."""

import pytest
import torch
from torch.nn import functional as F

from mmchat.errors import UserError
from mmchat.training.distributed.activation_checkpointing import CHECKPOINTING
from mmchat.vision import TowerConfig, TowerSpec, build_tower, load_tower
from tests.vision import slow_clip

TOLERANCE = 2e-5
LAYERS, WIDTH, SIZE, OUTPUT = (1, 2, 1, 2), 4, 64, 12


@pytest.fixture(scope="module")
def state():
    return slow_clip.random_state(slow_clip.resnet_shapes(LAYERS, WIDTH, SIZE, OUTPUT))


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    """A state dict as a CLIP has it; of the text half, one weight stands for all."""
    path = tmp_path_factory.mktemp("resnet") / "weights.pt"
    torch.save({**{f"visual.{key}": tensor for key, tensor in state.items()}, "logit_scale": torch.ones(())}, path)
    return path


@pytest.fixture
def pixels():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", [-5, 0, 1, 2, 3, -1])
def test_features_are_the_grid_in_reading_order(path, state, pixels, layer):
    tower = load_tower(path, layer=layer)
    grids, pooled = slow_clip.resnet(state, pixels)
    with torch.no_grad():
        output = tower(pixels, pooled=True)
        assert torch.equal(tower(pixels).patches, output.patches)
    expected = torch.stack([grids[layer][:, :, y, x] for y, x in torch.cartesian_prod(*grid_ranges(grids[layer]))], 1)
    torch.testing.assert_close(output.patches, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.pooled, pooled, atol=TOLERANCE, rtol=0)
    assert output.patches.shape[1:] == (tower.spec.tokens, tower.spec.dim)
    assert tower.spec.patch_size == SIZE // grids[layer].shape[-1]


def grid_ranges(grid):
    return torch.arange(grid.shape[2]), torch.arange(grid.shape[3])


def test_layers_of_one_grid_lie_side_by_side(path, state, pixels):
    tower = load_tower(path, layer=(0, 1))
    grids, _ = slow_clip.resnet(state, pixels)
    expected = torch.cat(grids[:2], dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower(pixels).patches, expected, atol=TOLERANCE, rtol=0)
    assert tower.spec == TowerSpec(SIZE, 4, 256, WIDTH + 4 * WIDTH, tower.spec.preprocessing)


def test_another_size(path, state):
    tower = load_tower(path, image_size=96)
    positions = state["attnpool.positional_embedding"]
    grid = positions[1:].T.reshape(1, -1, 2, 2)
    grid = F.interpolate(grid, (3, 3), mode="bicubic").flatten(2)[0].T
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    grids, pooled = slow_clip.resnet(
        {**state, "attnpool.positional_embedding": torch.cat([positions[:1], grid])}, pixels
    )
    with torch.no_grad():
        output = tower(pixels, pooled=True)
    torch.testing.assert_close(output.patches, grids[-1].flatten(2).transpose(1, 2), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(output.pooled, pooled, atol=TOLERANCE, rtol=0)
    assert (tower.spec.image_size, tower.spec.tokens) == (96, 9)
    with pytest.raises(UserError, match="80 is not a multiple of patch size 32; the nearest sizes are 64 and 96"):
        load_tower(path, image_size=80)


@pytest.mark.parametrize("recomputed", [None, *sorted(CHECKPOINTING)])
def test_gradients(path, state, pixels, recomputed):
    tower = load_tower(path).train()
    ran = []
    for block in tower.backbone.layer4:
        block.bn1.register_forward_hook(lambda *_: ran.append(1))
    if recomputed:
        tower.backbone.activation_checkpointing_enable(CHECKPOINTING[recomputed])
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in state.items()}
    grids, pooled = slow_clip.resnet(leaves, pixels)
    (grids[-1].square().mean() + pooled.square().mean()).backward()
    output = tower(pixels, pooled=True)
    (output.patches.square().mean() + output.pooled.square().mean()).backward()
    assert len(ran) == (4 if recomputed else 2)
    for name, parameter in tower.backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[name].grad, atol=TOLERANCE, rtol=1e-4, msg=name)


def test_training_leaves_statistics_alone(path, pixels):
    tower = load_tower(path)
    evaluated = tower.eval()(pixels).patches
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    alone = tower.train()(pixels[:1]).patches
    torch.testing.assert_close(alone, evaluated[:1], atol=TOLERANCE, rtol=0)
    assert before.keys() and all(torch.equal(buffer, before[name]) for name, buffer in tower.named_buffers())


def test_stages_above_the_layer_are_idle(path, pixels):
    tower = load_tower(path, layer=2)
    tower(pixels).patches.sum().backward()
    idle = {id(parameter) for parameter in tower.idle_parameters()}
    assert idle == {id(p) for p in tower.parameters() if p.grad is None}
    assert {id(p) for p in tower.backbone.attnpool.parameters()} < idle


def test_random_weights_keep_the_scale_of_what_passes():
    torch.manual_seed(0)
    tower = build_tower(TowerConfig("clip_resnet", {"layers": [2, 2, 2, 2], "width": 16, "image_size": 64}))
    output = tower(torch.randn(4, 3, 64, 64), pooled=True)
    assert 0.1 < output.patches.std() < 10
    assert 0.01 < output.pooled.std() < 10


def test_under_autocast(path, pixels):
    tower = load_tower(path)
    exact = tower(pixels, pooled=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tower(pixels, pooled=True)
    for name in ("patches", "pooled"):
        assert 0 < (rounded[name] - exact[name]).abs().max() < 0.1 * exact[name].abs().max()


def test_settings_that_it_does_not_have(path):
    with pytest.raises(UserError, match="a clip_resnet has neither a class token nor a last norm"):
        load_tower(path, class_token=True)
    with pytest.raises(UserError, match=r"layers \(-1, -2\) .* a feature every \[16, 32\] pixels, .* choose one layer"):
        load_tower(path, layer=(-1, -2))
    with pytest.raises(UserError, match=r"4 stages and an even width, found layers \[1, 1, 1\] and width 7"):
        build_tower(TowerConfig("clip_resnet", {"layers": [1, 1, 1], "width": 7}))
    with pytest.raises(UserError, match="feature layer 5 does not exist in a tower of 4"):
        load_tower(path, layer=5)


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_strictness(path, tmp_path, change):
    tensors = torch.load(path)
    if change == "missing":
        del tensors["visual.layer2.1.bn2.running_var"]
    elif change == "left over":
        tensors["visual.layer2.1.bn4.bias"] = torch.zeros(3)
    else:
        tensors["visual.layer2.1.bn2.running_var"] = torch.ones(3)
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=rf"do not fit its config: {change}: backbone\.layer2\.1\.bn"):
        load_tower(tmp_path / "weights.pt")


def test_statistics_without_a_count_of_batches(path, tmp_path, pixels):
    tensors = {key: t for key, t in torch.load(path).items() if not key.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "weights.pt")
    assert torch.equal(load_tower(tmp_path / "weights.pt")(pixels).patches, load_tower(path)(pixels).patches)
