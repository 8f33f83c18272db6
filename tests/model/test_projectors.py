"""Projectors: their widths, and slots that are known before any weight is."""

import math

import pytest
import torch

from mmchat.errors import UserError
from mmchat.model.projectors import (
    POSITION_SCALE,
    PROJECTORS,
    PixelShuffle,
    Positions2D,
    slots_per_image,
    slots_per_tower,
)
from mmchat.vision import TowerSpec


@pytest.mark.parametrize("name", PROJECTORS)
def test_shapes_agree_with_the_promise(name):
    spec = TowerSpec(image_size=32, patch_size=8, tokens=16, dim=12)
    out = PROJECTORS[name].build(spec, 20)(torch.randn(3, spec.tokens, spec.dim))
    assert out.shape == (3, slots_per_tower([spec], [name])[0], 20)


def test_pixel_shuffle_puts_each_square_together_in_reading_order():
    side, dim = 6, 2
    patches = torch.arange(side * side * dim).view(1, side * side, dim)
    merged = PixelShuffle()(patches)
    grid = patches[0].view(side, side, dim)
    expected = [
        torch.cat([grid[y + dy, x + dx] for dy in (0, 1) for dx in (0, 1)])
        for y in range(0, side, 2)
        for x in range(0, side, 2)
    ]
    assert torch.equal(merged[0], torch.stack(expected))


def test_positions_tell_column_and_row_and_are_learned():
    side, dim = 4, 16
    positions = Positions2D(side, dim)
    places = positions(torch.zeros(2, side * side, dim))[1].detach().view(side, side, dim)
    for y in range(side):
        for x in range(side):
            for channel in range(dim // 4):
                rate = math.pi / 2 / side ** (channel / (dim // 4 - 1))
                expected = [math.sin(x * rate), math.cos(x * rate), math.sin(y * rate), math.cos(y * rate)]
                found = places[y, x, channel :: dim // 4] / POSITION_SCALE
                assert found.tolist() == pytest.approx(expected, abs=1e-6)
    features = torch.randn(2, side * side, dim)
    positions(features).sum().backward()
    assert (positions.places.grad == 2).all()


@pytest.mark.parametrize("tokens", [9, 17, 8])
def test_patches_that_make_no_squares_are_refused(tokens):
    with pytest.raises(UserError, match=f"merges squares of 4 patches, which {tokens} features do not fill"):
        slots_per_tower([TowerSpec(32, 8, tokens, 12)], ["pixel_shuffle"])


def test_towers_share_slots_or_follow_each_other():
    specs = [TowerSpec(32, 8, 16, 12), TowerSpec(64, 8, 64, 5)]
    assert slots_per_image(specs, ["linear", "pixel_shuffle"], "channels") == 16
    assert slots_per_image(specs, ["linear", "linear"], "sequence") == 80
    with pytest.raises(UserError, match=r"equally many tokens, found \[16, 64\]; use sequence"):
        slots_per_image(specs, ["linear", "linear"], "channels")
