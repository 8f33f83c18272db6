"""A killed run, resumed on another number of ranks, stays the same run up to rounding."""

from collections import Counter
from itertools import pairwise

import pytest
from safetensors.torch import load_file

from mmchat.errors import counted
from tests.launching import kill_group, launch, metrics, random_choice, start, steps, wait_for_step, write_config
from tests.training_fixtures import run_values, write_mixture

STEPS = 14
PAIRS = ["--micro_batch_size", "2"]
"""What a forward takes where samples are padded."""


@pytest.fixture(scope="module")
def setup(request, tmp_path_factory, assistant_dir):
    """Every way to be trained, with rates and decay by module, no dropout; uninterrupted on one rank without ZeRO."""
    folder = tmp_path_factory.mktemp("world_size")
    values = run_values(folder, assistant_dir, write_mixture(folder / "data", 21), steps=STEPS)
    values["checkpoint"] = {"every": 2, "keep": 2, "asynchronous": True}
    values["optimizer"]["name"] = request.param
    values["trainable"] = {
        "towers": {"mode": "lora", "rank": 4, "dropout": 0.0},
        "projectors": {"mode": "full", "lr": 2e-3, "weight_decay": 0.3},
        "language_model": "full",
        "language_model.model.embed_tokens": "frozen",
    }
    values["ema"] = 0.9
    config = write_config(folder / "run.yaml", **values)
    result = launch(config, "--run_dir", str(folder / "whole"), *PAIRS)
    assert result.returncode == 0, result.stdout
    return folder, config


def case(optimizer, zero_stage, *ranks, offload="none", packed=None, slow=True):
    """packed: the budget of a row each time the run is started, None where it pads."""
    marks = [pytest.mark.slow] if slow else []
    name = f"{optimizer}-zero{zero_stage}-offload-{offload}-ranks-" + "-".join(map(str, ranks))
    name += f"-packed-{'-'.join(map(str, packed))}" if packed else ""
    return pytest.param(optimizer, zero_stage, offload, ranks, packed or [None] * len(ranks), marks=marks, id=name)


@pytest.mark.parametrize(
    ("setup", "zero_stage", "offload", "ranks", "packed"),
    [
        case("adamw", 2, 1, 2, 1, packed=(None, 203, 400), slow=False),
        case("adamw", 2, 1, 2, 1),
        case("adamw", 0, 2, 1, 2, packed=(203, None, 300)),
        case("adamw", 3, 2, 1, 2, packed=(203, 400, None)),
        case("adamw", 0, 1, 2, 1),
        case("adamw", 1, 1, 2, 1),
        case("adamw", 2, 2, 1),
        case("adamw", 2, 1, 2, 1, offload="optimizer"),
        case("adamw", 3, 1, 2, 1),
        case("adamw", 3, 2, 1),
        case("adamw", 3, 1, 2, 1, offload="all"),
        case("muon", 0, 1, 2, 1),
    ],
    indirect=["setup"],
    scope="module",
)
def test_a_run_killed_and_resumed_on_other_ranks_equals_the_uninterrupted_one(
    setup, zero_stage, offload, ranks, packed
):
    """Each kill comes when the ranks of then have begun two saves, the first of which is complete by then."""
    folder, config = setup
    run = folder / f"zero{zero_stage}-{offload}-{'-'.join(map(str, [*ranks, *packed]))}"
    options = ["--run_dir", str(run), "--distributed.zero_stage", str(zero_stage), "--distributed.offload", offload]
    kills = [random_choice(range(5, 8)), random_choice([11, 12])][: len(ranks) - 1]
    starts = [[*options, "--resume", *(["--objective.packing.tokens", str(row)] if row else PAIRS)] for row in packed]
    for count, words, kill_at in zip(ranks, starts, kills, strict=False):
        log = folder / f"{run.name}-{count}.log"
        process = start(config, *words, ranks=count, log=log)
        wait_for_step(process, run, kill_at)
        kill_group(process)
    result = launch(config, *starts[-1], ranks=ranks[-1])
    when = f"killed at steps {kills}:\n{result.stdout}"
    assert result.returncode == 0, when

    logs = [(folder / f"{run.name}-{count}.log").read_text() for count in ranks[1:-1]] + [result.stdout]
    for log, (before, now) in zip(logs, pairwise(ranks), strict=True):
        assert f"resuming on {counted(now, 'rank')} instead of {before}" in log and "resumed after step" in log, when
    rows, expected = steps(run), steps(folder / "whole")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), when
    assert consumed(run) == consumed(folder / "whole"), when
    for row, same in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], abs=1e-4), when
        assert (row["ids"], row["lr"], row["terms"]) == (same["ids"], same["lr"], same["terms"]), when
    for model in ("model", "model-ema"):
        weights, same = (load_file(d / model / "model.safetensors") for d in (run, folder / "whole"))
        assert max((weights[key] - same[key]).abs().max() for key in same) < 1e-4, when
    assert not list((run / "checkpoints").glob(".step-*"))


def consumed(run):
    """How often each sample was learned from."""
    return Counter(name for row in metrics(run) for name in row["ids"])
