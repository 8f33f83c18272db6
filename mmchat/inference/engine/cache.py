"""Keys and values of all running requests: one slot per request in one tensor per layer.

transformers' models write to a cache and read it through `Cache.update`. `SlotCache` is such a cache. Before each
forward the engine says which slots and positions it is about (`View`); a layer then writes there and returns a slice of
its tensor, so nothing is copied or concatenated.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from mmchat.errors import UserError
from mmchat.inference.engine.cache_size import CacheSize

SHARE_OF_FREE_MEMORY = 0.5
"""Default budget. The rest is for activations, and for what else runs."""


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of one token."""

    heads: int
    key_dim: int
    value_dim: int
    device: torch.device
    """Layers may be spread over several devices."""

    @property
    def size(self) -> int:
        """Number of values per token."""
        return self.heads * (self.key_dim + self.value_dim)


def default_budget(device: torch.device) -> int:
    """Half of the memory that is free now, in bytes."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * SHARE_OF_FREE_MEMORY)


def layer_shapes(language_model: PreTrainedModel) -> tuple[LayerShape, ...]:
    """What each layer of a language model keeps of a token, seen in a forward of one token.

    Raises:
        UserError: A layer keeps something else than keys and values of every token.
    """
    kind = language_model.config.model_type
    token = torch.zeros(1, 1, dtype=torch.long, device=language_model.device)
    kept = getattr(language_model(input_ids=token, use_cache=True), "past_key_values", None)
    if type(kept) is not DynamicCache:
        raise UserError(
            f"language model {kind} keeps {type(kept).__name__}; the engine needs keys and values of every token"
        )
    shapes = []
    for layer in kept.layers:
        plain = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        keys, values = (layer.keys, layer.values) if plain and isinstance(layer, DynamicLayer) else (None, None)
        if keys is None or values is None:
            raise UserError(
                f"a layer of language model {kind} keeps a {type(layer).__name__}; the engine needs keys and values of "
                "every token in every layer"
            )
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.device))
    return tuple(shapes)


@dataclass(frozen=True)
class View:
    """The part of the cache that one forward is about."""

    slots: torch.Tensor
    """int64[T]: the slot of each new token, row by row."""
    positions: torch.Tensor
    """int64[T]: its position."""
    real: torch.Tensor | None
    """bool[B * Q]: which tokens of the forward are not padding; None if all."""
    past: int
    """Tokens before the first new one, the same for all rows; of no meaning in a decode step, which has a mask."""
    window: tuple[int, int, int] | None
    """First slot, last slot + 1 and number of positions to attend to; None for the new tokens alone."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, float[slots, heads, length, dim]. It starts without slots."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, cache: "SlotCache", shape: LayerShape, dtype: torch.dtype) -> None:
        super().__init__()
        self.cache = cache
        self.keys = torch.empty(0, shape.heads, 0, shape.key_dim, dtype=dtype, device=shape.device)
        self.values = torch.empty(0, shape.heads, 0, shape.value_dim, dtype=dtype, device=shape.device)
        self.is_initialized = True

    def resize(self, size: CacheSize) -> None:
        """Change the number of slots and their length. What fits is kept."""
        self.keys, self.values = _resized(self.keys, size), _resized(self.values, size)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the engine allocates the tensors before a forward."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store float[B, heads, Q, dim] and return what the rows attend to."""
        view = self.cache.view
        slots, positions = view.slots.to(self.keys.device), view.positions.to(self.keys.device)
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            new = states.transpose(1, 2).flatten(0, 1)
            kept[slots, :, positions] = new if view.real is None else new[view.real.to(new.device)]
        if view.window is None:
            return key_states, value_states
        first, stop, width = view.window
        return self.keys[first:stop, :, :width], self.values[first:stop, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of positions that are attended to, and the first."""
        return self.cache.view.past + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens before the new ones."""
        return self.cache.view.past

    def get_max_length(self) -> int:
        """Tokens per slot."""
        return self.cache.size.length


class SlotCache(Cache):
    """All slots of all layers. It starts without slots; see `resize`.

    Args:
        layers: What each layer keeps.
        dtype: Of keys and values.
    """

    def __init__(self, layers: tuple[LayerShape, ...], dtype: torch.dtype) -> None:
        self.size = CacheSize()
        self.view: View
        self._kept = [SlotLayer(self, shape, dtype) for shape in layers]
        super().__init__(layers=[*self._kept])

    def resize(self, size: CacheSize) -> None:
        """Change the number of slots and their length, one layer after the other. What fits is kept."""
        for layer in self._kept:
            layer.resize(size)
        self.size = size

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for layer in self._kept for tensor in (layer.keys, layer.values))

    def look_at(self, view: View) -> None:
        """Choose what the next forward is about."""
        self.view = view

    def copy_all(self, copies: Iterable[tuple[int, int, int]]) -> None:
        """Copy the first tokens of slots to others, in order: source slot, target slot, number of tokens."""
        for source, target, length in copies:
            for layer in self._kept:
                for kept in (layer.keys, layer.values):
                    kept[target, :, :length] = kept[source, :, :length]

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros, because NaN in it would reach the next request there."""
        for layer in self._kept:
            layer.keys[slot].zero_()
            layer.values[slot].zero_()

    def release(self) -> None:
        """Give the memory back."""
        self.layers.clear()
        self._kept.clear()


def _resized(tensor: torch.Tensor, size: CacheSize) -> torch.Tensor:
    slots, heads, length, dim = tensor.shape
    if (size.slots, size.length) == (slots, length):
        return tensor
    # Zeros, because masked positions are multiplied by zero, and NaN stays NaN.
    new = tensor.new_zeros(size.slots, heads, size.length, dim)
    slots, length = min(slots, size.slots), min(length, size.length)
    new[:slots, :, :length] = tensor[:slots, :, :length]
    return new
