"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks recompute activations in the backward.

`all` keeps only a block's input and recomputes the whole block. `selective` also keeps the outputs of matrix products
and attention and recomputes only cheap operations: norms, activation functions, casts. The idea is that of Korthikanti
et al. 2022 (arXiv:2205.05198), who keep everything except attention.
"""

from functools import partial
from typing import Any

import torch
from torch.nn.attention import varlen  # noqa: F401, makes torch's operator known
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from mmchat.training.config import Recomputed

SAVED_OPS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]
"""Linear layers and fused attention. Not batched products: if attention consists of them, its scores are larger
than everything else that a block keeps."""

# Reentrant checkpointing gives no gradient to blocks whose input needs none, as above a frozen embedding.
CHECKPOINTING: dict[Recomputed, dict[str, Any]] = {
    "all": {"use_reentrant": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, SAVED_OPS),
    },
}
"""Mode -> arguments of transformers' `activation_checkpointing_enable`."""
