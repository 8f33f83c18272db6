"""Merge the tensor-parallel ranks of a Megatron vision model.

Source: NVIDIA/Megatron-LM, examples/multimodal/model_converter/ and nvlm/internvit.py (zero heads).
"""

import re

import torch

from mmchat.errors import UserError

Tensors = dict[str, torch.Tensor]

BLOCK = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
"""Groups: the number of a block, and a key within it."""

SPLIT_DIMENSIONS = {
    "self_attention.linear_qkv.weight": 0,
    "self_attention.linear_qkv.bias": 0,
    "self_attention.q_layernorm.weight": 0,
    "self_attention.k_layernorm.weight": 0,
    "self_attention.linear_proj.weight": 1,
    "mlp.linear_fc1.weight": 0,
    "mlp.linear_fc1.bias": 0,
    "mlp.linear_fc2.weight": 1,
}
"""Tensors that are sharded over ranks -> the dimension. All others are replicated."""

ROUNDING = {"rtol": 1e-2, "atol": 1e-3}
"""Tolerated difference of replicated tensors. Kernels that sum in no fixed order let ranks drift apart in training."""


def merge_ranks(shards: list[Tensors], where: str) -> Tensors:
    """Merge the states of all ranks, given in order of rank.

    Args:
        shards: Key -> tensor for each rank.
        where: Origin of the weights, for messages.

    Raises:
        UserError: The ranks do not belong to one model.
    """
    first = shards[0]
    for rank, shard in enumerate(shards):
        if missing := sorted(first.keys() ^ shard.keys()):
            raise UserError(
                f"the ranks in {where} are not of one model: rank 0 and rank {rank} do not both hold {missing[0]}"
            )
    return {key: _merged(key, [shard[key] for shard in shards], where) for key in first}


def _merged(key: str, parts: list[torch.Tensor], where: str) -> torch.Tensor:
    block = BLOCK.fullmatch(key)
    dim = SPLIT_DIMENSIONS.get(block[2]) if block else None
    if any(part.shape != parts[0].shape for part in parts[1:]):
        raise UserError(f"the ranks in {where} are not of one model: {key} has another shape in one of them")
    if dim is not None:
        return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]
    if not all(torch.allclose(part, parts[0], **ROUNDING) for part in parts[1:]):
        raise UserError(f"the ranks in {where} are not of one model: {key} is replicated, but its values differ")
    return parts[0]


def remove_padding(tensor: torch.Tensor, dim: int, width: int, key: str, where: str) -> torch.Tensor:
    """Remove the zero heads that Megatron appends if the number of heads is not divisible by the number of ranks.

    Args:
        tensor: A tensor of attention.
        dim: The dimension over heads.
        width: Its size without padding.
        key: The tensor's key, for messages.
        where: Origin of the weights, for messages.

    Raises:
        UserError: There are fewer than `width` channels, or the rest are not zeros.
    """
    if tensor.shape[dim] < width:
        raise UserError(
            f"{where} holds {tensor.shape[dim]} of the {width} channels of {key}: "
            "it is one rank of several; name the directory that holds all ranks"
        )
    kept, padding = tensor.split([width, tensor.shape[dim] - width], dim=dim)
    if padding.any():
        raise UserError(
            f"{where}: {key} has {padding.shape[dim]} channels more than the tower's {width}, and they are not zeros"
        )
    return kept
