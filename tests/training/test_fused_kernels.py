"""Fused kernels and compiled blocks compute what torch does."""

import os
import shutil

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

from mmchat.errors import UserError
from mmchat.extras import installed
from mmchat.settings import validate
from mmchat.training.compilation import blocks_of, compile_parts, run_as_written
from mmchat.training.config import RunConfig
from mmchat.training.fused_kernels import fuse, use_liger
from mmchat.training.hardware import check_hardware
from mmchat.training.optim.lora import add_adapters
from mmchat.training.optim.param_groups import apply_rules
from mmchat.training.optim.trainable import Trainable
from tests.training_fixtures import opened, run_values, write_records

HAS_LIGER = torch.cuda.is_available() and installed("liger_kernel")


def reference_norm(states, gain, epsilon):
    exact = states.float()
    return gain * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + epsilon)).to(states.dtype)


def step(model, processor):
    """Loss and gradients of the comparison inputs."""
    inputs = processor.comparison_inputs().to(model.device)
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= tolerance * (1e-2 + gradient.abs().max()), name


def with_lora(make_assistant):
    model, processor = make_assistant()
    rules = {"towers": "frozen", "projectors": "full", "language_model": {"mode": "lora", "rank": 2, "dropout": 0}}
    rules = TypeAdapter(Trainable).validate_python(rules)
    add_adapters(model, rules)
    apply_rules(model, rules)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model, processor


def test_every_norm_and_mlp_is_replaced_and_adapters_inside_still_count(make_assistant):
    model, processor = with_lora(make_assistant)
    expected, calls = step(model, processor), []

    def norm(*arguments):
        calls.append("norm")
        return reference_norm(*arguments)

    def product(gate, up):
        calls.append("product")
        return F.silu(gate) * up

    fuse(model.language_model, norm, product, device="cpu")
    assert_same(step(model, processor), expected, 1e-4)
    assert (calls.count("norm"), calls.count("product")) == (2 * 2 + 1, 2)


def test_tensors_elsewhere_take_the_original_path(make_assistant):
    model, processor = make_assistant()
    expected = step(model, processor)
    fuse(model.language_model, None, None)  # for CUDA
    assert_same(step(model, processor), expected, 0)


def test_a_language_model_without_such_modules_is_refused(make_assistant):
    with pytest.raises(UserError, match=r"fused_kernels: liger is for language models .* found opt; leave it out"):
        fuse(make_assistant("opt")[0].language_model, None, None)


@pytest.mark.skipif(not HAS_LIGER, reason="needs a CUDA device and liger-kernel")
def test_liger_gives_our_gradients(make_assistant):
    model, processor = with_lora(make_assistant)
    model.cuda()
    expected = step(model, processor)
    use_liger(model)
    assert_same(step(model, processor), expected, 1e-3)


@pytest.fixture
def config(assistant_dir, tmp_path):
    data = write_records(tmp_path / "data", 6)
    values = run_values(tmp_path, assistant_dir, data, batch_size=3)
    return lambda **changes: validate(RunConfig, values | changes, "here")


def test_without_a_gpu_liger_is_refused_in_one_line(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^fused_kernels: liger runs on CUDA, and there is no CUDA device; leave it"):
        check_hardware(config(fused_kernels="liger"))


def test_parts_that_cannot_be_compiled(config):
    with pytest.raises(UserError, match="compile: objective assistant has no text_encoder"):
        config(compile=["text_encoder"])
    with pytest.raises(UserError, match="compile: ZeRO 3 gathers weights inside blocks"):
        config(compile=["towers"], distributed={"zero_stage": 3})


def test_what_is_compiled(make_assistant):
    model, _ = make_assistant()
    names = {name for name, _ in model.named_parameters()}
    compile_parts(model, ["towers", "language_model"])
    compiled = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    towers = {f"towers.0.backbone.encoder.layers.{block}" for block in range(3)}
    assert compiled == towers | {f"language_model.model.layers.{block}" for block in range(2)}
    assert {name for name, _ in model.named_parameters()} == names
    run_as_written(model)
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert blocks_of(nn.Linear(2, 2)) and len(blocks_of(nn.Sequential(nn.Linear(2, 2)))) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a compiler")
def test_compiled_blocks_give_the_same_losses(config):
    found = []
    for parts in ([], ["towers", "language_model"]):
        objective, loader = opened(config(compile=parts))
        losses = []
        for _, (batch,) in loader.steps(0):
            loss = objective.loss_sum(objective.model, batch, images_on_any_rank=True)
            loss.backward()
            losses.append(loss.item())
        gradients = {n: p.grad.clone() for n, p in objective.model.named_parameters() if p.grad is not None}
        found.append((sum(losses), gradients))
    assert_same(found[1], found[0], 1e-4)
