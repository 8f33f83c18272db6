"""Supervised towers: labels and teachers give the losses they should, and a run hands its tower on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmchat.cli.main import main
from mmchat.data.samples import Sample
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.settings import load_settings
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.objectives.distillation import soft_cross_entropy_sum
from mmchat.vision import load_tower
from mmchat.vision.classifier import init_classifier, load_classifier, save_classifier
from tests.launching import launch, metrics, write_config
from tests.training_fixtures import opened as opened_run
from tests.training_fixtures import run_values

CLASSES = ("bright", "dark", "striped")


def paint(label, number):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 90, (28, 28, 3)) + (150 if label == "bright" else 0)
    if label == "striped":
        pixels[::2] += 150
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder for each of three classes, eight images each."""
    root = tmp_path_factory.mktemp("images")
    for label in CLASSES:
        (root / label).mkdir()
        for number in range(8):
            paint(label, number).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def start(make_tower, tmp_path_factory):
    """The directory of a classifier with a new head."""
    out = tmp_path_factory.mktemp("classifier") / "init"
    init_classifier(make_tower(seed=1), CLASSES, "pooled", out)
    return out


@pytest.fixture(scope="module")
def teacher_dir(make_tower, tmp_path_factory):
    """A classifier that sees larger images and has opinions."""
    folder = tmp_path_factory.mktemp("teacher")
    model = init_classifier(make_tower(seed=3, backbone={"image_size": 35}), CLASSES, "mean", folder / "init")
    torch.nn.init.normal_(model.head.weight)
    save_classifier(model, folder / "model")
    return folder / "model"


def values(tmp_path, start, images, objective=(), **changes):
    made = run_values(tmp_path, start, images, trainable={"towers": "full", "head": "full"})
    return made | {"objective": {"kind": "classify", **dict(objective)}} | changes


def opened(tmp_path, start, images, **objective):
    path = write_config(tmp_path / "run.yaml", **values(tmp_path, start, images, objective))
    return build_model(load_settings(RunConfig, path, [])).objective


def batch_of(objective, images):
    source = open_source(images)
    samples = []
    for index in range(len(source)):
        record = source[index]
        samples.append(Sample(index, record.id, objective.encode(record, [record.images[0].open()], None, 512)))
    return objective.collator(samples)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_hintons(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    loss = soft_cross_entropy_sum(student, teacher, temperature)
    p = (teacher / temperature).exp() / (teacher / temperature).exp().sum(1, keepdim=True)
    q = (student / temperature).exp() / (student / temperature).exp().sum(1, keepdim=True)
    torch.testing.assert_close(loss, temperature**2 * -(p * q.log()).sum())
    loss.backward()
    # Equation 2 of arXiv:1503.02531 times the temperature's square.
    torch.testing.assert_close(student.grad, temperature * (q - p).detach())


def test_losses_of_labels_and_teacher(tmp_path, start, images, teacher_dir):
    torch.manual_seed(0)
    plain = opened(tmp_path, start, images)
    batch = batch_of(plain, images)
    assert batch.input_ids[:, 0].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    torch.nn.init.normal_(plain.model.head.weight)
    logits = plain.model(batch.pixel_values[0])
    classes = batch.input_ids[:, 0]
    labels = -logits.log_softmax(1)[torch.arange(24), classes].sum()
    torch.testing.assert_close(plain.loss_sum(plain.model, batch, True), labels)

    smooth = opened(tmp_path, start, images, label_smoothing=0.1)
    targets = 0.9 * F.one_hot(classes, 3) + 0.1 / 3
    torch.testing.assert_close(smooth.loss_sum(plain.model, batch, True), -(targets * logits.log_softmax(1)).sum())

    distillation = {"teacher": str(teacher_dir), "temperature": 2, "weight": 0.75}
    taught = opened(tmp_path, start, images, distillation=distillation)
    both = batch_of(taught, images)
    assert both.pixel_values[1].shape[-1] == 35
    with torch.no_grad():
        answers = load_classifier(teacher_dir).eval()(both.pixel_values[1])
    expected = 0.75 * soft_cross_entropy_sum(logits, answers, 2.0) + 0.25 * labels
    torch.testing.assert_close(taught.loss_sum(plain.model, both, True), expected)
    names = {name for name, _ in taught.model.named_parameters()}
    assert not any("teacher" in name for name in names) and not any(
        p.requires_grad for p in taught.teacher.parameters()
    )


def test_a_teacher_needs_no_labels(tmp_path, start, images, teacher_dir):
    """Where it alone counts, a folder of any name holds images to learn from; a known label still can be scored."""
    (tmp_path / "folder" / "unlabelled").mkdir(parents=True)
    for number in range(3):
        paint("dark", number).save(tmp_path / "folder" / "unlabelled" / f"{number}.png")
    distillation = {"teacher": str(teacher_dir), "temperature": 2, "weight": 1}
    taught = opened(tmp_path, start, images, distillation=distillation)
    batch = batch_of(taught, tmp_path / "folder")
    with torch.no_grad():
        answers = load_classifier(teacher_dir).eval()(batch.pixel_values[1])
    logits = taught.model(batch.pixel_values[0])
    torch.testing.assert_close(taught.loss_sum(taught.model, batch, True), soft_cross_entropy_sum(logits, answers, 2.0))
    assert taught.count_correct(taught.model, batch, torch.device("cpu")) == (0, 0)
    labelled = batch_of(taught, images)
    assert taught.count_correct(taught.model, labelled, torch.device("cpu")) == (
        8,
        24,
    )  # a new head says "bright" of all
    with pytest.raises(UserError, match="label 'unlabelled' is none of the model's"):
        batch_of(opened(tmp_path, start, images, distillation=distillation | {"weight": 0.9}), tmp_path / "folder")


def test_views_are_of_training_images_alone(tmp_path, start, images, teacher_dir):
    """Drawn for the step and the number, and the teacher sees the same one, at its own size."""
    run = {"validation": {"path": str(images), "every": 9}, "steps": 2, "batch_size": 24}
    path = write_config(
        tmp_path / "run.yaml",
        **values(tmp_path, start, images, {"distillation": {"teacher": str(teacher_dir)}}, **run),
    )
    plain, drawn = (
        opened_run(load_settings(RunConfig, path, overrides))[1]
        for overrides in ([], ["--objective.augmentation", "{crop_area: [0.3, 0.6], jitter: 0, blur: 0}"])
    )

    def by_name(batches):
        small, large = (torch.cat([batch.pixel_values[tower] for batch in batches]) for tower in (0, 1))
        return {name: (a, b) for name, a, b in zip(batches[0].ids, small, large, strict=True)}

    for (_, before), (_, after) in zip(plain.steps(0), drawn.steps(0), strict=True):
        before, after = by_name(before), by_name(after)
        for name, (small, large) in after.items():
            assert not torch.equal(small, before[name][0])
            smaller = F.interpolate(large[None], 28, mode="bicubic", antialias=True, align_corners=False)
            assert (smaller[0] - small).abs().mean() < 0.1 * small.std()
    (_, first), (_, second) = drawn.steps(0)
    assert not torch.equal(by_name(first)["dark/0.png"][0], by_name(second)["dark/0.png"][0])
    [as_it_is], [held] = plain.held_out(), drawn.held_out()
    assert torch.equal(as_it_is[0].pixel_values[0], held[0].pixel_values[0])


def test_a_label_may_stand_beside_a_caption_and_must_be_known(tmp_path, start, images):
    rows = [
        {"image": "dark/0.png", "caption": "a night", "label": "dark"},
        {"image": "dark/0.png", "label": "bright"},
        {"image": "dark/0.png", "caption": "a night"},
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    objective = opened(tmp_path, start, images)
    night, bright, unknown = open_source(tmp_path / "table.jsonl", images)
    assert (objective.class_of(night), objective.class_of(bright)) == (1, 0)
    with pytest.raises(UserError, match="label 'a night' is none of the model's classes: bright, dark, striped"):
        objective.class_of(unknown)


@pytest.mark.parametrize("pool", ["max", "mean", "pooled"])
def test_saved_and_opened(make_tower, tmp_path, pool):
    tower = make_tower(seed=5)
    model = init_classifier(tower, CLASSES, pool, tmp_path / "model")
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        again = load_classifier(tmp_path / "model").eval()
        assert torch.equal(again.features(pixels), model.eval().features(pixels))
        assert torch.equal(load_tower(tmp_path / "model")(pixels).patches, tower(pixels).patches)
    assert again.config.classes == list(CLASSES) and not again.head.weight.any()


def test_mistakes(tmp_path, start, images, make_tower, assistant_dir, teacher_dir):
    with pytest.raises(UserError, match=r"expected a classifier .* any tower with `mmchat vision init`"):
        opened(tmp_path, assistant_dir, images)
    with pytest.raises(UserError, match="needs two classes or more, found 1: cat"):
        init_classifier(make_tower(), ["cat"], "pooled", tmp_path / "one")
    init_classifier(make_tower(), ["cat", "dog"], "pooled", tmp_path / "pets")
    with pytest.raises(UserError, match="knows the classes bright, dark, striped, but the model cat, dog"):
        opened(tmp_path, tmp_path / "pets", images, distillation={"teacher": str(teacher_dir)})
    path = write_config(tmp_path / "run.yaml", **values(tmp_path, start, images))
    for overrides, message in (
        (["--objective.kind", "contrastive", "--objective.label_smoothing", "0.1"], "belongs to kind classify, but"),
        (["--objective.kind", "contrastive", "--objective.augmentation", "{}"], "belongs to kinds simclr, classify"),
        (["--objective.distillation.teacher", "x", "--distributed.zero_stage", "3"], "keeps a whole teacher on every"),
    ):
        with pytest.raises(UserError, match=message):
            load_settings(RunConfig, path, overrides)


def test_it_learns(tmp_path, start, images):
    objective = opened(tmp_path, start, images)
    batch = batch_of(objective, images)
    optimizer = torch.optim.AdamW(objective.model.train().parameters(), lr=3e-3)
    for _ in range(20):
        loss = objective.loss_sum(objective.model, batch, True) / objective.terms(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = objective.model(batch.pixel_values[0]).argmax(1) == batch.input_ids[:, 0]
    assert right.all() and loss < 0.5


def test_a_step_of_nothing_has_a_gradient_of_zero(tmp_path, start, images):
    objective = opened(tmp_path, start, images)
    batch = objective.collator([])
    loss = objective.loss_sum(objective.model, batch, True)
    loss.backward()
    assert objective.terms(batch) == 0 and loss == 0
    assert objective.count_correct(objective.model, batch, torch.device("cpu")) == (0, 0)
    assert all(not p.grad.any() for p in objective.model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_a_run_learns_and_hands_its_tower_on(tmp_path, images, make_tower, teacher_dir, capsys):
    """By `mmchat vision init`, one real run with labels and a teacher that the labels outweigh, and `load_tower`."""
    (tmp_path / "tower.json").write_text(json.dumps(make_tower(seed=7).config.to_dict()))
    words = ["vision", "init", str(tmp_path / "tower.json"), "--classes", str(images)]
    assert main([*words, "--out", str(tmp_path / "init")]) == 0
    assert "3 classes (bright, dark, striped)" in capsys.readouterr().out
    held_out = {"path": str(images), "every": 20}
    objective = {"distillation": {"teacher": str(teacher_dir), "weight": 0.01}, "label_smoothing": 0.05}
    run = values(tmp_path, tmp_path / "init", images, objective, steps=30, batch_size=12, validation=held_out)
    run["optimizer"] = {"lr": 3e-3}
    result = launch(write_config(tmp_path / "run.yaml", **run))
    assert result.returncode == 0, result.stdout
    rows = metrics(tmp_path / "run")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] > 2 * losses[-1] > 0
    assert [(row["step"], row["validation_top1"]) for row in rows if "validation_top1" in row] == [
        (20, pytest.approx(1, abs=0.5)),
        (30, 1.0),
    ]
    model = load_classifier(tmp_path / "run" / "model").eval()
    objective = opened(tmp_path, tmp_path / "run" / "model", images)
    batch = batch_of(objective, images)
    with torch.no_grad():
        assert (model(batch.pixel_values[0]).argmax(1) == batch.input_ids[:, 0]).all()
        tower = load_tower(tmp_path / "run" / "model")
        assert torch.equal(tower(batch.pixel_values[0], pooled=True).pooled, model.features(batch.pixel_values[0]))
