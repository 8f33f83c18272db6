"""SAM's attention with decomposed relative positions (MViTv2, Li et al. 2022, arXiv:2112.01526) without N x N biases.

Query q attends to key k with `scale * q.k + q.rows[row(q) - row(k)] + q.columns[column(q) - column(k)]`. transformers
writes the last two out for all pairs, 805 MB in fp32 for one image of 64 x 64 patches and 12 heads, and the attention
that it then calls keeps the scores as well where the bias has a gradient. What this saves: bench/sam_attention.py.
"""

import torch
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamVisionAttention

ROWS_AT_ONCE = 8


class DecomposedAttention(SamVisionAttention):
    """The same parameters and, but for rounding, the same function."""

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None]:
        """float[B, height, width, D] -> float[B, height, width, D]; the weights are never there to be returned."""
        batch, height, width, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, height * width, 3, self.num_attention_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, by_distance(self.rel_pos_h, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, by_distance(self.rel_pos_w, width))
        # Folding widens the products, threefold at 64 x 64; where nothing is kept, the bias of a few rows costs less.
        narrow = height + width < query.shape[-1]
        attend = folded if narrow or torch.is_grad_enabled() else row_by_row
        seen = attend(query, key, value, rows, columns, self.scale)
        return self.proj(seen.transpose(1, 2).reshape(batch, height, width, -1)), None


def by_distance(table: torch.Tensor, side: int) -> torch.Tensor:
    """float[2 * side - 1, c], a vector for each distance from 1 - side on -> float[side, side, c], [query, key]."""
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
    """The bias as a part of the dot product: queries carry theirs for every row and column, keys a one where they are.

    query, key, value: float[B, heads, height * width, c]. rows: float[B, heads, height, width, height], a query's bias
    for each row of keys; columns likewise. Values are as wide as keys, with zeros, because fused kernels want that.
    """
    height, width = rows.shape[2:4]
    query = torch.cat([query * scale, rows.flatten(2, 3), columns.flatten(2, 3)], dim=-1)
    own_row = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, dim=0)
    own_column = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    place = torch.cat([own_row, own_column], dim=1).expand(*key.shape[:2], -1, -1)
    wide = F.pad(value, (0, height + width))
    seen = F.scaled_dot_product_attention(query, torch.cat([key, place], dim=-1), wide, scale=1.0)
    return seen[..., : value.shape[-1]]


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The bias for a few rows of queries at a time; shapes as in `folded`."""
    seen = []
    stretches = (one.split(ROWS_AT_ONCE, dim=2) for one in (query.unflatten(2, rows.shape[2:4]), rows, columns))
    for some, of_rows, of_columns in zip(*stretches, strict=True):
        bias = (of_rows[..., :, None] + of_columns[..., None, :]).flatten(4).flatten(2, 3)
        seen.append(F.scaled_dot_product_attention(some.flatten(2, 3), key, value, attn_mask=bias, scale=scale))
    return torch.cat(seen, dim=2)
