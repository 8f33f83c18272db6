"""How many of each source an epoch holds, and which: exact, fair, and a pure function of seed, epoch and mixture."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.data.clean_index import load_clean_index, save_clean_index
from mmchat.data.config import DataConfig
from mmchat.data.dataset import MixtureDataset
from mmchat.data.epoch_plan import EpochPlan, epoch_counts
from mmchat.data.mixture import open_mixture
from mmchat.data.quarantine import Quarantine
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.settings import validate
from mmchat.training.config import ValidationConfig
from tests.data import storing

plans = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), min_size=1, max_size=4).filter(
    lambda pairs: sum(count for _, count in pairs) > 0
)


@settings(deadline=None)
@given(pairs=plans, seed=st.integers(0, 2**31), epochs=st.integers(1, 6))
def test_every_epoch_holds_the_stated_counts(pairs, seed, epochs):
    sizes, counts = zip(*pairs, strict=True)
    plan = EpochPlan(sizes, counts)
    ends = np.cumsum(sizes)
    drawn = Counter()
    for epoch in range(epochs):
        order = plan.order(seed, epoch)
        per_source = Counter(np.searchsorted(ends, order, side="right").tolist())
        assert [per_source[number] for number in range(len(sizes))] == list(counts)
        drawn.update(order.tolist())
    for source, (size, end) in enumerate(zip(sizes, ends.tolist(), strict=True)):
        times = [drawn[number] for number in range(end - size, end)]
        assert sum(times) == epochs * counts[source]
        assert max(times) - min(times) <= 1  # nobody comes again before all have come


def test_the_order_is_portable():
    """Philox is specified bit for bit; another machine must train on this very order."""
    assert EpochPlan((3, 4), (3, 6)).order(seed=5, epoch=1).tolist() == [4, 4, 1, 6, 0, 3, 5, 2, 5]


def test_the_order_does_not_depend_on_earlier_calls():
    plan, again = EpochPlan((5, 7), (3, 20)), EpochPlan((5, 7), (3, 20))
    orders = [plan.order(3, epoch).tolist() for epoch in (4, 0, 2)]
    assert [again.order(3, epoch).tolist() for epoch in (2, 0, 4)] == orders[::-1]
    assert len({tuple(plan.order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
    samples=st.integers(1, 5000),
)
def test_an_epoch_is_divided_by_weight(sizes, weights, samples):
    weights = weights[: len(sizes)]
    counts = epoch_counts(sizes, [1.0] * len(sizes), weights, samples)
    assert sum(counts) == samples
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - samples * weight / sum(weights)) < 1


def test_counts_by_repeats_and_weights():
    assert epoch_counts([10, 4], [1.0, 2.5], [None, None], None) == (10, 10)
    assert epoch_counts([10, 4], [1.0, 2.5], [3, 1], None) == (15, 5)
    with pytest.raises(UserError, match="some sources have a weight and some have none"):
        epoch_counts([10, 4], [1, 1], [3, None], None)
    with pytest.raises(UserError, match="give every source a weight"):
        epoch_counts([10, 4], [1, 1], [None, None], 5)


def conversation(number, exchanges):
    turns = []
    for exchange in range(exchanges):
        turns += [{"from": "human", "value": f"q{number}.{exchange}"}, {"from": "gpt", "value": "a"}]
    return {"id": f"r{number}", "conversations": turns}


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Sources of 10, 6 and 4 records; the second has a broken one."""
    monkeypatch.setenv("MMCHAT_CACHE", str(tmp_path / "cache"))
    items = [conversation(number, 3) for number in range(20)]
    storing.write_json(tmp_path / "a.json", items[:10])
    storing.write_jsonl(tmp_path / "b.jsonl", [*items[10:13], {"id": "broken"}, *items[13:16]])
    storing.write_jsonl(tmp_path / "c.jsonl", items[16:])
    return tmp_path


def opened(folder, policy="skip", **sources):
    config = DataConfig(
        sources={name: {"path": str(folder / name.replace("_", ".")), **s} for name, s in sources.items()}
    )
    return open_mixture(config, Quarantine(folder / "quarantine.jsonl", policy))


def test_a_mixture_of_three_sources(three):
    mixture = opened(
        three,
        a_json={"max_samples": 8, "max_turns": 2},
        b_jsonl={"repeat": 2, "template": "plain"},
        c_jsonl={"repeat": 0.5},
    )
    assert (mixture.plan.sizes, mixture.plan.counts, len(mixture)) == ((8, 6, 4), (8, 12, 2), 18)
    ids = [mixture.find(number)[1].id for number in range(len(mixture))]
    assert ids == [f"r{n}" for n in (*range(8), *range(10, 16), *range(16, 20))]
    encoded = []

    def encode(record, images, template, max_length):
        encoded.append((template, len(record.turns)))
        return [1], [1], []

    dataset = MixtureDataset(mixture, encode, 28)
    assert [dataset[number].id for number in (0, 8, 17)] == ["r0", "r10", "r19"]
    assert encoded == [(None, 4), ("plain", 6), (None, 6)]
    drawn = Counter(mixture.find(int(n))[1].id for n in mixture.plan.order(0, 0))
    assert sum(drawn.values()) == 22
    assert [drawn[f"r{n}"] for n in range(8)] == [1] * 8 and [drawn[f"r{n}"] for n in range(10, 16)] == [2] * 6
    assert sum(drawn[f"r{n}"] for n in range(16, 20)) == 2
    lines = [json.loads(line) for line in (three / "quarantine.jsonl").read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"{three}/b.jsonl:4"]


def test_the_table_says_the_counts(three):
    from rich.console import Console

    console = Console(width=120)
    mixture = opened(three, a_json={"weight": 3, "template": "plain"}, c_jsonl={"weight": 1})
    with console.capture() as captured:
        console.print(mixture.table())
    text = " ".join(captured.get().replace("│", " ").split())
    assert "a_json 10 11 78.6 % 1.10 plain" in text and "c_jsonl 4 3 21.4 % 0.75 the model's" in text


def test_bad_records_stop_the_run_under_that_policy(three):
    with pytest.raises(UserError, match=r"b\.jsonl:4: .*is missing"):
        opened(three, "stop", b_jsonl={})
    (three / "empty.json").write_text("[]")
    with pytest.raises(UserError, match=r"empty\.json holds no usable record"):
        opened(three, empty_json={})


def test_a_clean_index_is_bound_to_its_data(three):
    source = open_source(three / "b.jsonl")
    save_clean_index(three / "clean.npz", source, np.array([0, 1, 5]))
    mixture = opened(three, "stop", b_jsonl={"index": three / "clean.npz", "max_samples": 2})
    assert [mixture.find(n)[1].id for n in range(len(mixture))] == ["r10", "r11"]
    assert load_clean_index(three / "clean.npz", source).tolist() == [0, 1, 5]
    with pytest.raises(UserError, match="made from other data than"):
        load_clean_index(three / "clean.npz", open_source(three / "c.jsonl"))
    with pytest.raises(UserError, match="does not exist; make it with `mmchat data check"):
        load_clean_index(three / "none.npz", source)
    whole = (three / "clean.npz").read_bytes()
    for damaged in (b"nothing", b"", whole[: len(whole) // 2]):
        (three / "clean.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="was not written by `mmchat data check`"):
            load_clean_index(three / "clean.npz", source)


@pytest.mark.parametrize("values", [{"path": "a", "repeat": 2}, {"sources": {"b": {"path": "b", "weight": 1}}}])
def test_a_validation_takes_no_shares(values):
    with pytest.raises(UserError, match="a validation reads every record once"):
        validate(ValidationConfig, values, "run.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either path, or sources"),
        ({"path": "a", "sources": {"b": {"path": "b"}}}, "give either path, or sources"),
        ({"sources": {"b": {"path": "b"}}, "template": "plain"}, "template belongs inside each of the sources"),
        (
            {"sources": {"b": {"path": "b", "wieght": 2}}},
            "unknown key 'sources.b.wieght'; the nearest valid key is 'sources.b.weight'",
        ),
        ({"sources": {"b": {}}}, "key 'sources.b.path' is missing"),
        ({"path": "a", "repeat": 0}, "repeat: .*greater than 0"),
    ],
)
def test_mistakes_in_a_config_are_sentences(values, message):
    with pytest.raises(UserError, match=message):
        validate(DataConfig, values, "run.yaml")
