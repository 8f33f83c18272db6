"""The feature cache: the same losses and gradients without running a tower, and nothing stale or lost on the way."""

import io
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from mmchat.data.dataset import MixtureDataset
from mmchat.data.feature_cache import NO_FEATURES
from mmchat.data.quarantine import Quarantine
from mmchat.errors import SharedError, UserError
from mmchat.model.directory import save_assistant
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.distributed.signals import StopSignals
from mmchat.training.feature_extraction import fill_cache
from mmchat.training.feature_extraction.fill_cache import fill_feature_cache, identity
from mmchat.training.feature_extraction.passes import DistributedPass
from mmchat.training.trainer import Trainer
from mmchat.training.validation.held_out_loss import held_out_loss
from tests.training.varying_views import CUTS
from tests.training_fixtures import run_values, write_records

SIZES = ((60, 28), (31, 24), (30, 95))
"""Of 3, 1 and 4 views in tiles of 28."""
FROZEN_TOWERS = {"towers": "frozen", "projectors": "full", "language_model": "full"}


class Run:
    """A run up to its first step, in this process."""

    def __init__(self, folder, model, data, **changes):
        values = run_values(folder, model, data, trainable=FROZEN_TOWERS, steps=3) | changes
        self.config = validate(RunConfig, values, "test")
        self.objective = build_model(self.config).objective
        self.quarantine = Quarantine(folder / "quarantine.jsonl", self.config.on_bad_sample)
        self.dataloader = TrainingDataLoader(self.config, self.objective, self.quarantine)
        self.said = ""

    def fill(self, signals=None, **options):
        console = Console(file=io.StringIO(), width=1000)
        config = self.config
        ranks = DistributedPass(config.workers, self.quarantine, signals or StopSignals())
        given = (config.objective.feature_cache, config.precision, self.objective, self.dataloader.samples(), ranks)
        try:
            return fill_feature_cache(*given, console, **options)
        finally:
            self.said = console.file.getvalue()

    def gradients(self, batch, images_on_any_rank=True):
        """Loss, and every parameter's gradient."""
        model = self.objective.model
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.objective.loss_sum(model, batch, images_on_any_rank)
        loss.backward()
        named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        return loss.item(), {name: grad.clone() for name, grad in named.items()}


@pytest.fixture
def make_run(tmp_path, assistant_dir):
    """make_run(model, data, **changes of the config): upon 24 records unless told, with a cache."""
    records = write_records(tmp_path / "data", 24)

    def make(model=assistant_dir, data=records, **changes):
        return Run(tmp_path, model, data, **({"objective": {"feature_cache": str(tmp_path / "cache")}} | changes))

    return make


def differences(one, other):
    """Of the loss, relative, and of the gradients, relative to each one's largest entry."""
    (loss, gradients), (other_loss, others) = one, other
    assert gradients.keys() == others.keys()
    of_gradients = [((g - others[name]).abs().max() / others[name].abs().max()).item() for name, g in gradients.items()]
    return abs(loss - other_loss) / abs(other_loss), of_gradients


def never_run(module, inputs):
    raise AssertionError("a tower ran")


def model_with(tmp_path, make_assistant, make_tower, what):
    if what == "one tower":
        parts = {}
    elif what in CUTS:
        parts = {"towers": [make_tower(layer=-2, preprocessing=CUTS[what])]}
    else:
        size = {"image_size": 32, "patch_size": 8}
        conv = make_tower(family="conv_vit", layer=-1, backbone={**size, "stem_width": 8, "stem_depth": 2})
        parts = {"towers": [make_tower(layer=-2, backbone=size), conv], "projector": "pixel_shuffle"}
    save_assistant(*make_assistant(**parts), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("packing", [None, {"tokens": 400}], ids=["padded", "packed"])
@pytest.mark.parametrize("what", ["one tower", "two towers", "tiles", "onevision", "split"])
def test_losses_and_gradients_are_those_of_the_towers(tmp_path, make_assistant, make_tower, make_run, what, packing):
    model = model_with(tmp_path, make_assistant, make_tower, what)
    data = write_records(tmp_path / "sizes", 24, sizes=SIZES)
    without = make_run(model, data, objective={"packing": packing})
    cached = make_run(
        model, data, objective={"feature_cache": str(without.config.run_dir.parent / "cache"), "packing": packing}
    )
    assert cached.fill() == 0
    for tower in cached.objective.model.towers:
        tower.register_forward_pre_hook(never_run)
    for (_, batches), (_, expected) in zip(cached.dataloader.steps(0), without.dataloader.steps(0), strict=True):
        for batch, like in zip(batches, expected, strict=True):
            assert batch.pixel_values is None
            assert (batch.ids, batch.images, batch.views) == (like.ids, like.images, like.views)
            loss, of_gradients = differences(cached.gradients(batch), without.gradients(like))
            assert loss < 1e-6 and max(of_gradients) < 1e-5


def test_in_bf16_the_difference_is_that_of_another_batch(make_run):
    """Features are rounded to bf16 before the first projector does so anyway."""
    without, cached = (
        make_run(precision="bf16", objective={"feature_cache": where})
        for where in (None, str(make_run().config.objective.feature_cache))
    )
    assert cached.fill() == 0
    (_, [batch]), (_, [like]) = (next(iter(run.dataloader.steps(0))) for run in (cached, without))
    assert batch.tower_features[0].dtype == torch.bfloat16
    expected = without.gradients(like)
    images = like.pixel_values[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        tower = without.objective.model.towers[0]
        alone = torch.cat([tower(image[None]).patches for image in images])
    other = without.gradients(replace(like, pixel_values=None, tower_features=[alone]))
    loss, of_gradients = differences(cached.gradients(batch), expected)
    other_loss, of_others = differences(other, expected)
    assert loss <= max(1e-6, 2 * other_loss)
    assert max(of_gradients) <= max(1e-6, 2 * max(of_others))


def test_a_micro_batch_of_text_alone_runs_the_projectors(make_run):
    run = make_run()
    run.fill()
    run.objective.model.towers[0].register_forward_pre_hook(never_run)
    batch = run.objective.collator([])
    _, gradients = run.gradients(batch)
    of_projectors = [gradient for name, gradient in gradients.items() if name.startswith("projectors")]
    assert of_projectors and all(gradient is not None and not gradient.any() for gradient in of_projectors)


def test_the_second_run_computes_nothing_and_an_image_is_stored_once(tmp_path, make_run):
    shutil.copy(tmp_path / "data" / "1-0.png", tmp_path / "data" / "2-0.png")
    shutil.copy(tmp_path / "data" / "1-0.png", tmp_path / "data" / "4-0.png")
    first, second = make_run(steps=100), make_run(steps=100)
    first.fill()
    images = len(list((tmp_path / "data").glob("*.png"))) - 2
    size = 16 * 32 * 4
    assert f": {images} images, 0 of them cached; {images} to compute, {images * size / 1e6:.1f} MB" in first.said
    assert f"features of {images} images written" in first.said
    second.objective.model.towers[0].register_forward_pre_hook(never_run)
    second.fill()
    assert second.said.endswith(f": {images} images, {images} of them cached\n")


def test_a_view_is_a_record(tmp_path, make_assistant, make_tower, make_run):
    """If an image has views in several shards, only those of a lost shard are computed again."""
    model = model_with(tmp_path, make_assistant, make_tower, "tiles")
    data = write_records(tmp_path / "sizes", 6, images=1, sizes=SIZES)
    first, second = make_run(model, data, steps=100), make_run(model, data, steps=100)
    first.fill(shard_bytes=1)
    views = 2 * (3 + 1 + 4)
    assert f": {views} views, 0 of them cached; {views} to compute" in first.said
    assert f"features of {views} views written" in first.said
    shards = sorted((tmp_path / "cache").glob("*/*.shard"))
    assert len(shards) == views
    for shard in shards[:3]:
        shard.unlink()
    second.fill()
    assert f": {views} views, {views - 3} of them cached; 3 to compute" in second.said
    assert "features of 3 views written" in second.said


def test_only_images_that_the_run_takes_are_computed(tmp_path, make_run):
    held_out = {"path": str(write_records(tmp_path / "heldout", 4, images=1))}
    run = make_run(steps=1, batch_size=2, validation=held_out)
    run.fill()
    records = [run.dataloader.mixture.find(number)[1] for number in run.dataloader.order.step(0)]
    taken = {image.read() for record in records for image in record.images}
    taken |= {path.read_bytes() for path in (tmp_path / "heldout").glob("*.png")}
    assert f": {len(taken)} images, 0 of them cached" in run.said
    batches = [batch for stretch in run.dataloader.held_out() for batch in stretch]
    assert [batch.images for batch in batches] == [2, 2] and batches[0].pixel_values is None


def test_text_alone_needs_no_features(tmp_path, make_run):
    run = make_run(data=write_records(tmp_path / "text", 9, images=0))
    assert run.fill() == 0 and run.said.endswith(": 0 images, 0 of them cached\n")
    [batch] = next(run.dataloader.steps(0))[1]
    assert batch.tower_features is None and run.gradients(batch)[0] > 0


def other_tower(changes):
    return lambda make_tower: make_tower(**{"layer": -2, **changes})


def one_weight(make_tower):
    tower = make_tower(layer=-2)
    with torch.no_grad():
        tower.backbone.embeddings.class_embedding[3] += 1e-6
    return tower


def other_preprocessing(make_tower):
    tower = make_tower(layer=-2)
    how = replace(tower.config.preprocessing, fit="pad")
    return make_tower(layer=-2, preprocessing=how)


@pytest.mark.parametrize(
    "other",
    [
        other_tower({"layer": -1}),
        other_tower({"class_token": True}),
        other_tower({"seed": 1}),
        other_tower({"family": "conv_vit", "backbone": {"patch_size": 4, "stem_width": 8, "stem_depth": 2}}),
        one_weight,
        other_preprocessing,
    ],
    ids=["layer", "class token", "weights", "family", "one weight", "fit"],
)
def test_any_other_tower_is_another_store(make_tower, other):
    def of(tower, precision="fp32"):
        return identity(tower, tower.spec, precision)

    tower = make_tower(layer=-2)
    assert of(tower) == of(make_tower(layer=-2)) != of(other(make_tower))
    assert of(tower) != of(tower, "bf16")
    spec = replace(tower.spec, preprocessing=replace(tower.spec.preprocessing, resample="bilinear"))
    assert of(tower) != identity(tower, spec, "fp32")


def test_another_fit_of_the_run_is_another_store(make_run, tmp_path):
    first, second = make_run(), make_run(objective={"feature_cache": str(tmp_path / "cache"), "fit": "squash"})
    first.fill()
    second.fill()
    assert " 0 of them cached" in second.said
    stores = [run.objective.features.stores[0].folder for run in (first, second)]
    assert stores[0] != stores[1] and all((folder / "tower.json").exists() for folder in stores)


def test_damaged_shards_are_computed_anew(make_run):
    make_run().fill(shard_bytes=1)
    folder = next(make_run().config.objective.feature_cache.iterdir())
    shards = sorted(folder.glob("*.shard"))
    os.truncate(shards[0], 100)
    run = make_run()
    run.fill()
    assert f"{shards[0]} was damaged" in run.said and "; 1 to compute" in run.said
    assert not shards[0].exists()


def test_a_tower_whose_features_are_there_does_not_run_for_another(tmp_path, make_assistant, make_tower, make_run):
    """As where a run was killed between the shards of two towers."""
    model = model_with(tmp_path, make_assistant, make_tower, "two towers")
    first, second = make_run(model), make_run(model)
    first.fill()
    there, gone = (store.folder for store in first.objective.features.stores)
    for shard in gone.glob("*.shard"):
        shard.unlink()
    second.objective.model.towers[0].register_forward_pre_hook(never_run)
    second.fill()
    assert len(list(there.glob("*.shard"))) == len(list(gone.glob("*.shard"))) == 1
    assert [len(store) for store in second.objective.features.stores] == [len(first.objective.features.stores[0])] * 2


class StopAfter(StopSignals):
    """Told to end when its flags have been asked for so many times."""

    def __init__(self, times):
        super().__init__()
        self.left = times

    def flags(self):
        self.left -= 1
        return [0, int(self.left < 0)]


def test_a_signal_keeps_what_was_computed(make_run, monkeypatch):
    monkeypatch.setattr(fill_cache, "IMAGES", 4)
    run = make_run(steps=100)
    assert run.fill(StopAfter(3)) == 128 + signal.SIGTERM
    assert run.objective.features is None
    assert "features of 12 images written" in run.said
    again = make_run(steps=100)
    assert again.fill() == 0 and " 12 of them cached" in again.said


def test_a_run_says_how_to_resume_when_a_signal_stops_it_here(make_run):
    console = Console(file=io.StringIO(), width=1000)
    trainer = Trainer(make_run(monitoring={"peak_tflops": 1}).config, console, StopAfter(1))
    assert trainer.fill_feature_cache() == 128 + signal.SIGTERM
    said = console.file.getvalue()
    assert "stopped before the first step; features computed so far are kept\n  resume with: mmchat train" in said


def test_no_room_is_said_before_anything_is_computed(make_run, monkeypatch):
    run = make_run()
    usage = shutil.disk_usage(run.config.run_dir.parent)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run.objective.model.towers[0].register_forward_pre_hook(never_run)
    with pytest.raises(SharedError, match=r"has too little space: features need 0\.0 MB more, 0\.0 MB are free"):
        run.fill()


def test_a_disk_that_fills_up_is_one_message(make_run, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmchat.data.feature_cache.write_bytes", full)
    with pytest.raises(SharedError, match=r"could not be written to .*: No space left on device\. .* make room, then"):
        make_run().fill()


def break_image(tmp_path, name="1-0.png"):
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:200])


def test_a_broken_image_stops_the_filling(tmp_path, make_run):
    break_image(tmp_path)
    with pytest.raises(SharedError, match=r"records\.json.*1-0\.png is broken or cut off"):
        make_run(steps=100).fill()


def test_a_broken_image_that_is_skipped_is_rejected_as_without_a_cache(tmp_path, make_run):
    break_image(tmp_path)
    run = make_run(steps=100, on_bad_sample="skip")
    assert run.fill() == 0 and not len(run.quarantine)
    square = run.objective.collator.square
    cached = MixtureDataset(run.dataloader.mixture, run.objective.encode, square, run.objective.features)
    without = MixtureDataset(run.dataloader.mixture, run.objective.encode, square)
    assert cached[1] == without[1] and cached[1].kind != NO_FEATURES
    assert len(run.objective.collator([cached[n] for n in range(3)]).rejected) == 1


def test_an_image_that_changed_since_stops_the_run_whatever_the_policy(tmp_path, make_run, make_image):
    run = make_run(steps=100, on_bad_sample="skip")
    run.fill()
    make_image(99).save(tmp_path / "data" / "1-0.png")
    square = run.objective.collator.square
    rejected = MixtureDataset(run.dataloader.mixture, run.objective.encode, square, run.objective.features)[1]
    with pytest.raises(UserError, match=r"records\.json.*1-0\.png has no features in .* --resume"):
        run.quarantine.add(rejected)


class FakeEngine:
    device = torch.device("cpu")

    def eval(self):
        pass


def test_a_validation_tells_what_it_could_not_use(tmp_path, make_run):
    """Here because an image that changed would otherwise be left out of it unseen."""
    held_out = {"path": str(write_records(tmp_path / "heldout", 4, images=1)), "max_length": 400}
    run = make_run(validation=held_out, on_bad_sample="skip")
    run.fill()
    (tmp_path / "heldout" / "2-0.png").write_bytes((tmp_path / "heldout" / "3-0.png").read_bytes()[:100])
    run.objective.loss_sum = lambda module, batch, images_on_any_rank: torch.zeros(())
    _, rejected = held_out_loss(FakeEngine(), run.objective, run.dataloader.held_out())
    assert [item.id for item in rejected] == ["r2"]


@pytest.mark.parametrize("rule", ["full", {"mode": "lora", "rank": 2}])
def test_towers_that_are_trained_are_refused(make_run, rule):
    run = make_run(trainable={**FROZEN_TOWERS, "towers": rule})
    with pytest.raises(
        SharedError, match=r"needs frozen towers, but towers\.0\.\S+ is trained .* set `towers: frozen`"
    ):
        run.fill()


def test_the_contrastive_objective_is_refused(make_run):
    with pytest.raises(UserError, match=r"'objective\.feature_cache' belongs to kind assistant, but"):
        make_run(objective={"kind": "contrastive", "feature_cache": "cache"})


def test_sources_that_are_decoded_as_drafts_are_refused(make_run):
    with pytest.raises(UserError, match="features of whole images, decoded once: leave draft out"):
        make_run(validation={"sources": {"a": {"path": "a.json"}, "b": {"path": "b.json", "draft": True}}})


def test_identity_of_weights_is_of_their_bytes(make_tower):
    """Two tensors that trade places, or shapes, are other weights."""
    tower = make_tower(layer=-2)
    before = identity(tower, tower.spec, "fp32")["weights"]
    one, other = (block.layer_norm1.bias for block in tower.backbone.encoder.layers[:2])
    with torch.no_grad():
        other.copy_(torch.from_numpy(np.arange(32, dtype=np.float32)))
        changed = identity(tower, tower.spec, "fp32")["weights"]
        one.copy_(other)
        other.zero_()
    assert len({before, changed, identity(tower, tower.spec, "fp32")["weights"]}) == 3
