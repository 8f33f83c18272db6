"""Gradient caching: the gradient of the loss over all, in forwards of one micro-batch."""

import pytest
import torch
from torch import nn

from mmchat.contrastive import info_nce
from mmchat.training.objectives.gradient_cache import losses_by_cache


class Encoders(nn.Module):
    """Pairs of a batch float[n, 2, 6]; counts how many rows at a time have their gradient taken."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.tensor([1.3]))
        self.forwards = []

    def forward(self, batch):
        self.forwards.append((len(batch), torch.is_grad_enabled()))
        return nn.functional.normalize(self.layers(batch), dim=-1), self.scale.exp()


def loss_sum(pairs, scale):
    return info_nce(*pairs.unbind(dim=1), scale).sum()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoders()


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("sizes", [[3, 3, 2], [2, 0, 6], [8]])
def test_gradient_of_the_whole_with_dropout(model, sizes):
    batches = torch.randn(8, 2, 6).split(sizes)
    torch.manual_seed(1)
    parts = [model(batch) for batch in batches]
    whole = loss_sum(torch.cat([pairs for pairs, _ in parts]), parts[0][1])
    whole.backward()
    after, expected = torch.rand(1), gradients(model)

    model.forwards.clear()
    torch.manual_seed(1)
    value = 0
    for loss in losses_by_cache(model, loss_sum, batches):
        loss.backward()
        value += loss.item()
    # The next draw gives the same numbers.
    assert torch.equal(torch.rand(1), after)
    assert value == pytest.approx(whole.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)
    assert model.forwards == [(size, False) for size in sizes] + [(size, True) for size in sizes]


@torch.no_grad()
def test_a_validation_has_one_forward_each(model):
    batches = torch.randn(8, 2, 6).split(3)
    model.eval()
    (loss,) = losses_by_cache(model, loss_sum, batches)
    torch.testing.assert_close(loss, loss_sum(*model(torch.cat(batches))))
    assert len(model.forwards) == 4
