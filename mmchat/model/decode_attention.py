"""Attention of one new token per row over a cache in bf16, on a CPU: two batched products instead of torch's kernel.

torch's flash kernel works in blocks of queries, and without AMX it reads bf16 keys slowly where a row has one query. In
fp32 neither is always faster. The lab log has the times (2026-11-30 and 2026-12-01).
"""

import torch


def is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `decode_attention` takes less time than torch's kernel for one query per row."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not torch.cpu._is_amx_tile_supported()


def applies(query: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> bool:
    """Whether `decode_attention` takes this: one query per row where it is faster, an additive mask, no gradient."""
    return (
        query.shape[2] == 1
        and is_faster(query.dtype, query.device)
        and mask is not None
        and mask.is_floating_point()
        and not dropout
        and not query.requires_grad
    )


def decode_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Softmax attention with weights in fp32. Keys times query is the order of factors that is fast for one query.

    Args:
        query: float[B, heads, 1, D].
        key: float[B, groups, L, D], each group for heads / groups heads.
        value: float[B, groups, L, E].
        mask: float[B or 1, 1, 1, L], added to the scores.
        scaling: Scale of the scores.

    Returns:
        float[B, 1, heads, E].
    """
    rows, heads, _, dim = query.shape
    groups = key.shape[1]
    queries = query.reshape(rows * groups, heads // groups, dim).transpose(1, 2)
    scores = torch.bmm(key.flatten(0, 1), queries).transpose(1, 2).unflatten(0, (rows, groups))
    weights = (scores.float() * scaling + mask).softmax(dim=-1).to(value.dtype)
    return torch.bmm(weights.flatten(0, 1), value.flatten(0, 1)).view(rows, 1, heads, -1)
