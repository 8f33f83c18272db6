"""Liger's kernels for RMS norms and gated MLPs of the language model (Hsu et al. 2024, arXiv:2410.10989).

They replace the forward of single modules of this model, and only for tensors on a GPU: at the end of a run the same
model is compared with its copy on the CPU. Rotary positions and the loss are left alone: Liger replaces the former for
every model of the process, and only supervised positions reach ours.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from mmchat.errors import UserError
from mmchat.extras import require
from mmchat.model.modeling import MMChatForConditionalGeneration

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
MLPS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)

Norm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(states, gain, epsilon) -> states / their root mean square * gain."""
GatedProduct = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(gate, up) -> silu(gate) * up."""


def use_liger(model: MMChatForConditionalGeneration) -> None:
    """Let the language model compute with Liger's kernels.

    Raises:
        UserError: liger-kernel is not installed, or does not know such a language model.
    """
    require("liger_kernel")
    from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction

    def norm(states: torch.Tensor, gain: torch.Tensor, epsilon: float) -> torch.Tensor:
        # offset, rounding as in Llama, and the gradient of the output is not overwritten
        return LigerRMSNormFunction.apply(states, gain, epsilon, 0.0, "llama", False)

    fuse(model.language_model, norm, LigerSiLUMulFunction.apply)


def fuse(language_model: nn.Module, norm: Norm, product: GatedProduct, device: str = "cuda") -> None:
    """Replace the forward of norms and gated MLPs for tensors on a kind of device.

    Raises:
        UserError: The model has neither.
    """
    found = False
    for module in language_model.modules():
        if type(module) in NORMS:
            change, arguments = _norm_forward, (norm,)
        elif type(module) in MLPS and isinstance(module.act_fn, nn.SiLU | SiLUActivation):
            change, arguments = _mlp_forward, (product,)
        else:
            continue
        vars(module)["forward"] = partial(change, module, module.forward, device, *arguments)
        found = True
    if not found:
        raise UserError(
            f"fused_kernels: liger is for language models of type llama, mistral, qwen2 and qwen3, found "
            f"{language_model.config.model_type}; leave it out"
        )


def _norm_forward(module: nn.Module, original: Any, device: str, norm: Norm, states: torch.Tensor) -> torch.Tensor:
    if states.device.type != device:
        return original(states)
    return norm(states, module.weight, module.variance_epsilon)


def _mlp_forward(
    module: nn.Module, original: Any, device: str, product: GatedProduct, states: torch.Tensor
) -> torch.Tensor:
    if states.device.type != device:
        return original(states)
    return module.down_proj(product(module.gate_proj(states), module.up_proj(states)))
