"""Linear layers in bf16 on a CPU, with weights in the layout that oneDNN's matrix products want.

torch hands oneDNN plain weights, which are brought into that layout in every call. Done once in advance, a product with
1 to 16 rows takes half the time and one with 800 rows four fifths, with equal results (lab log, 2026-12-01).
The operators are those that torch.compile uses when it freezes a model.
"""

from collections.abc import Iterator
from functools import partial

import psutil
import torch
from torch import nn
from torch.nn.functional import linear

SHARE_OF_FREE_MEMORY = 0.25
"""Most memory for the second copy of the weights."""
_ROWS = 16
"""Rows that the layout is asked for. It is good for other numbers, too."""
_NARROW, _PIECE = 1024, 384
"""oneDNN gives a product of some 500 to 1,000 rows with so few outputs to one of two threads, but a product of so many
rows to both (lab log, 2026-12-01)."""


class PrepackedLinears:
    """Prepacks the linear layers of a model. Their weights stay where they are, and must not change meanwhile.

    With gradients enabled, layers compute as before. Nothing happens where the layout is of no use, or where the copy
    takes too much memory.

    Args:
        model: Any model.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = list(_layers(model))
        size = sum(layer.weight.nbytes for layer in layers)
        if size > SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available:
            layers = []
        self._layers = layers
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            layer.forward = partial(_forward, layer, packed)  # type: ignore[method-assign]

    def undo(self) -> None:
        """Give the memory back. Layers compute as before."""
        for layer in self._layers:
            del layer.forward
        self._layers = []


def _layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The layers that gain from it."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    for module in model.modules():
        # Not subclasses, which may compute something else.
        if type(module) is nn.Linear and "forward" not in vars(module):
            weight = module.weight
            if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
                yield module


def _forward(layer: nn.Linear, packed: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled():
        return linear(states, layer.weight, layer.bias)
    rows = states.numel() // states.shape[-1]
    if rows > _PIECE and layer.out_features <= _NARROW and torch.get_num_threads() == 2:
        pieces = states.reshape(rows, -1).tensor_split(-(-rows // _PIECE))
        return torch.cat([_product(layer, packed, piece) for piece in pieces]).view(*states.shape[:-1], -1)
    return _product(layer, packed, states)


def _product(layer: nn.Linear, packed: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, packed, layer.bias, "none", [], "")
