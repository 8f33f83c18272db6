"""`mmchat plan` against what runs do: steps, activations, and every reason for which a run cannot go through."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from mmchat.cli.main import main
from mmchat.data.quarantine import Quarantine
from mmchat.errors import UserError
from mmchat.files import read_json, write_json
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.planning.fake_model import open_fake_model
from mmchat.planning.memory import CUDA_CONTEXT
from mmchat.planning.plan import Hardware, alternatives, make_plan
from mmchat.planning.problems import does_not_fit, unusable
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.config import RunConfig, as_dict
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.monitoring.flops import model_flops
from tests.launching import ROOT, launch, metrics, run_ranks
from tests.training_fixtures import run_values, write_mixture, write_records

FROZEN_TOWER = {"towers": "frozen", "projectors": "full", "language_model": "full"}
LORA = {"towers": "frozen", "projectors": "full", "language_model": {"mode": "lora", "rank": 4, "dropout": 0.0}}


@pytest.fixture(scope="module")
def model(make_assistant, tmp_path_factory):
    """Large enough for a block's activations to outweigh what stands around the blocks."""
    shape = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4}
    out = tmp_path_factory.mktemp("planned") / "model"
    save_assistant(*make_assistant(**shape), out)
    return out


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    """config(**changes): a run over a mixture of three sources, some samples with two images."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    mixture = write_mixture(tmp_path / "data", 24)
    values = run_values(tmp_path, model, mixture)
    return lambda **changes: validate(RunConfig, values | changes, "test")


def real_run(config):
    """The objective with real weights, and the micro-batches of each step."""
    objective = build_model(config).objective
    dataloader = TrainingDataLoader(
        config, objective, Quarantine(config.run_dir / "quarantine.jsonl", "stop", writes=False)
    )
    return objective, [batches for _, batches in dataloader.steps(0)]


def saved_in_a_real_forward(objective, batch, bf16):
    """Bytes that autograd keeps: of activations, of weights that were rounded, of logits."""
    model = objective.model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters() if parameter.dim() == 2}
    vocabulary = model.get_output_embeddings().out_features
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def forward(**inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**inputs)

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective.loss_sum(forward, batch, batch.images > 0)
    sums = {"activations": 0, "weights": 0, "logits": 0}
    for tensor in kept.values():
        rounded = bf16 and tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes
        kind = "weights" if rounded else "logits" if tensor.shape[-1:] == (vocabulary,) else "activations"
        sums[kind] += tensor.untyped_storage().nbytes()
    loss.backward()
    return sums


BF16, PACKED = {"precision": "bf16"}, {"objective": {"packing": {"tokens": 400}}}
CHECKPOINTED = {"distributed": {"activation_checkpointing": ["towers", "language_model"]}}
CASES = {
    "padded, bf16": BF16,
    "packed, checkpointed": PACKED | CHECKPOINTED,
    "padded": {},
    "packed": PACKED,
    "padded, checkpointed": CHECKPOINTED,
    "packed, bf16, checkpointed": PACKED | BF16 | CHECKPOINTED,
    "frozen tower, bf16": {"trainable": FROZEN_TOWER, **BF16},
    "LoRA": {"trainable": LORA},
    "of like length": {"objective": {"packing": {"tokens": 400, "padded": True}}},
}
FAST = ("padded, bf16", "packed, checkpointed")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES])
def test_steps_and_activations_are_those_of_a_real_run(config, case):
    run = config(**CASES[case])
    plan = make_plan(run, Hardware())
    objective, steps = real_run(run)
    assert [(r.step, r.tokens, r.positions, r.images, r.terms) for r in plan.rows] == [
        (number, *(sum(getattr(b, name) for b in batches) for name in ("tokens", "positions", "images", "supervised")))
        for number, batches in enumerate(steps, 1)
    ]
    counted = [sum(map(model_flops(objective.model).of, batches)) for batches in steps]
    assert plan.cost.operations == sum(counted) / len(counted)
    this, other = plan.steps
    assert this.packed == run.objective.packs and other.packed == (run.objective.packing is None)
    assert (this.as_configured, other.as_configured) == (True, False)
    assert [way.fill == 1 for way in plan.steps] == [way.packed for way in plan.steps]
    assert this.tokens.most == max(sum(batch.tokens for batch in batches) for batches in steps)

    (batch,) = [batch for batch in steps[plan.largest.batch.step - 1] if batch.ids == plan.largest.ids]
    real = saved_in_a_real_forward(objective, batch, run.precision == "bf16")
    planned = plan.configured_memory.activations
    inputs = sum(t.nbytes for t in (batch.input_ids, batch.attention_mask, batch.labels, *(batch.pixel_values or ())))
    assert planned.kept - inputs == pytest.approx(real["activations"], rel=0.15)
    assert planned.weight_copies >= 0.85 * real["weights"]
    assert planned.logits >= real["logits"]
    assert not plan.problems


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_are_those_that_deepspeed_holds(config, tmp_path, stage):
    run = config(distributed={"zero_stage": stage}, trainable=FROZEN_TOWER)
    (tmp_path / "run.yaml").write_text(json.dumps(as_dict(run)))
    run_ranks(ROOT / "tests/training/memory_of_states.py", tmp_path / "run.yaml", tmp_path / "real.json", ranks=2)
    planned = make_plan(run, Hardware(ranks=2)).configured_memory
    for kind, real in read_json(tmp_path / "real.json").items():
        assert getattr(planned, kind) == pytest.approx(real, rel=0.15), kind


@pytest.mark.slow
def test_what_metrics_say_on_two_ranks(config, tmp_path):
    run = config(objective={"packing": {"tokens": 400}}, distributed={"zero_stage": 2})
    (tmp_path / "run.yaml").write_text(json.dumps(as_dict(run)))
    assert launch(tmp_path / "run.yaml", ranks=2).returncode == 0
    plan, rows = make_plan(run, Hardware(ranks=2)), metrics(run.run_dir)
    for name in ("step", "tokens", "images", "terms"):
        assert [getattr(row, name) for row in plan.rows] == [row[name] for row in rows]
    assert [round(row.tokens / row.positions, 4) for row in plan.rows] == [row["fill"] for row in rows]
    assert plan.cost.operations == sum(row["operations"] for row in rows) / len(rows)


def problems(plan):
    return {problem.kind: problem.message for problem in plan.problems}


def test_a_source_with_nothing_to_learn(config, tmp_path):
    turns = [{"from": "human", "value": "word " * 900}, {"from": "gpt", "value": "cut off"}]
    (tmp_path / "long.json").write_text(json.dumps([{"id": "a", "conversations": turns}] * 3))
    plan = make_plan(config(data={"path": str(tmp_path / "long.json"), "max_length": 400}), Hardware())
    assert list(problems(plan)) == ["nothing_to_learn"]
    assert "no record can be used; the first: " in problems(plan)["nothing_to_learn"]
    assert plan.sources[0].unusable == plan.sources[0].records == 3


def test_a_record_that_would_stop_the_run(config, tmp_path):
    path = write_records(tmp_path / "some", 9)
    items = json.loads(path.read_text())
    items[4]["conversations"] = []
    path.write_text(json.dumps(items))
    data = {"path": str(path), "max_length": 400}
    plan = make_plan(config(data=data), Hardware())
    assert (plan.sources[0].records, plan.sources[0].unusable) == (9, 1)
    assert "1 of 9 records cannot be used, and the first of them stops the run" in problems(plan)["unusable"]
    assert plan.sources[0].first in problems(plan)["unusable"]
    assert not unusable(plan.sources[0], "skip")


def test_slots_that_do_not_match(config, model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    values = read_json(broken / "processor_config.json")
    write_json(broken / "processor_config.json", {**values, "image_tokens": 9})
    with pytest.raises(UserError, match="a view of an image 9 slots, but towers and projectors give it 16 features"):
        make_plan(config(model=str(broken)), Hardware())


def test_images_larger_than_a_sample_may_be(config):
    run = config()
    found = problems(make_plan(replace(run, data=replace(run.data, max_length=18)), Hardware()))
    assert "an image takes 18 tokens or more, which data.max_length 18 would cut" in found["slots"]


def test_a_sample_that_fits_no_row(config):
    found = problems(make_plan(config(objective={"packing": {"tokens": 60}}), Hardware()))
    assert list(found) == ["fits_no_row"] and "fit into no forward" in found["fits_no_row"]


def test_too_little_memory(config):
    """The advice is the least change that would do."""
    plan = make_plan(config(batch_size=24, distributed={"zero_stage": 2}), Hardware(ranks=2, memory=1 << 30))
    assert "neither ZeRO nor activation checkpointing is enough" in problems(plan)["memory"]
    this = plan.configured_memory
    assert this.zero_stage == 2
    enough = this.total + CUDA_CONTEXT
    assert not does_not_fit(this, {}, enough, "it")
    others = {"much": replace(this, parameters=0), "little": replace(this, gradients=0)}
    (problem,) = does_not_fit(this, {"nothing": this, **others}, enough - 1, "it")
    assert "but it has" in problem.message and problem.message.endswith("it would fit with much")
    assert list(alternatives(plan)) == [
        "distributed.zero_stage: 3",
        "distributed.activation_checkpointing: [towers, language_model]",
        "distributed.activation_checkpointing: [towers, language_model] and distributed.zero_stage: 3",
    ]


def test_the_command(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "run.yaml").write_text(json.dumps(as_dict(config())))
    words = ["plan", str(tmp_path / "run.yaml"), "--gpu", "H100-80GB", "--price-per-hour", "3"]
    main([*words, "--precision", "bf16", "--json", str(tmp_path / "plan.json")])
    said = capsys.readouterr().out
    assert all(part in said for part in ("What is trained", "⟦", "4 steps of 8", "ZeRO 3", "to spare", "it can run"))
    values = read_json(tmp_path / "plan.json")
    assert values["total_steps"] == len(values["rows"]) == 4 and values["gpu"] == "H100-80GB"
    assert values["cost"]["hours"] > 0 and values["problems"] == []
    for more, status, message in (
        (["--objective.packing.tokens", "60"], 1, "cannot run: "),
        (["--batchsize", "3"], 2, "the nearest valid key is 'batch_size'"),
        (["--model", "nowhere"], 2, "`mmchat init --without-weights` makes it"),
        (["--gpu", "H1000"], 2, "not in the table; there are A100"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        streams = capsys.readouterr()
        assert ended.value.code == status and message in (streams.out + streams.err).replace("\n", " ")


def test_a_directory_without_weights(model, config, tmp_path):
    """`mmchat init --without-weights` on a model directory's own parts: the same plan, and nothing to train."""
    tower = read_json(model / "config.json")["towers"][0]
    write_json(tmp_path / "tower.json", tower)
    language = read_json(model / "config.json")["text_config"]
    write_json(tmp_path / "language.json", language)
    parts = ["--language", tmp_path / "language.json", "--vision", tmp_path / "tower.json", "--tokenizer", model]
    main([str(word) for word in ("init", *parts, "--without-weights", "--out", tmp_path / "shapes")])
    assert not list((tmp_path / "shapes").glob("*.safetensors"))
    models = [open_fake_model(config(model=str(one))).objective.model for one in (model, tmp_path / "shapes")]
    shapes = [{name: parameter.shape for name, parameter in one.named_parameters()} for one in models]
    assert shapes[0] == shapes[1]
    with pytest.raises(UserError, match="holds no weights"):
        load_assistant(tmp_path / "shapes")
    main([str(w) for w in ("init", "--language", tmp_path / "language.json", "--vision", model, "--tokenizer", model,
                           "--without-weights", "--out", tmp_path / "other")])  # fmt: skip
    assert read_json(tmp_path / "other" / "config.json") == read_json(tmp_path / "shapes" / "config.json")
