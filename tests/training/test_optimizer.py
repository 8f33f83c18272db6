"""Muon beside AdamW: who steps what, and one state that goes to disk and back."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mmchat.errors import UserError
from mmchat.planning.memory import moments_bytes
from mmchat.training.config import OptimizerConfig, RunConfig
from mmchat.training.hardware import check_hardware
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


class Wide(nn.Module):
    """Matrices large enough for moments in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 64)
        self.inner = nn.Linear(64, 128)
        self.head = nn.Linear(128, 11)


def wide(name: str):
    torch.manual_seed(0)
    model = Wide()
    config = OptimizerConfig(name=name, lr=1e-3, weight_decay=0.1)
    rules = {"words": Rule(), "inner": Rule(lr=1e-2), "head": Rule()}
    return model, build_optimizer(model, apply_rules(model, rules), config)


def wide_steps(model, optimizer, count: int) -> None:
    for seed in range(count):
        ids = torch.randint(0, 11, (8,), generator=torch.Generator().manual_seed(seed))
        nn.functional.cross_entropy(model.head(model.inner(model.words(ids)).relu()), ids).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(("name", "tolerance"), [("adamw_8bit", 0.1), ("paged_adamw", 1e-4), ("paged_adamw_8bit", 0.1)])
def test_optimizers_of_bitsandbytes_step_as_adamw(name, tolerance):
    """Up to the rounding of moments. On a CPU nothing is paged, which users are told before (`hardware`)."""
    model, optimizer = wide(name)
    twin, reference = wide("adamw")
    start = [p.clone() for p in model.parameters()]
    wide_steps(model, optimizer, 5)
    wide_steps(twin, reference, 5)
    for (one, ours), theirs, before in zip(model.named_parameters(), twin.parameters(), start, strict=True):
        assert (ours - theirs).norm() <= tolerance * (theirs - before).norm(), one


def test_which_moments_are_in_8_bits_and_their_bytes():
    """Not those of embeddings, nor of parameters below 4,096 elements; the plan counts the same bytes."""
    model, optimizer = wide("adamw_8bit")
    wide_steps(model, optimizer, 1)
    states = {name: state for part in optimizer.parts.values() for name, state in named_states(model, part)}
    kinds = {name: {t.dtype for k, t in state.items() if k in MOMENTS} for name, state in states.items()}
    assert kinds["inner.weight"] == {torch.uint8}
    assert kinds["words.weight"] == kinds["inner.bias"] == kinds["head.weight"] == {torch.float32}
    kept = sum(t.nbytes for state in states.values() for k, t in state.items() if k in MOMENTS | {"absmax1", "absmax2"})
    config = OptimizerConfig(name="adamw_8bit", lr=1e-3)
    assert moments_bytes(config, model, list(model.parameters())) == kept


MOMENTS = {"exp_avg", "exp_avg_sq", "state1", "state2"}


def named_states(model, part):
    names = {id(p): name for name, p in model.named_parameters()}
    return [(names[id(p)], state) for p, state in part.state.items()]


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_moments_need_a_gpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=f"optimizer.name {name} moves moments between a GPU .* no CUDA device; use adam"
    ):
        check_hardware(run_config(optimizer={"name": name, "lr": 1e-3}))


@pytest.mark.parametrize("changes", [{"optimizer": {"name": "adamw_8bit", "lr": 1e-3}}, {"quantize": "nf4"}])
def test_without_bitsandbytes_the_extra_is_named(monkeypatch, changes):
    monkeypatch.setattr("mmchat.extras.installed", lambda module: module != "bitsandbytes")
    with pytest.raises(UserError, match=r"bitsandbytes is not installed; run pip install 'mmchat\[quantize\]'"):
        check_hardware(run_config(**changes))


def test_moments_of_bitsandbytes_are_refused_where_zero_would_cut_parameters():
    with pytest.raises(ValidationError, match="optimizer adamw_8bit is for whole parameters, which ZeRO shards"):
        run_config(optimizer={"name": "adamw_8bit", "lr": 1e-3}, distributed={"zero_stage": 1})


def run_config(**changes):
    values = {
        "run_dir": "r", "model": "m", "data": {"path": "d.json"}, "trainable": {"x": "full"}, "batch_size": 2,
        "steps": 1, "optimizer": {"lr": 1e-3},
    }  # fmt: skip
    return TypeAdapter(RunConfig).validate_python(values | changes)


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw_8bit"])
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


def test_muon_is_refused_where_zero_would_cut_its_matrices():
    with pytest.raises(ValidationError, match="optimizer muon needs whole matrices"):
        run_config(optimizer={"name": "muon", "lr": 1e-3}, distributed={"zero_stage": 1})
