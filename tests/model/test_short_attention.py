"""Attention of short samples on a CPU, compared with torch's in full precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from mmchat.model import attention
from mmchat.model.short_attention import BLOCK_SCORES, MAX_LENGTH, is_faster, short_attention

WIDTH = 16
BF16 = 2**-8
"""Relative spacing of bf16."""


def draw(lengths, heads, groups, spread=1.0, precision=torch.bfloat16):
    """Queries, keys, values and the gradient of the output, with the memory layout of a language model."""
    sizes = ((heads, spread), (groups, spread), (groups, 1.0), (heads, 1.0))
    rows = [torch.randn(1, sum(lengths), h, WIDTH) * size + 0.3 for h, size in sizes]
    return [row.to(precision).transpose(1, 2) for row in rows]


def reference(query, key, value, lengths, scale, causal, window):
    """A reference that attends per sample with all scores: float[1, L, heads, D]."""
    share = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True):
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        place = torch.arange(q.shape[2])
        back = place[:, None] - place[None]
        visible = (back >= 0) & (back < (window or len(place))) if causal else torch.ones_like(back, dtype=torch.bool)
        scores = (q @ k.transpose(2, 3) * scale).masked_fill(~visible, -torch.inf)
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def results(function, drawn, *options):
    """Output and the gradients of queries, keys and values, in fp32."""
    *states, gradient = drawn
    states = [one.detach().requires_grad_() for one in states]
    output = function(*states, *options)
    output.backward(gradient.transpose(1, 2))
    return [one.float() for one in (output.detach(), *(state.grad for state in states))]


def error(found, true):
    return ((found - true).norm() / true.norm()).item()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    shape=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 5, 100]),
    seed=st.integers(0, 99),
)
def test_it_equals_attention(lengths, shape, causal, window, seed):
    torch.manual_seed(seed)
    drawn, options = draw(lengths, *shape), (lengths, WIDTH**-0.5, causal, window if causal else None)
    true = results(reference, [one.float() for one in drawn], *options)
    found = results(short_attention, drawn, *options)
    for name, mine, exact in zip(("output", "query", "key", "value"), found, true, strict=True):
        # Of a sample of one token queries and keys have no gradient at all, but for rounding.
        assert (mine - exact).norm() <= 4 * BF16 * exact.norm() + BF16 * len(lengths), name


@pytest.mark.parametrize("spread", [0.05, 1.0, 2.0])
def test_its_error_is_about_that_of_torch(spread):
    """Compared with fp32, from uniform attention (small scores) to peaked attention, with several groups of heads.

    Rounding the scores adds about the error of rounding queries and keys.
    """
    torch.manual_seed(0)
    lengths = [400, 130, 7]
    assert 12 * max(lengths) ** 2 > BLOCK_SCORES
    true = results(reference, draw(lengths, 12, 12, spread, torch.float32), lengths, WIDTH**-0.5, True, None)

    def flash(*states):
        parts = zip(*(one.split(lengths, dim=2) for one in states), strict=True)
        outputs = [F.scaled_dot_product_attention(*part, is_causal=True) for part in parts]
        return torch.cat(outputs, dim=2).transpose(1, 2)

    torch.manual_seed(0)
    drawn = draw(lengths, 12, 12, spread)
    ours = results(short_attention, drawn, lengths, WIDTH**-0.5, True)
    torchs = results(flash, drawn)
    for mine, other, exact in zip(ours, torchs, true, strict=True):
        assert error(mine, exact) < 2.2 * error(other, exact)


def test_a_large_mean_of_the_values_does_not_hide_the_gradient_of_the_scores():
    """As in untrained models, whose values are similar. Without centring, the rounding of weights would dominate."""
    torch.manual_seed(0)
    query, key, value, gradient = draw([300], 4, 4, 0.3)
    value = (3 * torch.randn(1, 4, 1, WIDTH) + 0.1 * value).bfloat16()
    drawn, options = [query, key, value, gradient], ([300], WIDTH**-0.5, True)
    true = results(reference, [one.float() for one in drawn], *options, None)
    assert [error(*pair) < 0.006 for pair in zip(results(short_attention, drawn, *options), true, strict=True)] == [
        True
    ] * 4


def test_samples_do_not_attend_to_each_other():
    torch.manual_seed(0)
    lengths = [9, 30, 4]
    query, key, value, _ = draw(lengths, 4, 2)
    before = short_attention(query, key, value, lengths, 0.25, True)
    for states in (query, key, value):
        states[:, :, 9:39] = torch.randn_like(states[:, :, 9:39])
    after = short_attention(query, key, value, lengths, 0.25, True)
    assert torch.equal(before[:, :9], after[:, :9]) and torch.equal(before[:, 39:], after[:, 39:])
    assert not torch.equal(before[:, 9:39], after[:, 9:39])


def test_where_it_is_used(monkeypatch):
    short = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    assert is_faster(short, MAX_LENGTH, 0.0)
    assert not (is_faster(short, MAX_LENGTH + 1, 0.0) or is_faster(short, 9, 0.1) or is_faster(short.float(), 9, 0.0))

    used = []
    monkeypatch.setattr(attention, "short_attention", lambda *a, **k: used.append(a[3]) or short_attention(*a, **k))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=28, patch_size=7))
    for parameter in tower.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    pixels = torch.randn(3, 3, 28, 28)

    def features_and_gradient(precision):
        tower.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = tower(pixels).last_hidden_state
        features.float().square().sum().backward()
        return features.detach().float(), tower.encoder.layers[0].self_attn.q_proj.weight.grad.clone()

    exact = features_and_gradient("fp32")
    torchs = features_and_gradient("bf16")
    attention.use_fast_attention(tower)
    assert all(map(torch.equal, features_and_gradient("fp32"), exact)) and not used
    ours = features_and_gradient("bf16")
    assert used == [[17] * 3] * 2
    for mine, other, true in zip(ours, torchs, exact, strict=True):
        assert error(mine, true) < 2 * error(other, true)


@pytest.mark.parametrize("amx", [True, False])
def test_inference_with_amx_takes_torchs_kernel(monkeypatch, amx):
    """Its forward is faster there. With a gradient, ours is."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    query = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert is_faster(query, 9, 0.0) is not amx
    with torch.no_grad():  # a first pass of gradient checkpointing is to round as the second does
        assert is_faster(query, 9, 0.0)


def test_rotary_positions_do_not_keep_a_packed_row_from_it(monkeypatch):
    """Under autocast they leave queries and keys in fp32 beside values in bf16."""
    used = []
    monkeypatch.setattr(attention, "short_attention", lambda *a, **k: used.append(a[3]) or short_attention(*a, **k))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2, vocab_size=50))
    attention.enable_packing(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.arange(12)[None], **attention.packed_inputs([5, 7], torch.device("cpu")))
    assert used == [[5, 7]] * 2
    model(torch.arange(12)[None], **attention.packed_inputs([5, 7], torch.device("cpu")))
    assert len(used) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention of packed rows needs a GPU")
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("groups", [4, 2])
def test_on_a_gpu_a_packed_row_is_attended_to_in_one_call(window, groups):
    torch.manual_seed(0)
    lengths = [70, 1, 300]
    sizes = (4, groups, groups, 4)
    drawn = [torch.randn(1, 371, h, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for h in sizes]
    row = torch.tensor(lengths, dtype=torch.int32).view(1, 1, 1, -1)
    module = nn.Module()
    module.num_key_value_groups = 4 // groups

    def ours(*states):
        return attention.attention(module, *states, row, scaling=0.125, sliding_window=window)[0]

    exact = [one.float() for one in drawn]
    true = results(lambda *states: reference(*states, lengths, 0.125, True, window).cuda(), exact)
    for mine, other in zip(results(ours, drawn), true, strict=True):
        assert error(mine, other) < 4 * BF16
