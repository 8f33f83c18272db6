"""Where the weights of an assistant go, and in which precision: device, several devices, bitsandbytes."""

from typing import Any, Literal, get_args

import torch
from torch import nn

from mmchat.errors import UserError
from mmchat.extras import require

Quantize = Literal["4bit", "8bit"]
"""NF4 with double quantization (QLoRA, arXiv:2305.14314), or LLM.int8() (arXiv:2208.07339)."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
BLOCK = 64
"""Weights that share a scale in bitsandbytes' NF4."""
AUTO = "auto"
"""Layers are spread over all CUDA devices."""


def loading_options(device: str | None, quantize: Quantize | None) -> dict[str, Any]:
    """Options of `from_pretrained`.

    Args:
        device: A torch device; "auto" for all CUDA devices; None for the CUDA device if there is one, else the CPU.
        quantize: Quantize the language model's layers. Towers, projectors and the head keep their precision.

    Raises:
        UserError: There is no such device, or bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"device_map": _device_map(device)}
    if quantize is None:
        return options
    if quantize not in get_args(Quantize):
        raise UserError(f"quantize must be one of {', '.join(get_args(Quantize))}, found {quantize!r}")
    require("bitsandbytes")
    from transformers import BitsAndBytesConfig

    skipped = ["towers", "projectors", "lm_head"]
    if quantize == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skipped,
        )
    return options | {"quantization_config": config}


def refuse_incomplete_blocks(model: nn.Module) -> None:
    """Refuse layers whose rows bitsandbytes cannot cut into blocks. On a CPU it fails in the first forward.

    Raises:
        UserError: A layer in 4 bits on a CPU has a number of inputs that is no multiple of `BLOCK`.
    """
    for name, layer in model.named_modules():
        if type(layer).__name__ == "Linear4bit" and layer.weight.device.type == "cpu" and layer.in_features % BLOCK:
            raise UserError(
                f"4bit on a CPU needs layers whose inputs are a multiple of {BLOCK}; {name} has {layer.in_features}. "
                "Use 8bit, or a CUDA device"
            )


def _device_map(device: str | None) -> Any:
    if device == AUTO:
        if not torch.cuda.is_available():
            raise UserError("device auto spreads the model over CUDA devices, but there is none; leave it out")
        return AUTO
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device must be cpu, cuda, cuda:N or auto, found {device!r}") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device} does not exist; torch sees {torch.cuda.device_count()} CUDA devices")
    return {"": chosen}
