"""The same data gives the same gradient, for any split, sharding and recomputation of a step."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmchat.data.quarantine import Quarantine
from mmchat.model.directory import load_assistant, save_assistant
from mmchat.settings import load_settings
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.vision import Tiling
from mmchat.vision.spec import Preprocessing
from tests.launching import ROOT, run_ranks, write_config
from tests.training_fixtures import assert_gradient_equal, run_values, write_mixture

BATCH, STEPS = 8, 3


def case(stage: int, micro: int, again: str = "", offload: str = "none") -> dict:
    parts = dict.fromkeys(["towers", "language_model"], again) if again else {}
    distributed = {"zero_stage": stage, "activation_checkpointing": parts, "offload": offload}
    return {"micro_batch_size": micro} | {f"distributed.{key}": value for key, value in distributed.items()}


def packed(stage: int, tokens: int | None = None, images: int | None = None, **others) -> dict:
    return case(stage, 1, **others) | {
        "micro_batch_size": None,
        "objective.packing": {"tokens": tokens, "images": images},
    }


def grouped(stage: int, tokens: int) -> dict:
    return case(stage, 1) | {"micro_batch_size": None, "objective.packing": {"tokens": tokens, "padded": True}}


IN_PIECES = {"distributed.deepspeed": "small.json"}
"""A user's own DeepSpeed JSON: sizes so small that a model of this size is reduced and stepped in many pieces."""
SMALL, LONGEST = 203, 145
"""Budgets of a row: steps take from two to six rounds; the longest sample fills a row to the last token."""
COVERING = {
    1: [case(0, 8), case(0, 2, again="selective"), case(3, 1, again="selective"), packed(0), packed(2, LONGEST)],
    2: [
        *(case(0, 4), case(1, 2, again="all"), case(2, 1), case(2, 1, offload="optimizer"), case(3, 1, again="all")),
        *(packed(1, SMALL, 2), packed(3, SMALL) | IN_PIECES, grouped(2, SMALL)),
    ],
}
"""Ranks -> what is looked at always; `--slow` looks at every combination."""
SELECTIVE = [case(stage, 2, again="selective") for stage in range(4)]
PIECES = [case(stage, 1) | IN_PIECES for stage in (1, 2, 3)] + [case(3, 2, offload="all") | IN_PIECES]
OFFLOADED = [case(stage, 1, offload=what) for stage, what in ((1, "optimizer"), (2, "optimizer"), (3, "all"))]
PACKED = [packed(*chosen, again=again) for *chosen, again in product(range(4), (None, SMALL), (None, 2), ("", "all"))]
PACKED += [grouped(stage, SMALL) for stage in range(4)]
PACKED += [packed(stage, SMALL, offload=what) for stage, what in ((1, "optimizer"), (2, "optimizer"), (3, "all"))]
WHOLE = {
    ranks: [case(*chosen) for chosen in product(range(4), micro, ("", "all"))] + SELECTIVE + OFFLOADED + PIECES + PACKED
    for ranks, micro in ((1, (8, 4, 2, 1)), (2, (4, 2, 1)))
}


TILED = {
    1: [case(0, 2), packed(0, 400, 9), packed(3, 400)],
    2: [case(2, 1), case(3, 2, again="all"), packed(1, 400, 9), packed(3, 400)],
}
"""Images of one, three or four views: their slots would not fit into the budgets above."""
EXPERTS = {
    1: [case(0, 2), case(3, 1)],
    2: [case(3, 2), case(3, 1, again="all"), grouped(3, SMALL)],
}
"""Ranks route to different experts, and an expert may have no token on one of them."""


@pytest.fixture(scope="module")
def setup(request, tmp_path_factory, make_assistant, make_tower):
    """A kind's config on a mixture of three sources; every third record is text only, so that with single samples a
    rank is often without images while the other has some. With a rate of 0 all steps see the same weights."""
    folder = tmp_path_factory.mktemp("gradients")
    kind, sizes, towers = request.param, [(31, 24)], None
    if kind == "tiles":
        fit = Preprocessing(fit="tiles", tiling=Tiling(max_tiles=4))
        kind, sizes, towers = "llama", [(60, 28), (31, 24), (30, 95)], [make_tower(layer=-2, preprocessing=fit)]
    without_noise = {"dropout": 0.0} if kind == "opt" else {}
    save_assistant(*make_assistant(kind, words="llama", towers=towers, **without_noise), folder / "model")
    data = write_mixture(folder / "data", 24, sizes)
    values = run_values(folder, folder / "model", data, steps=STEPS, batch_size=BATCH)
    values["trainable"] = dict.fromkeys(("towers", "projectors", "language_model"), "full")
    values["optimizer"] = {"lr": 0.0, "clip": 0.0}
    return folder, write_config(folder / "run.yaml", **values)


@pytest.fixture(scope="module")
def reference(setup) -> dict[str, torch.Tensor]:
    """Gradients of whole batches by plain PyTorch: no engine, no accumulation, the loss of every position."""
    folder, path = setup
    config = load_settings(RunConfig, path, [])
    dataloader = TrainingDataLoader(
        config, AssistantObjective(config), Quarantine(folder / "none.jsonl", "stop", writes=False)
    )
    model, _ = load_assistant(config.model)
    model.train()
    found = {}
    for step, [batch] in dataloader.steps(0):
        assert len(batch.ids) == BATCH
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        logits = model(**inputs, pixel_values=batch.pixel_values).logits
        losses = []
        for row in range(BATCH):
            for position in range(1, batch.labels.shape[1]):
                label = batch.labels[row, position]
                if label >= 0:
                    losses.append(-torch.log_softmax(logits[row, position - 1], dim=-1)[label])
        model.zero_grad()
        torch.stack(losses).mean().backward()
        found |= {f"{step}/{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found


def gradients(out: Path, config: Path, ranks: int, cases: list[dict]) -> dict[str, dict[str, torch.Tensor]]:
    named = {", ".join(f"{key} {value}" for key, value in case.items()): case for case in cases}
    sizes = {"sub_group_size": 9000, "reduce_bucket_size": 5000, "stage3_param_persistence_threshold": 100}
    (out / "small.json").write_text(json.dumps({"zero_optimization": sizes}))
    found = {"distributed.deepspeed": str(out / "small.json")}
    named = {name: case | found if "distributed.deepspeed" in case else case for name, case in named.items()}
    (out / "cases.json").write_text(json.dumps(named))
    script = ROOT / "tests" / "invariants" / "gradients_of_cases.py"
    run_ranks(script, config, out / "cases.json", out, ranks=ranks)
    return {name: load_file(out / f"{name}.safetensors") for name in named}


@pytest.mark.parametrize(
    ("setup", "cases"),
    [
        pytest.param("llama", COVERING, id="llama-covering"),
        pytest.param("llama", WHOLE, marks=pytest.mark.slow, id="llama-whole"),
        pytest.param("tiles", TILED, marks=pytest.mark.slow, id="tiles"),
        pytest.param("opt", COVERING, marks=pytest.mark.slow, id="opt-covering"),
        pytest.param("qwen2", COVERING, marks=pytest.mark.slow, id="qwen2-covering"),
        pytest.param("mixtral", EXPERTS, marks=pytest.mark.slow, id="mixtral-experts"),
    ],
    indirect=["setup"],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_are_those_of_one_unaccumulated_process(setup, reference, tmp_path, ranks, cases):
    for name, found in gradients(tmp_path, setup[1], ranks, cases[ranks]).items():
        assert {key for key in found if "norm of" not in key} == set(reference), name
        for key, expected in reference.items():
            assert_gradient_equal(found[key], expected, reference, f"{ranks} ranks, {name}: {key}")
        for step, module in product(range(1, STEPS + 1), ("towers", "projectors", "language_model")):
            # What the optimizer itself was handed.
            parts = [gradient for key, gradient in reference.items() if key.startswith(f"{step}/{module}.")]
            norm = torch.stack([part.norm() for part in parts]).norm()
            assert found[f"{step}/norm of {module}"].item() == pytest.approx(norm.item(), rel=1e-4), name
