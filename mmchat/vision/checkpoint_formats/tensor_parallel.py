"""What the ranks of Megatron's tensor parallelism hold of a vision model, put together.

Source: NVIDIA/Megatron-LM, examples/multimodal/model_converter/ and nvlm/internvit.py (heads of zeros).
"""

import re

import torch

from mmchat.errors import UserError

Tensors = dict[str, torch.Tensor]

BLOCK = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
"""The number of a block, and a name within it."""

SPLIT = {
    "self_attention.linear_qkv.weight": 0,
    "self_attention.linear_qkv.bias": 0,
    "self_attention.q_layernorm.weight": 0,
    "self_attention.k_layernorm.weight": 0,
    "self_attention.linear_proj.weight": 1,
    "mlp.linear_fc1.weight": 0,
    "mlp.linear_fc1.bias": 0,
    "mlp.linear_fc2.weight": 1,
}
"""What ranks hold parts of, and along which dimension; all else every rank holds whole."""

ROUNDING = {"rtol": 1e-2, "atol": 1e-3}
"""What ranks hold whole may drift apart by so much in training, where a kernel sums in no fixed order."""


def merge_ranks(shards: list[Tensors], where: str) -> Tensors:
    """One state of those that the ranks of tensor parallelism have."""
    first = shards[0]
    for rank, shard in enumerate(shards):
        if missing := sorted(first.keys() ^ shard.keys()):
            raise UserError(
                f"the parts in {where} are not of one model: parts 0 and {rank} do not both hold {missing[0]}"
            )
    return {key: _joined(key, [shard[key] for shard in shards], where) for key in first}


def _joined(key: str, parts: list[torch.Tensor], where: str) -> torch.Tensor:
    block = BLOCK.fullmatch(key)
    dim = SPLIT.get(block[2]) if block else None
    if any(part.shape != parts[0].shape for part in parts[1:]):
        raise UserError(f"the parts in {where} are not of one model: {key} is of another shape in one of them")
    if dim is not None:
        return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]
    if not all(torch.allclose(part, parts[0], **ROUNDING) for part in parts[1:]):
        raise UserError(
            f"the parts in {where} are not of one model: {key} is the same in all of them, but here it differs"
        )
    return parts[0]


def unpadded(tensor: torch.Tensor, dim: int, width: int, key: str, where: str) -> torch.Tensor:
    """Without the heads of zeros that stand at the end where ranks are no divisor of a tower's heads."""
    if tensor.shape[dim] < width:
        raise UserError(
            f"{where} holds {tensor.shape[dim]} of the {width} channels of {key}: "
            "it is one rank of several; name the directory that holds them all"
        )
    kept, padding = tensor.split([width, tensor.shape[dim] - width], dim=dim)
    if padding.any():
        raise UserError(
            f"{where}: {key} has {padding.shape[dim]} channels more than the tower's {width}, and not zeros"
        )
    return kept
