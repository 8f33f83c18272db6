"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): what a block does not keep it computes again.

`all` keeps nothing but a block's input, and the backward computes the whole block again. `selective` also keeps what
matrix products and attention gave (the idea is that of Korthikanti et al. 2022, arXiv:2205.05198, who keep all but
attention), so that only what is cheap is computed again: norms, activation functions, casts.
"""

from functools import partial
from typing import Any

import torch
from torch.nn.attention import varlen  # noqa: F401, makes torch's operator known
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from mmchat.training.config import Recomputed

DEAR = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]
"""Linear layers and fused attention. Not batched products: where attention is made of them, its scores are larger than
all that the rest of a block keeps."""

# The reentrant kind gives no gradient to blocks above a frozen embedding, whose inputs need none.
CHECKPOINTING: dict[Recomputed, dict[str, Any]] = {
    "all": {"use_reentrant": False},
    "selective": {"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, DEAR)},
}
"""What transformers' `activation_checkpointing_enable` is told."""
