"""Light changes of pages: rare, small, white where nothing was, and a function of the generator alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmchat.vision.transforms.page_augmentation import (
    AUGMENTATIONS,
    affine_about_centre,
    augment_page,
    dilate_or_erode,
    warp_mesh,
)

NAMES = [change.__name__ for _, change in AUGMENTATIONS]


@pytest.fixture(scope="module")
def page():
    image = Image.new("RGB", (96, 80), "white")
    ImageDraw.Draw(image).rectangle((30, 25, 60, 50), fill=(10, 60, 120))
    return image


def bytes_of(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("name", "change"), [(change.__name__, change) for _, change in AUGMENTATIONS], ids=NAMES)
def test_each_change_is_small_and_seeded(page, name, change):
    found = [change(page, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert all(image.size == page.size and image.mode == "RGB" for image in found)
    assert np.array_equal(*map(bytes_of, found[:2]))
    before, after = bytes_of(page), bytes_of(found[0])
    assert not np.array_equal(before, after)
    # A block of 31 x 26 pixels stays where it was, but for a few pixels at its edges, and nothing black comes in.
    assert abs(after[32:44, 38:52] - before[32:44, 38:52]).mean() < 30
    assert abs(after[:8] - 255).mean() < 30
    inked = (after.mean(axis=2) < 200).sum()
    assert 0.6 < inked / (before.mean(axis=2) < 200).sum() < 1.4


def test_two_of_three_images_stay_as_they_are(page):
    small = page.resize((24, 20))
    same = [augment_page(small, np.random.default_rng([0, number])) is small for number in range(2000)]
    stays = np.prod([1 - chance for chance, _ in AUGMENTATIONS])
    assert stays == pytest.approx(0.685, abs=0.002)
    assert np.mean(same) == pytest.approx(stays, abs=0.04)


def test_a_shift_goes_right_and_down_and_leaves_white(page):
    before, after = bytes_of(page), bytes_of(affine_about_centre(page, [[1, 0], [0, 1]], (5, 3)))
    assert np.array_equal(after[3:, 5:], before[:-3, :-5])
    assert (after[:3] == 255).all() and (after[:, :5] == 255).all()


def test_an_even_mesh_changes_nothing(page):
    lines = np.linspace(0, 96, 5), np.linspace(0, 80, 5)
    corners = np.stack(np.meshgrid(*lines), axis=-1)
    assert np.array_equal(bytes_of(warp_mesh(page, corners)), bytes_of(page))
    moved = bytes_of(warp_mesh(page, corners - [5, 3]))
    assert np.array_equal(moved[3:, 5:], bytes_of(page)[:-3, :-5])


def test_strokes_grow_or_shrink_by_a_pixel(page):
    found = [bytes_of(dilate_or_erode(page, np.random.default_rng(seed))) for seed in range(6)]
    dark = {int((pixels[..., 0] < 128).sum()) for pixels in found}
    assert dark == {30 * 25, 32 * 27}
