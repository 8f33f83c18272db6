"""`mmchat plan` of objectives without a language model, against real steps on the CPU."""

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmchat.cli.main import main
from mmchat.contrastive.directory import init_clip
from mmchat.errors import UserError
from mmchat.files import read_json
from mmchat.planning.plan import Hardware, make_plan
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig
from mmchat.training.optim.frozen_weights import restorable, round_frozen
from mmchat.vision.classifier import init_classifier
from mmchat.vision.directory import save_tower
from tests.launching import ROOT
from tests.training_fixtures import opened, run_values, write_records

CLASSES = ("bright", "dark")
BACKBONE = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"max_position_embeddings": 24}


@pytest.fixture(scope="module")
def folder(make_tower, data_dir, tmp_path_factory):
    """A tower, a classifier, its larger teacher, a CLIP, captions and images in a folder per class."""
    root = tmp_path_factory.mktemp("planned")
    save_tower(make_tower(seed=1, backbone=BACKBONE), root / "simclr")
    init_classifier(make_tower(seed=1, backbone=BACKBONE), CLASSES, "pooled", root / "classify")
    teacher = {**BACKBONE, "image_size": 35, "num_hidden_layers": 6}
    init_classifier(make_tower(seed=3, backbone=teacher), CLASSES, "mean", root / "teacher")
    tokenizer = str(data_dir / "tokenizers" / "neox_like")
    init_clip(make_tower(seed=1, backbone=BACKBONE), TEXT, tokenizer, 16, "max", root / "contrastive")
    for label in CLASSES:
        (root / "images" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / label / f"{number}.png")
    captions = json.loads(write_records(root / "captions", 16, images=1).read_text())
    for record in captions:
        record["conversations"] = record["conversations"][:2]
        record["conversations"][0]["value"] = "<image>"
    (root / "captions" / "records.json").write_text(json.dumps(captions))
    return root


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    """config(kind, changes of the objective, **changes): a run of that objective."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))

    def make(kind, objective=None, **changes):
        data = folder / "captions" / "records.json" if kind == "contrastive" else folder / "images"
        clip = ("text_encoder", "image_projection", "text_projection", "image_norm", "logit_scale")
        modules = dict.fromkeys(("towers", *(clip if kind == "contrastive" else ("head",))), "full")
        values = run_values(tmp_path, folder / kind, data, trainable=modules, steps=2)
        return validate(RunConfig, values | {"objective": {"kind": kind, **(objective or {})}} | changes, "test")

    return make


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of real tensors that were created inside the `with` and are still alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and (storage := tensor.untyped_storage())._cdata not in before:
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def real_step(config, number):
    """(objective, micro-batches) of a step, from 1."""
    objective, dataloader = opened(config)
    return objective, dict(dataloader.steps(0))[number]


def real_peak(objective, batches):
    """Peak bytes of a step besides parameters and their gradients, and the batch that is on the device."""
    model = objective.model.train()
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with LiveBytes() as live:
        for loss in objective.losses(model, batches, [True] * len(batches), torch.device("cpu")):
            loss.backward()
            del loss
    batch = max(batches, key=lambda batch: batch.views)
    tensors = [batch.input_ids, batch.attention_mask, batch.labels, *batch.pixel_values]
    return live.peak + sum(tensor.nbytes for tensor in tensors)


DISTILLED = {"distillation": {"teacher": "teacher", "weight": 0.5}, "label_smoothing": 0.1}
CASES = {
    "simclr": ("simclr", {}, {}),
    "simclr, gradient cache": ("simclr", {"pool": "max"}, {"micro_batch_size": 2}),
    "classify": ("classify", {}, {}),
    "classify, checkpointed": ("classify", {}, {"distributed": {"activation_checkpointing": ["towers"]}}),
    "classify, distilled": ("classify", DISTILLED, {"micro_batch_size": 4}),
    "contrastive": ("contrastive", {}, {}),
    "contrastive, gradient cache": ("contrastive", {}, {"micro_batch_size": 2}),
}


def made(config, folder, case):
    kind, objective, changes = CASES[case]
    if "distillation" in objective:
        objective = {**objective, "distillation": {**objective["distillation"], "teacher": str(folder / "teacher")}}
    return config(kind, objective, **changes)


@pytest.mark.parametrize("case", CASES)
def test_steps_and_peak_memory_are_those_of_a_real_step(config, folder, case):
    run = made(config, folder, case)
    plan = make_plan(run, Hardware())
    assert not plan.problems
    largest = plan.largest.batch
    objective, batches = real_step(run, largest.step)
    row = next(row for row in plan.rows if row.step == largest.step)
    totals = [sum(getattr(batch, name) for batch in batches) for name in ("tokens", "positions", "images")]
    assert [row.tokens, row.positions, row.images, row.terms] == [*totals, sum(map(objective.terms, batches))]
    assert largest.views == max(batch.views for batch in batches)
    assert plan.steps[0].forwards.most == len(batches)
    planned = plan.configured_memory
    assert planned.activations.total == pytest.approx(real_peak(objective, batches), rel=0.1)
    assert planned.parameters == 4 * sum(parameter.numel() for parameter in objective.model.parameters())
    teacher = objective.teacher
    assert planned.teacher == (4 * sum(p.numel() for p in teacher.parameters()) if teacher is not None else 0)
    assert [memory.zero_stage for memory in plan.memory] == ([0, 1, 2] if teacher is not None else [0, 1, 2, 3])


@pytest.mark.parametrize("foreign", [False, True])
def test_frozen_weights_are_planned_in_the_precision_that_the_run_keeps(config, folder, data_dir, foreign):
    """Only weights that can be read back are kept in bf16: not those of a foreign source, under other names."""
    source = data_dir / "clip_vit_tiny_hf4" if foreign else folder / "simclr"
    trainable = {"towers": "frozen", "head": "full"}
    run = config("simclr", model=str(source), trainable=trainable, precision="bf16")
    real = build_model(run).objective.model
    assert bool(restorable(real, source)) != foreign
    round_frozen(real, source)
    planned = make_plan(run, Hardware()).configured_memory
    assert planned.parameters == sum(p.numel() * p.element_size() for p in real.parameters())


@pytest.mark.parametrize("case", ["simclr", "classify", "classify, distilled"])
def test_operations_are_those_that_torch_counts(config, folder, case):
    """The similarities of SimCLR do not count: 2 n (2 N) P operations forward, 4 n 2 N P backward, n views of N."""
    run = made(config, folder, case)
    plan = make_plan(run, Hardware())
    objective, batches = real_step(run, 1)
    for model in filter(None, (objective.model, objective.teacher)):
        for tower in model.towers:
            tower.backbone.set_attn_implementation("eager")  # ordinary matrix products, which torch can count
    with FlopCounterMode(display=False) as counted:
        for loss in objective.losses(objective.model.train(), batches, [True] * len(batches), torch.device("cpu")):
            loss.backward()
    views = sum(batch.views for batch in batches)
    similarities = 6 * views * views * run.objective.head_dim if case == "simclr" else 0
    assert plan.cost.operations == pytest.approx(counted.get_total_flops() - similarities, rel=0.01)


def test_a_rank_compares_its_images_with_those_of_all_ranks(config):
    """16 images per rank: two matrices of 16 x 16 similarities on one rank, of 16 x 8192 on 512 ranks."""
    alone, many = (
        make_plan(config("contrastive", batch_size=16 * ranks, steps=1), Hardware(ranks=ranks)) for ranks in (1, 512)
    )
    difference = many.configured_memory.activations.total - alone.configured_memory.activations.total
    matrix, embeddings = 16 * 8192 * 4, 2 * 8192 * 16 * 4
    assert 2 * matrix + embeddings <= difference <= 6 * matrix + 4 * embeddings


def test_what_cannot_be_planned_is_said_once(config, folder):
    with pytest.raises(UserError, match=r"model directory .*nowhere does not exist") as error:
        make_plan(config("classify", model=str(folder / "nowhere")), Hardware())
    assert "\n" not in str(error.value)
    plan = make_plan(config("classify", data={"path": str(folder / "captions" / "records.json")}), Hardware())
    assert [problem.kind for problem in plan.problems] == ["nothing_to_learn"]
    assert "none of the model's classes" in plan.problems[0].message


@pytest.mark.parametrize("name", ["vision/classify", "clip/digits_simclr"])
def test_shipped_configs_are_planned(name, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(ROOT)
    words = ["plan", f"configs/{name}.yaml", "--data.path", str(folder / "images"), "--batch_size", "8"]
    words += ["--gpu", "H100-80GB", "--precision", "bf16", "--json", str(tmp_path / "plan.json")]
    words += ["--model", str(folder / "classify")] if name == "vision/classify" else []
    main(words)
    printed = capsys.readouterr().out
    for part in ("Training data", "Peak memory of a rank", "operations per step", "at an MFU of", "it can run"):
        assert part in printed
    values = read_json(tmp_path / "plan.json")
    assert values["cost"]["operations"] > 0 and len(values["memory"]) == 4
    views = 2 if "simclr" in name else 1
    assert values["largest"]["batch"]["views"] == views * values["largest"]["batch"]["images"] == views * 8
