"""The loss over supervised positions, against torch's cross-entropy in full precision."""

import pytest
import torch
from torch.nn import functional as F

from mmchat.training import cross_entropy
from mmchat.training.cross_entropy import cross_entropy_sum


@pytest.fixture(params=[1, 90, 2**21], ids=["a row at a time", "three rows at a time", "all at once"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", request.param)


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
