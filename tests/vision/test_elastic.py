"""Images bent at random: nothing at strength 0, and all channels alike."""

import numpy as np

from mmchat.vision.transforms.elastic import elastic_warp

IMAGE = np.random.default_rng(0).uniform(0, 255, (20, 20, 3)).astype(np.float32)


def test_strength_0_changes_nothing():
    np.testing.assert_allclose(elastic_warp(IMAGE, np.random.default_rng(1), 0.0), IMAGE, atol=0.1)


def test_channels_are_bent_alike():
    whole = elastic_warp(IMAGE, np.random.default_rng(1), 1.0)
    for channel in range(3):
        alone = elastic_warp(IMAGE[..., channel], np.random.default_rng(1), 1.0)
        assert np.array_equal(whole[..., channel], alone)
    assert np.abs(whole - IMAGE).mean() > 20


def test_it_stays_near():
    """A dot in the middle is moved by 9 % of a side at most, and by the bend's 6 % besides."""
    dot = np.zeros((60, 60), np.float32)
    dot[29:31, 29:31] = 255
    centres = []
    for seed in range(30):
        bent = elastic_warp(dot, np.random.default_rng(seed), 1.0)
        centres.append([(bent.sum(axis) * np.arange(60)).sum() / bent.sum() for axis in (1, 0)])
    distance = np.abs(np.array(centres) - 29.5)
    assert 3 < distance.max() < 60 * 0.15 * 1.2  # scaled as well
