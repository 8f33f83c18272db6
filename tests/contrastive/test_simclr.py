"""SimCLR: views that are drawn alike wherever they are drawn, and a tower that is handed on without its head."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmchat.data.quarantine import Quarantine
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.objectives.simclr import SimCLRObjective
from mmchat.vision import load_tower
from mmchat.vision.directory import save_tower
from mmchat.vision.transforms.augmentation import AugmentationConfig, colour_jitter, random_view, shift_hue
from tests.launching import launch, metrics, write_config
from tests.training_fixtures import run_values, write_records

STILL = {"crop_area": (1.0, 1.0), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}


def view(image, number, **how):
    return np.asarray(random_view(image, 20, AugmentationConfig(**how), np.random.default_rng(number)))


def test_views_are_drawn_from_the_generator_alone(make_image):
    image = make_image(0, 60, 40)
    assert view(image, 1).shape == (20, 20, 3)
    assert np.array_equal(view(image, 1), view(image, 1))
    assert len({view(image, number).tobytes() for number in range(20)}) == 20


def test_augmentations_switched_off(make_image):
    image = make_image(0, 20, 20)
    whole = np.asarray(image)
    # Only the whole image has its area; other aspects do not fit, and then the middle is taken.
    without_jitter = [view(image, number, **STILL) for number in range(8)]
    assert all(np.abs(one.astype(int) - whole).max() <= 8 for one in without_jitter)  # through HSV and back
    flipped = view(image, 0, **STILL | {"flip": 1})
    assert np.abs(flipped.astype(int) - whole[:, ::-1]).max() <= 8
    grey = view(image, 0, **STILL | {"grayscale": 1})
    assert (grey == grey[..., :1]).all()
    blurred = [view(image, number, **STILL | {"blur": 1}).astype(float) for number in range(8)]
    assert (
        min(np.abs(np.diff(one, axis=0)).mean() for one in blurred)
        < np.abs(np.diff(whole.astype(float), axis=0)).mean() / 2
    )


def test_a_warped_view_is_bent_and_near(make_image):
    image = make_image(0, 20, 20)
    still, bent = (view(image, 3, **STILL | {"warp": warp}).astype(float) for warp in (0, 1))
    assert np.abs(bent - still).mean() > 20
    white = Image.new("RGB", (20, 20), "white")
    middle = view(white, 3, **STILL | {"warp": 1})[8:12, 8:12]
    assert (middle == 255).all()


def test_crops_keep_within_their_area(make_image):
    """Of an image whose shade tells the column, a crop shows a stretch as wide as its area and aspect allow."""
    ramp = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2))
    how = STILL | {"crop_area": (0.25, 0.25)}
    widths = [int(np.ptp(view(ramp, number, **how)[..., 0])) for number in range(40)]
    assert 80 <= min(widths) < max(widths) <= 120  # 100, by the root of 3/4 and of 4/3


def test_colours():
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    assert shift_hue(red, 0).getpixel((0, 0)) == (200, 0, 0)
    green = shift_hue(red, 1 / 3).getpixel((0, 0))
    assert green[1] == 200 and max(green[0], green[2]) < 8
    shades = {colour_jitter(red, 1.0, np.random.default_rng(n)).getpixel((0, 0)) for n in range(10)}
    assert len(shades) == 10


@pytest.fixture
def config(tmp_path, make_tower):
    def make(**changes):
        path = tmp_path / "data"
        data = path / "records.json" if path.exists() else write_records(path, 12, images=1)
        values = run_values(tmp_path, tmp_path / "tower", data, batch_size=4, **({"objective": "simclr"} | changes))
        return validate(RunConfig, values | {"trainable": {"towers": "full", "head": "full"}}, "test")

    save_tower(make_tower(seed=2), tmp_path / "tower")
    return make


def pixels(config, tmp_path, done=0):
    dataloader = TrainingDataLoader(
        config, SimCLRObjective(config), Quarantine(tmp_path / "q.jsonl", "stop", writes=False)
    )
    return [torch.cat([batch.pixel_values[0] for batch in batches]) for _, batches in dataloader.steps(done)]


def test_views_depend_on_seed_and_step_only(config, tmp_path):
    whole = pixels(config(), tmp_path)
    assert len(whole) == 4 and whole[0].shape == (8, 3, 28, 28)
    for same in (pixels(config(micro_batch_size=1, workers=1), tmp_path), [None, *pixels(config(), tmp_path, done=1)]):
        for ours, other in zip(whole[1:], same[1:], strict=True):
            assert torch.equal(ours, other)
    # Both views of an image, and those of one step and another, are different ones.
    repeated = pixels(config(steps=6), tmp_path)
    everything = torch.cat(repeated).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)
    assert not torch.equal(pixels(config(seed=1), tmp_path)[0], whole[0])


def test_a_record_needs_one_image(config):
    objective = SimCLRObjective(config())
    with pytest.raises(ValueError, match="expected one image, found 0"):
        objective.augment([], 0, 0)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_head_is_dropped(config, tmp_path, layers):
    run = config(objective={"kind": "simclr", "head_layers": layers, "head_dim": 12, "pool": "max"})
    objective = SimCLRObjective(run)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in objective.model.head) == layers
    images = torch.randn(2, 3, 28, 28)
    vectors = objective.model.eval()(images)
    assert vectors.shape == (2, 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    objective.save(tmp_path / "out")
    tower = load_tower(tmp_path / "out").eval()
    assert torch.equal(tower(images).patches, objective.model.towers[0](images).patches)
    assert all(key.startswith("towers.0.") for key in load_file(tmp_path / "out" / "model.safetensors"))
    # The same seed begins with the same head.
    assert torch.equal(objective.model.head[0].weight, SimCLRObjective(run).model.head[0].weight)


@pytest.mark.slow
def test_a_run_leaves_a_tower(tmp_path, make_tower):
    """With every rank's micro-batches and a validation; the same whatever they are."""
    save_tower(make_tower(seed=2), tmp_path / "tower")
    data = write_records(tmp_path / "data", 12, images=1)
    values = run_values(tmp_path, tmp_path / "tower", data, objective="simclr", batch_size=4, steps=3)
    values |= {"trainable": {"towers": "full", "head": "full"}, "validation": {"path": str(data), "every": 3}}
    found = []
    for ranks, words in ((1, []), (2, ["--micro_batch_size", "1", "--distributed.zero_stage", "3"])):
        run = tmp_path / f"ranks{ranks}"
        result = launch(write_config(tmp_path / "run.yaml", **values), "--run_dir", str(run), *words, ranks=ranks)
        assert result.returncode == 0, result.stdout
        rows = [row.get("loss", row.get("validation_loss")) for row in metrics(run)]
        found.append((rows, load_tower(run / "model").state_dict()))
    (losses, tower), (same, other) = found
    assert len(losses) == 4 and losses == pytest.approx(same, abs=1e-4)
    assert max((tower[key] - other[key]).abs().max() for key in tower) < 1e-4
