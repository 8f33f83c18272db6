"""SAM's attention with decomposed relative positions (MViTv2, Li et al. 2022, arXiv:2112.01526), without N x N biases.

Query q attends to key k with `scale * q.k + q.rows[row(q) - row(k)] + q.columns[column(q) - column(k)]`. transformers
materialises the last two for all pairs: 805 MB in fp32 for one image of 64 x 64 patches and 12 heads. Its attention
also keeps the scores if the bias has a gradient. bench/sam_attention.py measures what this module saves.
"""

import torch
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamVisionAttention

ROWS_AT_ONCE = 8


class DecomposedAttention(SamVisionAttention):
    """`SamVisionAttention` with the same parameters and, up to rounding, the same outputs."""

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None]:
        """float[B, height, width, D] -> float[B, height, width, D]. Attention weights are not returned."""
        batch, height, width, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, height * width, 3, self.num_attention_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, by_distance(self.rel_pos_h, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, by_distance(self.rel_pos_w, width))
        # Folding makes the products wider, 3x at 64 x 64 patches. Without gradients the bias of a few rows is cheaper.
        narrow = height + width < query.shape[-1]
        attend = folded if narrow or torch.is_grad_enabled() else row_by_row
        attended = attend(query, key, value, rows, columns, self.scale)
        return self.proj(attended.transpose(1, 2).reshape(batch, height, width, -1)), None


def by_distance(table: torch.Tensor, side: int) -> torch.Tensor:
    """Table by distance from 1 - side to side - 1, float[2 * side - 1, c] -> by [query, key], float[side, side, c]."""
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places + side - 1]


def folded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention with the bias as part of the dot product.

    Queries are extended by their biases for all rows and columns, keys by one-hot rows and columns. Values are padded
    with zeros to the width of keys, which fused kernels require.

    Args:
        query: float[B, heads, height * width, c].
        key: As `query`.
        value: As `query`.
        rows: float[B, heads, height, width, height]: a query's bias for each row of keys.
        columns: float[B, heads, height, width, width]: the same for columns.
        scale: Factor of the dot product.

    Returns:
        float[B, heads, height * width, c].
    """
    height, width = rows.shape[2:4]
    query = torch.cat([query * scale, rows.flatten(2, 3), columns.flatten(2, 3)], dim=-1)
    one_hot_row = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, dim=0)
    one_hot_column = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    positions = torch.cat([one_hot_row, one_hot_column], dim=1).expand(*key.shape[:2], -1, -1)
    padded = F.pad(value, (0, height + width))
    attended = F.scaled_dot_product_attention(query, torch.cat([key, positions], dim=-1), padded, scale=1.0)
    return attended[..., : value.shape[-1]]


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention with the bias computed for a few rows of queries at a time. Arguments as in `folded`."""
    attended = []
    chunks = (tensor.split(ROWS_AT_ONCE, dim=2) for tensor in (query.unflatten(2, rows.shape[2:4]), rows, columns))
    for queries, row_bias, column_bias in zip(*chunks, strict=True):
        bias = (row_bias[..., :, None] + column_bias[..., None, :]).flatten(4).flatten(2, 3)
        attended.append(F.scaled_dot_product_attention(queries.flatten(2, 3), key, value, attn_mask=bias, scale=scale))
    return torch.cat(attended, dim=2)
