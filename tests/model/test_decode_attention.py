"""Attention of one query per row gives what torch's gives."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mmchat.model import attention as attention_module
from mmchat.model.attention import attention
from mmchat.model.decode_attention import decode_attention

ROWS, KEYS, DIM = 3, 20, 8
LENGTHS = torch.tensor([20, 1, 13])


def states(heads, groups, dtype):
    """Query, keys and values that are slices of a cache, and a mask that hides what is behind each row's length."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, heads, 1, DIM, generator=generator).to(dtype)
    key, value = (torch.randn(5, groups, KEYS + 9, DIM, generator=generator).to(dtype) for _ in range(2))
    mask = torch.zeros(ROWS, KEYS, dtype=dtype)
    mask[torch.arange(KEYS) >= LENGTHS[:, None]] = torch.finfo(dtype).min
    return query, key[1:4, :, :KEYS], value[1:4, :, :KEYS], mask[:, None, None]


def expected(query, key, value, mask, scaling):
    repeats = query.shape[1] // key.shape[1]
    key, value = (one.double().repeat_interleave(repeats, 1) for one in (key, value))
    mask = (mask == 0).expand(-1, 1, 1, -1)
    output = scaled_dot_product_attention(query.double(), key, value, attn_mask=mask, scale=scaling)
    return output.transpose(1, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (4, 1)])
def test_it_is_softmax_attention(heads, groups, dtype, tolerance):
    inputs = states(heads, groups, dtype)
    found = decode_attention(*inputs, 0.4)
    assert found.shape == (ROWS, 1, heads, DIM)
    assert (found.double() - expected(*inputs, 0.4)).abs().max() < tolerance


@pytest.mark.parametrize(
    ("dtype", "amx", "calls"), [(torch.bfloat16, False, 1), (torch.bfloat16, True, 0), (torch.float32, False, 0)]
)
def test_the_attention_function_takes_it_in_bf16_without_amx(monkeypatch, dtype, amx, calls):
    """Elsewhere torch's is as fast; either way the result is the same."""
    seen = []
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(
        attention_module, "decode_attention", lambda *inputs: seen.append(1) or decode_attention(*inputs)
    )
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    inputs = states(6, 2, dtype)
    found = attention(module, *inputs, scaling=0.4)[0]
    assert (found.double() - expected(*inputs, 0.4)).abs().max() < 2e-2
    assert len(seen) == calls
    attention(module, *inputs[:3], None, scaling=0.4, is_causal=False)
    assert len(seen) == calls
