"""The loss over supervised positions, against torch's cross-entropy in full precision."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from mmchat.constants import IGNORE_INDEX
from mmchat.training.objectives import cross_entropy_loss
from mmchat.training.objectives.cross_entropy_loss import cross_entropy_sum


@pytest.fixture(params=[1, 90, 2**21], ids=["a row at a time", "three rows at a time", "all at once"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(cross_entropy_loss, "CHUNK", request.param)


@pytest.mark.parametrize("scale", [1.0, 1 / 300])
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_loss_and_gradient(chunk, rows, scale):
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 8), (3 * torch.randn(30, 8)).requires_grad_()
    targets = torch.randint(0, 30, (rows,))
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(expected * scale, weight)
    loss = cross_entropy_sum(hidden @ weight.T, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (loss * scale).backward()
    assert torch.allclose(weight.grad, gradient, rtol=1e-5, atol=1e-6)


def test_logits_in_bf16_are_summed_in_fp32_and_their_gradient_is_rounded_once(chunk):
    torch.manual_seed(0)
    logits, targets = (9 * torch.randn(10, 30)).bfloat16().requires_grad_(), torch.randint(0, 30, (10,))
    exact = logits.detach().float().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="sum")
    (expected / 7).backward()
    loss = cross_entropy_sum(logits * 1, targets)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (loss / 7).backward()
    difference = (logits.grad.float() - exact.grad).abs()
    assert (difference <= exact.grad.abs() * 2**-8 + 1e-9).all()


def test_logits_that_are_needed_again_are_not_lost_in_silence():
    """Their memory holds the gradient after the backward."""
    hidden = torch.randn(3, 5, requires_grad=True)
    logits = hidden.exp()  # its backward needs its output
    loss = cross_entropy_sum(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = cross_entropy_sum(hidden * 1, torch.tensor([0, 1, 2]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
HEADS = {
    "llama": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2, "final_logit_softcapping": 0.7},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.3, "bos_token_id": 1, "eos_token_id": 2},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 5.0},
}
"""Heads that do more than multiply, and two that do not; by transformers' type."""


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_computes_its_logits_its_own_way(kind):
    """The loss at supervised positions, and all gradients, are those of the language model's own loss."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, "pad_token_id": 0, **HEADS[kind]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()  # OPT has dropout
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    ids = torch.randint(3, 50, (2, 9))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.5, IGNORE_INDEX)
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX

    own = model(input_ids=ids, labels=labels, use_cache=False).loss * supervised.sum()
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(input_ids=ids, logits_to_keep=F.pad(supervised, (0, 1)), use_cache=False).logits
    loss = cross_entropy_sum(logits, targets[supervised])
    loss.backward()
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        # Softmax does not see what is added to all keys, so but for rounding that gradient is zero.
        size = expected[name.replace("k_proj.bias", "k_proj.weight")].abs().max()
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * size, name
