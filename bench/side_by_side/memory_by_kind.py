"""Memory of a training step by kind of tensor, measured in the same way for both variants."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class MemoryByKind(saved_tensors_hooks):
    """Context manager around training, in the thread that runs the forwards. It costs time and keeps only sizes.

    Attributes:
        sizes: bytes by kind. `parameters` include buffers. `gradients` are measured before the optimizer step, its
            `moments` after. `saved` is what autograd saves for the backward: activations, and weights that autocast
            rounded; if a step has several forwards, of the one that saves most. `largest_saved` is bytes and shape of
            the largest saved tensor.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, Any] = {"parameters": 0, "gradients": 0, "moments": 0, "saved": 0, "largest_saved": None}
        self._parameters: set[int] = set()
        self._saved: dict[int, int] = {}
        self._backward = False
        super().__init__(self._pack, self._unpack)

    def begin(self, model: torch.nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._parameters = set(_storages(tensors))
        self.sizes["parameters"] = _bytes(tensors)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._backward:
            self._saved, self._backward = {}, False
        storage = tensor.untyped_storage()
        if self._parameters and storage.data_ptr() not in self._parameters:
            self._saved[storage.data_ptr()] = storage.nbytes()
            self.sizes["saved"] = max(self.sizes["saved"], sum(self._saved.values()))
            largest = self.sizes["largest_saved"]
            if largest is None or storage.nbytes() > largest[0]:
                self.sizes["largest_saved"] = (storage.nbytes(), f"{tensor.dtype}{list(tensor.shape)}")
        return tensor

    def _unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        self._backward = True
        return tensor

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.sizes["gradients"] = max(self.sizes["gradients"], _bytes(gradients))

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        states = [value for state in optimizer.state.values() for value in state.values()]
        self.sizes["moments"] = _bytes(value for value in states if isinstance(value, torch.Tensor))


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address; tensors may share storage."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(_storages(tensors).values())
