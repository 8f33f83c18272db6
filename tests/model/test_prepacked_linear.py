"""Prepacked layers give equal results, and leave the model as it was."""

import psutil
import pytest
import torch
from torch import nn

from mmchat.model import prepacked_linear
from mmchat.model.prepacked_linear import PrepackedLinears

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no bf16 in oneDNN",
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 64, bias=False)).to(torch.bfloat16)


@pytest.mark.parametrize("shape", [(1, 96), (2, 7, 96), (1, 300, 96)])
def test_results_are_equal(model, shape):
    states = torch.randn(shape, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = model(states)
        packed = PrepackedLinears(model)
        assert all("forward" in vars(model[number]) for number in (0, 2))
        assert torch.equal(model(states), expected)
    packed.undo()
    assert not any("forward" in vars(module) for module in model)
    assert torch.equal(model(states), expected)


@pytest.mark.parametrize("shape", [(1, 800, 96), (3, 257, 96), (385, 96)])
def test_many_rows_are_given_to_two_threads_in_pieces(model, shape, monkeypatch):
    """oneDNN itself would give the whole product to one of them."""
    seen, product = [], prepacked_linear._product
    monkeypatch.setattr(prepacked_linear, "_product", lambda *given: seen.append(len(given[2])) or product(*given))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    states = torch.randn(shape, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = model(states)
        PrepackedLinears(model)
        found = model(states)
    rows = states.numel() // 96
    assert found.shape == expected.shape and torch.equal(found, expected)
    assert max(seen) <= 384 and sum(seen) == 2 * rows and max(seen) - min(seen) <= 1


def test_gradients_are_those_of_the_weights(model):
    states = torch.randn(3, 96, dtype=torch.bfloat16)
    model(states).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    PrepackedLinears(model)
    model(states).sum().backward()
    assert all(torch.equal(one.grad, other) for one, other in zip(model.parameters(), expected, strict=True))


def test_other_types_and_layers_stay(model):
    class Own(nn.Linear):
        pass

    own = Own(8, 8).to(torch.bfloat16)
    PrepackedLinears(nn.ModuleList([model.float(), own]))
    assert not any("forward" in vars(module) for module in (*model, own))


def test_a_copy_that_takes_too_much_memory_is_not_made(model, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100}))
    PrepackedLinears(model)
    assert not any("forward" in vars(module) for module in model)
