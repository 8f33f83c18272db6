"""Weights kept in bf16: rounding is unbiased, the forward is the same, and training follows that in fp32."""

import pytest
import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.model.directory import load_assistant
from mmchat.planning.fake_model import open_fake_model
from mmchat.planning.memory import bytes_of, moments_bytes
from mmchat.settings import validate
from mmchat.training.config import RunConfig
from mmchat.training.optim.bf16_adamw import BF16AdamW, round_stochastically
from mmchat.training.optim.frozen_weights import keep_trained_in_bf16
from mmchat.training.optim.optimizer import build_optimizer
from mmchat.training.optim.param_groups import apply_rules
from tests.launching import launch, steps, write_config
from tests.training_fixtures import opened, run_values, write_records

BF16 = torch.bfloat16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5, -2e10, 0.0, 1.5, -0.25])
def test_rounding_is_to_a_neighbour_and_right_in_the_mean(value):
    exact = torch.full((200_000,), value)
    rounded = round_stochastically(exact, generator()).float()
    nearest = exact[0].to(BF16).float().item()
    unit = abs(value) * 2**-7
    assert (rounded - value).abs().max() < unit or value == nearest
    assert len(rounded.unique()) == (1 if value == nearest else 2)
    # The mean of n draws between two neighbours is within 5 standard deviations, each at most half a unit.
    assert abs(rounded.double().mean().item() - exact[0].item()) <= 5 * unit / 2 / len(exact) ** 0.5


def test_updates_below_the_last_place_add_up():
    """Rounded to the nearest, 200 steps of 1e-5 would leave every weight at 1."""
    weights = nn.Parameter(torch.ones(50_000, dtype=BF16))
    optimizer = BF16AdamW([{"params": [weights]}], 1e-5, (0.9, 0.999), 1e-8, seed=0)
    for _ in range(200):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    assert weights.float().mean().item() == pytest.approx(1 - 200e-5, abs=1e-4)
    assert torch.tensor(1 - 1e-5).to(BF16) == 1


def test_steps_are_those_of_adamw_up_to_rounding():
    torch.manual_seed(0)
    start = (0.05 * torch.randn(64, 32)).to(BF16)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.float())
    groups = {"lr": 1e-2, "weight_decay": 0.1}
    one = BF16AdamW([{"params": [ours], **groups}], 1e-2, (0.9, 0.99), 1e-8, seed=0)
    other = torch.optim.AdamW([{"params": [theirs], **groups}], betas=(0.9, 0.99))
    for seed in range(20):
        gradient = torch.randn(64, 32, generator=generator(seed)).to(BF16)
        ours.grad, theirs.grad = gradient, gradient.float()
        one.step()
        other.step()
    moved = (theirs - start.float()).norm()
    assert (ours.float() - theirs).norm() < 0.1 * moved


def test_state_goes_to_disk_and_back_and_draws_the_same_numbers(tmp_path):
    def build():
        torch.manual_seed(0)
        weights = nn.Parameter(torch.randn(40, 8).to(BF16))
        return weights, BF16AdamW([{"params": [weights], "weight_decay": 0.1}], 1e-2, (0.9, 0.99), 1e-8, seed=3)

    def take(weights, optimizer, seeds):
        for seed in seeds:
            weights.grad = torch.randn(40, 8, generator=generator(seed)).to(BF16)
            optimizer.step()

    weights, optimizer = build()
    take(weights, optimizer, range(3))
    torch.save({"weights": weights.data, "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    other, resumed = build()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.data.copy_(state["weights"])
    resumed.load_state_dict(state["optimizer"])
    take(weights, optimizer, range(3, 6))
    torch.randn(5)  # the global generator does not matter
    take(other, resumed, range(3, 6))
    assert torch.equal(weights, other)


@pytest.fixture
def config(assistant_dir, tmp_path):
    data = write_records(tmp_path / "data", 12)
    values = run_values(tmp_path, assistant_dir, data, precision="bf16", steps=24, batch_size=4)
    return lambda **changes: validate(RunConfig, values | changes, "here")


def trained(config, in_bf16):
    """Losses of a loop without DeepSpeed, and the model."""
    objective, loader = opened(config)
    model = objective.model
    groups = apply_rules(model, config.trainable)
    if in_bf16:
        keep_trained_in_bf16(model)
    optimizer = build_optimizer(model, groups, config.optimizer, config.seed)
    losses = []
    for _, batches in loader.steps(0):
        for batch in batches:
            with torch.autocast("cpu", BF16):
                loss = objective.loss_sum(model, batch, images_on_any_rank=True) / objective.terms(batch)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, model


def test_the_first_loss_is_the_same_and_later_ones_follow(config):
    whole, _ = trained(config(), False)
    rounded, model = trained(config(trained_weights="bf16"), True)
    assert rounded[0] == whole[0]  # autocast rounds these weights anyway
    assert whole[-1] < 0.7 * whole[0]
    assert sum(rounded[-4:]) == pytest.approx(sum(whole[-4:]), rel=0.1)
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds["language_model.model.layers.0.self_attn.q_proj.weight"] == BF16
    assert kinds["language_model.lm_head.weight"] == BF16
    assert kinds["language_model.model.embed_tokens.weight"] == torch.float32
    assert kinds["language_model.model.norm.weight"] == torch.float32


def test_the_plan_counts_two_bytes(config):
    parts = {}
    for weights in ("fp32", "bf16"):
        chosen = config(trained_weights=weights)
        fake = open_fake_model(chosen)
        model = fake.objective.model
        trained = [parameter for group in fake.groups for parameter in group.trained.values()]
        held = sum(map(bytes_of, trained))
        assert moments_bytes(chosen.optimizer, model, trained) == 2 * held
        parts[weights] = held
        narrow = sum(p.numel() for p in trained if p.dtype == BF16)
    assert parts["fp32"] - parts["bf16"] == 2 * narrow > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp32"}, "trained_weights: bf16 needs precision: bf16, found fp32"),
        ({"optimizer": {"lr": 1, "name": "muon"}}, "trained_weights: bf16 needs optimizer.name: adamw, found muon"),
        ({"distributed": {"zero_stage": 2}}, "trained_weights: bf16 needs distributed.zero_stage: 0, found 2"),
        ({"ema": 0.9}, "trained_weights: bf16 needs ema: null, found 0.9"),
    ],
)
def test_what_it_does_not_go_with(config, changes, message):
    with pytest.raises(UserError, match=message):
        config(trained_weights="bf16", **changes)


def test_a_run_on_two_ranks_writes_a_model_in_fp32(assistant_dir, tmp_path):
    data = write_records(tmp_path / "data", 12)
    values = run_values(tmp_path, assistant_dir, data, precision="bf16", steps=3, trained_weights="bf16")
    config = write_config(tmp_path / "run.yaml", **values)
    result = launch(config, ranks=2)
    assert result.returncode == 0, result.stdout
    assert all(row["loss"] > 0 for row in steps(tmp_path / "run"))
    model, _ = load_assistant(tmp_path / "run" / "model")
    weight = model.language_model.model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == torch.float32 and torch.equal(weight.to(BF16).float(), weight)
