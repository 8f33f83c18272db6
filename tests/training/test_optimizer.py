"""Muon beside AdamW: who steps what, and one state that goes to disk and back."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mmchat.training.config import OptimizerConfig, RunConfig
from mmchat.training.optim.muon import orthogonalize
from mmchat.training.optim.optimizer import build_optimizer
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Rule


class Reader(nn.Module):
    """Something of every sort: embedding, inner matrices, a norm, an output head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.LayerNorm(8))
        self.frozen = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.inner(self.words(ids))))


def build(name: str, seed: int = 0):
    torch.manual_seed(seed)
    model = Reader()
    rules = {"words": Rule(lr=1e-2), "inner": Rule(), "frozen": Rule(mode="frozen"), "head": Rule(weight_decay=0.0)}
    config = OptimizerConfig(name=name, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
    return model, build_optimizer(model, apply_rules(model, rules), config)


def step(model, optimizer, seed: int, then=None) -> None:
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()
    optimizer.step()
    if then is not None:
        then.step()
    model.zero_grad(set_to_none=True)


def test_muon_steps_inner_matrices_as_torch_does_and_adamw_the_rest():
    model, optimizer = build("muon")
    twin, _ = build("adamw")
    inner = [twin.inner[0].weight, twin.inner[2].weight]
    muon = torch.optim.Muon(inner, lr=1e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    vectors = [p for p in twin.inner.parameters() if p.ndim == 1]
    groups = [
        {"params": [twin.words.weight], "lr": 1e-2, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
        {"params": [twin.head.weight], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)
    frozen, before = model.frozen.weight.clone(), [p.clone() for p in model.parameters()]
    for seed in range(3):
        step(model, optimizer, seed)
        step(twin, muon, seed, then=adamw)
    # torch computes the directions in bf16.
    for (name, ours), theirs, start in zip(model.named_parameters(), twin.parameters(), before, strict=True):
        assert (ours - theirs).norm() <= 0.2 * (theirs - start).norm(), name
    assert torch.equal(model.frozen.weight, frozen)


def test_directions_are_nearly_orthogonal_and_those_of_the_gradient():
    torch.manual_seed(0)
    for shape in ((3, 6, 20), (3, 20, 6)):
        matrices = torch.randn(shape)
        found = orthogonalize(matrices)
        exact = [u @ v for u, _, v in (torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices)]
        assert found.shape == shape
        # The iteration brings singular values to between .7 and 1.2 only (Jordan).
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        assert nn.functional.cosine_similarity(found.flatten(1), torch.stack(exact).flatten(1)).min() > 0.95


def test_one_schedule_reaches_both_parts():
    model, optimizer = build("muon")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [p.clone() for p in model.parameters()]
    step(model, optimizer, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert schedule.get_last_lr() == [0.0] * len(optimizer.param_groups)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_to_disk_and_back(name, tmp_path):
    model, optimizer = build(name)
    for seed in range(3):
        step(model, optimizer, seed)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    other, resumed = build(name, seed=1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_muon_is_refused_where_zero_would_cut_its_matrices(tmp_path):
    values = {
        "run_dir": "r", "model": "m", "data": {"path": "d.json"}, "trainable": {"x": "full"}, "batch_size": 2,
        "steps": 1, "optimizer": {"name": "muon", "lr": 1e-3}, "distributed": {"zero_stage": 1},
    }  # fmt: skip
    with pytest.raises(ValidationError, match="optimizer muon needs whole matrices"):
        TypeAdapter(RunConfig).validate_python(values)
