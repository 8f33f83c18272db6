"""`augment_towers`: a tower's images are a little changed in a step; others and validation see them as they are."""

import numpy as np
import pytest
import torch

from mmchat.data.quarantine import Quarantine
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.vision.transforms import page_augmentation
from tests.training_fixtures import run_values, write_records


@pytest.fixture(scope="module")
def dual_dir(make_assistant, make_tower, tmp_path_factory):
    out = tmp_path_factory.mktemp("dual") / "model"
    save_assistant(*make_assistant(towers=[make_tower(), make_tower(1, {"image_size": 28})]), out)
    return out


@pytest.fixture
def opened(dual_dir, tmp_path):
    """opened(**changes of the config): objective and dataloader of 12 records with an image each, also held out."""
    data = write_records(tmp_path / "data", 12, images=1)

    def make(**changes):
        values = run_values(tmp_path, dual_dir, data, objective={"augment_towers": [1]}, batch_size=6, steps=4)
        values |= {"validation": {"path": str(data), "max_length": 400}} | changes
        config = validate(RunConfig, values, "test")
        objective = AssistantObjective(config)
        return objective, TrainingDataLoader(config, objective, Quarantine(tmp_path / "q.jsonl", "stop", writes=False))

    return make


@pytest.fixture
def always_noisy(monkeypatch):
    monkeypatch.setattr(page_augmentation, "AUGMENTATIONS", ((1.0, page_augmentation.gaussian_noise),))


def seen(dataloader, done=0):
    """Per step, per tower: the pixels of its images."""
    return [
        [torch.cat([batch.pixel_values[tower] for batch in batches]) for tower in range(2)]
        for _, batches in dataloader.steps(done)
    ]


def test_one_tower_sees_changed_images_in_steps_and_nowhere_else(opened, always_noisy):
    _, dataloader = opened()
    _, plain = opened(objective={})
    changed, as_they_are = seen(dataloader), seen(plain)
    for (clip, vary), (same_clip, same_vary) in zip(changed, as_they_are, strict=True):
        assert torch.equal(clip, same_clip)
        assert all(not torch.equal(one, other) for one, other in zip(vary, same_vary, strict=True))
        assert (vary - same_vary).abs().mean() < 0.2
    for batches, same in zip(dataloader.held_out(), plain.held_out(), strict=True):
        for batch, other in zip(batches, same, strict=True):
            assert all(map(torch.equal, batch.pixel_values, other.pixel_values))


def test_changes_hang_on_seed_step_and_sample_alone(opened, always_noisy):
    whole = seen(opened()[1])
    assert not torch.equal(whole[0][1].sort(0).values, whole[2][1].sort(0).values)  # the second epoch's are others
    for again in (seen(opened(micro_batch_size=2, workers=1)[1]), [None, *seen(opened()[1], done=1)]):
        for found, expected in zip(again[1:], whole[1:], strict=True):
            assert all(map(torch.equal, found, expected))
    assert not torch.equal(seen(opened(seed=1)[1])[0][1].sum(), whole[0][1].sum())


def test_images_that_are_handed_over_are_not_changed(opened, always_noisy, make_image):
    objective, _ = opened()
    image = make_image()
    before = np.array(image)
    ((first, second),) = objective.augment([image], 0, 0)
    assert first is image and np.array_equal(np.array(image), before) and second.size == image.size
    pixels = objective.processor.image_processor([image])["pixel_values"]
    assert torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": {"augment_towers": [2]}}, "augment_towers names tower 2; the model's are 0 to 1"),
        ({"objective": {"augment_towers": [-1]}}, "augment_towers names tower -1"),
        (
            {"objective": {"augment_towers": [1], "feature_cache": "cache"}},
            "feature_cache holds features of unchanged images; leave augment_towers out",
        ),
        (
            {"objective": {"kind": "contrastive", "augment_towers": [1]}},
            "belongs to kind assistant, but objective.kind is contrastive",
        ),
    ],
)
def test_what_cannot_be_is_told(opened, changes, told):
    with pytest.raises(UserError, match=told):
        opened(**changes)


def test_a_native_tower_is_refused(opened, make_assistant, native_tower, tmp_path):
    save_assistant(*make_assistant(towers=[native_tower]), tmp_path / "native")
    with pytest.raises(UserError, match="augment_towers is for towers that see squares"):
        opened(model=str(tmp_path / "native"), objective={"augment_towers": [0]})
