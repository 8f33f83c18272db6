"""What a packed run reports and refuses before its first step."""

import re

import pytest

from mmchat.data.quarantine import Quarantine
from mmchat.errors import SharedError, UserError
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.distributed.deepspeed_config import deepspeed_config
from mmchat.training.objectives.assistant import AssistantObjective
from tests.training_fixtures import run_values, write_mixture, write_records


@pytest.fixture
def dataloader(tmp_path, assistant_dir, monkeypatch):
    """dataloader(**changes of the config): over a mixture whose longest sample has 145 tokens, some with two images."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    mixture = write_mixture(tmp_path / "data", 24)

    def make(**changes):
        config = RunConfig(**(run_values(tmp_path, assistant_dir, mixture) | changes))
        return TrainingDataLoader(
            config, AssistantObjective(config), Quarantine(tmp_path / "quarantine.jsonl", "stop", writes=False)
        )

    return make


def test_a_step_holds_the_same_samples_packed_or_not(dataloader):
    padded, packed = dataloader(), dataloader(objective={"packing": {"tokens": 203}})
    steps = list(zip(padded.steps(1), packed.steps(1), strict=True))
    assert [number for (number, _), _ in steps] == [2, 3, 4]
    for (number, [batch]), (same, rows) in steps:
        assert number == same and len(rows) > 3
        assert sorted(batch.ids) == sorted(name for row in rows for name in row.ids)
        assert batch.tokens == sum(row.tokens for row in rows) == sum(row.positions for row in rows) < batch.positions
        assert batch.supervised == sum(row.supervised for row in rows)
        assert all(row.positions <= 203 for row in rows)


def test_padded_forwards_hold_samples_of_like_length(dataloader):
    padded, grouped = dataloader(), dataloader(objective={"packing": {"tokens": 300, "padded": True}})
    assert str(grouped.splitter) == "samples of similar length, padded to at most 300 tokens"
    for (_, [batch]), (_, forwards) in zip(padded.steps(0), grouped.steps(0), strict=True):
        assert sorted(batch.ids) == sorted(name for one in forwards for name in one.ids)
        assert batch.supervised == sum(one.supervised for one in forwards)
        assert all(one.packed is None and one.positions <= 300 for one in forwards)
        assert batch.tokens <= sum(one.positions for one in forwards) < batch.positions


def test_the_row_is_max_length_unless_said_otherwise(dataloader, tmp_path):
    validation = {"path": str(write_records(tmp_path / "heldout", 9)), "max_length": 300, "every": 2}
    packed = dataloader(objective={"packing": {}}, validation=validation, batch_size=4)
    assert str(packed.splitter) == "rows of at most 400 tokens"
    rows = [row for stretch in packed.held_out() for row in stretch]
    assert sorted(name for row in rows for name in row.ids) == [f"r{number}" for number in range(9)]
    assert 200 < max(row.positions for row in rows) <= 300


@pytest.mark.parametrize(("own", "longest"), [({}, 140), ({"max_length": 135}, 135), ({"max_length": 2000}, 170)])
@pytest.mark.parametrize("objective", [{}, {"packing": {"tokens": 2000}}])
def test_held_out_samples_are_cut_to_their_own_max_length(dataloader, tmp_path, own, longest, objective):
    heldout = write_records(tmp_path / "heldout", 24)
    training, validation = {"path": str(heldout), "max_length": 140}, {"path": str(heldout), "every": 2} | own
    loader = dataloader(objective=objective, data=training, validation=validation, batch_size=1)
    batches = [batch for chunk in loader.held_out() for batch in chunk if batch.ids]
    assert len(batches) == 24 and max(batch.positions for batch in batches) == longest
    assert (sum(batch.cut for batch in batches) > 0) == (longest < 170)


@pytest.mark.parametrize(
    ("packing", "fault"),
    [
        (
            {"tokens": 144},
            "has 145 tokens and 2 view(s) of images, but objective.packing.tokens is 144 "
            "and objective.packing.images None",
        ),
        (
            {"tokens": 144, "padded": True},
            "has 145 tokens and 2 view(s) of images, but objective.packing.tokens is 144",
        ),
        (
            {"images": 1},
            "has 131 tokens and 2 view(s) of images, but objective.packing.tokens is 400 "
            "and objective.packing.images 1",
        ),
    ],
)
def test_a_sample_that_fits_into_no_forward_is_named(dataloader, packing, fault):
    with pytest.raises(SharedError, match=r"fit into no forward: \S+:\w+ \d+ \(id r\d+\) " + re.escape(fault)):
        dataloader(objective={"packing": packing})


def test_a_source_that_cannot_be_measured_is_a_message(dataloader, tmp_path):
    records = write_records(tmp_path / "long", 3, images=1)
    with pytest.raises(SharedError, match=r"records.json has no usable record; the first: "):
        dataloader(objective={"packing": {}}, data={"path": str(records), "max_length": 9})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"micro_batch_size": 2}, "packing.tokens already limits a forward; leave out micro_batch_size"),
        ({"objective": {"kind": "contrastive", "packing": {}}}, "key 'objective.packing' belongs to kind assistant"),
        ({"objective": {"packing": {"token": 9}}}, "unknown key 'objective.packing.token'"),
    ],
)
def test_what_does_not_go_with_packing_is_refused(tmp_path, changes, fault):
    values = run_values(tmp_path, tmp_path, tmp_path, **{"objective": {"packing": {}}, **changes})
    with pytest.raises(UserError, match=re.escape(fault)):
        validate(RunConfig, values, "run.yaml")


def test_any_number_of_ranks_shares_a_packed_batch_and_a_resume_may_plan_anew(tmp_path):
    config = RunConfig(**run_values(tmp_path, tmp_path, tmp_path, objective={"packing": {}}, batch_size=7))
    derived = deepspeed_config(config, ranks=3)
    assert derived["train_batch_size"] == 3 * derived["train_micro_batch_size_per_gpu"]
