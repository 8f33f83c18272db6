"""Frozen layers in 4 bits: what they compute, which they are, and a run that trains LoRA beside them."""

import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import nn

from mmchat.errors import UserError
from mmchat.model.directory import comparison_logits, load_assistant
from mmchat.planning.fake_model import open_fake_model
from mmchat.settings import validate
from mmchat.training.build_model import build_model
from mmchat.training.checkpoints.storage import step_name
from mmchat.training.config import RunConfig
from mmchat.training.optim.nf4 import NF4Linear, elements_of, quantize_frozen, scale_bytes
from mmchat.training.optim.trainable import Trainable
from tests.launching import launch, steps, write_config
from tests.training_fixtures import opened, run_values, write_records

LORA = {"mode": "lora", "rank": 4, "alpha": 8, "dropout": 0.0}
TRAINABLE = {"towers": "frozen", "projectors": "full", "language_model": LORA}


def rules(**changes):
    return TypeAdapter(Trainable).validate_python({**TRAINABLE, **changes})


def small_layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(96, 40, bias=bias)


def test_the_weight_is_that_of_bitsandbytes_and_near_the_original():
    layer = small_layer()
    packed = NF4Linear(layer, torch.float32)
    reference = dequantize_4bit(*quantize_4bit(layer.weight.data, compress_statistics=True, quant_type="nf4"))
    assert torch.equal(packed.dequantize(), reference)
    # Half of the widest gap between two NF4 values (0.30), and some per cent for a scale that is quantized itself.
    assert (reference - layer.weight).abs().max() < 0.2 * layer.weight.abs().max()
    assert not torch.equal(reference, layer.weight)


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_and_gradients_are_those_of_the_dequantized_weight(bf16):
    layer = small_layer()
    packed = NF4Linear(layer, torch.float32)
    plain = small_layer()
    plain.weight.data = packed.dequantize()
    found = []
    for one in (packed, plain):
        inputs = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = one(inputs)
        outputs.float().square().sum().backward()
        found.append((outputs.detach(), inputs.grad, one.bias.grad))
    assert found[0][0].dtype == (torch.bfloat16 if bf16 else torch.float32)
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(
            ours.float(), theirs.float(), rtol=0.02 if bf16 else 1e-5, atol=0.1 if bf16 else 1e-4
        )
    assert packed.weight.grad is None and not packed.weight.requires_grad


def test_which_layers(make_assistant):
    model, _ = make_assistant()
    table = rules(**{"language_model.model.layers.1.mlp": "full"})
    quantize_frozen(model, table, torch.float32)
    found = {name for name, module in model.named_modules() if isinstance(module, NF4Linear)}
    attention = {f"language_model.model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"}
    assert found == attention | {f"language_model.model.layers.0.mlp.{p}_proj" for p in ("gate", "up", "down")}
    weight = model.get_submodule(min(found)).weight
    assert weight.dtype == torch.uint8 and weight.numel() == 32 * 64 / 2 and elements_of(weight) == 32 * 64


def test_nothing_to_quantize(make_assistant):
    with pytest.raises(UserError, match=r"quantize: nf4 keeps frozen linear layers .* there is none: set trainable"):
        quantize_frozen(make_assistant()[0], rules(language_model="full"), torch.float32)


@pytest.mark.parametrize("dora", [False, True])
def test_a_planned_model_has_the_bytes_of_a_real_one(assistant_dir, tmp_path, dora):
    data = write_records(tmp_path / "data", 6)
    trainable = {**TRAINABLE, "language_model": {**LORA, "dora": dora}}
    values = run_values(tmp_path, assistant_dir, data, trainable=trainable, quantize="nf4", precision="bf16")
    config = validate(RunConfig, values, "here")
    real, planned = build_model(config).objective.model, open_fake_model(config).objective.model
    assert scale_bytes(real) == scale_bytes(planned) > 0
    shapes = [{name: (p.shape, p.dtype) for name, p in model.named_parameters()} for model in (real, planned)]
    packed = {name for name, (_, dtype) in shapes[0].items() if dtype == torch.uint8}
    assert len(packed) == 14 and all(shapes[0][name] == shapes[1][name] for name in packed)


def test_gradients_of_adapters_are_those_beside_the_dequantized_base(assistant_dir, tmp_path):
    data = write_records(tmp_path / "data", 6)
    trainable = {**TRAINABLE, "language_model": {**LORA, "dora": True}}
    values = run_values(tmp_path, assistant_dir, data, trainable=trainable, batch_size=6)
    found = []
    for quantize in ("nf4", None):
        objective, loader = opened(validate(RunConfig, {**values, "quantize": quantize}, "here"))
        model = objective.model
        if quantize:
            weights = {n: m.dequantize() for n, m in model.named_modules() if isinstance(m, NF4Linear)}
        else:
            for name, weight in weights.items():
                layer = model.get_submodule(name)
                layer.weight.data.copy_(weight)
                norms = model.get_submodule(name.removesuffix(".base_layer")).lora_magnitude_vector["default"]
                norms.weight.data.copy_(weight.norm(dim=1))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        _, (batch,) = next(iter(loader.steps(0)))
        objective.loss_sum(model, batch, images_on_any_rank=True).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-4 * found[1][name].abs().max().item())


def test_a_run_resumes_and_writes_the_original_weights(assistant_dir, tmp_path):
    """Interrupted at a checkpoint and resumed, it is the run that was not; its model is base and adapter."""
    data = write_records(tmp_path / "data", 12)
    values = run_values(tmp_path, assistant_dir, data, trainable=TRAINABLE, quantize="nf4", steps=4)
    values |= {"batch_size": 4, "checkpoint": {"every": 2}, "optimizer": {"lr": 1e-2, "name": "adamw_8bit"}}
    config = write_config(tmp_path / "run.yaml", **values)
    result = launch(config)
    assert result.returncode == 0, result.stdout
    assert "quantize nf4 without a GPU: every layer is dequantized" in result.stdout
    assert "trained beside a base in 4 bits and written with the original weights; logits differ" in result.stdout
    run = tmp_path / "run"
    last, before = (run / "checkpoints" / step_name(step) for step in (4, 2))
    state = torch.load(last / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert sum(tensor.dtype == torch.uint8 for tensor in state.values()) == 28  # weights and scales of 14 layers
    merged, processor = load_assistant(run / "model")
    base, _ = load_assistant(assistant_dir)
    changed = {n for n, p in merged.named_parameters() if not torch.equal(p, base.get_parameter(n))}
    assert all(".layers." in name or name.startswith("projectors.") for name in changed) and len(changed) == 14 + 4
    assert comparison_logits(merged, processor).isfinite().all()
    whole, adapter = steps(run), load_file(run / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(run / "model")
    shutil.rmtree(last)
    (run / "checkpoints" / "latest").write_text(before.name)
    result = launch(config, "--resume")
    assert result.returncode == 0 and "resumed after step 2" in result.stdout, result.stdout
    assert steps(run) == whole
    again = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)
