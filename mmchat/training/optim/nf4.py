"""Frozen linear layers in 4 bits: NF4 with double quantization (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

bitsandbytes quantizes and dequantizes. The layer is our own: its packed weight is a plain parameter and its scales are
plain buffers, so that checkpoints hold tensors only, and its output has the type that autocast gives other linear
layers. The weight is dequantized in the forward and again in the backward, and never kept.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.training.deepspeed_internals import full_shape
from mmchat.training.optim.param_groups import check_names, rule_for
from mmchat.training.optim.trainable import Rule

BLOCK, OUTER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a scale (bitsandbytes: functional.quantize_4bit)."""


class NF4Linear(nn.Linear):
    """A linear layer whose weight is frozen in 4 bits.

    Attributes:
        weight: uint8[ceil(n / 2), 1]: two of n = out_features * in_features weights per byte.
        scales: uint8[ceil(n / 64)]: the scale of a block, quantized.
        outer_scales, outer_code, offset: what turns `scales` into numbers, float32: [ceil(n / 64 / 256)], [256], [].
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        """Quantize the weight of `layer`, rounded to `dtype`; on the meta device only shapes are made."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.planned = layer.weight.is_meta
        packed, *tensors = _shapes(layer.weight) if self.planned else _quantize(layer.weight.detach().to(dtype))
        self.weight = nn.Parameter(packed, requires_grad=False)
        for name, tensor in zip(("scales", "outer_scales", "outer_code", "offset"), tensors, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        kind = inputs.device.type
        autocast = torch.is_autocast_enabled(kind)
        inputs = inputs.to(torch.get_autocast_dtype(kind)) if autocast else inputs
        outputs = _FrozenProduct.apply(inputs, self)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight, [out_features, in_features]."""
        shape = (self.out_features, self.in_features)
        if self.planned:
            return self.weight.new_empty(shape, dtype=dtype)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        outer = QuantState(self.outer_scales, code=self.outer_code, blocksize=OUTER_BLOCK, dtype=torch.float32)
        state = QuantState(
            self.scales, shape, None, BLOCK, quant_type="nf4", dtype=dtype, offset=self.offset, state2=outer
        )
        return dequantize_4bit(self.weight.data, state)

    @property
    def W_q(self) -> torch.Tensor:  # noqa: N802
        """By this name PEFT knows layers that it must ask to dequantize themselves (DoRA's norms)."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nf4"


class _FrozenProduct(torch.autograd.Function):
    """inputs @ weight.T without keeping the dequantized weight for the backward."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: NF4Linear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(inputs, layer.dequantize(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.dequantize(gradient.dtype), None


def quantize_frozen(model: MMChatForConditionalGeneration, rules: dict[str, Rule], dtype: torch.dtype) -> None:
    """Replace the linear layers of the language model whose weights no rule trains, except the head. In place.

    With a GPU they are quantized there, one at a time, and stay there.

    Args:
        dtype: What weights are rounded to first: that of the run's forward.

    Raises:
        UserError: There is no such layer, or bitsandbytes is not installed.
    """
    check_names(model, rules)
    head = model.get_output_embeddings()
    layers = {
        path: module
        for path, module in model.language_model.named_modules(prefix="language_model")
        if type(module) is nn.Linear and module is not head and _is_frozen(f"{path}.weight", rules)
    }
    if not layers:
        raise UserError(
            "quantize: nf4 keeps frozen linear layers of the language model in 4 bits, and there is none: set "
            "trainable.language_model to lora or frozen, or leave quantize out"
        )
    for path, layer in layers.items():
        if not layer.weight.is_meta:
            require("bitsandbytes")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, NF4Linear(layer, dtype))


def _is_frozen(name: str, rules: dict[str, Rule]) -> bool:
    rule = rule_for(name, rules)
    return rule is not None and rules[rule].mode != "full"


def elements_of(parameter: nn.Parameter) -> int:
    """Weights that a parameter holds, unsharded; a byte holds two."""
    return full_shape(parameter).numel() * (2 if parameter.dtype == torch.uint8 else 1)


def scale_bytes(model: nn.Module) -> int:
    """Bytes of the scales of all 4-bit layers of a model."""
    layers = [module for module in model.modules() if isinstance(module, NF4Linear)]
    return sum(buffer.numel() * buffer.element_size() for layer in layers for buffer in layer.buffers())


def _shapes(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    count = weight.numel()
    blocks = -(-count // BLOCK)
    return (
        weight.new_empty(-(-count // 2), 1, dtype=torch.uint8),
        weight.new_empty(blocks, dtype=torch.uint8),
        weight.new_empty(-(-blocks // OUTER_BLOCK), dtype=torch.float32),
        weight.new_empty(256, dtype=torch.float32),
        weight.new_empty((), dtype=torch.float32),
    )


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    from bitsandbytes.functional import quantize_4bit

    if torch.cuda.is_available():
        weight = weight.cuda()
    packed, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return packed, state.absmax, state.state2.absmax, state.state2.code, state.offset
