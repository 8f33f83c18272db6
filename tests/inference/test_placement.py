"""Devices, types and quantized weights."""

import sys

import pytest
import torch

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.model.directory import save_assistant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device cuda:99 does not exist; torch sees"),
        ({"device": "gpu"}, "device must be cpu, cuda, cuda:N or auto, found 'gpu'"),
        ({"quantize": "3bit"}, "quantize must be one of 4bit, 8bit, found '3bit'"),
    ],
)
def test_what_does_not_exist_is_refused(assistant_dir, options, message):
    with pytest.raises(UserError, match=message):
        Generator(assistant_dir, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_several_devices_need_cuda(assistant_dir):
    with pytest.raises(UserError, match="spreads the model over CUDA devices, but there is none"):
        Generator(assistant_dir, device="auto")


def test_weights_open_in_another_type(assistant_dir, make_image):
    with Generator(assistant_dir, device="cpu", dtype="bfloat16") as generator:
        assert {parameter.dtype for parameter in generator.model.parameters()} == {torch.bfloat16}
        assert generator.chat("What?", make_image(), max_new_tokens=4)


def test_without_bitsandbytes_its_extra_is_named(assistant_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"mmchat\[quantize\]"):
        Generator(assistant_dir, quantize="4bit")


def test_layers_that_4_bits_do_not_fit_are_refused(assistant_dir):
    pytest.importorskip("bitsandbytes")
    expected = r"4bit on a CPU needs layers whose inputs are a multiple of 64; .*q_proj has 32. Use 8bit"
    with pytest.raises(UserError, match=expected):
        Generator(assistant_dir, device="cpu", quantize="4bit")


@pytest.mark.parametrize(("quantize", "kind"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_the_language_model_alone_is_quantized(make_assistant, make_image, tmp_path, quantize, kind):
    pytest.importorskip("bitsandbytes")
    save_assistant(*make_assistant(hidden_size=64, intermediate_size=128), tmp_path / "model")  # blocks of 64
    with Generator(tmp_path / "model", device="cpu", quantize=quantize) as generator:
        names = {name for name, module in generator.model.named_modules() if type(module).__name__ == kind}
        assert names and all(name.startswith("language_model.model.layers.") for name in names)
        assert generator.chat("What?", make_image(), max_new_tokens=4)
