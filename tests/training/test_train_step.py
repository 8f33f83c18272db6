"""One optimizer step: what it counts, and how often it waits for the device."""

from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mmchat.training.config import StabilityConfig
from mmchat.training.monitoring.nan_guard import NanGuard
from mmchat.training.objectives.base import Objective
from mmchat.training.train_step import StepCounts, train_step
from tests import launching

METHODS = {"encode", "measure", "terms", "loss_sum", "save"}
LOSSES = [0.1, 0.2, 0.7, 1.3]


class Losses(Objective):
    """Gives one loss after another."""

    def encode(self, record, images, template, max_length, features=None): ...

    def measure(self, source, max_length): ...

    def terms(self, counts):
        return counts.terms

    def loss_sum(self, module, batch, images_on_any_rank):
        return torch.tensor(batch.loss, requires_grad=True)

    def save(self, directory): ...


class Engine:
    """What `train_step` calls of DeepSpeed's."""

    device = torch.device("cpu")

    def __init__(self):
        self.gradient_scales, self.boundaries, self.steps = [], [], 0

    def get_lr(self):
        return [0.5]

    def train(self): ...

    def zero_optimization_stage(self):
        return 0

    def zero_optimization(self):
        return True

    def set_gradient_accumulation_boundary(self, last):
        self.boundaries.append(last)

    def backward(self, loss, scale_wrt_gas):
        self.gradient_scales.append(loss.detach())

    def step(self):
        self.steps += 1

    def get_global_grad_norm(self):
        return 1.0

    def was_step_applied(self):
        return True


def batch_of(loss, terms, rejected=()):
    batch = SimpleNamespace(loss=loss, terms=terms, tokens=10, images=1, positions=16, cut=2, rejected=list(rejected))
    batch.to = lambda device: batch
    return batch


class Reads(TorchFunctionMode):
    """Counts calls that wait until the device has computed a tensor."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in (torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.__float__, torch.Tensor.__bool__):
            self.calls.append(function.__name__)
        return function(*arguments, **(keywords or {}))


def test_a_step_reads_its_loss_once():
    batches = [batch_of(loss, terms) for loss, terms in zip(LOSSES, (3, 1, 2, 4), strict=True)]
    engine, norms = Engine(), SimpleNamespace(finish=lambda norm: {})
    guard = NanGuard(StabilityConfig())
    with Reads() as reads:
        result = train_step(engine, Losses(), batches, guard, norms, lambda: [0, 0])
    assert reads.calls == ["item"]
    assert result.loss == sum(torch.tensor(loss).double().item() for loss in LOSSES) / 10  # added in double precision
    assert engine.boundaries == [False, False, False, True] and engine.steps == 4
    assert [scale.item() for scale in engine.gradient_scales] == pytest.approx([loss / 10 for loss in LOSSES])
    assert result.counts == StepCounts(terms=10, tokens=40, images=4, positions=64, cut=8)
    assert result.operations is None and result.stop == 0 and result.taken


def test_counts_add_up():
    flops = SimpleNamespace(of=lambda batch: 1000)
    one, other = batch_of(1.0, 3, rejected=["r"]), batch_of(1.0, 4)
    counts = [StepCounts.of(batch, Losses(), flops) for batch in (one, other)]
    assert counts[0] == StepCounts(3, 10, 1, 16, 2, 1, 1000)
    assert sum(counts, StepCounts()) == StepCounts(7, 20, 2, 32, 4, 1, 2000)
    assert StepCounts.over_ranks(counts) == counts
    assert StepCounts.over_ranks([]) == []


@pytest.mark.parametrize("missing", sorted(METHODS))
def test_an_objective_must_have_all_its_methods(missing):
    """One without `save` would train to the end and write no model."""
    names = METHODS - {missing}
    incomplete = type("Incomplete", (Objective,), {name: vars(Losses)[name] for name in names})
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        incomplete()


def test_a_random_step_is_repeated_by_its_seed(monkeypatch, capsys):
    monkeypatch.setenv("MMCHAT_TEST_SEED", "7")
    chosen = [launching.random_choice(range(1000)) for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert f"killed at step {chosen[0]}; repeat with MMCHAT_TEST_SEED=7" in capsys.readouterr().out
    monkeypatch.setenv("MMCHAT_TEST_SEED", "8")
    assert launching.random_choice(range(1000)) != chosen[0]
