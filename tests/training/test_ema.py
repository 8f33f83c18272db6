"""The moving average follows its formula under any sharding; launched tests cover kills and other ranks."""

import pytest
import torch
from torch import nn

from mmchat.training.checkpoints.storage import ChecksummedFiles
from mmchat.training.distributed import process_group
from mmchat.training.optim.ema import FILE, WeightAverage
from mmchat.training.optim.param_groups import ModuleGroup
from mmchat.training.optim.trainable import Rule


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def average_of(layer, decay=0.9):
    trained = dict(layer.named_parameters())
    return WeightAverage([ModuleGroup("layer", Rule(), trained, {}, 0)], decay)


def test_it_is_the_formula(layer):
    average = average_of(layer)
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for step in range(1, 31):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * p.detach() for name, p in layer.named_parameters()}
        average.update(step)
    whole = average.whole()
    assert whole.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(whole[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("before", "now"), [(1, 1), (3, 2), (2, 4), (1, 16)])
def test_shards_are_split_for_other_ranks(layer, tmp_path, monkeypatch, before, now):
    """16 ranks share 3 biases: most get nothing."""
    (tmp_path / "manifest.json").write_text(f'{{"ranks": {before}, "zero_stage": 0, "files": {{}}}}')
    for rank in range(before):
        on_rank(monkeypatch, rank, before)
        average_of(layer).save(ChecksummedFiles(), tmp_path)
        assert (tmp_path / FILE.format(rank)).is_file()
    expected = {name: p.detach().flatten().clone() for name, p in layer.named_parameters()}
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    found = {name: [] for name in expected}
    for rank in range(now):
        on_rank(monkeypatch, rank, now)
        average = average_of(layer)
        average.restore(tmp_path)
        for name, share in average._shards.items():
            found[name].append(share)
    for name, tensor in expected.items():
        assert torch.equal(torch.cat(found[name]), tensor)


def on_rank(monkeypatch, rank, ranks):
    monkeypatch.setattr(process_group, "rank", lambda: rank)
    monkeypatch.setattr(process_group, "world_size", lambda: ranks)
