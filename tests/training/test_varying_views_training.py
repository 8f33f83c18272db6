"""Training on images that are cut or at their native aspect: lengths are measured right, and a step's gradient is that
of its samples."""

import pytest
import torch

from mmchat.data.config import SourceConfig
from mmchat.data.dataset import MixtureDataset
from mmchat.data.doctor.record_checks import RecordChecker
from mmchat.data.lengths import source_lengths, source_measure
from mmchat.errors import UserError
from mmchat.model.directory import save_assistant
from mmchat.planning.plan import Hardware, make_plan
from mmchat.training.monitoring.flops import model_flops
from tests.training.varying_views import CUTS, run_over_sizes
from tests.training_fixtures import assert_gradient_equal, gradients, opened

PATCHES = {"native": 1, **dict.fromkeys(CUTS, 16)}
"""Patches of a view."""
IMAGE_BUDGET = {"tiles": 8, "native": 40, "anyres": 10, "onevision": 5, "split": 10}
PACKED = {"packing": {"tokens": 400}}


@pytest.fixture(scope="module", params=PATCHES)
def fit(request):
    return request.param


@pytest.fixture(scope="module")
def model(fit, make_assistant, make_tower, native_tower, tmp_path_factory):
    out = tmp_path_factory.mktemp(fit) / "model"
    tower = native_tower if fit == "native" else make_tower(layer=-2, preprocessing=CUTS[fit])
    save_assistant(*make_assistant(towers=[tower]), out)
    return out


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    """config(**changes): a run over a mixture of three storages, images of different sizes."""
    return run_over_sizes(tmp_path, model, monkeypatch)


def test_what_the_index_holds_is_what_training_makes(config, fit):
    objective, dataloader = opened(config())
    dataset = MixtureDataset(dataloader.mixture, objective.encode, objective.collator.square)
    number, check = 0, RecordChecker(SourceConfig(path="any"), objective.processor)
    for source in dataloader.mixture.sources:
        lengths = source_lengths(source, source_measure(source, objective.processor, 400))
        for tokens, _, images, views, patches, slots in zip(*lengths.columns, strict=True):
            record, encoded = dataloader.mixture.find(number)[1], dataset[number].encoded
            assert (len(encoded.input_ids), encoded.images, encoded.views) == (tokens, images, views)
            assert patches == PATCHES[fit] * views
            assert slots == encoded.input_ids.count(objective.collator.slot_id)
            if fit == "native":
                assert views == sum(rows * columns for rows, columns in encoded.grids)
                expected = [objective.collator.specs[0].grid(image.open().size) for image in record.images]
                assert objective.collator([dataset[number]]).grids == (expected or None)
            assert check(record).tokens == tokens
            number += 1
    assert number == 12 and len({dataset[n].encoded.views for n in range(12)}) > 2


def test_images_without_their_number_of_tokens_are_refused(config):
    objective, dataloader = opened(config())
    objective.processor.render([{"from": "human", "value": "text"}, {"from": "gpt", "value": "alone"}])
    with pytest.raises(UserError, match=r"hold 2 images, image_tokens is given for 0"):
        objective.processor.render(dataloader.mixture.find(1)[1].turns)


@pytest.mark.parametrize("split", ["packed", "of like length", "one by one"])
def test_gradients_are_those_of_the_padded_step(config, fit, split):
    changes = {
        "packed": {"objective": {"packing": {"tokens": 400, "images": IMAGE_BUDGET[fit]}}},
        "of like length": {"objective": {"packing": {"tokens": 400, "padded": True}}},
        "one by one": {"micro_batch_size": 1},
    }[split]
    objective, dataloader = opened(config())
    (_, [padded]), *_ = dataloader.steps(0)
    loss, expected = gradients(objective, [padded])
    assert padded.views > padded.images > 0
    other, dataloader = opened(config(**changes))
    (_, batches), *_ = dataloader.steps(0)
    assert len(batches) > 1 and {id for batch in batches for id in batch.ids} == set(padded.ids)
    assert sum(batch.views for batch in batches) == padded.views and sum(b.images for b in batches) == padded.images
    assert split != "packed" or max(batch.views for batch in batches) <= IMAGE_BUDGET[fit]
    if fit == "native":
        assert padded.images == len(padded.grids) and len(set(padded.grids)) > 1
        assert any(batch.grids is None for batch in batches) == (split == "one by one")  # a sample of text alone
    found_loss, found = gradients(other, batches)
    assert found_loss == pytest.approx(loss, rel=1e-6) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_gradient_equal(found[name], gradient, expected, f"{split}: {name}")


def test_a_few_steps_are_learned(config):
    objective, dataloader = opened(config(overfit_one_batch=True))
    (_, batches), *_ = dataloader.steps(0)
    trained = [parameter for parameter in objective.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(4):
        losses.append(gradients(objective, batches)[0])
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("fit", "changes"),
    [
        ("tiles", {}),
        ("tiles", {"objective": PACKED}),
        ("native", {"objective": PACKED, "precision": "bf16"}),
        ("anyres", {"objective": PACKED}),
        ("onevision", {"precision": "bf16"}),
        ("split", {}),
    ],
    ids=["tiles-padded", "tiles-packed", "native-packed", "anyres-packed", "onevision-padded", "split-padded"],
    indirect=["fit"],
    scope="module",
)
def test_the_plan_is_what_the_run_does(config, fit, changes):
    run = config(**changes)
    plan = make_plan(run, Hardware())
    objective, dataloader = opened(run)
    steps = [batches for _, batches in dataloader.steps(0)]
    assert [(row.step, row.tokens, row.images) for row in plan.rows] == [
        (number, sum(b.tokens for b in batches), sum(b.images for b in batches))
        for number, batches in enumerate(steps, 1)
    ]
    assert plan.steps[0].patches.most == PATCHES[fit] * max(sum(b.views for b in batches) for batches in steps)
    assert plan.memory and not plan.problems
    if fit == "native":
        assert plan.largest.batch.views > plan.largest.batch.images > 1
        assert model_flops(objective.model) is plan.cost is None
        return
    counted = [sum(map(model_flops(objective.model).of, batches)) for batches in steps]
    assert plan.cost.operations == sum(counted) / len(counted)
    (largest,) = [batch for batch in steps[plan.largest.batch.step - 1] if batch.ids == plan.largest.ids]
    assert plan.largest.batch.views == largest.views > largest.images
